"""Speculative decoding: a small model drafts tokens, the large one checks them all at once.

What is drawn has exactly the distribution of the large model alone; greedy gives its very tokens.
Source: Leviathan et al. 2023 (arXiv:2211.17192), algorithm 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import ConfigError
from jaxllm.models.generate.sampling import is_one_of, warp


class Speculated(NamedTuple):
    """What was drawn.

    Attributes:
        tokens: int32[B, N]; -1 past a row's end.
        proposed, accepted: int32[B], drafted tokens that were checked and that passed.
    """

    tokens: Any
    proposed: Any
    accepted: Any


class _State(NamedTuple):
    cache: Any
    draft: Any
    token_B: Any  # last of each row, in neither cache
    drawn_B: Any
    left_B: Any
    tokens_BN: Any
    proposed_B: Any
    accepted_B: Any
    round: Any


def _chances(logits, how):
    """Probabilities that a token is drawn by, over the last axis."""
    if how.temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1])
    flat = warp(logits.reshape(-1, logits.shape[-1]), how)
    return jax.nn.softmax(flat, axis=-1).reshape(logits.shape)


def _draw(key_B, chance_BV):
    """One token a row from probabilities; zeros are never drawn."""
    return jax.vmap(jax.random.categorical)(key_B, jnp.log(chance_BV)).astype(jnp.int32)


def make_speculate(decoder, draft, tokens, how, eos=(), ahead=4):
    """Returns speculate(weights, draft_weights, batch, seed_B) -> `Speculated`; jit it.

    Args:
        decoder, draft: `Decoder`s of the large and of the small model, with one vocabulary.
        tokens: N, how many to draw a row, at most.
        how: `Sampling` without penalties; the draft proposes by the same.
        eos: tokens that end a row, a tuple.
        ahead: tokens that are drafted at a time.

    Raises:
        ConfigError: vocabularies differ, or what cannot be drafted.
    """
    how.check()
    if decoder.vocab != draft.vocab:
        raise ConfigError(
            f"The draft model has {draft.vocab} tokens and the model {decoder.vocab}. Take one "
            "that shares its tokenizer."
        )
    if how.penalises:
        raise ConfigError("A draft model does not go with penalties. Try repetition_penalty=1.")
    if ahead < 1:
        raise ConfigError(f"ahead={ahead} must be at least 1. Try 4.")

    def speculate(weights, draft_weights, batch, seed_B):
        B, T = batch["tokens"].shape
        more = tokens + ahead + 1
        logits, cache, _ = decoder.read(weights, batch, decoder.row(T) + more, ahead + 1)
        _, held, _ = draft.read(draft_weights, batch, draft.row(T) + more, ahead + 1)
        zero_B, key_B = jnp.zeros(B, jnp.int32), jax.vmap(jax.random.key)(seed_B)
        state = _State(
            cache, held, zero_B, zero_B, jnp.full(B, tokens, jnp.int32),
            jnp.full((B, tokens), -1, jnp.int32), zero_B, zero_B, jnp.int32(0),
        )  # fmt: skip
        first_B = _draw(key_B, _chances(logits[:, 0], how))
        state = _emit(state, first_B[:, None], jnp.ones(B, jnp.int32), eos)

        def one(state):
            keys = jax.vmap(jax.random.fold_in, (0, None))(key_B, state.round + 1)
            return _round(decoder, draft, weights, draft_weights, how, eos, ahead, state, keys)

        state = jax.lax.while_loop(lambda state: jnp.any(state.left_B > 0), one, state)
        return Speculated(state.tokens_BN, state.proposed_B, state.accepted_B)

    return speculate


def _emit(state, token_BX, count_B, eos):
    """Writes the first count_B tokens of each row, up to its end. Rows that are done get none."""
    X, is_end_BX = token_BX.shape[1], is_one_of(token_BX, eos)
    before_BX = jnp.cumsum(is_end_BX, axis=1) - is_end_BX  # ends before each
    good_BX = (jnp.arange(X) < jnp.minimum(count_B, state.left_B)[:, None]) & (before_BX == 0)
    N = state.tokens_BN.shape[1]
    where_BX = jnp.where(good_BX, state.drawn_B[:, None] + jnp.arange(X), N)
    row_B1 = jnp.arange(len(count_B))[:, None]
    count_B = good_BX.sum(1, dtype=jnp.int32)
    ended_B = jnp.any(is_end_BX & good_BX, axis=1)
    last_B = jnp.take_along_axis(token_BX, jnp.maximum(count_B - 1, 0)[:, None], axis=1)[:, 0]
    return state._replace(
        token_B=jnp.where(count_B > 0, last_B, state.token_B),
        drawn_B=state.drawn_B + count_B,
        left_B=jnp.where(ended_B, 0, state.left_B - count_B),
        tokens_BN=state.tokens_BN.at[row_B1, where_BX].set(token_BX, mode="drop"),
    )


def _round(decoder, draft, weights, draft_weights, how, eos, ahead, state, key_B):
    """Drafts `ahead` tokens, checks them, and emits those that pass and one more."""
    alive_B = state.left_B > 0
    keys = jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, ahead + 2))(key_B), 0, 1)
    segment_B1 = alive_B.astype(jnp.int32)[:, None]

    def propose(carry, key_B):
        held, token_B = carry
        batch = {"tokens": token_B[:, None], "segment": segment_B1}
        logits, held = draft.extend(draft_weights, batch, held)
        chance_BV = _chances(logits[:, 0], how)
        next_B = _draw(key_B, chance_BV)
        return (held, next_B), (next_B, chance_BV)

    # One step more than is used, so that the last drafted token too is in the draft's cache.
    (held, _), (token_XB, q_XBV) = jax.lax.scan(
        propose, (state.draft, state.token_B), keys[: ahead + 1]
    )
    token_BX, q_BXV = token_XB[:ahead].T, jnp.swapaxes(q_XBV[:ahead], 0, 1)
    batch = {
        "tokens": jnp.concatenate([state.token_B[:, None], token_BX], axis=1),
        "segment": jnp.repeat(segment_B1, ahead + 1, axis=1),
    }
    logits, cache = decoder.extend(weights, batch, state.cache)
    p_BYV = _chances(logits, how)
    p_BX, q_BX = (
        jnp.take_along_axis(a, token_BX[..., None], axis=2)[..., 0]
        for a in (p_BYV[:, :ahead], q_BXV)
    )
    last = jax.vmap(lambda key: jax.random.split(key))(keys[ahead + 1])
    u_BX = jax.vmap(lambda key: jax.random.uniform(key, (ahead,)))(last[:, 0])
    passed_B = jnp.cumprod(u_BX * q_BX < p_BX, axis=1).sum(1).astype(jnp.int32)
    # Instead of the first that does not pass, one of what the draft proposes too rarely.
    more_BYV = jnp.maximum(p_BYV.at[:, :ahead].add(-q_BXV), 0)
    at_B11 = passed_B[:, None, None]
    chance_BV = jnp.take_along_axis(more_BYV, at_B11, axis=1)[:, 0]
    next_B = _draw(last[:, 1], chance_BV)
    token_BY = jnp.concatenate([token_BX, next_B[:, None]], axis=1)
    token_BY = jnp.where(jnp.arange(ahead + 1) == passed_B[:, None], next_B[:, None], token_BY)
    count_B = jnp.where(alive_B, passed_B + 1, 0)
    # What did not pass is taken back from both caches.
    state = state._replace(
        cache=_set_places(cache, state.cache, count_B),
        draft=_set_places(held, state.draft, count_B),
        proposed_B=state.proposed_B + jnp.where(alive_B, ahead, 0),
        accepted_B=state.accepted_B + jnp.where(alive_B, passed_B, 0),
        round=state.round + 1,
    )
    return _emit(state, token_BY, count_B, eos)


def _set_places(new, old, count_B):
    """Returns a cache whose rows end `count_B` tokens after those of the old one."""
    if isinstance(new, tuple):  # of an ensemble
        return tuple(_set_places(a, b, count_B) for a, b in zip(new, old, strict=True))
    return {**new, "at": old["at"] + count_B}
