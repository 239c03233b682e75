"""What a worker does to one shard of a corpus: read, clean, finish, encode.

Each function takes a `Task`, writes what it makes to the task's folder, its report last, and
returns the bytes of text that it went through.
"""

import hashlib
import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxllm import data, tokenizers
from jaxllm.corpus import (
    boilerplate,
    decontaminate,
    documents,
    duplicates,
    language,
    privacy,
    quality,
    record,
    report,
    standardise,
)
from jaxllm.corpus.documents import Document
from jaxllm.data import build, shards
from jaxllm.data.errors import BadInput
from jaxllm.whole_files import replacing

SPLITS = ("train", "validation", "test")


class Task(NamedTuple):
    """What a worker is told.

    Attributes:
        config: the whole config as plain data.
        folder: that the pass writes to.
        name: of the shard or file.
        more: whatever else the pass needs.
    """

    config: dict
    folder: str
    name: str
    more: dict


def duplicate_options(config):
    """The `duplicates.Options` of a config."""
    section = dict(config["duplicates"])
    return duplicates.Options(**section)


def read_source(task):
    """Reads some files of a source into shards NAME-FFFFF-PPPPP; returns the bytes of their text.

    FFFFF is the number of the first file and PPPPP that of the shard.
    """
    config, name = _config(task), task.more["source"]
    source = task.more["files"] or data.make_sources(config, "sources")[name]
    bad, found, names = BadInput(config.bad_input), report.Report(), []
    some, size, digest = [], 0, hashlib.sha256()
    folder = pathlib.Path(task.folder)

    def write():
        names.append(f"{task.name}-{len(names):05d}")
        documents.write(folder / f"{names[-1]}.jsonl.zst", some)

    for one in source.documents(bad):
        some.append(Document(one.where, name, one.text, dict(one.notes)))
        size += len(one.text)
        raw = one.text.encode()
        digest.update(raw + b"\0")
        found.documents["out"] += 1
        found.bytes["out"] += len(raw)
        found.measure(one.text)
        if size > config.shard_mb * 1e6:
            write()
            some, size = [], 0
    if some:
        write()
    found.dropped.update(bad.counts)
    found.documents["in"] = found.documents["out"] + sum(bad.counts.values())
    found.bytes["in"] = found.bytes["out"]
    skipped = {reason: bad.examples[reason] for reason in bad.counts}
    hashes = {"sha256": digest.hexdigest(), "files": record.hashes(source.describe())}
    _finish(task, {"read": found}, shards=names, skipped=skipped, **hashes)
    return found.bytes["out"]


def clean_shard(task):
    """Cleans one shard; returns the bytes of its text."""
    config = _config(task)
    raw = pathlib.Path(task.more["raw"]) / f"{task.name}.jsonl.zst"
    left, reports = run_stages(
        clean_stages(config), list(documents.read(raw)), privacy.shown(config.privacy)
    )
    folder = pathlib.Path(task.folder)
    texts = [document.text for document in left]
    signed = duplicates.signatures(texts, duplicate_options(config))
    shared = boilerplate.count(texts, asked_pieces(config))
    documents.write(folder / f"{task.name}.jsonl.zst", left)
    with replacing(folder / f"{task.name}.npz") as file:
        pieces = {f"{kind} {i}": part for kind, two in shared.items() for i, part in enumerate(two)}
        np.savez(file, text=signed.text, minhash=signed.minhash, **pieces)
    _finish(task, reports)
    return reports["standardise"].bytes["in"]


def asked_pieces(config):
    """Kinds of pieces whose sharing is counted."""
    return [kind for kind in boilerplate.KINDS if config.boilerplate[kind]]


def clean_stages(config):
    """{name: stage} of the cleaning pass."""
    stages = {"standardise": standardise.make(config.standardise)}
    if config.language.on:
        stages["language"] = language.make(config.language)
    stages["quality"] = quality.make(config.quality)
    return stages


