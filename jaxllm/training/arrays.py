"""The arrays of a checkpoint: their paths and shapes, copies that are safe to write, targets."""

import jax
import numpy as np

from jaxllm import trees

SHOWN = 5  # leaves that an error names before it says how many more


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written, found or restored."""


class MismatchError(CheckpointError):
    """A checkpoint whole and well that holds other leaves than are wanted."""


def flatten(tree):
    """Returns {path: leaf}.

    Raises:
        TypeError: two leaves have the same path.
    """
    leaves = trees.flatten(tree)
    if len(leaves) != len(jax.tree.leaves(tree)):
        raise TypeError("Two leaves of the tree have the same path; rename one of them.")
    return leaves


def signature(leaves):
    """Returns {path: [shape, dtype]} of arrays or abstract arrays, as JSON can hold it.

    Raises:
        TypeError: a leaf is neither.
    """
    for path, leaf in leaves.items():
        if not isinstance(leaf, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
            raise TypeError(
                f"leaf {path} is a {type(leaf).__name__}; a checkpoint holds arrays. "
                "Put other values into meta."
            )
    return {path: [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves.items()}


def snapshot(leaf):
    """Returns an array that nobody else can overwrite until Orbax has read it.

    On a CPU a numpy view shares the array's memory, so what Orbax holds would be the live buffer.
    Today such a view makes XLA copy instead of donate; a copy of our own does not depend on that.
    On other devices Orbax itself starts the transfer to the host before it returns.
    """
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    platform = next(iter(leaf.sharding.device_set)).platform
    return jax.device_put(leaf, leaf.sharding, may_alias=False) if platform == "cpu" else leaf


def target(path, leaf):
    """Returns an abstract array with a sharding, which is where Orbax puts what it reads.

    Raises:
        CheckpointError: no sharding is given and there are several devices.
    """
    if leaf.sharding is None and jax.device_count() > 1:
        raise CheckpointError(f"leaf {path} has no sharding; with several devices it needs one.")
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def compare(where, saved, wanted):
    """Raises MismatchError that names the leaves in which two signatures differ."""
    lines = [f"{p}: only in the checkpoint, {_words(saved[p])}" for p in saved.keys() - wanted]
    lines += [f"{p}: not in the checkpoint, {_words(wanted[p])}" for p in wanted.keys() - saved]
    lines += [
        f"{p}: {_words(saved[p])} in the checkpoint, {_words(wanted[p])} wanted"
        for p in saved.keys() & wanted.keys()
        if saved[p] != wanted[p]
    ]
    if lines:
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise MismatchError(
            f"{where} does not fit this model and optimizer. Use the config it was trained with, "
            "or another work directory.\n  " + "\n  ".join(sorted(lines)[:SHOWN] + more)
        )


def _words(signature):
    shape, dtype = signature
    return f"{dtype}[{','.join(map(str, shape))}]"
