"""The forgetting report: what was kept, how sure that is, and which checkpoints are opened."""

import json
import re
import shutil

import numpy as np
import pytest

from jaxllm import evaluate, trees
from jaxllm.config import ConfigError
from jaxllm.evals import bootstrap, forgetting, general, plot, suite
from jaxllm.evals.scorer import Scorer
from jaxllm.training import reopen, scored
from tests import runs


def scores(values, metric="rouge_l", chance=None):
    values = np.asarray(values, np.float64)
    return general.Scores(metric, values, np.ones(len(values)), chance, {})


def measured(step, **tasks):
    return forgetting.Measured("runs/a", step, "t", tasks)


def compared(before, after, targets=(), seed=0):
    return forgetting.compare(measured(0, **before), measured(1, **after), targets, seed)


def test_the_same_scores_are_kept_whole_without_doubt():
    rng = np.random.default_rng(0)
    same = {m: scores(rng.uniform(0.1, 1, 30), m) for m in suite.METRICS}
    for row in compared(same, same).rows:
        assert (row.retention, row.low, row.high) == (100.0, 100.0, 100.0)
    assert not forgetting.warnings(compared(same, same))


def test_less_is_better_for_perplexity():
    """exp(2) before, exp(2.5) after: exp(-0.5) = 60.65 % is left."""
    row = compared(
        {"a": scores([2.0, 2.0], "perplexity")}, {"a": scores([2.0, 3.0], "perplexity")}
    ).rows[0]
    assert row.before == pytest.approx(np.exp(2)) and row.after == pytest.approx(np.exp(2.5))
    assert row.retention == pytest.approx(100 * np.exp(-0.5))


def test_sums_are_divided_once():
    """A long text counts for more than a short one."""
    old = general.Scores("bits_per_byte", np.array([10.0, 1.0]), np.array([10.0, 1.0]), None, {})
    new = general.Scores("bits_per_byte", np.array([20.0, 1.0]), np.array([10.0, 1.0]), None, {})
    assert compared({"a": old}, {"a": new}).rows[0].retention == pytest.approx(100 * 11 / 21)


def test_intervals_cover_what_is_so():
    """250 samples of 120 paired answers whose true retention is 75 %: 95 % hold it, or nearly."""
    rng, inside, pairs = np.random.default_rng(1), 0, 250
    for seed in range(pairs):
        before = rng.random(120) < 0.6
        after = np.where(rng.random(120) < 0.8, before & (rng.random(120) < 0.75), False)
        after |= (rng.random(120) < 0.09 / 0.4) & ~before  # 0.36 + 0.09 = 0.45 = 75 % of 0.6
        row = compared({"a": scores(before)}, {"a": scores(after)}, seed=seed).rows[0]
        inside += row.low <= 75 <= row.high
    assert 0.91 <= inside / pairs <= 0.98


def test_pairing_narrows_the_interval():
    """Where most examples stay as they were, much less is in doubt than between two samples."""
    rng = np.random.default_rng(0)
    before = rng.uniform(0, 1, 200)
    after = before * 0.9
    row = compared({"a": scores(before)}, {"a": scores(after)}).rows[0]
    mixed = compared({"a": scores(before)}, {"a": scores(rng.permutation(after))}).rows[0]
    assert row.high - row.low < 1e-6 < 5 < mixed.high - mixed.low
    assert row.retention == pytest.approx(mixed.retention) == pytest.approx(90)


@pytest.mark.parametrize(
    "left, spread, words",
    [
        (0.95, 0.0, []),
        (0.5, 0.0, ["WARNING", "kept 50.0 % [50.0, 50.0], below 80 %"]),
        (0.75, 0.5, ["WARNING", "not certain: the interval crosses 80 %"]),
        (0.85, 0.5, ["note", "not certain: the interval crosses 80 %"]),
    ],
)
def test_warnings_say_how_sure_they_are(left, spread, words):
    old = np.ones(40)
    new = left + spread * np.tile([1.0, -1.0], 20)
    lines = forgetting.warnings(compared({"a": scores(old)}, {"a": scores(new)}))
    assert len(lines) == bool(words)
    assert all(word in lines[0] for word in words)
    sure = spread == 0 and left < 0.8
    assert not sure or "not certain" not in lines[0]


