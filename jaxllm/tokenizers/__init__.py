"""Tokenizers: byte, character, SentencePiece and Hugging Face's, trained or loaded."""

from jaxllm import config
from jaxllm.tokenizers import base, byte, char, hf, sentencepiece
from jaxllm.tokenizers.base import Tokenizer, TokenizerError

TOKENIZERS = {
    "byte": byte.make,
    "char": char.make,
    "sentencepiece": sentencepiece.make,
    "hf": hf.make,
}

RESTORERS = {
    "byte": byte.restore,
    "char": char.restore,
    "sentencepiece": sentencepiece.restore,
    "hf": hf.restore,
}

__all__ = ["TOKENIZERS", "Tokenizer", "TokenizerError", "load", "make"]


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


def load(directory):
    """Loads the tokenizer that `save` stored in a directory and verifies its fingerprint.

    Raises:
        TokenizerError: there is none, it is damaged, or it is of a kind unknown here.
    """
    kind, settings, files = base.read(directory)
    if kind not in RESTORERS:
        raise TokenizerError(
            f"The tokenizer in {directory} is of kind {kind!r}. Known: {', '.join(RESTORERS)}."
        )
    try:
        return RESTORERS[kind](settings, files)
    except (KeyError, TypeError) as error:
        raise TokenizerError(f"The tokenizer in {directory} is damaged: {error!r}.") from error
