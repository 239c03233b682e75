"""Cross-validation, replay beside other rows, labels of a model: what is held back and what not."""

import itertools
import json
import statistics
import types

import jax
import numpy as np
import pytest

from jaxllm import data, settings, tokenizers
from jaxllm.config import ConfigError
from jaxllm.data import build
from jaxllm.data.sources import Document
from jaxllm.evals import pseudo
from jaxllm.training import folds, reopen, setup
from tests import runs
from tests.data_helpers import BYTES, data_config
from tests.example_helpers import SUMMARY, pair_rows, write

SMALL = {"steps": 2, "validate.every": 0, "checkpoint.every": 0}


@pytest.mark.parametrize("mode, count", [("hash", 500), ("tail", 3), ("auto", 1)])
@pytest.mark.parametrize("k", [2, 3, 5, 7])
def test_each_document_is_held_back_once(mode, count, k):
    """Whole by its hash or, where documents are cut, in k parts that make it up again."""
    texts = [f"{i} " * 50 + f"end {i}" for i in range(count)]
    held = {}
    for fold in range(k):
        documents = (Document(text, "x") for text in texts)
        for text, split, _ in build.split_documents(documents, 1 / k, mode, fold / k):
            if split == "validation":
                held.setdefault(fold, []).append(text)
    assert len(held) == k
    if mode == "hash":
        assert sorted(itertools.chain(*held.values())) == sorted(texts)
        assert max(map(len, held.values())) < 1.5 * count / k
    else:  # later folds are further from the end
        assert ["".join(held[k - 1 - i][n] for i in range(k)) for n in range(count)] == texts


def test_folds_are_runs_and_their_end_is_compared(compile_cache, tmp_path, capsys, monkeypatch):
    """A fold that has ended is not run again, one that has not goes on."""
    config = runs.config({**SMALL, "runtime.compile_cache": compile_cache})
    assembled = []

    def one_device(config, workdir, *_):
        assembled.append(workdir.name)
        if len(assembled) == 2:
            return 130  # Ctrl-C
        return runs.train(config, workdir)

    real = folds.run
    here = types.SimpleNamespace(train=one_device, local=real.local, has_ended=real.has_ended)
    monkeypatch.setattr(folds, "run", here)
    assert folds.train(config, tmp_path, 3) == 130
    assert not (tmp_path / folds.FILE).exists()
    assert folds.train(config, tmp_path, 3) == 0
    assert assembled == ["fold_0", "fold_1", "fold_1", "fold_2"]
    result = json.loads((tmp_path / folds.FILE).read_text())["metrics"]
    losses = [runs.summary(tmp_path / f"fold_{i}")["final"]["validation/loss"] for i in range(3)]
    assert result["loss"]["values"] == losses and len(set(losses)) == 3
    assert result["loss"]["mean"] == statistics.mean(losses)
    assert result["loss"]["std"] == statistics.stdev(losses)
    assert (
        f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f}" in capsys.readouterr().out
    )
    counts = [
        json.loads(next((tmp_path / f"fold_{i}").glob("data/*/manifest.json")).read_text())
        for i in range(3)
    ]
    held, kept = (
        [m["splits"][split]["documents"] for m in counts] for split in ("validation", "train")
    )
    assert sum(held) == held[0] + kept[0] == held[1] + kept[1]


def replayed(tmp_path, **changes):
    """A config of completions and plain text, seven rows to three."""
    rng = np.random.default_rng(0)
    plain = [{"text": " ".join(rng.choice(["ab", "cde", "f"], 40))} for _ in range(30)]
    new = {"kind": "pairs", "path": write(tmp_path / "new.jsonl", pair_rows()), **SUMMARY}
    old = {"kind": "jsonl", "path": write(tmp_path / "old.jsonl", plain)}
    old |= {"rows": "packed", "weight": 0.3, "split": "train", **changes}
    return data_config(sources={"new": {**new, "weight": 0.7}, "old": old}, rows="completion")


def test_plain_text_is_replayed_beside_completions(tmp_path):
    """At its ratio, whole in training and not in validation; each row as its own source has it."""
    config = replayed(tmp_path)
    data.check(config)
    data.prepare(config, BYTES, tmp_path)
    train = data.open_split(config, BYTES, tmp_path, "train", 0, steps=200)
    assert train.read(1000) == {"new": 700, "old": 300}
    batch = train.take(np.arange(1000))
    found = [origin[0] for origin in train.where(np.arange(1000))]
    assert found.count("old") == 300
    for name in ("new", "old"):
        rows = np.array([i for i, origin in enumerate(found) if origin == name])
        own = data.open_split(
            data_config(sources={name: config.sources[name]}, rows=data.rows_of(config)[name]),
            BYTES, tmp_path, "train", 0, steps=200,
        )  # fmt: skip
        alone = own.take(np.arange(len(rows)))
        member, _ = train.assign(rows)
        assert len(set(member.tolist())) == 1
        seen = sorted(row.tobytes() for row in batch["tokens"][rows])
        assert seen == sorted(row.tobytes() for row in alone["tokens"])
    validation = data.open_split(config, BYTES, tmp_path, "validation", 0)
    assert list(validation.sources) == ["new"]


