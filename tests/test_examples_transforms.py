"""Transforms that make rows for other models, as settings: of training and of validation rows."""

import numpy as np
import pytest

from jaxllm import data, tokenizers
from jaxllm.config import ConfigError
from jaxllm.data import permute
from jaxllm.data.transforms import TRANSFORMS, Marks, infill
from tests.data_helpers import BYTES, data_config
from tests.test_data_transforms import keys, rows

TEXT = "One two three. Four five? Six seven eight nine ten. "
TEXTS = lambda: iter([TEXT] * 9)  # noqa: E731
BERT = tokenizers.make(
    {"kind": "hf", "vocab_size": 285, "specials": ("[CLS]", "[SEP]", "[MASK]")}, TEXTS
)
T5 = tokenizers.make(
    {"kind": "hf", "vocab_size": 285, "specials": tuple(f"<extra_id_{i}>" for i in range(5))}, TEXTS
)


def opened(
    directory, kind, tokenizer=BYTES, vocab=300, length=64, split="train", steps=9, **options
):
    transforms = {"t": {"kind": kind, **options}}
    config = data_config(length=length, transforms=transforms, batch=8)
    data.check(config)
    data.prepare(config, tokenizer, directory)
    args = (config, tokenizer, directory, split, 0)
    return data.open_split(*args, steps=steps, vocab=vocab), config


@pytest.mark.parametrize("kind", data.NEEDS)
def test_training_and_validation_rows_and_the_abstract_ones_are_alike(kind, tmp_path):
    train, config = opened(tmp_path, kind)
    held, _ = opened(tmp_path, kind, split="validation", steps=0)
    shapes = {name: (x.shape, x.dtype) for name, x in train(0).items()}
    assert {n: (x.shape, x.dtype) for n, x in next(held.epoch(8)).items()} == shapes
    assert {n: (x.shape, x.dtype) for n, x in train.empty(8).items()} == shapes
    assert {n: (x.shape, x.dtype) for n, x in data.empty(config, 8).items()} == shapes
    assert data.needs(config) == {"data.transforms.t.kind": data.NEEDS[kind]}
    first, again = (np.concatenate([b["targets"] for b in held.epoch(8)]) for _ in range(2))
    assert np.array_equal(first, again)


def test_what_only_training_does_is_not_done_to_validation_rows(tmp_path):
    noisy, _ = opened(tmp_path, "noise", split="validation", steps=0, rate=1.0)
    plain, _ = opened(tmp_path, "noise", split="validation", steps=0, rate=0.0)
    a, b = (np.concatenate([x["tokens"] for x in s.epoch(8)]) for s in (noisy, plain))
    assert np.array_equal(a, b)


def test_bert_uses_the_tokenizers_mask_and_leaves_special_tokens_alone(tmp_path):
    transform = TRANSFORMS["bert"](BERT.vocab_size, BERT.eos, Marks(BERT), rate=0.9, replaced=0.0)
    batch = rows(count=20)
    batch["tokens"] %= BERT.vocab_size
    special = np.array([BERT.specials["[CLS]"], BERT.specials["[SEP]"], BERT.eos])
    batch["tokens"][:, ::5] = special[np.arange(batch["tokens"][:, ::5].size) % 3].reshape(20, -1)
    out = transform(batch, keys(20))
    chosen = out["weight"] == 1
    assert chosen.any() and not np.isin(batch["tokens"][chosen], special).any()
    assert (out["tokens"][out["tokens"] != batch["tokens"]] == BERT.specials["[MASK]"]).all()


def test_whole_words_are_masked_whole():
    ids = BERT.encode(TEXT * 4)[:60]
    batch = data.empty_batch(40, 60)
    batch["tokens"][:], batch["segment"][:] = ids, 1
    make = TRANSFORMS["bert"]
    options = {"rate": 0.3, "masked": 1.0, "replaced": 0.0}
    whole = make(BERT.vocab_size, BERT.eos, Marks(BERT), whole_words=True, **options)
    pieces = BERT.pieces()
    word = np.cumsum([pieces[i].text[:1].isspace() for i in ids.tolist()])
    assert len(set(word.tolist())) < 50  # some words are of several tokens
    chosen = whole(batch, keys(40))["weight"] == 1
    for row in chosen:
        for w in set(word.tolist()):
            assert len(set(row[word == w].tolist())) == 1
    assert 0.2 < chosen.mean() <= 0.31
    split = make(BERT.vocab_size, BERT.eos, Marks(BERT), **options)(batch, keys(40))["weight"]
    assert any(len(set(row[word == w].tolist())) == 2 for row in split for w in set(word.tolist()))


