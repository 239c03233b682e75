"""Where arrays live: the mesh, rules from logical axes to mesh axes, placing trees; the wire."""

from jaxllm.sharding import wire
from jaxllm.sharding.by_hand import make_gather, spread
from jaxllm.sharding.mesh import (
    LENGTH_AXES,
    MESH_AXES,
    ROW_AXES,
    check_splits,
    full_shape,
    make_mesh,
    mesh_shape,
    rows_each,
    words,
)
from jaxllm.sharding.place import batch_sharding, global_batch, local_rows, make_shard, replicated
from jaxllm.sharding.rules import GATHERED, RULES, param_shardings, param_specs, spec, unsplit

__all__ = [
    "GATHERED",
    "LENGTH_AXES",
    "MESH_AXES",
    "ROW_AXES",
    "RULES",
    "batch_sharding",
    "check_splits",
    "full_shape",
    "global_batch",
    "local_rows",
    "make_gather",
    "make_mesh",
    "make_shard",
    "mesh_shape",
    "param_shardings",
    "param_specs",
    "replicated",
    "rows_each",
    "spec",
    "spread",
    "unsplit",
    "wire",
    "words",
]
