"""objective.per="example": each document's mean counts one, however rows and batches are cut."""

import functools
import math

import jax
import numpy as np
import pytest

from jaxllm import cli, models, objectives, optim, sharding, trees
from jaxllm.config import ConfigError, make
from jaxllm.training import setup
from jaxllm.training.state import create, place_key
from jaxllm.training.step import StepOptions, make_step
from tests import runs
from tests.conftest import ragged_batch, random_params, tiny_config

VOCAB, LENGTH = 65, 16
BATCH = ragged_batch(rows=8, documents=3)
SGD = dict(kind="sgd", momentum=0.0)


@functools.cache
def model():
    return models.make(tiny_config(VOCAB, LENGTH, layers=1))


def apart(batch):
    """The documents of a batch, one a row."""
    out = {name: [] for name in batch}
    for row in range(len(batch["tokens"])):
        for number in range(1, batch["segment"][row].max() + 1):
            here = batch["segment"][row] == number
            for name, value in batch.items():
                one = np.zeros(LENGTH, value.dtype)
                one[: here.sum()] = value[row][here]
                out[name].append(np.minimum(one, 1) if name == "segment" else one)
    return {name: np.stack(values) for name, values in out.items()}


def mean(params, batch):
    loss = objectives.lm.make(model(), per="example")(params, {}, batch)
    return loss.total / loss.count, loss


gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))
evaluate = jax.jit(mean)


def test_packed_is_as_one_a_row_and_each_document_counts_one():
    params, rows = random_params(model()), apart(BATCH)
    (packed, loss), grads = gradient(params, BATCH)
    (alone, other), grads_alone = gradient(params, rows)
    np.testing.assert_allclose(packed, alone, 1e-6)
    assert loss.count == other.count
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), grads, grads_alone)
    np.testing.assert_allclose(loss.sums["loss"], loss.total, 1e-6)
    # Written out: the mean over documents of their means.
    logp_BTV = jax.nn.log_softmax(jax.jit(model().apply)(params, rows))
    chosen_BT = np.take_along_axis(np.asarray(logp_BTV), rows["targets"][..., None], -1)[..., 0]
    asked_B = rows["weight"].sum(1)
    said = asked_B > 0
    means = -(chosen_BT * rows["weight"]).sum(1)[said] / asked_B[said]
    assert len(set(asked_B)) > 3 and loss.count == said.sum()
    np.testing.assert_allclose(packed, means.mean(), 1e-5)
    assert abs((means * asked_B[said]).sum() / asked_B.sum() - packed) > 1e-3  # not by token


def test_a_weight_is_a_share_of_its_document():
    """Twice the weight of all of a document's tokens changes nothing; none at all leaves it out."""
    params, one = random_params(model()), BATCH["segment"] == 1
    before, loss = evaluate(params, BATCH)
    weight = np.where(one, 2 * BATCH["weight"], BATCH["weight"])
    np.testing.assert_allclose(evaluate(params, {**BATCH, "weight": weight})[0], before, 1e-6)
    weight = np.where(one, 0, BATCH["weight"])
    _, less = evaluate(params, {**BATCH, "weight": weight})
    assert less.count == loss.count - (BATCH["weight"] * one).any(axis=1).sum() < loss.count


@functools.cache
def stepped(micro_batches):
    infos = models.abstract_params(model().config)
    schedule = optim.make_schedule(dict(kind="linear", lr=0.5), 100)
    tx = optim.make_optimizer(SGD, schedule, infos)
    options = StepOptions(clip=0.0, micro_batches=micro_batches)
    params = random_params(model())
    state = create(
        lambda _: jax.tree.map(jax.numpy.asarray, params), tx, None, ema=False, scaled=False
    )
    step = jax.jit(make_step(objectives.lm.make(model(), per="example"), tx, schedule, options))
    state, metrics = step(state, {}, BATCH)
    return trees.flatten(state.params), jax.device_get(metrics)


@pytest.mark.parametrize("micro_batches", [4])
def test_cut_into_micro_batches_is_as_whole(micro_batches):
    whole, metrics = stepped(1)
    cut, cut_metrics = stepped(micro_batches)
    for name in ("loss", "count", "accuracy", "grad_norm"):
        np.testing.assert_allclose(cut_metrics[name], metrics[name], 1e-5, err_msg=name)
    for path, value in whole.items():
        np.testing.assert_allclose(cut[path], value, 1e-4, 1e-6, err_msg=path)


def test_devices_that_share_rows_find_the_same_documents(tmp_path, compile_cache):
    cli.use_compile_cache(compile_cache)
    found = {}
    for mesh in ("data 1", "data 2 x seq 2 x tensor 2"):
        shape = runs.shape_of(mesh)
        wanted = {f"mesh.{axis}": size for axis, size in shape.items()}
        wanted |= {"objective.per": "example", "data.rows": "packed", "data.length": 64}
        wanted["data.sources.main.words"] = 6
        run = setup.assemble(
            runs.config(wanted), tmp_path, jax.devices()[: math.prod(shape.values())]
        )
        rows = sharding.local_rows(run.mesh, 8)
        local = run.train(0, rows)
        state = run.create(place_key(run.mesh, 0))
        _, metrics = run.step(state, {}, sharding.global_batch(run.mesh, rows, local, 8))
        names = ("loss", "count", "grad_norm", "accuracy")
        found[mesh] = [float(metrics[name]) for name in names]
    np.testing.assert_allclose(*found.values(), 1e-5)
    assert found["data 1"][1] == sum(row.max() for row in local["segment"]) > 8


def test_routers_own_losses_are_refused():
    routed = models.make(tiny_config(VOCAB, LENGTH, experts=4, experts_per_token=2))
    section = dict(kind="lm", per="example")
    with pytest.raises(ConfigError, match=r"balance_loss.*\n  Try --config.objective.per=token"):
        make(objectives.OBJECTIVES, section, "objective", routed)
    with pytest.raises(
        ConfigError, match=r"Known: token, example.*\n  Try --config.objective.per=token"
    ):
        make(objectives.OBJECTIVES, dict(kind="lm", per="row"), "objective", model())
