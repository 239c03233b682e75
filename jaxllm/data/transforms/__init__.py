"""Transformations of rows after they are read: make(vocab, eos, marks, **options) -> transform.

A transform takes (batch, uint64 keys, one a row) and returns a batch. Keys come from the seed and
the row's number alone, so that a row is transformed alike whenever and wherever it is read.
"""

import numpy as np

from jaxllm import config
from jaxllm.config import ConfigError
from jaxllm.data import permute
from jaxllm.data.rows import Over
from jaxllm.data.transforms import infill, masks, spans
from jaxllm.data.transforms.marks import Marks

TRANSFORMS = {
    "spans": spans.corruption,
    "infill": infill.make,
    "fim": spans.fill_in_the_middle,
    "bert": masks.bert,
    "xlnet": masks.permutation,
    "prefix": masks.prefix,
    "noise": masks.noise,
    "word_dropout": masks.word_dropout,
}

# What a model must have for an objective that reads more of a row than tokens and targets. The
# transforms that are not listed leave a row a row, and are for training rows alone.
NEEDS = {
    "bert": "encoder",
    "spans": "encoder_decoder",
    "infill": "encoder_decoder",
    "xlnet": "order",
    "prefix": "prefix",
}

__all__ = ["NEEDS", "TRANSFORMS", "Marks", "Transformed"]


def check(sections, allowed):
    """Raises ConfigError for transforms that do not go together, or not with the rows.

    Args:
        sections: `config.data.transforms`.
        allowed: kinds that may change the rows of the config; False for all.
    """
    before = None
    for name, section in sections.items():
        kind = section["kind"]
        field = f"config.data.transforms.{name}.kind={kind!r}"
        if before:
            raise ConfigError(
                f"{field} cannot follow {before!r}, which makes rows for its own objective.\n"
                f"  Put {before!r} last, or leave one out."
            )
        if allowed and kind not in allowed:
            raise ConfigError(
                f"{field} is not for rows of examples. For them: {', '.join(allowed)}.\n"
                f"  Try --config.data.transforms.{name}.kind={allowed[0]}."
            )
        before = kind if kind in NEEDS else None


def make(sections, marks, training):
    """Returns [(number, transform)] of a config, in their order.

    Args:
        sections: `config.data.transforms`.
        marks: `Marks`, of a tokenizer.
        training: whether rows are trained on; others get only what a model `NEEDS`.
    """
    return [
        (number, _one(name, section, marks, marks.vocab))
        for number, (name, section) in enumerate(sections.items())
        if training or section["kind"] in NEEDS
    ]


def of_padding(sections, batch):
    """Returns a batch of padding as transforms leave it; no tokenizer is known but has an end."""
    marks = Marks()
    marks.eos = 0
    for name, section in sections.items():
        transform = _one(name, section, marks, 1 << 24)  # ids enough for any sentinels
        batch = transform(batch, permute.subkeys(0, np.arange(len(batch["segment"]))))
    return {name: np.zeros_like(value) for name, value in batch.items()}


def _one(name, section, marks, vocab):
    return config.make(TRANSFORMS, section, f"data.transforms.{name}", vocab, marks.eos, marks)


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

    def empty(self, rows):
        """Returns a batch of padding."""
        out = self._transform(self._source.empty(rows), permute.subkeys(0, np.arange(rows)))
        return {name: np.zeros_like(value) for name, value in out.items()}

    def take(self, n):
        """Returns rows `n` of the training order, transformed."""
        return self._transform(self._source.take(n), permute.subkeys(self._key, n))

    def in_order(self, k):
        """Returns rows `k` of the split, transformed alike in every epoch."""
        return self._transform(self._source.in_order(k), permute.subkeys(self._epoch_key, k))
