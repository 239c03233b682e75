"""Losses of tasks: their formulas, sums over pieces, devices that change nothing."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxllm import config as configs
from jaxllm import objectives
from jaxllm.config import ConfigError
from jaxllm.training import setup
from jaxllm.training.step import make_gradient
from tests import runs

B, T, D, C = 8, 6, 5, 3


class Linear(NamedTuple):
    """A model that is linear in a table of embeddings, with the interface of `models.Model`."""

    whole: Any
    hidden: Any
    task: Any


def linear(task):
    """The model for a task, and its parameters drawn by NumPy."""

    def hidden(params, batch, key):
        return params["table"][batch["tokens"]], {}

    def mean(x_BTD, batch):
        real_BT1 = (batch["segment"] > 0)[..., None]
        return jnp.sum(x_BTD * real_BT1, axis=1) / jnp.maximum(jnp.sum(real_BT1, axis=1), 1)

    def head(params, x_BTD, batch):
        if task in ("tag", "span"):
            return x_BTD @ params["head"]
        x_BD = mean(x_BTD, batch)
        return x_BD if task == "contrast" else x_BD @ params["head"]

    outputs = {"regress": 1, "span": 2}.get(task, C)
    rng = np.random.default_rng(0)
    shapes = {"table": (20, D), "head": (D, outputs)}
    params = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return Linear(lambda params: params, hidden, head), params


def batch_of(task, rows=B, seed=0):
    """A batch with padding in rows and one row that counts nothing."""
    rng = np.random.default_rng(seed)
    shape = (rows, 2, T) if task == "contrast" else (rows, T)
    length = rng.integers(2, T + 1, shape[:-1])
    segment = (np.arange(T) < length[..., None]).astype(np.int32)
    batch = {"tokens": rng.integers(0, 20, shape).astype(np.int32), "segment": segment}
    batch["position"] = np.arange(T, dtype=np.int32) * segment
    batch["weight"] = np.ones(rows, np.float32)
    if task == "classify":
        batch["label"] = rng.integers(0, C, rows).astype(np.int32)
    elif task == "regress":
        batch["label"] = rng.normal(size=rows).astype(np.float32)
    elif task == "tag":
        batch["targets"] = rng.integers(0, C, shape).astype(np.int32)
        batch["weight"] = (rng.random(shape) < 0.5).astype(np.float32) * segment
    elif task == "span":
        batch["span"] = np.sort(rng.integers(0, length[:, None], (rows, 2))).astype(np.int32)
    batch["weight"][3] = 0
    return batch


def make(task, **options):
    model, params = linear(task)
    section = {"kind": task, **options}
    return configs.make(objectives.OBJECTIVES, section, "objective", model), model, params


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def outputs(task):
    model, params = linear(task)
    batch = batch_of(task)
    return np.asarray(model.task(params, model.hidden(params, batch, None)[0], batch)), batch


def test_classify_is_the_cross_entropy_of_the_examples_that_count():
    loss, _, params = make("classify")
    logits, batch = outputs("classify")
    found = loss(params, {}, batch)
    chance = softmax(logits)[np.arange(B), batch["label"]]
    assert float(found.total) == pytest.approx(-(np.log(chance) * batch["weight"]).sum(), rel=1e-5)
    hit = (logits.argmax(-1) == batch["label"]) * batch["weight"]
    assert float(found.sums["accuracy"]) == hit.sum() and float(found.count) == B - 1


def test_smoothing_and_class_weights_are_those_of_their_formulas():
    logits, batch = outputs("classify")
    loss, _, params = make("classify", smoothing=0.3, class_weights=(0.5, 2.0, 1.0))
    target = 0.7 * np.eye(C)[batch["label"]] + 0.3 / C
    each = -(np.log(softmax(logits)) * target).sum(-1) * np.array([0.5, 2.0, 1.0])[batch["label"]]
    want = (each * batch["weight"]).sum()
    assert float(loss(params, {}, batch).total) == pytest.approx(want, rel=1e-5)


def test_tag_counts_the_words_alone():
    loss, _, params = make("tag")
    logits, batch = outputs("tag")
    chance = np.take_along_axis(softmax(logits), batch["targets"][..., None], -1)[..., 0]
    found = loss(params, {}, batch)
    assert float(found.total) == pytest.approx(-(np.log(chance) * batch["weight"]).sum(), rel=1e-5)
    assert float(found.count) == batch["weight"].sum()


def test_span_is_over_real_tokens():
    loss, _, params = make("span")
    logits, batch = outputs("span")
    logits = np.where(batch["segment"][..., None] > 0, logits, -np.inf)
    each = [
        -np.log(softmax(logits[:, :, side].copy())[np.arange(B), batch["span"][:, side]])
        for side in (0, 1)
    ]
    want = ((each[0] + each[1]) / 2 * batch["weight"]).sum()
    assert float(loss(params, {}, batch).total) == pytest.approx(want, rel=1e-5)
    other = {**batch, "tokens": np.where(batch["segment"] > 0, batch["tokens"], 7)}
    assert float(loss(params, {}, other).total) == pytest.approx(want, rel=1e-5)


def test_regress_is_the_squared_error_in_units_of_the_scale():
    loss, _, params = make("regress", mean=1.0, scale=2.0)
    found, batch = outputs("regress")
    error = found[:, 0] - (batch["label"] - 1) / 2
    got = loss(params, {}, batch)
    assert float(got.total) == pytest.approx((error**2 * batch["weight"]).sum(), rel=1e-5)
    want = 2 * (abs(error) * batch["weight"]).sum()
    assert float(got.sums["absolute"]) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("both_ways", [True, False])
def test_contrast_is_infonce_over_the_examples_that_count(both_ways):
    loss, model, params = make("contrast", temperature=0.2, both_ways=both_ways)
    batch = batch_of("contrast")
    sides = []
    for side in (0, 1):
        one = {name: x[:, side] for name, x in batch.items() if x.ndim == 3}
        z = np.asarray(model.task(params, model.hidden(params, one, None)[0], one))
        sides.append((z / np.linalg.norm(z, axis=-1, keepdims=True))[batch["weight"] > 0])
    cosine = sides[0] @ sides[1].T / 0.2
    want = -np.log(np.diag(softmax(cosine))).sum()
    if both_ways:
        want = (want - np.log(np.diag(softmax(cosine.T))).sum()) / 2
    found = loss(params, {}, batch)
    assert float(found.total) == pytest.approx(want, rel=1e-4)
    assert float(found.sums["accuracy"]) == (cosine.argmax(-1) == np.arange(B - 1)).sum()


TASKS = ["classify", "tag", "span", "regress", "contrast"]


def gradient(task, micro=1, devices=1):
    loss, _, params = make(task)
    specs = {name: PartitionSpec() for name in params}
    mesh = runs.mesh(data=devices) if devices > 1 else None
    found = jax.jit(make_gradient(loss, micro, mesh, specs))(
        params, {}, batch_of(task), None, jnp.float32(1)
    )
    return jax.device_get(found)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_change_nothing(devices, task):
    """Also of losses in which every example is set against all others."""
    (one, grads), (many, parted) = gradient(task), gradient(task, devices=devices)
    assert float(one.count) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), one, many)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), grads, parted)
    assert any(np.abs(g).max() > 1e-3 for g in grads.values())


@pytest.mark.parametrize("task", [t for t in TASKS if t not in objectives.OF_WHOLE_BATCHES])
@pytest.mark.parametrize("micro", [2, 4])
def test_cutting_the_batch_changes_nothing(micro, task):
    (one, grads), (many, parted) = gradient(task), gradient(task, micro)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), one, many)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), grads, parted)


def test_a_batch_cut_in_pieces_is_another_contrast_and_refused():
    assert abs(float(gradient("contrast")[0].total) - float(gradient("contrast", 2)[0].total)) > 0.1
    config = runs.config({"step.micro_batches": 2})
    config.objective.unlock()
    config.objective = {"kind": "contrast"}
    with pytest.raises(
        ConfigError, match=r"pieces of a batch.*\n  Try --config.step.micro_batches=1"
    ):
        setup.check_program(config, 1)


@pytest.mark.parametrize(
    ("task", "options"),
    [("classify", dict(smoothing=1.0)), ("tag", dict(smoothing=-0.1)),
     ("regress", dict(scale=0.0)), ("contrast", dict(temperature=0.0)),
     ("classify", dict(class_weights=(1.0, -1.0)))],
)  # fmt: skip
def test_options_out_of_range_are_refused(task, options):
    with pytest.raises(ConfigError, match=r"config\.objective"):
        make(task, **options)


def test_shapes_that_do_not_fit_are_told():
    loss, _, params = make("classify", class_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match="2 numbers, the model 3 classes"):
        loss(params, {}, batch_of("classify"))
    loss, _, params = make("contrast")
    with pytest.raises(ValueError, match=r"\[B, 2, T\]"):
        loss(params, {}, {**batch_of("contrast"), "tokens": np.zeros((B, 3, T), np.int32)})
