"""The run log: exact, valid, the same after a kill, and closed by a summary however a run ends."""

import json
import math
import os
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.training import jsonl
from jaxllm.training.metrics import STATUSES, RunLog, duration
from jaxllm.training.profile import Profile


def open_log(workdir, first_step=1, total_steps=10, **options):
    return RunLog(workdir, {"lr": 0.1}, total_steps=total_steps, first_step=first_step, **options)


def run_steps(log, steps):
    for step in steps:
        log.train(step, {"loss": math.sin(step) / 3, "lr": 1e-3 / step}, {"tokens_per_s": 5.0})
        if step % 3 == 0:
            log.validation(step, {"loss": math.cos(step) / 7, "perplexity": 2.0, "tokens": 9})


@settings(max_examples=200, deadline=None)
@given(st.floats() | st.integers() | st.floats(width=32).map(np.float32))
def test_every_number_comes_back_to_the_last_bit(value):
    """NaN and infinities included, and the text is JSON that strict readers take."""

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = jsonl.encode({"x": value, "list": [value]})
    json.loads(text, parse_constant=refuse)
    back = jsonl.decode(text)["x"]
    assert back == value or (math.isnan(value) and math.isnan(back))
    assert math.copysign(1, back) == math.copysign(1, value) or math.isnan(value)


def test_device_scalars_are_numbers():
    """A float32 of the device is written as the float64 of the same value."""
    value = jnp.float32(0.1)
    assert jsonl.decode(jsonl.encode({"x": value}))["x"] == float(value)


def test_a_resumed_run_has_the_metrics_of_an_uninterrupted_one(tmp_path):
    """Byte for byte, though it had gone on past its checkpoint and died in the middle of a line."""
    whole = open_log(tmp_path / "whole")
    run_steps(whole, range(1, 11))
    whole.finish("done", {})

    killed = open_log(tmp_path / "killed")
    run_steps(killed, range(1, 9))
    for name in ("metrics", "speed"):
        with open(tmp_path / "killed" / f"{name}.jsonl", "a") as file:
            file.write('{"step": 9, "kind": "tra')
    resumed = open_log(tmp_path / "killed", first_step=7)
    run_steps(resumed, range(7, 11))
    resumed.finish("done", {})

    for name in ("metrics", "speed"):
        one, two = (tmp_path / run / f"{name}.jsonl" for run in ("whole", "killed"))
        assert one.read_bytes() == two.read_bytes(), name


def test_a_line_torn_by_a_kill_costs_that_line_alone(tmp_path):
    """At whatever byte the last line is torn, all lines before it stay."""
    path = tmp_path / "metrics.jsonl"
    log = jsonl.Appender(path)
    log.write({"step": 1, "loss": 1.5})
    log.write({"step": 2, "loss": 2.5})
    log.close()
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for size in range(first, len(whole)):
        path.write_bytes(whole[:size])
        assert jsonl.read(path) == [{"step": 1, "loss": 1.5}]
        assert jsonl.truncate(path, 9) == ([{"step": 1, "loss": 1.5}], [])
        assert path.read_bytes() == whole[:first]


