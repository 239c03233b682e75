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

import numpy as np

from jaxllm import data, tokenizers
from jaxllm.config import make
from jaxllm.corpus import (
    boilerplate,
    card,
    decontaminate,
    documents,
    duplicates,
    executors,
    privacy,
    record,
    report,
    tasks,
)
from jaxllm.data import prepared, shards
from jaxllm.data.errors import BadInput, DataError
from jaxllm.whole_files import replacing

VERSION = 3  # of what the passes make; a higher one redoes all
_TASK_BYTES = 1 << 23  # of small files that are read by one task


class Corpus:
    """A corpus in the making.

    Args:
        config: ConfigDict of configs/data.
        workdir: where its folders are.

    Raises:
        ConfigError, DataError: a setting that cannot be, before anything is read.
    """

    def __init__(self, config, workdir):
        self._found = data.make_sources(config, "sources")
        tasks.clean_stages(config)
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
        plain = _plain(self.config)
        settings = {section: plain.get(section) for section in sections}
        record = json.dumps([VERSION, name, before, settings], sort_keys=True, default=str)
        return self.workdir / f"{name}-{hashlib.sha256(record.encode()).hexdigest()[:12]}"

    def _map(self, function, folder, names, more=None):
        """Runs a pass over all shards that have no report yet; returns all reports."""
        folder.mkdir(parents=True, exist_ok=True)
        missing = [name for name in names if not (folder / f"{name}.json").is_file()]
        plain, more = _plain(self.config), more or {}
        todo = [tasks.Task(plain, str(folder), name, more.get(name, {})) for name in missing]
        progress = executors.Progress(folder.name.rpartition("-")[0], len(todo))
        self._execute(function, todo, self.config.workers, folder, progress)
        return [json.loads((folder / f"{name}.json").read_text()) for name in names]

    def _add(self, found):
        """Adds the reports of a pass's shards, in their order."""
        for one in found:
            for stage, counts in one["reports"].items():
                self.reports.setdefault(stage, report.Report()).add(report.from_dict(counts))

    def read(self):
        """Reads every source into shards of documents."""
        sources = self._found
        described = {name: source.describe() for name, source in sources.items()}
        before = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        self.raw = self._folder("read", before, "sources", "bad_input", "shard_mb")
        more = dict(task for name in sorted(sources) for task in read_tasks(name, sources[name]))
        found = self._map(tasks.read_source, self.raw, list(more), more)
        self._add(found)
        self.shards = [name for one in found for name in one["shards"]]
        for name in sources:
            parts = [o for t, o in zip(more.values(), found, strict=True) if t["source"] == name]
            self.sources[name] = record.source(described[name], parts)
        if not self.shards:
            raise DataError("The sources yield no text at all.")

    def clean(self):
        """Standardises, identifies languages, filters; and looks for what copies have in common."""
        sections = ("standardise", "language", "quality", "duplicates", "boilerplate")
        self.cleaned = self._folder("clean", self.raw.name, *sections)
        more = {name: {"raw": str(self.raw)} for name in self.shards}
        self._add(self._map(tasks.clean_shard, self.cleaned, self.shards, more))

    def find_duplicates(self):
        """Finds the copies among all shards."""
        self.copies = self._folder("duplicates", self.cleaned.name, "duplicates")
        done = self.copies / "found.npz"
        if not done.is_file():
            parts, pieces = [], {kind: [] for kind in tasks.asked_pieces(self.config)}
            for name in self.shards:
                with np.load(self.cleaned / f"{name}.npz", allow_pickle=False) as saved:
                    parts.append(duplicates.Signatures(saved["text"], saved["minhash"]))
                    for kind, of_shards in pieces.items():
                        of_shards.append((saved[f"{kind} 0"], saved[f"{kind} 1"]))
            found = duplicates.find(parts, tasks.duplicate_options(self.config))
            counts = np.array([len(part.text) for part in parts])
            shared = {
                kind: boilerplate.common(of_shards, self.config.boilerplate[kind])
                for kind, of_shards in pieces.items()
            }
            with replacing(done) as file:
                np.savez(file, original=found.original, exact=found.exact, counts=counts, **shared)

    def finish(self):
        """Drops copies and text of evaluation sets, and masks personal data."""
        evaluation = self._evaluation()
        key = hashlib.sha256(evaluation.tobytes()).hexdigest()
        self.final = self._folder("documents", self.copies.name + key, "decontaminate", "privacy")
        with np.load(self.copies / "found.npz", allow_pickle=False) as saved:
            original, exact, counts = saved["original"], saved["exact"], saved["counts"]
            shared = {kind: saved[kind] for kind in tasks.asked_pieces(self.config)}
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
                "shared": shared,
            }
        found = self._map(tasks.finish_shard, self.final, self.shards, more)
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
            tokenizers.save(place, tokenizers.make(self.config.tokenizer, self.texts))
        self.tokenizer, self.tokenizer_place = tokenizers.load(place), place

    def encode(self):
        """Encodes every shard and joins them to token shards; returns their manifest."""
        before = self.final.name + self.tokenizer.fingerprint
        folder = self._folder("tokens", before, "splits")
        more = {
            name: {"final": str(self.final), "tokenizer": str(self.tokenizer_place)}
            for name in self.shards
        }
        found = self._map(tasks.encode_shard, folder, self.shards, more)
        self._add(found)
        for name, one in zip(self.shards, found, strict=True):
            record.count_left(self.sources[name.rsplit("-", 2)[0]], one["reports"]["tokens"])
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
            for split in tasks.SPLITS
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
        tokenizers.save(self.result / "tokenizer", self.tokenizer)
        manifest |= record.reports(self.reports) | record.made(_plain(self.config))
        manifest["files"] = record.files(self.result)
        documents.write_json(self.result / record.TIMINGS, record.timings(self.reports))
        shards.write_manifest(self.result, manifest)


def _plain(config):
    return json.loads(config.to_json_best_effort())


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
