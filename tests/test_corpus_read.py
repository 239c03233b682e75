"""Reading sources into shards of documents: the same shards whoever reads them."""

import hashlib
import json

import pytest

from configs.data import base
from jaxllm import data
from jaxllm.corpus import documents, passes


def corpus(tmp_path, name, **changes):
    config = base.get_config()
    config.quality = {}
    config.shard_mb = 0.001
    sources = {"b": {"kind": "jsonl", "path": str(tmp_path / "in")}}
    config.sources = {**sources, "a": {"kind": "synthetic", "documents": 7, "words": 5}}
    if "sources" in changes:
        config.sources = changes.pop("sources")
    config.update(changes)
    return passes.Corpus(config, tmp_path / name)


@pytest.fixture
def small(monkeypatch):
    """Tasks of a few documents."""
    monkeypatch.setattr(passes, "_TASK_BYTES", 2_000)


def write(tmp_path, sizes):
    (tmp_path / "in").mkdir()
    for i, size in enumerate(sizes):
        lines = [json.dumps({"text": f"file {i} line {j} " + "x" * 80}) for j in range(size)]
        (tmp_path / "in" / f"{i}.jsonl").write_text("".join(line + "\n" for line in lines))


def test_a_file_is_a_task_and_small_ones_in_a_row_are_one(tmp_path, small):
    write(tmp_path, [3, 3, 3, 3, 50, 1, 1])
    source = data.make_sources(corpus(tmp_path, "out").config)["b"]
    found = dict(passes.read_tasks("b", source))
    assert list(found) == ["b-00000", "b-00004", "b-00005"]
    assert [len(more["files"].paths) for more in found.values()] == [4, 1, 2]


def test_shards_are_named_by_file_and_part_and_hold_all(tmp_path, small):
    write(tmp_path, [3, 3, 3, 3, 23, 1, 1])
    made = corpus(tmp_path, "out", workers=1)
    made.read()
    parts = [f"b-{file:05d}-{part:05d}" for file, part in
             ((0, 0), (0, 1), (4, 0), (4, 1), (4, 2), (5, 0))]  # fmt: skip
    assert made.shards == ["a-00000-00000", *parts]
    ids = [one.id for name in parts for one in documents.read(made.raw / f"{name}.jsonl.zst")]
    source = data.make_sources(made.config)["b"]
    assert ids == [one.where for one in source.documents()]
    assert made.reports["read"].documents["out"] == len(ids) + 7


def test_any_number_of_workers_makes_the_same_shards(tmp_path):
    write(tmp_path, [2, 20_000, 90_000, 90_000])
    hashes = []
    for workers in (1, 2):
        made = corpus(tmp_path, f"out{workers}", workers=workers, shard_mb=8.0)
        made.read()
        shards = {path.name: path.read_bytes() for path in made.raw.glob("*.zst")}
        assert {name.removesuffix(".jsonl.zst") for name in shards} == set(made.shards)
        hashes.append({name: hashlib.sha256(text).digest() for name, text in shards.items()})
    assert hashes[0] == hashes[1]
    assert "b-00003-00001.jsonl.zst" in hashes[0]


def test_a_file_that_is_bad_is_told_under_its_source(tmp_path, small):
    write(tmp_path, [30, 30])
    with open(tmp_path / "in" / "1.jsonl", "a") as file:
        file.write("no JSON\n")
    made = corpus(tmp_path, "out", workers=1)
    made.read()
    skipped = {name: one["skipped"] for name, one in made.sources.items()}
    assert list(skipped["b"]) == ["invalid JSON"] and not skipped["a"]
    assert f"{tmp_path}/in/1.jsonl:31" in skipped["b"]["invalid JSON"]
    assert made.reports["read"].dropped == {"invalid JSON": 1}


def test_notes_of_a_source_go_with_its_documents(tmp_path):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1\n")
    sources = {"main": {"kind": "code", "path": str(tmp_path / "code")}}
    made = corpus(tmp_path, "out", workers=1, sources=sources)
    made.read()
    (one,) = documents.read(made.raw / "main-00000-00000.jsonl.zst")
    assert (one.text, one.notes) == ("x = 1\n", {"programming_language": "python"})
