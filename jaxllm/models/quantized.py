"""Weights that are kept in 8 or 4 bits and multiplied in the dtype of the computation.

Blocks of 64 weights share their largest absolute value, and each weight is the nearest of a
table's levels times that; nf4's 16 levels are quantiles of a normal distribution. The blocks' own
scales are kept in 8 bits too, about 256 of them sharing a float32: 4.127 bits a weight in all
(QLoRA, Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E).
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

BLOCK, GROUP = 64, 256  # weights that share a scale; scales that share one of theirs
# Axes that devices split for good: no group of scales lies on two of them.
_APART = ("expert", "heads", "kv_heads", "mlp", "vocab")
_LARGEST = 127  # of int8, the same on both sides of 0
PARTS = ("codes", "scales", "groups", "offset")

# arXiv:2305.14314, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
# {format: levels from lowest to highest}; up to 16 of them go two a byte.
FORMATS = {
    "nf4": np.array(NF4, np.float32),
    "int4": np.arange(-7, 8, dtype=np.float32) / 7,
    "int8": np.arange(-_LARGEST, _LARGEST + 1, dtype=np.float32) / _LARGEST,
}


class Layout(NamedTuple):
    """How one layer's weight is cut into blocks, and their scales into groups.

    Attributes:
        at: the dimension along which blocks lie.
        block: weights of a block.
        apart: dimensions that groups do not cross.
        groups: how many there are of each place along those.
    """

    at: int
    block: int
    apart: tuple
    groups: int


def layout(shape, axes):
    """Returns the `Layout` of a weight, without a dimension of layers.

    Blocks lie along a head or the MLP's width where 64 divides it, else along whatever has the
    largest blocks; a dimension that 64 does not divide gets smaller ones.
    """
    order = {"head": 0, "mlp": 1}

    def rank(i):
        return -math.gcd(BLOCK, shape[i]), order.get(axes[i], 2), -i

    at = min(range(len(shape)), key=rank)
    block = math.gcd(BLOCK, shape[at])
    blocks = [n // block if i == at else n for i, n in enumerate(shape)]
    apart = tuple(i for i, axis in enumerate(axes) if axis in _APART)
    rest = math.prod(n for i, n in enumerate(blocks) if i not in apart)
    divisors = [g for g in range(1, rest + 1) if rest % g == 0]
    return Layout(at, block, apart, min(divisors, key=lambda g: abs(rest / g - GROUP)))


def _bytes_of(block, format):
    return max(block // 2, 1) if len(FORMATS[format]) <= 16 else block


class Quantized(nnx.Module):
    """A weight in few bits.

    Args:
        param: the `nnx.Param` whose place it takes; an array, or its shape and dtype.
        stacked: whether its first dimension counts layers.
        format: a key of FORMATS.

    Attributes:
        codes: uint8, the weight's shape, cut short where blocks lie, and a block's bytes behind.
        scales: int8, the same without those bytes: a block's scale.
        groups: float32, of each group of scales.
        offset: float32, what is added to all scales of a layer.
    """

    def __init__(self, param, *, stacked, format):
        axes, cut = param.get_metadata()["axes"], int(stacked)
        stack, shape = param.shape[:cut], param.shape[cut:]
        self.layout, self.format, self.dimensions = layout(shape, axes), format, len(shape)
        at, block, apart, groups = self.layout
        blocks = tuple(n // block if i == at else n for i, n in enumerate(shape))

        def make(shape, axes, dtype):
            zeros = jnp.zeros((*stack, *shape), dtype)
            return nnx.Param(zeros, axes=tuple(axes), inputs=())

        self.codes = make((*blocks, _bytes_of(block, format)), (*axes, "codes"), jnp.uint8)
        self.scales = make(blocks, axes, jnp.int8)
        found = [blocks[i] for i in apart], [axes[i] for i in apart]
        self.groups = make((*found[0], groups), (*found[1], "groups"), jnp.float32)
        self.offset = make((), (), jnp.float32)

    @property
    def shape(self):
        """Shape of the weight that it stands for, with the layers before where they are stacked."""
        *shape, _ = self.codes.shape
        shape[self.layout.at - self.dimensions] *= self.layout.block
        return tuple(shape)

    def parts(self):
        """Returns the arrays, for `dequantize`."""
        return self.codes[...], self.scales[...], self.groups[...], self.offset[...]

    def dense(self, dtype):
        """Returns one layer's weight in a dtype."""
        return dequantize(self.parts(), self.layout, self.format, dtype)


