"""Easy rows first, and then what would have come without."""

import numpy as np
import pytest

from jaxllm import data
from jaxllm.config import ConfigError
from jaxllm.data import shards
from tests.data_helpers import BYTES, data_config

STEPS = 200


def opened(directory, rows, steps=STEPS, kind="length", until=0.5, sources=None):
    texts = sources or {"main": {"kind": "synthetic", "documents": 300, "words": 12}}
    changes = {"rows": rows, "length": 40, "sources": texts}
    config = data_config(**changes, curriculum={"kind": kind, "until": until})
    data.check(config)
    data.prepare(config, BYTES, directory)
    return data.open_split(config, BYTES, directory, "train", 0, steps=steps)


def document_lengths(source, batch):
    """Mean length of the documents in each row, told from their positions."""
    segments = [[(batch["segment"][r] == s).sum() for s in range(1, 9)] for r in range(8)]
    return np.array([sum(n * n for n in row) / sum(row) for row in segments])


@pytest.mark.parametrize("rows", data.ROWS)
def test_rows_grow_harder_and_then_come_as_they_would(rows, tmp_path):
    with_it, without = (opened(tmp_path, rows, kind=kind) for kind in ("length", "none"))
    for name, value in with_it(STEPS // 2).items():
        assert np.array_equal(value, without(0)[name])
    easy = with_it.draw(np.arange(8 * STEPS // 2))
    scores = with_it.row_scores(shard_lengths(tmp_path))
    order = np.sort(scores)
    tenth = len(easy) // 10
    assert scores[easy[:tenth]].max() <= order[int(0.35 * len(order))]
    assert scores[easy[:tenth]].mean() + 3 < scores[easy[-tenth:]].mean()
    assert len(np.unique(easy[-tenth * 5 :])) > 0.6 * len(order)
    across = STEPS // 2 - 1
    mixed = with_it.take(np.arange(8 * across + 4, 8 * across + 12))
    assert np.array_equal(mixed["tokens"][4:], without(0)["tokens"][:4])
    assert np.array_equal(mixed["tokens"][:4], with_it(across)["tokens"][4:])


def shard_lengths(directory):
    (path,) = directory.glob("main-*")
    return data.curriculum.scores("length", path, shards.read_manifest(path), "train")


@pytest.mark.parametrize("rows", data.ROWS)
def test_a_row_has_the_mean_of_its_tokens_documents(rows, tmp_path):
    source = opened(tmp_path, rows)
    scores = source.row_scores(shard_lengths(tmp_path))
    assert scores.shape == (source.epoch_rows,)
    lengths = np.sort(shard_lengths(tmp_path))
    assert lengths[0] <= scores.min() < scores.max() <= lengths[-1]
    total = shard_lengths(tmp_path)
    ends = np.append(0, np.cumsum(total)).astype(int)
    token = np.repeat(total, np.diff(ends))
    if rows == "windows":
        assert scores[3] == pytest.approx(token[120:160].mean())


def test_by_a_stored_score_and_in_a_mixture(tmp_path):
    with pytest.raises(data.DataError, match=r"(?s)scores.*write_scores"):
        opened(tmp_path, "packed", kind="score")
    (path,) = tmp_path.glob("main-*")
    documents = shards.read_manifest(path)["splits"]["train"]["documents"]
    with pytest.raises(data.DataError, match=f"{documents} documents"):
        shards.write_scores(path, "train", np.zeros(documents + 1))
    shards.write_scores(path, "train", np.arange(documents)[::-1])
    source = opened(tmp_path, "windows", kind="score")
    easy = source.draw(np.arange(100))
    assert easy.min() > 0.6 * source.epoch_rows  # the last documents are the easiest
    both = {n: {"kind": "synthetic", "documents": 90, "seed": i} for i, n in enumerate("ab")}
    mixture = opened(tmp_path / "two", "packed", sources=both)
    whole = mixture(3)
    for hosts in (2, 4):
        share = 8 // hosts
        parts = [mixture(3, slice(h * share, (h + 1) * share)) for h in range(hosts)]
        assert np.array_equal(np.concatenate([p["tokens"] for p in parts]), whole["tokens"])
    assert mixture.epochs(STEPS) == opened(
        tmp_path / "two", "packed", kind="none", sources=both
    ).epochs(STEPS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [(dict(kind="lenght"), "Did you mean 'length'"), (dict(until=0.0), "until=0.3")],
)
def test_what_cannot_be_is_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        opened(tmp_path, "packed", **changes)
