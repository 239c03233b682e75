"""Where penalties of the parameters have their frozen trees from: the start, and how firm it is.

The start is what of `config.init_from` is trained: read again whenever the run goes on, and never
in the optimizer. The Fisher information lies beside it, as `python -m jaxllm.evaluate --fisher`
wrote it.
"""

import pathlib

import jax
import jax.numpy as jnp

from jaxllm import trees
from jaxllm.config import ConfigError
from jaxllm.training import prints, records, regularize
from jaxllm.training.checkpoint import Checkpoints

FISHER = "fisher"  # directory in that of the run whose parameters it is of


def load(run, base):
    """Returns {name: tree} of those of `run.refs` that penalties look at.

    Args:
        run: `setup.Run`.
        base: {path: array} of the parameters that the run starts from; they are copied.

    Raises:
        ConfigError: there is no Fisher information of these very parameters.
    """
    found = {}
    for name in regularize.ANCHORS:
        if name not in run.refs:
            continue
        wanted = trees.flatten(run.refs[name])
        values = base if name == "start" else read_fisher(run, base, wanted)
        found[name] = trees.unflatten({path: jnp.copy(values[path]) for path in wanted})
    return found


def read_fisher(run, base, wanted):
    """Returns {path: array}, the diagonal Fisher information of a run's start.

    Args:
        run: `setup.Run`.
        base: {path: array} of the start.
        wanted: {path: shape and sharding}.

    Raises:
        ConfigError: none there, or of other parameters.
    """
    place = pathlib.Path(run.config.init_from)
    with Checkpoints(place / "checkpoints", read_only=True) as checkpoints:
        step = records.choose_step(checkpoints, "latest", place)
    again = f"\n  Try python -m jaxllm.evaluate --workdir={place} --fisher=1000 first."
    if not (place / FISHER).is_dir():
        raise ConfigError(
            f"config.regularize.ewc={run.config.regularize.ewc}: there is no Fisher information in "
            f"{place / FISHER}.{again}"
        )
    with Checkpoints(place / FISHER, read_only=True) as checkpoints:
        if step not in checkpoints.steps():
            raise ConfigError(
                f"{place / FISHER} has none of step {step}, the newest of {place}.{again}"
            )
        tree, meta = checkpoints.restore(step, trees.unflatten(wanted), partial=True)
    now = prints.of({path: base[path] for path in wanted})
    if any(meta["prints"].get(path) != found for path, found in now.items()):
        raise ConfigError(
            f"{place / FISHER} is of other parameters than {place} has now at step {step}.{again}"
        )
    return trees.flatten(tree)


def check_room(workdir, step):
    """Raises ConfigError where there is Fisher information of a step already."""
    place = pathlib.Path(workdir) / FISHER
    with Checkpoints(place, read_only=True) as checkpoints:
        if step in checkpoints.steps():
            raise ConfigError(
                f"{place} has the Fisher information of step {step} already. Move it away for "
                "another estimate."
            )


def save_fisher(workdir, step, fisher, params, told):
    """Writes Fisher information beside the run that it is of, and returns its directory.

    Args:
        workdir: of the run.
        step: of the parameters.
        fisher: tree of arrays.
        params: the tree of parameters.
        told: dict that JSON can hold, of how it was estimated.
    """
    place = pathlib.Path(workdir) / FISHER
    with Checkpoints(place, keep_last=1, keep_best=0) as checkpoints:
        meta = {**told, "prints": prints.of(trees.flatten(params))}
        checkpoints.save(step, jax.tree.map(jnp.asarray, fisher), meta)
    return place
