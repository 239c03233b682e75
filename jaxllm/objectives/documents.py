"""Sums over the documents of a row, also where several devices share the row."""

import jax
import jax.numpy as jnp

from jaxllm.sharding import wire


def sums(x_BT, segment_BT):
    """Returns the sum over each document, float32[B, S], S more than any row has documents.

    Args:
        x_BT: a device's part of each row.
        segment_BT: int32, documents of a row from 1; 0 is padding.
    """
    ways = wire.size("seq") * wire.size("tensor")
    room = x_BT.shape[1] * ways + 1  # no row has more documents than places

    def add_up(x_T, segment_T):
        return jnp.zeros(room, jnp.float32).at[segment_T].add(x_T)

    return wire.sum_tokens(wire.sum_row(jax.vmap(add_up)(x_BT, segment_BT)))
