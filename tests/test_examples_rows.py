"""Rows of examples: nothing lost, packed or not, a function of seed and number, any host count."""

import itertools

import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxllm import data
from jaxllm.config import ConfigError
from jaxllm.data.examples.rows import cut
from tests.data_helpers import BYTES
from tests.example_helpers import SUMMARY, config_of, opened, pair_rows, pairs_of, write

EOS, PAD, BOS = BYTES.eos, BYTES.pad, BYTES.bos


def sides(batch):
    """[(inputs, targets)] of all examples of a batch of pairs."""
    found = []
    for row in range(len(batch["tokens"])):
        for number in range(1, batch["segment"][row].max(initial=0) + 1):
            there, here = batch["inputs_segment"][row] == number, batch["segment"][row] == number
            found.append(
                (batch["inputs"][row][there].tolist(), batch["targets"][row][here].tolist())
            )
            assert batch["tokens"][row][here].tolist() == [PAD, *found[-1][1][:-1]]
            assert batch["position"][row][here].tolist() == list(range(here.sum()))
            assert batch["inputs_position"][row][there].tolist() == list(range(there.sum()))
    return found


def completions(batch):
    """[(ids, how many of them are read only)] of all examples of a batch of completions."""
    found = []
    for row in range(len(batch["tokens"])):
        for number in range(1, batch["segment"][row].max(initial=0) + 1):
            here = batch["segment"][row] == number
            weight, tokens = batch["weight"][row][here], batch["tokens"][row][here]
            targets = batch["targets"][row][here]
            assert tokens[1:].tolist() == targets[:-1].tolist()
            assert (np.diff(weight) >= 0).all()
            found.append(([int(tokens[0]), *targets.tolist()], 1 + int((weight == 0).sum())))
    return found


def ids(text):
    return BYTES.encode(text).tolist()


@pytest.mark.parametrize("pack", [True, False])
def test_pairs_are_what_the_file_says(pack, tmp_path):
    source = pairs_of(tmp_path, length=16, input_length=64, pack=pack, validation_fraction=0.0)
    want = [
        ([*ids("sum: " + row["document"]), EOS], [*ids(row["summary"]), EOS]) for row in pair_rows()
    ]
    for epoch in (0, 2):
        batch = source.take(epoch * source.train_rows + np.arange(source.train_rows))
        assert sorted(sides(batch)) == sorted(want)
        assert ((batch["weight"] > 0) == (batch["segment"] > 0)).all()
    assert (source.train_rows < 45) if pack else (source.train_rows == 60)
    assert source.cut == 0
    read = (batch["inputs_segment"] > 0).sum() + (batch["segment"] > 0).sum()
    assert source.efficiency == pytest.approx(read / (source.train_rows * (16 + 64)))
    assert source.cut == 0
    held = list(source.epoch(8))
    assert sorted(itertools.chain(*map(sides, held))) == sorted(want)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("begin", [True, False])
def test_completions_are_what_the_file_says(begin, pack, tmp_path):
    source = pairs_of(
        tmp_path, "completion", length=64, pack=pack, begin=begin, validation_fraction=0.0
    )
    first = [BOS] * begin
    want = []
    for row in pair_rows():
        read = [*first, *ids("sum: " + row["document"])]
        want.append(([*read, *ids(row["summary"]), EOS], len(read)))
    batch = source.take(np.arange(source.train_rows))
    assert sorted(completions(batch)) == sorted(want)
    assert (source.train_rows < 45) if pack else (source.train_rows == 60)


@pytest.mark.parametrize("rows", ["pairs", "completion"])
def test_a_long_example_is_cut_and_told(rows, tmp_path):
    """The longest part loses its end; a suffix stays, and so does the end token."""
    row = {"document": "d" * 50, "summary": "s" * 40}
    path = write(tmp_path / "a.jsonl", [row] * 3 + [{"document": "short", "summary": "s"}])
    source = {**SUMMARY, "prefix": "", "suffix": "=>"}
    config = config_of(path, "pairs", rows, length=21, source=source, validation_fraction=0.0)
    found = opened(config, tmp_path, steps=1)
    assert found.cut == 3
    assert any("3 of 4 examples are cut" in line for line in data.describe(found, 1))
    batch = found.take(np.arange(found.train_rows))
    if rows == "pairs":
        assert ([*ids("d" * 18 + "=>"), EOS], [*ids("s" * 20), EOS]) in sides(batch)
    else:
        # 22 tokens are 21 places: 10 + 2 + 9 and the end.
        assert ([*ids("d" * 10 + "=>" + "s" * 9), EOS], 12) in completions(batch)


@pytest.mark.parametrize("rows", ["pairs", "completion", "together"])
def test_any_number_of_hosts_reads_the_same_batch(rows, tmp_path):
    source = pairs_of(tmp_path, rows, length=48)
    for step in (0, 5, 40):
        whole = source(step)
        for hosts in (2, 4):
            share = 8 // hosts
            parts = [source(step, slice(h * share, (h + 1) * share)) for h in range(hosts)]
            for name, value in whole.items():
                assert np.array_equal(np.concatenate([part[name] for part in parts]), value), name
    assert {n: (x.shape, x.dtype) for n, x in source.empty(8).items()} == {
        n: (x.shape, x.dtype) for n, x in whole.items()
    }


