"""A batch that makes the loss NaN costs one update; several in a row stop the run."""

import os
import signal

import jax
import numpy as np
import pytest

from jaxllm import cli
from jaxllm.training import setup
from jaxllm.training.loop import NonFiniteError
from jaxllm.training.state import place_key
from tests import runs


@pytest.fixture
def small(compile_cache):
    """fields -> config of a tiny run that keeps a momentum, an average and some dropout."""
    always = {
        "optim.kind": "adamw",
        "schedule.lr": 0.01,
        "step.ema": 0.9,
        "model.dropout": 0.1,
        "runtime.compile_cache": compile_cache,
        "runtime.grace_s": 120.0,
    }
    return lambda fields=(): runs.config({**always, **dict(fields)})


def nan_at(*steps, also=None):
    """NaN in one weight of the batches with these numbers, counted from 0."""

    def change(step, batch):
        if also:
            also(step)
        if step in steps:
            weight = batch["weight"].copy()
            weight[2, 3] = np.nan
            return {**batch, "weight": weight}
        return batch

    return runs.changing(change)


def events(workdir):
    return [x["message"] for x in runs.lines(workdir, "event", "events")]


def test_a_nan_in_one_batch_drops_that_update_bit_for_bit(small, tmp_path):
    cli.use_compile_cache(small().runtime.compile_cache)
    run = setup.assemble(small(), tmp_path, jax.devices()[:1])
    source, state = nan_at(2)(run.train), run.create(place_key(run.mesh, 0))
    for step in range(4):
        before = jax.device_get(state)
        state, metrics = run.step(state, {}, source(step))
        after = jax.device_get(state)
        same = [
            jax.tree.all(jax.tree.map(np.array_equal, getattr(before, part), getattr(after, part)))
            for part in ("params", "opt", "ema")
        ]
        assert same == [step == 2] * 3
        assert after.step == step + 1
        assert (after.skipped, after.bad_run) == (step >= 2, step == 2)
        assert np.isnan(metrics["loss"]) == (step == 2)


def test_at_the_limit_nothing_is_applied_any_more(small, tmp_path):
    """So however late the loop looks, the state is that of the last good update."""
    run = setup.assemble(small(), tmp_path, jax.devices()[:1])
    state = run.create(place_key(run.mesh, 0))
    state = state._replace(bad_run=state.bad_run + 4)
    before = jax.device_get(state)
    state, metrics = run.step(state, {}, run.train(0))
    assert np.isfinite(metrics["loss"]) and state.bad_run == 4
    jax.tree.map(np.testing.assert_array_equal, before.params, state.params)


def test_training_goes_on_after_it_and_says_which_update_was_dropped(small, tmp_path):
    assert runs.train(small(), tmp_path, wrap=nan_at(4)) == 0
    losses = {x["step"]: float(x["loss"]) for x in runs.lines(tmp_path)}
    assert [step for step, loss in losses.items() if np.isnan(loss)] == [5]
    assert losses[12] < losses[1]
    assert any("update 5 was not finite" in message for message in events(tmp_path))
    summary = runs.summary(tmp_path)
    assert summary["status"] == "done" and summary["final"]["train/skipped"] == 1


def test_how_often_the_run_looks_changes_nothing(small, tmp_path):
    seen = {}
    for every in (1, 5, 12):
        workdir = tmp_path / str(every)
        runs.train(small({"log.every": every}), workdir, wrap=nan_at(1, 6, 7, 8))
        seen[every] = {
            (x["kind"], x["step"]): x
            for kind in ("train", "validation")
            for x in runs.lines(workdir, kind)
        }
        dropped = [m.split()[1] for m in events(workdir) if "was dropped" in m]
        assert dropped == ["2", "7", "8", "9"]
    for every in (5, 12):
        shared = seen[every].keys() & seen[1].keys()
        assert ("train", 12) in shared and ("validation", 8) in shared
        assert all(str(seen[every][at]) == str(seen[1][at]) for at in shared)


@pytest.mark.parametrize("every", [1, 12])
def test_four_in_a_row_stop_the_run_and_the_last_finite_checkpoint_is_good(every, small, tmp_path):
    config = small({"log.every": every, "checkpoint.keep_last": 9})
    assert runs.train(config, tmp_path / "whole") == 0
    with pytest.raises(NonFiniteError, match=r"4 updates in a row.*--config.schedule.lr"):
        runs.train(config, tmp_path / "bad", wrap=nan_at(*range(4, 12)))
    summary = runs.summary(tmp_path / "bad")
    assert summary["status"] == "failed" and "NonFiniteError" in summary["error"]
    assert summary["step"] == 8  # not later, though it logs every 12
    assert runs.steps(tmp_path / "bad")[:3] == [0, 3, 4]
    # From step 4 on, without the bad batches, all is as if they had never been.
    for step in runs.steps(tmp_path / "bad")[3:]:
        (tmp_path / f"bad/checkpoints/step_{step:08d}/COMMITTED").unlink()
    assert runs.train(config, tmp_path / "bad") == 0
    assert runs.metrics(tmp_path / "bad") == runs.metrics(tmp_path / "whole")


def test_a_run_stopped_among_bad_updates_counts_on(small, tmp_path):
    def stop(step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    config, bad = small({"checkpoint.every": 0}), (3, 5, 6, 8)
    assert runs.train(config, tmp_path / "whole", wrap=nan_at(*bad)) == 0
    runs.train(config, tmp_path / "cut", wrap=nan_at(*bad, also=stop))
    assert runs.summary(tmp_path / "cut")["status"] == "stopped"
    assert runs.train(config, tmp_path / "cut", wrap=nan_at(*bad)) == 0
    assert runs.metrics(tmp_path / "cut") == runs.metrics(tmp_path / "whole")
    assert [m for m in events(tmp_path / "cut") if "dropped" in m] == [
        m for m in events(tmp_path / "whole") if "dropped" in m
    ]
