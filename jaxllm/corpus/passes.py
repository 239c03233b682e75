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
from jaxllm.config import make
from jaxllm.corpus import (
    card,
    decontaminate,
    documents,
    duplicates,
    executors,
    language,
    privacy,
    quality,
    record,
    report,
    standardise,
)
from jaxllm.corpus.documents import Document
from jaxllm.data import prepared, shards
from jaxllm.data.errors import BadInput

VERSION = 2  # of what the passes make; a higher one redoes all
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


class Corpus:
    """A corpus in the making.

    Args:
        config: ConfigDict of configs/data.
        workdir: where its folders are.

    Raises:
        ConfigError, DataError: a setting that cannot be, before anything is read.
    """

    def __init__(self, config, workdir):
        data.make_sources(config, "sources")
        clean_stages(config)
        privacy.make(config.privacy)
        self._execute = make(executors.EXECUTORS, config.executor, "executor")
        self.config, self.workdir = config, pathlib.Path(workdir)
        self.reports = {}  # {stage: Report}, in their order
        self.sources = {}  # {name: what the manifest tells of it}

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
        settings = {section: _plain(self.config).get(section) for section in sections}
        record = json.dumps([VERSION, name, before, settings], sort_keys=True, default=str)
        return self.workdir / f"{name}-{hashlib.sha256(record.encode()).hexdigest()[:12]}"

    def _map(self, function, folder, names, more=None):
        """Runs a pass over all shards that have no report yet; returns all reports."""
        folder.mkdir(parents=True, exist_ok=True)
        missing = [name for name in names if not (folder / f"{name}.json").is_file()]
        plain = _plain(self.config)
        tasks = [Task(plain, str(folder), name, (more or {}).get(name, {})) for name in missing]
        progress = executors.Progress(folder.name.rpartition("-")[0], len(tasks))
        self._execute(function, tasks, self.config.workers, folder, progress)
        return [json.loads((folder / f"{name}.json").read_text()) for name in names]

    def _add(self, found):
        """Adds the reports of a pass's shards, in their order."""
        for one in found:
            for stage, counts in one["reports"].items():
                self.reports.setdefault(stage, report.Report()).add(report.from_dict(counts))

    def read(self):
        """Reads every source into shards of documents."""
        sources = data.make_sources(self.config, "sources")
        described = {name: source.describe() for name, source in sources.items()}
        before = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        self.raw = self._folder("read", before, "sources", "bad_input", "shard_mb")
        found = self._map(read_source, self.raw, sorted(sources))
        self._add(found)
        self.shards = [name for one in found for name in one["shards"]]
        for name, one in zip(sorted(sources), found, strict=True):
            self.sources[name] = record.source(sources[name].describe(), one)

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
        self.groups, firsts = duplicates.groups(original, exact), {}
        for index, size in duplicates.largest(original):
            firsts.setdefault(int(np.searchsorted(ends, index, "right")), {})[index] = size
        more = {}
        for i, (name, end, count) in enumerate(zip(self.shards, ends, counts, strict=True)):
            copy = original[end - count : end] != np.arange(end - count, end)
            kinds = np.where(exact[end - count : end], 1, 2) * copy
            more[name] = {
                "cleaned": str(self.cleaned),
                "copies": kinds.astype(np.uint8),
                "firsts": {k - int(end - count): size for k, size in firsts.get(i, {}).items()},
                "evaluation": evaluation,
            }
        found = self._map(finish_shard, self.final, self.shards, more)
        self._add(found)
        shown = [one for part in found for one in part["firsts"]]
        self.groups["largest"] = sorted(shown, key=lambda one: -one["documents"])

    def _evaluation(self):
        section = self.config.decontaminate
        texts = [
            document.text
            for source in data.make_sources(section, "decontaminate.sources").values()
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
        found = self._map(encode_shard, folder, self.shards, more)
        self._add(found)
        for name, one in zip(self.shards, found, strict=True):
            record.count_left(self.sources[name.rpartition("-")[0]], one["reports"]["tokens"])
        self.result = self._folder("corpus", folder.name, "card")
        if not (self.result / shards.MANIFEST).is_file():
            self._join(folder)
        manifest = shards.read_manifest(self.result)
        card.write(manifest, self.result)
        self._point()
        return manifest

    def _point(self):
        """Has the name "corpus" stand for the result."""
        link, new = self.workdir / prepared.CORPUS, self.workdir / f".{prepared.CORPUS}"
        new.unlink(missing_ok=True)
        new.symlink_to(self.result.name)
        new.replace(link)

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
            "source": {"kind": "prepared"},
            "tokenizer": self.tokenizer.fingerprint,
            "tokenizer_kind": self.tokenizer.kind,
            "shard_tokens": shards.SHARD_TOKENS,
            "vocab_size": size,
            "dtype": shards.id_dtype(size).str,
            "validation_fraction": self.config.splits.validation,
            "splits": {split: writer.close() for split, writer in writers.items()},
            "skipped": {},
            "sources": self.sources,
            "copies": self.groups,
        }
        self.tokenizer.save(self.result / "tokenizer")
        manifest |= record.reports(self.reports) | record.made(_plain(self.config))
        manifest["files"] = record.files(self.result)
        documents.write_json(self.result / record.TIMINGS, record.timings(self.reports))
        shards.write_manifest(self.result, manifest)


def _plain(config):
    return json.loads(config.to_json_best_effort())


def _options(config):
    section = dict(config["duplicates"])
    return duplicates.Options(**section)


def read_source(task):
    """Reads one source into shards; returns the bytes of its text."""
    config = _config(task)
    source = data.make_sources(config, "sources")[task.name]
    bad, found, names = BadInput(config.bad_input), report.Report(), []
    some, size, digest = [], 0, hashlib.sha256()
    folder = pathlib.Path(task.folder)

    def write():
        names.append(f"{task.name}-{len(names):05d}")
        documents.write(folder / f"{names[-1]}.jsonl.zst", some)

    for one in source.documents(bad):
        some.append(Document(one.where, task.name, one.text, {}))
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
    left, reports = run_stages(clean_stages(config), list(documents.read(raw)), config)
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


def run_stages(stages, left, config):
    """Runs stages one after another; returns ([Document], {name: Report})."""
    reports, shown = {}, privacy.shown(config.privacy)
    for name, stage in stages.items():
        left, reports[name] = report.run(stage, left, shown)
    return left, reports


def finish_shard(task):
    """Drops copies, text of evaluation sets and personal data from a shard."""
    config = _config(task)
    cleaned = pathlib.Path(task.more["cleaned"]) / f"{task.name}.jsonl.zst"
    some = list(documents.read(cleaned))
    kinds = {document.id: k for document, k in zip(some, task.more["copies"], strict=True) if k}

    def drop_copies(some, found):
        for document in some:
            if document.id in kinds:
                found.drop(("", "exact copy", "near copy")[kinds[document.id]], document)
        return [document for document in some if document.id not in kinds]

    section = config.decontaminate
    stages = {
        "duplicates": drop_copies,
        "decontaminate": decontaminate.make(task.more["evaluation"], section.ngram, section.most),
        "privacy": privacy.make(config.privacy),
    }
    shown = privacy.shown(config.privacy)
    firsts = [
        {"documents": size, "id": some[i].id, "text": shown(some[i])[: report.EXCERPT]}
        for i, size in task.more["firsts"].items()
    ]
    left, reports = run_stages(stages, some, config)
    documents.write(pathlib.Path(task.folder) / f"{task.name}.jsonl.zst", left)
    _finish(task, reports, firsts=firsts)
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
