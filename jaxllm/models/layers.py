"""The parts a transformer is built from: projection, norm, position, dropout."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxllm.dims import AXIS_OF_LETTER
from jaxllm.models import narrow
from jaxllm.models.quantized import Quantized
from jaxllm.sharding import wire

ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "relu2": lambda x: jnp.square(jax.nn.relu(x)),
}

ZEROS, ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones


# What remat="light" keeps: results of products and kernels that the backward pass needs.
KEPT = "kept"


def keep(x):
    """Marks what the backward pass should find, where it does not keep everything."""
    return checkpoint_name(x, KEPT)


def make_param(init, key, shape, axes, inputs=()):
    """A float32 parameter that carries its logical axes and, for hidden matrices, its inputs."""
    return nnx.Param(init(key, shape, jnp.float32), axes=tuple(axes), inputs=tuple(inputs))


class Projection(nnx.Module):
    """Multiplies by a weight: the one place in a model that does.

    Args:
        equation: einsum with the house letters, such as "BTD,DNH->BTNH", or "ECD,EDF->ECF" for a
            stack of weights.
        sizes: {letter: size} of the weight's letters.
        bias: whether a bias is added over the output's weight letters.
        std: standard deviation of the initial weight; default 1 / sqrt(inputs).
        hidden: False for the output head, which optimizers treat apart from hidden matrices.
        sums: whether each device of `tensor` has its own inputs, so that products are summed up.
        c: the model's configuration.
    """

    def __init__(self, equation, sizes, *, bias=False, std=None, hidden=True, sums=False, c, rngs):
        operands, self.out = equation.split("->")
        self.x, self.letters = operands.split(",")
        self.contracted = "".join(a for a in self.letters if a not in self.out)
        self.made = "".join(a for a in self.letters if a not in self.x)
        self.stacked = len(self.letters) > len(self.contracted) + len(self.made)
        self.dtype, self.flat, self.sums = c.dtype, c.products != "direct", sums
        axes = [AXIS_OF_LETTER[a] for a in self.letters]
        inputs = [AXIS_OF_LETTER[a] for a in self.contracted]
        fan_in = math.prod(sizes[a] for a in self.contracted)
        init = jax.nn.initializers.truncated_normal(fan_in**-0.5 if std is None else std)
        shape = tuple(sizes[a] for a in self.letters)
        self.w = make_param(init, rngs.params(), shape, axes, inputs if hidden else ())
        self.lora = self.scale_in = self.scale_out = None  # see `adapters`
        shape = tuple(sizes[a] for a in self.made)
        axes = [AXIS_OF_LETTER[a] for a in self.made]
        self.b = make_param(ZEROS, rngs.params(), shape, axes) if bias else None

    def __call__(self, x, only=None, sizes=None):
        """Returns the projection of x in the dtype of the computation.

        Args:
            x: the input.
            only: (first, count) of the weight's second dimension that are asked for; None for all.
            sizes: where x is [M, …], sorted by the weights of a stack: how many each has, int32[E].
        """
        x = x.astype(self.dtype)
        x = x if self.scale_in is None else self.scale_in(x, sizes=sizes)
        if isinstance(self.w, Quantized):
            # Made dense anew in the backward pass: else all layers' weights would be kept so.
            y = jax.checkpoint(lambda x: self._multiply(x, self._weight(only), sizes))(x)
        else:
            y = self._multiply(x, self._weight(only), sizes)
        if self.lora is not None:
            y = self.lora(self, x, y, self._weight, only, sizes)
        y = wire.sum_parts(y) if self.sums else y
        if self.b is not None:
            b = self.b[...].astype(self.dtype)
            y = y + (jax.lax.dynamic_slice_in_dim(b, *only, axis=0) if only else b)
        return y if self.scale_out is None else self.scale_out(y, only, sizes)

    def _weight(self, only):
        """The weight in the dtype of the computation, or the part of it that is asked for."""
        if isinstance(self.w, Quantized):
            w = self.w.dense(self.dtype)
        else:
            w = self.w[...]
            w = w if narrow.is_narrow(w, self.dtype) else w.astype(self.dtype)
        return jax.lax.dynamic_slice_in_dim(w, *only, axis=1) if only else w

    def _multiply(self, x, w, sizes):
        if sizes is not None:
            return jax.lax.ragged_dot(x, w, sizes)
        if self.stacked:
            return jnp.einsum(f"{self.x},{self.letters}->{self.out}", x, w)
        return self.multiply(x, w, len(self.contracted))

    def multiply(self, x, w, contracted):
        """Contracts the last axes of x with the first of w, in the way of this platform."""
        if narrow.is_narrow(w, self.dtype):
            return narrow_product(x, w, contracted)
        return flat_product(x, w, contracted) if self.flat else jnp.tensordot(x, w, contracted)


def flat_product(x, w, contracted):
    """Contracts the last axes of x with the first of w, as one product of two matrices.

    XLA's CPU backend runs the backward pass of a product over [B, T, D] two to three times
    slower than that of the same product over [B·T, D]. A TPU's fuses what stands before and after
    a product into it, but not through these changes of shape.
    """
    kept, made = x.shape[: x.ndim - contracted], w.shape[contracted:]
    inner = math.prod(w.shape[:contracted])
    y = product(x.reshape(-1, inner), w.reshape(inner, -1))
    return y.reshape(*kept, *made)


def narrow_product(x, w, contracted):
    """The same with a weight of `narrow`."""
    kept = x.shape[: x.ndim - contracted]
    x_MD = x.reshape(math.prod(kept), -1)
    if isinstance(w, narrow.Int8):
        return narrow.product(x_MD, w).reshape(*kept, *w.made)
    y = narrow.product(x_MD, w.reshape(x_MD.shape[1], -1))
    return y.reshape(*kept, *w.shape[contracted:])


def product(x, w):
    """x [M, D] times w [D, F]; of bfloat16 by the way that a CPU has for it."""
    return narrow.few_rows(x, w).astype(x.dtype) if x.dtype == jnp.bfloat16 else x @ w


class Norm(nnx.Module):
    """RMS norm (Zhang and Sennrich 2019) or layer norm (Ba et al. 2016) over the last axis.

    Statistics are taken in float32 whatever the dtype of the computation.
    """

    def __init__(self, c, size, letter, *, kind=None, rngs):
        self.kind, self.eps, self.plus_one = kind or c.norm, c.norm_eps, c.norm_plus_one
        axes = (AXIS_OF_LETTER[letter],)
        self.scale = make_param(ZEROS if self.plus_one else ONES, rngs.params(), (size,), axes)
        biased = c.norm_bias and self.kind == "layer"
        self.bias = make_param(ZEROS, rngs.params(), (size,), axes) if biased else None

    def __call__(self, x):
        """Returns x normalised, in the dtype of x."""
        y = x.astype(jnp.float32)
        if self.kind == "layer":
            y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        y = y * (self.scale[...] + 1 if self.plus_one else self.scale[...])
        return (y if self.bias is None else y + self.bias[...]).astype(x.dtype)


class HeadsNorm(nnx.Module):
    """RMS norm over all heads of a token together (OLMo 2, arXiv:2501.00656, section 3.1)."""

    def __init__(self, c, heads, letter, *, rngs):
        self.eps, self.heads = c.norm_eps, heads
        axes = (AXIS_OF_LETTER[letter], AXIS_OF_LETTER["H"])
        self.scale = make_param(ONES, rngs.params(), (heads, c.head_width), axes)

    def __call__(self, x_BTNH):
        """Returns x normalised, in its dtype; heads may be split over `tensor`."""
        y_BTNH = x_BTNH.astype(jnp.float32)
        sum_BT11 = jnp.sum(jnp.square(y_BTNH), axis=(-2, -1), keepdims=True)
        if x_BTNH.shape[-2] < self.heads:
            sum_BT11 = wire.sum_heads(sum_BT11)
        mean_BT11 = sum_BT11 / (self.heads * x_BTNH.shape[-1])
        y_BTNH = y_BTNH * jax.lax.rsqrt(mean_BT11 + self.eps) * self.scale[...]
        return y_BTNH.astype(x_BTNH.dtype)


def rope_frequencies(c, *, windowed, length=0):
    """Radians a position for each rotated pair, float32[rotated / 2].

    Windowed layers use `rope_local_base` and are never stretched (Gemma 3 report, section 2).
    Scaling "linear" divides positions by `rope_factor` (Chen et al. 2023, arXiv:2306.15595);
    "llama3" divides only long wavelengths, with a ramp between (Llama 3.1 model card); "yarn" does
    so with a ramp over the pairs (Peng et al. 2023, arXiv:2309.00071, section 3.2); "longrope"
    divides each pair's by its own factor, another one in rows of more than `rope_original` tokens
    (Ding et al. 2024, arXiv:2402.13753; Phi-3 report).

    Args:
        c: the model's configuration.
        windowed: whether of windowed layers.
        length: tokens that a row, or the cache of a row, has room for.
    """
    rotated = int(c.head_width * c.rope_fraction)
    base = c.rope_local_base if windowed else c.rope_base
    frequency = base ** (-jnp.arange(0, rotated, 2, dtype=jnp.float32) / rotated)
    if windowed or c.rope_scaling == "none":
        return frequency
    if c.rope_scaling == "linear":
        return frequency / c.rope_factor
    if c.rope_scaling == "longrope":
        factors = c.rope_long if length > c.rope_original else c.rope_short
        return frequency / jnp.asarray(factors, jnp.float32)
    if c.rope_scaling == "yarn":
        kept = _yarn_kept(c, base, rotated)
        return frequency * (kept + (1 - kept) / c.rope_factor)
    turns = c.rope_original * frequency / (2 * jnp.pi)  # over the original positions
    ramp = (turns - c.rope_low_factor) / (c.rope_high_factor - c.rope_low_factor)
    kept = jnp.clip(ramp, 0.0, 1.0)
    return frequency * (kept + (1 - kept) / c.rope_factor)


def _yarn_kept(c, base, rotated):
    """How much of each pair's frequency YaRN keeps, from 1 (short wavelengths) to 0."""

    def pair_of(turns):  # that turns so often over the original positions
        return rotated * math.log(c.rope_original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair_of(c.rope_high_factor)), 0)
    high = min(math.ceil(pair_of(c.rope_low_factor)), rotated - 1)
    ramp = (jnp.arange(rotated // 2, dtype=jnp.float32) - low) / max(high - low, 0.001)
    return 1 - jnp.clip(ramp, 0.0, 1.0)


def rope_angles(c, position_BT, *, windowed, length=0):
    """Returns (cos, sin) of every rotated pair, float32[B, T, rotated / 2].

    Arguments as of `rope_frequencies`.
    """
    frequency = rope_frequencies(c, windowed=windowed, length=length)
    angle = position_BT[..., None].astype(jnp.float32) * frequency
    size = 1.0 if windowed else c.rope_attention
    return jnp.cos(angle) * size, jnp.sin(angle) * size


def rotate(x_BTNH, angles):
    """Rotates pairs (i, i + rotated / 2) of each head (Su et al. 2021, arXiv:2104.09864).

    Dimensions past the rotated ones are left alone.
    """
    cos, sin = (a[:, :, None, :].astype(x_BTNH.dtype) for a in angles)
    half = cos.shape[-1]
    first, second, rest = jnp.split(x_BTNH, (half, 2 * half), axis=-1)
    parts = [first * cos - second * sin, second * cos + first * sin, rest]
    return jnp.concatenate(parts[: 2 if rest.shape[-1] == 0 else 3], axis=-1)


def rotate_by_product(x_BTNH, angles):
    """The same as `rotate`: x · cos + (x with each pair turned by a right angle) · sin.

    The turn is a product with a matrix of 0, 1 and -1, exact in any dtype. A TPU fuses both sums
    into it, where cutting and joining heads costs four passes over them.
    """
    cos, sin = (a[:, :, None, :].astype(x_BTNH.dtype) for a in angles)
    half, width = cos.shape[-1], x_BTNH.shape[-1]
    pair = np.arange(half)
    turn = np.zeros((width, width))
    turn[pair + half, pair], turn[pair, pair + half] = -1, 1
    rest = ((0, 0),) * 3 + ((0, width - 2 * half),)
    cos = jnp.pad(jnp.concatenate([cos, cos], axis=-1), rest, constant_values=1)
    sin = jnp.pad(jnp.concatenate([sin, sin], axis=-1), rest)
    return x_BTNH * cos + jnp.tensordot(x_BTNH, jnp.asarray(turn, x_BTNH.dtype), 1) * sin


@jax.custom_vjp
def look_up(table, rows):
    """Returns rows of a table [V, D]; their gradients add up in float32, whatever its dtype."""
    return jnp.take(table, rows, axis=0)


def _look_up_backward(kept, g):
    like, rows = kept
    sums = jnp.zeros(like.shape, jnp.float32).at[rows].add(g.astype(jnp.float32))
    return sums.astype(like.dtype), None


look_up.defvjp(
    lambda table, rows: (jnp.take(table, rows, axis=0), (table, rows)), _look_up_backward
)


def softcap(x, cap):
    """Squashes x smoothly into (-cap, cap) (Gemma 2 report, section 2)."""
    return cap * jnp.tanh(x / cap)


def split_keys(key_B, count):
    """Splits one key a row into `count` of them: keys [count, B]; None stays None."""
    if key_B is None:
        return (None,) * count
    return jnp.swapaxes(jax.vmap(lambda key: jax.random.split(key, count))(key_B), 0, 1)


def each_token(draw, key_B, index_BT):
    """Returns draw(key) of every token, [B, T, …], whose key is of its row and its index in it.

    So what is drawn depends on neither devices nor pieces.
    """

    def of_token(key, index):
        return draw(jax.random.fold_in(key, index))

    return jax.vmap(jax.vmap(of_token, (None, 0)))(key_B, index_BT)


def dropout(x, rate, key_B, index_BT, split=False):
    """Zeroes a fraction `rate` of x [B, T, …] and scales up the rest; does nothing without keys.

    Args:
        split: whether axis 2 is this device's part of what is split over `tensor`.
    """
    if key_B is None or rate == 0:
        return x
    parts, own = wire.size("tensor") if split else 1, x.shape[2]
    shape = (own * parts, *x.shape[3:])

    def of_token(key):
        return jax.random.bernoulli(key, 1 - rate, shape)

    keep = each_token(of_token, key_B, jnp.broadcast_to(index_BT, x.shape[:2]))
    if parts > 1:
        keep = jax.lax.dynamic_slice_in_dim(keep, wire.index("tensor") * own, own, axis=2)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
