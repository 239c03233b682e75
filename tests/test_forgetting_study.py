"""experiments/forgetting as a study of ways and seeds: stopped and gone on with, told again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests import runs

STUDY = runs.ROOT / "experiments" / "forgetting"
TEXT = "the library holds tools for old games and new drivers of machines"
TASKS = {
    "tasks": {
        "summaries": {
            "kind": "generate", "path": "data/summaries.jsonl", "metric": "rouge_l", "tokens": 8,
            "template": "{{ query.input }}\n=>",
        },
        "text": {"kind": "perplexity", "path": "data/text.jsonl", "length": 64},
    }
}  # fmt: skip


def rows(count, **make):
    """Lines of JSONL; words go round."""
    words = TEXT.split()
    turned = [" ".join(words[i % 12 :] + words[: i % 12]) + f" {i}" for i in range(count)]
    return "".join(json.dumps({n: f(text) for n, f in make.items()}) + "\n" for text in turned)


@pytest.fixture
def study(tmp_path, compile_cache):
    """A copy of the study with data of its own, and a base to start from."""
    place = tmp_path / "tree" / "experiments" / "forgetting"
    (place / "data").mkdir(parents=True)
    for file in STUDY.glob("*.py"):
        shutil.copy(file, place)
    (tmp_path / "tree" / "configs").symlink_to(runs.ROOT / "configs")
    (tmp_path / "tree" / "jaxllm").symlink_to(runs.ROOT / "jaxllm")
    pair = dict(input=lambda text: text, output=lambda text: text.split()[0])
    data = place / "data"
    (data / "summaries_train.jsonl").write_text(rows(200, **pair))
    (data / "summaries.jsonl").write_text(rows(6, **pair))
    (data / "replay.jsonl").write_text(rows(60, text=lambda text: text))
    (data / "text.jsonl").write_text(rows(5, text=lambda text: text))
    (place / "tasks.json").write_text(json.dumps(TASKS))
    base = tmp_path / "base"
    config = runs.config({"runtime.compile_cache": compile_cache, "data.length": 128})
    assert runs.train(config, base) == 0
    return place, base


def words(study, out, *more):
    place, base = study
    settings = ("steps=6", "schedule.warmup_steps=1", "data.length=128", "validate.batches=1")
    where = (f"--init={base}", f"--out={out}", "--seeds=0,1")
    return [sys.executable, str(place / "run.py"), *where, *more, *settings]


@pytest.mark.slow
def test_a_study_is_stopped_and_goes_on_and_what_is_known_is_not_done_again(study, tmp_path):
    out, ways = tmp_path / "out", "full,lora@1e-2+replay"
    environment = {**runs.environment(), "PYTHONPATH": str(runs.ROOT)}
    options = dict(env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child = subprocess.Popen(
        words(study, out, f"--ways={ways}"), text=True, start_new_session=True, **options
    )
    with runs.ending(child):
        while not list(out.glob("*/metrics.jsonl")):
            assert child.poll() is None, child.communicate()
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: all of them
        told = child.communicate(timeout=60)
    assert child.returncode == 130 and "Traceback" not in told[1], told

    picture = tmp_path / "picture.png"
    again = words(study, out, f"--ways={ways}", f"--plot={picture}")
    told = [subprocess.run(again, text=True, timeout=500, **options) for _ in range(2)]
    assert [one.returncode for one in told] == [0, 0], told[0].stderr
    assert told[0].stderr.count("$ jaxllm.train") == 4 and "$ jaxllm" not in told[1].stderr
    assert told[0].stdout == told[1].stdout and picture.stat().st_size
    table = [line.split(" | ") for line in told[0].stdout.strip().splitlines()[2:]]
    assert [(line[0].strip("| "), line[1]) for line in table] == [(w, "2") for w in ways.split(",")]

    found = json.loads((out / "results.json").read_text())
    assert [(run["way"], run["seed"]) for run in found] == [
        (way, seed) for seed in (0, 1) for way in ways.split(",")
    ]
    for run in found:
        assert [row["task"] for row in run["rows"]] == ["summaries", "text"]
        config = json.loads(next(out.glob(f"{run['way']}-{run['seed']}*/config.json")).read_text())
        assert config["seed"] == run["seed"] and config["steps"] == 6
        assert config["schedule"]["lr"] == (1e-4 if run["way"] == "full" else 1e-2)
        assert ("old" in config["data"]["sources"]) == ("+replay" in run["way"])
    assert found[0]["trained"] > 5 * found[1]["trained"]
