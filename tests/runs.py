"""Tiny runs for tests: in this process, and as a user starts them."""

import contextlib
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
import pytest

from jaxllm import cli, settings, sharding
from jaxllm.training import run as runs
from jaxllm.training import setup

ROOT = pathlib.Path(__file__).parents[1]
FILE = "configs/shakespeare_char.py:smoke"
# What makes a run last seconds; a test's own settings come after and win.
SMALL = {
    "steps": 12,
    "optim.kind": "sgd",
    "model.layers": 1,
    "model.unroll": 1,
    "schedule.lr": 0.1,
    "data.prefetch": 1,
    "validate.every": 4,
    "validate.batches": 1,
    "checkpoint.every": 3,
    "sample.tokens": 0,
}


def slow(names, which):
    """The names as parameters of a test, `which` of them marked slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in which else n for n in names]


def overrides(fields):
    """[(field, text)] of SMALL and `fields`, such as {"optim.kind": "adamw"}."""
    return [(name, str(value)) for name, value in {**SMALL, **fields}.items()]


def config(fields=(), file=FILE):
    """The completed config of a tiny run."""
    return settings.load(file, overrides(dict(fields)), setup.KINDS)[0]


def shape_of(name):
    """{axis: size} of "data 2 x fsdp 4"; the other axes are 1."""
    pairs = (part.split() for part in name.split(" x "))
    return sharding.full_shape(**{axis: int(size) for axis, size in pairs})


def mesh(**sizes):
    """A mesh of the first devices; axes that are not given are 1."""
    shape = sharding.full_shape(**sizes)
    return sharding.make_mesh(shape, jax.devices()[: math.prod(shape.values())])


@contextlib.contextmanager
def on(devices=1, wrap=None):
    """Runs are assembled on the first `devices` devices; `wrap`: as `train` takes it."""
    assemble, check = setup.assemble, setup.check

    def assemble_fewer(config, workdir):
        run = assemble(config, workdir, jax.devices()[:devices])
        return run._replace(train=wrap(run.train)) if wrap else run

    setup.assemble = assemble_fewer
    setup.check = lambda config, _: check(config, devices)
    try:
        yield
    finally:
        setup.assemble, setup.check = assemble, check


def train(config, workdir, *, devices=1, wrap=None):
    """Trains in this process on the first `devices` devices and returns the exit status.

    Args:
        wrap: source -> source, over the source of training batches.
    """
    cli.use_compile_cache(config.runtime.compile_cache)
    with on(devices, wrap):
        return runs.train(config, workdir)


class Wrapped:
    """A source whose batches pass through change(step, batch) -> batch."""

    def __init__(self, source, change):
        self._source, self._change = source, change

    def __call__(self, step, rows=None):
        return self._change(step, self._source(step, rows))

    def __getattr__(self, name):
        return getattr(self._source, name)


def changing(change):
    """For `train(wrap=…)`."""
    return lambda source: Wrapped(source, change)


def command(workdir, fields=(), *arguments, module="train", file=FILE):
    """The words that start a command in a process of its own."""
    words = [sys.executable, "-m", f"jaxllm.{module}", f"--workdir={workdir}"]
    if module == "train":
        words.append(f"--config={file}")
        fields = dict(overrides(dict(fields)))
    words += [f"--config.{name}={value}" for name, value in dict(fields).items()]
    return [*words, *arguments]


def environment(devices=1):
    """The environment of such a process: a CPU as `devices` devices; 0 lets the command choose.

    It compiles as the tests do, in a fraction of the time.
    """
    count = "--xla_force_host_platform_device_count="
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if not flag.startswith(count)]
    flags += [f"{count}{devices}"] if devices else []
    return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}


def start(words, out, devices=1):
    """Starts a command whose output goes to the file `out`."""
    with open(out, "w") as file:
        return subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, env=environment(devices), cwd=ROOT
        )


def call(words, devices=1, timeout_s=120):
    """Runs a command to its end and returns it, with stdout and stderr as text."""
    return subprocess.run(
        words, capture_output=True, text=True, env=environment(devices), cwd=ROOT, timeout=timeout_s
    )


@contextlib.contextmanager
def ending(*children):
    """Kills what is left of the children at the end."""
    try:
        yield
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
            child.wait()


def metrics(workdir):
    """The bytes of metrics.jsonl."""
    return (pathlib.Path(workdir) / "metrics.jsonl").read_bytes()


def lines(workdir, kind="train", name="metrics"):
    """The objects of one kind in a JSONL file of a run."""
    text = (pathlib.Path(workdir) / f"{name}.jsonl").read_text()
    return [x for x in map(json.loads, text.splitlines()) if x["kind"] == kind]


def summary(workdir):
    """summary.json of a run."""
    return json.loads((pathlib.Path(workdir) / "summary.json").read_text())


def steps(workdir):
    """Committed steps on the disk."""
    found = pathlib.Path(workdir).glob("checkpoints/step_*/COMMITTED")
    return sorted(int(path.parent.name.removeprefix("step_")) for path in found)


def edits(message):
    """[(field, text)] of the settings that an error message says to type."""
    found = re.findall(r"--config\.([\w.]+)=([^\s,;]+)", message)
    return [(name, text.rstrip(".")) for name, text in found]
