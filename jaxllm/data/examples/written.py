"""Rows of what is to be written for what is read: for an encoder and a decoder, or a decoder."""

import numpy as np

from jaxllm.data.examples.rows import ChatOptions, ExampleRows, empty


class Pairs(ExampleRows):
    """Inputs for an encoder, targets for its decoder; parts without a loss are the input.

    An end token stands behind every input and target, as in T5 (Raffel et al. 2020), also where it
    was cut. Packed, several examples share a row; inputs and targets of segment i belong together.
    An example takes the larger of its shares of both sides, so that what fits on one fits on both.
    """

    @staticmethod
    def shapes(task, length, options):
        """Returns {name: (shape of one row, dtype)} of a batch."""
        del task
        S, T, whole = options.input_length or length, length, np.int32
        names = {"inputs": S, "inputs_segment": S, "inputs_position": S}
        names |= {"tokens": T, "targets": T, "position": T, "segment": T}
        found = {name: ((size,), whole) for name, size in names.items()}
        return found | {"weight": ((T,), np.float32)}

    def sizes(self):
        """Returns (places of each example, places of a row)."""
        S, T = self.options.input_length or self.length, self.length
        self.need_room(S)
        end, begin = self.marks["eos"] >= 0, self.options.begin + self.lead
        read, written = self.sums(False) + end + begin, self.sums(True) + end
        self.cut = int(((read > S) | (written > T)).sum())
        read, written = np.minimum(read, S), np.minimum(written, T)
        most = max(S, T)
        shares = np.maximum(-(-read * most // S), -(-written * most // T))
        sizes = np.maximum(shares, 1) if self.options.pack else np.full(self.examples, most)
        self.filled, self.room = int(read.sum() + written.sum()), S + T
        return sizes, most

    def fill(self, found, rows):
        """Returns the batch of `rows` rows that examples make up."""
        out = empty(self.shapes(self.task, self.length, self.options), rows)
        read, written = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        number, start = np.zeros(rows, np.int64), self.options.start
        if start < 0:
            start = max(self.marks["pad"], 0)
        for row, example in zip(found[0].tolist(), found[1].tolist(), strict=True):
            inputs, targets = self.sides(example)
            inputs = np.append(np.zeros(self.lead, np.int32), inputs)
            number[row] += 1
            at = slice(read[row], read[row] + len(inputs))
            out["inputs"][row, at], out["inputs_segment"][row, at] = inputs, number[row]
            out["inputs_position"][row, at] = np.arange(len(inputs))
            read[row] = at.stop
            at = slice(written[row], written[row] + len(targets))
            out["targets"][row, at], out["weight"][row, at] = targets, 1
            out["tokens"][row, at] = np.append(start, targets[:-1])
            out["position"][row, at], out["segment"][row, at] = np.arange(len(targets)), number[row]
            written[row] = at.stop
        return out

    def sides(self, example):
        """Returns (inputs, targets), the ids of an example with what stands around them."""
        S, T = (self.options.input_length or self.length) - self.lead, self.length
        begin = [self.marks["bos"]] if self.options.begin else []
        end = [self.marks["eos"]] if self.marks["eos"] >= 0 else []
        parts, loss = self.stored.parts(example), self.stored.loss
        inputs, _ = self.joined([p for p in parts if not loss[p]], S - len(begin) - len(end))
        targets, _ = self.joined([p for p in parts if loss[p]], T - len(end))
        sides = [*begin, *inputs, *end], [*targets, *end]
        return tuple(np.array(side, np.int32) for side in sides)


class Completion(ExampleRows):
    """All parts of an example behind one another for a decoder; `weight` is 0 where no loss counts.

    An end token follows, also where an example was cut, and counts as the last part does.
    """

    @staticmethod
    def shapes(task, length, options):
        """Returns {name: (shape of one row, dtype)} of a batch."""
        del task, options
        names = ("tokens", "targets", "position", "segment")
        return dict.fromkeys(names, ((length,), np.int32)) | {"weight": ((length,), np.float32)}

    def sizes(self):
        """Returns (places of each example, places of a row)."""
        self.need_room(self.length)
        around = self.options.begin + (self.marks["eos"] >= 0)
        places = np.maximum(self.sums(False) + self.sums(True) + around - 1, 0)
        self.cut = int((places > self.length - self.lead).sum())
        return self.packed(np.minimum(places, self.length - self.lead)), self.length

    def packed(self, places):
        """Returns the places of each example of so many tokens with a target, 0 for those of none.

        Sets `filled` and `room`.
        """
        self.filled, self.room = int(places.sum()), self.length
        return np.where(places > 0, places + self.lead if self.options.pack else self.length, 0)

    def fill(self, found, rows):
        """Returns the batch of `rows` rows that examples make up."""
        out = empty(self.shapes(self.task, self.length, self.options), rows)
        used, number = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        for row, example in zip(found[0].tolist(), found[1].tolist(), strict=True):
            ids, counts = self.one(example)
            number[row] += 1
            first, end = used[row], used[row] + self.lead + len(ids) - 1
            at = slice(first + self.lead, end)
            out["tokens"][row, at], out["targets"][row, at] = ids[:-1], ids[1:]
            out["weight"][row, at] = counts[1:]
            out["position"][row, first:end] = np.arange(end - first)
            out["segment"][row, first:end] = number[row]
            used[row] = end
        return out

    def one(self, example):
        """Returns (ids, whether each counts) of an example with what stands around it."""
        begin = [self.marks["bos"]] if self.options.begin else []
        end = [self.marks["eos"]] if self.marks["eos"] >= 0 else []
        parts = self.stored.parts(example)
        room = self.length - self.lead + 1 - len(begin) - len(end)
        ids, counts = self.joined(parts, room)
        last = bool(self.stored.loss[parts[-1]])
        ids = np.array([*begin, *ids, *end], np.int32)
        return ids, np.array([*[False] * len(begin), *counts, *[last] * len(end)], bool)


class Chats(Completion):
    """Chats as their template writes them, for a decoder; `weight` is 1 on what is learned.

    A chat with nothing to learn in its row is left out.
    """

    OPTIONS = ChatOptions

    def _check_marks(self):
        """Nothing stands around a chat but what its template writes."""

    def sizes(self):
        """Returns (places of each example, places of a row)."""
        self.need_room(self.length)
        stored, room = self.stored, self.length - self.lead + 1
        first, last = stored.first[:-1], stored.first[1:]
        starts = np.append(stored.starts, self.tokens)
        total = starts[last] - starts[first]
        self._kept = np.minimum(total, room)
        self._learned = self._choose()
        part = np.arange(len(stored.lengths))
        example = np.searchsorted(stored.first, part, "right") - 1
        begin = stored.starts - starts[first][example]
        end = np.minimum(begin + stored.lengths, self._kept[example])
        asked = np.maximum(end - np.maximum(begin, 1), 0) * self._learned  # no target is the first
        asked = np.bincount(example, asked, self.examples)
        over = total > room
        dropped = over & (self.options.too_long != "cut")
        empty = (asked == 0) & ~dropped
        self.cut = int((over & ~dropped & ~empty).sum())
        told = {"longer than a row": dropped, f"no token to learn ({self._words()})": empty}
        self.left_out = {why: int(these.sum()) for why, these in told.items() if these.any()}
        return self.packed(np.where(dropped | empty, 0, self._kept - 1)), self.length

    def _words(self):
        return f"data.loss_on={self.options.loss_on}"

    def _choose(self):
        """Returns whether each part is learned."""
        stored, loss_on = self.stored, self.options.loss_on
        if loss_on == "all":
            return np.ones(len(stored.loss), bool)
        if loss_on == "answers":
            return stored.loss
        part = np.flatnonzero(stored.loss)
        example = np.searchsorted(stored.first, part, "right")
        last = np.zeros(len(stored.loss), bool)
        last[part[np.diff(example, append=-1) != 0]] = True
        return last

    def one(self, example):
        """Returns (ids, whether each counts) of an example, as much of it as fits."""
        parts, kept = self.stored.parts(example), int(self._kept[example])
        ids = self.ids(self.stored.starts[parts[0]], kept)
        learned, lengths = self._learned[list(parts)], self.stored.lengths[list(parts)]
        return ids, np.repeat(learned, lengths)[:kept]