def test_t5_has_its_own_sentinels_ends_and_start(tmp_path):
    source, _ = opened(tmp_path, "spans", T5, vocab=0, length=40)
    batch, own = source(0), [T5.specials[f"<extra_id_{i}>"] for i in range(5)]
    for row in range(8):
        inputs = batch["inputs"][row][batch["inputs_segment"][row] > 0]
        targets = batch["targets"][row][batch["segment"][row] > 0]
        assert inputs[-1] == targets[-1] == T5.eos
        found = [i for i in targets.tolist() if i in own]
        assert found == own[: len(found)] and len(found) >= 2
        assert [i for i in inputs.tolist() if i in own] == found[:-1]
        assert batch["tokens"][row, 0] == T5.pad
    with pytest.raises(ConfigError, match=r"take .* sentinels, and the tokenizer has 5"):
        opened(tmp_path, "spans", T5, vocab=0, length=200)


@pytest.mark.parametrize("kind", ["spans", "bert", "infill"])
def test_marks_that_would_stand_for_text_are_refused_with_the_vocabulary_to_take(kind, tmp_path):
    with pytest.raises(ConfigError, match=r"Try --config.model.vocab=(\d+)\.$") as error:
        opened(tmp_path, kind, vocab=0)
    good = int(str(error.value).rpartition("=")[2].rstrip("."))
    assert good > BYTES.vocab_size
    source, _ = opened(tmp_path, kind, vocab=good)
    batch = source(0)
    assert max(x.max() for n, x in batch.items() if n in ("tokens", "inputs")) == good - 1
    with pytest.raises(ConfigError, match="leaves no ids"):
        opened(tmp_path, kind, vocab=good - 1)


def test_infilling_is_that_of_bart():
    batch = rows(count=200, documents=1)
    out = TRANSFORMS["infill"](1_000, 5, permute=False)(batch, keys(200))
    lengths, hidden, total = [], 0, 0
    for row in range(200):
        text = batch["tokens"][row][batch["segment"][row] > 0].tolist()
        inputs = out["inputs"][row][out["inputs_segment"][row] > 0].tolist()
        assert out["targets"][row][out["segment"][row] > 0].tolist() == text
        assert out["tokens"][row][: len(text)].tolist() == [0, *text[:-1]]
        kept = [i for i in inputs if i != 999]
        at = 0
        for token in kept:  # in their order
            at = text.index(token, at) + 1
        hidden, total = hidden + len(text) - len(kept), total + len(text)
        lengths.append((len(text) - len(kept)) / inputs.count(999))
        assert "999, 999" not in str(inputs) and len(inputs) <= len(text)
    assert abs(hidden / total - 0.3) < 0.02 and abs(np.mean(lengths) - 3) < 0.4
    draws = infill.poisson(np.random.default_rng(0).random(20_000), 3.0)
    assert abs(draws.mean() - 3) < 0.05 and abs(draws.var() - 3) < 0.15


def test_sentences_change_places_within_their_document():
    ids = BERT.encode(TEXT * 3)
    batch = data.empty_batch(30, 2 * len(ids))
    batch["tokens"][:] = np.concatenate([ids, ids[::-1]])
    batch["segment"][:, : len(ids)], batch["segment"][:, len(ids) :] = 1, 2
    transform = TRANSFORMS["infill"](BERT.vocab_size, BERT.eos, Marks(BERT), rate=0.0)
    out = transform(batch, permute.subkeys(0, np.arange(30)))
    stops = [i for i, piece in enumerate(BERT.pieces()) if piece.text[-1:] in (".", "?")]

    def sentences(row):
        found, last = [[]], -1
        for token in row.tolist():
            found[-1].append(token)
            if token in stops:
                found.append([])
            last = token
        del last
        return sorted(map(tuple, filter(None, found)))

    moved = 0
    for row in range(30):
        first = out["inputs"][row, : len(ids)]
        assert sorted(first.tolist()) == sorted(ids.tolist())
        moved += first.tolist() != ids.tolist()
        assert out["inputs"][row, 2 * len(ids)] == BERT.eos
        assert sentences(first[: np.flatnonzero(np.isin(first, stops))[-1] + 1])
    assert moved > 20
