"""Where arrays live: the mesh, rules from logical axes to mesh axes, and placing trees."""

from jaxllm.sharding.by_hand import by_heads, make_gather, param_specs, spread
from jaxllm.sharding.mesh import BATCH_AXES, MESH_AXES, check_splits, make_mesh, mesh_shape
from jaxllm.sharding.place import batch_sharding, global_batch, local_rows, make_shard, replicated
from jaxllm.sharding.rules import RULES, param_shardings, spec, unsplit

__all__ = [
    "BATCH_AXES",
    "MESH_AXES",
    "RULES",
    "batch_sharding",
    "by_heads",
    "check_splits",
    "global_batch",
    "local_rows",
    "make_gather",
    "make_mesh",
    "make_shard",
    "mesh_shape",
    "param_shardings",
    "param_specs",
    "replicated",
    "spec",
    "spread",
    "unsplit",
]