def run_stages(stages, left, shown):
    """Runs stages one after another; returns ([Document], {name: Report}).

    Args:
        stages: {name: stage}.
        left: [Document].
        shown: as `report.Report` takes it.
    """
    reports = {}
    for name, stage in stages.items():
        left, reports[name] = report.run(stage, left, shown)
    return left, reports


def finish_shard(task):
    """Drops copies, text of evaluation sets and personal data from a shard."""
    config = _config(task)
    cleaned = pathlib.Path(task.more["cleaned"]) / f"{task.name}.jsonl.zst"
    some = list(documents.read(cleaned))
    for i in np.flatnonzero(task.more["copies"]):
        kind = ("exact copy", "near copy")[task.more["copies"][i] - 1]
        some[i] = some[i]._replace(notes=some[i].notes | {"copy": kind})

    section = config.decontaminate
    stages = {
        "duplicates": _drop_copies,
        "boilerplate": boilerplate.make(task.more["shared"]),
        "decontaminate": decontaminate.make(task.more["evaluation"], section.ngram, section.most),
        "privacy": privacy.make(config.privacy),
    }
    shown = privacy.shown(config.privacy)
    firsts = [
        {"documents": size, "id": some[i].id, "text": shown(some[i])[: report.EXCERPT]}
        for i, size in task.more["firsts"].items()
    ]
    left, reports = run_stages(stages, some, shown)
    documents.write(pathlib.Path(task.folder) / f"{task.name}.jsonl.zst", left)
    _finish(task, reports, firsts=firsts)
    return reports["duplicates"].bytes["in"]


def _drop_copies(some, found):
    """The stage that drops what was noted to be a copy."""
    for document in some:
        if "copy" in document.notes:
            found.drop(document.notes["copy"], document)
    return [document for document in some if "copy" not in document.notes]


def encode_shard(task):
    """Encodes a shard; returns the bytes of its text."""
    config, tokenizer = _config(task), tokenizers.load(task.more["tokenizer"])
    dtype = shards.id_dtype(tokenizer.vocab_size)
    parts = {split: ([], [0, 0]) for split in SPLITS}
    end = [tokenizer.eos] if tokenizer.eos >= 0 else []

    def stage(some, found):
        encoded = [tokenizer.encode(document.text) for document in some]  # all or none
        for document, own in zip(some, encoded, strict=True):
            split = split_of(document.text, config.splits)
            ids, sizes = parts[split]
            ids.append(np.concatenate([own, end]).astype(dtype))
            sizes[0] += len(document.text.encode())
            sizes[1] += len(document.text)
            found.counts["tokens"] += len(ids[-1])
            found.counts[f"documents of {split}"] += 1
            if "language" in document.notes:
                found.counts[f"language {document.notes['language']}"] += 1
        return some

    final = pathlib.Path(task.more["final"]) / f"{task.name}.jsonl.zst"
    _, found = report.run(stage, list(documents.read(final)))
    saved = {}
    for split, (ids, sizes) in parts.items():
        saved[f"{split}.ids"] = np.concatenate([np.zeros(0, dtype), *ids])
        saved[f"{split}.ends"] = np.cumsum([len(one) for one in ids]).astype(np.int64)
        saved[f"{split}.sizes"] = np.array(sizes)
    with replacing(pathlib.Path(task.folder) / f"{task.name}.npz") as file:
        np.savez(file, **saved)
    _finish(task, {"tokens": found})
    return found.bytes["in"]


def split_of(text, section):
    """Which split a document belongs to, by a keyed hash of its text: copies stay together."""
    part = build.split_hash(text) / 2**64
    if part < section.validation:
        return "validation"
    return "test" if part < section.validation + section.test else "train"


def _config(task):
    return ConfigDict(task.config)


def _finish(task, reports, **more):
    """Writes a shard's report, which says that it is whole."""
    data = {"reports": {name: one.as_dict() for name, one in reports.items()}, **more}
    documents.write_json(pathlib.Path(task.folder) / f"{task.name}.json", data)
