"""Beam search: the likeliest sequences found by keeping the best few at every step.

Scores, length penalty and the rules of stopping are those of transformers 5, so that both find the
same sequences; Wu et al. 2016 (arXiv:1609.08144), section 7, have another penalty.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.config import ConfigError
from jaxllm.models import cache as caches
from jaxllm.models.generate.sampling import is_one_of

NEVER = -1e9


class Beams(NamedTuple):
    """How to search.

    Attributes:
        beams: W, sequences that are kept at every step.
        length_penalty: scores are sums of log-probabilities over length to this power; more than 0
            favours long sequences, less short ones.
        early_stopping: True: stop when W sequences are finished; False: when no running one, at
            its present length, scores better than the worst finished one; "never": the same at
            the best length it may still reach.
        returned: sequences a prompt, best first, at most W.
    """

    beams: int = 4
    length_penalty: float = 1.0
    early_stopping: Any = False
    returned: int = 1

    def check(self):
        """Returns itself; raises ConfigError for a value out of range."""
        if self.beams < 1:
            raise ConfigError(f"beams={self.beams} must be at least 1. Try 4.")
        if not 1 <= self.returned <= self.beams:
            raise ConfigError(
                f"returned={self.returned} must be from 1 to beams={self.beams}. Try 1."
            )
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(
                f"early_stopping={self.early_stopping!r} is unknown. Try True, False or 'never'."
            )
        return self


class Found(NamedTuple):
    """What the search found.

    Attributes:
        tokens: int32[B, returned, N]; -1 past the end.
        score: float32[B, returned].
    """

    tokens: Any
    score: Any


class _Search(NamedTuple):
    """State of the loop; W running sequences and W finished ones a prompt."""

    number: Any  # tokens that running sequences have
    cache: Any
    running_BWN: Any
    running_score_BW: Any
    done_BWN: Any
    done_score_BW: Any
    is_done_BW: Any
    open_B1: Any  # whether running ones may still be better than finished ones
    goes_on: Any


def search(decoder, weights, cache, logits_BV, how, tokens, eos):
    """Returns `Found`.

    Args:
        decoder: `Decoder`.
        weights: what its `prepare` returned.
        cache: of the prompts, one row each, with room for `tokens` more; an encoder's memory may
            be part of it, as all its arrays count rows on axis 0.
        logits_BV: of the last token of each prompt.
        how: `Beams`.
        tokens: N, most of a sequence.
        eos: tokens that end a sequence, a tuple.
    """
    B, W = logits_BV.shape[0], how.beams
    row_X = jnp.repeat(jnp.arange(B), W)
    # Of equal sequences only the first counts at the start.
    score_BW = jnp.broadcast_to(jnp.where(jnp.arange(W) > 0, NEVER, 0.0), (B, W))
    empty_BWN = jnp.full((B, W, tokens), -1, jnp.int32)
    state = _Search(
        number=jnp.int32(0),
        cache=caches.take_rows(cache, row_X),
        running_BWN=empty_BWN,
        running_score_BW=score_BW,
        done_BWN=empty_BWN,
        done_score_BW=jnp.full((B, W), NEVER),
        is_done_BW=jnp.zeros((B, W), bool),
        open_B1=jnp.ones((B, 1), bool),
        goes_on=jnp.bool_(True),
    )
    state = _choose(state, logits_BV[row_X], how, tokens, eos)

    def step(state):
        last_X = jax.lax.dynamic_index_in_dim(state.running_BWN, state.number - 1, 2).reshape(-1, 1)
        batch = {"tokens": jnp.maximum(last_X, 0), "segment": jnp.ones_like(last_X)}
        logits_X1V, cache = decoder.extend(weights, batch, state.cache)
        return _choose(state._replace(cache=cache), logits_X1V[:, 0], how, tokens, eos)

    state = jax.lax.while_loop(lambda state: state.goes_on, step, state)
    return Found(state.done_BWN[:, : how.returned], state.done_score_BW[:, : how.returned])


def _choose(state, logits_XV, how, tokens, eos):
    """Takes the best continuations: those that end to the finished ones, others to the running."""
    B, W, N = state.running_BWN.shape
    V, number = logits_XV.shape[-1], state.number
    logp_BWV = jax.nn.log_softmax(logits_XV).reshape(B, W, V) + state.running_score_BW[..., None]
    # So many that W are left if all that can end do.
    kept = min(max(2, 1 + len(eos)) * W, W * V)
    score_BX, index_BX = jax.lax.top_k(logp_BWV.reshape(B, W * V), kept)
    beam_BX, token_BX = index_BX // V, (index_BX % V).astype(jnp.int32)
    sequence_BXN = jnp.take_along_axis(state.running_BWN, beam_BX[..., None], axis=1)
    sequence_BXN = jnp.where(jnp.arange(N) == number, token_BX[..., None], sequence_BXN)
    ends_BX = is_one_of(token_BX, eos) | (number + 1 >= tokens)

    running_BW, next_BW = jax.lax.top_k(score_BX + ends_BX * NEVER, W)
    parent_BW = jnp.take_along_axis(beam_BX, next_BW, axis=1)
    row_X = (parent_BW + jnp.arange(B)[:, None] * W).reshape(-1)

    length = (number + 1).astype(jnp.float32)
    just_BX = ends_BX & (jnp.arange(kept) < W)
    full_B1 = jnp.all(state.is_done_BW, axis=-1, keepdims=True) & (how.early_stopping is True)
    ended_BX = score_BX / length**how.length_penalty
    ended_BX = ended_BX + NEVER * (full_B1.astype(jnp.float32) + ~state.open_B1 + ~just_BX)
    merged_BY = jnp.concatenate([state.done_score_BW, ended_BX], axis=1)
    done_score_BW, best_BW = jax.lax.top_k(merged_BY, W)

    def merge(old, new):
        both = jnp.concatenate([old, new], axis=1)
        return jnp.take_along_axis(both, best_BW.reshape(B, W, *(1,) * (both.ndim - 2)), axis=1)

    is_done_BW = merge(state.is_done_BW, just_BX)
    reached = float(tokens) if how.early_stopping == "never" and how.length_penalty > 0 else length
    best_B1 = running_BW[:, :1] / reached**how.length_penalty
    worst_BW = jnp.where(is_done_BW, done_score_BW.min(1, keepdims=True), NEVER)
    open_B1 = state.open_B1 & jnp.any(best_B1 > worst_BW, axis=-1, keepdims=True)
    all_full = jnp.all(is_done_BW) & (how.early_stopping is True)
    return _Search(
        number=number + 1,
        cache=caches.reorder(state.cache, row_X),
        running_BWN=jnp.take_along_axis(sequence_BXN, next_BW[..., None], axis=1),
        running_score_BW=running_BW,
        done_BWN=merge(state.done_BWN, sequence_BXN),
        done_score_BW=done_score_BW,
        is_done_BW=is_done_BW,
        open_B1=open_B1,
        goes_on=jnp.any(open_B1) & ~all_full & ~jnp.all(ends_BX),
    )


def make_beam_search(decoder, tokens, how, eos=()):
    """Returns find(weights, batch) -> `Found`; jit it.

    Args:
        decoder: `Decoder`.
        tokens: of a sequence, at most.
        how: `Beams`.
        eos: tokens that end a sequence, a tuple.
    """
    how.check()

    def find(weights, batch):
        room = decoder.row(batch["tokens"].shape[1]) + tokens
        logits_B1V, cache, _ = decoder.read(weights, batch, room)
        return search(decoder, weights, cache, logits_B1V[:, 0], how, tokens, eos)

    return find
