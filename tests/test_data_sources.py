"""Documents from files: what is read, and what happens to what cannot be."""

import gzip
import json
import pathlib
import subprocess
import sys

import pytest
import zstandard

from jaxllm import config as configs
from jaxllm import data
from jaxllm.config import ConfigError
from jaxllm.data import DataError, files, sources
from jaxllm.data.errors import BadInput

ROOT = pathlib.Path(__file__).parents[1]
ZST = zstandard.ZstdCompressor().compress
GOOD = [{"text": "one\n"}, {"text": "zwei é 😀"}, {"text": "three"}]
LINES = "".join(json.dumps(record) + "\n" for record in GOOD).encode()


def make(kind, **options):
    return configs.make(data.SOURCES, {"kind": kind, **options}, "data.sources.main")


def read(source, policy="error"):
    bad = BadInput(policy)
    return [document.text for document in source.documents(bad)], dict(bad.counts)


def test_shakespeare_is_what_its_provenance_says():
    source = make("shakespeare")
    (text,), _ = read(source)
    assert (len(text), len(set(text))) == (1_115_394, 65)
    assert source.describe()["sha256"] == (
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
    )


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".zst", ZST)])
def test_compressed_or_not_the_documents_are_the_same(tmp_path, suffix, pack):
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(LINES))
    (tmp_path / f"b.txt{suffix}").write_bytes(pack("eins\r\n\0é".encode()))
    assert read(make("jsonl", path=str(tmp_path)))[0] == [record["text"] for record in GOOD]
    assert read(make("text", path=str(tmp_path)))[0] == ["eins\r\n\0é"]


@pytest.mark.parametrize("pack", [gzip.compress, ZST])
def test_files_of_several_compressed_parts_are_read_whole(tmp_path, pack):
    path = tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt.zst")
    path.write_bytes(pack(b"one ") + pack(b"two ") + pack(b"three"))
    assert read(make("text", path=str(path)))[0] == ["one two three"]


def test_files_globs_directories_and_lists(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "b.md", "deep/c.txt", "d.csv"):
        (tmp_path / name).write_text(name)
    assert read(make("text", path=str(tmp_path)))[0] == ["a.txt", "b.md", "deep/c.txt"]
    assert read(make("text", path=f"{tmp_path}/*.csv"))[0] == ["d.csv"]
    assert read(make("text", path=f"{tmp_path}/**/*.txt"))[0] == ["a.txt", "deep/c.txt"]
    both = f"{tmp_path}/d.csv, {tmp_path}/b.md"
    assert read(make("text", path=both))[0] == ["b.md", "d.csv"]


