"""Parts that a fine-tuning method puts into a model beside its own: each changes nothing at first.

The modules of a model hold None where such a part may stand (`Projection.lora`, `Stack.prompt`, …);
`jaxllm.finetune` puts them there. Axis 0 of a part of stacked layers counts layers.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.dims import AXIS_OF_LETTER
from jaxllm.models.layers import (
    ACTIVATIONS,
    ONES,
    ZEROS,
    Projection,
    dropout,
    look_up,
    make_param,
)
from jaxllm.sharding import wire


def axes_of(letters):
    """Logical axes of a weight's letters."""
    return tuple(AXIS_OF_LETTER[a] for a in letters)


class Lora(nnx.Module):
    """Two thin matrices beside a weight: y = W x + scale · B A x (arXiv:2106.09685).

    Args:
        projection: the `Projection`; its weight may be stacked by layer.
        rank: of A and B.
        scale: of their product.
        rate: part of the inputs of A that is dropped in training.
        magnitude: whether each output's weights have a length that is learned apart: m · V / |V|
            with V = W + scale · B A; |V| has no gradient (DoRA, arXiv:2402.09353).
        key: random key; A is uniform, B zero, so that the model is at first what it was.
    """

    def __init__(self, projection, *, rank, scale, rate=0.0, magnitude=False, key):
        letters, made = projection.letters, projection.made
        stack, sizes = _sizes(projection)
        kept = letters[:1] if projection.stacked else ""
        outside = "".join(a for a in letters if a in made and a not in kept)
        ins, outs = kept + projection.contracted + "R", kept + "R" + outside
        sizes["R"] = rank
        bound = math.prod(sizes[a] for a in projection.contracted) ** -0.5

        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        def make(init, letters, inputs=""):
            whole = (*stack, *(sizes[a] for a in letters))
            return make_param(init, key, whole, axes_of(letters), axes_of(inputs))

        self.a = make(uniform, ins, projection.contracted)
        self.b = make(ZEROS, outs, "R")
        self.m = make(ONES, projection.made) if magnitude else None
        self.scale, self.rate, self.drop = scale, rate, None

    def __call__(self, projection, x, y, weight, only, sizes):
        """Returns y = W x with what this part adds, before parts over `tensor` are summed up.

        Args:
            projection: whose part this is.
            x, only, sizes: as in `Projection.__call__`.
            y: W x.
            weight: function of `only` that gives W.
        """
        a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
        b = jax.lax.dynamic_slice_in_dim(b, *only, axis=1) if only else b
        if self.drop is not None:
            key_B, index_BT = self.drop
            other = index_BT.shape[1] != x.shape[1]  # an encoder's tokens
            index_BT = jnp.arange(x.shape[1])[None] if other else index_BT
            x = dropout(x, self.rate, key_B, index_BT, split=projection.sums)
        if sizes is not None:
            added = jax.lax.ragged_dot(jax.lax.ragged_dot(x, a, sizes), b, sizes)
        elif projection.stacked:
            low = projection.x.replace(projection.contracted, "R")
            E, made = projection.letters[0], projection.letters[-1]
            h = jnp.einsum(f"{projection.x},{E}{projection.contracted}R->{low}", x, a)
            added = jnp.einsum(f"{low},{E}R{made}->{projection.out}", h, b)
        else:
            h = projection.multiply(x, a, len(projection.contracted))
            added = projection.multiply(h * jnp.asarray(self.scale, h.dtype), b, 1)
            if self.m is None:
                return y + added
            m = self.m[...]
            m = jax.lax.dynamic_slice_in_dim(m, *only, axis=0) if only else m
            axes = tuple(range(len(projection.contracted)))
            size = length(weight(only), a, b, self.scale, axes, split=projection.sums)
            size = jax.lax.stop_gradient(size)
            return (y + added) * (m / size).astype(y.dtype)
        return y + added * jnp.asarray(self.scale, added.dtype)


def _sizes(projection):
    """Returns (sizes of what weights are stacked by, {letter: size}) of a projection's weight."""
    letters, shape = projection.letters, projection.w.shape
    stack = shape[: len(shape) - len(letters)]
    return stack, dict(zip(letters, shape[len(stack) :], strict=True))


def length(w, a, b, scale, axes, split=False):
    """Returns the length of each output's weights of W + scale · B A, float32.

    Args:
        w, a, b: of one layer.
        scale: of the product.
        axes: dimensions of W that are its inputs.
        split: whether these are split over `tensor`.
    """
    whole = w.astype(jnp.float32) + scale * jnp.tensordot(a, b, 1).astype(jnp.float32)
    squares = jnp.sum(jnp.square(whole), axis=axes)
    return jnp.sqrt(wire.sum_heads(squares) if split else squares)


class Scale(nnx.Module):
    """A factor for each input or output of a projection (IA3, Liu et al. 2022, arXiv:2205.05638).

    Args:
        projection: the `Projection`.
        of_inputs: whether of its inputs; else of its outputs.
    """

    def __init__(self, projection, *, of_inputs):
        letters, (stack, sizes) = projection.letters, _sizes(projection)
        own = projection.contracted if of_inputs else projection.made
        kept = letters[:1] if projection.stacked and letters[0] not in own else ""
        own = kept + own
        shape = (*stack, *(sizes[a] for a in own))
        self.w = make_param(ONES, None, shape, axes_of(own))
        self.stacked = projection.stacked

    def __call__(self, x, only=None, sizes=None):
        """Returns x times the factors; `only` and `sizes` as in `Projection.__call__`."""
        w = self.w[...].astype(x.dtype)
        w = jax.lax.dynamic_slice_in_dim(w, *only, axis=0) if only else w
        if sizes is not None:  # sorted by expert
            return x * jnp.repeat(w, sizes, axis=0, total_repeat_length=x.shape[0])
        return x * (w[:, None] if self.stacked else w)


