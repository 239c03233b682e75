"""Weights in fewer bits for decoding, where reading them is what takes the time.

One row of a batch reads every weight for each token, so that half the bytes may take half the
time. All else of the computation stays in its dtype. Neither way gives the very same numbers.

bfloat16: weights and inputs of a product keep 8 bits, its sums are float32.
int8: each output's weights share a scale, max |w| / 127, and each input row another one; products
    are exact in int32 (Dettmers et al. 2022, arXiv:2208.07339, section 2.1, row- and
    column-wise scales, without their outliers).
"""

import jax
import jax.numpy as jnp

_LARGEST = 127  # of int8, the same on both sides of 0


@jax.tree_util.register_pytree_node_class
class Int8:
    """A matrix in 8 bits, a row for each output: XLA's CPU backend has it fastest so.

    Attributes:
        values_FD: int8, outputs by inputs.
        scale_F1: float32; a weight is its value times that of its row.
        made: shape of the outputs, whose product is F.
    """

    def __init__(self, values_FD, scale_F1, made):
        self.values_FD, self.scale_F1, self.made = values_FD, scale_F1, made

    def __getitem__(self, index):
        """The matrix itself, as `[...]` is what a module asks of its parameters."""
        if index is not Ellipsis:
            raise TypeError(f"An Int8 matrix is taken whole, not by {index}.")
        return self

    @property
    def shape(self):
        """[F, D], as a table of F rows has it."""
        return self.values_FD.shape

    def tree_flatten(self):
        return (self.values_FD, self.scale_F1), self.made

    @classmethod
    def tree_unflatten(cls, made, children):
        return cls(*children, made)


def quantize(x):
    """Returns (int8, float32 scale over the last axis, which has length 1 there).

    Each number is at most scale / 2 off.
    """
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x), axis=-1, keepdims=True), 1e-20) / _LARGEST
    return jnp.round(x / scale).astype(jnp.int8), scale


def is_narrow(w, dtype):
    """Whether a weight is read as it is, not in the dtype of the computation."""
    return isinstance(w, Int8) or (w.dtype == jnp.bfloat16 and dtype == "float32")


def product(x_MD, w):
    """x times a narrow weight, in the dtype of x: [M, F].

    Args:
        x_MD: inputs.
        w: bfloat16[D, F], or `Int8`.
    """
    if not isinstance(w, Int8):
        return few_rows(x_MD.astype(w.dtype), w).astype(x_MD.dtype)
    values_MD, scale_M1 = quantize(x_MD)
    rows = x_MD.shape[0]
    # One row takes a hundred times as long as two.
    values_MD = jnp.pad(values_MD, ((0, 1), (0, 0))) if rows == 1 else values_MD
    dims = (((1,), (1,)), ((), ()))
    y = jax.lax.dot_general(values_MD, w.values_FD, dims, preferred_element_type=jnp.int32)
    return (y[:rows].astype(jnp.float32) * scale_M1 * w.scale_F1[:, 0]).astype(x_MD.dtype)


def few_rows(x_MD, w_DF):
    """The product of bfloat16 in float32, by the way that a CPU has for it.

    XLA's CPU backend multiplies bfloat16 fast only where it may return float32, and only two rows
    or more: one row of SmolLM2's matrices takes 216 ms else, and 17 ms so (benchmarks/decode.py).
    """
    rows = x_MD.shape[0]
    x_MD = jnp.pad(x_MD, ((0, 1), (0, 0))) if rows == 1 else x_MD
    return jnp.matmul(x_MD, w_DF, preferred_element_type=jnp.float32)[:rows]


def look_up(table, rows, dtype):
    """Rows of an `Int8` table, in a dtype."""
    return (table.values_FD[rows] * table.scale_F1[rows]).astype(dtype)
