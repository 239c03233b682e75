"""Mixtures: exact counts, no repeats within an epoch, random access."""

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.data import mixture
from tests.data_helpers import data_config, open_source


def mixed(a=3.0, b=1.0, **changes):
    sources = {
        "a": {"kind": "synthetic", "documents": 40, "seed": 1, "weight": a},
        "b": {"kind": "synthetic", "documents": 60, "seed": 2, "weight": b},
    }
    return data_config(sources=sources, **changes)


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


def test_rows_do_not_depend_on_the_number_of_hosts(source):
    parts = [source(9, slice(h * 2, h * 2 + 2))["tokens"] for h in range(4)]
    assert np.array_equal(np.concatenate(parts), source(9)["tokens"])


def test_evaluation_covers_all_sources(source):
    weight = sum(batch["weight"].sum() for batch in source.epoch(8))
    alone = sum(b["weight"].sum() for s in source.sources.values() for b in s.epoch(8))
    assert weight == alone > 0
    assert source.tokens == sum(s.tokens for s in source.sources.values())


@pytest.mark.parametrize(("weights", "rows"), [((1, 1, 1), [334, 333, 333]), ((2, 0), [1_000, 0])])
def test_quotas_add_up(weights, rows):
    assert list(mixture.quotas(dict(zip("abc", weights, strict=False))).values()) == rows


@pytest.mark.parametrize(
    ("a", "b", "message"), [(-1.0, 1.0, ">= 0"), (0.0, 0.0, "every weight"), (1e-9, 1.0, "no rows")]
)
def test_weights_that_cannot_work_are_refused(a, b, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        open_source(mixed(a, b), tmp_path)
