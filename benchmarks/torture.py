"""Kills runs at random moments, damages checkpoints, and counts what was not as it should be.

    python -m benchmarks.torture [--kills=50] [--damages=100] [--terms=20] [--seed=0]

Kills: SIGKILL at random moments (start-up and saves included), the same command again until the
run is done; then metrics.jsonl must equal that of a run left alone, to the last bit. Damages: one
bit flipped or the end cut off in a random file of the newest checkpoint; none may be restored, and
the one before must come back whole. Terms: SIGTERM at random moments; the process must save, leave
with status 0 within 10 s, and go on later as if nothing had been. Exit status 1 if anything failed.
"""

import argparse
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

import jax
import numpy as np

from jaxllm.training import setup
from jaxllm.training.checkpoint import Checkpoints
from tests import runs

# Saves without pause, of a state of some megabytes, so that most kills fall into one.
FIELDS = {
    "steps": 300,
    "optim.kind": "adamw",
    "schedule.lr": 0.01,
    "model.width": 128,
    "model.mlp_width": 512,
    "model.dropout": 0.1,
    "step.ema": 0.9,
    "checkpoint.every": 2,
    "checkpoint.keep_last": 3,
    "validate.every": 25,
    "log.every": 1,
}
LEAVE_S = 10.0


def is_saving(workdir):
    """Whether a checkpoint is begun and not committed."""
    begun = workdir.glob("checkpoints/step_*")
    return any(not (path / "COMMITTED").exists() for path in begun)


def phase(workdir):
    """What a run seems to be doing."""
    if not (workdir / "summary.json").exists():
        return "start"
    if (workdir / "summary.json").read_text().find('"running"') < 0:
        return "start"
    return "save" if is_saving(workdir) else "step"


def interrupt(workdir, fields, number, wait_s):
    """Starts a run and signals it after `wait_s`; returns (status, seconds to leave, phase).

    The phase is "" where the run was done before.
    """
    child = runs.start(runs.command(workdir, fields), workdir.with_suffix(".log"))
    with runs.ending(child):
        try:
            return child.wait(timeout=wait_s), 0.0, ""
        except runs.subprocess.TimeoutExpired:
            where = phase(workdir)
            start = time.monotonic()
            child.send_signal(number)
            status = child.wait(timeout=60)
            return status, time.monotonic() - start, where


def interrupt_until_done(place, name, fields, number, wanted, draw):
    """Interrupts runs `wanted` times in all; yields (workdir, status, seconds, phase) of each.

    A run that comes to its end is followed by a new one; the last one is left to end. What ends
    has phase "done".
    """
    count = 0
    for index in range(10**6):
        workdir = place / f"{name}{index}"
        workdir.mkdir()
        while True:
            wait_s = draw() if count < wanted else 600
            status, seconds, where = interrupt(workdir, fields, number, wait_s)
            if not where:
                yield workdir, status, seconds, "done"
                break
            count += 1
            yield workdir, status, seconds, where
        if count >= wanted:
            return


def kill(place, fields, expected, kills, draw):
    """Returns (failures, {phase: kills})."""
    failures, phases = [], {}
    events = interrupt_until_done(place, "killed", fields, signal.SIGKILL, kills, draw)
    for workdir, status, _, where in events:
        phases[where] = phases.get(where, 0) + 1
        if where != "done":
            continue
        if status != 0:
            failures.append(f"{workdir}: status {status} when left alone")
        elif runs.metrics(workdir) != expected:
            failures.append(f"{workdir}: another metrics.jsonl")
    return failures, phases


def terminate(place, fields, expected, terms, draw):
    """Returns (failures, {phase: signals}, longest seconds to leave)."""
    failures, phases, longest = [], {}, 0.0
    events = interrupt_until_done(place, "termed", fields, signal.SIGTERM, terms, draw)
    for workdir, status, seconds, where in events:
        phases[where] = phases.get(where, 0) + 1
        longest = max(longest, seconds)
        # Before Python has come to our handler there is nothing to save.
        fine = (0, -signal.SIGTERM) if where == "start" else (0,)
        if status not in fine or seconds > LEAVE_S:
            failures.append(f"{workdir}: status {status} after {seconds:.1f} s in {where}")
        if where == "done" and runs.metrics(workdir) != expected:
            failures.append(f"{workdir}: another metrics.jsonl")
    return failures, phases, longest


def damage(place, fields, source, damages, rng):
    """Damages the newest of several checkpoints; returns failures."""
    config = runs.config(fields)
    run = setup.assemble(config, place / "assembled", jax.devices()[:1])
    with Checkpoints(source / "checkpoints", read_only=True) as whole:
        *_, before, newest = whole.steps()
        good = jax.device_get(whole.restore(before, run.abstract)[0])
    failures = []
    for index in range(damages):
        copy = place / "damaged"
        shutil.copytree(source / "checkpoints", copy)
        files = [p for p in (copy / f"step_{newest:08d}").rglob("*") if p.stat().st_size]
        path = rng.choice([p for p in files if p.is_file()])
        data = bytearray(path.read_bytes())
        where = rng.randrange(len(data))
        if index % 2:
            data[where] ^= 1 << rng.randrange(8)
        else:
            del data[where:]
        path.write_bytes(data)
        said = []
        with Checkpoints(copy, report=said.append) as checkpoints:
            step = checkpoints.latest()
            state = jax.device_get(checkpoints.restore(step, run.abstract)[0])
        same = jax.tree.all(jax.tree.map(np.array_equal, state, good))
        if step != before or not said or not same:
            failures.append(f"{path.relative_to(copy)} at {where}: restored {step}, said {said}")
        shutil.rmtree(copy)
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--terms", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        fields = {**FIELDS, "runtime.compile_cache": str(place / "compiled")}
        for workdir in (place / "cold", place / "alone"):
            start = time.monotonic()
            runs.call(runs.command(workdir, fields), timeout_s=600).check_returncode()
        whole_s, expected = time.monotonic() - start, runs.metrics(place / "alone")
        failures = [] if runs.metrics(place / "cold") == expected else ["two whole runs differ"]

        def draw():
            return rng.uniform(0, whole_s)

        failed, phases = kill(place, fields, expected, options.kills, draw)
        failures += failed
        print(f"killed {options.kills} times, by phase {phases}: {len(failed)} failures")
        failed, phases, longest = terminate(place, fields, expected, options.terms, draw)
        failures += failed
        print(
            f"terminated {options.terms} times, by phase {phases}, out after at most "
            f"{longest:.1f} s: {len(failed)} failures"
        )
        failed = damage(place, fields, place / "alone", options.damages, rng)
        failures += failed
        print(f"damaged {options.damages} times: {len(failed)} not as they should be")
    print("\n".join(failures) or "all as it should be")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
