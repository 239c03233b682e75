"""Attention by blocks, whose scores are never all in memory; and in a ring over `seq`.

Each device of a ring has some of a row's queries, keys and values. Keys and values go round, and
each device adds what its queries see of them (Liu et al. 2023, arXiv:2310.01889). Blocks of which
nothing is seen are skipped, so that with rows dealt out by `sharding.by_hand.length_order` every
device has the same work. Softmax is taken piece by piece (Milakov and Gimelshein 2018).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.layers import softcap
from jaxllm.sharding import wire

BLOCK = 512  # queries and keys a block, at most
_NEVER = -1e30  # score of a key that is not seen


class Block(NamedTuple):
    """Some tokens: what they are multiplied by, index in the row and document, [B, …] each.

    Attributes:
        parts: tuple of arrays [B, K, …, b, …] of queries, or of keys and values.
        index_Bb, segment_Bb: int32[B, b].
    """

    parts: Any
    index_Bb: Any
    segment_Bb: Any


def block_size(length):
    """The largest size up to BLOCK that divides the tokens of a device, in a ring half of them."""
    length = length // 2 if wire.size("seq") > 1 else length
    return next(n for n in range(min(BLOCK, length), 0, -1) if length % n == 0)


def cut(x, axis, size):
    """Cuts an axis into blocks of `size`, which come first."""
    shape = (*x.shape[:axis], -1, size, *x.shape[axis + 1 :])
    return jnp.moveaxis(x.reshape(shape), axis, 0)


def paste(x, axis):
    """The inverse of `cut`."""
    x = jnp.moveaxis(x, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def seen(q, k, window):
    """Mask of the keys of a block that queries of another see, bool[B, 1, 1, b, b]."""
    back = q.index_Bb[:, :, None] - k.index_Bb[:, None, :]
    mask = (back >= 0) & (q.segment_Bb[:, :, None] == k.segment_Bb[:, None, :])
    return (mask & (back < window) if window else mask)[:, None, None]


def any_seen(q, k, window):
    """False where no query of a block can see a key of another; looks at their ends only."""
    some = q.index_Bb.max() >= k.index_Bb.min()
    some &= q.segment_Bb.max() >= k.segment_Bb.min()
    some &= q.segment_Bb.min() <= k.segment_Bb.max()
    return some & (q.index_Bb.min() - k.index_Bb.max() < window) if window else some


def scores(q_BKGbH, k_BKbH, cap):
    """Scores of queries and keys in float32, [B, K, G, b, b]."""
    score = jnp.einsum("BKGQH,BKSH->BKGQS", q_BKGbH, k_BKbH, preferred_element_type=jnp.float32)
    return softcap(score, cap) if cap else score


def add_block(state, q, k, window, cap):
    """Adds what queries see of some keys to (sum of values, largest score, sum of weights)."""
    total, top, weight = state
    (q_BKGbH,), (k_BKbH, v_BKbH) = q.parts, k.parts
    mask = seen(q, k, window)
    score = jnp.where(mask, scores(q_BKGbH, k_BKbH, cap), _NEVER)
    higher = jnp.maximum(top, score.max(-1))
    p = jnp.where(mask, jnp.exp(score - higher[..., None]), 0.0)
    shrink = jnp.exp(top - higher)
    values = jnp.einsum(
        "BKGQS,BKSH->BKGQH", p.astype(v_BKbH.dtype), v_BKbH, preferred_element_type=jnp.float32
    )
    return total * shrink[..., None] + values, higher, weight * shrink + p.sum(-1)


def block_gradients(q, k, window, cap):
    """Gradients of (queries, keys, values) through one pair of blocks, in float32."""
    (q_BKGbH, g_BKGbH, partition, inner), (k_BKbH, v_BKbH) = q.parts, k.parts
    score = scores(q_BKGbH, k_BKbH, cap)
    p = jnp.where(seen(q, k, window), jnp.exp(score - partition[..., None]), 0.0)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dv = product("BKGQS,BKGQH->BKSH", p.astype(g_BKGbH.dtype), g_BKGbH)
    dscore = p * (product("BKGQH,BKSH->BKGQS", g_BKGbH, v_BKbH) - inner[..., None])
    if cap:
        dscore *= 1 - jnp.square(score / cap)
    dscore = dscore.astype(q_BKGbH.dtype)
    dq = product("BKGQS,BKSH->BKGQH", dscore, k_BKbH)
    return dq, product("BKGQS,BKGQH->BKSH", dscore, q_BKGbH), dv


def _pass_on(tree):
    """Gives arrays to the next device of the ring and takes those of the one before."""
    n = wire.size("seq")
    if n == 1:
        return tree
    ring = [(i, (i + 1) % n) for i in range(n)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, "seq", ring), tree)


def _rounds():
    return jnp.arange(wire.size("seq"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(q_BKGTH, k_BKSH, v_BKSH, rows, window, cap):
    """Attention of this device's queries over the keys of the whole ring, [B, K, G, T, H].

    Args:
        q_BKGTH: queries, already scaled.
        k_BKSH, v_BKSH: keys and values.
        rows: `attention.Rows` of this device's tokens.
        window, cap: as in `attention.reference`.
    """
    return _attend_forward(q_BKGTH, k_BKSH, v_BKSH, rows, window, cap)[0]


def _query_blocks(arrays, rows):
    """Blocks of arrays [B, K, G, T, …], stacked."""
    size = block_size(rows.query_BT.shape[-1])
    parts = tuple(cut(x, 3, size) for x in arrays)
    return Block(parts, cut(rows.query_BT, 1, size), cut(rows.query_segment_BT, 1, size))


def _key_blocks(arrays, rows):
    """Blocks of arrays [B, K, S, H], stacked."""
    size = block_size(rows.key_BS.shape[-1])
    parts = tuple(cut(x, 2, size) for x in arrays)
    return Block(parts, cut(rows.key_BS, 1, size), cut(rows.key_segment_BS, 1, size))


def _attend_forward(q_BKGTH, k_BKSH, v_BKSH, rows, window, cap):
    queries, keys = _query_blocks((q_BKGTH,), rows), _key_blocks((k_BKSH, v_BKSH), rows)
    q_blocks = queries.parts[0]
    zeros = jnp.zeros(q_blocks.shape[:-1], jnp.float32)
    state = jnp.zeros(q_blocks.shape, jnp.float32), zeros + _NEVER, zeros

    def one_block(keys, item):
        q, state = item

        def add(state, k):
            found = jax.lax.cond(
                any_seen(q, k, window),
                lambda state: add_block(state, q, k, window, cap),
                lambda state: state,
                state,
            )
            return found, None

        return keys, jax.lax.scan(add, state, keys)[0]

    def one_round(carry, _):
        keys, state = carry
        arriving = _pass_on(keys)
        state = jax.lax.scan(one_block, keys, (queries, state))[1]
        return (arriving, state), None

    (_, (total, top, weight)), _ = jax.lax.scan(one_round, (keys, state), _rounds())
    y = paste((total / weight[..., None]).astype(q_BKGTH.dtype), 3)
    partition = paste(top + jnp.log(weight), 3)
    return y, (q_BKGTH, k_BKSH, v_BKSH, rows, y, partition)


def _attend_backward(window, cap, kept, g):
    q_BKGTH, k_BKSH, v_BKSH, rows, y, partition = kept
    inner = jnp.sum(g.astype(jnp.float32) * y.astype(jnp.float32), axis=-1)
    queries = _query_blocks((q_BKGTH, g, partition, inner), rows)
    keys = _key_blocks((k_BKSH, v_BKSH), rows)
    zeros = jnp.zeros(queries.parts[0].shape, jnp.float32)
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), keys.parts)

    def one_block(carry, item):
        keys, sums = carry
        q, dq = item

        def add(dq, item):
            k, (dk, dv) = item

            def more(sums):
                return jax.tree.map(jnp.add, sums, block_gradients(q, k, window, cap))

            found = jax.lax.cond(any_seen(q, k, window), more, lambda sums: sums, (dq, dk, dv))
            return found[0], found[1:]

        dq, sums = jax.lax.scan(add, dq, (keys, sums))
        return (keys, sums), dq

    def one_round(carry, _):
        keys, sums, dq = carry
        arriving = _pass_on(keys)
        (_, sums), dq = jax.lax.scan(one_block, (keys, sums), (queries, dq))
        return (arriving, _pass_on(sums), dq), None

    (_, (dk, dv), dq), _ = jax.lax.scan(one_round, (keys, sums, zeros), _rounds())
    found = paste(dq, 3), paste(dk, 2), paste(dv, 2)
    found = (x.astype(like.dtype) for x, like in zip(found, (q_BKGTH, k_BKSH, v_BKSH), strict=True))
    return *found, None


attend.defvjp(_attend_forward, _attend_backward)


def blocks(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, cap):
    """Attention by blocks, over `seq` in a ring; every option is supported, but no cache.

    Arguments as in `attention.reference`, of this device's part of the rows.
    """
    B, T, N, H = q_BTNH.shape
    K = k_BSKH.shape[2]
    q_BKGTH = jnp.moveaxis((q_BTNH * scale).reshape(B, T, K, N // K, H), 1, 3)
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (B, T)), rows)
    y = attend(q_BKGTH, jnp.swapaxes(k_BSKH, 1, 2), jnp.swapaxes(v_BSKH, 1, 2), rows, window, cap)
    return jnp.moveaxis(y, 3, 1).reshape(B, T, N, H)
