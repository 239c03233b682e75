"""Tokenizers: byte, character, SentencePiece and Hugging Face's, trained or loaded."""

import pathlib

from jaxllm import config
from jaxllm.tokenizers import base, byte, char, chat, hf, sentencepiece
from jaxllm.tokenizers.base import Tokenizer, TokenizerError
from jaxllm.tokenizers.folder import from_folder

TOKENIZERS = {
    "byte": byte.make,
    "char": char.make,
    "sentencepiece": sentencepiece.make,
    "hf": hf.make,
    "saved": lambda texts, *, path="": load_saved(path),
}

RESTORERS = {
    "byte": byte.restore,
    "char": char.restore,
    "sentencepiece": sentencepiece.restore,
    "hf": hf.restore,
}

__all__ = ["TOKENIZERS", "Tokenizer", "TokenizerError", "from_folder", "load", "make", "save"]


def make(section, texts):
    """Makes the tokenizer that `config.tokenizer` names.

    Args:
        section: `kind` and its options.
        texts: () -> fresh iterator of str, to learn an alphabet or to train on; read only by
            the kinds that learn.

    Raises:
        ConfigError: unknown kind or option, or nothing to learn from.
    """
    return config.make(TOKENIZERS, section, "tokenizer", texts)


def load_saved(path):
    """Loads the tokenizer of a corpus or a run, of whatever kind; learns nothing.

    Args:
        path: a directory that `save` wrote, or one that holds it as "tokenizer", as the work
            directories of training and of `jaxllm.prepare` do.

    Raises:
        TokenizerError: there is none.
    """
    place = pathlib.Path(path).expanduser()
    for folder in (place, place / "tokenizer", place / "corpus" / "tokenizer"):
        if path and (folder / base.CONFIG_FILE).is_file():
            return load(folder)
    raise TokenizerError(f"path={path!r} holds no tokenizer (seen from {pathlib.Path.cwd()}).")


def save(directory, tokenizer):
    """Stores a tokenizer and its chat template, if it has one, where `load` finds them."""
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if tokenizer.template is not None:
        chat.save(directory, tokenizer.template)
    tokenizer.save(directory)  # last: it makes the whole complete


def load(directory):
    """Loads the tokenizer that lies in a directory and verifies its fingerprint.

    The chat template beside it becomes its `template`.

    Raises:
        TokenizerError: there is none, it is damaged, or it is of a kind unknown here.
    """
    kind, settings, files = base.read(directory)
    if kind not in RESTORERS:
        raise TokenizerError(
            f"The tokenizer in {directory} is of kind {kind!r}. Known: {', '.join(RESTORERS)}."
        )
    try:
        made = RESTORERS[kind](settings, files)
    except (KeyError, TypeError) as error:
        raise TokenizerError(f"The tokenizer in {directory} is damaged: {error!r}.") from error
    made.template = chat.load(directory)
    return made
