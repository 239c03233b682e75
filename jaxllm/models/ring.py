"""Ring attention: each device of `seq` has some of a row's queries, keys and values.

Keys and values go round, and each device adds what its queries see of them (Liu et al. 2023,
arXiv:2310.01889). With rows dealt out by `sharding.by_hand.deal` every device has the same work in
every round. On one device it is the kernel alone.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.layers import keep
from jaxllm.sharding import wire


class Tokens(NamedTuple):
    """Some tokens of every row.

    Attributes:
        arrays: tuple of arrays [B, heads, T, …].
        index_BT: place of each in its row, int32.
        segment_BT: document of each, int32.
        position_BT: place of each in its document, int32.
    """

    arrays: Any
    index_BT: Any
    segment_BT: Any
    position_BT: Any


class Kernel(NamedTuple):
    """How some queries look at some keys.

    Attributes:
        forward: (Tokens (q,), Tokens (k, v), own) -> (values [B, N, T, H] weighted by softmax over
            these keys alone, logarithm of the sum of weights [B, N, T]), float32. `own`: whether
            the keys are of the same tokens as the queries.
        backward: (Tokens (q, gradient, final values, final logarithm), Tokens (k, v), own) ->
            gradients of (q, k, v), float32.
    """

    forward: Callable
    backward: Callable


def loop(count, body, carry):
    """Returns carry after body(i, carry) for i below `count`.

    A while loop: of a scan over arrays `jax.checkpoint` keeps every iteration's parts for the
    backward pass, although `attend` has a gradient of its own.
    """
    start = jnp.zeros((), jnp.int32), carry
    return jax.lax.while_loop(lambda c: c[0] < count, lambda c: (c[0] + 1, body(*c)), start)[1]


def merge(one, other):
    """Joins what queries see of some keys with what they see of others.

    Args:
        one, other: (values, logarithm of the sum of weights), as `Kernel.forward` gives them.
    """
    (y, partition), (more, weight) = one, other
    both = jnp.logaddexp(partition, weight)
    y = y * jnp.exp(partition - both)[..., None] + more * jnp.exp(weight - both)[..., None]
    return y, both


def _pass_on(tree):
    """Gives arrays to the next device of the ring and takes those of the one before."""
    n = wire.size("seq")
    ring = [(i, (i + 1) % n) for i in range(n)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, "seq", ring), tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(q_BTNH, k_BSKH, v_BSKH, rows, kernel):
    """Attention of this device's queries over the keys of the whole ring, [B, T, N, H].

    Args:
        q_BTNH: queries, already scaled.
        k_BSKH, v_BSKH: keys and values.
        rows: `attention.Rows` of this device's tokens.
        kernel: `Kernel`.
    """
    return _forward(q_BTNH, k_BSKH, v_BSKH, rows, kernel)[0]


def _heads_first(*arrays):
    return tuple(jnp.swapaxes(x, 1, 2) for x in arrays)


def _tokens(q_arrays, k_arrays, rows):
    shape = q_arrays[0].shape[0], q_arrays[0].shape[2]
    position = rows.query_BT if rows.key_position_BS is None else rows.key_position_BS
    places = rows.query_BT, rows.query_segment_BT, position
    places = tuple(jnp.broadcast_to(x, shape) for x in places)
    return Tokens(q_arrays, *places), Tokens(k_arrays, *places)


def _forward(q_BTNH, k_BSKH, v_BSKH, rows, kernel):
    q, *kv = _heads_first(q_BTNH, k_BSKH, v_BSKH)
    queries, keys = _tokens((q,), tuple(kv), rows)
    y, partition = kernel.forward(queries, keys, True)

    def one_round(_, carry):
        keys, *seen = carry
        arriving = _pass_on(keys)  # on its way while these are looked at
        return arriving, *merge(seen, kernel.forward(queries, keys, False))

    if wire.size("seq") > 1:
        start = _pass_on(keys), y, partition
        _, y, partition = loop(wire.size("seq") - 1, one_round, start)
    y, partition = keep(y.astype(q.dtype)), keep(partition)
    return jnp.swapaxes(y, 1, 2), (q, *kv, rows, y, partition)


def _backward(kernel, kept, g):
    q, k, v, rows, y, partition = kept
    queries, keys = _tokens((q, *_heads_first(g), y, partition), (k, v), rows)
    dq, *sums = kernel.backward(queries, keys, True)

    def one_round(_, carry):
        keys, dq, sums = carry
        arriving, sums = _pass_on(keys), _pass_on(sums)
        more, *here = kernel.backward(queries, keys, False)
        return arriving, dq + more, [a + b for a, b in zip(sums, here, strict=True)]

    if wire.size("seq") > 1:
        start = _pass_on(keys), dq, sums
        _, dq, sums = loop(wire.size("seq") - 1, one_round, start)
        sums = _pass_on(sums)  # home
    pairs = zip((dq, *sums), (q, k, v), strict=True)
    return *_heads_first(*(x.astype(like.dtype) for x, like in pairs)), None


attend.defvjp(_forward, _backward)