def test_a_separator_cuts_a_file_into_documents(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one<end>two\n<end><end>three é<end>")
    for size in (1, 2, 3, 1_000):
        monkeypatch.setattr(files, "CHUNK_BYTES", size)  # separators across chunks too
        source = make("text", path=str(path), separator="<end>")
        assert read(source)[0] == ["one", "two\n", "three é"]
    assert [d.where for d in source.documents()] == [f"{path}:1", f"{path}:1", f"{path}:2"]


@pytest.mark.parametrize("path", ["", "nowhere", "*.none"])
@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_no_files_is_an_error(kind, path):
    with pytest.raises(ConfigError, match=r"path is empty|matches no files"):
        make(kind, path=path)


BIG = LINES * 2_000
BAD_FILES = {  # name: (content, reason, line, documents before it)
    "bytes.txt": (b"one\ntwo\n\xff\n", "undecodable bytes", ":3", 0),
    "cut.txt": ("é".encode()[:1], "undecodable bytes", ":1", 0),
    "empty.txt": (b"", "empty file", "", 0),
    "nil.txt.gz": (b"", "corrupt compressed data", ":1", 0),
    "empty.txt.gz": (gzip.compress(b""), "empty file", "", 0),
    "cut.txt.gz": (gzip.compress(BIG)[:-20], "corrupt compressed data", ":", 0),
    "not.txt.gz": (b"plain text", "corrupt compressed data", ":1", 0),
    "cut.txt.zst": (ZST(BIG)[:-20], "corrupt compressed data", ":", 0),
    "head.txt.zst": (ZST(BIG)[:3], "corrupt compressed data", ":1", 0),
    "not.txt.zst": (b"plain text", "corrupt compressed data", ":1", 0),
    "long.txt": (b"x" * 2_000_001, "document too long", ":1", 0),
    "bytes.jsonl": (LINES + b'{"text": "\xff"}\n' + LINES, "undecodable bytes", ":4", 6),
    "json.jsonl": (LINES + b'{"text": \n' + LINES, "invalid JSON", ":4", 6),
    "deep.jsonl": (LINES + b"[" * 200_000 + b"\n", "invalid JSON", ":4", 3),
    "blank.jsonl": (LINES + b"\n" + LINES, "invalid JSON", ":4", 6),
    "list.jsonl": (LINES + b'["text"]\n', "not a JSON object", ":4", 3),
    "field.jsonl": (LINES + b'{"txt": "a"}\n', "missing field", ":4", 3),
    "type.jsonl": (LINES + b'{"text": 5}\n', "field is not text", ":4", 3),
    "none.jsonl": (LINES + b'{"text": ""}\n', "empty text", ":4", 3),
    "half.jsonl": (LINES + b'{"text": "\\ud800"}\n', "undecodable bytes", ":4", 3),
    "empty.jsonl": (b"", "empty file", "", 0),
    "long.jsonl": (LINES + b" " * 2_000_001, "line too long", ":4", 3),
    "cut.jsonl.gz": (gzip.compress(BIG)[:-9], "corrupt compressed data", ":6001", 6_000),
}


def bad_source(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(BAD_FILES[name][0])
    kind = "jsonl" if ".jsonl" in name else "text"
    return make(kind, path=str(path), limit=2_000_000), f"{path}{BAD_FILES[name][2]}"


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_is_an_error_with_file_and_line(tmp_path, name):
    source, where = bad_source(tmp_path, name)
    with pytest.raises(DataError) as error:
        read(source)
    assert str(error.value).startswith(where)
    assert BAD_FILES[name][1] in str(error.value)
    assert "--config.data.bad_input=skip" in str(error.value)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_input_may_be_skipped_and_is_counted(tmp_path, name):
    texts, counts = read(bad_source(tmp_path, name)[0], "skip")
    assert counts == {BAD_FILES[name][1]: 1}
    assert len(texts) == BAD_FILES[name][3]


def test_skipping_a_bad_file_keeps_the_others(tmp_path):
    for name in ("bytes.txt", "cut.txt.zst", "empty.txt"):
        (tmp_path / name).write_bytes(BAD_FILES[name][0])
    (tmp_path / "good.txt").write_text("good")
    texts, counts = read(make("text", path=str(tmp_path)), "skip")
    assert texts == ["good"]
    assert counts == {"undecodable bytes": 1, "corrupt compressed data": 1, "empty file": 1}


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", ZST)])
def test_a_bomb_is_stopped_before_it_fills_memory(tmp_path, suffix, pack):
    path = tmp_path / f"bomb.txt{suffix}"
    path.write_bytes(pack(bytes(200 << 20)))
    pieces = files.chunks(path)
    assert max(len(next(pieces)) for _ in range(3)) <= 64 << 20
    with pytest.raises(DataError, match="document too long"):
        read(make("text", path=str(path), limit=1 << 20))


def test_synthetic_text_is_the_same_every_time():
    texts = read(make("synthetic", documents=5, words=8))[0]
    assert texts == read(make("synthetic", documents=5, words=8))[0]
    assert texts != read(make("synthetic", documents=5, words=8, seed=1))[0]
    assert len(texts) == 5
    assert set(" ".join(texts).replace(".\n", "").split()) <= set(sources.NUMBERS)


def test_tfds_is_read_without_tensorflow(tmp_path):
    command = [sys.executable, "-m", "tests.data_tfds_program", str(tmp_path)]
    child = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    assert "TFDS cannot open 'odes'" in child.stdout


def test_without_tfds_the_line_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ConfigError, match='pip install "tensorflow-datasets'):
        make("tfds", name="poems")
