"""Rows by random access: pure, complete, packed so that documents do not see each other."""

import numpy as np
import pytest

from jaxllm import data, tokenizers
from jaxllm.config import ConfigError
from jaxllm.data import permute
from tests.data_helpers import BYTES, data_config, open_source, text_config


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(data_config(), tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def one_text(tmp_path_factory):
    """One document of distinct places: characters 0 to 999 as code points from 0x4E00."""
    path = tmp_path_factory.mktemp("text") / "one.txt"
    text = "".join(chr(0x4E00 + i) for i in range(1_000))
    path.write_text(text)
    tokenizer = tokenizers.make({"kind": "char"}, lambda: iter([text]))
    config = text_config(path, length=16, validation_fraction=0.0)
    return open_source(config, path.parent / "shards", tokenizer=tokenizer)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1_000, 4_096])
def test_a_keyed_permutation_permutes(size):
    for key in (1, 2**64 - 1):
        places = permute.permute(np.full(size, key, np.uint64), np.arange(size), size)
        assert sorted(places) == list(range(size))


def test_permutations_of_other_keys_differ_and_look_random():
    def places(key):
        return permute.permute(np.full(1_000, key, np.uint64), np.arange(1_000), 1_000)

    a, b = places(5), places(6)
    assert (a == b).mean() < 0.01
    assert abs(np.corrcoef(a, np.arange(1_000))[0, 1]) < 0.1
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert len(np.unique(np.diff(a))) > 500


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_rows_do_not_depend_on_the_number_of_hosts(source, hosts):
    share = source.batch // hosts
    for step in (0, 7, 1_000):
        whole = source(step)
        parts = [source(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        for name, value in whole.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), value), name


def test_rows_depend_on_seed_and_step_alone(source, tmp_path):
    again = open_source(data_config(), tmp_path)
    other = open_source(data_config(), tmp_path, seed=1)
    again(99)  # what was read before leaves no trace
    assert np.array_equal(again(5)["tokens"], source(5)["tokens"])
    assert np.array_equal(source(5, [6, 2])["tokens"], source(5)["tokens"][[6, 2]])
    assert not np.array_equal(other(5)["tokens"], source(5)["tokens"])
    assert not np.array_equal(source(6)["tokens"], source(5)["tokens"])
    # The order differs too, not only where the windows are cut.
    order, other_order = (np.argsort(s.starts(np.arange(s.windows))) for s in (source, other))
    assert not np.array_equal(order, other_order)


def test_each_epoch_covers_every_window_once(one_text):
    shifts = set()
    for epoch in range(6):
        n = np.arange(one_text.windows) + epoch * one_text.windows
        starts = np.sort(one_text.starts(n))
        shifts.add(int(starts[0]))
        assert 0 <= starts[0] < one_text.length
        assert np.array_equal(np.diff(starts), np.full(one_text.windows - 1, one_text.length))
        assert starts[-1] + one_text.length + 1 <= one_text.tokens
        assert one_text.take(n)["tokens"].shape == (one_text.windows, one_text.length)
    assert len(shifts) > 2
    firsts = [
        one_text.starts(np.arange(one_text.windows) + epoch * one_text.windows).min()
        for epoch in range(200)
    ]
    assert set(firsts) == set(range(one_text.length))  # in the end, cuts fall everywhere


def test_targets_are_the_next_tokens(one_text):
    batch = one_text(3)
    assert np.array_equal(batch["targets"], batch["tokens"] + 1)
    assert batch["weight"].min() == 1
    assert (batch["segment"] == 1).all()
    assert (batch["position"] == np.arange(one_text.length)).all()
    types = {name: value.dtype.name for name, value in batch.items()}
    assert types.pop("weight") == "float32"
    assert set(types.values()) == {"int32"}


def expected_row(tokens, eos):
    """Position, segment and weight of a row, counted the slow way from its end tokens."""
    position, segment, weight, p, s = [], [], [], 0, 1
    for token in tokens:
        position.append(p)
        segment.append(s)
        weight.append(float(token != eos))
        p, s = (0, s + 1) if token == eos else (p + 1, s)
    return position, segment, weight


def test_documents_in_a_row_do_not_see_each_other(tmp_path):
    source = open_source(data_config(batch=64, length=200), tmp_path)
    batch = source(0)
    assert batch["segment"].max() > 2
    for row in range(64):
        position, segment, weight = expected_row(batch["tokens"][row], BYTES.eos)
        assert batch["position"][row].tolist() == position
        assert batch["segment"][row].tolist() == segment
        assert batch["weight"][row].tolist() == weight


@pytest.mark.parametrize("length", [7, 16, 999, 998])
def test_an_epoch_of_evaluation_counts_every_target_once(one_text, length):
    one_text.length, one_text.epoch_rows = length, -(-999 // length)
    batches = list(one_text.epoch(4))
    assert len(batches) == one_text.epoch_steps(4)
    seen = np.concatenate([b["targets"][b["weight"] == 1] for b in batches])
    assert np.array_equal(seen, np.arange(1, 1_000))
    padding = np.concatenate([b["segment"][b["weight"] == 0] for b in batches])
    assert (padding == 0).all()
    assert {b["tokens"].shape for b in batches} == {(4, length)}
    one_text.length, one_text.epoch_rows = 16, -(-999 // 16)


def test_evaluation_rows_can_be_cut_over_hosts(source):
    whole = list(source.epoch(8))
    halves = [list(source.epoch(8, rows)) for rows in (slice(0, 4), slice(4, 8))]
    for i, batch in enumerate(whole):
        for name, value in batch.items():
            assert np.array_equal(np.concatenate([half[i][name] for half in halves]), value)
    weight = sum(b["weight"].sum() for b in whole)
    documents = source.manifest["splits"]["train"]["documents"]
    assert 30 < documents < 40
    assert weight == source.tokens - documents  # all but the first token of each


def test_shards_of_any_size_give_the_same_rows(tmp_path):
    whole = open_source(data_config(), tmp_path)
    for shard_tokens in (5, 64, 1_001):
        config, directory = data_config(), tmp_path / str(shard_tokens)
        data.prepare(config, BYTES, directory, shard_tokens)
        cut = data.open_split(config, BYTES, directory, "train", 0)
        for name, value in whole(3).items():
            assert np.array_equal(cut(3)[name], value)
        for a, b in zip(whole.epoch(8), cut.epoch(8), strict=True):
            assert np.array_equal(a["targets"], b["targets"])


def test_a_split_too_short_for_a_row_says_what_to_type(tmp_path):
    config = data_config(length=5_000)
    with pytest.raises(
        ConfigError, match=r"length=5000.*\n.*Try --config.data.length=\d+"
    ) as error:
        open_source(config, tmp_path, "validation")
    config.length = int(str(error.value).split("length=")[-1].split(",")[0])
    source = data.open_split(config, BYTES, tmp_path, "validation", 0)
    assert sum(b["weight"].sum() for b in source.epoch(2)) > 0
    assert source(0)["tokens"].shape == (8, config.length)
