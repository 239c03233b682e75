"""Files of every format that the tests of readers make, and how they are read."""

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import uuid
import zipfile

import pytest
import zstandard

from jaxllm import config as configs
from jaxllm import data
from jaxllm.data.errors import BadInput

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TEXTS = ['one\ntwo, "three"\n', "zwei é 😀", "x" * 3_000 + "\n\tend"]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
MORE = "".join(json.dumps({"text": f"document {i} of many"}) + "\n" for i in range(5_000)).encode()
PAGE = "<html><head><title>A page</title></head><body><p>of text</p></body></html>"


def make(kind, path, **options):
    section = {"kind": kind, "path": str(path), **options}
    return configs.make(data.SOURCES, section, "data.sources.main")


def read(source, policy="error"):
    bad = BadInput(policy)
    return [document.text for document in source.documents(bad)], dict(bad.counts)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    """Writes a zip of {name: bytes} and returns its path."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(members, pack=bytes):
    """A tar of {name or TarInfo: bytes} as bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members.items():
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return pack(out.getvalue())


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def as_csv(texts, delimiter=",", end="\n"):
    out = io.StringIO(newline="")
    rows = csv.writer(out, delimiter=delimiter, lineterminator=end)
    rows.writerows([["id", "text"], *([i, text] for i, text in enumerate(texts))])
    return out.getvalue().encode()


def as_parquet(path, columns, **options):
    arrow = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    arrow.write_table(pyarrow.table(columns), path, **options)
    return path


def as_dataset(folder, texts, parts=1, split="train"):
    """Writes what `datasets` writes with save_to_disk."""
    arrow = pytest.importorskip("pyarrow")
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{parts:05d}.arrow" for i in range(parts)]
    for i, name in enumerate(names):
        table = arrow.table({"text": texts[i::parts]})
        with arrow.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    (folder / "dataset_info.json").write_text("{}")
    state = {"_data_files": [{"filename": name} for name in names], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    return folder


def as_warc(records, packed=True):
    """A WARC of (URI, content type, body) responses as bytes."""
    pytest.importorskip("warcio")
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    out = io.BytesIO()
    writer = WARCWriter(out, gzip=packed)
    for uri, kind, body in records:
        headers = StatusAndHeaders("200 OK", [("Content-Type", kind)], protocol="HTTP/1.1")
        record = writer.create_warc_record(
            uri, "response", payload=io.BytesIO(body), http_headers=headers
        )
        writer.write_record(record)
    return out.getvalue()


def url(content, suffix):
    """Puts a file into fsspec's memory and returns where."""
    fsspec = pytest.importorskip("fsspec")
    place = f"memory://{uuid.uuid4().hex}/a{suffix}"
    with fsspec.open(place, "wb") as file:
        file.write(content)
    return place
