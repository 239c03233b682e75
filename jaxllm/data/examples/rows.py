"""What all rows of examples share: which examples are in a row, their ids, what is cut off.

Row n of training is a pure function of (seed, n), as with documents: `packing.Packer` finds the
examples of a row without walking to it. An example never goes over two rows, but for a context that
is read in several (`labelled`). One that is longer than a row is cut: its longest part loses tokens
from its end until the next longest is as long, and so on. How many are, `cut` says.
"""

from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.data.examples.store import Stored
from jaxllm.data.origin import Piece
from jaxllm.data.packing import Packer
from jaxllm.data.rows import Rows


class Options(NamedTuple):
    """Settings of `config.data` that rows of examples depend on, besides batch and length.

    Attributes:
        input_length: tokens of the inputs of an encoder, S; 0: as many as `length`.
        pack: several examples a row, blind to one another; else one.
        begin: put the beginning token before every input.
        start: the token that a decoder begins with; -1: the padding token, or 0 without one.
    """

    input_length: int = 0
    pack: bool = True
    begin: bool = False
    start: int = -1


class ChatOptions(NamedTuple):
    """The same of rows of chats.

    Attributes:
        pack: as of `Options`.
        loss_on: what is learned: the "answers" of the assistant, the "last" of them, or "all".
        too_long: what becomes of a chat longer than a row: it loses its oldest "turns", is "cut" at
            its end, or is left out ("drop").
    """

    pack: bool = True
    loss_on: str = "answers"
    too_long: str = "turns"