def _grouped(x, layout):
    """Returns (x [apart…, groups, scales of a group], how to put it back)."""
    rest = [i for i in range(x.ndim) if i not in layout.apart]
    order = (*layout.apart, *rest)
    moved = x.transpose(order)
    grouped = moved.reshape(*moved.shape[: len(layout.apart)], layout.groups, -1)

    def back(y):
        return y.reshape(moved.shape).transpose(np.argsort(order))

    return grouped, back


def quantize(w, layout, format):
    """Returns what `Quantized.parts` holds, of one layer's weight.

    Args:
        w: the weight, whole.
        layout: its `Layout`.
        format: a key of FORMATS.
    """
    at, block, _, _ = layout
    w = w.astype(jnp.float32)
    shape = (*w.shape[:at], w.shape[at] // block, block, *w.shape[at + 1 :])
    w = jnp.moveaxis(w.reshape(shape), at + 1, -1)
    largest = jnp.max(jnp.abs(w), axis=-1)
    offset = jnp.mean(largest)
    grouped, back = _grouped(largest - offset, layout)
    group = jnp.maximum(jnp.max(jnp.abs(grouped), axis=-1), 1e-20) / _LARGEST
    scale = jnp.round(grouped / group[..., None])
    scales = back(scale).astype(jnp.int8)
    # The levels of what will be read, not of what was.
    read = back(scale * group[..., None]) + offset
    levels = FORMATS[format]
    unit = w / jnp.where(read == 0, 1.0, read)[..., None]
    codes = sum((unit > middle).astype(jnp.uint8) for middle in (levels[1:] + levels[:-1]) / 2)
    if len(levels) <= 16:
        codes = codes if block > 1 else jnp.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)])
        half = codes.shape[-1] // 2
        codes = codes[..., :half] * 16 + codes[..., half:]
    return codes, scales, group, offset


def _levels(codes, format):
    """The levels that codes stand for, float32, without a look-up: a TPU has no fast one.

    Those of integers are computed; others are chosen bit by bit, 15 choices for 16 levels.
    """
    levels = FORMATS[format]
    if format.startswith("int"):
        half = len(levels) // 2
        return (codes.astype(jnp.float32) - half) / half
    found = [jnp.float32(level) for level in levels]
    for bit in range(int(math.log2(len(levels)))):
        is_set = (codes >> bit) & 1 == 1
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [jnp.where(is_set, high, low) for low, high in pairs]
    return found[0]


def dequantize(parts, layout, format, dtype):
    """Returns one layer's weight in a dtype; a device's part of it, of its part of the arrays.

    Args:
        parts: (codes, scales, groups, offset), as `quantize` returns them.
        layout, format: as there.
        dtype: of the weight.
    """
    codes, scales, group, offset = parts
    grouped, back = _grouped(scales.astype(jnp.float32), layout)
    scale = back(grouped * group[..., None]) + offset
    if len(FORMATS[format]) <= 16:
        codes = jnp.concatenate([codes >> 4, codes & 15], axis=-1)[..., : layout.block]
    w = _levels(codes, format) * scale[..., None]
    at = layout.at
    w = jnp.moveaxis(w.astype(dtype), -1, at + 1)
    return w.reshape(*w.shape[:at], -1, *w.shape[at + 2 :])
