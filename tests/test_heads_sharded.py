"""Heads of tasks on a real encoder: devices of every axis change neither sums nor gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import objectives
from jaxllm.config import ConfigError
from jaxllm.training import setup
from jaxllm.training.fits import HEADS
from jaxllm.training.step import make_gradient
from tests import runs
from tests.conftest import random_params
from tests.test_assemblies import LENGTH, VOCAB, make_batch, make_model

LABELS = {"classify": 3, "tag": 3, "span": 2, "regress": 1, "contrast": 1}


def rows_of(kind, rows=8):
    """A batch for a task, with a row that counts nothing."""
    rng = np.random.default_rng(7)
    batch = {n: x for n, x in make_batch("bert", rows).items() if n != "targets"}
    batch["segment"] = np.minimum(batch["segment"], 1)
    batch["position"] = np.tile(np.arange(LENGTH, dtype=np.int32), (rows, 1)) * batch["segment"]
    batch["weight"] = np.ones(rows, np.float32)
    if kind == "classify":
        batch["label"] = rng.integers(0, 3, rows).astype(np.int32)
    elif kind == "regress":
        batch["label"] = rng.normal(size=rows).astype(np.float32)
    elif kind == "span":
        batch["span"] = np.sort(rng.integers(0, 4, (rows, 2))).astype(np.int32)
    elif kind == "tag":
        batch["targets"] = rng.integers(0, 3, (rows, LENGTH)).astype(np.int32)
        batch["weight"] = batch["segment"].astype(np.float32)
    else:
        other = {n: np.roll(x, 1, axis=-1) for n, x in batch.items()}
        other["tokens"] = rng.integers(0, VOCAB, other["tokens"].shape).astype(np.int32)
        names = ("tokens", "position", "segment")
        sides = {n: np.stack([batch[n], (batch if n != "tokens" else other)[n]], 1) for n in names}
        batch = {**sides, "weight": batch["weight"]}
    batch["weight"][5] = 0
    return batch


def spread(kind, mesh, batch):
    """(sums, gradients) of a task's loss over a mesh."""
    options = dict(task=HEADS[kind], labels=LABELS[kind], pool="mean", lm_head=False)
    model, specs = make_model("bert", mesh, pool_layer=kind == "classify", **options)
    params = random_params(model)
    gradient = jax.jit(make_gradient(objectives.OBJECTIVES[kind](model), 1, mesh, specs))
    return jax.device_get(gradient(params, {}, batch, None, jnp.float32(1)))


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(
    "mesh",
    ["data 2 x fsdp 2 x tensor 2", pytest.param("fsdp 2 x tensor 4", marks=pytest.mark.slow)],
)
def test_devices_of_tensor_count_each_row_once(kind, mesh):
    batch = rows_of(kind)
    one, grads = spread(kind, runs.mesh(data=1), batch)
    many, parted = spread(kind, runs.mesh(**runs.shape_of(mesh)), batch)
    assert float(one.count) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4), one, many)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    assert largest > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-3, 1e-5 * largest), grads, parted)


def test_rows_that_a_ring_would_cut_are_refused():
    config = runs.config({"mesh.seq": 2})
    config.objective.unlock()
    config.objective = {"kind": "classify"}
    with pytest.raises(ConfigError, match=r"whole ones.\n  Try --config.mesh.seq=1"):
        setup.check_program(config, 8)
