"""Rows for a model with a head: one example a row, or the texts of one side by side."""

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.data.examples.rows import ExampleRows, cut, empty
from jaxllm.data.examples.store import marks
from jaxllm.data.rows import Rows


class Labelled(ExampleRows):
    """One example a row: [CLS] text [SEP], or [CLS] text [SEP] second [SEP].

    Without such tokens the tokenizer's beginning and end stand for them, or nothing does. Of a
    question and its context the question is cut to half a row at most, and a context that does not
    fit is read in several rows, each `overlap` tokens into the one before.
    """

    @staticmethod
    def shapes(task, length, options):
        """Returns {name: (shape of one row, dtype)} of a batch."""
        del options
        names = ("tokens", "position", "segment", "type", *(["targets"] if task == "tag" else []))
        found = dict.fromkeys(names, ((length,), np.int32))
        found["weight"] = ((length,) if task == "tag" else (), np.float32)
        if task == "span":
            found["span"] = ((2,), np.int32)
        if task in ("classify", "regress"):
            found["label"] = ((), np.int32 if task == "classify" else np.float32)
        return found

    def sizes(self):
        """Returns (places of each example, places of a row)."""
        stored, rows = self.stored, np.ones(self.examples, np.int64)
        parts = np.diff(stored.first)
        total = self.sums(False) + self.sums(True)
        room = self.around(parts)
        if room.min() < parts.max():
            raise ConfigError(
                f"config.data.length={self.length} has no room for a text and its marks.\n"
                "  Try --config.data.length=128."
            )
        if self.task == "span":
            self._step = self._steps(room)
            context = stored.lengths[stored.first[1:] - 1]
            question = np.minimum(stored.lengths[stored.first[:-1]], room // 2)
            over = np.maximum(context - (room - question), 0)
            rows += -(-over // self._step)
            total = np.minimum(total, room)  # of contexts nothing is lost
        self.cut = int((total > room).sum())
        self.filled, self.room = int(np.minimum(total, room).sum()), self.length
        return rows * self.length, self.length

    def around(self, parts):
        """Returns how many tokens of `parts` texts fit a row, beside its lead and marks."""
        return room_of(self.marks, self.length - self.lead, parts)

    def _steps(self, room):
        """Returns how many tokens further the next row of each context begins."""
        question = np.minimum(self.stored.lengths[self.stored.first[:-1]], room // 2)
        overlap = self.manifest["settings"]["overlap"]
        step = room - question - overlap
        if step.min() < 1:
            raise ConfigError(
                f"config.data.sources.{self.name}.overlap={overlap} leaves no room in rows of "
                f"{self.length} tokens for more of a context.\n"
                f"  Try --config.data.sources.{self.name}.overlap={self.length // 4}, or a larger "
                "--config.data.length."
            )
        return step

    def offset(self, example, lap):
        """Returns the token of an example that its row `lap` begins with."""
        if self.task != "span" or not lap:
            return 0
        question = self.stored.lengths[self.stored.first[example]]
        return int(question + lap * self._step[example])

    def layout(self, example, lap):
        """Returns [(part, first token, tokens)] of the row `lap` of an example."""
        parts, lengths = self.stored.parts(example), self.stored.lengths
        sizes = [int(lengths[part]) for part in parts]
        room = self.around(len(parts))
        if self.task != "span":
            return [(p, 0, n) for p, n in zip(parts, cut(sizes, room), strict=True)]
        question = min(sizes[0], room // 2)
        first = int(lap * self._step[example])
        return [(parts[0], 0, question), (parts[1], first, min(sizes[1] - first, room - question))]

    def fill(self, found, rows):
        """Returns the batch of `rows` rows, each of one example."""
        out = self.empty(rows)
        for row, example, lap, _ in zip(*(x.tolist() for x in found), strict=True):
            placed, ids, kinds = self.compose(self.layout(example, lap))
            put(out, row, ids, kinds)
            if self.task == "tag":
                self._tag(out, row, placed)
                continue
            out["weight"][row] = 1
            if self.task == "span":
                out["span"][row] = self._answer(example, *placed[-1])
            elif self.stored.label is not None:
                out["label"][row] = self.stored.label[example]
        return out

    def compose(self, layout):
        """Returns ([(column, part, first token, tokens)], ids, token types) of a row."""
        texts = [self.stored.ids(*place).tolist() for place in layout]
        columns, ids, kinds = marked(self.marks, texts, self.lead)
        placed = [(column, *place) for column, place in zip(columns, layout, strict=True)]
        return placed, ids, kinds

    def _tag(self, out, row, placed):
        for column, part, first, count in placed:
            begin = int(self.stored.starts[part]) + first
            tags = np.array(self.stored.label[begin : begin + count])
            out["targets"][row, column : column + count] = np.maximum(tags, 0)
            out["weight"][row, column : column + count] = tags >= 0

    def _answer(self, example, column, part, first, count):
        """Returns the first and last token of an answer in its row, the first mark's if not whole.

        That of the first mark is position 0, as in BERT, or the one behind the lead.
        """
        begin = int(self.stored.starts[part]) + first
        answer = np.array(self.stored.label[example]) - begin
        if answer[0] < 0 or answer[1] >= count:
            return self.lead, self.lead
        return answer + column

    def context(self, place):
        """Returns ((first column, last + 1) of the context, example) of a row of `in_order`."""
        _, example, lap, _ = (int(x[0]) for x in self._packer.find(np.array([place])))
        column, _, _, count = self.compose(self.layout(example, lap))[0][-1]
        return (column, column + count), example

    def stretch(self, place, first, last):
        """Returns (example, its ids from token `first` to `last` of row `place` of `in_order`).

        Only tokens of the context are given: none, where another is among them.
        """
        _, example, lap, _ = (int(x[0]) for x in self._packer.find(np.array([place])))
        placed, ids, _ = self.compose(self.layout(example, lap))
        column, _, _, count = placed[-1]
        inside = column <= first <= last < column + count
        return example, np.array(ids[first : last + 1] if inside else [], np.int32)


def marked(marks, texts, lead=0):
    """Returns (column of each text, ids, token types) of a row of texts, as lists of ids.

    Args:
        marks: of the tokenizer, see `store.marks`.
        texts: a list of ids each.
        lead: places before them.
    """
    sep = [marks["sep"]] if marks["sep"] >= 0 else []
    ids = [0] * lead + ([marks["cls"]] if marks["cls"] >= 0 else [])
    kinds, columns = [0] * len(ids), []
    for index, text in enumerate(texts):
        columns.append(len(ids))
        ids += [*text, *sep]
        kinds += [min(index, 1)] * (len(ids) - len(kinds))
    return columns, ids, kinds


def room_of(marks, length, texts):
    """Returns how many tokens of so many texts fit `length` places, beside their marks."""
    return length - (marks["cls"] >= 0) - texts * (marks["sep"] >= 0)


def put(out, row, ids, kinds):
    """Writes what `marked` returned into a row of a batch."""
    n = len(ids)
    out["tokens"][row, :n], out["type"][row, :n] = ids, kinds
    out["position"][row, :n], out["segment"][row, :n] = np.arange(n), 1


class Unlabelled(Rows):
    """Rows of texts whose class nobody knows, as `Labelled` has them; the label is 0.

    Args:
        texts: [tuple of one text or two].
        tokenizer: what encodes them.
        length: tokens in a row; what is longer is cut.
        lead: places of them that stand for no token, as of `data.open_split`.
    """

    def __init__(self, texts, tokenizer, length, lead=0):
        self._texts, self._tokenizer, self.length, self._lead = texts, tokenizer, length, lead
        self._marks, self.epoch_rows = marks(tokenizer), len(texts)

    def in_order(self, k):
        """Returns rows `k` in the order of the texts."""
        shapes = Labelled.shapes("classify", self.length, None)
        out = empty(shapes, len(k))
        out["weight"][:] = 1
        for row, number in enumerate(np.asarray(k).tolist()):
            texts = [self._tokenizer.encode(text) for text in self._texts[number]]
            room = room_of(self._marks, self.length - self._lead, len(texts))
            kept = cut([len(text) for text in texts], room)
            texts = [list(text[:n]) for text, n in zip(texts, kept, strict=True)]
            _, ids, kinds = marked(self._marks, texts, self._lead)
            put(out, row, ids, kinds)
        return out


class Together(ExampleRows):
    """The texts of an example on axis 1 of a row, each with its marks, cut to the length."""

    @staticmethod
    def shapes(task, length, options):
        """Returns {name: (shape of one row, dtype)} of a batch."""
        del task, options
        found = dict.fromkeys(("tokens", "position", "segment"), ((2, length), np.int32))
        return found | {"weight": ((), np.float32)}

    def sizes(self):
        """Returns (places of each example, places of a row)."""
        parts = np.diff(self.stored.first)
        if (parts != 2).any():
            raise ConfigError(
                f"config.data.rows='together' wants two texts an example; source {self.name!r} has "
                f"some of {int(parts[parts != 2][0])}.\n  Try --config.data.rows=examples, or "
                "leave out its suffix."
            )
        self.need_room(self.length)
        around = (self.marks["cls"] >= 0) + (self.marks["sep"] >= 0) + self.lead
        lengths = self.stored.lengths + around
        self.cut = int((lengths.reshape(-1, 2) > self.length).any(axis=1).sum())
        self.filled, self.room = int(np.minimum(lengths, self.length).sum()), 2 * self.length
        return np.full(self.examples, self.length), self.length

    def fill(self, found, rows):
        """Returns the batch of `rows` rows, each of one example."""
        out = empty(self.shapes(self.task, self.length, self.options), rows)
        first = [0] * self.lead + ([self.marks["cls"]] if self.marks["cls"] >= 0 else [])
        last = [self.marks["sep"]] if self.marks["sep"] >= 0 else []
        for row, example in zip(found[0].tolist(), found[1].tolist(), strict=True):
            out["weight"][row] = 1
            for side, part in enumerate(self.stored.parts(example)):
                ids, _ = self.joined([part], self.length - len(first) - len(last))
                n = len(first) + len(ids) + len(last)
                out["tokens"][row, side, :n] = [*first, *ids, *last]
                out["position"][row, side, :n] = np.arange(n)
                out["segment"][row, side, :n] = 1
        return out
