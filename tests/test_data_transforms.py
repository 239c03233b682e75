"""Transforms of rows: the statistics of their papers, nothing lost, a function of the row's key."""

import json

import numpy as np
import pytest

from jaxllm import config as configs
from jaxllm import data
from jaxllm.config import ConfigError
from jaxllm.data import permute
from jaxllm.data.transforms import masks, spans
from tests import runs
from tests.data_helpers import BYTES, data_config, open_source

VOCAB, EOS, TEXT = 1_000, 5, 600  # ids of text are from 10 to 599


def rows(count=64, length=512, documents=3, seed=0):
    """Packed rows of documents, each a stretch of random ids that ends with EOS; padding."""
    rng = np.random.default_rng(seed)
    batch = data.empty_batch(count, length)
    for row in range(count):
        cuts = np.sort(rng.choice(np.arange(12, length - 12, 13), documents, replace=False))
        first = 0
        for number, last in enumerate(cuts, 1):
            ids = np.append(rng.integers(10, TEXT, last - first), EOS)
            batch["tokens"][row, first:last] = ids[:-1]
            batch["targets"][row, first:last] = ids[1:]
            batch["segment"][row, first:last] = number
            batch["position"][row, first:last] = np.arange(last - first)
            batch["weight"][row, first:last] = 1
            first = last
    return batch


def whole_rows(**kwargs):
    """Rows that are full, of one stretch."""
    batch = rows(**kwargs)
    ids = np.random.default_rng(1).integers(10, TEXT, batch["tokens"].shape).astype(np.int32)
    batch["tokens"], batch["targets"] = ids, np.roll(ids, -1, 1)
    batch["segment"][:] = 1
    batch["weight"][:] = 1
    return batch


def keys(count=64, seed=0):
    return permute.subkeys(seed, np.arange(count))


def make(kind, **options):
    section = {"kind": kind, **options}
    return configs.make(data.TRANSFORMS, section, "data.transform", VOCAB, EOS)


@pytest.mark.parametrize("kind", data.TRANSFORMS)
def test_a_row_is_transformed_by_its_key_alone(kind):
    transform, batch = make(kind), rows()
    before = {name: value.copy() for name, value in batch.items()}
    whole = transform(batch, keys())
    some = np.array([40, 3, 17])
    part = transform({name: value[some] for name, value in batch.items()}, keys()[some])
    other = transform(batch, keys(seed=1))
    for name, value in whole.items():
        assert np.array_equal(part[name], value[some]), name
        assert value.dtype == (np.float32 if name == "weight" else np.int32), name
    assert any(not np.array_equal(other[name], whole[name]) for name in whole)
    for name, value in before.items():
        assert np.array_equal(batch[name], value), f"{name} of the source was changed"


@pytest.mark.parametrize("kind", data.TRANSFORMS)
def test_a_source_passes_through_it_on_any_number_of_hosts(kind, tmp_path):
    plain = open_source(data_config(length=64, rows="packed"), tmp_path)
    source = data.Transformed(plain, make(kind), seed=3)
    whole = source(2)
    for hosts in (2, 4, 8):
        share = 8 // hosts
        parts = [source(2, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        for name, value in whole.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), value)
    first, again = list(source.epoch(8)), list(source.epoch(8))
    assert len(first) == source.epoch_steps(8) == len(again)
    for a, b in zip(first, again, strict=True):
        assert {x.shape for x in a.values()} == {x.shape for x in whole.values()}
        assert all(np.array_equal(a[name], b[name]) for name in a)
    assert source.tokens == plain.tokens and source.epochs(4) == plain.epochs(4)


def restore(inputs, targets):
    """The row that span corruption made `inputs` and `targets` of."""
    hidden, at = {}, None
    for token in targets:
        if token >= TEXT:
            at = hidden.setdefault(token, [])
        else:
            at.append(token)
    found = []
    for token in inputs:
        found += hidden[token] if token >= TEXT else [token]
    return found


def test_span_corruption_is_that_of_t5():
    batch = whole_rows()
    out = make("spans")(batch, keys())
    assert out["inputs"].shape == (64, 512 - 77 + 26) and out["targets"].shape == (64, 77 + 27)
    assert (out["inputs_segment"] == 1).all() and (out["weight"] == 1).all()
    lengths = []
    for row in range(64):
        inputs, targets = out["inputs"][row], out["targets"][row]
        assert restore(inputs, targets) == batch["tokens"][row].tolist()
        sentinels = targets[targets >= TEXT].tolist()
        assert sentinels == list(range(VOCAB - 1, VOCAB - 28, -1))
        assert inputs[inputs >= TEXT].tolist() == sentinels[:-1]
        assert out["tokens"][row].tolist() == [0, *targets[:-1]]
        lengths.append(np.diff(np.flatnonzero(targets >= TEXT)) - 1)
        assert lengths[-1].min() >= 1 and lengths[-1].sum() == 77  # 15 % of 512
    lengths = np.concatenate(lengths)
    assert abs(lengths.mean() - 3) < 0.1 and lengths.max() > 7


