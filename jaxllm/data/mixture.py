"""Several sources by weight, with exact counts and random access.

Rows come in blocks of 1,000. Each block holds an exact quota of every source, in a keyed
order; the rows of a source, taken over all blocks, walk it epoch by epoch without repeats.
Quotas may change from stage to stage of the run.
"""

import numpy as np

from jaxllm.data import permute
from jaxllm.data.rows import Rows
from jaxllm.data.weights import BLOCK_ROWS


class Mixture(Rows):
    """Rows of several sources, with the interface of one `Source`.

    Args:
        sources: {name: Source}, alike in batch and length.
        stages: [(first block, {name: rows of each block})], as `weights.stages` gives.
        seed: of the order.
        held: names of sources that gave rows to the others because of their `max_epochs`.

    Attributes:
        tokens, bytes, bytes_per_token, epoch_rows: over all sources that have a weight.
        sources: {name: Source} of those, to evaluate one by one.
        stages: of those.
        efficiency: share of all places that hold a token, in the first stage.
        manifest: {"sources": {name: manifest}, "stages": stages}.
    """

    def __init__(self, sources, stages, seed, held=()):
        self.held, self._seed = tuple(held), seed
        names = [name for name in sources if any(rows[name] for _, rows in stages)]
        self._sources = {name: sources[name] for name in names}
        self.stages = [(first, {name: rows[name] for name in names}) for first, rows in stages]
        members = list(self._sources.values())
        self.batch, self.length = members[0].batch, members[0].length
        self.tokens = sum(s.tokens for s in members)
        self.bytes = sum(s.bytes for s in members)
        self.bytes_per_token = self.bytes / self.tokens
        self._members = members
        self._first = np.array([first for first, _ in self.stages])
        self._quota = np.array([list(rows.values()) for _, rows in self.stages])
        self._quota_end = np.cumsum(self._quota, axis=1)
        walked = np.diff(self._first)[:, None] * self._quota[:-1]
        self._before = np.concatenate([np.zeros_like(self._quota[:1]), np.cumsum(walked, axis=0)])
        self._key = permute.make_key("mixture", seed, *names)
        full = [s.efficiency * q for s, q in zip(members, self._quota[0], strict=True)]
        self.efficiency = sum(full) / BLOCK_ROWS
        self.epoch_rows = sum(s.epoch_rows for s in members)
        self._epoch_end = np.cumsum([s.epoch_rows for s in members])
        self.manifest = {
            "sources": {name: s.manifest for name, s in self.sources.items()},
            "stages": self.stages,
        }

    def over(self, sources):
        """Returns the same mixture of other sources of these names."""
        return Mixture(
            {name: sources[name] for name in self.sources}, self.stages, self._seed, self.held
        )

    def empty(self, rows):
        """Returns a batch of padding."""
        return self._members[0].empty(rows)

    @property
    def sources(self):
        """{name: source} of the sources that the rows are of."""
        return self._sources

    def assign(self, n):
        """Returns (index of the source, row of that source) for each row `n` of the mixture."""
        block, i = n // BLOCK_ROWS, n % BLOCK_ROWS
        stage = np.searchsorted(self._first, block, "right") - 1
        place = permute.permute(permute.subkeys(self._key, block), i, BLOCK_ROWS)
        member = np.sum(place[:, None] >= self._quota_end[stage], axis=1)
        quota, end = self._quota[stage, member], self._quota_end[stage, member]
        before = self._before[stage, member] + (block - self._first[stage]) * quota
        return member, before + place - (end - quota)

    def read(self, rows):
        """Returns {name: how many of the first `rows` rows are of that source}."""
        block, rest = divmod(rows, BLOCK_ROWS)
        stage = np.searchsorted(self._first, block, "right") - 1
        count = self._before[stage] + (block - self._first[stage]) * self._quota[stage]
        member, _ = self.assign(np.arange(rows - rest, rows))
        count = count + np.bincount(member, minlength=len(count))
        return dict(zip(self.sources, count.tolist(), strict=True))

    def take(self, n):
        """Returns rows `n` of the training order as a batch."""
        member, row = self.assign(n)
        return self._gather(member, row, "take")

    def where(self, n):
        """Returns (source, epoch, pieces) of each row `n` of the training order."""
        member, row = self.assign(n)
        found = [None] * len(n)
        for m in np.unique(member):
            here = np.flatnonzero(member == m)
            for at, origin in zip(here, self._members[m].where(row[here]), strict=True):
                found[at] = origin
        return found

    def in_order(self, k):
        """Returns rows `k` of all sources' splits, read one after another from their starts."""
        member = np.searchsorted(self._epoch_end, k, "right")
        begin = np.concatenate([[0], self._epoch_end])[member]
        return self._gather(member, k - begin, "in_order")

    def _gather(self, member, row, method):
        out = self.empty(len(row))
        for m in np.unique(member):
            here = member == m
            for name, value in getattr(self._members[m], method)(row[here]).items():
                out[name][here] = value
        return out
