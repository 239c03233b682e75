"""Every device computes on its own tokens, by hand; weights are gathered when used.

Left to the compiler, a gradient is summed over all devices and then cut; and a sum inside a loop
goes over the wire in every round. Here each device differentiates the sum over its own tokens: the
loss is the sum of what the devices return, no token counts twice, and the gradient of each
collective is the collective that goes the other way. That of gathering a weight is to scatter the
sum: half the bytes of a sum over all devices, once.

Source: ZeRO stage 3 (Rajbhandari et al. 2020, arXiv:1910.02054).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from jaxllm import trees
from jaxllm.sharding.mesh import LENGTH_AXES, MESH_AXES, ROW_AXES
from jaxllm.sharding.rules import GATHERED


def make_gather(infos, specs, mesh):
    """Returns gather(path, x) -> x, whole over the axes that are split only to save memory.

    Args:
        infos: {path: ParamInfo}.
        specs: what `param_specs` returns.
        mesh: the mesh.

    A parameter of stacked layers may come without its first axis.
    """
    in_halves = mesh.devices.flat[0].platform == "tpu"

    def gather(path, x):
        info = infos[path]
        without = len(info.axes) - x.ndim
        parts = tuple(specs[path])[without:]
        for dimension, names in enumerate(parts):
            if names and info.axes[dimension + without] in GATHERED:
                x = _gather(jnp.moveaxis(x, dimension, 0), names, in_halves)
                x = jnp.moveaxis(x, 0, dimension)
        return x

    return gather


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(x, names, in_halves):
    """Gathers axis 0 over mesh axes; its gradient is scattered, `in_halves` if so."""
    return jax.lax.all_gather(x, names, axis=0, tiled=True)


def _scatter(names, in_halves, _, g):
    scatter = functools.partial(jax.lax.psum_scatter, axis_name=names, tiled=True)
    n = jax.lax.axis_size(names)
    if not in_halves or n % 2 or n == 2 or not isinstance(names, str):
        return (scatter(g),)
    # A TPU's compiler makes a scatter over all devices a sum over all, of twice the bytes. One over
    # those with even and odd places, and then one over neighbours, it leaves as they are, if the
    # axis is not the one that lies along the lanes.
    if g.ndim == 2:
        g = with_layout_constraint(g, Layout(major_to_minor=(0, 1)))
    g = scatter(g, axis_index_groups=[range(0, n, 2), range(1, n, 2)])
    return (scatter(g, axis_index_groups=[(i, i + 1) for i in range(0, n, 2)]),)


_gather.defvjp(lambda x, names, in_halves: (_gather(x, names, in_halves), None), _scatter)


def spread(function, mesh, specs, refs_specs=None, *, gradients):
    """Returns a function over all tokens from one over some, for use under `jax.jit`.

    Args:
        function: (params, refs, batch, key, *scalars) -> sums, or (sums, gradients); called on
            each device with its part of params and batch, and with one key a row.
        mesh: the mesh, or None for one device.
        specs: what `param_specs` returns.
        refs_specs: {name: what `param_specs` returns} of `refs`, frozen trees of parameters.
        gradients: whether the function returns them.

    Axis 0 of every array of a batch is split over ROW_AXES; see `place_batch`. Sums are
    added up over the devices; a gradient over those that its parameter is not split over (gathering
    has added up the rest).
    """
    if mesh is None or mesh.size == 1:
        return lambda params, refs, batch, key, *scalars: function(
            params, refs, batch, _row_keys(key, batch, 0), *scalars
        )

    specs = trees.unflatten(specs)
    refs_specs = {name: trees.unflatten(own) for name, own in (refs_specs or {}).items()}

    def add_up(x, parts):
        split = jax.tree.leaves(tuple(parts))  # a part is None, a name, or several
        return jax.lax.psum(x, tuple(name for name in MESH_AXES if name not in split))

    def on_one(params, refs, batch, key, *scalars):
        rows = jax.tree.leaves(batch)[0].shape[0]
        first = jax.lax.axis_index(ROW_AXES) * rows
        found = function(params, refs, batch, _row_keys(key, batch, first), *scalars)
        if not gradients:
            return jax.lax.psum(found, MESH_AXES)
        sums, grads = found
        return jax.lax.psum(sums, MESH_AXES), jax.tree.map(add_up, grads, specs)

    def on_all(params, refs, batch, key, *scalars):
        whole, batch = PartitionSpec(), deal_length(batch, mesh)
        places = place_batch(batch)
        return jax.shard_map(
            on_one,
            mesh=mesh,
            in_specs=(specs, refs_specs, places, whole, *(whole for _ in scalars)),
            out_specs=(whole, specs) if gradients else whole,
            axis_names=set(MESH_AXES),
            check_vma=False,
        )(params, refs, batch, key, *scalars)

    return on_all


def place_batch(batch):
    """Returns the PartitionSpec of each array of a batch.

    Axis 0 is split over ROW_AXES. The last one is over LENGTH_AXES where it counts tokens, as that
    of "tokens" and "inputs" does, and whole where it does not (a label, a pair of places).
    """
    lengths = {batch[name].shape[-1] for name in ("tokens", "inputs") if name in batch}

    def of_array(x):
        if x.ndim == 1 or x.shape[-1] not in lengths:
            return PartitionSpec(ROW_AXES)
        return PartitionSpec(ROW_AXES, *[None] * (x.ndim - 2), LENGTH_AXES)

    return jax.tree.map(of_array, batch)


def deal_length(batch, mesh):
    """Orders each row so that every device of `seq` has as many keys to look at as the others.

    With R devices a row is cut into 2 R parts and device i gets parts i and 2 R - 1 - i: queries
    late in a row see more keys than early ones (Brandon et al. 2023, arXiv:2311.09431). Adds
    "index", each token's place in its row, where rows are split.
    """
    if all(mesh.shape[axis] == 1 for axis in LENGTH_AXES):
        return batch
    like, ring = batch["tokens"], mesh.shape["seq"]
    index = jnp.broadcast_to(jnp.arange(like.shape[-1], dtype=jnp.int32), like.shape)
    batch = batch | {"index": index}
    return batch if ring == 1 else jax.tree.map(lambda x: deal(x, ring), batch)


def deal(x, ring):
    """Reorders the last axis of x so that each of `ring` devices holds its two parts."""
    if ring == 1:
        return x
    order = np.stack([np.arange(ring), 2 * ring - 1 - np.arange(ring)], axis=1).ravel()
    return x.reshape(*x.shape[:-1], 2 * ring, -1)[..., order, :].reshape(x.shape)


def _row_keys(key, batch, first):
    """One random key a row, the same whatever device it is on; None without a key."""
    if key is None:
        return None
    rows = jax.tree.leaves(batch)[0].shape[0]
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(rows))