def test_span_corruption_hides_every_place_alike():
    batch = whole_rows(count=2_000, length=60)
    batch["tokens"][:] = np.arange(60) + 10
    out = make("spans")(batch, keys(2_000))
    left = np.array([(out["inputs"] == 10 + t).sum() for t in range(60)]) / 2_000
    assert abs(left.mean() - 0.85) < 0.001
    assert left[5:55].min() > 0.75 and left[5:55].max() < 0.95


def test_span_corruption_of_short_rows_and_padding():
    batch = rows(documents=2)
    out = make("spans")(batch, keys())
    for row in range(64):
        real = batch["segment"][row] > 0
        inputs = out["inputs"][row][out["inputs_segment"][row] > 0]
        targets = out["targets"][row][out["weight"][row] > 0]
        assert restore(inputs, targets) == batch["tokens"][row][real].tolist()
    nothing = make("spans")(data.empty_batch(2, 32), keys(2))
    assert not nothing["weight"].any() and not nothing["inputs_segment"].any()


def test_bert_masks_as_the_paper_says():
    batch = rows(count=400)
    out = make("bert")(batch, keys(400))
    real, chosen = batch["segment"] > 0, out["weight"] == 1
    share = chosen.sum(1) / real.sum(1)
    assert np.abs(share - 0.15).max() < 0.02 and not chosen[~real].any()
    assert np.array_equal(out["targets"], batch["tokens"])
    assert np.array_equal(out["tokens"][~chosen], batch["tokens"][~chosen])
    masked = (out["tokens"] == VOCAB - 1)[chosen].mean()
    same = (out["tokens"] == batch["tokens"])[chosen].mean()
    assert abs(masked - 0.8) < 0.01 and abs(same - 0.1) < 0.01
    other = out["tokens"][
        chosen & (out["tokens"] != VOCAB - 1) & (out["tokens"] != batch["tokens"])
    ]
    assert other.min() < 20 and other.max() > VOCAB - 20  # of the whole vocabulary
    restored = np.where(chosen, out["targets"], out["tokens"])
    assert np.array_equal(restored, batch["tokens"])