def test_guessing_is_taken_off():
    """From 0.75 to 0.5 of four answers: 67 % of the score, half of what was above guessing."""
    old, new = [1, 1, 1, 0] * 5, [1, 1, 0, 0] * 5
    row = compared({"a": scores(old, "accuracy", 0.25)}, {"a": scores(new, "accuracy", 0.25)}).rows[
        0
    ]
    assert row.retention == pytest.approx(200 / 3) and row.above_chance == pytest.approx(50)
    guess = scores([1, 0, 0, 0], "accuracy", 0.25)
    assert compared({"a": guess}, {"a": guess}).rows[0].above_chance is None


def test_nothing_can_be_kept_of_nothing():
    found = compared(
        {"a": scores([0, 0]), "b": scores([1, 1])}, {"a": scores([1, 0]), "b": scores([1, 1])}
    )
    assert found.rows[0].retention is None and "score before is 0" in forgetting.warnings(found)[0]
    assert found.loss == (0.0, 0.0, 0.0)
    assert "none" in forgetting.as_text(measured(0), [found])
    json.dumps(forgetting.as_dict(measured(0), [found], 0), allow_nan=False)


def test_the_trade_off_is_gain_on_the_target_against_mean_loss_elsewhere():
    old = {name: scores([0.5, 0.5]) for name in "abc"}
    new = {"a": scores([0.75, 0.75]), "b": scores([0.4, 0.4]), "c": scores([0.5, 0.5])}
    found = compared(old, new, targets=["a"])
    assert found.gain == pytest.approx((50, 50, 50)) and found.loss == pytest.approx((10, 10, 10))
    page = forgetting.as_text(measured(0), [found])
    assert re.search(r"runs/a +1 +\+50\.0 \[50\.0, 50\.0\] +\+10\.0 \[10\.0, 10\.0\]", page)
    assert "trade-off" not in forgetting.as_text(measured(0), [compared(old, new)])
    worse = compared(new, old, targets=["a"])
    assert "the target became worse: a kept 66.7 %" in forgetting.warnings(worse)[0]


def test_resamples_are_those_of_the_seed():
    one, same, other = (bootstrap.weights(9, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert (one != other).any() and (one.sum(1) == 9).all()


def test_the_picture_is_drawn_with_and_without_a_target(tmp_path):
    pytest.importorskip("matplotlib")
    old, new = (
        {"a": scores([1, 1]), "b": scores([1, 1])},
        {"a": scores([2, 1]), "b": scores([0, 1])},
    )
    for targets in ((), ("a",)):
        ones = [compared(old, new, targets)._replace(step=n) for n in (1, 2)]
        for some in (ones, [ones[0]], [ones[0], ones[1]._replace(workdir="runs/b")]):
            plot.draw(some, tmp_path / "a.png")
            assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
            (tmp_path / "a.png").unlink()


@pytest.fixture(scope="module")
def trained(compile_cache, tmp_path_factory):
    """A run with checkpoints at 0, 6 and 12, and a file of tasks."""
    place = tmp_path_factory.mktemp("forgetting")
    fields = {"runtime.compile_cache": compile_cache, "checkpoint.keep_last": 9, "schedule.lr": 1.0}
    fields |= {"checkpoint.every": 6, "validate.every": 6}
    assert runs.train(runs.config(fields), place / "run") == 0
    (place / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"one two {n} three"}) + "\n" for n in range(8))
    )
    (place / "pairs.jsonl").write_text(
        "".join(json.dumps({"input": str(n), "output": f"{n} one"}) + "\n" for n in range(8))
    )
    tasks = {
        "text": {"kind": "perplexity", "path": "texts.jsonl", "length": 32},
        "pairs": {
            "kind": "generate", "path": "pairs.jsonl", "metric": "chrf", "template": "arrow",
            "tokens": 4, "length": 32,
        },
    }  # fmt: skip
    (place / "tasks.json").write_text(json.dumps({"tasks": tasks}))
    return place


def call(place, *words, after="run"):
    words = [f"--before={place / 'run'}", f"--after={place / after}", *words]
    words = [runs.sys.executable, "-m", "jaxllm.evaluate", *words]
    return runs.call([*words, f"--tasks={place / 'tasks.json'}"])


