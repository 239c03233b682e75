"""Equalities that must hold for any config on any machine, checked at toy size."""

import pathlib
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxllm import sharding
from jaxllm.training import setup
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.training.state import place_key

STEPS = 4


class Result(NamedTuple):
    """One check: what it compared, how far apart, how far is allowed, seconds."""

    name: str
    compared: str
    difference: float
    allowed: float
    seconds: float

    @property
    def holds(self):
        """Whether the difference is within what is allowed; NaN is not."""
        return bool(self.difference <= self.allowed)


def copy_of(config, **changes):
    """A config with dotted settings changed."""
    copy = ConfigDict(config.to_dict())
    for field, value in changes.items():
        *parents, name = field.split("__")
        section = copy
        for parent in parents:
            section = section[parent]
        section[name] = value
    return copy.lock()


class Bench:
    """Builds runs of one toy config with settings changed, all on the same weights and batches."""

    def __init__(self, config, workdir):
        plain = dict(model__dropout=0.0, step__micro_batches=1, step__ema=0.0)
        # SGD: the first step of Adam divides a gradient by its own size, and so magnifies rounding.
        plain["optim"] = dict(kind="sgd", groups=dict())
        # In a narrower dtype every other order of a sum rounds otherwise.
        plain["model__dtype"] = "float32"
        self.config = copy_of(config, mesh=sharding.full_shape(), **plain)
        self.own = dict(optim=config.optim.to_dict(), model__dtype=config.model.dtype)
        self.workdir = pathlib.Path(workdir)

    def run(self, devices=1, **changes):
        """Assembles the toy config with changes on the first `devices` devices."""
        config = copy_of(self.config, **changes)
        return setup.assemble(config, self.workdir / "run", jax.devices()[:devices])

    def train(self, run, state=None, first=0, last=STEPS):
        """Returns (state, losses) after steps `first` to `last`."""
        state = run.create(place_key(run.mesh, 0)) if state is None else state
        batch = run.config.data.batch
        rows, losses = sharding.local_rows(run.mesh, batch), []
        for step in range(first, last):
            local = run.train(step, rows)
            placed = sharding.global_batch(run.mesh, rows, local, batch)
            state, metrics = run.step(state, {}, placed)
            losses.append(float(metrics["loss"]))
        return state, np.array(losses)


def largest(a, b):
    """Largest difference of two trees, relative to the largest number in each leaf."""

    def one(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if not np.isfinite(x).all() or not np.isfinite(y).all():
            return np.nan
        return np.abs(x - y).max(initial=0) / max(np.abs(x).max(initial=0), 1e-6)

    return float(max(jax.tree.leaves(jax.tree.map(one, a, b)), default=0.0))


def pieces_equal_whole(bench):
    """A batch cut into pieces gives the same update."""
    whole, _ = bench.train(bench.run(), last=1)
    cut, _ = bench.train(bench.run(step__micro_batches=4), last=1)
    return "update of 1 and of 4 pieces", largest(whole.params, cut.params), 1e-5


def remat_equals_none(bench):
    """Recomputing activations changes no loss."""
    _, kept = bench.train(bench.run(model__remat="none"))
    differences = []
    for policy in ("dots", "light", "full"):
        differences.append(largest(kept, bench.train(bench.run(model__remat=policy))[1]))
    return f"{STEPS} losses, remat none, dots, light, full", max(differences), 1e-5


def packed_equals_unpacked(bench):
    """Documents in one row do not see each other."""
    run = bench.run()
    params = run.create(place_key(run.mesh, 0)).params
    T, rng = run.config.data.length, np.random.default_rng(0)
    cut = T // 3
    packed = {
        "tokens": rng.integers(0, run.tokenizer.vocab_size, (2, T)).astype(np.int32),
        "position": np.tile(np.r_[np.arange(cut), np.arange(T - cut)], (2, 1)).astype(np.int32),
        "segment": np.tile(np.r_[np.ones(cut), np.full(T - cut, 2)], (2, 1)).astype(np.int32),
    }
    alone = {name: np.zeros_like(x) for name, x in packed.items()}
    for name in ("tokens", "position"):
        alone[name][:, : T - cut] = packed[name][:, cut:]
    alone["segment"][:, : T - cut] = 1
    apply = jax.jit(run.model.apply)
    together, apart = apply(params, packed)[:, cut:], apply(params, alone)[:, : T - cut]
    return "logits of a document, behind another and alone", largest(together, apart), 1e-5


def one_device_equals_many(bench):
    """The mesh changes no loss."""
    devices = jax.device_count()
    _, single = bench.train(bench.run())
    c = bench.run().model.config
    fits = [n for n in (2, 1) if devices % n == 0 and c.heads % n == 0 and c.mlp_width % n == 0]
    tensor, rest = fits[0], devices // fits[0]
    fsdp = 2 if rest % 2 == 0 else 1
    mesh = sharding.full_shape(data=rest // fsdp, fsdp=fsdp, tensor=tensor)
    _, many = bench.train(bench.run(devices, mesh=mesh))
    return f"{STEPS} losses, 1 device and {sharding.words(mesh)}", largest(single, many), 1e-5


def resumed_equals_uninterrupted(bench):
    """Saving, restoring and going on gives the same bits; own optimizer and dtype."""
    run = bench.run(**bench.own)
    straight, losses = bench.train(run)
    half = STEPS // 2
    state, before = bench.train(run, last=half)
    folder = bench.workdir / "resumed"
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(half, state, {})
        checkpoints.wait()
        state, _ = checkpoints.restore(half, run.abstract)
    resumed, after = bench.train(run, state, first=half)
    pairs = zip(jax.tree.leaves(straight), jax.tree.leaves(resumed), strict=True)
    differs = sum(not jnp.array_equal(a, b) for a, b in pairs)
    differs += not np.array_equal(losses, np.r_[before, after])
    return f"bits of the state after {half} + {half} steps", float(differs), 0.0


def check(config, workdir):
    """Yields a Result for each equality.

    Args:
        config: a config at toy size (`:smoke`).
        workdir: an empty directory for data and checkpoints.
    """
    bench = Bench(config, workdir)
    for function in CHECKS:
        start = time.perf_counter()
        with jax.default_matmul_precision("float32"):  # GPUs and TPUs multiply in less by default
            compared, difference, allowed = function(bench)
        name = function.__name__.replace("_", " ")
        yield Result(name, compared, difference, allowed, time.perf_counter() - start)


CHECKS = (
    pieces_equal_whole,
    packed_equals_unpacked,
    remat_equals_none,
    one_device_equals_many,
    resumed_equals_uninterrupted,
)
