"""Runs a step of a run once more, from the checkpoint before it, and changes nothing."""

import json
import pathlib

import jax

from jaxllm import sharding
from jaxllm.config import ConfigError
from jaxllm.training import setup
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.training.records import load_config
from jaxllm.training.run import compile_step, restore_or_create


def replay(workdir, step):
    """Returns (checkpoint that it started from, {metric: value} of the step).

    Args:
        workdir: directory of a training run.
        step: number of the update, from 1, as logs have it.

    Raises:
        ConfigError: no run there, or no checkpoint before that step.
    """
    config, place = load_config(workdir), pathlib.Path(workdir)
    run = setup.assemble(config, place)
    with Checkpoints(place / "checkpoints", read_only=True) as checkpoints:
        kept = checkpoints.steps()
        before = [number for number in kept if number < step <= config.steps]
        if not before:
            raise ConfigError(
                f"--step={step}: no checkpoint of {workdir} is before it; there are "
                f"{', '.join(map(str, kept)) or 'none'}, of {config.steps} steps."
            )
        state, (refs, _), _ = restore_or_create(run, checkpoints, max(before), place)
    compiled, batch = compile_step(run), config.data.batch
    rows = sharding.local_rows(run.mesh, batch)
    for index in range(max(before), step):
        local = run.train(index, rows)
        state, metrics = compiled(state, refs, sharding.global_batch(run.mesh, rows, local, batch))
    return max(before), {name: float(value) for name, value in jax.device_get(metrics).items()}


def page(workdir, step):
    """Returns lines on a replayed step: each metric, and what it was where the run logged it.

    Args:
        workdir, step: as `replay` takes them.
    """
    start, metrics = replay(workdir, step)
    logged = _logged(pathlib.Path(workdir) / "metrics.jsonl", step)
    lines = [f"step {step} again, from checkpoint {start}:"]
    for name, value in sorted(metrics.items()):
        was = f", was {logged[name]:.7g}" if name in logged else ""
        lines.append(f"  {name:<12} {value:.7g}{was}")
    return "\n".join(lines)


def _logged(file, step):
    """The metrics that a run logged of a step, or {}."""
    try:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    except (OSError, ValueError):
        return {}
    found = [row for row in rows if row.get("step") == step and row.get("kind") == "train"]
    return found[-1] if found else {}