def test_checkpoints_are_scored_once_and_told_in_order(trained):
    words = ["--step=0", "--steps=all", "--target=text", "--json"]
    done = call(trained, *words, f"--plot={trained / 'a.png'}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert [one["step"] for one in report["after"]] == [0, 6, 12]
    for row in report["after"][0]["rows"]:  # the checkpoint itself
        assert row["retention"] in (100.0, None)
    text = [one["rows"][0] for one in report["after"]]
    assert text[-1]["retention"] > 100 and text[-1]["after"] < text[0]["after"]
    assert (trained / "a.png").read_bytes().startswith(b"\x89PNG")
    assert done.stderr.count("text perplexity") == 3  # step 0 was scored once
    kept = json.loads((trained / "run" / scored.FILE).read_text())
    assert kept["report"] == report and len(kept["scores"]) == 3
    # Without the arrays there is nothing to open: the scores are read.
    for step in (0, 6):
        shutil.rmtree(trained / f"run/checkpoints/step_{step:08d}/arrays")
    again = call(trained, "--step=0", "--steps=6,0")
    assert again.returncode == 0 and "text perplexity" not in again.stderr, again.stderr
    assert again.stdout.index("run step 0\n  task") < again.stdout.index("run step 6\n  task")


def test_what_was_scored_before_it_was_stopped_is_kept(tmp_path, monkeypatch):
    asked = []

    def measure(task, scorer):
        asked.append(task.name)
        if asked == ["a", "b"]:
            raise KeyboardInterrupt
        return scores([1, 2])

    monkeypatch.setattr(scored.general, "measure", measure)
    monkeypatch.setattr(scored.Models, "open", lambda *_: None)
    tasks = [suite.Task(name, None, (), (), name) for name in "abc"]
    subject = scored.Subject("run", 3, "identity", "tokenizer")
    with pytest.raises(KeyboardInterrupt):
        scored.measure(subject, tasks, {}, scored.Models(), tmp_path)
    found = scored.measure(subject, tasks, scored.read([tmp_path]), scored.Models(), tmp_path)
    assert asked == ["a", "b", "b", "c"] and list(found) == ["a", "b", "c"]
    assert len(scored.read([tmp_path])["identity"]["tasks"]) == 3


def test_a_model_made_worse_is_seen(trained):
    """Noise on the weights of the last checkpoint: less is kept, with a warning."""
    opened = reopen.open_trained(trained / "run", step="12")
    rng = np.random.default_rng(0)
    noisy = trees.unflatten(
        {
            path: np.asarray(leaf) + np.float32(0.5 * rng.normal(size=leaf.shape))
            for path, leaf in trees.flatten(opened.params).items()
        }
    )
    task = suite.load(str(trained / "tasks.json"))[0]
    good, bad = (
        general.measure(task, Scorer(opened.run.model, params, opened.run.tokenizer))
        for params in (opened.params, noisy)
    )
    found = compared({"text": good}, {"text": bad})
    assert found.rows[0].high < 80 and "WARNING" in forgetting.warnings(found)[0]


def test_tokens_of_different_tokenizers_are_not_compared(trained):
    tasks = suite.load(str(trained / "tasks.json"))
    with pytest.raises(ConfigError, match='Try "metric": "bits_per_byte"'):
        forgetting.check_tokenizers(tasks, [("a", "1"), ("b", "2")], "tasks.json")
    forgetting.check_tokenizers(tasks[1:], [("a", "1"), ("b", "2")], "tasks.json")
    forgetting.check_tokenizers(tasks, [("a", "1"), ("b", "1")], "tasks.json")


@pytest.mark.parametrize(
    "fields, says",
    [
        ({}, "either --workdir"),
        ({"workdir": "a", "before": "b"}, "either --workdir"),
        ({"before": "b"}, "--after=DIR is needed"),
        ({"after": ["b"]}, "--before=DIR is needed"),
        ({"before": "b", "after": ["b"], "target": ["fact"]}, "Did you mean 'facts'"),
        ({"before": "b", "after": ["b"], "processes": 2}, "one process"),
        ({"before": "nowhere", "after": ["nowhere"]}, "--before=nowhere: no config.json there"),
    ],
)
def test_wrong_usage_says_what_to_type(fields, says):
    with pytest.raises(ConfigError) as error:
        evaluate.choose(Flags(**fields), [])
    assert says in str(error.value)


class Flags:
    """Values of absl's flags."""

    def __init__(self, **fields):
        known = dict(workdir="", before="", after=[], target=[], tasks="", examples=0, plot="")
        known |= dict(
            step="latest", steps="latest", coordinator="", processes=0, seed=0, json=False
        )
        self.__dict__.update({**known, **fields})
