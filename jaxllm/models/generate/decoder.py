"""What generation needs of a model, or of several as one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import ConfigError
from jaxllm.models import cache as caches


class Decoder(NamedTuple):
    """A model as generation sees it.

    Attributes:
        vocab: V.
        positions: longest row in tokens, or 0 where there is no such limit.
        prepare: params -> weights, laid out for decoding in the dtype of the computation. Takes
            part in a jitted program or runs once before many.
        empty: (rows, length, slack=0) -> cache; see `models.cache.make`.
        grow: (cache, length, slack=0) -> cache.
        extend: (weights, batch, cache, *, fresh=False, last=False) -> (logits, cache), as in
            `models.Model`.
    """

    vocab: int
    positions: int
    prepare: Callable
    empty: Callable
    grow: Callable
    extend: Callable


def decoder(model, kv_dtype=""):
    """Returns the `Decoder` of a model.

    Args:
        model: `models.Model`.
        kv_dtype: of the cache: "" for that of the computation, or "int8".
    """
    c = model.config

    def empty(rows, length, slack=0):
        return caches.make(c, rows, length, kv_dtype=kv_dtype, slack=slack)

    return Decoder(
        vocab=c.vocab,
        positions=c.positions if c.position == "learned" else 0,
        prepare=lambda params: caches.lay_out(model.whole(params)),
        empty=empty,
        grow=lambda cache, length, slack=0: caches.grow(cache, c, length, slack),
        extend=model.extend,
    )


def ensemble(decoders, average="probabilities"):
    """Returns several models of one vocabulary as one `Decoder`; its params are a tuple of theirs.

    Args:
        decoders: their `Decoder`s.
        average: "probabilities" (a mixture), or "logits" (a product of experts).

    Raises:
        ConfigError: vocabularies of unequal size, or an unknown average.
    """
    sizes = {one.vocab for one in decoders}
    if len(sizes) != 1:
        raise ConfigError(
            f"Models of an ensemble have vocabularies of {sorted(sizes)} tokens. Take models that "
            "share a tokenizer."
        )
    if average not in ("probabilities", "logits"):
        raise ConfigError(f"average={average!r} is unknown. Try probabilities, or logits.")

    def extend(weights, batch, cache, **options):
        both = [
            one.extend(w, batch, held, **options)
            for one, w, held in zip(decoders, weights, cache, strict=True)
        ]
        logits = jnp.stack([one for one, _ in both])
        if average == "logits":
            logits = logits.mean(0)
        else:
            logits = jax.nn.logsumexp(jax.nn.log_softmax(logits), axis=0) - jnp.log(len(both))
        return logits, tuple(held for _, held in both)

    return Decoder(
        vocab=sizes.pop(),
        positions=min((one.positions for one in decoders if one.positions), default=0),
        prepare=lambda params: tuple(
            one.prepare(p) for one, p in zip(decoders, params, strict=True)
        ),
        empty=lambda *a, **o: tuple(one.empty(*a, **o) for one in decoders),
        grow=lambda cache, *a, **o: tuple(
            one.grow(held, *a, **o) for one, held in zip(decoders, cache, strict=True)
        ),
        extend=extend,
    )
