"""Transformations of rows after they are read: make(vocab, eos, **options) -> transform.

A transform takes (batch, uint64 keys, one a row) and returns a batch. Keys come from the seed and
the row's number alone, so that a row is transformed alike whenever and wherever it is read.
"""

from jaxllm.data import permute
from jaxllm.data.rows import Over
from jaxllm.data.transforms import masks, spans

TRANSFORMS = {
    "spans": spans.corruption,
    "fim": spans.fill_in_the_middle,
    "bert": masks.bert,
    "xlnet": masks.permutation,
    "prefix": masks.prefix,
    "noise": masks.noise,
    "word_dropout": masks.word_dropout,
}

__all__ = ["TRANSFORMS", "Transformed"]


class Transformed(Over):
    """A source whose batches pass through a transform; all else is the source's.

    Args:
        source: as `data.open_split` returns.
        transform: (batch, keys) -> batch, of `TRANSFORMS`.
        seed: of the draws.
    """

    def __init__(self, source, transform, seed):
        super().__init__(source)
        self._transform = transform
        self._key = permute.make_key("transform", seed)
        self._epoch_key = permute.make_key("transform in order", seed)

    def take(self, n):
        """Returns rows `n` of the training order, transformed."""
        return self._transform(self._source.take(n), permute.subkeys(self._key, n))

    def in_order(self, k):
        """Returns rows `k` of the split, transformed alike in every epoch."""
        return self._transform(self._source.in_order(k), permute.subkeys(self._epoch_key, k))
