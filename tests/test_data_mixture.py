"""Mixtures: exact counts, no repeats within an epoch, random access."""

import numpy as np
import pytest

from jaxllm import data, settings
from jaxllm.config import ConfigError
from jaxllm.data import weights
from jaxllm.training import records, setup
from tests.data_helpers import BYTES, data_config, open_source


def mixed(a=3.0, b=1.0, **changes):
    sources = {
        "a": {"kind": "synthetic", "documents": 40, "seed": 1, "weight": a},
        "b": {"kind": "synthetic", "documents": 60, "seed": 2, "weight": b},
    }
    return data_config(sources=sources, **changes)


STAGES = ((0.0, {"a": 1.0}), (0.5, {"a": 1.0, "b": 3.0}), (0.75, {"b": 1.0}))
BOTH = ((0.0, {"a": 1.0, "b": 1.0}), (0.5, {"a": 3.0, "b": 1.0}))


@pytest.fixture(scope="module")
def shard_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("shards")


def opened(directory, steps=1_000, a=3.0, b=1.0, **changes):
    """A mixture for a run of `steps` steps of 8 rows; "c.d" of `changes` is written c__d."""
    config = mixed(a, b)
    for name, value in changes.items():
        source, _, field = name.partition("__")
        section = config.sources[source] if field else config
        section.unlock()
        section[field or name] = value
    data.check(config)
    data.prepare(config, BYTES, directory)
    return data.open_split(config, BYTES, directory, "train", 0, steps=steps)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return open_source(mixed(), tmp_path_factory.mktemp("shards"))


def test_quotas_are_exact_in_every_block(source):
    member, _ = source.assign(np.arange(5_000))
    for block in member.reshape(5, 1_000):
        assert np.bincount(block).tolist() == [750, 250]
    # Not in one piece: the sources alternate within a block.
    assert np.abs(np.diff(member[:1_000])).sum() > 100


def test_each_source_is_walked_without_gaps_or_repeats(source):
    member, row = source.assign(np.arange(4_000))
    for m, count in ((0, 3_000), (1, 1_000)):
        assert sorted(row[member == m]) == list(range(count))


def test_rows_come_from_the_sources(source):
    member, row = source.assign(np.arange(8, 16))
    batch = source(1)
    for r in range(8):
        own = list(source.sources.values())[member[r]].take(row[r : r + 1])
        for name, value in own.items():
            assert np.array_equal(batch[name][r], value[0])


@pytest.mark.parametrize("rows", data.ROWS)
@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
def test_rows_do_not_depend_on_the_number_of_hosts(rows, hosts, shard_dir):
    source = opened(shard_dir, rows=rows, weights=STAGES, length=40)
    share = 8 // hosts
    for step in (0, 9, 260):
        whole = source(step)
        parts = [source(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        for name, value in whole.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), value), name


def test_evaluation_covers_all_sources(source):
    weight = sum(batch["weight"].sum() for batch in source.epoch(8))
    alone = sum(b["weight"].sum() for s in source.sources.values() for b in s.epoch(8))
    assert weight == alone > 0
    assert source.tokens == sum(s.tokens for s in source.sources.values())


@pytest.mark.parametrize(("given", "rows"), [((1, 1, 1), [334, 333, 333]), ((2, 0), [1_000, 0])])
def test_quotas_add_up(given, rows):
    assert list(weights.quotas(dict(zip("abc", given, strict=False))).values()) == rows


