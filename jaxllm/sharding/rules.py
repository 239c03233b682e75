"""Rules: which mesh axes each logical axis of a parameter or an activation is split over."""

import math
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.sharding.mesh import ROW_AXES

ACTIVATION_RULES = {
    "batch": ROW_AXES,
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
}

# Split for good: each device multiplies by its own heads, columns, layers.
_OWN = dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), ("tensor",))
_OWN |= {"layers": ("stage",), "expert": ("expert",)}
# Split to save memory and gathered when used, over all that use the same weights.
GATHERED = {"embed": ("fsdp", "expert", "seq", "stage")}
_ALL = ("stage", "slice", "data", "fsdp", "expert", "seq")


class Rules(NamedTuple):
    """{logical axis: mesh axes} of the parameters, and of the optimizer's state."""

    params: dict
    optimizer: dict


RULES = {
    # ZeRO stage 3 (Rajbhandari et al. 2020): parameters, gradients and state all split.
    "zero3": Rules(_OWN | GATHERED, _OWN | GATHERED),
    # ZeRO stage 1: only the optimizer's state is split; parameters are whole on every device.
    # Split by layer where that divides: Muon then orthogonalises whole matrices, each once.
    "zero1": Rules(_OWN, _OWN | {"layers": _ALL, "embed": _ALL}),
    "replicated": Rules(_OWN, _OWN),
}


def spec(axes, shape, rules, mesh):
    """Returns the PartitionSpec of an array.

    An axis that does not divide evenly over all its mesh axes is split over fewer of them, down to
    none; `unsplit` lists where that happened. No mesh axis is used twice.
    """
    used, parts = set(), []
    for axis, size in zip(axes, shape, strict=True):
        names = tuple(n for n in rules.get(axis, ()) if n not in used and mesh.shape[n] > 1)
        while names and size % math.prod(mesh.shape[n] for n in names):
            names = names[:-1]
        used.update(names)
        parts.append(names or None)
    while parts and parts[-1] is None:
        parts.pop()
    return PartitionSpec(*parts)


def param_specs(infos, rules, mesh):
    """Returns {path: PartitionSpec} for {path: ParamInfo}."""
    return {path: spec(info.axes, info.shape, rules, mesh) for path, info in infos.items()}


def param_shardings(infos, rules, mesh):
    """Returns {path: NamedSharding} for {path: ParamInfo}."""
    specs = param_specs(infos, rules, mesh)
    return {path: NamedSharding(mesh, place) for path, place in specs.items()}


def unsplit(infos, rules, mesh):
    """Lists what a rule could not split evenly, as "path: axis size over mesh_axis=size"."""
    notes, specs = [], param_specs(infos, rules, mesh)
    for path, info in infos.items():
        taken = jax.tree.leaves(tuple(specs[path]))  # a part is None, a name, or several
        for axis, size in zip(info.axes, info.shape, strict=True):
            missed = [
                name for name in rules.get(axis, ()) if mesh.shape[name] > 1 and name not in taken
            ]
            notes += [f"{path}: {axis} {size} over {n}={mesh.shape[n]}" for n in missed]
    return notes
