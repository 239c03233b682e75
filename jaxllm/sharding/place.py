"""Placing trees and batches on the mesh."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.sharding.mesh import ROW_AXES
from jaxllm.sharding.rules import ACTIVATION_RULES, spec


def make_shard(mesh):
    """Returns shard(x, *logical axes) -> x, which places an activation by ACTIVATION_RULES.

    Inside `by_hand.spread` each array is a device's own, and stays as it is.
    """

    def shard(x, *axes):
        if mesh.size == 1 or jax.sharding.get_abstract_mesh().manual_axes:
            return x
        place = NamedSharding(mesh, spec(axes, x.shape, ACTIVATION_RULES, mesh))
        return jax.lax.with_sharding_constraint(x, place)

    return shard


def replicated(mesh):
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh):
    """The sharding of a batch: axis 0 over ROW_AXES."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def local_rows(mesh, batch):
    """Returns the rows of a batch of `batch` rows that this process's devices hold, sorted."""
    rows = set()
    for (index, *_), in_use in _row_slices(mesh, batch):
        if in_use:
            rows.update(range(*index.indices(batch)))
    return np.array(sorted(rows), dtype=np.int64)


def _row_slices(mesh, batch):
    indices = batch_sharding(mesh).devices_indices_map((batch,))
    here = jax.process_index()
    return [(index, device.process_index == here) for device, index in indices.items()]


def global_batch(mesh, rows, local, batch):
    """Assembles global arrays from this process's rows.

    Args:
        mesh: the mesh.
        rows: what `local_rows` returned.
        local: {name: numpy array [len(rows), ...]}.
        batch: rows of the global batch.

    Returns:
        {name: jax.Array [batch, ...]}, axis 0 split over ROW_AXES.
    """
    sharding = batch_sharding(mesh)

    def assemble(x):
        def read(index):
            first, last, _ = index[0].indices(batch)
            return x[np.searchsorted(rows, first) : np.searchsorted(rows, last - 1) + 1]

        return jax.make_array_from_callback((batch, *x.shape[1:]), sharding, read)

    return jax.tree.map(assemble, local)
