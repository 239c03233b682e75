"""Several sources by weight, with exact counts and random access.

Rows come in blocks of 1,000. Each block holds an exact quota of every source, in a keyed
order; the rows of a source, taken over all blocks, walk it epoch by epoch without repeats.
"""

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.data import permute
from jaxllm.data.rows import Rows, empty_batch

BLOCK_ROWS = 1_000


def quotas(weights):
    """Returns {name: rows of each block} by the method of largest remainders.

    Args:
        weights: {name: weight >= 0}; a source of weight 0 is never read.

    Raises:
        ConfigError: a weight is negative, all are zero, or one is too small for a row a block.
    """
    total = sum(weights.values())
    for name, weight in weights.items():
        field = f"config.data.sources.{name}.weight"
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"{field}={weight} must be a number >= 0.\n  Try --{field}=1.0.")
        if total > 0 and 0 < weight < total / BLOCK_ROWS:
            raise ConfigError(
                f"{field}={weight} is less than 1/{BLOCK_ROWS} of all weights ({total:g}); the "
                f"source would get no rows.\n  Try --{field}={total / BLOCK_ROWS:.4g} or 0."
            )
    if total <= 0:
        raise ConfigError("config.data.sources: every weight is 0. Give at least one a weight.")
    exact = {name: BLOCK_ROWS * weight / total for name, weight in weights.items()}
    rows = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: rows[name] - exact[name])
    for name in by_remainder[: BLOCK_ROWS - sum(rows.values())]:
        rows[name] += 1
    return rows


class Mixture(Rows):
    """Rows of several sources, with the interface of one `Source`.

    Args:
        sources: {name: Source}, alike in batch and length.
        weights: {name: weight}.
        seed: of the order.

    Attributes:
        tokens, bytes, bytes_per_token, epoch_rows: over all sources that have a weight.
        sources: {name: Source} of those, to evaluate one by one.
        quotas: {name: rows in each block of 1,000}.
        efficiency: share of all places that hold a token.
        steps_per_epoch: steps until the source that lasts longest was walked once.
        manifest: {"sources": {name: manifest}, "quotas": quotas}.
    """

    def __init__(self, sources, weights, seed):
        self.quotas = {name: rows for name, rows in quotas(weights).items() if rows}
        self.sources = {name: sources[name] for name in self.quotas}
        members = list(self.sources.values())
        self.batch, self.length = members[0].batch, members[0].length
        self.tokens = sum(s.tokens for s in members)
        self.bytes = sum(s.bytes for s in members)
        self.bytes_per_token = self.bytes / self.tokens
        self._members = members
        self._quota = np.array(list(self.quotas.values()))
        self._quota_end = np.cumsum(self._quota)
        self._key = permute.make_key("mixture", seed, *self.quotas)
        rows = max(s.train_rows / q for s, q in zip(members, self._quota, strict=True)) * BLOCK_ROWS
        full = [s.efficiency * q for s, q in zip(members, self._quota, strict=True)]
        self.efficiency = sum(full) / BLOCK_ROWS
        self.steps_per_epoch = int(-(-rows // self.batch))
        self.epoch_rows = sum(s.epoch_rows for s in members)
        self._epoch_end = np.cumsum([s.epoch_rows for s in members])
        self.manifest = {
            "sources": {name: s.manifest for name, s in self.sources.items()},
            "quotas": self.quotas,
        }

    def assign(self, n):
        """Returns (index of the source, row of that source) for each row `n` of the mixture."""
        block, i = n // BLOCK_ROWS, n % BLOCK_ROWS
        place = permute.permute(permute.subkeys(self._key, block), i, BLOCK_ROWS)
        member = np.searchsorted(self._quota_end, place, "right")
        quota, end = self._quota[member], self._quota_end[member]
        return member, block * quota + place - (end - quota)

    def take(self, n):
        """Returns rows `n` of the training order as a batch."""
        member, row = self.assign(n)
        return self._gather(member, row, "take")

    def in_order(self, k):
        """Returns rows `k` of all sources' splits, read one after another from their starts."""
        member = np.searchsorted(self._epoch_end, k, "right")
        begin = np.concatenate([[0], self._epoch_end])[member]
        return self._gather(member, k - begin, "in_order")

    def _gather(self, member, row, method):
        out = empty_batch(len(row), self.length)
        for m in np.unique(member):
            here = member == m
            for name, value in getattr(self._members[m], method)(row[here]).items():
                out[name][here] = value
        return out
