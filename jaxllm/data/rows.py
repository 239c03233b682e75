"""What all sources of rows share: the batch of a step, a split from end to end."""

import numpy as np


class Rows:
    """Rows by random access.

    A subclass has `batch`, `length`, `epoch_rows`, `take` and `in_order`, and of one source also
    `name` and `train_rows`.
    """

    held = ()

    def __call__(self, step, rows=None):
        """Returns rows of the global batch of a step.

        Args:
            step: the step, from 0.
            rows: a slice or integer array into range(batch), or None for all.

        Returns:
            Numpy arrays [B, T]: `tokens`, `targets`, `position` and `segment` (int32; segments
            count from 1 in each row, 0 is padding) and `weight` (float32; 0 on a target that begins
            another document, and on padding). A pure function of (seed, step, row).
        """
        return self.take(np.int64(step) * self.batch + pick(rows, self.batch))

    def epoch(self, batch, rows=None):
        """Yields a split once, in order; every token but each document's first is a target once.

        Args:
            batch: rows in a global batch; the last one is filled with rows of padding.
            rows: a slice or integer array into range(batch), or None for all.
        """
        for first in range(0, self.epoch_rows, batch):
            k = first + pick(rows, batch)
            here = k < self.epoch_rows
            out = self.in_order(np.where(here, k, 0))
            if not here.all():
                for value in out.values():
                    value[~here] = 0
            yield out

    def empty(self, rows):
        """Returns a batch of padding."""
        return empty_batch(rows, self.length)

    @property
    def sources(self):
        """{name: source} of the sources that the rows are of."""
        return {self.name: self}

    def read(self, rows):
        """Returns {name: how many of the first `rows` rows are of that source}."""
        return {self.name: rows}

    def epochs(self, steps):
        """Returns {name: how often `steps` steps walk that source}."""
        read = self.read(steps * self.batch)
        return {name: n / self.sources[name].train_rows for name, n in read.items()}

    def epoch_steps(self, batch):
        """Number of batches of `batch` rows that `epoch` yields."""
        return -(-self.epoch_rows // batch)


class Over(Rows):
    """Rows over those of another source; what a subclass does not change is that source's."""

    def __init__(self, source):
        self._source = source

    def __getattr__(self, name):
        return getattr(self._source, name)

    @property
    def sources(self):
        """{name: source} of the sources that the rows are of."""
        return self._source.sources

    @property
    def held(self):
        """Names of sources held to their limits."""
        return self._source.held

    def read(self, rows):
        """Returns {name: how many of the first `rows` rows are of that source}."""
        return self._source.read(rows)

    def empty(self, rows):
        """Returns a batch of padding."""
        return self._source.empty(rows)

    def in_order(self, k):
        """Returns rows `k` of the split from its start."""
        return self._source.in_order(k)


def empty_batch(rows, length):
    """Returns a batch of padding: weight and segment 0."""
    shape = (rows, length)
    batch = {k: np.zeros(shape, np.int32) for k in ("tokens", "targets", "position", "segment")}
    return {**batch, "weight": np.zeros(shape, np.float32)}


def pick(rows, batch):
    """Returns the row numbers that a slice, array or None (all) picks from a batch."""
    everything = np.arange(batch, dtype=np.int64)
    return everything if rows is None else everything[rows]


def runs(begin, number, shape):
    """Returns positions and segments of rows that are cut into runs.

    Args:
        begin: int[runs], where each run begins in the flattened rows, ascending from 0.
        number: int[runs], its segment.
        shape: (rows, length).

    Returns:
        (position, segment), int32[shape]; positions count from 0 in each run.
    """
    size = shape[0] * shape[1]
    length = np.diff(begin, append=size)
    position = np.arange(size, dtype=np.int32)
    position -= np.repeat(begin.astype(np.int32), length)
    return position.reshape(shape), np.repeat(number.astype(np.int32), length).reshape(shape)


def spread(first, count):
    """Returns (entry, number) for the numbers first, … first + count - 1 of each entry."""
    entry = np.repeat(np.arange(len(count)), count)
    return entry, np.arange(len(entry)) - (np.cumsum(count) - count - first)[entry]
