"""What one device says to the others inside `by_hand.spread`; elsewhere nothing is said.

The stream of activations between two parts of a model is [B, T, D] with T split over `tensor`: a
part joins it before its first product, and its last product sums up each device's share of the
result (Korthikanti et al. 2022, arXiv:2205.05198). So no activation is held twice and nothing is
computed twice: the loss of all devices together is the sum of each one's own.
"""

import jax
import jax.numpy as jnp


def size(axis):
    """Devices along a mesh axis, where they work by hand; else 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.manual_axes else 1


def index(axis):
    """This device's place along a mesh axis, from 0."""
    return jax.lax.axis_index(axis) if size(axis) > 1 else 0


def join(x, axis=1):
    """Returns the whole of what is split over `tensor` along an axis, [B, T / tensor, …] by use."""
    return jax.lax.all_gather(x, "tensor", axis=axis, tiled=True) if size("tensor") > 1 else x


def sum_parts(x, axis=1):
    """Adds up what each device of `tensor` has of the whole; returns its own part along an axis."""
    if size("tensor") == 1:
        return x
    return jax.lax.psum_scatter(x, "tensor", scatter_dimension=axis, tiled=True)


def sum_heads(tree):
    """Adds up over `tensor`, so over the heads of all its devices."""
    return jax.lax.psum(tree, "tensor") if size("tensor") > 1 else tree


def own_part(x, axis=1):
    """Returns this device's part over `tensor` of what each of them has whole; no gradient."""
    x, parts = jax.lax.stop_gradient(x), size("tensor")
    step = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, index("tensor") * step, step, axis=axis)


def largest(x):
    """The elementwise maximum over `tensor`; it has no gradient."""
    x = jax.lax.stop_gradient(x)
    return jax.lax.pmax(x, "tensor") if size("tensor") > 1 else x


def sum_tokens(tree):
    """Adds up over `tensor`, so over all tokens of the stream; each device has the whole sum."""
    return jax.lax.psum(tree, "tensor") if size("tensor") > 1 else tree


def share(x):
    """This device's share of what all those of `tensor` have alike.

    The loss is the sum of what the devices return: what each of them finds of the same row counts
    once among them, and gradients too.
    """
    return x / size("tensor")


def sum_row(tree):
    """Adds up over `seq`, so over all of a row."""
    return jax.lax.psum(tree, "seq") if size("seq") > 1 else tree


def to_experts(x_BECD):
    """From own rows at all experts to all rows at own experts, over `expert`."""
    if size("expert") == 1:
        return x_BECD
    return jax.lax.all_to_all(x_BECD, "expert", split_axis=1, concat_axis=0, tiled=True)


def from_experts(x_BECD):
    """The inverse of `to_experts`."""
    if size("expert") == 1:
        return x_BECD
    return jax.lax.all_to_all(x_BECD, "expert", split_axis=0, concat_axis=1, tiled=True)


def gather_rows(tree):
    """The rows of all devices along `expert`."""
    if size("expert") == 1:
        return tree
    return jax.lax.all_gather(tree, "expert", axis=0, tiled=True)


def scatter_rows(x):
    """Adds up what each device along `expert` has of all rows; returns its own rows."""
    if size("expert") == 1:
        return x
    return jax.lax.psum_scatter(x, "expert", scatter_dimension=0, tiled=True)


def own_rows(look_up, table, rows):
    """Looks up rows of a table that is split over `tensor` along axis 0; 0 for those of others.

    Args:
        look_up: (table, rows) -> its rows.
        table: [V / tensor, D].
        rows: int32[...], from 0 to V - 1.
    """
    rows = rows - index("tensor") * table.shape[0]
    here = (rows >= 0) & (rows < table.shape[0])
    found = look_up(table, jnp.where(here, rows, 0))
    return jnp.where(here[..., None], found, 0)
