"""Training rows: windows over a split's token stream, in a keyed order.

Row n of a source, counted from the start of training, is a pure function of (seed, n). Epoch
n // windows walks all windows once in a keyed order, from a keyed shift of up to one window,
so that cuts fall elsewhere each time.
"""

import itertools

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.data import permute, shards
from jaxllm.data.origin import Piece
from jaxllm.data.rows import Rows, empty_batch, runs, spread


class Source(Rows):
    """Rows of one shard set's split, by random access.

    Args:
        directory: of the shard set.
        manifest: its manifest.
        split: "train" or "validation".
        batch: rows in a global batch.
        length: tokens in a row, T.
        seed: of the order.
        name: of the source in the config, for errors and for the order's key.
        lead: places of token 0 that each document and each window begins with; not learned.

    Attributes:
        tokens: tokens in the split.
        bytes: UTF-8 bytes of the split's text.
        bytes_per_token: their ratio, for bits per byte.
        windows, train_rows: rows in an epoch of training.
        efficiency: share of all places that hold a token, 1.
        steps_per_epoch: steps that walk all windows once, rounded up.
        name: of the source.
        manifest: what was prepared, with counts, hashes and what was skipped.

    Raises:
        ConfigError: the split is too short for one row.

    With a lead the split is as if `lead` places stood before each document, and a window over it is
    so many places shorter, for its own. One that begins among those of a document has no more than
    them, and ends with as much padding.
    """

    def __init__(self, directory, manifest, split, *, batch, length, seed, name, lead=0):
        self.manifest, self.batch, self.length, self.name = manifest, batch, length, name
        part = manifest["splits"][split]
        self.tokens, self.bytes = part["tokens"], part["bytes"]
        if self.tokens < length + 1:
            raise ConfigError(_too_short(name, split, manifest, length))
        self.bytes_per_token = self.bytes / self.tokens
        self._stream = shards.TokenStream(directory, manifest, split)
        self.lead = lead
        self._begins, self._size = self._stream.starts, self.tokens
        if lead:
            self._begins = self._begins + lead * np.arange(part["documents"])
            self._size += lead * part["documents"]
        self._key = permute.make_key("rows", seed, name, split)
        self._shift_key = permute.make_key("shift", seed, name, split)
        # One window fewer than fit, so that an epoch may start up to a window later.
        self.train_rows = self.windows = max(1, (self._size - 1) // self._reach - 1)
        self._shifts = min(self._reach, self._size - self.windows * self._reach)
        self.steps_per_epoch = -(-self.windows // batch)
        self.epoch_rows = -(-(self._size - 1) // self._reach)
        self.efficiency = min(self.tokens / (self.epoch_rows * length), 1.0) if lead else 1.0

    @property
    def _reach(self):
        """Places of the split that a window is over."""
        return self.length - self.lead

    def starts(self, n):
        """Returns where rows `n` (int64, counted from the start of training) begin."""
        epoch, i = n // self.windows, n % self.windows
        shift = permute.subkeys(self._shift_key, epoch) % np.uint64(self._shifts)
        place = permute.permute(permute.subkeys(self._key, epoch), i, self.windows)
        return shift.astype(np.int64) + place * self._reach

    def take(self, n):
        """Returns rows `n` of the training order as a batch."""
        return self._cut(self.starts(n))

    def in_order(self, k):
        """Returns rows `k` of the split read from its start; the last one may be padded."""
        starts = k * self._reach
        if self.lead:
            return self._cut(starts)
        short = starts + self.length + 1 - self.tokens
        if short.max(initial=0) <= 0:
            return self._cut(starts)
        pad = np.maximum(short, 0)
        batch = empty_batch(len(k), self.length)
        for name, value in self._cut(starts[pad == 0]).items():
            batch[name][pad == 0] = value
        for row in np.flatnonzero(pad):
            keep = self.length - pad[row]
            tail = self._cut(starts[row : row + 1], keep)
            for name, value in tail.items():
                batch[name][row, :keep] = value[0]
        return batch

    def where(self, n):
        """Returns (source, epoch, pieces) of each row `n` of the training order."""
        epochs = (n // self.windows).tolist()
        pieces = self._pieces(self.starts(n))
        return [(self.name, epoch, found) for epoch, found in zip(epochs, pieces, strict=True)]

    def where_in_order(self, k):
        """Returns the pieces of each row `k` of `in_order`."""
        return self._pieces(k * self._reach)

    def _pieces(self, starts):
        """Returns a list of Pieces for each row that begins at `starts`."""
        if self.lead:
            return [self._stretches(start) for start in starts.tolist()]
        found, begins = [], self._stream.starts
        for start in starts.tolist():
            end = min(start + self.length, self.tokens - 1)  # each has a target
            first, after = np.searchsorted(begins, [start, end - 1], "right")
            edges = [start, *begins[first:after].tolist(), end]
            found.append(
                [
                    Piece(a - start, first - 1 + i, a - int(begins[first - 1 + i]), b - a, a)
                    for i, (a, b) in enumerate(itertools.pairwise(edges))
                ]
            )
        return found

    def ids(self, start, count):
        """Returns `count` token ids of the stream from `start` on."""
        return self._stream.piece(int(start), int(count)).astype(np.int32)

    def row_scores(self, scores):
        """Returns the mean over the tokens of each row `k` of `in_order` of documents' scores."""
        ends = np.append(self._begins, self._size)
        total = np.concatenate([[0.0], np.cumsum(scores * np.diff(ends))])
        edges = np.minimum(np.arange(self.epoch_rows + 1) * self._reach, self._size)
        return np.diff(np.interp(edges, ends, total)) / np.diff(edges)

    def _cut(self, starts, length=0):
        """Returns the batch whose rows begin at `starts` of the stream."""
        if self.lead:
            return self._cut_led(starts)
        length = length or self.length
        window_BT = self._stream.read(starts, length + 1)
        position_BT, segment_BT, weight_BT = self._boundaries(starts, length)
        return {
            "tokens": window_BT[:, :-1],
            "targets": window_BT[:, 1:],
            "weight": weight_BT,
            "position": position_BT,
            "segment": segment_BT,
        }

    def _stretches(self, start):
        """Returns the Pieces of a window with a lead; their columns are those of their tokens."""
        end, found, column = min(start + self._reach, self._size), [], 0
        first, after = np.searchsorted(self._begins, [start, end - 1], "right")
        for document in range(first - 1, after):
            begin = int(self._begins[document]) + self.lead  # where its tokens do
            is_last = document == after - 1
            stop = (end if is_last else int(self._begins[document + 1])) - begin
            offset = max(start - begin, 0)
            if stop <= offset:  # only places of its lead
                continue
            column += self.lead
            at = int(self._stream.starts[document]) + offset
            found.append(Piece(column, document, offset, stop - offset, at))
            column += stop - offset
        return found

    def _cut_led(self, starts):
        """Returns the batch of windows that begin at `starts`, with the lead's places counted."""
        batch = empty_batch(len(starts), self.length)
        for row, pieces in enumerate(self._pieces(starts)):
            for number, piece in enumerate(pieces, 1):
                first, end = piece.column - self.lead, piece.column + piece.tokens
                after = piece.start + piece.tokens
                whole = after == self.tokens or (
                    piece.document + 1 < len(self._stream.starts)
                    and after == self._stream.starts[piece.document + 1]
                )
                asked = piece.tokens - whole  # the last token of a document has no target
                batch["tokens"][row, piece.column : end] = self.ids(piece.start, piece.tokens)
                at = slice(piece.column, piece.column + asked)
                batch["targets"][row, at] = self.ids(piece.start + 1, asked)
                batch["weight"][row, at] = 1
                batch["segment"][row, first:end] = number
                batch["position"][row, first:end] = np.arange(end - first)
        return batch

    def _boundaries(self, starts, length):
        """Returns positions, segments and weights of the rows that begin at `starts`."""
        B, shape = len(starts), (len(starts), length)
        first = np.searchsorted(self._stream.starts, starts, "right")
        after = np.searchsorted(self._stream.starts, starts + length, "right")
        row, document = spread(first, after - first)
        column = self._stream.starts[document] - starts[row]
        weight_BT = np.ones(shape, np.float32)
        weight_BT[row, column - 1] = 0  # a target that begins another document
        inside = column < length
        row, column = row[inside], column[inside]
        count = np.bincount(row, minlength=B)
        at = np.cumsum(count) - count  # the run that a row begins with goes before its others
        number = np.insert(np.arange(2, len(row) + 2) - at[row], at, 1)
        begin = np.insert(row * length + column, at, np.arange(B) * length)
        return *runs(begin, number, shape), weight_BT


def _too_short(name, split, manifest, length):
    part = manifest["splits"][split]
    message = (
        f"config.data.length={length} does not fit the {split} split of source {name!r}: it has "
        f"{part['tokens']:,} tokens ({part['documents']:,} documents), a row needs {length + 1:,}."
    )
    if part["tokens"] > 1:
        return f"{message}\n  Try --config.data.length={part['tokens'] - 1}, or more text."
    fraction = manifest["validation_fraction"]
    edit = "--config.data.validation_fraction=0.1" if not fraction else "more documents"
    if split == "train":
        edit = "a smaller --config.data.validation_fraction"
    return (
        f'{message}\n  Try {edit}, or split="tail" in config.data.sources.{name}, which cuts '
        "each document instead of dealing out whole ones."
    )
