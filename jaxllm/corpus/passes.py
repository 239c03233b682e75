"""The passes over a corpus, each a pure function from a shard to a shard, and what they leave.

    read-KEY/       shards of documents as they were found
    clean-KEY/      standardised, of the wanted languages, filtered; signatures beside each shard
    duplicates-KEY/ which of them are copies
    documents-KEY/  without copies and evaluation sets, personal data masked
    tokenizer-KEY/
    tokens-KEY/     ids of each shard

A folder's KEY is a hash of the settings that it depends on, those of the passes before included, so
that what is there can be trusted and a changed setting redoes only what follows from it. A shard's
report is written last: a pass that was killed goes on with the shards that have none.
"""

import hashlib
import json
import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from jaxllm import data, tokenizers
from jaxllm.corpus import (
    decontaminate,
    documents,
    duplicates,
    executors,
    language,
    privacy,
    quality,
    report,
    standardise,
)
from jaxllm.corpus.documents import Document
from jaxllm.data import shards
from jaxllm.data.errors import BadInput

VERSION = 2  # of what the passes make; a higher one redoes all
SPLITS = ("train", "validation", "test")
_SHARD_TEXT = 1 << 23  # characters of a shard of documents
_TASK_BYTES = 1 << 23  # of small files that are read by one task


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


class Corpus:
    """A corpus in the making.

    Args:
        config: ConfigDict of configs/data.
        workdir: where its folders are.
    """

    def __init__(self, config, workdir):
        self.config, self.workdir = config, pathlib.Path(workdir)
        self.reports = {}  # {stage: Report}, in their order

    def run(self):
        """Makes the corpus; returns the manifest of its token shards."""
        self.read()
        self.clean()
        self.find_duplicates()
        self.finish()
        self.train_tokenizer()
        return self.encode()

    def _folder(self, name, before, *sections):
        """The folder of a pass, by a hash of the folder before it and of its settings."""
        settings = {section: _plain(self.config)[section] for section in sections}
        record = json.dumps([VERSION, name, before, settings], sort_keys=True, default=str)
        return self.workdir / f"{name}-{hashlib.sha256(record.encode()).hexdigest()[:12]}"

    def _map(self, function, folder, names, more=None):
        """Runs a pass over all shards that have no report yet; returns all reports."""
        folder.mkdir(parents=True, exist_ok=True)
        missing = [name for name in names if not (folder / f"{name}.json").is_file()]
        plain = _plain(self.config)
        tasks = [Task(plain, str(folder), name, (more or {}).get(name, {})) for name in missing]
        progress = executors.Progress(folder.name.rpartition("-")[0], len(tasks))
        executors.local(function, tasks, self.config.workers, progress)
        return [json.loads((folder / f"{name}.json").read_text()) for name in names]

    def _add(self, found):
        """Adds the reports of a pass's shards, in their order."""
        for one in found:
            for stage, counts in one["reports"].items():
                self.reports.setdefault(stage, report.Report()).add(report.from_dict(counts))

    def read(self):
        """Reads every source into shards of documents."""
        sources = data.make_sources(self.config)
        described = {name: source.describe() for name, source in sources.items()}
        before = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        self.raw = self._folder("read", before, "sources", "bad_input")
        more = dict(task for name in sorted(sources) for task in read_tasks(name, sources[name]))
        found = self._map(read_source, self.raw, list(more), more)
        self._add(found)
        self.shards = [name for one in found for name in one["shards"]]
        self.skipped = {name: {} for name in sources}
        for task, one in zip(more.values(), found, strict=True):
            for reason, example in one["skipped"].items():
                self.skipped[task["source"]].setdefault(reason, example)

    def clean(self):
        """Standardises, identifies languages, filters; and looks for what copies have in common."""
        sections = ("standardise", "language", "quality", "duplicates")
        self.cleaned = self._folder("clean", self.raw.name, *sections)
        more = {name: {"raw": str(self.raw)} for name in self.shards}
        self._add(self._map(clean_shard, self.cleaned, self.shards, more))

    def find_duplicates(self):
        """Finds the copies among all shards."""
        self.copies = self._folder("duplicates", self.cleaned.name, "duplicates")
        done = self.copies / "found.npz"
        if not done.is_file():
            parts = []
            for name in self.shards:
                with np.load(self.cleaned / f"{name}.npz", allow_pickle=False) as saved:
                    parts.append(duplicates.Signatures(saved["text"], saved["minhash"]))
            found = duplicates.find(parts, _options(self.config))
            counts = np.array([len(part.text) for part in parts])
            with documents.replacing(done) as file:
                np.savez(file, original=found.original, exact=found.exact, counts=counts)

    def finish(self):
        """Drops copies and text of evaluation sets, and masks personal data."""
        evaluation = self._evaluation()
        key = hashlib.sha256(evaluation.tobytes()).hexdigest()
        self.final = self._folder("documents", self.copies.name + key, "decontaminate", "privacy")
        with np.load(self.copies / "found.npz", allow_pickle=False) as saved:
            original, exact, counts = saved["original"], saved["exact"], saved["counts"]
        ends = np.cumsum(counts)
        self.groups = np.bincount(original, minlength=len(original))
        more = {}
        for name, end, count in zip(self.shards, ends, counts, strict=True):
            copy = original[end - count : end] != np.arange(end - count, end)
            kinds = np.where(exact[end - count : end], 1, 2) * copy
            more[name] = {
                "cleaned": str(self.cleaned),
                "copies": kinds.astype(np.uint8),
                "evaluation": evaluation,
            }
        self._add(self._map(finish_shard, self.final, self.shards, more))

    def _evaluation(self):
        section = self.config.decontaminate
        texts = [
            document.text
            for source in data.make_sources(section).values()
            for document in source.documents(BadInput("error"))
        ] if section.sources else []  # fmt: skip
        return decontaminate.grams_of(texts, section.ngram) if texts else np.zeros(0, np.uint64)

    def texts(self):
        """Yields the text of every document of the corpus."""
        for name in self.shards:
            for document in documents.read(self.final / f"{name}.jsonl.zst"):
                yield document.text

    def train_tokenizer(self):
        """Trains or loads the tokenizer."""
        place = self._folder("tokenizer", self.final.name, "tokenizer")
        if not (place / "tokenizer_config.json").is_file():
            tokenizers.make(self.config.tokenizer, self.texts).save(place)
        self.tokenizer, self.tokenizer_place = tokenizers.load(place), place

    def encode(self):
        """Encodes every shard and joins them to token shards; returns their manifest."""
        before = self.final.name + self.tokenizer.fingerprint
        folder = self._folder("tokens", before, "splits")
        more = {
            name: {"final": str(self.final), "tokenizer": str(self.tokenizer_place)}
            for name in self.shards
        }
        self._add(self._map(encode_shard, folder, self.shards, more))
        self.result = self._folder("corpus", folder.name)
        if not (self.result / shards.MANIFEST).is_file():
            self._join(folder)
        return shards.read_manifest(self.result)

    def _join(self, folder):
        self.result.mkdir(parents=True, exist_ok=True)
        size = self.tokenizer.vocab_size
        writers = {
            split: shards.SplitWriter(self.result, split, size, shards.SHARD_TOKENS)
            for split in SPLITS
        }
        for name in self.shards:
            with np.load(folder / f"{name}.npz", allow_pickle=False) as saved:
                for split, writer in writers.items():
                    ids, ends = saved[f"{split}.ids"], saved[f"{split}.ends"]
                    start = 0
                    for end in ends:
                        writer.start_document()
                        writer.write(ids[start:end], name)
                        start = end
                    writer.bytes += int(saved[f"{split}.sizes"][0])
                    writer.characters += int(saved[f"{split}.sizes"][1])
        manifest = {
            "format": shards.FORMAT,
            "source": {"kind": "prepared", "documents": self.final.name},
            "tokenizer": self.tokenizer.fingerprint,
            "tokenizer_kind": self.tokenizer.kind,
            "shard_tokens": shards.SHARD_TOKENS,
            "vocab_size": size,
            "dtype": shards.id_dtype(size).str,
            "validation_fraction": self.config.splits.validation,
            "splits": {split: writer.close() for split, writer in writers.items()},
            "skipped": {},
            "reports": {stage: one.as_dict() for stage, one in self.reports.items()},
        }
        self.tokenizer.save(self.result / "tokenizer")
        shards.write_manifest(self.result, manifest)