def test_examples_meet_others_in_another_epoch(tmp_path):
    source = pairs_of(tmp_path, "completion", length=64, count=200)
    together = []
    for epoch in (0, 1):
        n = epoch * source.train_rows + np.arange(source.train_rows)
        rows = [frozenset(p.document for p in pieces) for _, _, pieces in source.where(n)]
        assert sorted(itertools.chain(*rows)) == list(range(source.examples))
        together.append(rows)
    assert len(set(together[0]) & set(together[1])) < 0.5 * source.train_rows


def test_pieces_say_what_is_in_a_row(tmp_path):
    path = write(tmp_path / "pairs.jsonl", pair_rows())
    source = opened(config_of(path, "pairs", "pairs", source=SUMMARY, length=64), tmp_path)
    batch, found = source(3), data.explain(source, 3)
    for row, (_, name, epoch, pieces) in enumerate(found):
        assert name == "main" and epoch >= 0 and len(pieces) == batch["segment"][row].max()
        for number, piece in enumerate(pieces, 1):
            stored = source.ids(piece.start, piece.tokens).tolist()
            here = batch["inputs"][row][batch["inputs_segment"][row] == number].tolist()
            there = batch["targets"][row][batch["segment"][row] == number].tolist()
            assert stored == here[:-1] + there[:-1]


@pytest.mark.parametrize("rows", ["pairs", "completion", "together"])
def test_examples_on_a_skip_list_weigh_nothing(rows, tmp_path):
    listed = tmp_path / "skip.txt"
    listed.write_text("main 3\nmain 9\n")
    changes = {"length": 64, "validation_fraction": 0.0}
    path = write(tmp_path / "pairs.jsonl", pair_rows())
    plain = opened(config_of(path, "pairs", rows, source=SUMMARY, **changes), tmp_path, steps=9)
    skip = {"steps": (), "documents": str(listed)}
    less = opened(
        config_of(path, "pairs", rows, source=SUMMARY, skip=skip, **changes), tmp_path, steps=9
    )
    n = np.arange(plain.train_rows)
    was, now = plain.take(n), less.take(n)
    for row, (_, _, pieces) in enumerate(plain.where(n)):
        for number, piece in enumerate(pieces, 1):
            here = was["segment"][row] == number if was["weight"].ndim == 2 else slice(None)
            gone = piece.document in (3, 9)
            before, after = was["weight"][row], now["weight"][row]
            if before.ndim:
                before, after = before[here], after[here]
            assert np.array_equal(after, before * (not gone))
    assert now["weight"].sum() < was["weight"].sum()


def test_two_sources_mix_and_a_curriculum_takes_the_short_first(tmp_path):
    paths = [write(tmp_path / f"{i}.jsonl", pair_rows(seed=i)) for i in range(2)]
    sources = {f"s{i}": {"kind": "pairs", "path": p, **SUMMARY} for i, p in enumerate(paths)}
    config = config_of(paths[0], "pairs", "completion", length=64, pack=False)
    config.sources = sources
    easy = {"kind": "length", "until": 0.5}
    config.curriculum = easy
    source = opened(config, tmp_path, steps=40)
    first, last = source(0), source(19)
    assert (first["segment"] > 0).sum() < (last["segment"] > 0).sum()
    assert {origin.source for origin in data.explain(source, 30)} == {"s0", "s1"}
    assert "input_length" in data.record(source, config, 0)


@pytest.mark.parametrize(
    ("lengths", "room"), [([5, 9, 1], 10), ([3, 3, 3], 8), ([10], 4), ([0, 7], 3), ([4, 4], 20)]
)
def test_the_longest_is_cut_first(lengths, room):
    kept = cut(lengths, room)
    assert sum(kept) == min(sum(lengths), room)
    shortened = [k for k, n in zip(kept, lengths, strict=True) if k < n]
    assert all(max(kept) - k <= 1 for k in shortened)
    assert all(0 <= k <= n for k, n in zip(kept, lengths, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(rows="windows"), "rows='windows' does not go with a source of kind 'pairs'"),
        (dict(rows="examples"), "is not for pairs.\n  Try --config.data.rows=pairs"),
        (dict(rows="pears"), "Did you mean 'pairs'"),
        (dict(rows="pairs", input_length=-1), "Try --config.data.input_length=0"),
        (dict(rows="pairs", transforms={"a": {"kind": "spans"}}), "not for rows of examples"),
        (dict(rows="windows", sources={"main": {"kind": "synthetic"}},
              transforms={"a": {"kind": "bert"}, "b": {"kind": "noise"}}), "Put 'bert' last"),
        (dict(rows="pairs", sources={"main": {"kind": "synthetic"}}), "windows or packed"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused_before_a_text_is_read(changes, words, tmp_path):
    path = write(tmp_path / "pairs.jsonl", pair_rows())
    config = config_of(path, "pairs", changes.pop("rows"), source=SUMMARY)
    for name, value in changes.items():
        setattr(config, name, ConfigDict(value) if isinstance(value, dict) else value)
    with pytest.raises(ConfigError) as error:
        data.check(config)
    assert words in str(error.value)
