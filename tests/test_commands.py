"""train, evaluate and sample as a user runs them."""

import json
import sys

import pytest

from tests import runs

STEPS = 4


@pytest.fixture(scope="module")
def trained(compile_cache, tmp_path_factory):
    """The work directory of a run by command, with an average of the weights."""
    workdir = tmp_path_factory.mktemp("run")
    fields = {
        "runtime.compile_cache": compile_cache,
        "steps": STEPS,
        "optim.kind": "adamw",
        "schedule.lr": 0.02,
        "step.ema": 0.5,
        "validate.every": 2,
        "validate.batches": 0,
        "checkpoint.every": 2,
        "log.every": 1,
        "sample.tokens": 12,
    }
    done = runs.call(runs.command(workdir, fields))
    assert done.returncode == 0, done.stderr
    assert "step 4/4  validation  loss" in done.stdout and "optimizer      adamw" in done.stdout
    return workdir


def call(workdir, module, *arguments):
    return runs.call(runs.command(workdir, {}, *arguments, module=module))


def test_evaluate_gives_the_very_loss_of_the_run(trained):
    validations = {x["step"]: x for x in runs.lines(trained, "validation")}
    for words, step in ([], 4), (["--step=2"], 2), (["--step=best"], 4):
        done = call(trained, "evaluate", *words)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        wanted = {k: v for k, v in validations[step].items() if k != "kind"}
        assert found == {**wanted, "split": "validation"}
    train = json.loads(call(trained, "evaluate", "--split=train").stdout)
    assert train["tokens"] > 5 * validations[4]["tokens"] and train["loss"] != wanted["loss"]


def test_samples_are_the_same_for_the_same_seed(trained):
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    words = ["--tokens=16", "--prompt=one two", "--count=2"]
    first = call(trained, "sample", *words, "--seed=3")
    assert first.returncode == 0, first.stderr
    parts = first.stdout.split("--- ")[1:]
    assert len(parts) == 2 and all("one two" in part for part in parts)
    assert parts[0][1:] != parts[1][1:]
    assert call(trained, "sample", *words, "--seed=3").stdout == first.stdout
    assert call(trained, "sample", *words, "--seed=4").stdout != first.stdout
    cold = [
        call(trained, "sample", *words[:2], "--temperature=0", s) for s in ("--seed=1", "--seed=2")
    ]
    assert cold[0].stdout == cold[1].stdout != ""
    # Neither reading command changes anything of the run.
    assert {p: p.stat().st_mtime_ns for p in trained.rglob("*")} == before


WRONG = [
    ("evaluate", ["--workdir=/nonexistent"], "no config.json there", "python -m jaxllm.train"),
    ("evaluate", ["--step=3"], "--step=3: no such checkpoint", "There: 2, 4"),
    ("sample", ["--temperature=-1"], "temperature=-1.0 must not be negative", "Try 0.8"),
    ("sample", ["extra"], "Unknown argument 'extra'", "--help"),
    ("sample", ["--config.mesh.fdsp=2"], "has no 'fdsp'", "--config.mesh.fsdp=2"),
    ("train", ["--wrkdir=x"], "Unknown command line flag 'wrkdir'", "Did you mean: workdir"),
    ("train", ["--workdir=gs://bucket/a"], "not in an object store (gs)", "--workdir=/mnt/runs/a"),
    ("train", ["--config=configs/shakespear.py"], "no such file", "shakespeare_char.py"),
]


@pytest.mark.parametrize("module, words, problem, advice", WRONG)
def test_wrong_usage_ends_with_status_2_and_says_what_to_type(
    module, words, problem, advice, trained
):
    done = runs.call(runs.command(trained, {}, *words, module=module))
    assert done.returncode == 2, done.stderr
    assert problem in done.stderr and advice in done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""


@pytest.mark.parametrize("module", ["train", "sample"])
def test_help(module):
    done = runs.call([sys.executable, "-m", f"jaxllm.{module}", "--help"])
    assert done.returncode == 0
    assert f"python -m jaxllm.{module}" in done.stdout and "--workdir" in done.stdout


def test_what_only_some_commands_need_is_not_read_at_their_start():
    """Where they are installed: torch alone is 2 s."""
    heavy = {"torch", "transformers", "tensorflow", "matplotlib", "pandas", "sklearn", "datatrove"}
    names = ", ".join(f"jaxllm.{name}" for name in ("train", "evaluate", "sample", "convert"))
    program = f"import sys, {names}; print(sorted({heavy!r} & {{*sys.modules}}))"
    done = runs.call([sys.executable, "-c", program])
    assert done.stdout == "[]\n", done


def test_a_missing_work_directory_is_asked_for():
    done = runs.call([sys.executable, "-m", "jaxllm.train", f"--config={runs.FILE}"])
    assert done.returncode == 2 and "workdir" in done.stderr and "Traceback" not in done.stderr


def test_a_second_run_in_the_same_directory_is_refused(compile_cache, tmp_path):
    fields = {"runtime.compile_cache": compile_cache, "steps": 100_000, "optim.kind": "adamw"}
    workdir = tmp_path / "run"
    first = runs.start(runs.command(workdir, fields), tmp_path / "out")
    with runs.ending(first):
        while not (workdir / "config.json").exists():
            assert first.poll() is None, (tmp_path / "out").read_text()
        second = runs.call(runs.command(workdir, fields))
        assert second.returncode == 2 and f"process {first.pid}" in second.stderr
        assert first.poll() is None
        first.terminate()
        assert first.wait(timeout=10) == 0