class ExampleRows(Rows):
    """Rows of one shard set's examples, with the interface of `windows.Source`.

    A subclass has `sizes()`, the places of each example and those of a row, which also sets `cut`,
    `filled` and `room`; `fill(found, rows)`, the batch; and `shapes(task, length, options)`.

    Args:
        directory, manifest, split, batch, length, seed, name: as of `windows.Source`.
        options: `Options`.
        lead: places of token 0 that each example begins with (of pairs its input; of texts
            together each); not learned.

    Attributes:
        tokens, bytes, bytes_per_token, manifest, name, steps_per_epoch: as of `windows.Source`.
        train_rows, epoch_rows: rows in an epoch.
        examples: in the split.
        cut: how many of them are longer than a row allows.
        left_out: {why: how many of them are in no row}.
        filled, room: tokens of all examples in rows; places for tokens in one row.
        efficiency: share of all places that hold a token.
    """

    OPTIONS = Options

    def __init__(
        self, directory, manifest, split, *, batch, length, seed, name, options, lead=0
    ):  # fmt: skip
        self.manifest, self.batch, self.length, self.name = manifest, batch, length, name
        self.lead, self.left_out = lead, {}
        self.options, self.task = options, manifest["task"]
        self.marks = dict(manifest["marks"])
        self.stored = Stored(directory, manifest, split)
        self.examples, self.tokens = self.stored.examples, self.stored.tokens
        self.bytes = manifest["splits"][split]["bytes"]
        if not self.examples:
            raise ConfigError(
                f"config.data: the {split} split of source {name!r} has no examples.\n"
                f"  Try --config.data.validation_fraction={0.1 if split != 'train' else 0.01}, or "
                "more of them."
            )
        self.bytes_per_token = self.bytes / max(self.tokens, 1)
        self._check_marks()
        self.cut = 0
        sizes, places = self.sizes()
        if not sizes.any():
            raise ConfigError(
                f"config.data: no example of the {split} split of source {name!r} has a place in a "
                f"row: {', '.join(f'{n:,} {why}' for why, n in self.left_out.items())}.\n"
                f"  Try --config.data.length={2 * length}."
            )
        self._packer = Packer(sizes, places, seed, name, split)
        self.train_rows = self.epoch_rows = self._packer.rows
        self.steps_per_epoch = -(-self.train_rows // batch)
        self.efficiency = self.filled / (self.train_rows * self.room)

    def _check_marks(self):
        if self.options.begin and self.marks["bos"] < 0:
            raise ConfigError(
                "config.data.begin=True, but the tokenizer has no beginning token.\n"
                "  Try --config.data.begin=False."
            )

    def need_room(self, length):
        """Raises ConfigError unless a row of so many places holds a token behind its lead."""
        if length - self.lead < 2 and self.lead:
            raise ConfigError(
                f"config.data.length: {length} places have no room for text behind the {self.lead} "
                f"that each example begins with.\n  Try --config.data.length={4 * self.lead + 64}."
            )

    def empty(self, rows):
        """Returns a batch of padding."""
        return empty(self.shapes(self.task, self.length, self.options), rows)

    def take(self, n):
        """Returns rows `n` of the training order as a batch."""
        return self.fill(self._packer.in_training(n), len(n))

    def in_order(self, k):
        """Returns rows `k` of the plan, each example once."""
        return self.fill(self._packer.find(np.asarray(k)), len(k))

    def where(self, n):
        """Returns (source, epoch, pieces) of each row `n` of the training order."""
        epochs = (n // self.train_rows).tolist()
        listed = self._listed(self._packer.in_training(n), len(n))
        return [(self.name, epoch, found) for epoch, found in zip(epochs, listed, strict=True)]

    def where_in_order(self, k):
        """Returns the pieces of each row `k` of `in_order`."""
        return self._listed(self._packer.find(np.asarray(k)), len(k))

    def _listed(self, found, rows):
        """Returns a list of Pieces for each row: examples as they are stored, whole.

        Segment i + 1 of a row is its piece i.
        """
        used = np.zeros(rows, np.int64)
        listed, ends = [[] for _ in range(rows)], np.append(self.stored.stream.starts, self.tokens)
        for row, document, lap, size in zip(*(x.tolist() for x in found), strict=True):
            start, offset = int(ends[document]), self.offset(document, max(lap, 0))
            count = int(ends[document + 1]) - start - offset
            piece = Piece(int(used[row]), document, offset, count, start + offset)
            listed[row].append(piece)
            used[row] += size
        return listed

    def offset(self, example, lap):
        """Returns the token of an example that its row `lap` begins with."""
        del example, lap
        return 0

    def ids(self, start, count):
        """Returns `count` token ids of the stream from `start` on."""
        return self.stored.stream.read(np.array([start]), count)[0]

    def row_scores(self, scores):
        """Returns the mean of the scores of the examples of each row `k` of `in_order`."""
        row, document, _, size = self._packer.find(np.arange(self.epoch_rows))
        total = np.bincount(row, scores[document] * size, self.epoch_rows)
        return total / np.bincount(row, size, self.epoch_rows)

    def sums(self, loss):
        """Returns the tokens of each example's parts that count in the loss, or do not."""
        stored = self.stored
        example = np.repeat(np.arange(self.examples), np.diff(stored.first))
        chosen = stored.loss == loss
        return np.bincount(example[chosen], stored.lengths[chosen], self.examples).astype(np.int64)

    def joined(self, parts, room):
        """Returns (ids, whether each counts in the loss) of parts, cut to `room` tokens."""
        stored = self.stored
        kept = cut([int(stored.lengths[part]) for part in parts], room)
        ids = [stored.ids(part, count=n) for part, n in zip(parts, kept, strict=True)]
        if not ids:
            return np.zeros(0, np.int32), np.zeros(0, bool)
        return np.concatenate(ids), np.repeat(stored.loss[list(parts)], kept)


def cut(lengths, room):
    """Returns how much of each length is kept so that they sum to at most `room`.

    The longest are cut first, and alike: by one more at most, which the first keep.
    """
    if sum(lengths) <= room:
        return list(lengths)
    left, cap, more = room, 0, 0
    for i, length in enumerate(sorted(lengths)):
        cap, more = divmod(left, len(lengths) - i)
        if length > cap:
            break
        left -= length
    kept = []
    for length in lengths:
        extra = int(length > cap and more > 0)
        more -= extra
        kept.append(min(length, cap) + extra)
    return kept


def empty(shapes, rows):
    """Returns arrays of zeros of {name: (shape after the rows, dtype)}."""
    return {name: np.zeros((rows, *shape), dtype) for name, (shape, dtype) in shapes.items()}
