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
    """

    def __init__(self, directory, manifest, split, *, batch, length, seed, name):
        self.manifest, self.batch, self.length, self.name = manifest, batch, length, name
        part = manifest["splits"][split]
        self.tokens, self.bytes = part["tokens"], part["bytes"]
        if self.tokens < length + 1:
            raise ConfigError(_too_short(name, split, manifest, length))
        self.bytes_per_token = self.bytes / self.tokens
        self._stream = shards.TokenStream(directory, manifest, split)
        self._key = permute.make_key("rows", seed, name, split)
        self._shift_key = permute.make_key("shift", seed, name, split)
        # One window fewer than fit, so that an epoch may start up to a window later.
        self.train_rows = self.windows = max(1, (self.tokens - 1) // length - 1)
        self.efficiency = 1.0
        self._shifts = min(length, self.tokens - self.windows * length)
        self.steps_per_epoch = -(-self.windows // batch)
        self.epoch_rows = -(-(self.tokens - 1) // length)

    def starts(self, n):
        """Returns where rows `n` (int64, counted from the start of training) begin."""
        epoch, i = n // self.windows, n % self.windows
        shift = permute.subkeys(self._shift_key, epoch) % np.uint64(self._shifts)
        place = permute.permute(permute.subkeys(self._key, epoch), i, self.windows)
        return shift.astype(np.int64) + place * self.length

    def take(self, n):
        """Returns rows `n` of the training order as a batch."""
        return self._cut(self.starts(n))

    def in_order(self, k):
        """Returns rows `k` of the split read from its start; the last one may be padded."""
        starts = k * self.length
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
        return self._pieces(k * self.length)

    def _pieces(self, starts):
        """Returns a list of Pieces for each row that begins at `starts`."""
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
        return self._stream.read(np.array([start]), count)[0]

    def row_scores(self, scores):
        """Returns the mean over the tokens of each row `k` of `in_order` of documents' scores."""
        ends = np.append(self._stream.starts, self.tokens)
        total = np.concatenate([[0.0], np.cumsum(scores * np.diff(ends))])
        edges = np.minimum(np.arange(self.epoch_rows + 1) * self.length, self.tokens)
        return np.diff(np.interp(edges, ends, total)) / np.diff(edges)

    def _cut(self, starts, length=0):
        """Returns the batch whose rows begin at `starts` of the stream."""
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
