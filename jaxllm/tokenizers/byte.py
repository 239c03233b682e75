"""One token a byte of UTF-8: nothing to learn, nothing unknown, 259 ids."""

from typing import ClassVar

import numpy as np

from jaxllm.tokenizers import base


class ByteTokenizer:
    """Ids 0 to 255 are bytes; then the end, beginning and padding tokens."""

    kind = "byte"
    template = None
    vocab_size = 259
    eos, bos, pad = 256, 257, 258
    specials: ClassVar = {}

    def __init__(self):
        self.fingerprint = base.fingerprint(self.kind, {}, {})

    def encode(self, text):
        return np.frombuffer(base.utf8(text), np.uint8).astype(np.int32)

    def locate(self, text):
        ids = self.encode(text)
        character = np.cumsum((ids & 0xC0) != 0x80, dtype=np.int32) - 1  # not those that go on
        return ids, np.stack([character, character + 1], axis=1)

    def decode(self, ids):
        ids = np.asarray(ids).reshape(-1).astype(np.int64)
        ids = ids[(ids < 256) | (ids >= self.vocab_size)]
        ids = np.where((ids < 0) | (ids >= 256), 0xFF, ids)  # 0xFF never stands in UTF-8
        return ids.astype(np.uint8).tobytes().decode(errors="replace")

    def pieces(self):
        plain = [base.Piece(chr(byte), "text") for byte in range(128)]
        return plain + [base.Piece(base.UNKNOWN, "byte")] * 128 + [base.Piece("", "special")] * 3

    def save(self, directory):
        base.save(directory, self.kind, {}, {})


def make(texts):
    """Makes a byte tokenizer; learns nothing from `texts`."""
    del texts
    return ByteTokenizer()


def restore(settings, files):
    """Rebuilds a stored byte tokenizer."""
    del settings, files
    return ByteTokenizer()
