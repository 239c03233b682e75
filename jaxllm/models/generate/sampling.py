"""Choosing the next token from logits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import ConfigError


class Sampling(NamedTuple):
    """How the next token is chosen. Applied in this order: penalties, temperature, k, p, min-p.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the most likely tokens that together have this probability; 1 for all
            (Holtzman et al. 2020, arXiv:1904.09751).
        min_p: only tokens at least this share as likely as the most likely one; 0 for all
            (Nguyen et al. 2024, arXiv:2407.01082).
        repetition_penalty: divides positive logits of tokens that the row has, prompt included,
            and multiplies negative ones; 1 for off (Keskar et al. 2019, arXiv:1909.05858, 4.1).
        presence_penalty: taken from the logits of tokens that were drawn; 0 for off.
        frequency_penalty: the same, times how often they were drawn.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def check(self):
        """Returns itself; raises ConfigError for a value out of range."""
        for name, good, allowed, advice in (
            ("temperature", self.temperature >= 0, "must not be negative", "Try 0.8."),
            ("top_k", self.top_k >= 0, "must not be negative", "Try 0 for all tokens."),
            ("top_p", 0 < self.top_p <= 1, "must be in (0, 1]", "Try 0.95, or 1 for all."),
            ("min_p", 0 <= self.min_p <= 1, "must be in [0, 1]", "Try 0.1, or 0 for all."),
            ("repetition_penalty", self.repetition_penalty > 0, "must be positive", "Try 1.1."),
        ):
            if not good or getattr(self, name) == float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} {allowed}. {advice}")
        for name in ("presence_penalty", "frequency_penalty"):
            if not abs(getattr(self, name)) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be finite. Try 0.5.")
        return self

    @property
    def penalises(self):
        """Whether it needs to know which tokens a row has."""
        return (
            self.repetition_penalty != 1
            or self.presence_penalty != 0
            or self.frequency_penalty != 0
        )


class Seen(NamedTuple):
    """Which tokens each row has.

    Attributes:
        prompt_BV: whether the prompt has the token, bool.
        drawn_BV: how often it was drawn, int32.
    """

    prompt_BV: jax.Array
    drawn_BV: jax.Array


def penalise(logits_BV, seen, how):
    """Returns the logits with the penalties for what is there already."""
    has_BV = seen.prompt_BV | (seen.drawn_BV > 0)
    by = how.repetition_penalty
    less_BV = jnp.where(logits_BV > 0, logits_BV / by, logits_BV * by)
    logits_BV = jnp.where(has_BV, less_BV, logits_BV)
    times_BV = seen.drawn_BV.astype(jnp.float32)
    drawn_BV = (seen.drawn_BV > 0).astype(jnp.float32)
    return logits_BV - how.presence_penalty * drawn_BV - how.frequency_penalty * times_BV


def _ordered(x):
    """float32 as int32 in the same order, and back again."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _float(ordered):
    bits = jnp.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _lowest(x_BV, enough):
    """The smallest float t, one a row, for which enough(t [B, 1]) -> bool[B, 1] holds.

    By 32 halvings of the floats, each a pass over the vocabulary: a tenth of the time of a sort.

    Args:
        x_BV: sets the range.
        enough: false up to some float and true from there on.
    """
    low = _ordered(x_BV.min(-1, keepdims=True)) - 1
    high = _ordered(x_BV.max(-1, keepdims=True))

    def halve(_, ends):
        low, high = ends
        middle = (low & high) + ((low ^ high) >> 1)  # without overflow
        good = enough(_float(middle))
        return jnp.where(good, low, middle), jnp.where(good, middle, high)

    return _float(jax.lax.fori_loop(0, 32, halve, (low, high))[1])


def keep_likely(logits_BV, how):
    """Returns the logits with -inf for tokens that top_k, top_p or min_p leave out.

    Tokens as likely as the last that is kept are kept too.
    """
    V = logits_BV.shape[-1]
    if 0 < how.top_k < V:
        count = lambda t: jnp.sum(logits_BV > t, axis=-1, keepdims=True)  # noqa: E731
        floor_B1 = _lowest(logits_BV, lambda t: count(t) < how.top_k)
        logits_BV = jnp.where(logits_BV < floor_B1, -jnp.inf, logits_BV)
    if how.top_p < 1:
        chance_BV = jax.nn.softmax(logits_BV, axis=-1)
        above = lambda t: jnp.sum(jnp.where(chance_BV > t, chance_BV, 0), -1, keepdims=True)  # noqa: E731
        floor_B1 = _lowest(chance_BV, lambda t: above(t) < how.top_p)
        logits_BV = jnp.where(chance_BV < floor_B1, -jnp.inf, logits_BV)
    if how.min_p > 0:
        top_B1 = logits_BV.max(-1, keepdims=True)
        logits_BV = jnp.where(logits_BV < top_B1 + jnp.log(how.min_p), -jnp.inf, logits_BV)
    return logits_BV


def warp(logits_BV, how, seen=None):
    """Returns the logits that tokens are drawn by: float32[B, V], -inf for what is left out.

    Args:
        logits_BV: the model's.
        how: `Sampling`; at temperature 0 all but the most likely tokens are left out.
        seen: `Seen`; only where how.penalises.
    """
    if how.penalises:
        logits_BV = penalise(logits_BV, seen, how)
    if how.temperature == 0:
        top_B1 = logits_BV.max(-1, keepdims=True)
        return jnp.where(logits_BV < top_B1, -jnp.inf, logits_BV)
    return keep_likely(logits_BV / how.temperature, how)


def is_one_of(tokens, ends):
    """Returns whether each token is one of `ends`, bool in the shape of the tokens.

    Args:
        tokens: int32[...].
        ends: a tuple of tokens; of none nothing is one.
    """
    found = jnp.zeros(tokens.shape, bool)
    for end in ends:
        found |= tokens == end
    return found


def choose(logits_BV, key_B, how, seen=None):
    """Draws one token a row, int32[B].

    Args:
        logits_BV: float32.
        key_B: one random key a row, so that no row's draw depends on another.
        how: `Sampling`.
        seen: `Seen`; only where how.penalises.
    """
    if how.temperature == 0:
        logits_BV = penalise(logits_BV, seen, how) if how.penalises else logits_BV
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = warp(logits_BV, how, seen)
    return jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)
