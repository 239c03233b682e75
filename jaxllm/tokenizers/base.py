"""What every tokenizer offers, and how one is stored, fingerprinted and checked."""

import hashlib
import json
import pathlib
import re
from typing import NamedTuple, Protocol

import numpy as np

from jaxllm.whole_files import replacing

CONFIG_FILE = "tokenizer_config.json"
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
# SentencePiece, and files that were made from its models, write spaces as this character.
SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"


class TokenizerError(ValueError):
    """A text that cannot be encoded, or a stored tokenizer that cannot be trusted."""


class Piece(NamedTuple):
    """What an id stands for.

    Attributes:
        text: its text, with U+FFFD for bytes that are no whole character.
        kind: "text"; "byte", a byte of a character that has no id, or part of a character's
            bytes; "unknown", whatever has no id; or "special", what no text produces.
    """

    text: str
    kind: str


class Tokenizer(Protocol):
    """Text to token ids and back.

    Attributes:
        kind: its name in `TOKENIZERS`.
        vocab_size: number of ids; every id of `encode` is below it.
        eos, bos, pad: ids of the end, beginning and padding tokens, -1 where it has none.
        specials: {name: id} of the special tokens that have a name.
        fingerprint: sha256 in hex over all that affects encoding.
        template: `chat.ChatTemplate` that came with it, or None.
    """

    kind: str
    vocab_size: int
    eos: int
    bos: int
    pad: int
    specials: dict[str, int]
    fingerprint: str
    template: object

    def encode(self, text: str) -> np.ndarray:
        """Returns the token ids of a text, int32[tokens], with no special tokens added.

        Raises:
            TokenizerError: the text holds what this tokenizer has no ids for.
        """

    def locate(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids of a text as `encode` does, and where each is of: int32[tokens, 2].

        The first and the last character + 1 of the text that a token is of; several tokens of one
        character have the same.

        Raises:
            TokenizerError: as `encode`.
        """

    def decode(self, ids) -> str:
        """Returns the text of token ids; never raises.

        Special tokens give no text; ids outside the vocabulary and broken byte sequences give
        U+FFFD, so that samples of an untrained model can be shown.
        """

    def pieces(self) -> list[Piece]:
        """Returns what each id stands for."""

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
    config = {
        "kind": kind,
        "fingerprint": fingerprint(kind, settings, files),
        "files": sorted(files),
        "settings": settings,
    }
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    for name, content in [*files.items(), (CONFIG_FILE, text.encode())]:
        with replacing(directory / name) as file:
            file.write(content)


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


def special_tokens(names):
    """Returns the names of special tokens, each once, in their order.

    Raises:
        TokenizerError: one is empty or no text.
    """
    for name in names:
        if not isinstance(name, str) or not name:
            raise TokenizerError(
                f"specials holds {name!r}, which is no name of a token. Name each as text, such "
                "as ('<|im_start|>',)."
            )
        utf8(name)
    return list(dict.fromkeys(names))


def refuse_specials(specials, path):
    """Raises TokenizerError where special tokens are asked of a file that has its own."""
    if specials:
        raise TokenizerError(
            f"specials={specials} are for training; {path} has its own. Leave specials out."
        )


def any_of(strings):
    """A pattern of any of the strings, the longest first; of nothing, where there are none."""
    longest = sorted(strings, key=lambda string: (-len(string), string))
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


def parts(texts, cut):
    """Yields the parts of texts between what a pattern matches: what a tokenizer is trained on.

    Args:
        texts: () -> iterator of str.
        cut: `any_of` what no piece may read like, such as special tokens.

    Raises:
        TokenizerError: half of a surrogate pair.
    """
    for text in texts():
        utf8(text)
        yield from filter(None, cut.split(text))


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
