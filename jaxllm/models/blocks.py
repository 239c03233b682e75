"""Attention by blocks in plain jax: the scores are never all in memory, on any device.

Blocks of which nothing is seen are skipped. Softmax is taken piece by piece (Milakov and
Gimelshein 2018, arXiv:1805.02867).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.layers import softcap
from jaxllm.models.ring import Kernel, attend, loop

BLOCK = 512  # queries and keys a block, at most
_NEVER = -1e30  # score of a key that is not seen


class Block(NamedTuple):
    """Some tokens: arrays [B, K, …, b, …], index in the row, document and place in it, [B, b]."""

    parts: Any
    index_Bb: Any
    segment_Bb: Any
    position_Bb: Any


def seen(q, k, window, first):
    """Mask of the keys of a block that queries of another see, bool[B, 1, 1, b, b]."""
    back = q.index_Bb[:, :, None] - k.index_Bb[:, None, :]
    mask = (back >= 0) & (q.segment_Bb[:, :, None] == k.segment_Bb[:, None, :])
    if window:
        near = back < window
        mask &= (near | (k.position_Bb < first)[:, None]) if first else near
    return mask[:, None, None]


def any_seen(q, k, window, first):
    """False where no query of a block can see a key of another; looks at their ends only."""
    some = q.index_Bb.max() >= k.index_Bb.min()
    some &= q.segment_Bb.max() >= k.segment_Bb.min()
    some &= q.segment_Bb.min() <= k.segment_Bb.max()
    if not window:
        return some
    near = q.index_Bb.min() - k.index_Bb.max() < window
    return some & (near | (k.position_Bb.min() < first) if first else near)


def scores(q_BKGbH, k_BKbH, cap):
    """Scores of queries and keys in float32, [B, K, G, b, b]."""
    score = jnp.einsum("BKGQH,BKSH->BKGQS", q_BKGbH, k_BKbH, preferred_element_type=jnp.float32)
    return softcap(score, cap) if cap else score


def add_block(state, q, k, window, first, cap):
    """Adds what queries see of some keys to (sum of values, largest score, sum of weights)."""
    total, top, weight = state
    (q_BKGbH,), (k_BKbH, v_BKbH) = q.parts, k.parts
    mask = seen(q, k, window, first)
    score = jnp.where(mask, scores(q_BKGbH, k_BKbH, cap), _NEVER)
    higher = jnp.maximum(top, score.max(-1))
    p = jnp.where(mask, jnp.exp(score - higher[..., None]), 0.0)
    shrink = jnp.exp(top - higher)
    values = jnp.einsum(
        "BKGQS,BKSH->BKGQH", p.astype(v_BKbH.dtype), v_BKbH, preferred_element_type=jnp.float32
    )
    return total * shrink[..., None] + values, higher, weight * shrink + p.sum(-1)


def block_gradients(q, k, window, first, cap):
    """Gradients of (queries, keys, values) through one pair of blocks, in float32."""
    (q_BKGbH, g_BKGbH, partition, inner), (k_BKbH, v_BKbH) = q.parts, k.parts
    score = scores(q_BKGbH, k_BKbH, cap)
    p = jnp.where(seen(q, k, window, first), jnp.exp(score - partition[..., None]), 0.0)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dv = product("BKGQS,BKGQH->BKSH", p.astype(g_BKGbH.dtype), g_BKGbH)
    dscore = p * (product("BKGQH,BKSH->BKGQS", g_BKGbH, v_BKbH) - inner[..., None])
    if cap:
        dscore *= 1 - jnp.square(score / cap)
    dscore = dscore.astype(q_BKGbH.dtype)
    dq = product("BKGQS,BKSH->BKGQH", dscore, k_BKbH)
    return dq, product("BKGQS,BKGQH->BKSH", dscore, q_BKGbH), dv


def block_size(length, own):
    """The largest size up to BLOCK that divides some tokens; in a ring, each half of them."""
    length = length if own and length % 2 else length // 2
    return next(n for n in range(min(BLOCK, length), 0, -1) if length % n == 0)


def _cut(x, axis, size):
    """Cuts an axis into blocks of `size`, which come first."""
    shape = (*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def _paste(x, axis):
    """The inverse of `_cut`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _blocks(tokens, arrays, axis, own):
    size = block_size(tokens.index_BT.shape[1], own)
    parts = tuple(_cut(x, axis, size) for x in arrays)
    return Block(parts, *(_cut(x, 1, size) for x in tokens[1:]))