def test_xlnet_orders_each_document_and_predicts_the_last_of_it():
    batch = rows(count=300, length=60, documents=2)
    out = make("xlnet", predicted=4)(batch, keys(300))
    first = []
    for row in range(300):
        for segment in (1, 2):
            here = batch["segment"][row] == segment
            order, n = out["order"][row, here], here.sum()
            assert sorted(order) == list(range(n))
            predicted = out["weight"][row, here] == 1
            assert set(order[predicted]) == set(range(n - max(n // 4, 1), n))
            first.append((order[0] + 0.5) / n)
    assert abs(np.mean(first) - 0.5) < 0.05 and abs(np.std(first) - 12**-0.5) < 0.03
    assert not out["weight"][batch["segment"] == 0].any()


def test_prefixes_are_random_parts_whose_targets_do_not_count():
    batch = rows(count=300, documents=2)
    out = make("prefix")(batch, keys(300))
    shares = []
    for row in range(300):
        for segment in (1, 2):
            here = np.flatnonzero(batch["segment"][row] == segment)
            inside, weight = out["prefix"][row, here], out["weight"][row, here]
            p = inside.sum()
            assert 1 <= p <= len(here) and inside[:p].all()
            assert not weight[: p - 1].any() and weight[p - 1 :].all()
            shares.append((p - 0.5) / len(here))
    assert abs(np.mean(shares) - 0.5) < 0.05 and min(shares) < 0.05 and max(shares) > 0.95
    assert not out["prefix"][batch["segment"] == 0].any()


def unfill(ids):
    """(form, text) of a document with its middle at the end."""
    pre, suf, mid = range(VOCAB - 3, VOCAB)
    ids = ids.tolist()
    assert ids[0] == pre
    if ids[1] == suf:
        at = ids.index(mid)
        return "spm", ids[at + 1 :] + ids[2:at]
    s, m = ids.index(suf), ids.index(mid)
    return "psm", ids[1:s] + ids[m + 1 :] + ids[s + 1 : m]


@pytest.mark.parametrize(("rate", "spm"), [(0.5, 0.5), (0.9, 0.0), (1.0, 1.0)])
def test_the_middle_is_moved_and_nothing_is_lost(rate, spm):
    batch = rows(count=300)
    out = make("fim", rate=rate, spm=spm)(batch, keys(300))
    forms, middles = [], []
    for row in range(300):
        for segment in (1, 2, 3):
            here = np.flatnonzero(batch["segment"][row] == segment)
            old = np.append(batch["tokens"][row, here], batch["targets"][row, here[-1]])
            new = np.append(out["tokens"][row, here], out["targets"][row, here[-1]])
            assert np.array_equal(out["tokens"][row, here[1:]], out["targets"][row, here[:-1]])
            assert new[-1] == EOS  # the end stays the end
            if new[0] != VOCAB - 3:
                assert np.array_equal(new, old)
                forms.append("none")
                continue
            form, text = unfill(new[:-1])
            assert text == old[:-4].tolist()
            forms.append(form)
            if form == "psm":
                middles.append((len(new) - 2 - new.tolist().index(VOCAB - 1)) / (len(old) - 4))
    moved = 1 - forms.count("none") / len(forms)
    assert abs(moved - rate) < 0.06
    assert abs(forms.count("spm") / len(forms) - rate * spm) < 0.06
    if middles:
        assert abs(np.mean(middles) - 1 / 3) < 0.04  # two uniform cuts
    for name in ("segment", "position", "weight"):
        assert np.array_equal(out[name], batch[name])


def test_windows_keep_the_targets_across_documents_out(tmp_path):
    """A window's last target of a document is the next one's first token, and counts nothing."""
    batch = open_source(data_config(length=120), tmp_path)(0)
    cut = batch["weight"] == 0
    out = data.TRANSFORMS["fim"](BYTES.vocab_size + 3, BYTES.eos, rate=1.0)(batch, keys(8))
    assert cut.any() and np.array_equal(out["targets"][cut], batch["targets"][cut])
    same = out["segment"][:, 1:] == out["segment"][:, :-1]
    assert np.array_equal(out["tokens"][:, 1:][same], out["targets"][:, :-1][same])
    assert (out["tokens"] >= BYTES.vocab_size).any()


@pytest.mark.parametrize(("kind", "share"), [("noise", 0.1), ("word_dropout", 0.1)])
def test_noise_is_in_what_is_read_alone(kind, share):
    batch = rows(count=400)
    out = make(kind)(batch, keys(400))
    real = batch["segment"] > 0
    changed = out["tokens"] != batch["tokens"]
    assert abs(changed[real].mean() - share) < 0.005 and not changed[~real].any()
    assert np.array_equal(out["targets"], batch["targets"])
    ids = np.unique(out["tokens"][changed])
    assert len(ids) > 900 if kind == "noise" else ids.tolist() == [VOCAB - 1]


def test_segmentations_are_all_alike_likely():
    draws = np.random.default_rng(0).random((3_000, 4))
    found = [tuple(spans.segmentation(draw, 5, 3)) for draw in draws]
    kinds, counts = np.unique(found, axis=0, return_counts=True)
    assert len(kinds) == 6 and counts.min() > 400
    assert {sum(parts) for parts in found} == {5}


def test_sizes_and_starts_of_segments():
    segment = np.array([[1, 1, 2, 3, 3, 0], [1, 1, 1, 1, 1, 1]], np.int32)
    assert masks.sizes(segment).tolist() == [[2, 2, 1, 2, 2, 1], [6] * 6]
    assert masks.starts(segment).tolist() == [[0, 0, 2, 3, 3, 5], [0] * 6]


@pytest.mark.parametrize(
    ("kind", "options"),
    [("bert", dict(rate=1.5)), ("spans", dict(rate=0.0)), ("spans", dict(mean=0.5)),
     ("fim", dict(spm=-0.1)), ("xlnet", dict(predicted=0)), ("noise", dict(rate=2.0))],
)  # fmt: skip
def test_options_out_of_range_say_what_to_type(kind, options):
    with pytest.raises(ConfigError, match=r"config\.data\.transform.*\n  Try --config"):
        make(kind, **options)


def test_a_config_transforms_the_rows_of_training_alike_each_time(tmp_path):
    """The first loss is the same twice, and another without."""
    made = [runs.config({"steps": 2, "validate.every": 0, "log.every": 1}) for _ in range(3)]
    for config in made[:2]:
        config.unlock()
        config.data.transforms.noisy = {"kind": "noise", "rate": 0.3}
    losses = []
    for i, config in enumerate(made):
        assert runs.train(config, tmp_path / str(i)) == 0
        lines = (tmp_path / str(i) / "metrics.jsonl").read_text().splitlines()
        losses.append(json.loads(lines[0])["loss"])
    assert losses[0] == losses[1] != losses[2]
