"""However a run is interrupted, what it leaves is what an uninterrupted run leaves."""

import os
import random
import signal

import numpy as np
import pytest

from jaxllm import tokenizers
from jaxllm.config import ConfigError
from tests import runs

random_step = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID")).randint

KINDS = {
    "sgd": {},
    "muon": {
        "optim.kind": "muon",
        "schedule.lr": 0.02,
        "model.dropout": 0.3,
        "step.ema": 0.9,
        "step.micro_batches": 2,
        "sample.tokens": 4,
        "sample.every": 5,
        "checkpoint.every": 5,
        "log.every": 3,
    },
    "early stop": {"validate.every": 2, "validate.patience": 4, "validate.min_gain": 9.0},
}


@pytest.fixture
def small(compile_cache):
    """fields -> config of a tiny run."""

    def make(fields=()):
        always = {"runtime.compile_cache": compile_cache, "runtime.grace_s": 120.0}
        return runs.config({**always, **dict(fields)})

    return make


def stop_at(step):
    """SIGTERM to this very process when the batch of a step is fetched."""

    def change(at, batch):
        if at == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return batch

    return runs.changing(change)


def fail_at(step):
    """A read error when the batch of a step is fetched."""

    def change(at, batch):
        if at == step:
            raise OSError("the disk is gone")
        return batch

    return runs.changing(change)


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_failed_and_resumed_equals_uninterrupted(kind, small, tmp_path):
    config = small(KINDS[kind])
    assert runs.train(config, tmp_path / "whole") == 0
    last = runs.summary(tmp_path / "whole")["step"]
    assert last == 12 if kind != "early stop" else last < 12
    stop, fail = random_step(1, last // 2), random_step(last // 2 + 2, last - 1)
    cut = tmp_path / "cut"
    assert runs.train(config, cut, wrap=stop_at(stop)) == 0
    assert runs.summary(cut)["status"] == "stopped"
    assert 0 < runs.summary(cut)["step"] == runs.steps(cut)[-1] < last
    with pytest.raises(OSError, match="the disk is gone"):
        runs.train(config, cut, wrap=fail_at(fail))
    assert "the disk is gone" in runs.summary(cut)["error"]
    assert runs.train(config, cut) == 0
    assert runs.metrics(cut) == runs.metrics(tmp_path / "whole"), (stop, fail)
    ends = [runs.summary(d) for d in (cut, tmp_path / "whole")]
    assert ends[0]["status"] == ends[1]["status"] == ("early_stop" if "early" in kind else "done")
    for name, value in ends[1]["final"].items():
        assert name.startswith("speed/") or ends[0]["final"][name] == value, name
    samples = [
        {p.name: p.read_text() for p in d.glob("samples/*")} for d in (cut, tmp_path / "whole")
    ]
    assert samples[0] == samples[1] and bool(samples[0]) == (kind == "muon")


def test_resumed_on_another_mesh(small, tmp_path):
    whole, one, eight = tmp_path / "whole", small(), small({"mesh.fsdp": 2, "mesh.tensor": 2})
    assert runs.train(one, whole) == 0
    cut = tmp_path / "cut"
    runs.train(one, cut, wrap=stop_at(4))
    assert runs.train(eight, cut, devices=8) == 0
    for a, b in zip(runs.lines(whole), runs.lines(cut), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], 1e-5)


def test_more_steps_go_on_from_the_end(small, tmp_path):
    fields = {"schedule.kind": "constant", "validate.every": 3}
    runs.train(small(fields), tmp_path / "whole")
    runs.train(small({**fields, "steps": 6}), tmp_path / "longer")
    assert runs.train(small(fields), tmp_path / "longer") == 0
    assert runs.metrics(tmp_path / "longer") == runs.metrics(tmp_path / "whole")


def test_a_finished_run_is_left_alone_and_says_so(small, tmp_path, capsys):
    for fields in ({}, KINDS["early stop"]):
        workdir = tmp_path / str(len(fields))
        runs.train(small(fields), workdir)
        before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.suffix}
        capsys.readouterr()
        assert runs.train(small(fields), workdir) == 0
        assert "nothing to do" in capsys.readouterr().out
        after = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.suffix}
        assert {p for p in after if after[p] != before.get(p)} <= {workdir / "run.lock"}


def largest_file(workdir, step):
    folder = workdir / "checkpoints" / f"step_{step:08d}" / "arrays"
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_damaged_newest_checkpoint_costs_a_few_steps_and_nothing_else(small, tmp_path, capsys):
    config, cut = small(), tmp_path / "cut"
    runs.train(config, tmp_path / "whole")
    runs.train(config, cut, wrap=stop_at(7))
    *_, before, newest = runs.steps(cut)
    path = largest_file(cut, newest)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    capsys.readouterr()
    assert runs.train(config, cut) == 0
    out = capsys.readouterr().out
    assert "damaged" in out and f"resumed from {before}" in out
    assert (cut / "checkpoints" / "bad" / f"step_{newest:08d}_1").is_dir()
    assert runs.metrics(cut) == runs.metrics(tmp_path / "whole")


