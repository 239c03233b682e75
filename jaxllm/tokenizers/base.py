"""What every tokenizer offers, and how one is stored, fingerprinted and checked."""

import hashlib
import json
import os
import pathlib
from typing import Protocol

import numpy as np

CONFIG_FILE = "tokenizer_config.json"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class TokenizerError(ValueError):
    """A text that cannot be encoded, or a stored tokenizer that cannot be trusted."""


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        kind: its name in `TOKENIZERS`.
        vocab_size: number of ids; every id of `encode` is below it.
        eos, bos, pad: ids of the end, beginning and padding tokens, -1 where it has none.
        fingerprint: sha256 in hex over all that affects encoding.
    """

    kind: str
    vocab_size: int
    eos: int
    bos: int
    pad: int
    fingerprint: str

    def encode(self, text: str) -> np.ndarray:
        """Returns the token ids of a text, int32[tokens], with no special tokens added.

        Raises:
            TokenizerError: the text holds what this tokenizer has no ids for.
        """

    def decode(self, ids) -> str:
        """Returns the text of token ids; never raises.

        Special tokens give no text; ids outside the vocabulary and broken byte sequences give
        U+FFFD, so that samples of an untrained model can be shown.
        """

    def save(self, directory) -> None:
        """Writes tokenizer_config.json and the tokenizer's files into a directory."""


def fingerprint(kind, settings, files):
    """Returns sha256 in hex over a tokenizer's kind, settings and file contents."""
    digest = hashlib.sha256()
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    record = {"kind": kind, "settings": settings, "files": hashes}
    digest.update(json.dumps(record, sort_keys=True).encode())
    return digest.hexdigest()


def save(directory, kind, settings, files):
    """Writes a tokenizer; the config comes last, so a killed save leaves no loadable half.

    Args:
        directory: made where missing.
        settings: what JSON can hold, all that the loader needs besides the files.
        files: {file name: bytes}.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "kind": kind,
        "fingerprint": fingerprint(kind, settings, files),
        "files": sorted(files),
        "settings": settings,
    }
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    for name, content in [*files.items(), (CONFIG_FILE, text.encode())]:
        partial = directory / f".{name}.{os.getpid()}"
        partial.write_bytes(content)
        partial.replace(directory / name)


def read(directory):
    """Reads what `save` wrote and verifies its fingerprint.

    Returns:
        (kind, settings, {file name: bytes}).

    Raises:
        TokenizerError: no tokenizer there, an unreadable config, or a file that has changed.
    """
    path = pathlib.Path(directory) / CONFIG_FILE
    if not path.is_file():
        raise TokenizerError(f"No tokenizer in {directory}: {CONFIG_FILE} is missing.")
    try:
        config = json.loads(path.read_bytes())
        kind, settings, names = config["kind"], config["settings"], config["files"]
        stored = config["fingerprint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TokenizerError(f"{path} is not a tokenizer config: {error!r}.") from error
    files = {}
    for name in names:
        file = path.parent / pathlib.PurePath(str(name)).name
        if not file.is_file():
            raise TokenizerError(f"{path} names {name!r}, which is missing.")
        files[name] = file.read_bytes()
    found = fingerprint(kind, settings, files)
    if found != stored:
        raise TokenizerError(
            f"The tokenizer in {directory} has changed since it was stored: fingerprint "
            f"{found[:12]}, stored {str(stored)[:12]}. Restore its files from a backup; a model "
            "trained with the old ones would read other words."
        )
    return kind, settings, files


def utf8(text):
    """Returns the UTF-8 bytes of a text.

    Raises:
        TokenizerError: the text holds half of a surrogate pair, which has no UTF-8 form.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{place(text, error.start)} is half of a surrogate pair and no character."
        ) from error


def place(text, index):
    """Says which character stands at an index of a text, with line and column from 1."""
    before = text[:index]
    column = index - (before.rfind("\n") + 1) + 1
    return (
        f"Character {text[index]!a} (U+{ord(text[index]):04X}) at line "
        f"{before.count(chr(10)) + 1}, column {column}"
    )


def decode_runs(ids, size, decode):
    """Decodes ids below `size` with decode(list), and puts U+FFFD where others stand."""
    ids = np.asarray(ids).reshape(-1).astype(np.int64)
    bad = np.flatnonzero((ids < 0) | (ids >= size))
    runs = np.split(ids, bad)
    texts = [decode(runs[0].tolist())]
    texts += [UNKNOWN + decode(run[1:].tolist()) for run in runs[1:]]
    return "".join(texts)
