"""Exports of a corpus hold its documents, and appear whole or not at all."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.corpus import documents, export, tasks
from jaxllm.data import shards
from tests import corpus_helpers as helpers

ROOT = pathlib.Path(__file__).parents[1]


def by_split(corpus):
    """{split: [text]} as the token shards have them, each in its order."""
    found = {split: [] for split in tasks.SPLITS}
    manifest = shards.read_manifest(corpus.result)
    for split, texts in found.items():
        stream = shards.TokenStream(corpus.result, manifest, split)
        ends = [*stream.starts[1:], stream.size][: len(stream.starts)]
        for start, end in zip(stream.starts, ends, strict=True):
            ids = stream.read(np.array([start]), end - start)[0]
            texts.append(corpus.tokenizer.decode(ids[:-1]))
    return found


@pytest.mark.parametrize("file_bytes", [1 << 28, 2_000])
def test_array_record_files_hold_the_documents(tmp_path, file_bytes):
    module = pytest.importorskip("array_record.python.array_record_module")
    corpus, _ = helpers.make(tmp_path, helpers.documents())
    folder = export.write(corpus, "array_record", file_bytes)
    splits = json.loads((folder / export.INDEX).read_text())["splits"]
    texts = by_split(corpus)
    for split, one in splits.items():
        found = []
        for file in one["files"]:
            reader = module.ArrayRecordReader(str(folder / file["file"]))
            assert reader.num_records() == file["documents"]
            assert shards.hash_file(folder / file["file"]) == file["sha256"]
            found += [json.loads(each) for each in reader.read_all()]
            reader.close()
        assert [each["text"] for each in found] == texts[split]
        assert one["documents"] == len(found)
        assert all(set(each) == set(export.FIELDS) for each in found)
        assert all(each["id"].startswith(str(tmp_path)) for each in found)
    assert (len(splits["train"]["files"]) > 1) == (file_bytes == 2_000)
    names = {file["file"] for one in splits.values() for file in one["files"]}
    assert names == {path.name for path in folder.iterdir()} - {export.INDEX}


def test_a_tfds_data_set_is_written_and_read_without_tensorflow(tmp_path):
    pytest.importorskip("array_record", reason=f"array_record is not installed ({export.NEEDS})")
    pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed")
    config = tmp_path / "config.py"
    corpus, _ = helpers.make(tmp_path, helpers.documents())
    config.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config(arg):\n    return ConfigDict({json.loads(corpus.config.to_json())!r})\n"
    )
    command = [sys.executable, "-m", "jaxllm.prepare", f"--config={config}"]
    command += [f"--workdir={corpus.workdir}", "--export=tfds"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    (folder,) = corpus.workdir.glob("tfds-*")
    assert done.stdout.splitlines()[-1].strip() == str(folder)
    command = [sys.executable, "-m", "tests.corpus_export_program", str(folder)]
    read = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert read.returncode == 0, read.stderr
    found = json.loads(read.stdout)
    assert {split: [one["text"] for one in rows] for split, rows in found.items()} == by_split(
        corpus
    )
    assert found["train"][0].keys() == set(export.FIELDS)


def test_an_example_is_what_the_protocol_buffer_says():
    proto = pytest.importorskip("tensorflow_datasets.proto").tf_example_pb2
    for size in (*range(140), *range(16_360, 16_390), 3_000_000):
        one = {"text": "a" * size + "é", "id": "a:1", "source": "", "language": "en"}
        read = proto.Example.FromString(export.as_example(one)).features.feature
        assert {name: value.bytes_list.value[0].decode() for name, value in read.items()} == one


def test_an_export_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("array_record", reason=f"array_record is not installed ({export.NEEDS})")
    corpus, _ = helpers.make(tmp_path, helpers.documents())
    before = set(corpus.workdir.iterdir())
    with monkeypatch.context() as patched, pytest.raises(OSError, match="full"):
        reads = documents.read
        patched.setattr(documents, "read", lambda path: _broken(reads(path)))
        export.write(corpus, "tfds")
    assert set(corpus.workdir.iterdir()) == before
    folder = export.write(corpus, "tfds")
    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert export.write(corpus, "tfds") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == made


def _broken(found):
    for i, one in enumerate(found):
        if i == 5:
            raise OSError("full")
        yield one


def test_without_array_record_the_line_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record", None)
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    with pytest.raises(ConfigError, match=r"--export=tfds needs array_record.*requirements-prep"):
        export.library("tfds")
    assert "array_record" in (ROOT / "requirements-prepare.txt").read_text()
