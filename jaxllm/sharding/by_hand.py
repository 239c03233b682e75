"""Rows over devices by hand: each device computes its own rows, weights are gathered when used.

Left to the compiler, a gradient is summed over all devices and then cut; and a sum inside a loop
goes over the wire in every round. Here each device differentiates the sum over its own rows. The
gradient of gathering a weight is to scatter the sum, so half the bytes of a sum over all devices,
once. The `tensor` axis stays with the compiler.

Source: ZeRO stage 3 (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jaxllm import trees
from jaxllm.sharding.mesh import BATCH_AXES
from jaxllm.sharding.rules import spec


def by_hand(names):
    """Returns those of some mesh axes (a name, a tuple or None) that rows are split over."""
    names = (names,) if isinstance(names, str) else names or ()
    return tuple(name for name in names if name in BATCH_AXES)


def param_specs(infos, rules, mesh):
    """Returns the tree of PartitionSpecs of the parameters over the axes that are done by hand."""

    def one(info):
        parts = spec(info.axes, info.shape, rules, mesh)
        return PartitionSpec(*(by_hand(names) or None for names in parts))

    return trees.unflatten({path: one(info) for path, info in infos.items()})


def make_gather(infos, specs, dtype):
    """Returns gather(path, x) -> x, whole over the axes that rows are split over.

    Args:
        infos: {path: ParamInfo}.
        specs: what `param_specs` returns.
        dtype: of the computation.

    What activations are multiplied by is gathered in `dtype`, the rest (tables, norms, biases) in
    its own. A parameter of stacked layers may come without its first axis.
    """
    specs = trees.flatten(specs)

    def gather(path, x):
        info = infos[path]
        parts = tuple(specs[path])
        if info.axes[0] == "layers" and x.ndim == len(info.shape) - 1:
            parts = parts[1:]
        if not any(parts):
            return x
        if info.multiplies:
            x = x.astype(dtype)
        for dimension, names in enumerate(parts):
            if names:
                x = jax.lax.all_gather(x, names, axis=dimension, tiled=True)
        return x

    return gather


def spread(function, mesh, specs, *, gradients):
    """Returns a function over all rows from one over some, for use under `jax.jit`.

    Args:
        function: (params, refs, batch, key, *scalars) -> sums, or (sums, gradients); called on
            each device with its part of params and batch, and with one key a row.
        mesh: the mesh, or None for one device.
        specs: what `param_specs` returns.
        gradients: whether the function returns them.

    Sums are added up over the devices; a gradient over those that its parameter is not split over
    (gathering has added up the rest).
    """
    if mesh is None or mesh.size == 1:
        return lambda params, refs, batch, key, *scalars: function(
            params, refs, batch, _row_keys(key, batch, 0), *scalars
        )

    def add_up(x, parts):
        split = {name for names in parts for name in by_hand(names)}
        return jax.lax.psum(x, tuple(name for name in BATCH_AXES if name not in split))

    def on_one(params, refs, batch, key, *scalars):
        rows = jax.tree.leaves(batch)[0].shape[0]
        first = jax.lax.axis_index(BATCH_AXES) * rows
        found = function(params, refs, batch, _row_keys(key, batch, first), *scalars)
        if not gradients:
            return jax.lax.psum(found, BATCH_AXES)
        sums, grads = found
        return jax.lax.psum(sums, BATCH_AXES), jax.tree.map(add_up, grads, specs)

    def on_all(params, refs, batch, key, *scalars):
        whole = PartitionSpec()
        ins = (specs, whole, PartitionSpec(BATCH_AXES), whole, *(whole for _ in scalars))
        return jax.shard_map(
            on_one,
            mesh=mesh,
            in_specs=ins,
            out_specs=(whole, specs) if gradients else whole,
            axis_names=set(BATCH_AXES),
            check_vma=False,
        )(params, refs, batch, key, *scalars)

    return on_all


def _row_keys(key, batch, first):
    """One random key a row, the same whatever device it is on; None without a key."""
    if key is None:
        return None
    rows = jax.tree.leaves(batch)[0].shape[0]
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))


def by_heads(function):
    """Returns a function that each device calls on its own heads.

    Its arguments are an array that all heads share, and arrays [B, heads, …]. The compiler cannot
    split a custom kernel over `tensor`. Of effect only inside `spread`.
    """

    def call(shared, *arrays):
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.manual_axes or "tensor" in mesh.manual_axes:
            return function(shared, *arrays)
        heads = PartitionSpec(None, "tensor")
        specs = (PartitionSpec(), *(heads for _ in arrays))
        return jax.shard_map(
            function, in_specs=specs, out_specs=heads, axis_names={"tensor"}, check_vma=False
        )(shared, *arrays)

    return call
