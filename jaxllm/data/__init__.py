"""Data: sources of documents, token shards, rows by random access, mixtures, prefetching."""

import pathlib

from jaxllm import config as configs
from jaxllm.config import ConfigError
from jaxllm.data import (
    archives,
    build,
    code,
    html,
    prepared,
    shards,
    sources,
    tables,
    tfds_source,
    warc,
)
from jaxllm.data.errors import BadInput, DataError
from jaxllm.data.mixture import Mixture, quotas
from jaxllm.data.prefetch import Prefetch
from jaxllm.data.sources import Document, FileSource
from jaxllm.data.windows import Source, empty_batch

SOURCES = {
    "shakespeare": sources.shakespeare,
    "text": sources.text,
    "jsonl": sources.jsonl,
    "html": html.make,
    "csv": tables.csv_files,
    "parquet": tables.parquet,
    "hf_dataset": tables.hf_dataset,
    "archive": archives.make,
    "warc": warc.make,
    "code": code.make,
    "tfds": tfds_source.make,
    "synthetic": sources.synthetic,
    "prepared": prepared.make,
}

__all__ = [
    "SOURCES",
    "DataError",
    "Document",
    "FileSource",
    "Mixture",
    "Prefetch",
    "Source",
    "check",
    "empty_batch",
    "make_sources",
    "open_split",
    "prepare",
    "texts",
]


def make_sources(config, field="data.sources"):
    """Returns {name: source} of `config.sources`.

    Args:
        config: `config.data`, or what else has `sources`.
        field: name of that section in the config, for errors.

    Raises:
        ConfigError: there are none, or one names an unknown kind, option or file.
    """
    if not config.sources:
        raise ConfigError(
            f"config.{field} is empty. Give it one, such as "
            f'c.{field} = dict(main=dict(kind="shakespeare")).'
        )
    return {
        name: configs.make(SOURCES, section, f"{field}.{name}", ignore=("weight", "split"))
        for name, section in config.sources.items()
    }


def check(config):
    """Raises ConfigError or DataError for sources that cannot be; reads no text.

    Args:
        config: `config.data`.
    """
    make_sources(config)
    for name, section in config.sources.items():
        build.settings(config, section, name)
    quotas({name: {"weight": 1.0, **section}["weight"] for name, section in config.sources.items()})


def texts(config):
    """Returns a function that gives a fresh iterator over all documents' texts, as str.

    For tokenizers that learn. Bad input raises DataError or, where `config.data.bad_input` says
    so, is skipped here and counted by `prepare`.
    """

    def iterate():
        for source in make_sources(config).values():
            for document in source.documents(BadInput(config.bad_input)):
                yield document.text

    return iterate


def prepare(config, tokenizer, directory, shard_tokens=shards.SHARD_TOKENS):
    """Tokenizes every source into shards, once, and returns {name: manifest}.

    Args:
        config: `config.data`. Shards go to `cache_dir` where it is set.
        tokenizer: what encodes the documents.
        directory: where shards go otherwise.
        shard_tokens: tokens in each file of a split but the last.

    Raises:
        DataError: bad input, with file and line; manifests count what was skipped by reason.
    """
    root = _root(config, directory)
    manifests = {}
    for name, source in make_sources(config).items():
        if isinstance(source, prepared.Prepared):
            manifests[name] = shards.read_manifest(source.directory)
            continue
        options = build.settings(config, config.sources[name], name)
        manifests[name] = build.prepare(source, tokenizer, options, root, name, shard_tokens)
    return manifests


def _root(config, directory):
    return pathlib.Path(config.cache_dir or directory).expanduser()


def open_split(config, tokenizer, directory, split, seed, verify=False):
    """Opens a split of what `prepare` wrote, as rows by random access.

    Args:
        config: `config.data`, as it was prepared with.
        tokenizer: the one it was prepared with.
        directory: as it was prepared with.
        split: "train" or "validation".
        seed: of the order of rows.
        verify: also check the sha256 of every file.

    Raises:
        DataError: not prepared with this tokenizer and these settings, or damaged.
        ConfigError: the split is too short for one row.
    """
    opened, weights = {}, {}
    for name, source in make_sources(config).items():
        options = build.settings(config, config.sources[name], name)
        if isinstance(source, prepared.Prepared):
            path = source.directory
        else:
            path = _root(config, directory) / f"{name}-{build.key(source, tokenizer, options)}"
        if not path.exists():
            raise DataError(
                f"Source {name!r} is not prepared under {path.parent} with this tokenizer, these "
                "files and these settings. Run data.prepare first."
            )
        manifest = shards.read_manifest(path)
        if manifest["tokenizer"] != tokenizer.fingerprint:
            raise DataError(
                f"{path} was made with another tokenizer. Delete it, prepare again; a corpus has "
                f"its own: --config.tokenizer.kind=saved --config.tokenizer.path={path}."
            )
        shards.check_sizes(path, manifest)
        if verify:
            shards.check_hashes(path, manifest)
        opened[name] = Source(
            path, manifest, split, batch=config.batch, length=config.length, seed=seed, name=name
        )
        weights[name] = float({"weight": 1.0, **config.sources[name]}["weight"])
    if len(opened) == 1:
        return next(iter(opened.values()))
    return Mixture(opened, weights, seed)
