"""Digests of parameters, the same on any mesh and number of hosts."""

import hashlib
import json

import jax
import jax.numpy as jnp


def digest(params):
    """Returns a digest of {path: array}: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(of(params), sort_keys=True).encode()).hexdigest()


def of(params):
    """Returns {path: [shape…, two sums of its bits]} of {path: array}."""
    sums = jax.device_get(jax.jit(_checksums)(params))
    return {path: [list(x.shape), *map(int, sums[path])] for path, x in params.items()}


def _checksums(params):
    """Two sums, modulo 2^32, of each array's bits, each weighted by where it stands."""

    def one(x):
        bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
        place = jnp.zeros((), jnp.uint32)
        for axis, size in enumerate(x.shape):
            along = jnp.arange(size, dtype=jnp.uint32)
            place = place * jnp.uint32(size) + along.reshape(-1, *(1,) * (x.ndim - 1 - axis))
        mixed = (bits ^ (place * jnp.uint32(0x9E3779B9))) * jnp.uint32(0x85EBCA6B)
        mixed ^= mixed >> 13
        return jnp.sum(mixed, dtype=jnp.uint32), jnp.sum(mixed * (2 * place + 1), dtype=jnp.uint32)

    return {path: one(x) for path, x in params.items()}
