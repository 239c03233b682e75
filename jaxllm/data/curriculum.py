"""Easy rows first: for a part of the run, rows come from a growing part of the sorted split.

The part grows as the square root of time (Platanios et al. 2019, "Competence-based curriculum
learning for neural machine translation", equation 8), from a hundredth; rows are drawn from it with
replacement. Then the epochs of the source begin. A row remains a function of (seed, row number). In
a mixture, whose rows come in blocks, a source may be up to a block early or late.
"""

import hashlib

import numpy as np

from jaxllm.config import ConfigError, near
from jaxllm.data import permute, shards
from jaxllm.data.rows import Over

KINDS = ("none", "length", "score")
FIRST_PART = 0.01


class Curriculum(Over):
    """A source whose first rows are easy ones; all else is the source's.

    Args:
        source: `windows.Source` or `packing.Packed`.
        scores: float[documents], higher is harder; a row has the mean of its tokens' documents.
        rows: row of the source from which on it is read as it would be without.
        seed: of the draws.

    Attributes:
        order: {name: text}, what its order depends on besides.
    """

    def __init__(self, source, scores, rows, seed):
        super().__init__(source)
        self._rows = rows
        self._order = np.argsort(source.row_scores(scores), kind="stable")
        digest = hashlib.sha256(np.ascontiguousarray(self._order).tobytes()).hexdigest()[:12]
        self.order = {"curriculum": f"{digest} until its row {rows}"}
        self._key = permute.make_key("curriculum", seed, source.name)

    @property
    def sources(self):
        """{name: source} of the sources that the rows are of."""
        return {self.name: self}

    def part(self, n):
        """Returns how many of the sorted rows each row `n` of the curriculum is drawn from."""
        share = np.sqrt(n / self._rows * (1 - FIRST_PART**2) + FIRST_PART**2)
        return np.ceil(share * len(self._order)).astype(np.int64)

    def draw(self, n):
        """Returns the rows `k` of the source's `in_order` that rows `n` of the curriculum are."""
        at = permute.subkeys(self._key, n) % self.part(n).astype(np.uint64)
        return self._order[at.astype(np.int64)]

    def take(self, n):
        """Returns rows `n` of the training order as a batch."""
        easy = n < self._rows
        if not easy.any():
            return self._source.take(n - self._rows)
        if easy.all():
            return self._source.in_order(self.draw(n))
        first = self._source.in_order(self.draw(n[easy]))
        then = self._source.take(n[~easy] - self._rows)
        back = np.argsort(np.concatenate([np.flatnonzero(easy), np.flatnonzero(~easy)]))
        return {name: np.concatenate([first[name], then[name]])[back] for name in first}

    def where(self, n):
        """Returns (source, epoch, pieces) of each row `n`; the epoch is -1 in the curriculum."""
        found = [None] * len(n)
        easy, later = np.flatnonzero(n < self._rows), np.flatnonzero(n >= self._rows)
        pieces = self._source.where_in_order(self.draw(n[easy]))
        for at, some in zip(easy, pieces, strict=True):
            found[at] = (self.name, -1, some)
        for at, origin in zip(later, self._source.where(n[later] - self._rows), strict=True):
            found[at] = origin
        return found


def check(kind, until):
    """Raises ConfigError for a curriculum that cannot be."""
    if kind not in KINDS:
        raise ConfigError(
            f"config.data.curriculum.kind={kind!r} is unknown.{near(kind, KINDS)} "
            f"Known: {', '.join(KINDS)}.\n  Try --config.data.curriculum.kind=none."
        )
    if not 0 < until <= 1:
        raise ConfigError(
            f"config.data.curriculum.until={until} is a share of the run, above 0 and at most 1.\n"
            "  Try --config.data.curriculum.until=0.3."
        )


def scores(kind, directory, manifest, split):
    """Returns how hard each document of a split is: its length, or the score stored beside it.

    Raises:
        DataError: there are no scores, or not one a document.
    """
    if kind == "score":
        return shards.read_scores(directory, manifest, split)
    stream = shards.TokenStream(directory, manifest, split)
    return np.diff(stream.starts, append=stream.size).astype(np.float64)
