"""General tasks: what a model is asked, what it is given for it, and what a file may say."""

import functools
import json
import math

import jax
import numpy as np
import pytest

from jaxllm import finetune, models, tokenizers
from jaxllm.config import ConfigError
from jaxllm.evals import general, suite
from jaxllm.evals.scorer import Scorer
from jaxllm.models import generate
from tests import generate_helpers, runs
from tests.conftest import random_params, tiny_config

BYTES = generate_helpers.byte_tokenizer()
KINDS = ("decoder", "encoder_decoder")
OTHERS = {"griffin": dict(attention_every=3, layers=3), "windows": dict(window=5, window_first=3)}
LED = {
    f"{kind} with a {part}": (kind, finetune.METHODS[part](tokens=3).rewrite)
    for kind in KINDS
    for part in ("prompt", "prefix")
}


@functools.cache
def make(kind="decoder", scale=0.15):
    kind, rewrite = LED.get(kind, (kind, None))
    fields = dict(layers=1) | (OTHERS[kind] if kind in OTHERS else dict(assembly=kind))
    c = tiny_config(vocab=BYTES.vocab_size, length=64, **fields)
    model = models.make(c, rewrite=rewrite)
    return jax.jit(model.apply), Scorer(model, random_params(model, 0, scale), BYTES)


def texts(count=7, seed=0):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcd \n"), n)) for n in rng.integers(1, 40, count)]


def by_hand(apply, scorer, given, follows):
    """Nats of each id that follows, from the logits of one row."""
    logp = logps(apply, scorer, given, follows)
    return -logp[np.arange(len(follows)), follows]


def greedy(apply, scorer, given, count):
    """The likeliest ids behind those given, one after another."""
    found = []
    while len(found) < count:
        found.append(int(logps(apply, scorer, given, [*found, 0])[-1].argmax()))
    return found


def logps(apply, scorer, given, follows):
    """Log-probabilities of all ids where each of those that follow stands, [follows, V]."""
    places = [0] * scorer._model.lead  # of a soft prompt or a prefix
    whole = [*places, *given, *follows]
    batch = generate.pad([whole[:-1]], 64)
    last = len(whole) - 1
    if scorer.reads:
        row, last = generate.pad([[max(BYTES.pad, 0), *follows[:-1]]], 64), len(follows)
        side = generate.pad([[*places, *given]], 64)
        batch = row | {"inputs": side["tokens"], "inputs_segment": side["segment"]}
    logits = np.float64(apply(scorer._params, batch)[0])
    logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return logp[last - len(follows) : last]


@pytest.mark.parametrize("kind", runs.slow((*KINDS, *LED), list(LED)[1::2]))
def test_nats_are_those_of_the_logits_in_any_company(kind):
    apply, scorer = make(kind)
    pairs = [scorer.split(a, b) for a, b in zip(texts(), texts(seed=1), strict=True)]
    found = scorer.nats(pairs)
    for one, (given, follows) in zip(found, pairs, strict=True):
        wanted = by_hand(apply, scorer, given, follows)
        np.testing.assert_allclose(one, wanted, atol=1e-4)


@pytest.mark.parametrize("kind", runs.slow((*KINDS, *OTHERS, *LED), ["griffin", *LED]))
def test_options_behind_what_is_read_once_have_the_nats_of_whole_rows(kind):
    """Of any number and length, in any company; also where the rows' beginnings differ."""
    apply, scorer = make(kind)
    rng = np.random.default_rng(3)
    groups = [
        [scorer.split(given, "".join(rng.choice(list("abcd "), n))) for n in rng.integers(1, 12, m)]
        for given, m in zip(texts(6), (1, 3, 2, 4, 3, 1), strict=True)
    ]
    if not scorer.reads:  # as where a token is of both, and where nothing is alike
        groups.append([([5, 6, 7], [8, 9]), ([5, 6], [9]), ([5, 6, 7], [8])])
        groups.append([([5], [8, 9]), ([6], [9])])
    found = scorer.nats_of_options(groups)
    for one, group in zip(found, groups, strict=True):
        assert len(one) == len(group)
        for nats, (given, follows) in zip(one, group, strict=True):
            np.testing.assert_allclose(nats, by_hand(apply, scorer, given, follows), atol=1e-4)


