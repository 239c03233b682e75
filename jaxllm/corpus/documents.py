"""Documents between stages, and the shards that hold them: compressed lines of JSON."""

import io
import json
from typing import NamedTuple

import zstandard

from jaxllm.whole_files import replacing

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


def write_json(path, data):
    """Writes a JSON file, whole or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode())
