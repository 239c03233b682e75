"""Decoding: prefill once, then a token at a time from the key-value cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models import cache as caches


class Sampling(NamedTuple):
    """How the next token is chosen.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens that together have this probability; 1 for all
            (Holtzman et al. 2020, arXiv:1904.09751).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self):
        """Raises ValueError for a value out of range."""
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must not be negative. Try 0.8.")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must not be negative. Try 0 for all tokens.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]. Try 0.95, or 1 for all.")
        return self


def choose(logits_BV, key, how):
    """Draws one token a row, int32[B]."""
    if how.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / how.temperature
    V = logits_BV.shape[-1]
    if 0 < how.top_k < V:
        floor_B1 = jax.lax.top_k(logits_BV, how.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV < floor_B1, -jnp.inf, logits_BV)
    if how.top_p < 1:
        sorted_BV = jnp.flip(jnp.sort(logits_BV, axis=-1), axis=-1)
        chance_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(chance_BV, axis=-1) - chance_BV  # of all that are more likely
        kept_BV = jnp.where(before_BV < how.top_p, sorted_BV, jnp.inf)
        logits_BV = jnp.where(logits_BV < kept_BV.min(-1, keepdims=True), -jnp.inf, logits_BV)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


def left_pad(prompts, pad=0):
    """Stacks token lists of unequal length so that all end in the last column.

    Returns:
        {"tokens", "position", "segment": numpy int32[B, T]}; segment is 0 on the padding.
    """
    T = max(len(p) for p in prompts)
    batch = {n: np.zeros((len(prompts), T), np.int32) for n in ("tokens", "position", "segment")}
    batch["tokens"] += pad
    for row, prompt in enumerate(prompts):
        n = len(prompt)
        batch["tokens"][row, T - n :] = prompt
        batch["position"][row, T - n :] = np.arange(n)
        batch["segment"][row, T - n :] = 1
    return batch


def make_generate(model, tokens, how, eos=-1):
    """Returns generate(params, batch, key) -> int32[B, tokens].

    Args:
        model: `models.Model`.
        tokens: how many to draw a row, at most.
        how: `Sampling`.
        eos: token that ends a row, which is filled with it from there on; -1 for none.

    `batch` is what `left_pad` returns; prompt and drawn tokens together must fit the model's
    positions where those are learned. Jit the result: it is one program for a shape of batch.
    """
    how.check()

    def generate(params, batch, key):
        B, T = batch["tokens"].shape
        if model.config.position == "learned" and T + tokens > model.config.positions:
            raise ValueError(
                f"{T} prompt tokens and {tokens} new ones exceed the model's "
                f"{model.config.positions} learned positions. Ask for at most "
                f"{max(model.config.positions - T, 0)} tokens."
            )
        logits_BTV, cache = model.extend(params, batch, caches.make(model.config, B, T + tokens))
        first = (cache, logits_BTV[:, -1], batch["position"][:, -1] + 1, jnp.zeros(B, bool))

        def draw(carry, step_key):
            cache, logits_BV, position_B, done_B = carry
            token_B = jnp.where(done_B, eos, choose(logits_BV, step_key, how))
            done_B |= token_B == eos
            one = {
                "tokens": jnp.maximum(token_B, 0)[:, None],
                "position": position_B[:, None],
                "segment": jnp.ones((B, 1), jnp.int32),
            }
            logits_BTV, cache = model.extend(params, one, cache)
            return (cache, logits_BTV[:, -1], position_B + 1, done_B), token_B

        _, drawn_NB = jax.lax.scan(draw, first, jax.random.split(key, tokens))
        return drawn_NB.T

    return generate
