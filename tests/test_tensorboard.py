"""A real TensorBoard reads our runs: curves, text, and the HPARAMS tab that compares them."""

import json
import math
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import pytest

from jaxllm.training.metrics import RunLog

START_S = 60  # longest wait for TensorBoard to have read the runs


def make_run(workdir, hparams, losses, *, first_step=1, total_steps=3, status="done", final=None):
    """Writes one session of a run: a train line and a validation each step."""
    log = RunLog(workdir, hparams, total_steps=total_steps, first_step=first_step)
    for step, loss in enumerate(losses, first_step):
        log.train(step, {"loss": loss + 1, "lr": 0.1}, {"tokens_per_s": 10.0, "mfu": 0.5})
        log.validation(step, {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss})
    log.text(step, "sample", "ROMEO:\nwherefore")
    if status:
        log.finish(status, final or {})


@pytest.fixture(scope="module", params=["fast", "slow"])
def ask(request, tmp_path_factory):
    """A TensorBoard over four runs, once for each of its two readers of event files.

    Returns ask(path, body=None) -> decoded JSON.
    """
    runs = tmp_path_factory.mktemp("runs")
    common = {"data.batch": 24, "model.tied": True, "tuple": (1, 2), "unset": None}
    make_run(runs / "muon", {**common, "optim.kind": "muon", "lr": 0.02}, [3.0, 2.0, 1.5])
    make_run(runs / "adamw", {**common, "optim.kind": "adamw", "lr": 1e-3}, [3.5, 2.5, 1.75])
    # Killed twice past its last checkpoint, by a signal that it heard and by one it did not.
    resumed = {**common, "optim.kind": "lion", "lr": 1e-4}
    make_run(runs / "resumed", resumed, [3.25, 9.0], status="stopped")
    make_run(runs / "resumed", resumed, [8.0, 7.0], first_step=2, status=None)
    make_run(runs / "resumed", resumed, [2.25, 1.25], first_step=2)
    make_run(runs / "failed", {**common, "lr": 9.0}, [3.0, math.nan], status="failed")
    fast = "true" if request.param == "fast" else "false"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(runs), "--port", "0"]
    with open(runs / "log", "w+") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--load_fast", fast], stdout=log, stderr=log
        )
        try:
            yield _asker(server, runs / "log")
        finally:
            server.terminate()
            server.wait()


def _asker(server, log):
    """Waits until all runs are read to their end."""
    base, deadline = None, time.monotonic() + START_S

    def ask(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{base}/data/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        found = re.search(r"http://[\d.]+:\d+", log.read_text())
        base = found and found.group()
        if base and len(_sessions(ask)) == 4:
            return ask
        time.sleep(0.3)
    raise AssertionError(f"TensorBoard did not read the runs in {START_S} s:\n{log.read_text()}")


def _sessions(ask, columns=(), statuses=("STATUS_SUCCESS", "STATUS_FAILURE")):
    """Session groups of the HPARAMS tab by name, those that have ended."""
    body = {
        "experimentName": "",
        "allowedStatuses": list(statuses),
        "colParams": list(columns),
        "startIndex": 0,
        "sliceSize": 100,
    }
    answer = ask("plugin/hparams/session_groups", body)
    return {group["name"]: group for group in answer.get("sessionGroups", [])}


def _metrics(group):
    return {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}


def test_hparams_shows_one_row_a_run_with_its_final_metrics(ask):
    """The last session's values win over those of sessions that were cut off."""
    groups = _sessions(ask)
    final = {"muon": 1.5, "adamw": 1.75, "resumed": 1.25}
    assert set(groups) == {*final, "failed"}
    for name, loss in final.items():
        assert _metrics(groups[name])["validation/loss"] == loss
        assert _metrics(groups[name])["final/validation/loss"] == loss
        assert groups[name]["sessions"][0]["status"] == "STATUS_SUCCESS"
        assert len(groups[name]["sessions"]) == 1
    assert groups["failed"]["sessions"][0]["status"] == "STATUS_FAILURE"


def test_hparams_keep_their_types(ask):
    """Numbers, bools and text, so that each can be sorted and filtered; None is left out."""
    assert _sessions(ask)["muon"]["hparams"] == {
        "data.batch": 24,
        "model.tied": True,
        "tuple": "[1, 2]",
        "optim.kind": "muon",
        "lr": 0.02,
    }


def test_hparams_can_be_compared_and_filtered(ask):
    """What differs between runs is marked, text has choices, and a filter leaves what fits."""
    experiment = ask("plugin/hparams/experiment", {"experimentName": ""})
    infos = {info["name"]: info for info in experiment["hparamInfos"]}
    assert set(infos["optim.kind"]["domainDiscrete"]) == {"muon", "adamw", "lion"}
    assert infos["lr"]["domainInterval"] == {"minValue": 1e-4, "maxValue": 9.0}
    assert infos["lr"]["differs"] and not infos["data.batch"].get("differs")
    shown = [info["name"]["tag"] for info in experiment["metricInfos"]][:5]
    assert "final/validation/loss" in shown
    assert "validation/loss" in [info["name"]["tag"] for info in experiment["metricInfos"]]
    by_kind = {
        "hparam": "optim.kind",
        "filterDiscrete": ["muon", "lion"],
        "excludeMissingValues": True,
    }
    assert set(_sessions(ask, [by_kind])) == {"muon", "resumed"}
    loss = {"group": "", "tag": "validation/loss"}
    by_loss = {"metric": loss, "filterInterval": {"minValue": 0, "maxValue": 1.4}}
    assert set(_sessions(ask, [by_loss])) == {"resumed"}


def test_a_resumed_run_has_one_curve(ask):
    """Steps 1, 2, 3 once each: what was written past the checkpoint is gone."""
    query = urllib.parse.urlencode({"run": "resumed", "tag": "validation/loss"})
    points = ask(f"plugin/scalars/scalars?{query}")
    assert [(step, value) for _, step, value in points] == [(1, 3.25), (2, 2.25), (3, 1.25)]


def test_curves_are_grouped_and_text_is_there(ask):
    """Every run shows its curves and its sample under its own name, with no sub-runs."""
    tags = ask("plugin/scalars/tags")
    assert set(tags) == {"muon", "adamw", "resumed", "failed"}
    assert {"train/loss", "train/lr", "validation/bits_per_byte", "speed/mfu"} <= set(tags["muon"])
    text = ask("plugin/text/text?run=muon&tag=sample/text_summary")
    assert "ROMEO:\nwherefore" in text[0]["text"]