def test_a_setting_that_changed_is_told(small, tmp_path, capsys):
    runs.train(small(), tmp_path, wrap=stop_at(3))
    capsys.readouterr()
    runs.train(small(), tmp_path, wrap=stop_at(4))
    assert " was " not in capsys.readouterr().out
    batch = small().data.batch
    fields = {"data.batch": 2 * batch, "step.clip": 0.5}
    with pytest.raises(ConfigError, match=rf"was +is\n +batch +{batch} +{2 * batch}\n.*accept"):
        runs.train(small(fields), tmp_path)
    assert runs.train(small({**fields, "data.on_change": "accept"}), tmp_path) == 0
    out = capsys.readouterr().out
    assert f"config.data.batch was {batch} in this run, and is {2 * batch} from here on" in out
    assert "config.step.clip was 1.0" in out and out.count(" was ") == 3


@pytest.mark.parametrize(
    "name, value, told",
    [
        ("seed", 5, "seed"),
        ("data.rows", "packed", "rows"),
        ("data.sources.main.documents", 77, "sources.main.shards"),
        ("data.curriculum.kind", "length", "sources.main.curriculum"),
    ],
)
def test_rows_in_another_order_are_refused(name, value, told, small, tmp_path):
    runs.train(small(), tmp_path, wrap=stop_at(3))
    before = {p: p.read_bytes() for p in tmp_path.glob("*.json*")}
    with pytest.raises(ConfigError, match=rf"was +is\n +{told} ") as error:
        runs.train(small({name: value}), tmp_path)
    assert runs.edits(str(error.value)) == [("data.on_change", "accept")]
    assert {p: p.read_bytes() for p in before} == before
    assert runs.train(small({name: value, "data.on_change": "accept"}), tmp_path) == 0


def test_all_checkpoints_damaged_starts_anew(small, tmp_path):
    config, cut = small(), tmp_path / "cut"
    runs.train(config, tmp_path / "whole")
    runs.train(config, cut, wrap=stop_at(7))
    for step in runs.steps(cut):
        path = largest_file(cut, step)
        path.write_bytes(path.read_bytes()[:-1])
    assert runs.train(config, cut) == 0
    assert runs.metrics(cut) == runs.metrics(tmp_path / "whole")


def test_another_tokenizer_is_refused(small, tmp_path):
    """Same kind, same size, another character: the model would read other text."""
    letters = "abcdefghijklmnopqrstuvwxyz ,.\n"
    for extra, directory in (("Q", tmp_path / "q"), ("Z", tmp_path / "z")):
        made = tokenizers.make(dict(kind="char"), lambda extra=extra: iter([letters + extra]))
        made.save(directory)
    config, workdir = small({"tokenizer.kind": "char", "steps": 2}), tmp_path / "run"
    workdir.mkdir()
    (tmp_path / "q").rename(workdir / "tokenizer")
    runs.train(config, workdir)
    (workdir / "tokenizer").rename(tmp_path / "old")
    (tmp_path / "z").rename(workdir / "tokenizer")
    before = runs.metrics(workdir)
    with pytest.raises(ConfigError, match="made with tokenizer"):
        runs.train(small({"tokenizer.kind": "char", "steps": 4}), workdir)
    assert runs.metrics(workdir) == before


def test_another_model_or_optimizer_is_refused_with_the_leaves_that_differ(small, tmp_path):
    runs.train(small({"steps": 2}), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.glob("*.json*")}
    with pytest.raises(
        ConfigError, match=r"layers/mlp/up/w.*float32\[1,32,64\].*float32\[1,32,96\]"
    ):
        runs.train(small({"steps": 4, "model.mlp_width": 96}), tmp_path)
    with pytest.raises(ConfigError, match="not in the checkpoint"):
        runs.train(small({"steps": 4, "optim.kind": "adamw"}), tmp_path)
    # Nor is anything changed of what the run says of itself.
    assert {p: p.read_bytes() for p in tmp_path.glob("*.json*")} == before


def test_the_best_by_validation_is_kept_while_later_ones_come_and_go(small, tmp_path):
    def spoil(step, batch):
        return {**batch, "targets": np.zeros_like(batch["targets"])} if step >= 6 else batch

    config = small({"steps": 20, "checkpoint.keep_last": 1})
    runs.train(config, tmp_path, wrap=runs.changing(spoil))
    losses = {x["step"]: x["loss"] for x in runs.lines(tmp_path, "validation")}
    best = min(losses, key=losses.get)
    assert best in (4, 8) and losses[20] > losses[best]
    assert runs.steps(tmp_path) == [best, 20]
    assert runs.summary(tmp_path)["final"]["best_validation_loss"] == losses[best]
