"""Hugging Face `tokenizer.json` files."""

import json
import pathlib

import numpy as np
import tokenizers

from jaxllm.config import near
from jaxllm.tokenizers import base, guard

TOKENIZER_FILE = "tokenizer.json"
SPECIALS = ("eos", "bos", "pad")


class HfTokenizer:
    """A tokenizer.json.

    Documents are plain text here: "<|endoftext|>" in one is 13 characters, not the token, and
    the file's own truncation, padding and added tokens are off.

    Args:
        content: bytes of the file.
        specials: {"eos" | "bos" | "pad": token as text, "" where absent}.
    """

    kind = "hf"

    def __init__(self, content, specials):
        guard.check(self.kind, content)
        self._files, self._settings = {TOKENIZER_FILE: content}, specials
        self._tokenizer = tokenizers.Tokenizer.from_str(content.decode())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        self.eos, self.bos, self.pad = (
            self._special(name, specials[name], vocabulary) for name in SPECIALS
        )
        self.fingerprint = base.fingerprint(self.kind, specials, self._files)

    @staticmethod
    def _special(name, token, vocabulary):
        if not token:
            return -1
        if token not in vocabulary:
            raise base.TokenizerError(
                f"{name}={token!r} is not in its vocabulary.{near(token, vocabulary)}"
            )
        return vocabulary[token]

    def encode(self, text):
        base.utf8(text)
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library's panics are no Exception
            raise base.TokenizerError(f"tokenizer.json fails on this text: {error}") from error
        return np.array(encoding.ids, np.int32)

    def decode(self, ids):
        return base.decode_runs(ids, self.vocab_size, self._decode)

    def _decode(self, ids):
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, directory):
        base.save(directory, self.kind, self._settings, self._files)


def make(texts, *, path="", eos="", bos="", pad=""):
    """Loads a tokenizer.json; learns nothing from `texts`.

    Args:
        path: the file, or the directory that holds it.
        eos, bos, pad: special tokens as text, such as "</s>"; "" reads them from the
            tokenizer_config.json or special_tokens_map.json beside the file, if there is one.

    Raises:
        TokenizerError: no such file, a damaged one, or a special token it does not have.
    """
    del texts
    if not path:
        raise base.TokenizerError("path is empty; name a tokenizer.json.")
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        path = path / TOKENIZER_FILE
    content = guard.read(path)
    beside = _beside(path.parent)
    given = {"eos": eos, "bos": bos, "pad": pad}
    return HfTokenizer(content, {name: given[name] or beside[name] for name in SPECIALS})


def _beside(directory):
    """Returns the special tokens that the files beside a tokenizer.json name, "" for none."""
    found = dict.fromkeys(SPECIALS, "")
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            record = dict(json.loads(guard.read(path)))
        except (ValueError, TypeError, RecursionError) as error:
            raise base.TokenizerError(f"{path} is not a JSON object: {error}.") from error
        for special in SPECIALS:
            value = {f"{special}_token": None, **record}[f"{special}_token"]
            if isinstance(value, dict) and "content" in value:
                value = value["content"]
            if isinstance(value, str):
                found[special] = value
    return found


def restore(settings, files):
    """Rebuilds a stored Hugging Face tokenizer."""
    return HfTokenizer(files[TOKENIZER_FILE], {name: settings[name] for name in SPECIALS})
