"""What is inside an optimizer's state: its count, and which parameter each array belongs to."""

import jax
import optax

from jaxllm.optim.matrices import sides
from jaxllm.trees import path_string, unflatten


def step_count(state):
    """Returns int32[]: updates applied so far, where the schedule will read its next rate.

    Raises:
        ValueError: the state is not of one of our optimizers, which count in one place.
    """
    is_count = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    counts = [node.count for node in jax.tree.leaves(state, is_leaf=is_count) if is_count(node)]
    if len(counts) != 1:
        raise ValueError(f"An optimizer's state has one schedule's count, this has {len(counts)}.")
    return counts[0]


def param_of(path, infos):
    """Tells which parameter a path in an optimizer's state belongs to.

    Args:
        path: such as "0/mu/layers/attn/q/w/codes".
        infos: {path: ParamInfo}.

    Returns:
        (parameter's path, field within it), such as ("layers/attn/q/w", "codes"). The field is
        empty where the leaf mirrors the parameter itself; both are where there is no parameter.
    """
    words = path.split("/")
    fields = [words[-1:], []] if words[-1] in FIELDS else [[]]
    for start in range(len(words)):  # longest first
        for field in reversed(fields):
            found = "/".join(words[start : len(words) - len(field)])
            if found in infos:
                return found, "/".join(field)
    return "", ""


def state_axes(tx, infos):
    """Logical axes of every array in an optimizer's state, so that it shards like parameters.

    Args:
        tx: a transformation over trees of the parameters of `infos`.
        infos: {path: ParamInfo}.

    Returns:
        tree with the structure of tx.init(params) and a tuple of logical axes (None: replicated)
        in place of each array: as `jax.tree.map(f, state, axes)` hands them out.

    Raises:
        ValueError: an array that mirrors no parameter and is larger than a few numbers, or has
            another rank or size than its parameter's.
    """
    shapes = unflatten({p: jax.ShapeDtypeStruct(i.shape, i.dtype) for p, i in infos.items()})
    leaves, structure = jax.tree_util.tree_flatten_with_path(jax.eval_shape(tx.init, shapes))
    return structure.unflatten([_axes(path_string(path), leaf, infos) for path, leaf in leaves])


def _without(info, gone):
    """Dimensions of a parameter but some, in its order."""
    return tuple(i for i in range(len(info.shape)) if i not in gone)


# How arrays that are not of the parameter's shape get its axes: field -> (info -> dimensions that
# they keep); None stands for a dimension of their own.
FIELDS = {
    "codes": lambda info: tuple(range(len(info.shape))),
    "maximum": lambda info: (*range(len(info.shape) - 1), None),
    "rows": lambda info: _without(info, sides(info)[1]),
    "columns": lambda info: _without(info, sides(info)[0]),
}


def _axes(path, leaf, infos):
    """Logical axes of one leaf of a state."""
    param, field = param_of(path, infos)
    if not param:
        if leaf.size > 16:
            raise ValueError(
                f"Optimizer state {path!r} of shape {leaf.shape} mirrors no parameter, so it "
                "cannot be sharded. Name it as the parameter is, or add a field to optim/state.py."
            )
        return (None,) * leaf.ndim
    info = infos[param]
    keep = FIELDS[field](info) if field else tuple(range(len(info.shape)))
    same = len(keep) == leaf.ndim and all(
        i is None or info.shape[i] == n for i, n in zip(keep, leaf.shape, strict=False)
    )
    if not same:
        raise ValueError(
            f"Optimizer state {path!r} has shape {leaf.shape}, which does not follow from shape "
            f"{info.shape} of its parameter. Add a field to optim/state.py."
        )
    return tuple(None if i is None else info.axes[i] for i in keep)
