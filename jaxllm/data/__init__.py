"""Data: sources of documents, token shards, rows by random access, mixtures, prefetching."""

import pathlib

from jaxllm import config as configs
from jaxllm.config import ConfigError
from jaxllm.data import build, shards, sources, tfds_source
from jaxllm.data.errors import BadInput, DataError
from jaxllm.data.mixture import Mixture, quotas
from jaxllm.data.packing import Packed
from jaxllm.data.prefetch import Prefetch
from jaxllm.data.rows import empty_batch
from jaxllm.data.sources import Document
from jaxllm.data.windows import Source

SOURCES = {
    "shakespeare": sources.shakespeare,
    "text": sources.text,
    "jsonl": sources.jsonl,
    "tfds": tfds_source.make,
    "synthetic": sources.synthetic,
}
# What a row is: a window over the stream of tokens, or whole documents.
ROWS = {"windows": Source, "packed": Packed}
# Settings of `config.data` that a config need not have.
DEFAULTS = {"rows": "windows"}

__all__ = [
    "ROWS",
    "SOURCES",
    "DataError",
    "Document",
    "Mixture",
    "Packed",
    "Prefetch",
    "Source",
    "check",
    "empty_batch",
    "make_sources",
    "open_split",
    "prepare",
    "texts",
]


def make_sources(config):
    """Returns {name: source} of `config.data.sources`.

    Raises:
        ConfigError: there are none, or one names an unknown kind, option or file.
    """
    if not config.sources:
        raise ConfigError(
            "config.data.sources is empty. Give it one, such as "
            'c.data.sources = dict(main=dict(kind="shakespeare")).'
        )
    return {
        name: configs.make(SOURCES, section, f"data.sources.{name}", ignore=("weight", "split"))
        for name, section in config.sources.items()
    }


def check(config):
    """Raises ConfigError or DataError for sources that cannot be; reads no text.

    Args:
        config: `config.data`.
    """
    make_sources(config)
    _rows(config)
    for name, section in config.sources.items():
        build.settings(config, section, name)
    quotas({name: {"weight": 1.0, **section}["weight"] for name, section in config.sources.items()})


def _rows(config):
    """Returns the class of rows that `config.rows` names.

    Raises:
        ConfigError: it names none.
    """
    rows = get(config, "rows")
    if rows not in ROWS:
        raise ConfigError(
            f"config.data.rows={rows!r} is unknown.{configs.near(rows, ROWS)} "
            f"Known: {', '.join(ROWS)}.\n  Try --config.data.rows=windows."
        )
    return ROWS[rows]


def get(config, name):
    """Returns a setting of `config.data`, or what it is where a config has it not."""
    return {name: DEFAULTS[name], **config}[name]


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
        key = build.key(source, tokenizer, options)
        path = _root(config, directory) / f"{name}-{key}"
        if not path.exists():
            raise DataError(
                f"Source {name!r} is not prepared under {path.parent} with this tokenizer, these "
                "files and these settings. Run data.prepare first."
            )
        manifest = shards.read_manifest(path)
        if manifest["tokenizer"] != tokenizer.fingerprint:
            raise DataError(f"{path} was made with another tokenizer. Delete it, prepare again.")
        shards.check_sizes(path, manifest)
        if verify:
            shards.check_hashes(path, manifest)
        opened[name] = _rows(config)(
            path, manifest, split, batch=config.batch, length=config.length, seed=seed, name=name
        )
        weights[name] = float({"weight": 1.0, **config.sources[name]}["weight"])
    if len(opened) == 1:
        return next(iter(opened.values()))
    return Mixture(opened, weights, seed)
