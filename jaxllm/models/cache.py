"""The key-value cache that decoding fills."""

import jax.numpy as jnp


def make(c, batch, length):
    """Returns an empty cache for `batch` rows of up to `length` tokens.

    Returns:
        {"k", "v": [L, B, S, K, H] in the dtype of the computation,
         "segment", "position": int32[B, S] (segment is 0 where nothing is written),
         "at": int32[] next free index}.
    """
    shape = (c.layers, batch, length, c.kv_heads, c.head_width)
    return {
        "k": jnp.zeros(shape, c.dtype),
        "v": jnp.zeros(shape, c.dtype),
        "segment": jnp.zeros((batch, length), jnp.int32),
        "position": jnp.zeros((batch, length), jnp.int32),
        "at": jnp.zeros((), jnp.int32),
    }
