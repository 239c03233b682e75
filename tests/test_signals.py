"""SIGTERM and Ctrl-C in every phase: saved, out in time, and later gone on with unchanged."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxllm.training import loop, run
from tests import runs

LEAVE_S = 10.0
# Saves and validations last long enough to be met: some megabytes, some hundred batches of a row.
FIELDS = {
    "optim.kind": "adamw",
    "schedule.lr": 0.01,
    "model.width": 128,
    "model.mlp_width": 1024,
    "data.sources.main.documents": 1000,
    "validate.every": 6,
    "validate.batch": 1,
    "validate.batches": 0,
    "checkpoint.every": 4,
    "log.every": 1,
    "steps": 18,
}


class Session:
    """One process of a run, and what has happened since it started."""

    def __init__(self, workdir, fields, **how):
        self.workdir, self.out = workdir, workdir.with_suffix(f".{time.monotonic_ns()}.log")
        self.child = runs.start(runs.command(workdir, fields), self.out, **how)

    def wait_for(self, happened, timeout_s=60):
        """Polls happened() -> bool."""
        end = time.monotonic() + timeout_s
        while not happened():
            assert self.child.poll() is None, self.out.read_text()
            assert time.monotonic() < end, self.out.read_text()
            time.sleep(0.001)

    def signal(self, number=signal.SIGTERM):
        """Returns (status, what was printed), within LEAVE_S."""
        self.child.send_signal(number)
        status = self.child.wait(timeout=LEAVE_S)
        return status, self.out.read_text()

    def said(self, text):
        return text in self.out.read_text()


def saving(workdir):
    """The step of a checkpoint that is begun and not committed, or None."""
    for path in workdir.glob("checkpoints/step_*"):
        if path.exists() and not (path / "COMMITTED").exists():
            return int(path.name.removeprefix("step_"))
    return None


@pytest.fixture
def fields(compile_cache):
    return {**FIELDS, "runtime.compile_cache": compile_cache}


def test_interrupted_in_step_and_save_and_validation_and_by_ctrl_c(fields, tmp_path):
    whole = tmp_path / "whole"
    runs.call(runs.command(whole, fields)).check_returncode()
    workdir = tmp_path / "cut"
    workdir.mkdir()

    def session(happened, number=signal.SIGTERM):
        process = Session(workdir, fields)
        with runs.ending(process.child):
            process.wait_for(lambda: happened(process))
            step = runs.lines(workdir)[-1]["step"] if (workdir / "metrics.jsonl").exists() else 0
            status, out = process.signal(number)
        summary = runs.summary(workdir)
        # What is saved is what was done.
        assert saving(workdir) is None and runs.steps(workdir)[-1] == summary["step"] >= step, out
        return status, summary, out

    status, summary, out = session(lambda p: (saving(workdir) or 0) > 0)
    assert (status, summary["status"]) == (0, "stopped") and "stops after step" in out

    def validating(_):
        """A step with a validation due is being saved, the next has not begun."""
        return any((workdir / f"checkpoints/step_{n:08d}").exists() for n in (12, 18))

    status, summary, out = session(validating)
    assert (status, summary["status"]) == (0, "stopped"), out
    assert "now: validate" in out or "now: save" in out

    status, summary, out = session(lambda p: p.said("step 14/18"), signal.SIGINT)
    assert (status, summary["status"]) == (130, "interrupted"), out

    last = runs.call(runs.command(workdir, fields))
    assert last.returncode == 0, last.stderr
    assert runs.summary(workdir)["status"] == "done"
    assert runs.metrics(workdir) == runs.metrics(whole)


def test_interrupted_while_compiling(compile_cache, tmp_path):
    """The compiler does not listen to signals; what was saved before is waited for."""
    slow = {"model.layers": 24, "model.unroll": 24, "optim.kind": "muon", "runtime.grace_s": 4.0}
    workdir = tmp_path / "run"
    process = Session(workdir, {**slow, "runtime.compile_cache": ""})
    with runs.ending(process.child):
        process.wait_for(lambda: runs.steps(workdir) == [0])
        start = time.monotonic()
        status, out = process.signal()
    assert status == 0 and time.monotonic() - start < 5, out
    assert "now: compile" in out
    summary = runs.summary(workdir)
    assert (summary["status"], summary["step"]) == ("stopped", 0)
    assert "gave up waiting" in summary["error"]
    assert runs.steps(workdir) == [0]


def test_interrupted_while_data_are_prepared(fields, tmp_path):
    """Nothing to save; nothing half-written is taken for data later."""
    workdir = tmp_path / "run"
    slow = {"data.sources.main.documents": 1_000_000, "runtime.grace_s": 4.0}
    process = Session(workdir, {**fields, **slow})
    with runs.ending(process.child):
        process.wait_for(lambda: any(workdir.glob("data/*")))
        status, out = process.signal()
    assert status == 0, out
    assert not runs.steps(workdir)
    cache = {"runtime.compile_cache": fields["runtime.compile_cache"]}
    assert runs.train(runs.config(cache), workdir) == 0


@pytest.fixture
def small(compile_cache):
    always = {"runtime.compile_cache": compile_cache, "runtime.grace_s": 120.0}
    return lambda fields=(): runs.config({**always, **dict(fields)})


def at(step, act):
    """For `runs.train(wrap=…)`: act() when the batch of a step is fetched."""

    def change(number, batch):
        if number == step:
            act()
        return batch

    return runs.changing(change)


def fail():
    raise OSError("the disk is gone")


def kill(number):
    return lambda: os.kill(os.getpid(), number)


ENDINGS = {
    "done": ({}, None, 0),
    "early_stop": ({"validate.patience": 1, "validate.min_gain": 9.0}, None, 0),
    "stopped": ({"log.every": 9, "validate.every": 4}, kill(signal.SIGTERM), 0),
    "interrupted": ({}, kill(signal.SIGINT), 130),
    "failed": ({}, fail, OSError),
}


@pytest.mark.parametrize("status", ENDINGS)
def test_the_summary_tells_how_the_run_ended(status, small, tmp_path):
    fields, act, expected = ENDINGS[status]
    wrap = at(7, act) if act else None  # fetched ahead, so that a signal comes after step 4
    if isinstance(expected, int):
        assert runs.train(small(fields), tmp_path, wrap=wrap) == expected
    else:
        with pytest.raises(expected):
            runs.train(small(fields), tmp_path, wrap=wrap)
    summary = runs.summary(tmp_path)
    assert summary["status"] == status
    step = {"done": 12, "early_stop": 8, "failed": 7}.get(status, runs.steps(tmp_path)[-1])
    assert summary["step"] == step and (summary["total_steps"], summary["first_step"]) == (12, 1)
    assert bool(summary["error"]) == (status == "failed")
    assert summary["versions"]["jax"] and summary["wall_s"] > 0
    for kind in ("train", "validation"):
        (*_, last) = runs.lines(tmp_path, kind)
        for name, value in last.items():
            assert name in ("kind", "step") or summary["final"][f"{kind}/{name}"] == value
    losses = [x["loss"] for x in runs.lines(tmp_path, "validation")]
    assert summary["final"]["best_validation_loss"] == losses[0 if status == "early_stop" else -1]
    assert summary["final"]["train/step"] == runs.lines(tmp_path)[-1]["step"]


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_so_many_seconds_of_steps_wait_for_the_device(seconds, small, tmp_path, monkeypatch):
    """They are what a signal waits for, which a line of the log every hundred updates is not."""
    monkeypatch.setattr(loop, "AHEAD_S", seconds)
    compile_step, skipped, waiting = run.compile_step, [], []

    class Watched:
        def __init__(self, of):
            self.step = compile_step(of)

        def __call__(self, *args):
            waiting.append(sum(not one.is_ready() for one in skipped))
            state, metrics = self.step(*args)
            skipped.append(metrics["skipped"])
            return state, metrics

        def __getattr__(self, name):
            return getattr(self.step, name)

    monkeypatch.setattr(run, "compile_step", Watched)
    wide = {"model.width": 128, "model.mlp_width": 1024, "data.batch": 32, "data.length": 128}
    never = {"log.every": 100, "validate.every": 0, "checkpoint.every": 0}
    assert runs.train(small({**wide, **never}), tmp_path) == 0
    assert (max(waiting) == 0) == (seconds == 0), waiting


def test_a_step_that_a_signal_cannot_wait_for_is_told_of_once(small, tmp_path):
    def told(grace_s):
        workdir = tmp_path / str(grace_s)
        grace = {"runtime.grace_s": grace_s, "log.every": 1}
        assert runs.train(small(grace), workdir, wrap=runs.changing(late)) == 0
        events = [event["message"] for event in runs.lines(workdir, "event", "events")]
        return [text for text in events if "a stop is waited for" in text]

    def late(number, batch):
        time.sleep(0.2)
        return batch

    (text,) = told(3.05)
    assert ("runtime.grace_s", "4") in runs.edits(text), text
    assert told(60.0) == []


@pytest.mark.slow
def test_killed_and_terminated_and_damaged_at_random():
    few = ["--kills=4", "--damages=8", "--terms=2"]  # benchmarks/torture.py does more, in 20 min
    words = [sys.executable, "-m", "benchmarks.torture", *few]
    done = subprocess.run(
        words, capture_output=True, text=True, env=runs.environment(), cwd=runs.ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
