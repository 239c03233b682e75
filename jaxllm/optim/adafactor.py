"""Adafactor's second moment, factored by what a matrix contracts over.

`optax.scale_by_factored_rms` factors the two longest dimensions of an array, so it would factor
the layers of a deep stack, and only one of the two output axes of a query projection.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm.optim.matrices import info_of, sides, size
from jaxllm.trees import map_with_path


class Factored(NamedTuple):
    """Means of squared gradients; a matrix of them is their outer product over their mean.

    Attributes:
        rows: one for each input (means over the outputs), stacked as the parameter is.
        columns: one for each output (means over the inputs), stacked likewise.
    """

    rows: jax.Array
    columns: jax.Array


class State(NamedTuple):
    """Updates so far and second moments: a tree of `Factored` or whole float32 arrays."""

    count: jax.Array
    nu: dict


def factors(info, min_factored):
    """Returns (row dimensions, column dimensions) to factor, or None to keep the whole array.

    Both sides, see `sides`, need at least `min_factored` elements.
    """
    rows, columns = sides(info)
    if not columns or min(size(info, rows), size(info, columns)) < min_factored:
        return None
    return rows, columns


def scale_by_factored_rms(infos, *, decay_rate, eps, min_factored):
    """Makes Adafactor's rescaling: gradient over the root of its factored second moment.

    Args:
        infos: {path: ParamInfo}.
        decay_rate: update t (from 1) weighs the past by 1 - t^-decay_rate.
        eps: added to squared gradients.
        min_factored: see `factors`.

    Source:
        Shazeer and Stern (2018), arXiv:1804.04235, algorithm 4 without its clipping.
    """

    def cut(path):
        return factors(info_of(infos, path), min_factored)

    def init(params):
        def zeros(path, p):
            if cut(path) is None:
                return jnp.zeros(p.shape, jnp.float32)
            rows, columns = cut(path)
            keep = [[n for i, n in enumerate(p.shape) if i not in gone] for gone in (columns, rows)]
            return Factored(*(jnp.zeros(shape, jnp.float32) for shape in keep))

        return State(jnp.zeros([], jnp.int32), map_with_path(zeros, params))

    def update(grads, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        beta2 = 1.0 - count.astype(jnp.float32) ** -decay_rate

        def blend(old, new):
            return beta2 * old + (1.0 - beta2) * new

        def moment(path, g, old):
            square = jnp.square(g.astype(jnp.float32)) + eps
            if cut(path) is None:
                return blend(old, square)
            rows, columns = cut(path)
            return Factored(
                blend(old.rows, jnp.mean(square, columns)),
                blend(old.columns, jnp.mean(square, rows)),
            )

        def rescale(path, g, nu):
            if cut(path) is None:
                return (g * jax.lax.rsqrt(nu)).astype(g.dtype)
            rows, columns = cut(path)
            row, column = jnp.expand_dims(nu.rows, columns), jnp.expand_dims(nu.columns, rows)
            # Two roots, not the root of a product: squares of small gradients would underflow.
            row = jax.lax.rsqrt(row / jnp.mean(row, rows, keepdims=True))
            return (g * row * jax.lax.rsqrt(column)).astype(g.dtype)

        nu = map_with_path(moment, grads, state.nu)
        return map_with_path(rescale, grads, nu), State(count, nu)

    return optax.GradientTransformation(init, update)
