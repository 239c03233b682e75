"""Data: sources of documents, token shards, rows by random access, mixtures, prefetching."""

import pathlib

from jaxllm import config as configs
from jaxllm.config import ConfigError
from jaxllm.data import (
    archives,
    build,
    code,
    curriculum,
    examples,
    html,
    mixing,
    prepared,
    shards,
    skip,
    sources,
    tables,
    tfds_source,
    transforms,
    warc,
    weights,
)
from jaxllm.data.errors import BadInput, DataError
from jaxllm.data.mixture import Mixture
from jaxllm.data.origin import classes, describe, differences, explain, record
from jaxllm.data.packing import Packed
from jaxllm.data.prefetch import Prefetch
from jaxllm.data.rows import empty_batch
from jaxllm.data.sources import Document, FileSource
from jaxllm.data.transforms import NEEDS, TRANSFORMS, Transformed
from jaxllm.data.windows import Source

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
    **examples.SOURCES,
}
# What a row is: a window over the stream of tokens, or whole documents.
ROWS = {"windows": Source, "packed": Packed}
ALL_ROWS = ROWS | examples.ROWS
# Settings of `config.data` that a config need not have.
DEFAULTS = {
    "rows": "windows",
    "temperature": 0.0,
    "weights": (),
    "over_epochs": "refuse",
    "on_change": "refuse",
    "validation_from": 0.0,
    "curriculum": {"kind": "none", "until": 0.3},
    "skip": {"steps": (), "documents": ""},
    "transforms": {},
    "template": "own",
    **examples.Options()._asdict(),
    **examples.ChatOptions()._asdict(),
}
# The same of a source, besides the options of its kind.
SECTION = {"weight": 1.0, "split": "auto", "max_epochs": 0.0, "rows": ""}

__all__ = [
    "NEEDS",
    "ROWS",
    "SOURCES",
    "TRANSFORMS",
    "DataError",
    "Document",
    "FileSource",
    "Mixture",
    "Packed",
    "Prefetch",
    "Source",
    "Transformed",
    "check",
    "classes",
    "describe",
    "differences",
    "empty",
    "empty_batch",
    "explain",
    "make_sources",
    "needs",
    "open_split",
    "prepare",
    "record",
    "rows_of",
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
        name: configs.make(SOURCES, section, f"{field}.{name}", ignore=SECTION)
        for name, section in config.sources.items()
    }


def check(config):
    """Raises ConfigError or DataError for sources that cannot be; reads no text.

    Args:
        config: `config.data`.
    """
    make_sources(config)
    kinds = rows_of(config)
    for name, rows in kinds.items():
        examples.check(config, name, rows, _options(config, rows))
    mixing.same_arrays({name: _empty(config, name, 1) for name in kinds}, kinds)
    of_examples = any(rows in examples.ROWS for rows in kinds.values())
    transforms.check(get(config, "transforms"), of_examples and examples.TRANSFORMS)
    curriculum.check(**get(config, "curriculum"))
    skip.check(**get(config, "skip"))
    for field, other in (("over_epochs", "give"), ("on_change", "accept")):
        if get(config, field) not in ("refuse", other):
            raise ConfigError(
                f"config.data.{field}={get(config, field)!r} must be one of refuse, {other}.\n"
                f"  Try --config.data.{field}=refuse."
            )
    for name, section in config.sources.items():
        build.settings(config, section, name)
    if set(_each(config, "split").values()) == {build.ALL_TRAIN}:
        raise ConfigError(
            f"config.data.sources: each has split={build.ALL_TRAIN!r}, so that nothing is left to "
            f"validate on.\n  Try --config.data.sources.{next(iter(config.sources))}.split=auto."
        )
    weights.check(_each(config, "weight"), get(config, "weights"), get(config, "temperature"))
    weights.check_limits(_each(config, "max_epochs"))


