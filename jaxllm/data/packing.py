"""Training rows of whole documents: none that fits a row is cut, and rows are nearly full.

Packing works on the histogram of lengths (Krell et al. 2021, "Efficient sequence packing without
cross-contamination"): a plan says "so many rows hold a piece of 1,500 and one of 540", and takes
time and memory that depend on the length of rows alone. Which documents of these lengths meet in a
row is a keyed permutation, another one each epoch, so that a row is found without walking to it.
Documents of a rare length meet others of rare lengths, again and again.
"""

import bisect
from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.data import permute, shards
from jaxllm.data.origin import Piece
from jaxllm.data.rows import Rows, runs, spread


class Plan(NamedTuple):
    """How pieces of given lengths fill rows: patterns of runs of equal pieces.

    Attributes:
        rows: int64[patterns], rows of each pattern.
        end: int64[patterns], their cumulative sum.
        first: int64[patterns + 1], where the runs of each pattern begin.
        length, each: int64[runs].
        base: int64[runs], pieces of that length in patterns before.
    """

    rows: np.ndarray
    end: np.ndarray
    first: np.ndarray
    length: np.ndarray
    each: np.ndarray
    base: np.ndarray


def best_fit(counts):
    """Packs by best fit, the longest first.

    Args:
        counts: counts[n] pieces have length n; a row holds len(counts) - 1.

    Returns:
        [(rows, ((length, pieces), …))], patterns with so many rows each.
    """
    size = len(counts) - 1
    opened, rooms = {}, []  # {room left: [(rows, pattern)]}; its keys, sorted

    def put(room, rows, pattern):
        if room not in opened:
            bisect.insort(rooms, room)
        opened.setdefault(room, []).append((rows, pattern))

    for length in range(size, 0, -1):
        left = int(counts[length])
        while left:
            at = bisect.bisect_left(rooms, length)
            room, rows, pattern = size, left, ()
            if at < len(rooms):
                room = rooms[at]
                rows, pattern = opened[room].pop()
                if not opened[room]:
                    del opened[room], rooms[at]
            each = min(room // length, left)
            used = min(rows, left // each)
            if pattern and used < rows:
                put(room, rows - used, pattern)
            put(room - each * length, used, (*pattern, (length, each)))
            left -= used * each
    return [one for room in rooms for one in opened[room]]


def make_plan(counts):
    """Returns the Plan of a histogram of lengths; see `best_fit`."""
    patterns, taken, base = best_fit(counts), np.zeros(len(counts), np.int64), []
    for rows, pattern in patterns:
        for length, each in pattern:
            base.append(taken[length])
            taken[length] += rows * each
    rows = np.array([rows for rows, _ in patterns], np.int64)
    length, each = np.array([run for _, pattern in patterns for run in pattern], np.int64).T
    first = np.cumsum([0, *(len(pattern) for _, pattern in patterns)])
    return Plan(rows, np.cumsum(rows), first, length, each, np.array(base, np.int64))


class Pieces(NamedTuple):
    """The pieces in some rows, row by row.

    Attributes:
        row: int64, index of each piece's row among those asked for.
        document: int64, number of its document in the split.
        offset: int64, where in the document it begins.
        start: int64, where in the stream.
        length: int64, tokens with a target.
    """

    row: np.ndarray
    document: np.ndarray
    offset: np.ndarray
    start: np.ndarray
    length: np.ndarray


class Packer:
    """Which documents, or which part of one, are in a row, found without walking to it.

    A document that takes more places than a row has fills rows alone; its rest is packed like a
    document.

    Args:
        places: int[documents], how many each takes; at least one takes some.
        length: places of a row.
        seed, name, split: of the order of rows and of what meets in them.

    Attributes:
        rows: rows of an epoch.
    """

    def __init__(self, places, length, seed, name, split):
        self.length = length
        full, rest = np.divmod(places, length)
        self._long = np.flatnonzero(full)  # documents that fill rows
        self._long_end = np.cumsum(full[self._long])
        self._counts = np.bincount(rest, minlength=length + 1)
        self._first = np.cumsum(self._counts) - self._counts
        small = np.uint16 if length < 1 << 16 else np.uint32  # radix sort
        self._by_rest = np.argsort(rest.astype(small), kind="stable")
        self._counts[0] = 0
        self._counts[length] = full.sum()
        self._plan = make_plan(self._counts)
        self.rows = int(self._plan.end[-1])
        self._key = permute.make_key("packed rows", seed, name, split)
        self._piece_key = permute.make_key("packed pieces", seed, name, split)

    def in_training(self, n):
        """Returns what `find` does of rows `n` of the training order."""
        epoch, i = np.divmod(n, self.rows)
        return self.find(permute.permute(permute.subkeys(self._key, epoch), i, self.rows), epoch)

    def find(self, place, epoch=None):
        """Returns the parts of documents in rows of the plan.

        Args:
            place: int64, rows of the plan.
            epoch: int64, of each; None for documents in order.

        Returns:
            (row, document, lap, length), int64[parts]: index of each part's row among those asked
            for, its document, which of the rows that the document fills, or -1 for its rest, and
            its places.
        """
        plan = self._plan
        pattern = np.searchsorted(plan.end, place, "right")
        rank = place - (plan.end[pattern] - plan.rows[pattern])
        row, run = spread(plan.first[pattern], plan.first[pattern + 1] - plan.first[pattern])
        slot, index = spread(np.zeros(len(run), np.int64), plan.each[run])
        row, run = row[slot], run[slot]
        index += plan.base[run] + rank[row] * plan.each[run]
        length = plan.length[run]
        if epoch is not None:
            keys = permute.subkeys(self._piece_key, epoch[row] * (self.length + 1) + length)
            index = permute.permute(keys, index, self._counts[length])
        whole = length == self.length
        document, lap = np.empty(len(row), np.int64), np.full(len(row), -1, np.int64)
        at = np.searchsorted(self._long_end, index[whole], "right")
        begin = np.concatenate([[0], self._long_end])[at]
        document[whole] = self._long[at]
        lap[whole] = index[whole] - begin
        short = ~whole
        document[short] = self._by_rest[self._first[length[short]] + index[short]]
        return row, document, lap, length


class Packed(Rows):
    """Rows of whole documents of one shard set's split, with the interface of `windows.Source`.

    A document of n tokens takes n - 1 places, each of which predicts the next token. One that takes
    more than a row fills rows alone, and its rest is packed like a document.

    Args:
        directory, manifest, split, batch, length, seed, name: as of `windows.Source`.
        lead: places of token 0 that each document, or part of one, begins with; not learned.

    Attributes:
        tokens, bytes, bytes_per_token, manifest, name, steps_per_epoch: as of `windows.Source`.
        train_rows, epoch_rows: rows in an epoch.
        efficiency: share of all places that hold a token.

    Raises:
        ConfigError: no document has two tokens.
    """

    def __init__(self, directory, manifest, split, *, batch, length, seed, name, lead=0):
        self.manifest, self.batch, self.length, self.name = manifest, batch, length, name
        self.lead, self._reach = lead, length - lead
        part = manifest["splits"][split]
        self.tokens, self.bytes = part["tokens"], part["bytes"]
        self._stream = shards.TokenStream(directory, manifest, split)
        places = np.maximum(np.diff(self._stream.starts, append=self.tokens) - 1, 0)
        if not places.any():
            raise ConfigError(
                f"config.data.rows='packed': no document of the {split} split of source {name!r} "
                "has two tokens.\n  Try --config.data.validation_fraction=0.1, or more text."
            )
        self.bytes_per_token = self.bytes / self.tokens
        full, rest = np.divmod(places, self._reach)
        self._packer = Packer(full * length + rest + lead * (rest > 0), length, seed, name, split)
        self.train_rows = self.epoch_rows = self._packer.rows
        self.efficiency = float(places.sum() / (self.train_rows * length))
        self.steps_per_epoch = -(-self.train_rows // batch)

    def take(self, n):
        """Returns rows `n` of the training order as a batch."""
        return self._fill(self.pieces(n), len(n))

    def in_order(self, k):
        """Returns rows `k` of the plan, each document once."""
        return self._fill(self._pieces(self._packer.find(np.asarray(k))), len(k))

    def pieces(self, n):
        """Returns the Pieces of rows `n` of the training order."""
        return self._pieces(self._packer.in_training(n))

    def where(self, n):
        """Returns (source, epoch, pieces) of each row `n` of the training order."""
        epochs = (n // self.train_rows).tolist()
        listed = self._listed(self.pieces(n), len(n))
        return [(self.name, epoch, found) for epoch, found in zip(epochs, listed, strict=True)]

    def where_in_order(self, k):
        """Returns the pieces of each row `k` of `in_order`."""
        return self._listed(self._pieces(self._packer.find(k)), len(k))

    def _listed(self, pieces, rows):
        found = [[] for _ in range(rows)]
        for row, document, offset, start, length in zip(*(x.tolist() for x in pieces), strict=True):
            column = sum(self.lead + piece.tokens for piece in found[row]) + self.lead
            found[row].append(Piece(column, document, offset, length, start))
        return found

    def ids(self, start, count):
        """Returns `count` token ids of the stream from `start` on."""
        return self._stream.read(np.array([start]), count)[0]

    def row_scores(self, scores):
        """Returns the mean over the tokens of each row `k` of `in_order` of documents' scores."""
        means = []
        for first in range(0, self.epoch_rows, 1 << 14):
            k = np.arange(first, min(first + (1 << 14), self.epoch_rows))
            p = self._pieces(self._packer.find(k))
            total = np.bincount(p.row, scores[p.document] * p.length, len(k))
            means.append(total / np.bincount(p.row, p.length, len(k)))
        return np.concatenate(means)

    def _pieces(self, found):
        """Returns the Pieces of what the packer found."""
        row, document, lap, length = found
        size, length = self._places(document), length - self.lead
        offset = np.where(lap < 0, size - size % self._reach, lap * self._reach)
        return Pieces(row, document, offset, self._stream.starts[document] + offset, length)

    def _places(self, document):
        """Returns how many tokens with a target each document has."""
        starts = self._stream.starts
        after = np.minimum(document + 1, len(starts) - 1)
        end = np.where(document + 1 < len(starts), starts[after], self.tokens)
        return end - starts[document] - 1

    def _fill(self, pieces, rows):
        """Returns the batch of `rows` rows that pieces make up."""
        shape = (rows, self.length)
        tokens_BT, targets_BT = np.empty(shape, np.int32), np.empty(shape, np.int32)
        taken = pieces.length + self.lead
        used = np.bincount(pieces.row, taken, rows).astype(np.int64)
        before = np.cumsum(taken) - taken
        place = pieces.row * self.length + before - (np.cumsum(used) - used)[pieces.row]
        flat = tokens_BT.ravel(), targets_BT.ravel()
        self._stream.read_pieces(pieces.start, pieces.length, place + self.lead, *flat)
        # What is left of a row is one more run.
        count = np.bincount(pieces.row, minlength=rows)
        end = np.cumsum(count)
        number = np.arange(1, len(place) + 1) - (end - count)[pieces.row]
        begin = np.insert(place, end, np.arange(rows) * self.length + used)
        position_BT, segment_BT = runs(begin, np.insert(number, end, 0), shape)
        weight_BT = np.ones(shape, np.float32)
        if self.lead:
            places = (place[:, None] + np.arange(self.lead)).ravel()
            for x_BT in (tokens_BT, targets_BT, weight_BT):
                x_BT.ravel()[places] = 0
        for row in np.flatnonzero(used < self.length).tolist():
            for x_BT in (tokens_BT, targets_BT, position_BT, weight_BT):
                x_BT[row, used[row] :] = 0
        return {
            "tokens": tokens_BT,
            "targets": targets_BT,
            "weight": weight_BT,
            "position": position_BT,
            "segment": segment_BT,
        }
