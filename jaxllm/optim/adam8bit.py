"""Adam with moments in 8 bits, quantized in blocks along the last axis.

Codes have the parameter's shape, so they shard as it does; each block of the last axis has one
float32 maximum. A block is coded on a scale that is linear within each power of ten, from 1e-7 of
the block's maximum up to it, with twice as many codes in each higher one: small entries keep a
small relative error next to large ones.

Source: Dettmers et al. (2022), arXiv:2110.02861, sections 2.1 (block-wise) and 1.3 (dynamic tree).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm.optim.matrices import info_of, is_lookup, size, split
from jaxllm.trees import map_with_path

DECADES = 7
TOP = 2**DECADES  # where the scale of positive numbers ends


class Quantized(NamedTuple):
    """An array in 8 bits.

    Attributes:
        codes: uint8, the shape of the array.
        maximum: float32, largest magnitude of each block; the last axis counts blocks.
    """

    codes: jax.Array
    maximum: jax.Array


class State(NamedTuple):
    """First and second moments, trees of `Quantized` or float32 arrays, and updates so far."""

    count: jax.Array
    mu: dict
    nu: dict


def _position(x):
    """Where x in [0, 1] lies on the scale: decade i, from 10^(i-7) to 10^(i-6), is 2^i long.

    Below the first decade the position is under 1. The scale is continuous, so that it does not
    matter to which side an inexact logarithm puts a power of ten.
    """
    i = jnp.clip(jnp.floor(jnp.log10(x)) + DECADES, 0, DECADES - 1)
    return jnp.exp2(i) * (1.0 + (x * 10.0 ** (DECADES - i) - 1.0) / 9.0)


def _value(position):
    """The inverse of `_position`, for positions from 1 to TOP."""
    i = jnp.clip(jnp.floor(jnp.log2(position)), 0, DECADES - 1)
    return 10.0 ** (i - DECADES) * (1.0 + 9.0 * (position * jnp.exp2(-i) - 1.0))


def quantize(x, block, signed):
    """Codes an array in blocks of its last axis.

    Args:
        x: float array of at least one dimension.
        block: entries that share a maximum; the last block of a row may be shorter.
        signed: whether x has negative entries. Without, each decade has twice the codes, and a
            positive entry never rounds to zero, since Adam divides by it.

    Returns:
        Quantized. Decoded entries err by at most half of their interval on the scale; the largest
        entry of a block is exact where it is positive.
    """
    pieces = _blocks(x.astype(jnp.float32), block)
    maximum = jnp.max(jnp.abs(pieces), axis=-1)
    scaled = jnp.abs(pieces) / jnp.where(maximum > 0, maximum, 1.0)[..., None]
    if signed:
        # There is a code for 1 (TOP) and none for -1, which takes the one before.
        whole = jnp.where(scaled == 1, TOP, jnp.minimum(jnp.floor(_position(scaled)), TOP - 1))
        down = TOP + jnp.minimum(whole, TOP - 1)
        code = jnp.where((pieces < 0) & (whole >= 1), down, whole)
    else:
        whole = jnp.where(scaled == 1, 2 * TOP, jnp.floor(2 * _position(scaled)))
        code = jnp.where(scaled > 0, jnp.clip(whole - 1, 1, 2 * TOP - 1), 0.0)
    return Quantized(_unblock(code, x.shape).astype(jnp.uint8), maximum)


def dequantize(quantized, block, signed):
    """Returns the float32 array that `quantize` coded with the same block and sign."""
    codes, maximum = quantized
    code = _blocks(codes.astype(jnp.float32), block)
    whole = jnp.where(signed & (code > TOP), code - TOP, code)
    last, position = (TOP, whole + 0.5) if signed else (2 * TOP - 1, (whole + 1.5) / 2)
    scaled = jnp.where(code == last, 1.0, jnp.where(code == 0, 0.0, _value(position)))
    scaled = jnp.where(signed & (code > TOP), -scaled, scaled)
    return _unblock(scaled * maximum[..., None], codes.shape)


def _blocks(x, block):
    """[..., n] -> [..., blocks, block], padded with zeros; one block where n is shorter."""
    n = x.shape[-1]
    block = min(block, n)
    if n % block:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -n % block)])
    return x.reshape(*x.shape[:-1], -1, block)


def _unblock(pieces, shape):
    """The inverse of `_blocks`."""
    return pieces.reshape(*pieces.shape[:-2], -1)[..., : shape[-1]]


def scale_by_adam8bit(infos, *, beta1, beta2, eps, block, min_size):
    """Makes Adam's rescaling with 8-bit moments.

    Args:
        infos: {path: ParamInfo}.
        beta1, beta2, eps: as in Adam.
        block: entries that share a maximum.
        min_size: parameters with fewer elements in a layer keep float32 moments; so do embeddings
            and the output head, whose rows see few large gradients (section 2.3 of the source).
    """

    def is_small(path):
        info = info_of(infos, path)
        layer = range(len(split(info).stack), len(info.shape))
        return is_lookup(info) or size(info, layer) < min_size

    def pack(path, x, signed):
        return x if is_small(path) else quantize(x, block, signed)

    def unpack(path, moment, signed):
        return moment if is_small(path) else dequantize(moment, block, signed)

    def init(params):
        def zeros(signed):
            return map_with_path(
                lambda path, p: pack(path, jnp.zeros(p.shape, jnp.float32), signed), params
            )

        return State(jnp.zeros([], jnp.int32), zeros(True), zeros(False))

    def update(grads, state, params=None):
        del params
        count = optax.safe_increment(state.count)

        def moment(beta, old, power, signed):
            def one(path, g, m):
                g = g.astype(jnp.float32) ** power
                return beta * unpack(path, m, signed) + (1 - beta) * g

            return map_with_path(one, grads, old)

        mu = moment(beta1, state.mu, 1, True)
        nu = moment(beta2, state.nu, 2, False)
        mu_hat = optax.tree.bias_correction(mu, beta1, count)
        nu_hat = optax.tree.bias_correction(nu, beta2, count)
        updates = jax.tree.map(
            lambda m, v, g: (m / (jnp.sqrt(v) + eps)).astype(g.dtype), mu_hat, nu_hat, grads
        )
        mu = map_with_path(lambda path, m: pack(path, m, True), mu)
        nu = map_with_path(lambda path, v: pack(path, v, False), nu)
        return updates, State(count, mu, nu)

    return optax.GradientTransformation(init, update)