@pytest.mark.parametrize(
    ("a", "b", "message"), [(-1.0, 1.0, ">= 0"), (0.0, 0.0, "every weight"), (1e-9, 1.0, "no rows")]
)
def test_weights_that_cannot_work_are_refused(a, b, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        open_source(mixed(a, b), tmp_path)


def test_weights_change_over_the_run(shard_dir):
    source = opened(shard_dir, weights=STAGES)
    assert [first for first, _ in source.stages] == [0, 4, 6]
    member, row = source.assign(np.arange(8_000))
    share = member.reshape(8, 1_000).mean(axis=1)  # of b
    assert share.tolist() == [0, 0, 0, 0, 0.75, 0.75, 1, 1]
    for m in (0, 1):  # each goes on where it was
        assert sorted(row[member == m]) == list(range((member == m).sum()))
    for rows in (0, 1, 999, 1_000, 4_321, 8_000):
        here = np.bincount(member[:rows], minlength=2).tolist()
        assert list(source.read(rows).values()) == here
    later = opened(shard_dir, weights=((0.5, {"b": 1.0}),))
    assert later.read(4_000) == {"a": 3_000, "b": 1_000}
    assert later.read(8_000) == {"a": 3_000, "b": 5_000}


@pytest.mark.parametrize(("temperature", "power"), [(0.0, 0.0), (1.0, 1.0), (2.0, 0.5), (1e9, 0.0)])
def test_temperature_flattens_the_shares(temperature, power, shard_dir):
    source = opened(shard_dir, a=1.0, b=1.0, temperature=temperature)
    tokens = {name: s.tokens for name, s in source.sources.items()}
    assert tokens["b"] > 1.3 * tokens["a"]
    share = {name: n**power for name, n in tokens.items()}
    for name, rows in source.stages[0][1].items():
        assert abs(rows - 1_000 * share[name] / sum(share.values())) <= 1


def test_epochs_are_counted_by_source(shard_dir):
    source = opened(shard_dir)
    epochs = source.epochs(100)
    for name, share in (("a", 0.75), ("b", 0.25)):
        assert epochs[name] == pytest.approx(800 * share / source.sources[name].train_rows, rel=0.1)
    lines = data.describe(source, 100)
    assert len(lines) == 2 and f"{epochs['b']:.2f} epochs" in lines[1]


def test_a_run_that_repeats_a_source_too_often_is_refused(shard_dir):
    with pytest.raises(ConfigError, match=r"a\.max_epochs=2.*\n  Try --config.steps=\d+") as error:
        opened(shard_dir, a__max_epochs=2.0)
    steps = int(str(error.value).split("steps=")[1].split(",")[0])
    assert 1.9 < opened(shard_dir, steps, a__max_epochs=2.0).epochs(steps)["a"] <= 2
    opened(shard_dir, 0, a__max_epochs=2.0)  # nothing is trained
    with pytest.raises(ConfigError, match="max_epochs=-1"):
        opened(shard_dir, a__max_epochs=-1.0)


@pytest.mark.parametrize("changes", [{}, {"weights": BOTH}])
def test_or_its_share_goes_to_the_others_and_is_said(changes, shard_dir):
    limit = 4.0
    source = opened(shard_dir, a__max_epochs=limit, over_epochs="give", b=3.0, **changes)
    assert 0.9 * limit < source.epochs(1_000)["a"] <= limit
    assert sum(source.read(8_000).values()) == 8_000
    assert all(sum(rows.values()) == 1_000 for _, rows in source.stages)
    said = [line for line in data.describe(source, 1_000) if "held" in line]
    assert len(said) == 1 and said[0].startswith("data a:")
    nothing = opened(shard_dir, a__max_epochs=1e-3, over_epochs="give")
    assert "a" not in nothing.sources and "no rows" in data.describe(nothing, 1_000)[-1]
    with pytest.raises(ConfigError, match="all that a stage"):
        opened(shard_dir, a__max_epochs=1.0, b__max_epochs=1.0, over_epochs="give")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(weights=((0.5, {"a": 1.0}), (0.5, {"b": 1.0}))), "ascending"),
        (dict(weights=((1.0, {"a": 1.0}),)), "below 1"),
        (dict(weights=((0.0, {"aa": 1.0}),)), "Did you mean 'a'"),
        (dict(weights=((0.0, {"a": -1.0}),)), ">= 0"),
        (dict(weights=(0.0, 1.0)), "is no stage"),
        (dict(temperature=-1.0), "temperature=1.0"),
        (dict(over_epochs="gvie"), "over_epochs=refuse"),
    ],
)
def test_what_cannot_be_is_refused_before_text_is_read(changes, message):
    with pytest.raises(ConfigError, match=message):
        data.check(mixed(**changes))


def test_stages_can_be_given_on_the_command_line():
    text = "((0.0, {'main': 1.0}), (0.5, {'main': 2.0}))"
    file = "configs/shakespeare_char.py:smoke"
    config, _ = settings.load(file, [("data.weights", text)], setup.KINDS)
    data.check(config.data)
    assert '"main": 2.0' in records.config_json(config)