@pytest.mark.parametrize("name, kind, rows", [
    ("text", "jsonl", "windows"),
    ("chat", "jsonl", "packed"),
    ("seq2seq", "jsonl", "packed"),
    ("seq2seq:family=t5,rows=pairs", "pairs", "pairs"),
])  # fmt: skip
def test_a_recipe_replays_what_was_read_before(name, kind, rows):
    """As a part of the rows, of the kind that their text has."""
    name, _, more = name.partition(":")
    file = f"configs/{name}.py:path=new,replay=old.jsonl.zst,replay_part=0.2,{more}".rstrip(",")
    config, _ = settings.load(file, [], setup.KINDS)
    old = config.data.sources.old
    assert (config.data.sources.main.weight, old.weight, old.kind) == (0.8, 0.2, kind)
    assert (old.path, data.rows_of(config.data)["old"]) == ("old.jsonl.zst", rows)
    with pytest.raises(ConfigError, match="replay_part"):
        settings.load(f"configs/{name}.py:path=new,replay=old,replay_part=2", [], setup.KINDS)


def test_tasks_come_one_after_another_with_a_part_of_those_before(tmp_path):
    names = [write(tmp_path / f"{i}.jsonl", pair_rows(seed=i)) for i in range(3)]
    file = f"configs/continual.py:each=100,tasks={'+'.join(map(str, names))}"
    fields = [("data.batch", "10"), ("tokenizer.kind", "byte")]
    for i in range(3):
        fields += [(f"data.sources.task{i}.{key}", value) for key, value in SUMMARY.items()]
    config = settings.load(file, fields, setup.KINDS)[0]
    data.prepare(config.data, BYTES, tmp_path)
    train = data.open_split(config.data, BYTES, tmp_path, "train", 0, steps=config.steps)
    found = np.array([origin[0] for origin in train.where(np.arange(10 * config.steps))])
    shares = [[float(np.mean(part == f"task{i}")) for i in range(3)] for part in np.split(found, 3)]
    np.testing.assert_allclose(shares, [[1, 0, 0], [0.1, 0.9, 0], [0.05, 0.05, 0.9]], atol=0.005)


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"rows": "completion"}, r"sources.old.rows='completion' does not go with.*'jsonl'"),
        ({"rows": ""}, r"sources.old.rows='completion' does not go.*sources.old.rows=windows"),
        ({"rows": "wholes"}, r"sources.old.rows='wholes' is unknown"),
        (
            {"kind": "labelled", "rows": "examples", "label": "text"},
            r"not all for the same task",
        ),
    ],
)
def test_rows_that_cannot_stand_in_one_batch_are_refused(changes, error, tmp_path):
    with pytest.raises(ConfigError, match=f"(?s){error}"):
        data.check(replayed(tmp_path, **changes))


@pytest.mark.slow
def test_labels_of_a_model_are_those_of_its_training_rows(compile_cache, tmp_path):
    """A text gets the class and the chance that evaluation of the same text gives it."""
    rng = np.random.default_rng(1)
    rows = [
        {"text": " ".join(rng.choice([word, "the", "a"], 9)), "second": "x y", "label": word}
        for word in ("ham", "spam") * 60
    ]
    path = write(tmp_path / "known.jsonl", rows)
    fields = {**SMALL, "steps": 30, "runtime.compile_cache": compile_cache, "schedule.lr": 0.01}
    pairs = [(name, str(value)) for name, value in fields.items()]
    file = f"configs/classify.py:labels=2,path={path}"
    small = {"model.layers": 1, "model.width": 32, "model.mlp_width": 64, "model.heads": 4}
    small |= {"data.length": 64, "data.batch": 16, "tokenizer.kind": "byte"}
    small |= {"data.sources.main.second": "second", "schedule.warmup_steps": 2}
    pairs += [(name, str(value)) for name, value in small.items()]
    config = runs.settings.load(file, pairs, setup.KINDS)[0]
    assert runs.train(config, tmp_path / "run") == 0
    trained = reopen.open_trained(tmp_path / "run")
    bare = write(tmp_path / "bare.jsonl", [{k: r[k] for k in ("text", "second")} for r in rows])
    out = tmp_path / "out.jsonl"
    pseudo.label(trained, ("ham", "spam"), bare, out, 0.0)
    sure = [json.loads(line)["confidence"] for line in out.read_text().splitlines()]
    middle = (min(sure) + max(sure)) / 2
    assert len(sure) == 120 and min(sure) < max(sure) - 1e-3
    told = pseudo.label(trained, ("ham", "spam"), bare, out, middle)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert told["read"] == 120 and told["kept"] == len(lines) == sum(told["classes"].values())
    assert [line["confidence"] for line in lines] == [x for x in sure if x > middle]
    assert 0 < len(lines) < 120
    truth = {row["text"]: row["label"] for row in rows}
    assert np.mean([truth[line["text"]] == line["label"] for line in lines]) > 0.9
    # They are read as training data, and the model gives them the same classes there.
    own = {"kind": "labelled", "path": str(out), "second": "second", "classes": ("ham", "spam")}
    again = data_config(sources={"main": own}, rows="examples", length=64, validation_fraction=0.0)
    tokenizer = tokenizers.load(tmp_path / "run/tokenizer")
    data.prepare(again, tokenizer, tmp_path / "again")
    source = data.open_split(again, tokenizer, tmp_path / "again", "train", 0)
    model = trained.run.model
    batch = source.in_order(np.arange(len(lines)))
    logits = jax.jit(
        lambda p, b: model.task(model.whole(p), model.hidden(model.whole(p), b)[0], b)
    )(trained.params, batch)
    share = np.asarray(jax.nn.softmax(logits))
    np.testing.assert_array_equal(share.argmax(-1), batch["label"])
    told = sorted(line["confidence"] for line in lines)
    np.testing.assert_allclose(sorted(share.max(-1)), told, atol=1e-3)
    with pytest.raises(ConfigError, match=r"Take a run of configs/classify\.py"):
        pseudo.check(runs.config(SMALL), 0.9)