def rows_of(config):
    """Returns {name of a source: name of its rows}: its own, or those of all.

    Raises:
        ConfigError: there are no such rows.
    """
    found = {}
    for name, own in _each(config, "rows").items():
        field = f"data.sources.{name}.rows" if own else "data.rows"
        found[name] = rows = own or get(config, "rows")
        if rows not in ALL_ROWS:
            raise ConfigError(
                f"config.{field}={rows!r} is unknown.{configs.near(rows, ALL_ROWS)} "
                f"Known: {', '.join(ALL_ROWS)}.\n  Try --config.{field}=windows."
            )
    return found


def _options(config, kind):
    """Returns the settings of a kind of rows of examples; of documents there are none."""
    if kind not in examples.ROWS:
        return examples.Options()
    kind = examples.ROWS[kind].OPTIONS
    return kind(*(get(config, name) for name in kind._fields))


def _settings(config, name, source, tokenizer, lead):
    """Returns what the shards of a source depend on besides its documents and the tokenizer."""
    found = build.settings(config, config.sources[name], name)
    if getattr(source, "task", "") == "chat":
        room = config.length - lead + 1  # the last token is only a target
        chosen = get(config, "template"), get(config, "too_long"), room
        found |= examples.chats.settings(tokenizer, *chosen)
    return found


def needs(config):
    """Returns {field: what a model must have for it} of the rows and transforms of a config.

    Args:
        config: `config.data`.
    """
    found = {"data.rows": "encoder_decoder"} if get(config, "rows") == "pairs" else {}
    for name, section in get(config, "transforms").items():
        if section["kind"] in NEEDS:
            found[f"data.transforms.{name}.kind"] = NEEDS[section["kind"]]
    return found


def empty(config, rows):
    """Returns `rows` rows of padding of a config, without reading anything.

    Args:
        config: `config.data`.
    """
    batch = _empty(config, next(iter(config.sources)), rows)
    return transforms.of_padding(get(config, "transforms"), batch)


def _empty(config, name, rows):
    """Rows of padding of one source, before any transform."""
    kind = rows_of(config)[name]
    if kind in examples.ROWS:
        return examples.empty(config, name, kind, _options(config, kind), rows)
    return empty_batch(rows, config.length)


def get(config, name):
    """Returns a setting of `config.data`, or what it is where a config has it not."""
    return {name: DEFAULTS[name], **config}[name]


def _each(config, field):
    """Returns {name: a setting of that source, besides those of its kind}."""
    return {name: {**SECTION, **section}[field] for name, section in config.sources.items()}


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


def prepare(config, tokenizer, directory, shard_tokens=shards.SHARD_TOKENS, lead=0):
    """Tokenizes every source into shards, once, and returns {name: manifest}.

    Args:
        config: `config.data`. Shards go to `cache_dir` where it is set.
        tokenizer: what encodes the documents.
        directory: where shards go otherwise.
        shard_tokens: tokens in each file of a split but the last.
        lead: as of `open_split`.

    Raises:
        DataError: bad input, with file and line; manifests count what was skipped by reason.
    """
    root = _root(config, directory)
    manifests = {}
    for name, source in make_sources(config).items():
        if isinstance(source, prepared.Prepared):
            manifests[name] = shards.read_manifest(source.directory)
            continue
        options = _settings(config, name, source, tokenizer, lead)
        manifests[name] = build.prepare(source, tokenizer, options, root, name, shard_tokens)
    return manifests


def _root(config, directory):
    return pathlib.Path(config.cache_dir or directory).expanduser()


