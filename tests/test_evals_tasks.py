"""Metrics of tasks against their definitions, and a whole evaluation of a model that knows."""

import numpy as np
import pytest

from jaxllm.evals import metrics, tasks
from tests import runs
from tests.data_helpers import BYTES
from tests.example_helpers import config_of, opened, write


def test_f1_and_auc_by_hand():
    predicted, label = np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 0])
    want = (2 * 1 / (2 + 2) + 2 * 1 / (1 + 2) + 2 * 1 / (2 + 1)) / 3
    assert metrics.macro_f1(predicted, label, 3) == pytest.approx(want)
    assert metrics.macro_f1(predicted, label, 9) == pytest.approx(want)
    rng = np.random.default_rng(0)
    score, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in score[positive] for b in score[~positive]]
    assert metrics.auc(score, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(metrics.auc(score, np.ones(60, bool)))


def test_correlations_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 50).astype(float), rng.normal(size=50)
    assert metrics.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert metrics.spearman(a, b) == pytest.approx(metrics.spearman(np.exp(a), b**3))
    assert metrics.spearman(b, np.exp(b)) == pytest.approx(1.0)
    assert metrics.ranks(np.array([3, 1, 3, 0])).tolist() == [3.5, 2, 3.5, 1]
    assert np.isnan(metrics.pearson(a, np.ones(50)))


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("B-P I-P O B-L", {("P", 0, 2), ("L", 3, 4)}),
        ("B-P B-P I-P", {("P", 0, 1), ("P", 1, 3)}),
        ("I-P I-L O I-P", {("P", 0, 1), ("L", 1, 2), ("P", 3, 4)}),
        ("O O", set()),
        ("O B-P", {("P", 1, 2)}),
    ],
)
def test_entities_are_those_of_conll(tags, found):
    assert metrics.entities(tags.split()) == found


def test_entity_f1_wants_the_whole_entity():
    gold, said = [["B-P", "I-P", "O", "B-L"]], [["B-P", "O", "O", "B-L"]]
    assert metrics.entity_f1(said, gold) == (0.5, 0.5, 0.5)


def test_answers_are_compared_as_squad_does():
    assert metrics.plain("The  Fox, an animal!") == "fox animal"
    assert metrics.word_f1("the quick fox", "Fox") == pytest.approx(2 / 3)
    assert metrics.word_f1("", "") == 1 and metrics.word_f1("a", "b c") == 0


def test_the_likeliest_answer_is_in_the_context_and_runs_forward():
    rng = np.random.default_rng(0)
    for _ in range(20):
        logits = rng.normal(size=(12, 2))
        score, first, last = tasks.likeliest(logits, (4, 11), longest=3)
        every = [
            (logits[i, 0] + logits[j, 1], i, j)
            for i in range(4, 11)
            for j in range(i, min(i + 3, 11))
        ]
        assert (pytest.approx(max(every)[0]), *max(every)[1:]) == (score, first, last)


CONTEXT = "The quick brown fox jumps over the lazy dog and then it sleeps until the next morning."
DATA = {
    "labelled": [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(21)],
    "scored": [{"text": f"t{i}", "label": i * 0.5} for i in range(21)],
    "tagged": [{"tokens": ["Ada", "is", "x" * i], "tags": ["B-P", "O", "I-P"]} for i in (1, 5, 9)],
    "answers": [
        {"question": "q?", "context": CONTEXT,
         "answers": {"text": [w], "answer_start": [CONTEXT.index(w)]}}
        for w in ("quick", "dog", "morning")
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("devices", [1, 4])
def test_one_who_knows_the_answers_has_all_of_them_right(kind, devices, tmp_path):
    """Also in rows that are read in several, batches that are not full, and over devices."""
    path = write(tmp_path / "a.jsonl", DATA[kind])
    source = {"overlap": 8} if kind == "answers" else {}
    config = config_of(path, kind, "examples", length=48, source=source, validation_fraction=0.0)
    rows, mesh = opened(config, tmp_path), runs.mesh(data=devices)

    def know(params, batch):
        if kind == "labelled":
            return np.eye(2)[np.asarray(batch["label"])]
        if kind == "scored":
            return 3 * np.asarray(batch["label"])[:, None] - 1
        if kind == "tagged":
            return np.eye(len(rows.manifest["classes"]))[np.asarray(batch["targets"])]
        outputs = np.zeros((*batch["tokens"].shape, 2))
        for row, (first, last) in enumerate(np.asarray(batch["span"])):
            outputs[row, first, 0] = outputs[row, last, 1] = 5
        return outputs

    outputs, arrays = tasks.collect(know, rows, mesh, {}, 8)
    assert len(outputs) == rows.epoch_rows == len(arrays["tokens"])
    task = {"labelled": "classify", "scored": "regress", "tagged": "tag", "answers": "span"}[kind]
    found = tasks.TASKS[task](outputs, arrays, rows, BYTES.decode)
    assert found and all(value == pytest.approx(1.0) for value in found.values()), found
    wrong = tasks.TASKS[task](-outputs, arrays, rows, BYTES.decode)
    assert next(iter(wrong.values())) < 0.5, wrong
