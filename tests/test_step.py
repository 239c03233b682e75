"""One step: the same update however a batch is cut, and what else a step promises."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, objectives, optim, trees
from jaxllm.training.state import FIRST_SCALE, LossScale, TrainState, create
from jaxllm.training.step import GROWTH_STEPS, StepOptions, make_evaluate, make_step
from tests.conftest import ragged_batch, random_params, tiny_config

VOCAB, LENGTH, LR = 65, 16, 0.5
BATCH = ragged_batch(rows=8)
FREE = StepOptions(clip=0.0)


@functools.cache
def make_model(**fields):
    return models.make(tiny_config(VOCAB, LENGTH, layers=1, **fields))


@functools.cache
def make_stepper(lr=LR, chunk=0, options=FREE, **fields):
    """Returns (state of step 0, compiled step that does not donate); SGD without momentum."""
    model = make_model(**fields)
    infos = models.abstract_params(model.config)
    schedule = optim.make_schedule(dict(kind="linear", lr=lr), 100)
    tx = optim.make_optimizer(dict(kind="sgd", momentum=0.0), schedule, infos)
    loss = objectives.lm.make(model, chunk=chunk)
    params = jax.tree.map(jnp.asarray, random_params(model))
    scaled = model.config.dtype == "float16"
    state = create(lambda _: params, tx, None, ema=bool(options.ema), scaled=scaled)
    step = jax.jit(make_step(loss, tx, schedule, options))
    return state, step.lower(state, {}, BATCH).compile()


def run(batch=BATCH, steps=1, start=None, **how):
    """Returns (state, metrics) after `steps` steps on the same batch."""
    state, step = make_stepper(**how)
    state = start or state
    for _ in range(steps):
        state, metrics = step(state, {}, batch)
    return state, jax.device_get(metrics)


def with_nan(batch):
    weight = batch["weight"].copy()
    weight[3, 1] = np.nan
    return {**batch, "weight": weight}


def update(state, **how):
    """What a step added to the parameters, by path."""
    before, _ = make_stepper(**how)
    return {
        path: np.asarray(leaf, np.float64) - np.asarray(trees.flatten(before.params)[path])
        for path, leaf in trees.flatten(state.params).items()
    }


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_cutting_a_batch_of_uneven_rows_changes_nothing(micro_batches):
    weights = BATCH["weight"].sum(1)
    assert len(set(weights)) > 2  # so that a mean of means would differ
    whole, metrics = run()
    cut, cut_metrics = run(options=StepOptions(clip=0.0, micro_batches=micro_batches))
    moved, moved_cut = update(whole), update(cut)
    for path in moved:
        size = np.linalg.norm(moved[path])
        # A rounding of the parameters themselves is in both.
        room = 2e-7 * np.linalg.norm(np.asarray(trees.flatten(whole.params)[path]))
        assert np.linalg.norm(moved[path] - moved_cut[path]) <= 1e-6 * size + room, path
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6), whole, cut)
    assert metrics.keys() == cut_metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(cut_metrics[name], metrics[name], 1e-6, err_msg=name)


def plain_loss(model, params, batch, z_loss):
    """Cross-entropy and z-loss written out over all logits, in nats a token."""
    logits_BTV = model.apply(params, batch)
    log_p_BTV = jax.nn.log_softmax(logits_BTV)
    chosen_BT = jnp.take_along_axis(log_p_BTV, batch["targets"][..., None], -1)[..., 0]
    partition_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
    terms_BT = -chosen_BT + z_loss * partition_BT**2
    return jnp.sum(terms_BT * batch["weight"]) / jnp.sum(batch["weight"])


@functools.cache
def plain_gradient(z_loss):
    def loss(params):
        return plain_loss(make_model(), params, BATCH, z_loss)

    return jax.jit(jax.value_and_grad(loss))(random_params(make_model()))


@pytest.mark.parametrize("chunk, z_loss", [(0, 0.0), (1, 0.01), (4, 0.01), (LENGTH, 0.01)])
def test_chunked_cross_entropy_equals_the_plain_formula(chunk, z_loss):
    loss_fn = objectives.lm.make(make_model(), chunk=chunk, z_loss=z_loss)

    def mean(params):
        loss = loss_fn(params, {}, BATCH)
        return loss.total / loss.count, loss

    gradient = jax.jit(jax.value_and_grad(mean, has_aux=True))
    (value, loss), grads = gradient(random_params(make_model()))
    expected, expected_grads = plain_gradient(z_loss)
    np.testing.assert_allclose(value, expected, 1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), grads, expected_grads)
    # What is reported as the loss is without the z-loss.
    np.testing.assert_allclose(loss.sums["loss"] / loss.count, run()[1]["loss"], 1e-6)


def test_weights_say_what_counts():
    _, metrics = run()
    elsewhere = BATCH["targets"].copy()
    elsewhere[BATCH["weight"] == 0] = 7
    assert run({**BATCH, "targets": elsewhere})[1]["loss"] == metrics["loss"]
    assert metrics["count"] == BATCH["weight"].sum()
    # A token of weight 2 is one that occurs twice.
    double = {name: np.concatenate([x, x[:1]]) for name, x in BATCH.items()}
    weight = BATCH["weight"].copy()
    weight[0] *= 2
    twice = jax.jit(make_evaluate(objectives.lm.make(make_model())))
    a, b = (
        twice(random_params(make_model()), {}, x) for x in (double, {**BATCH, "weight": weight})
    )
    np.testing.assert_allclose(a.total, b.total, 1e-6)
    np.testing.assert_allclose(a.count, b.count)


def test_the_gradient_is_cut_to_the_largest_norm():
    (steep, a), (flat, b) = run(), run(ragged_batch(rows=8, seed=1, documents=5))
    if a["grad_norm"] < b["grad_norm"]:
        (steep, a), (flat, b) = (flat, b), (steep, a)
    limit = float(a["grad_norm"] + b["grad_norm"]) / 2
    step = make_stepper(options=StepOptions(clip=limit))[1]
    start, batches = make_stepper()[0], (BATCH, ragged_batch(rows=8, seed=1, documents=5))
    cut, metrics = max((step(start, {}, x) for x in batches), key=lambda x: x[1]["grad_norm"])
    np.testing.assert_allclose(metrics["grad_norm"], a["grad_norm"], 1e-6)  # the norm before
    length = math.sqrt(sum((u**2).sum() for u in update(cut).values()))
    np.testing.assert_allclose(length, LR * limit, 1e-5)
    free, _ = min((step(start, {}, x) for x in batches), key=lambda x: x[1]["grad_norm"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6, 1e-7), free, flat)


def test_the_average_of_weights_follows_its_formula():
    decay = 0.9
    state, step = make_stepper(options=StepOptions(clip=0.0, ema=decay))
    average = {p: np.asarray(x, np.float64) for p, x in trees.flatten(state.params).items()}
    for _ in range(3):
        state, _ = step(state, {}, BATCH)
        for path, leaf in trees.flatten(state.params).items():
            average[path] = decay * average[path] + (1 - decay) * np.asarray(leaf, np.float64)
    for path, leaf in trees.flatten(state.ema).items():
        np.testing.assert_allclose(leaf, average[path], 1e-6, 1e-6)
    plain, _ = run(steps=3)
    assert plain.ema == ()
    jax.tree.map(np.testing.assert_array_equal, plain.params, state.params)


def test_the_reported_rate_is_the_one_that_was_used():
    schedule = optim.make_schedule(dict(kind="linear", lr=LR), 100)
    state, step = make_stepper()
    for index in range(4):
        before = state
        batch = with_nan(BATCH) if index == 1 else BATCH
        state, metrics = step(state, {}, batch)
        applied = index - (index > 1)  # a dropped update does not move along the schedule
        np.testing.assert_allclose(metrics["lr"], schedule(applied), 1e-6)
        if index != 1:
            moved = jax.tree.map(lambda a, b: a - b, state.params, before.params)
            length = math.sqrt(sum(float((u**2).sum()) for u in jax.tree.leaves(moved)))
            np.testing.assert_allclose(length, metrics["lr"] * metrics["grad_norm"], 1e-4)


DROPOUT = dict(dropout=0.5, lr=1e-30, options=StepOptions(micro_batches=2, dropout=True))


def test_dropout_is_the_same_again_and_another_in_the_next_step():
    state, step = make_stepper(**DROPOUT)
    first, metrics = step(state, {}, BATCH)
    assert step(state, {}, BATCH)[1]["loss"] == metrics["loss"]
    assert step(first, {}, BATCH)[1]["loss"] != metrics["loss"]  # the parameters have not moved
    evaluate = jax.jit(make_evaluate(objectives.lm.make(make_model(dropout=0.5))))
    clean = evaluate(state.params, {}, BATCH)
    np.testing.assert_allclose(clean.total / clean.count, run()[1]["loss"], 1e-6)


def test_pieces_of_a_batch_have_dropout_of_their_own():
    alike = {name: np.repeat(x[:1], 8, axis=0) for name, x in BATCH.items()}
    of_piece = []
    for piece in (0, 1):
        weight = alike["weight"] * (np.arange(8) % 2 == piece)[:, None]
        of_piece.append(run({**alike, "weight": np.float32(weight)}, **DROPOUT)[1]["loss"])
    assert of_piece[0] != of_piece[1]


HALF = dict(dtype="float16")


def test_an_overflow_in_float16_halves_the_scale_and_is_no_bad_update():
    state, _ = make_stepper(**HALF)
    assert state.scale.factor == FIRST_SCALE
    start = state._replace(scale=LossScale(jnp.float32(2.0**40), jnp.int32(5)))
    new, metrics = run(start=start, **HALF)
    assert metrics["loss_scale"] == 2.0**40
    assert (new.scale.factor, new.scale.good) == (2.0**39, 0)
    assert (new.skipped, new.bad_run) == (1, 0)
    jax.tree.map(np.testing.assert_array_equal, new.params, start.params)
    new, metrics = run(start=start, steps=40, **HALF)  # until it fits
    assert new.scale.factor <= 2.0**24 and metrics["bad_run"] == 0
    assert any(np.abs(u).max() > 0 for u in update(new, **HALF).values())


def test_a_bad_update_counts_at_the_lowest_scale():
    state, _ = make_stepper(**HALF)
    start = state._replace(scale=LossScale(jnp.float32(1.0), jnp.int32(5)))
    new, _ = run(with_nan(BATCH), start=start, **HALF)
    assert (new.scale.factor, new.skipped, new.bad_run) == (1.0, 1, 1)


def test_the_scale_grows_after_enough_finite_steps_and_does_not_change_the_update():
    state, _ = make_stepper(**HALF)
    start = state._replace(scale=LossScale(jnp.float32(1024.0), jnp.int32(GROWTH_STEPS - 1)))
    new, _ = run(start=start, **HALF)
    assert (new.scale.factor, new.scale.good) == (2048.0, 0)
    once, _ = run(start=new, **HALF)
    assert (once.scale.factor, once.scale.good) == (2048.0, 1)
    other, _ = run(start=state, **HALF)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-2, 1e-3), new.params, other.params
    )


def test_bfloat16_computes_but_float32_is_kept():
    half = dict(dtype="bfloat16", lr=1e-4)
    state, metrics = run(**half)
    floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert all(x.dtype == jnp.float32 for x in floats)
    # An update far below what bfloat16 can add to the weights is not lost.
    moved = update(state, **half)
    assert all(0 < np.abs(u).max() < 2**-10 for u in moved.values())
    full = run()[1]
    assert metrics["loss"] != full["loss"]
    np.testing.assert_allclose(metrics["loss"], full["loss"], 3e-2)


def shapes_in(compiled):
    """All array shapes in the text of a compiled program."""
    found = re.findall(r"\b(?:f32|bf16|f16|pred|s32)\[([\d,]*)\]", compiled.as_text())
    return {tuple(map(int, text.split(","))) for text in found if text}


def test_a_chunked_loss_never_holds_all_logits():
    def largest(chunk):
        _, step = make_stepper(chunk=chunk)
        return max(math.prod(s) for s in shapes_in(step) if VOCAB in s)

    assert largest(0) >= 8 * LENGTH * VOCAB
    assert largest(4) <= max(8 * 4 * VOCAB, VOCAB * 32)


def test_a_chunked_loss_computes_no_logits_twice():
    def flops(chunk):
        _, step = make_stepper(chunk=chunk, unroll=True)
        return step.cost_analysis()["flops"]

    # A loop's body is counted once: two pieces for one.
    head = 2 * 8 * LENGTH * VOCAB * 32
    assert abs(flops(LENGTH // 2) - (flops(0) - 3 * head / 2)) < head / 4


def test_pieces_of_a_loss_take_a_head_of_few_bits():
    """Whose codes are integers, without a gradient."""

    def loss(scale, x, n):
        def one(head, x, y):
            z = jnp.einsum("BTD,DV->BTV", x, head["scale"] * head["codes"])
            return jnp.sum(jnp.square(z - y)), jnp.sum(z)

        head = {"codes": jnp.arange(12, dtype=jnp.int8).reshape(4, 3), "scale": scale}
        return objectives.lm.add_pieces(one, head, x, jnp.ones((2, 6, 3)), n)[0]

    gradient = jax.grad(loss, argnums=(0, 1))
    x = jnp.linspace(-1, 1, 48).reshape(2, 6, 4)
    whole, cut = gradient(0.5, x, 1), gradient(0.5, x, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), cut, whole)


def test_a_step_leaves_nothing_behind_that_the_state_does_not_name():
    state, _ = run(steps=2)
    assert isinstance(state, TrainState)
    assert (state.step, state.skipped, state.bad_run) == (2, 0, 0)
    assert state.scale == ()
