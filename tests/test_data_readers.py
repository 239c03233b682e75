"""Readers of every format: the same documents come out of all, also file by file."""

import gzip
import json
import os
import pickle
import sys

import pytest

from jaxllm import data
from jaxllm.config import ConfigError
from jaxllm.data import examples
from tests.reader_files import (
    LINES,
    PACK,
    TEXTS,
    as_csv,
    as_dataset,
    as_parquet,
    as_warc,
    make,
    read,
    tarred,
    url,
    write,
    zipped,
)

# The same documents, whatever they are in.


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("far", [False, True])
def test_files_packed_or_not_here_or_far_give_the_same_texts(tmp_path, packed, far):
    pack = PACK[packed]
    contents = {
        ("text", ".txt"): "<end>".join(TEXTS).encode(),
        ("jsonl", ".jsonl"): LINES,
        ("csv", ".csv"): as_csv(TEXTS),
        ("csv", ".tsv"): as_csv(TEXTS, "\t"),
    }
    for (kind, suffix), content in contents.items():
        options = {"separator": "<end>"} if kind == "text" else {}
        content, suffix = pack(content), suffix + packed
        path = url(content, suffix) if far else write(tmp_path / f"a{suffix}", content)
        assert read(make(kind, path, **options)) == (TEXTS, {}), suffix


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("far", [False, True])
def test_archives_give_the_same_texts(tmp_path, packed, far):
    members = {f"in/{i}.txt": text.encode() for i, text in enumerate(TEXTS)}
    members |= {f"in/lines.jsonl{packed}": PACK[packed](LINES), "b.csv": as_csv(TEXTS)}
    members["picture.png"] = b"\x89PNG\0"
    content = tarred(members, PACK[packed])
    zip_ = zipped(tmp_path / "a.zip", members)
    tar = write(tmp_path / f"a.tar{packed}", content)
    if far:
        zip_, tar = url(zip_.read_bytes(), ".zip"), url(content, f".tar{packed}")
    for path in (zip_, tar):
        assert read(make("archive", path)) == (TEXTS * 3, {})


def test_short_names_of_packed_tars(tmp_path):
    for name, pack in ((".tgz", PACK[".gz"]), (".tbz2", PACK[".bz2"]), (".txz", PACK[".xz"])):
        write(tmp_path / f"a{name}", tarred({"a.txt": b"good"}, pack))
    assert read(make("archive", tmp_path)) == (["good"] * 3, {})


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "string_view", "dictionary"])
def test_parquet_gives_the_same_texts(tmp_path, kind, far):
    arrow = pytest.importorskip("pyarrow")
    column = arrow.array([text.encode() for text in TEXTS] if kind == "binary" else TEXTS)
    if kind == "dictionary":
        column = column.dictionary_encode()
    elif kind != "binary":
        column = column.cast(getattr(arrow, kind)())
    path = as_parquet(tmp_path / "a.parquet", {"n": [1, 2, 3], "text": column}, row_group_size=2)
    path = url(path.read_bytes(), ".parquet") if far else path
    source = make("parquet", path)
    assert read(source) == (TEXTS, {})
    assert [document.where for document in source.documents()] == [
        f"{source.paths[0]}:{i}" for i in (1, 2, 3)
    ]