def open_split(
    config, tokenizer, directory, split, seed, verify=False, steps=0, vocab=0, lead=0
):  # fmt: skip
    """Opens a split of what `prepare` wrote, as rows by random access.

    Args:
        config: `config.data`, as it was prepared with.
        tokenizer: the one it was prepared with.
        directory: as it was prepared with.
        split: "train" or "validation".
        seed: of the order of rows.
        verify: also check the sha256 of every file.
        steps: of the run, for what changes over it; 0 where nothing is trained.
        vocab: ids of the model, which may be more than the tokenizer's; 0: as many.
        lead: places of token 0 that every document begins with, for what is to stand there; they
            are not learned, are of its segment and count in its positions. Rows stay as long.

    Raises:
        DataError: not prepared with this tokenizer and these settings, or damaged.
        ConfigError: the split is too short for one row, or would be repeated too often.
    """
    _check_lead(config, lead)
    opened, places = {}, {}
    for name, source in make_sources(config).items():
        if split == "validation" and _each(config, "split")[name] == build.ALL_TRAIN:
            continue
        options = _settings(config, name, source, tokenizer, lead)
        path, manifest = places[name] = _find(
            config, tokenizer, directory, name, source, verify, options
        )
        kind = rows_of(config)[name]
        more = {"options": _options(config, kind)} if kind in examples.ROWS else {}
        opened[name] = ALL_ROWS[kind](
            path, manifest, split, batch=config.batch, length=config.length, seed=seed, name=name,
            lead=lead, **more,
        )  # fmt: skip
    examples.same_classes({n: m for n, (_, m) in places.items() if "classes" in m})
    if len(opened) == 1:
        (rows,) = opened.values()
    else:
        tokens = {name: source.tokens for name, source in opened.items()}
        shares = {name: share for name, share in _each(config, "weight").items() if name in opened}
        options = weights.of_sources(get(config, "weights"), opened), get(config, "temperature")
        plan = weights.stages(shares, *options, tokens, steps * config.batch)
        rows = Mixture(opened, plan, seed)
    rows = _within_limits(config, rows, opened, seed, steps)
    if steps:
        rows = _easy_first(config, rows, places, split, seed, steps)
    marks = transforms.Marks(tokenizer, vocab, get(config, "start"))
    for number, transform in transforms.make(get(config, "transforms"), marks, bool(steps)):
        rows = Transformed(rows, transform, f"{seed}/{number}")
        rows.empty(1)  # too few ids for what it puts in are told now
    if not steps:
        return rows
    documents = {name: m["splits"][split]["documents"] for name, (_, m) in places.items()}
    left_out = get(config, "skip")
    skipped = skip.read(left_out["documents"], documents)
    if skipped or left_out["steps"]:
        rows = skip.Skipping(rows, left_out["steps"], skipped)
    return rows


def _easy_first(config, rows, places, split, seed, steps):
    """Returns rows by the config's curriculum."""
    kind, until = (get(config, "curriculum")[field] for field in ("kind", "until"))
    if kind == "none":
        return rows
    end, ordered = rows.read(round(until * steps) * config.batch), {}
    for name, source in rows.sources.items():
        scores = curriculum.scores(kind, *places[name], split)
        ordered[name] = curriculum.Curriculum(source, scores, end[name], seed)
    return rows.over(ordered) if isinstance(rows, Mixture) else ordered[rows.name]


def _check_lead(config, lead):
    """Raises ConfigError where documents cannot begin with so many places."""
    if not 0 <= lead < config.length - 1:
        raise ConfigError(
            f"config.data.length={config.length}: rows of so many tokens have no room for the "
            f"{lead} places that each document begins with.\n"
            f"  Try --config.data.length={4 * max(lead, 0) + 64}."
        )
    if lead and (changes := get(config, "transforms")):
        raise ConfigError(
            f"config.data.transforms.{next(iter(changes))}: rows are not changed where each "
            f"document begins with {lead} places of its own.\n  Leave the transforms out."
        )


def _find(config, tokenizer, directory, name, source, verify, options):
    """Returns (directory, manifest) of a source's shards, checked."""
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
    return path, manifest


def _within_limits(config, rows, opened, seed, steps):
    """Returns rows that repeat no source beyond its `max_epochs`; see `weights.give`."""
    limits, held = _each(config, "max_epochs"), {}
    while steps and (names := weights.over(rows.epochs(steps), limits)):
        epochs = rows.epochs(steps)
        if get(config, "over_epochs") != "give" or len(opened) == 1:
            weights.refuse(names[0], rows.epochs, limits[names[0]], steps)
        factors = {name: limits[name] / epochs[name] for name in names}
        held |= factors
        plan = [(first, dict.fromkeys(opened, 0) | quotas) for first, quotas in rows.stages]
        rows = Mixture(opened, weights.give(plan, list(held), factors), seed, held)
    return rows
