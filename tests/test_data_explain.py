"""Every row can be told: which documents it holds, and that its order is the one it had."""

import json

import numpy as np
import pytest

from jaxllm import data
from jaxllm.config import ConfigError
from jaxllm.data import shards
from jaxllm.training import origins, replay, setup
from jaxllm.training.checkpoint import Checkpoints
from tests import runs
from tests.data_helpers import BYTES, data_config, open_source

BOTH = {
    n: {"kind": "synthetic", "documents": 90, "words": 20, "seed": i} for i, n in enumerate("ab")
}


def opened(directory, steps=0, **changes):
    config = data_config(length=100, sources=BOTH, **changes)
    data.prepare(config, BYTES, directory)
    return data.open_split(config, BYTES, directory, "train", 0, steps=steps), config


def documents_of(directory, name):
    """Token ids of every document of a source's training split."""
    (path,) = directory.glob(f"{name}-*")
    stream = shards.TokenStream(path, shards.read_manifest(path), "train")
    ids = stream.read(np.array([0]), stream.size)[0]
    return np.split(ids, stream.starts[1:])


@pytest.mark.parametrize("curriculum", ["none", "length"])
@pytest.mark.parametrize("rows", data.ROWS)
def test_a_row_is_what_its_pieces_say(rows, curriculum, tmp_path):
    changes = {"rows": rows, "curriculum": {"kind": curriculum, "until": 0.5}}
    source, _ = opened(tmp_path, 1_000, **changes)
    documents = {name: documents_of(tmp_path, name) for name in "ab"}
    for step in (0, 499, 500, 999):
        batch, found = source(step), data.explain(source, step)
        assert [origin.row for origin in found] == list(range(8))
        assert len({origin.source for origin in found}) == 2
        for row, name, epoch, pieces in found:
            assert epoch >= 0 or (curriculum == "length" and step < 500)
            assert sum(piece.tokens for piece in pieces) == (batch["segment"][row] > 0).sum()
            for number, piece in enumerate(pieces, 1):
                column, document, offset, count, start = piece
                here = documents[name][document][offset : offset + count]
                assert np.array_equal(batch["tokens"][row, column : column + count], here)
                assert (batch["segment"][row, column : column + count] == number).all()
                assert np.array_equal(source.sources[name].ids(start, count), here)
    assert data.explain(source, 3, [5])[0] == data.explain(source, 3)[5]


def test_the_command_tells_the_documents_of_a_step(compile_cache, tmp_path):
    fields = {"runtime.compile_cache": compile_cache, "steps": 2, "data.rows": "packed"}
    assert runs.train(runs.config(fields), tmp_path) == 0
    text = origins.page(tmp_path, 2)
    assert text.count("\nrow ") == 8 and "epoch 0" in text
    assert "document" in text and ("one" in text or "two" in text)
    done = runs.call(
        [*runs.command(tmp_path, module="prepare")[:3], f"--explain={tmp_path}", "--step=2"]
    )
    assert done.returncode == 0 and done.stdout.strip() == text
    wrong = runs.call(
        [*runs.command(tmp_path, module="prepare")[:3], f"--explain={tmp_path}", "--step=3"]
    )
    assert wrong.returncode == 2 and "1 to 2" in wrong.stderr


def test_a_record_holds_what_the_order_depends_on(tmp_path):
    source, config = opened(tmp_path)
    before = data.record(source, config, 0)
    assert data.differences(before, data.record(*opened(tmp_path), 0)) == []
    assert data.differences(before, data.record(source, config, 1))[1].split() == ["seed", "0", "1"]
    for changes in (
        dict(rows="packed"),
        dict(batch=16),
        dict(weights=((0.0, {"a": 1.0, "b": 2.0}),)),
        dict(curriculum={"kind": "length", "until": 0.2}),
        dict(validation_fraction=0.2),
    ):
        other = data.record(*opened(tmp_path / "other", 5, **changes), 0)
        assert data.differences(before, other), changes
    plain = open_source(data_config(), tmp_path / "one")
    assert data.record(plain, data_config(), 0)["batch"] == 8


def test_a_step_is_replayed_to_the_bit_and_nothing_changes(tmp_path, monkeypatch):
    # As users have it: without optimizations two programs of the same step round otherwise.
    monkeypatch.setitem(setup.COMPILER_OPTIONS, "cpu", {"xla_backend_optimization_level": 3})
    config = runs.config({"steps": 8, "checkpoint.every": 3, "log.every": 1, "validate.every": 0})
    assert runs.train(config, tmp_path) == 0
    files = {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"
    }
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        kept = min(checkpoints.steps())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    logged = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    with runs.on(devices=1):
        start, metrics = replay.replay(tmp_path, kept + 1)
        page = replay.page(tmp_path, kept + 1)
    (was,) = [row for row in logged if row["step"] == kept + 1]
    assert start == kept and metrics == {name: was[name] for name in metrics}
    assert f"was {was['loss']:.7g}" in page
    assert files == {
        p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"
    }
    with pytest.raises(ConfigError, match="no checkpoint"):
        replay.replay(tmp_path, 9)
