"""Tokenizes a source once, into a shard set under a key of all that it depends on."""

import contextlib
import fcntl
import functools
import glob
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import socket

import numpy as np
from absl import logging

from jaxllm.config import ConfigError
from jaxllm.data import shards
from jaxllm.data.errors import BadInput, DataError
from jaxllm.data.examples import store
from jaxllm.data.examples.records import ExampleSource
from jaxllm.tokenizers import TokenizerError

# A long document is encoded in pieces of this length, cut after a newline where there is one.
PIECE_CHARACTERS = 1 << 20
SPLIT_KEY = b"jaxllm/split"
ALL_TRAIN = "train"  # split mode of a source that nothing is held back of
SPLIT_MODES = ("auto", "hash", "tail", ALL_TRAIN)
GRID = 2**32  # places that the borders of a split may have


def settings(config, section, name):
    """Returns the settings of one source that its shards depend on, besides its documents.

    Raises:
        ConfigError: a fraction or split mode that cannot work.
    """
    fraction = config.validation_fraction
    mode = {"split": "auto", **section}["split"]
    if not 0 <= fraction < 1:
        raise ConfigError(
            f"config.data.validation_fraction={fraction} must be at least 0 and below 1.\n"
            "  Try --config.data.validation_fraction=0.1."
        )
    if mode not in SPLIT_MODES:
        raise ConfigError(
            f"config.data.sources.{name}.split={mode!r} is unknown. "
            f"Known: {', '.join(SPLIT_MODES)}.\n"
            f"  Try --config.data.sources.{name}.split={SPLIT_MODES[0]}."
        )
    first = {"validation_from": 0.0, **config}["validation_from"]
    if not 0 <= first <= 1 - fraction + 1e-9:
        raise ConfigError(
            f"config.data.validation_from={first} must be at least 0, and with "
            f"validation_fraction={fraction} at most {1 - fraction:g}.\n"
            "  Try --config.data.validation_from=0.0."
        )
    return {
        "format": shards.FORMAT,
        "validation_fraction": fraction,
        **({"validation_from": first} if first else {}),
        "split": mode,
        "bad_input": config.bad_input,
    }


def key(source, tokenizer, options):
    """Returns the name of a shard set: a hash of its source, tokenizer and settings."""
    record = {"source": source.describe(), "tokenizer": tokenizer.fingerprint, **options}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:20]


def prepare(source, tokenizer, options, root, name, shard_tokens):
    """Writes the shard set of a source unless it is there, and returns its manifest.

    Safe to kill at any time: shards appear under their key by one rename. Of several processes
    on a host one writes and the others wait.

    Raises:
        DataError: bad input, no documents, or an existing shard set is damaged.
    """
    root = pathlib.Path(root)
    root.mkdir(parents=True, exist_ok=True)
    final = root / f"{name}-{key(source, tokenizer, options)}"
    with _locked(root / f".{final.name}.lock"):
        partial_prefix = f".{final.name}.{socket.gethostname()}."
        for stale in root.glob(glob.escape(partial_prefix) + "*"):
            shutil.rmtree(stale, ignore_errors=True)  # its writer was killed: we hold the lock
        if not final.exists():
            partial = root / f"{partial_prefix}{os.getpid()}"
            partial.mkdir()
            try:
                _write(source, tokenizer, options, partial, shard_tokens)
                _publish(partial, final)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    manifest = shards.read_manifest(final)
    shards.check_sizes(final, manifest)
    return manifest


def _publish(partial, final):
    """Renames a finished shard set into place; another host may have been faster."""
    try:
        partial.rename(final)
    except OSError:
        if not final.exists():
            raise