def test_data_sets_on_disk_give_the_same_texts(tmp_path):
    as_dataset(tmp_path / "one", TEXTS, parts=1)
    as_dataset(tmp_path / "both" / "train", TEXTS)
    as_dataset(tmp_path / "both" / "test", ["held out"], split="test")
    (tmp_path / "both" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    as_dataset(tmp_path / "parts", TEXTS, parts=2)
    assert read(make("hf_dataset", tmp_path / "one"))[0] == TEXTS
    assert read(make("hf_dataset", tmp_path / "both"))[0] == TEXTS
    assert read(make("hf_dataset", tmp_path / "both", split=""))[0] == [*TEXTS, "held out"]
    assert read(make("hf_dataset", tmp_path / "parts"))[0] == [TEXTS[0], TEXTS[2], TEXTS[1]]


def test_folders_of_parquet_have_splits_as_the_hub_has_them(tmp_path):
    (tmp_path / "hub" / "data").mkdir(parents=True)
    as_parquet(tmp_path / "hub/data/train-00000-of-00001.parquet", {"text": TEXTS})
    as_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", {"text": ["held out"]})
    (tmp_path / "plain").mkdir()
    as_parquet(tmp_path / "plain/0.parquet", {"text": TEXTS})
    assert read(make("hf_dataset", tmp_path / "hub"))[0] == TEXTS
    assert read(make("hf_dataset", tmp_path / "hub", split="test"))[0] == ["held out"]
    assert read(make("hf_dataset", tmp_path / "plain"))[0] == TEXTS
    with pytest.raises(ConfigError, match=r"names no file of .* test, train"):
        make("hf_dataset", tmp_path / "hub", split="validation")


def test_a_link_is_read_as_its_own_name_says(tmp_path):
    """The cache of the Hub is links to files named by their hashes."""
    blob = write(tmp_path / "blobs" / "0a1b", gzip.compress(LINES))
    (tmp_path / "a.jsonl.gz").symlink_to(blob)
    assert read(make("jsonl", tmp_path))[0] == TEXTS


def test_files_of_a_directory_far_away(tmp_path):
    place = url(b"one", ".txt").rpartition("/")[0]
    fsspec = pytest.importorskip("fsspec")
    for name, content in {"deep/b.txt.gz": gzip.compress(b"two"), "c.png": b"no"}.items():
        with fsspec.open(f"{place}/{name}", "wb") as file:
            file.write(content)
    source = make("text", place)
    assert read(source)[0] == ["one", "two"]
    assert read(make("text", f"{place}/*.txt"))[0] == ["one"]
    before = source.describe()
    with fsspec.open(f"{place}/a.txt", "wb") as file:
        file.write(b"another")
    assert source.describe() != before
    assert read(pickle.loads(pickle.dumps(source.only(source.paths[1]))))[0] == ["two"]
    with pytest.raises(ConfigError, match="matches no files"):
        make("text", f"{place}/*.md")
    with pytest.raises(ConfigError, match="nosuch"):
        make("text", "nosuch://bucket/a.txt")


def test_rows_keep_their_newlines_and_their_lines(tmp_path):
    texts = ["a\nb", "c\r\nd", 'e "f", g', "h"]
    path = write(tmp_path / "a.csv", b"\xef\xbb\xbf" + as_csv(texts, end="\r\n"))
    source = make("csv", path)
    assert read(source)[0] == texts
    assert [document.where.rpartition(":")[2] for document in source.documents()] == [*"2467"]
    assert read(make("csv", path, field="id"))[0] == [*"0123"]
    path = write(tmp_path / "a.tsv", b'text\tid\nsaid "no\t1\n')
    assert read(make("csv", path, quote=""))[0] == ['said "no']
    with pytest.raises(ConfigError, match="delimiter='ab' must be one character"):
        make("csv", path, delimiter="ab")


# What is wrong before anything is read.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "state.json").unlink(), "has no state.json"),
        (lambda folder: (folder / "state.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "data-00001-of-00002.arrow").unlink(), "which is not there"),
    ],
)
def test_half_a_data_set_is_an_error(tmp_path, change, message):
    folder = as_dataset(tmp_path / "set", TEXTS, parts=2)
    change(folder)
    with pytest.raises(ConfigError, match=message):
        make("hf_dataset", folder)


def test_a_data_set_that_is_none_or_has_no_such_split(tmp_path):
    folder = as_dataset(tmp_path / "set", TEXTS, split="test")
    with pytest.raises(ConfigError, match="which holds 'test'"):
        make("hf_dataset", folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="neither Parquet files nor"):
        make("hf_dataset", tmp_path / "empty")
    with pytest.raises(ConfigError, match="is no folder"):
        make("hf_dataset", tmp_path / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads all")
def test_a_directory_that_cannot_be_read_is_an_error(tmp_path):
    write(tmp_path / "a.txt", b"good")
    (tmp_path / "secret").mkdir(mode=0)
    with pytest.raises(ConfigError, match="holds a directory that cannot be read"):
        make("text", tmp_path)


def test_a_directory_that_vanishes_is_an_error(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", b"good")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ConfigError, match="holds a directory that cannot be read"):
        make("text", tmp_path)


@pytest.mark.parametrize(
    ("kind", "path", "library"),
    [
        ("parquet", "a.parquet", "pyarrow"),
        ("hf_dataset", ".", "pyarrow"),
        ("warc", "a.warc", "warcio"),
        ("text", "memory://a/a.txt", "fsspec"),
    ],
)
def test_what_is_not_installed_is_named_with_the_line_that_does(monkeypatch, kind, path, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements-prepare\.txt"):
        make(kind, path)


@pytest.mark.parametrize(
    "kind", ["text", "jsonl", "html", "csv", "parquet", "archive", "warc", "code"]
)
def test_no_files_is_an_error(tmp_path, kind):
    for path in ("", tmp_path):
        with pytest.raises(ConfigError, match="path"):
            make(kind, path)


# Files apart.


def file_sources(tmp_path):
    """A source of two files of every kind."""
    for i, text in enumerate(("first", "second")):
        page = f"<p>{text}".encode()
        contents = {
            "a.txt": text.encode(), "a.jsonl": json.dumps({"text": text}).encode(), "a.html": page,
            "a.csv": b"text\n" + text.encode(), "a.tar": tarred({"a.txt": text.encode()}),
            "a.py": text.encode(), "a.warc": as_warc([("http://a", "text/html", page)], False),
        }  # fmt: skip
        for name, content in contents.items():
            kind = name.partition(".")[2]
            write(tmp_path / kind / f"{i}{name}", content)
        (tmp_path / "parquet").mkdir(exist_ok=True)
        as_parquet(tmp_path / "parquet" / f"{i}.parquet", {"text": [text]})
    as_dataset(tmp_path / "set", ["first", "second"], parts=2)
    kinds = {"text": "txt", "jsonl": "jsonl", "html": "html", "csv": "csv", "archive": "tar",
             "code": "py", "warc": "warc", "parquet": "parquet", "hf_dataset": "set"}  # fmt: skip
    return {kind: make(kind, tmp_path / folder) for kind, folder in kinds.items()}


def test_every_source_of_files_can_be_read_file_by_file(tmp_path):
    sources = file_sources(tmp_path)
    others = {"shakespeare", "tfds", "synthetic", "prepared", *examples.SOURCES}
    assert set(sources) | others == set(data.SOURCES)
    for kind, source in sources.items():
        assert len(source.paths) == 2, kind
        apart = [pickle.loads(pickle.dumps(source.only(path))) for path in source.paths]
        assert [read(one)[0] for one in apart] == [["first"], ["second"]], kind
        assert read(source)[0] == ["first", "second"]
        assert source.sizes() == [path.stat().st_size for path in source.paths]
        json.dumps(source.describe())
        assert source.describe() != apart[0].describe() != apart[1].describe()