def _plain(config):
    return json.loads(config.to_json_best_effort())


def _options(config):
    section = dict(config["duplicates"])
    return duplicates.Options(**section)


def read_tasks(name, source):
    """Yields (name of a task, what it needs) of a source; they do not depend on who runs them.

    A file is a task, small ones in a row are one; what reads no files is one too.
    """
    if not isinstance(source, data.FileSource):
        yield f"{name}-00000", {"source": name, "files": None}
        return
    first, size, sizes = 0, 0, source.sizes()
    for i in range(len(sizes)):
        size += sizes[i]
        if i + 1 == len(sizes) or size + sizes[i + 1] > _TASK_BYTES:
            some = source.only(*source.paths[first : i + 1])
            yield f"{name}-{first:05d}", {"source": name, "files": some}
            first, size = i + 1, 0


def read_source(task):
    """Reads some files of a source into shards NAME-FFFFF-PPPPP; returns the bytes of their text.

    FFFFF is the number of the first file and PPPPP that of the shard.
    """
    config, name = _config(task), task.more["source"]
    source = task.more["files"] or data.make_sources(config)[name]
    bad, found, names = BadInput(config.bad_input), report.Report(), []
    some, size = [], 0
    folder = pathlib.Path(task.folder)

    def write():
        names.append(f"{task.name}-{len(names):05d}")
        documents.write(folder / f"{names[-1]}.jsonl.zst", some)

    for one in source.documents(bad):
        some.append(Document(one.where, name, one.text, dict(one.notes)))
        size += len(one.text)
        found.documents["out"] += 1
        found.bytes["out"] += len(one.text.encode())
        if size > _SHARD_TEXT:
            write()
            some, size = [], 0
    if some:
        write()
    found.dropped.update(bad.counts)
    found.documents["in"] = found.documents["out"] + sum(bad.counts.values())
    found.bytes["in"] = found.bytes["out"]
    skipped = {reason: bad.examples[reason] for reason in bad.counts}
    _finish(task, {"read": found}, shards=names, skipped=skipped)
    return found.bytes["out"]