@contextlib.contextmanager
def _locked(path):
    """Holds a lock file, which the system frees however the process ends."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("Waiting for another process to prepare %s", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(source, tokenizer, options, directory, shard_tokens):
    """Writes both splits and the manifest of a source into a directory."""
    bad = BadInput(options["bad_input"])
    writers = {
        split: shards.SplitWriter(directory, split, tokenizer.vocab_size, shard_tokens)
        for split in shards.SPLITS
    }
    fraction, first, more = options["validation_fraction"], options.get("validation_from", 0.0), {}
    if options["split"] == ALL_TRAIN:
        fraction, first = 0.0, 0.0
    if isinstance(source, ExampleSource):
        if options["split"] == "tail":
            raise DataError("split='tail' cuts documents; examples are whole. Try split='hash'.")
        choose = functools.partial(split_of, fraction=fraction, first=first)
        more = store.add_all(source, tokenizer, writers, choose, bad, options)
    else:
        documents = split_documents(source.documents(bad), fraction, options["split"], first)
        for text, split, where in documents:
            _add(writers[split], tokenizer, text, where)
    parts = {split: writer.close() for split, writer in writers.items()}
    if not sum(part["tokens"] for part in parts.values()):
        skipped = "; ".join(bad.examples.values())
        raise DataError(f"The source yields no text at all. {skipped}".rstrip())
    manifest = {
        **options,
        **more,
        "source": source.describe(),
        "tokenizer": tokenizer.fingerprint,
        "tokenizer_kind": tokenizer.kind,
        "shard_tokens": shard_tokens,
        "vocab_size": tokenizer.vocab_size,
        "dtype": shards.id_dtype(tokenizer.vocab_size).str,
        "skipped": dict(bad.counts),
        "skipped_examples": bad.examples,
        "splits": parts,
    }
    shards.write_manifest(directory, manifest)
    for path in directory.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def _add(writer, tokenizer, text, where):
    """Appends one document and its end token to a split."""
    writer.start_document()
    for piece in pieces(text):
        try:
            ids = tokenizer.encode(piece)
        except TokenizerError as error:
            raise DataError(f"{where}: {error}") from error
        writer.write(ids, where)
        writer.bytes += len(piece.encode())
    writer.characters += len(text)
    if tokenizer.eos >= 0:
        writer.write(np.array([tokenizer.eos]), where)


def pieces(text, size=PIECE_CHARACTERS):
    """Yields a text in pieces of at most `size` characters, cut after newlines if it can."""
    start = 0
    while len(text) - start > size:
        cut = text.rfind("\n", start, start + size) + 1 or start + size
        yield text[start:cut]
        start = cut
    yield text[start:]


def split_documents(documents, fraction, mode, first=0.0):
    """Yields (text, split name, where) for the train and validation parts of documents.

    With "hash" a document goes to validation by a keyed hash of its text, so that copies stay
    together and more data moves nothing. With "tail" each document is cut: its last `fraction`
    of characters is validation. "auto" is "tail" for a single document, else "hash". "train" holds
    back nothing. `first` shifts what is validation: hashes from there on, or so much before the
    tail.
    """
    documents = iter(documents)
    start = next(documents, None)
    if start is None:
        return
    second = next(documents, None)
    tail = mode == "tail" or (mode == "auto" and second is None)
    held = [start] if second is None else [start, second]
    for document in itertools.chain(held, documents):
        yield from _split_one(document, fraction, tail, first)


def split_hash(text):
    """Returns what decides which split a text belongs to: a whole number below 2^64."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=SPLIT_KEY).digest()
    return int.from_bytes(digest, "little")


def split_of(text, fraction, first=0.0):
    """Returns the split that a text belongs to by its hash; `first`: as of `split_documents`."""
    begin, end = round(first * GRID), round((first + fraction) * GRID)
    return "validation" if begin <= split_hash(text) * GRID >> 64 < end else "train"


def _split_one(document, fraction, tail, first):
    text, where = document.text, document.where
    if tail:
        begin, end = (int(len(text) * (1 - round(at, 9))) for at in (first + fraction, first))
        parts = (("train", text[:begin]), ("validation", text[begin:end]), ("train", text[end:]))
        for split, part in parts:
            if part:
                yield part, split, where
    else:
        yield text, split_of(text, fraction, first), where