def test_a_text_is_cut_where_it_is_and_not_where_tokens_would_be():
    """Ids given and ids that follow are those of the whole; a token of both is what follows."""
    words = ["the house", "a horse in the houses", "these are theirs"] * 20
    bpe = tokenizers.make({"kind": "hf", "vocab_size": 279}, lambda: iter(words))
    model = models.make(tiny_config(vocab=bpe.vocab_size, length=64, layers=1))
    scorer = Scorer(model, random_params(model), bpe)
    whole = "the houses are theirs"
    for at in range(1, len(whole)):
        given, follows = scorer.split(whole[:at], whole[at:])
        ids, places = bpe.locate(whole)
        if len(given) < len(ids) and follows[0] == ids[0]:  # nothing of it is given whole
            given = []
        assert [*given, *follows] == ids.tolist()
        assert [p > at for _, p in places.tolist()] == [False] * len(given) + [True] * len(follows)
    assert scorer.split("", "the")[0] == scorer.first == generate.encode(bpe, "")


def task(kind, tmp_path, rows, **fields):
    """The only task of a file."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    section = {"kind": kind, "path": "rows.jsonl", **fields}
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps({"tasks": {"one": section}}))
    return suite.load(str(file))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_knows_nothing_needs_eight_bits_a_byte(kind, tmp_path):
    """All logits equal: V ways for each token, whatever the length; every byte counts once."""
    _, scorer = make(kind, scale=0.0)
    rows = [{"text": "ab cd " * n} for n in (1, 5, 80)]  # the last in several windows
    fields = dict(metric="bits_per_byte", given=0.3, length=48)
    found = general.measure(task("perplexity", tmp_path, rows, **fields), scorer)
    if kind == "encoder_decoder":  # the end token is no byte
        pieces = [general.part(row["text"].strip(), 0.3)[1] for row in rows]
        share = sum(len(one) + 1 for one in pieces) / sum(map(len, pieces))
    assert found.score == pytest.approx(
        math.log2(BYTES.vocab_size) * (share if kind == "encoder_decoder" else 1)
    )
    assert found.also["perplexity"] == pytest.approx(BYTES.vocab_size)
    assert found.under.tolist() == [len(general.part(row["text"].strip(), 0.3)[1]) for row in rows]


def test_windows_score_every_token_once_behind_half_a_row():
    given, ids = list(range(100, 103)), list(range(50))
    rows = general._windows(given, ids, 16, False)
    assert [i for _, some in rows for i in some] == ids
    assert all(len(a) + len(b) <= 16 for a, b in rows)
    for before, some in rows[1:]:
        assert before == [*given, *ids][3 + some[0] - 8 : 3 + some[0]]


def test_a_choice_is_the_likeliest_answer(tmp_path):
    apply, scorer = make()
    rows = [
        {"input": one, "options": ["a", "dog", "b b b"], "answer": 0 if n < 6 else 2}
        for n, one in enumerate(texts(9))
    ]
    found = general.measure(task("choice", tmp_path, rows, shots=2), scorer)
    one = task("choice", tmp_path, rows, shots=2)
    right, right_by_bytes = [], []
    for example, shots in zip(one.examples, one.shots, strict=True):
        asked = {"input": example["input"]}
        prompt = general.PromptTemplate("question").fit(BYTES, 64 - 9, asked, shots)[0]
        nats = np.array(
            [
                by_hand(apply, scorer, BYTES.encode(prompt), BYTES.encode(" " + o)).sum()
                for o in example["options"]
            ]
        )
        right.append(nats.argmin() == example["answer"])
        right_by_bytes.append((nats / [1, 3, 5]).argmin() == example["answer"])
    assert found.over.tolist() == right and found.chance == pytest.approx(1 / 3)
    assert found.also["accuracy_by_bytes"] == np.mean(right_by_bytes) != np.mean(right)
    assert found.dropped > 0  # two examples are too long for 64 tokens


@pytest.mark.parametrize("kind", runs.slow((*KINDS, *LED), list(LED)[:2]))
def test_what_is_written_is_the_greedy_continuation(kind, tmp_path):
    apply, scorer = make(kind, scale=0.5)
    rows = [{"input": one, "output": ["x", "y"]} for one in texts(5)]
    one = task("generate", tmp_path, rows, metric="chrf", tokens=9, stop=["zz"])
    prompts, _ = general._prompts(one, scorer, 9)
    wanted = [BYTES.decode(greedy(apply, scorer, scorer.prompt(prompt), 9)) for prompt in prompts]
    assert scorer.write(prompts, 9, ("zz",)) == wanted and len(set(wanted)) > 1
    # Of several right answers the nearest counts: with its own words a model is right.
    best = [{**row, "output": ["no", text]} for row, text in zip(rows, wanted, strict=True)]
    fields = dict(metric="chrf", tokens=9, stop=["zz"])
    found = general.measure(task("generate", tmp_path, best, **fields), scorer)
    empty = np.array([not text.strip() for text in wanted])
    assert found.over.tolist() == np.where(empty, 0.0, 1.0).tolist()


def test_an_encoder_needs_something_to_read(tmp_path):
    _, scorer = make("encoder_decoder")
    with pytest.raises(ConfigError, match=r'Try "given": 0\.5'):
        general.measure(task("perplexity", tmp_path, [{"text": "a b c"}]), scorer)
    with pytest.raises(ConfigError, match="write text"):
        make("encoder")


def test_examples_and_their_shots_are_a_matter_of_the_seed(tmp_path):
    rows = [{"input": str(n), "output": str(n)} for n in range(50)]
    fields = dict(metric="chrf", shots=3, examples=10)
    one, same = (task("generate", tmp_path, rows, **fields) for _ in range(2))
    other = task("generate", tmp_path, rows, **fields, seed=1)
    assert one.digest == same.digest != other.digest
    assert len(one.examples) == 10 and one.examples == same.examples != other.examples
    assert {len(shots) for shots in one.shots} == {3}
    full = task("generate", tmp_path, rows, metric="chrf", shots=49)
    for example, shots in zip(full.examples, full.shots, strict=True):
        assert example not in shots and len({shot["input"] for shot in shots}) == 49
    assert task("generate", tmp_path, rows[::-1], **fields).digest != one.digest
    assert len(suite.load(str(tmp_path / "tasks.json"), examples=4)[0].examples) == 4


def test_pieces_are_whole_words_of_all_the_text():
    text = "some words of a text that is longer " * 20
    pieces = suite.cut(text, 50)
    assert max(map(len, pieces)) <= 50 and " ".join(pieces).split() == text.split()
    assert suite.cut("x" * 120, 50) == ["x" * 50, "x" * 50, "x" * 20]


def test_the_small_tasks_that_come_with_it():
    found = {one.name: one for one in suite.load()}
    assert {type(one.how) for one in found.values()} == set(suite.KINDS.values())
    answers = [example["answer"] for example in found["facts"].examples]
    assert np.bincount(answers).min() >= 10  # no place of the answers is a good guess
    for a, b in ((e["input"].split(" + "), e["output"]) for e in found["sums"].examples):
        assert int(a[0]) + int(a[1]) == int(b)


ROW = {"input": "a", "output": "b"}
CHOICE = {"input": "a", "options": ["x", "y"], "answer": "y"}
WRONG = [
    ("perplexty", {}, ROW, "Did you mean 'perplexity'"),
    ("generate", {"metric": "chrf", "shot": 1}, ROW, "Did you mean 'shots'"),
    ("generate", {}, ROW, "needs 'metric'. One of rouge_l"),
    ("generate", {"metric": "rouge-l"}, ROW, "Did you mean 'rouge_l'"),
    ("generate", {"metric": "accuracy"}, ROW, "Known: rouge_l"),
    ("generate", {"metric": "chrf", "shots": 1}, ROW, 'Try "shots": 0'),
    ("generate", {"metric": "chrf", "tokens": "9"}, ROW, "must be a whole number"),
    ("generate", {"metric": "chrf", "tokens": 2000}, ROW, "no room for a prompt"),
    ("generate", {"metric": "chrf", "template": "quetsion"}, ROW, "Did you mean 'question'"),
    ("generate", {"metric": "chrf"}, {"input": "a"}, 'needs "output"'),
    ("generate", {"metric": "chrf", "examples": 0}, ROW, "must be at least 1"),
    ("perplexity", {"field": "txt"}, {"text": "a"}, "has no text 'txt'"),
    ("perplexity", {}, {"text": " "}, "holds no text"),
    ("perplexity", {"given": 1}, {"text": "a"}, "from 0 to below 1"),
    ("choice", {}, {**CHOICE, "answer": "z"}, "none of"),
    ("choice", {}, {**CHOICE, "answer": -1}, "none of"),
    ("choice", {}, {**CHOICE, "options": ["x"]}, "two different texts"),
]


@pytest.mark.parametrize("kind, fields, row, says", WRONG)
def test_a_file_that_cannot_be_says_what_and_where(kind, fields, row, says, tmp_path):
    with pytest.raises(ConfigError, match=r"tasks\.json: task 'one'") as error:
        task(kind, tmp_path, [row], **fields)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "content, says",
    [
        ("{", "Expecting"), ("[]", 'needs {"tasks"'), ('{"tasks": {}}', "has no task"),
        ('{"task": {}, "tasks": {"a": {}}}', "Did you mean 'tasks'"),
        ('{"tasks": {"a": {"kind": "perplexity", "path": "no.jsonl"}}}', "No such file"),
    ],
)  # fmt: skip
def test_what_is_no_file_of_tasks(content, says, tmp_path):
    (tmp_path / "tasks.json").write_text(content)
    with pytest.raises(ConfigError) as error:
        suite.load(str(tmp_path / "tasks.json"))
    assert says in str(error.value)
