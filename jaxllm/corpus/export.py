"""The documents of a corpus for others to read: ArrayRecord files, or a TensorFlow Datasets one.

    array_record-KEY/  SPLIT-00000-of-00002.array_record …, each record a line of JSON, and INDEX
    tfds-KEY/          corpus/1.0.0/, for tfds.data_source("corpus", data_dir="tfds-KEY")

KEY is the corpus's. Splits are those of its token shards, documents in the same order. Neither
needs TensorFlow, here or where it is read.
"""

import json
import os
import shutil

from jaxllm.config import ConfigError
from jaxllm.corpus import documents, tasks
from jaxllm.data import shards

NEEDS = "pip install -r requirements-prepare.txt"
INDEX = "index.json"
NAME, VERSION = "corpus", "1.0.0"  # as TFDS calls it
FIELDS = ("text", "id", "source", "language")
_FILE_BYTES = 1 << 28  # of text
_OPTIONS = "group_size:1"  # each record by itself, for random access


def library(kind):
    """Returns what writes ArrayRecord files.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ConfigError(f"--export={kind} needs array_record ({error}). Try {NEEDS}.") from error
    return array_record_module


def write(corpus, kind, file_bytes=_FILE_BYTES):
    """Writes the documents of a corpus, once and whole; returns the directory.

    Args:
        corpus: `passes.Corpus` that has run.
        kind: of `KINDS`.
        file_bytes: of text after which a file ends.
    """
    encode, name_of, folder, describe = KINDS[kind]
    final = corpus.workdir / f"{kind}-{corpus.result.name.rpartition('-')[2]}"
    if final.is_dir():
        return final
    partial = corpus.workdir / f".{final.name}.{os.getpid()}"
    inside = partial / folder
    inside.mkdir(parents=True)
    try:
        files = {split: _Files(library(kind), inside, split, file_bytes) for split in tasks.SPLITS}
        for record in records(corpus):
            split = tasks.split_of(record["text"], corpus.config.splits)
            files[split].write(encode(record), len(record["text"].encode()))
        parts = {split: one.close(name_of) for split, one in files.items()}
        for name, data in describe(corpus, parts).items():
            documents.write_json(inside / name, data)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def records(corpus):
    """Yields {field: text} of every document, in the corpus's order."""
    for name in corpus.shards:
        for one in documents.read(corpus.final / f"{name}.jsonl.zst"):
            language = one.notes.get("language", "")
            yield {"text": one.text, "id": one.id, "source": one.source, "language": language}


class _Files:
    """The files of a split; they get their names once it is known how many there are."""

    def __init__(self, module, directory, split, file_bytes):
        self._module, self._directory, self._split = module, directory, split
        self._file_bytes, self._writer, self._room = file_bytes, None, 0
        self._counts, self._bytes, self._stored = [], 0, 0

    def write(self, record, text_bytes):
        if self._writer is None or self._room <= 0:
            self._end()
            self._writer = self._module.ArrayRecordWriter(str(self._path()), _OPTIONS)
            self._counts.append(0)
            self._room = self._file_bytes
        self._writer.write(record)
        self._counts[-1] += 1
        self._room -= text_bytes
        self._bytes += text_bytes
        self._stored += len(record)

    def _path(self, i=None):
        i = len(self._counts) if i is None else i
        return self._directory / f".{self._split}-{i:05d}"

    def _end(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self, name_of):
        """Ends and names the files; returns {"documents", "bytes", "stored_bytes", "files"}."""
        self._end()
        found = []
        for i, count in enumerate(self._counts):
            path = self._directory / name_of(self._split, i, len(self._counts))
            self._path(i).rename(path)
            found.append({"file": path.name, "documents": count, "sha256": shards.hash_file(path)})
        return {
            "documents": sum(self._counts),
            "bytes": self._bytes,
            "stored_bytes": self._stored,
            "files": found,
        }


def as_json(record):
    """A record as a line of JSON."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()


def as_example(record):
    """A record as the bytes of a tf.train.Example whose features are each one string.

    The protocol buffer is written by hand: all of its fields are length-delimited, and TensorFlow's
    own classes would bring TensorFlow.
    """
    features = b""
    for name in sorted(record):
        strings = _field(1, record[name].encode())  # BytesList.value
        feature = _field(1, strings)  # Feature.bytes_list
        features += _field(1, _field(1, name.encode()) + _field(2, feature))  # Features.feature
    return _field(1, features)  # Example.features


def _field(number, content):
    """A length-delimited field of a protocol buffer."""
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    return bytes([*head, size]) + content


def _describe_records(corpus, parts):
    fields = dict.fromkeys(FIELDS, "string")
    return {INDEX: {"record": {"json": fields}, "corpus": corpus.result.name, "splits": parts}}


def _describe_tfds(corpus, parts):
    card = dict(corpus.config.get("card") or {})
    told = [text for text in (card.get("title"), card.get("notes")) if text]
    info = {
        "name": NAME,
        "version": VERSION,
        "fileFormat": "array_record",
        "description": "\n\n".join(told) or "A corpus made by jaxllm.prepare.",
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": str(one["stored_bytes"]),
                "shardLengths": [str(file["documents"]) for file in one["files"]],
            }
            for split, one in parts.items()
            if one["documents"]
        ],
    }
    if card.get("licence"):
        info["redistributionInfo"] = {"license": card["licence"]}
    features = "tensorflow_datasets.core.features"
    text = {"pythonClassName": f"{features}.text_feature.Text", "text": {}}
    every = {
        "pythonClassName": f"{features}.features_dict.FeaturesDict",
        "featuresDict": {"features": dict.fromkeys(sorted(FIELDS), text)},
    }
    return {"dataset_info.json": info, "features.json": every}


def _name_record(split, i, count):
    return f"{split}-{i:05d}-of-{count:05d}.array_record"


def _name_tfds(split, i, count):
    return f"{NAME}-{split}.array_record-{i:05d}-of-{count:05d}"


# {kind: (bytes of a record, name of a file, folder of the files, {file: what describes them})}
KINDS = {
    "array_record": (as_json, _name_record, ".", _describe_records),
    "tfds": (as_example, _name_tfds, f"{NAME}/{VERSION}", _describe_tfds),
}