def test_a_damaged_line_is_named(tmp_path, capsys):
    """Reading refuses it with file and line; resuming drops it and says so."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "kind": "train"}\n\0\0\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2"):
        jsonl.read(tmp_path / "metrics.jsonl")
    open_log(tmp_path, first_step=5)
    assert "metrics.jsonl: lines [2] were damaged" in capsys.readouterr().out


def test_a_validation_that_is_already_written_is_known_again(tmp_path):
    """So a run that was killed after it does not validate twice."""
    log = open_log(tmp_path)
    run_steps(log, range(1, 8))
    resumed = open_log(tmp_path, first_step=7)
    assert resumed.recorded_validation(6) == {
        "loss": math.cos(6) / 7,
        "perplexity": 2.0,
        "tokens": 9,
    }
    assert resumed.recorded_validation(5) is None
    assert resumed.recorded_validation(9) is None


@pytest.mark.parametrize("status", STATUSES)
def test_every_ending_leaves_a_summary(tmp_path, status):
    """Status, last metrics, steps, seconds, versions, error; a second end changes nothing."""
    log = open_log(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "running"
    run_steps(log, range(1, 5))
    log.finish(status, {"validation/loss": 1.25}, "out of luck")
    log.finish("done", {"validation/loss": 9.0})
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == status and summary["error"] == "out of luck"
    assert summary["final"]["validation/loss"] == 1.25
    assert summary["final"]["train/loss"] == math.sin(4) / 3
    assert (summary["step"], summary["total_steps"]) == (4, 10)
    assert summary["wall_s"] > 0 and summary["versions"]["jax"]


def test_a_resumed_run_with_nothing_left_keeps_its_final_metrics(tmp_path):
    """Starting a finished run again must not empty its summary."""
    log = open_log(tmp_path)
    run_steps(log, range(1, 11))
    log.finish("done", {})
    before = json.loads((tmp_path / "summary.json").read_text())["final"]
    open_log(tmp_path, first_step=11).finish("done", {})
    after = json.loads((tmp_path / "summary.json").read_text())["final"]
    assert after["validation/loss"] == before["validation/loss"]
    assert after["train/loss"] == before["train/loss"]


def test_a_process_that_is_not_first_writes_nothing(tmp_path, capsys):
    """Every method may be called there, and neither a file nor a line comes of it."""
    log = open_log(tmp_path / "run", writer=False)
    run_steps(log, range(1, 4))
    log.text(3, "sample", "words")
    log.event(3, "something")
    log.finish("done", {})
    assert not (tmp_path / "run").exists() and not capsys.readouterr().out


def test_events_do_not_disturb_what_must_be_reproduced(tmp_path, capsys):
    """What a rerun does not bring again goes to events.jsonl, the rest to metrics.jsonl."""
    log = open_log(tmp_path)
    log.event(2, "fell back to checkpoint 1")
    log.event(3, "update 3 was dropped", deterministic=True)
    assert [line["message"] for line in jsonl.read(tmp_path / "metrics.jsonl")] == [
        "update 3 was dropped"
    ]
    assert "fell back to checkpoint 1" in [
        line["message"] for line in jsonl.read(tmp_path / "events.jsonl")
    ]
    assert "fell back to checkpoint 1" in capsys.readouterr().out


def test_the_progress_line_says_what_a_person_asks(tmp_path, capsys):
    """Step of steps, loss, tokens/s, MFU, learning rate, time left; MFU only where it is known."""
    log = open_log(tmp_path, total_steps=1300)
    metrics = {"loss": 2.34567, "lr": 3e-3}
    log.train(100, metrics, {"tokens_per_s": 18234.5, "mfu": 0.312, "step_s": 0.5})
    line = capsys.readouterr().out
    for part in ("100/1300", "2.3457", "18,234 tokens/s", "MFU 31.2%", "3.00e-03", "10m00s left"):
        assert part in line
    log.train(101, metrics, {"tokens_per_s": 1.0})
    assert "MFU" not in capsys.readouterr().out


def test_time_left_is_written_as_people_do():
    """Two units at most."""
    assert [duration(s) for s in (0, 59, 65, 3600, 90000)] == [
        "0s",
        "59s",
        "1m05s",
        "1h00m",
        "1d01h",
    ]


def test_sampled_text_is_kept_and_shown(tmp_path, capsys):
    """In a file as it was; on the screen without what a terminal would take for a command."""
    log = open_log(tmp_path)
    log.text(3, "sample", "KING:\nü\x1b[2J")
    assert (tmp_path / "samples" / "00000003_sample.txt").read_text() == "KING:\nü\x1b[2J"
    assert "KING:\nü\N{REPLACEMENT CHARACTER}[2J" in capsys.readouterr().out


WRITER = """
import sys
from jaxllm.training.jsonl import Appender
log = Appender(sys.argv[1])
print("ready", flush=True)
for step in range(10**9):
    log.write({"step": step, "loss": step / 3, "text": "x" * 500})
"""


def test_a_killed_writer_leaves_whole_lines(tmp_path):
    """SIGKILL while writing as fast as it can: every line but the last is there and whole."""
    path = tmp_path / "log.jsonl"
    child = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    child.stdout.readline()
    while not path.stat().st_size:
        pass
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    lines = jsonl.read(path)
    assert [line["step"] for line in lines] == list(range(len(lines)))


def test_the_chosen_steps_are_traced(tmp_path, capsys):
    """Steps 2 and 3 are traced into profile/; nothing is where none is asked for."""
    profile, steps = Profile(tmp_path, 2, 2), []
    for step in range(1, 6):
        profile.before(step)
        if profile.tracing:
            steps.append(step)
        profile.after(step, jnp.ones(3) + step)
    assert steps == [2, 3]
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert "tracing steps 2 to 3" in capsys.readouterr().out
    nothing = Profile(tmp_path / "none", 0, 0)
    nothing.before(1)
    nothing.after(1, ())
    nothing.close()
    assert not (tmp_path / "none").exists()
