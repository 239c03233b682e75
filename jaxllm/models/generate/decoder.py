"""What generation needs of a model, or of several as one."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import ConfigError
from jaxllm.models import cache as caches
from jaxllm.models.generate.bits import narrow


class Decoder(NamedTuple):
    """A model as generation sees it.

    Attributes:
        vocab: V.
        positions: longest row in tokens, or 0 where there is no such limit.
        prepare: params -> weights, laid out for decoding in the dtype of the computation. Takes
            part in a jitted program or runs once before many.
        empty: (rows, length, slack=0, inputs=0) -> cache; see `models.cache.make`.
        grow: (cache, length, slack=0) -> cache.
        extend: (weights, batch, cache, *, fresh=False, last=False) -> (logits, cache), as in
            `models.Model`.
        start: token that a row begins with where prompts are an encoder's inputs; else -1.
        lead: places before a prompt that stand for no token, as in `models.Model`.
    """

    vocab: int
    positions: int
    prepare: Callable
    empty: Callable
    grow: Callable
    extend: Callable
    start: int = -1
    lead: int = 0

    def row(self, prompt):
        """Tokens that stand in a row before the first is drawn, of a prompt's."""
        return self.lead + prompt if self.start < 0 else 1

    def read(self, weights, batch, length, slack=0, inputs=0):
        """Reads prompts into an empty cache.

        Args:
            weights: what `prepare` returned.
            batch: as `pad` returns it, [B, T].
            length: tokens that a row of the cache has room for.
            slack: as in `cache.make`.
            inputs: tokens of an encoder's inputs that the cache has room for; 0: T.

        Returns:
            (logits of the first token to draw, float32[B, 1, V], cache, {"tokens", "segment"} of
            what stands in the rows).
        """
        B, real_B1 = len(batch["tokens"]), jnp.any(batch["segment"] > 0, axis=1, keepdims=True)
        real_B1, prompt = real_B1.astype(jnp.int32), batch
        if self.lead:
            more = {"tokens": jnp.zeros((B, self.lead), jnp.int32)}
            more["segment"] = jnp.broadcast_to(real_B1, more["tokens"].shape)
            batch = {n: jnp.concatenate([more[n], batch[n]], axis=1) for n in more}
        if self.start < 0:
            cache = self.empty(B, length, slack)
            return *self.extend(weights, batch, cache, fresh=True, last=True), prompt
        T = batch["tokens"].shape[1]
        row = {"tokens": jnp.full_like(real_B1, self.start), "segment": real_B1}
        given = {"inputs": batch["tokens"], "inputs_segment": batch["segment"]}
        cache = self.empty(B, length, slack, inputs=T)
        logits, cache = self.extend(weights, row | given, cache, fresh=True, last=True)
        return logits, caches.widen(cache, max(inputs, T)), row


def decoder(model, kv_dtype="", start=0, weights=""):
    """Returns the `Decoder` of a model.

    Args:
        model: `models.Model`.
        kv_dtype: of the cache: "" for that of the computation, or "int8".
        start: of an encoder-decoder, the token that its rows begin with (0 for T5, 2 for BART).
        weights: "" for those of the computation, or "bfloat16", "int8"; see `models.narrow`.

    Raises:
        ConfigError: a start token that the model has not.
    """
    c = model.config
    reads = c.assembly == "encoder_decoder"
    if reads and not 0 <= start < c.vocab:
        raise ConfigError(
            f"start={start} must be one of the model's {c.vocab} tokens. Try the padding token, "
            "as T5 has it."
        )

    def prepare(params):
        laid_out = caches.lay_out(model.whole(params))
        return narrow(laid_out, model.infos, weights)

    def empty(rows, length, slack=0, inputs=0):
        return caches.make(c, rows, length, kv_dtype=kv_dtype, slack=slack, inputs=inputs)

    return Decoder(
        vocab=c.vocab,
        positions=c.positions - model.lead if c.position == "learned" else 0,
        prepare=prepare,
        empty=empty,
        grow=lambda cache, length, slack=0: caches.grow(cache, c, length, slack),
        extend=model.extend,
        start=start if reads else -1,
        lead=model.lead,
    )


def ensemble(decoders, average="probabilities"):
    """Returns several models of one vocabulary as one `Decoder`; its params are a tuple of theirs.

    Args:
        decoders: their `Decoder`s.
        average: "probabilities" (a mixture), or "logits" (a product of experts).

    Raises:
        ConfigError: vocabularies of unequal size, rows that begin unlike, or an unknown average.
    """
    sizes = {one.vocab for one in decoders}
    if len(sizes) != 1:
        raise ConfigError(
            f"Models of an ensemble have vocabularies of {sorted(sizes)} tokens. Take models that "
            "share a tokenizer."
        )
    starts = {one.start for one in decoders}
    if len(starts) != 1:
        raise ConfigError(
            f"Models of an ensemble begin rows with {sorted(starts)} (-1: with the prompt). Take "
            "either decoders or encoder-decoders, these with one start token."
        )
    if any(one.lead for one in decoders):
        raise ConfigError(
            "Models of an ensemble read the same rows, and a soft prompt or a prefix takes places "
            "of its own in them. Take models without one."
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
        start=starts.pop(),
    )
