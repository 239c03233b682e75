"""Documents between stages, and the shards that hold them: compressed lines of JSON."""

import contextlib
import io
import json
import os
import pathlib
from typing import NamedTuple

import zstandard

_LEVEL = 1  # of compression: shards are read once or twice


class Document(NamedTuple):
    """A document on its way.

    Attributes:
        id: where it was read, such as "notes/a.jsonl.zst:17".
        source: name of its source in the config.
        text: its text.
        notes: {what: value} that stages found or changed, such as {"language": "en"}.
    """

    id: str
    source: str
    text: str
    notes: dict


def read(path):
    """Yields the `Document`s of a shard."""
    with open(path, "rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), "utf-8")
        for line in lines:
            yield Document(**json.loads(line))


def write(path, documents):
    """Writes a shard, whole or not at all; returns how many documents it holds."""
    count = 0
    packer = zstandard.ZstdCompressor(level=_LEVEL)
    with replacing(path) as file, packer.stream_writer(file, closefd=False) as packed:
        for document in documents:
            text = json.dumps(document._asdict(), ensure_ascii=False, separators=(",", ":"))
            packed.write(text.encode() + b"\n")
            count += 1
    return count


@contextlib.contextmanager
def replacing(path):
    """Opens a file to write that takes its place only once it is whole and on the disk."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path, data):
    """Writes a JSON file, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