class Bottleneck(nnx.Module):
    """x + up(activation(down(x))), where up is zero at first.

    Source: Houlsby et al. 2019, arXiv:1902.00751.
    """

    def __init__(self, c, width, activation, *, rngs):
        sizes = {"D": c.width, "R": width}
        self.down = Projection("BTD,DR->BTR", sizes, bias=True, c=c, rngs=rngs)
        self.up = Projection("BTR,RD->BTD", sizes, bias=True, std=0.0, c=c, rngs=rngs)
        self.activation = activation

    def __call__(self, x_BTD):
        """Returns [B, T / tensor, D] of what a part of a layer gives."""
        return x_BTD + self.up(ACTIVATIONS[self.activation](self.down(x_BTD)))


class Prompt(nnx.Module):
    """Vectors in the place of the embeddings of a document's first tokens.

    Source: Lester et al. 2021, arXiv:2104.08691.
    """

    def __init__(self, c, tokens, *, key):
        init = jax.nn.initializers.truncated_normal(0.02)
        self.table = make_param(init, key, (tokens, c.width), ("prompt", "embed"))

    def __call__(self, x_BTD, position_BT):
        """Returns embeddings; position_BT: place of each token in its document."""
        return _put(self.table[...], x_BTD, position_BT)


class Prefix(nnx.Module):
    """Keys and values in the place of those of a document's first tokens, in each layer.

    Source: Li and Liang 2021, arXiv:2101.00190.
    """

    def __init__(self, c, tokens, hidden, *, key):
        keys = jax.random.split(key)
        init = jax.nn.initializers.truncated_normal(hidden**-0.5 if hidden else 0.02)
        first, axis = (hidden, "rank") if hidden else (tokens, "prompt")
        shape, axes = (c.layers, first, c.kv_heads, c.head_width), (axis, "kv_heads", "head")
        self.k = make_param(init, keys[0], shape, axes)
        self.v = make_param(init, keys[1], shape, axes)
        biased, shape = hidden > 0, (c.layers, c.kv_heads, c.head_width)
        self.k_bias = make_param(ZEROS, None, shape, axes[1:]) if biased else None
        self.v_bias = make_param(ZEROS, None, shape, axes[1:]) if biased else None
        self.source = None  # what `PrefixSource` gives, where there is one

    def __call__(self, k_BSKH, v_BSKH, position_BS, only=None):
        """Returns keys, already rotated, and values; `only`: as in `Projection.__call__`."""
        k_PKH, v_PKH = self.made()
        if only:
            k_PKH = jax.lax.dynamic_slice_in_dim(k_PKH, *only, axis=1)
            v_PKH = jax.lax.dynamic_slice_in_dim(v_PKH, *only, axis=1)
        return _put(k_PKH, k_BSKH, position_BS), _put(v_PKH, v_BSKH, position_BS)

    def made(self):
        """Returns (keys, values), float32[P, K, H], of one layer."""
        if self.source is None:
            return self.k[...], self.v[...]
        k_PKH = jnp.tensordot(self.source, self.k[...], 1) + self.k_bias[...]
        return k_PKH, jnp.tensordot(self.source, self.v[...], 1) + self.v_bias[...]


class PrefixSource(nnx.Module):
    """What all layers' keys and values are made of, while a prefix is trained.

    Source: Li and Liang 2021, section 4.3: trained by themselves they are less stable.
    """

    def __init__(self, c, tokens, hidden, *, key):
        keys, normal = jax.random.split(key), jax.nn.initializers.truncated_normal
        self.table = make_param(normal(1.0), keys[0], (tokens, c.width), ("prompt", "embed"))
        shape, axes = (c.width, hidden), ("embed", "rank")
        self.w = make_param(normal(c.width**-0.5), keys[1], shape, axes, ("embed",))
        self.b = make_param(ZEROS, None, (hidden,), ("rank",))

    def __call__(self):
        """Returns float32[P, hidden]."""
        x_PD, w = self.table[...].astype(jnp.float32), self.w[...].astype(jnp.float32)
        return jnp.tanh(x_PD @ w + self.b[...])


def _put(table, x, position):
    """Rows of a table [P, …] in the place of those of x [B, T, …] whose position is below P."""
    tokens = table.shape[0]
    found = look_up(table.astype(x.dtype), jnp.minimum(position, tokens - 1))
    here = (position < tokens).reshape(*position.shape, *(1,) * (x.ndim - 2))
    return jnp.where(here, found, x)


def inform(block, key_B, index_BT, source):
    """Tells the parts of one layer what they read besides their input.

    Args:
        block: the layer.
        key_B: one dropout key a row, or None.
        index_BT: as in `Context`.
        source: what `PrefixSource` returned, or None.
    """
    found = [part for _, part in nnx.iter_modules(block)]
    for part in found:
        if isinstance(part, Prefix):
            part.source = nnx.data(source)
    drops = [part for part in found if isinstance(part, Lora) and part.rate]
    if key_B is None or not drops:
        return
    index_BT = wire.join(jnp.broadcast_to(index_BT, (key_B.shape[0], index_BT.shape[1])))
    for i, lora in enumerate(drops):
        keys_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, i)
        lora.drop = nnx.data((keys_B, index_BT))