def clean_shard(task):
    """Cleans one shard; returns the bytes of its text."""
    config = _config(task)
    raw = pathlib.Path(task.more["raw"]) / f"{task.name}.jsonl.zst"
    left, reports = run_stages(clean_stages(config), list(documents.read(raw)))
    folder = pathlib.Path(task.folder)
    signed = duplicates.signatures([document.text for document in left], _options(config))
    documents.write(folder / f"{task.name}.jsonl.zst", left)
    with documents.replacing(folder / f"{task.name}.npz") as file:
        np.savez(file, text=signed.text, minhash=signed.minhash)
    _finish(task, reports)
    return reports["standardise"].bytes["in"]


def clean_stages(config):
    """{name: stage} of the cleaning pass."""
    stages = {"standardise": standardise.make(config.standardise)}
    if config.language.on:
        stages["language"] = language.make(config.language)
    stages["quality"] = quality.make(config.quality)
    return stages


def run_stages(stages, left):
    """Runs stages one after another; returns ([Document], {name: Report})."""
    reports = {}
    for name, stage in stages.items():
        left, reports[name] = report.run(stage, left)
    return left, reports


def finish_shard(task):
    """Drops copies, text of evaluation sets and personal data from a shard."""
    config = _config(task)
    kinds = task.more["copies"]

    def drop_copies(some, found):
        for document, kind in zip(some, kinds, strict=True):
            if kind:
                found.drop(("", "exact copy", "near copy")[kind], document)
        return [document for document, kind in zip(some, kinds, strict=True) if not kind]

    section = config.decontaminate
    stages = {
        "duplicates": drop_copies,
        "decontaminate": decontaminate.make(task.more["evaluation"], section.ngram, section.most),
        "privacy": privacy.make(config.privacy),
    }
    cleaned = pathlib.Path(task.more["cleaned"]) / f"{task.name}.jsonl.zst"
    left, reports = run_stages(stages, list(documents.read(cleaned)))
    documents.write(pathlib.Path(task.folder) / f"{task.name}.jsonl.zst", left)
    _finish(task, reports)
    return reports["duplicates"].bytes["in"]


def encode_shard(task):
    """Encodes a shard; returns the bytes of its text."""
    config, tokenizer = _config(task), tokenizers.load(task.more["tokenizer"])
    dtype = shards.id_dtype(tokenizer.vocab_size)
    parts = {split: ([], [0, 0]) for split in SPLITS}
    end = [tokenizer.eos] if tokenizer.eos >= 0 else []

    def stage(some, found):
        for document in some:
            split = split_of(document.text, config.splits)
            ids, sizes = parts[split]
            encoded = tokenizer.encode(document.text)
            ids.append(np.concatenate([encoded, end]).astype(dtype))
            sizes[0] += len(document.text.encode())
            sizes[1] += len(document.text)
            found.counts["tokens"] += len(ids[-1])
            found.counts[f"documents of {split}"] += 1
        return some

    final = pathlib.Path(task.more["final"]) / f"{task.name}.jsonl.zst"
    _, found = report.run(stage, list(documents.read(final)))
    saved = {}
    for split, (ids, sizes) in parts.items():
        saved[f"{split}.ids"] = np.concatenate([np.zeros(0, dtype), *ids])
        saved[f"{split}.ends"] = np.cumsum([len(one) for one in ids]).astype(np.int64)
        saved[f"{split}.sizes"] = np.array(sizes)
    with documents.replacing(pathlib.Path(task.folder) / f"{task.name}.npz") as file:
        np.savez(file, **saved)
    _finish(task, {"tokens": found})
    return found.bytes["in"]


def split_of(text, section):
    """Which split a document belongs to, by a keyed hash of its text: copies stay together."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=b"jaxllm/split").digest()
    part = int.from_bytes(digest, "little") / 2**64
    if part < section.validation:
        return "validation"
    return "test" if part < section.validation + section.test else "train"


def _config(task):
    return ConfigDict(task.config)


def _finish(task, reports, **more):
    """Writes a shard's report, which says that it is whole."""
    data = {"reports": {name: one.as_dict() for name, one in reports.items()}, **more}
    documents.write_json(pathlib.Path(task.folder) / f"{task.name}.json", data)
