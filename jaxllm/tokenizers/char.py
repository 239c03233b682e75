"""One token a character, from an alphabet learned from the texts."""

from typing import ClassVar

import numpy as np

from jaxllm.tokenizers import base


class CharTokenizer:
    """Ids are places in a sorted alphabet; the end token, where wanted, comes after it.

    Args:
        alphabet: distinct characters in ascending order.
        eos: whether there is an end token.
    """

    kind = "char"
    template = None
    bos = pad = -1
    specials: ClassVar = {}

    def __init__(self, alphabet, eos):
        self._settings = {"alphabet": alphabet, "eos": eos}
        self._codes = np.frombuffer(alphabet.encode("utf-32-le"), "<u4")
        self._id_of = np.full(int(self._codes[-1]) + 2, -1, np.int32)  # last entry: unknown
        self._id_of[self._codes] = np.arange(len(alphabet), dtype=np.int32)
        self.eos = len(alphabet) if eos else -1
        self.vocab_size = len(alphabet) + eos
        self.fingerprint = base.fingerprint(self.kind, self._settings, {})

    def encode(self, text):
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = self._id_of[np.minimum(codes, len(self._id_of) - 1)]
        if ids.size and ids.min() < 0:
            where = base.place(text, int(np.argmax(ids < 0)))
            raise base.TokenizerError(
                f"{where} is not in the alphabet of {len(self._codes)} characters. Learn the "
                "alphabet from these texts too, or use --config.tokenizer.kind=byte."
            )
        return ids

    def locate(self, text):
        ids = self.encode(text)
        character = np.arange(len(ids), dtype=np.int32)
        return ids, np.stack([character, character + 1], axis=1)

    def decode(self, ids):
        ids = np.asarray(ids).reshape(-1).astype(np.int64)
        ids = ids[ids != self.eos] if self.eos >= 0 else ids
        known = (ids >= 0) & (ids < len(self._codes))
        codes = self._codes[np.where(known, ids, 0)]
        return np.where(known, codes, ord(base.UNKNOWN)).astype("<u4").tobytes().decode("utf-32-le")

    def pieces(self):
        end = [base.Piece("", "special")] * (self.eos >= 0)
        return [base.Piece(character, "text") for character in self._settings["alphabet"]] + end

    def save(self, directory):
        base.save(directory, self.kind, self._settings, {})


def make(texts, *, eos=False):
    """Learns the alphabet of `texts`.

    Args:
        texts: () -> iterator of str.
        eos: add an end token, which the data pipeline puts after each document. Off for one
            long text, whose end is never seen.

    Raises:
        TokenizerError: no characters to learn from, or half of a surrogate pair.
    """
    alphabet = set()
    for text in texts():
        base.utf8(text)
        alphabet.update(text)
    if not alphabet:
        raise base.TokenizerError("there are no texts to learn an alphabet from.")
    return CharTokenizer("".join(sorted(alphabet)), eos)


def restore(settings, files):
    """Rebuilds a stored character tokenizer."""
    del files
    return CharTokenizer(**settings)