def _at(tree, i):
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _put(tree, part, i):
    update = jax.lax.dynamic_update_index_in_dim
    return jax.tree.map(lambda x, y: update(x, y, i, 0), tree, part)


def _group(x, heads):
    """[B, N, …] as [B, K, G, …]."""
    return x.reshape(x.shape[0], heads, -1, *x.shape[2:])


def forward(queries, keys, own, *, window, first, cap):
    """What queries see of keys, as `ring.Kernel` wants it."""
    (q_BNTH,), (k_BKSH, v_BKSH) = queries.arrays, keys.arrays
    q = _blocks(queries, (_group(q_BNTH, k_BKSH.shape[1]),), 3, own)
    k = _blocks(keys, (k_BKSH, v_BKSH), 2, own)
    zeros = jnp.zeros(q.parts[0].shape[:-1], jnp.float32)
    state = jnp.zeros(q.parts[0].shape, jnp.float32), zeros + _NEVER, zeros

    def of_queries(i, state):
        some = _at(q, i)

        def add(j, state):
            more = _at(k, j)
            return jax.lax.cond(
                any_seen(some, more, window, first),
                lambda state: add_block(state, some, more, window, first, cap),
                lambda state: state,
                state,
            )

        return _put(state, loop(len(k.index_Bb), add, _at(state, i)), i)

    total, top, weight = loop(len(zeros), of_queries, state)
    y = _paste(total / jnp.maximum(weight, 1e-30)[..., None], 3)
    partition = _paste(top + jnp.log(jnp.maximum(weight, 1e-30)), 3)
    return y.reshape(q_BNTH.shape), partition.reshape(q_BNTH.shape[:-1])


def backward(queries, keys, own, *, window, first, cap):
    """Gradients of (queries, keys, values), as `ring.Kernel` wants them."""
    q_BNTH, g, y, partition = queries.arrays
    k_BKSH, v_BKSH = keys.arrays
    inner = jnp.sum(g.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)
    grouped = (_group(x, k_BKSH.shape[1]) for x in (q_BNTH, g, partition, inner))
    q = _blocks(queries, grouped, 3, own)
    k = _blocks(keys, (k_BKSH, v_BKSH), 2, own)
    zeros = jnp.zeros(q.parts[0].shape, jnp.float32)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), k.parts)

    def of_queries(i, carry):
        dq, sums = carry
        some = _at(q, i)

        def add(j, carry):
            dq, sums = carry
            more, here = _at(k, j), _at(sums, j)
            dq, *here = jax.lax.cond(
                any_seen(some, more, window, first),
                lambda *so_far: tuple(
                    map(jnp.add, so_far, block_gradients(some, more, window, first, cap))
                ),
                lambda *so_far: so_far,
                *(dq, *here),
            )
            return dq, _put(sums, tuple(here), j)

        one, sums = loop(len(k.index_Bb), add, (_at(dq, i), sums))
        return _put(dq, one, i), sums

    dq, (dk, dv) = loop(len(zeros), of_queries, (zeros, sums))
    return _paste(dq, 3).reshape(q_BNTH.shape), _paste(dk, 2), _paste(dv, 2)


def blocks(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, cap, first=0):
    """Attention by blocks, over `seq` in a ring; every option is supported, but no cache.

    Arguments as in `attention.reference`, of this device's part of the rows.
    """
    options = dict(window=window, first=first, cap=cap)
    kernel = Kernel(functools.partial(forward, **options), functools.partial(backward, **options))
    return attend(q_BTNH * scale, k_BSKH, v_BSKH, rows, kernel)
