"""Rows of what is to be written for what is read: for an encoder and a decoder, or a decoder."""

import numpy as np

from jaxllm.data.examples.rows import ExampleRows, empty


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
        end, begin = self.marks["eos"] >= 0, self.options.begin
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
        S, T = self.options.input_length or self.length, self.length
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
        around = self.options.begin + (self.marks["eos"] >= 0)
        places = np.maximum(self.sums(False) + self.sums(True) + around - 1, 0)
        self.cut = int((places > self.length).sum())
        places = np.minimum(places, self.length)
        sizes = places if self.options.pack else np.full(self.examples, self.length)
        self.filled, self.room = int(places.sum()), self.length
        return sizes, self.length

    def fill(self, found, rows):
        """Returns the batch of `rows` rows that examples make up."""
        out = empty(self.shapes(self.task, self.length, self.options), rows)
        used, number = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
        for row, example in zip(found[0].tolist(), found[1].tolist(), strict=True):
            ids, counts = self.one(example)
            at = slice(used[row], used[row] + len(ids) - 1)
            number[row] += 1
            out["tokens"][row, at], out["targets"][row, at] = ids[:-1], ids[1:]
            out["weight"][row, at] = counts[1:]
            out["position"][row, at], out["segment"][row, at] = np.arange(len(ids) - 1), number[row]
            used[row] = at.stop
        return out

    def one(self, example):
        """Returns (ids, whether each counts) of an example with what stands around it."""
        begin = [self.marks["bos"]] if self.options.begin else []
        end = [self.marks["eos"]] if self.marks["eos"] >= 0 else []
        parts = self.stored.parts(example)
        ids, counts = self.joined(parts, self.length + 1 - len(begin) - len(end))
        last = bool(self.stored.loss[parts[-1]])
        ids = np.array([*begin, *ids, *end], np.int32)
        return ids, np.array([*[False] * len(begin), *counts, *[last] * len(end)], bool)
