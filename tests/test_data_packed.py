"""Packed rows: whole documents, nearly full, found without a walk, blind to one another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import data, models
from jaxllm.config import ConfigError
from jaxllm.data import packing, shards
from tests.conftest import random_params, tiny_config
from tests.data_helpers import data_config, open_source

LENGTHS = [
    np.random.default_rng(0).integers(1, 60, 400),
    np.random.default_rng(1).geometric(0.03, 300),  # some longer than a row
    np.array([33] * 50 + [1] * 5 + [65] + [100]),  # exactly a row, nothing, two rows, three and one
    np.array([2]),
]


def shard_set(path, lengths, shard_tokens=997):
    """Writes documents whose tokens are distinct numbers, so that each says where it was."""
    path.mkdir(parents=True)
    vocab = int(sum(lengths)) + 1
    parts = {}
    for split in shards.SPLITS:
        writer = shards.SplitWriter(path, split, vocab, shard_tokens)
        for first, n in zip(np.cumsum(lengths) - lengths, lengths, strict=True):
            writer.start_document()
            writer.write(np.arange(first, first + n), "test")
        parts[split] = writer.close()
    manifest = {"format": shards.FORMAT, "splits": parts, "shard_tokens": shard_tokens}
    manifest |= {"dtype": shards.id_dtype(vocab).str, "validation_fraction": 0.5}
    return manifest


def packed(path, lengths, batch=4, length=32, seed=0, split="train"):
    manifest = shard_set(path, lengths)
    return packing.Packed(path, manifest, split, batch=batch, length=length, seed=seed, name="main")


@pytest.mark.parametrize("case", range(len(LENGTHS)))
def test_an_epoch_holds_every_target_once_and_cuts_no_document_that_fits(case, tmp_path):
    lengths = LENGTHS[case]
    source = packed(tmp_path / "s", lengths)
    inside = np.setdiff1d(np.arange(lengths.sum()), np.cumsum(lengths) - lengths)
    for epoch in (0, 3):
        n = epoch * source.train_rows + np.arange(source.train_rows)
        batch = source.take(n)
        real = batch["weight"] == 1
        assert np.array_equal(np.sort(batch["targets"][real]), inside)
        assert (batch["targets"] - batch["tokens"])[real].tolist() == [1] * real.sum()
        assert ((batch["segment"] > 0) == real).all() and not batch["tokens"][~real].any()
        document = np.searchsorted(np.cumsum(lengths), batch["tokens"], "right")
        for row in range(len(n)):
            for segment in range(1, batch["segment"][row].max() + 1):
                here = batch["segment"][row] == segment
                (whose,) = set(document[row, here])
                size = lengths[whose] - 1
                assert here.sum() == size or size > 32
                assert batch["position"][row, here].tolist() == list(range(here.sum()))
    assert source.efficiency == pytest.approx(real.mean())
    assert [b["weight"].sum() for b in source.epoch(4)] != []
    assert sum(b["weight"].sum() for b in source.epoch(4)) == len(inside)


def test_rows_are_nearly_full(tmp_path):
    rng = np.random.default_rng(0)
    for lengths in (rng.integers(2, 200, 3_000), rng.geometric(0.02, 3_000) + 1):
        source = packed(tmp_path / str(lengths[0]), lengths, length=256)
        assert 0.99 < source.efficiency <= 1
        bound = -(-np.maximum(lengths - 1, 0).sum() // 256)
        assert source.train_rows <= 1.01 * bound + 1


def test_best_fit_puts_every_piece_somewhere_once():
    rng = np.random.default_rng(0)
    for _ in range(50):
        counts = rng.integers(0, 30, rng.integers(2, 40))
        counts[0] = 0
        held = np.zeros_like(counts)
        for rows, runs in packing.best_fit(counts):
            assert rows > 0 and sum(length * each for length, each in runs) < len(counts)
            for length, each in runs:
                held[length] += rows * each
        assert np.array_equal(held, counts)


def test_a_plan_does_not_grow_with_the_documents():
    """A million times as many documents of the same lengths take no more patterns, nor time."""
    counts = np.random.default_rng(0).integers(0, 100, 513)
    counts[0] = 0
    few, many = packing.best_fit(counts), packing.best_fit(counts * 1_000_000)
    assert len(many) < 2 * len(few) + 1_000
    assert packing.make_plan(counts * 1_000_000).end[-1] > 1e9


def test_rows_are_a_function_of_seed_and_number(tmp_path):
    lengths = np.random.default_rng(0).integers(2, 12, 400)
    source, other = packed(tmp_path / "a", lengths), packed(tmp_path / "b", lengths, seed=1)
    for hosts in (1, 2, 4):
        share = 4 // hosts
        parts = [source(5, slice(h * share, h * share + share)) for h in range(hosts)]
        for name, value in source(5).items():
            assert np.array_equal(np.concatenate([p[name] for p in parts]), value)
    assert not np.array_equal(other(5)["tokens"], source(5)["tokens"])
    # Another epoch: another order, and other documents side by side.
    together = []
    for epoch in (0, 1):
        pieces = source.pieces(epoch * source.train_rows + np.arange(source.train_rows))
        rows = [frozenset(pieces.document[pieces.row == r]) for r in range(source.train_rows)]
        together.append(rows)
    assert len(set(together[0]) & set(together[1])) < 0.2 * source.train_rows


def test_nothing_leaks_from_document_to_document(tmp_path):
    """The loss on one document has no gradient in the embeddings of another in its row."""
    source = packed(tmp_path / "s", np.full(20, 11), batch=2)
    batch = source(0)
    assert batch["segment"].max() == 3
    model = models.make(tiny_config(vocab=221, length=32))
    params = random_params(model)

    def loss(params, segment):
        weight = batch["weight"] * (batch["segment"] == segment)
        logp = jax.nn.log_softmax(model.apply(params, batch))
        chosen = jnp.take_along_axis(logp, batch["targets"][..., None], -1)[..., 0]
        return -(chosen * weight).sum()

    seen = 0
    for segment in (1, 2, 3):
        grads = jax.jit(jax.grad(loss))(params, segment)["embed"]
        table = next(x for x in jax.tree.leaves(grads) if 221 in x.shape)
        touched = np.abs(np.asarray(table)).sum(-1) > 0
        own = np.unique(batch["tokens"][batch["segment"] == segment])
        assert set(np.flatnonzero(touched)) == set(own)
        seen += len(own)
    assert seen == batch["weight"].sum()


def test_packed_rows_of_prepared_text(tmp_path):
    config = data_config(rows="packed", length=400, batch=2)
    train, validation = (open_source(config, tmp_path, split) for split in shards.SPLITS)
    assert isinstance(train, data.Packed) and train.efficiency > 0.8
    documents = validation.manifest["splits"]["validation"]["documents"]
    total = sum(b["weight"].sum() for b in validation.epoch(2))
    assert total == validation.tokens - documents > 0


@pytest.mark.parametrize("lengths", [[1, 1], [1]])
def test_no_text_to_predict_is_refused(lengths, tmp_path):
    with pytest.raises(ConfigError, match=r"two tokens.*\n  Try --config"):
        packed(tmp_path / "s", np.array(lengths))
    with pytest.raises(ConfigError, match=r"rows='pakced'.*Did you mean 'packed'"):
        data.check(data_config(rows="pakced"))
