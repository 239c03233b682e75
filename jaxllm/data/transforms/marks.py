"""Ids that stand for what was taken out of a text, and ids that no transform may touch."""

import functools
import re

import numpy as np

from jaxllm.config import ConfigError


class Marks:
    """What transforms know of a tokenizer.

    Args:
        tokenizer: as `tokenizers` makes; None for ids of which nothing is known.
        room: ids of the model, which may be more than the tokenizer's; 0: as many.
        start: the token that a decoder begins with; -1: the padding token, or 0 without one.

    Attributes:
        eos, start: ids, -1 for none; 0.
    """

    def __init__(self, tokenizer=None, room=0, start=-1):
        self._tokenizer = tokenizer
        self.vocab = tokenizer.vocab_size if tokenizer else 0
        self._room = max(room, self.vocab)
        self.eos, pad = (tokenizer.eos, tokenizer.pad) if tokenizer else (-1, -1)
        self.start = start if start >= 0 else max(pad, 0)

    @functools.cached_property
    def special(self):
        """Ids of special tokens, sorted, which stand for no text."""
        if self._tokenizer is None:
            return np.zeros(0, np.int64)
        of = self._tokenizer
        found = {*of.specials.values(), of.eos, of.bos, of.pad} - {-1}
        return np.array(sorted(found), np.int64)

    @functools.cached_property
    def pieces(self):
        """The tokenizer's pieces, [] where nothing is known of it."""
        return self._tokenizer.pieces() if self._tokenizer else []

    def mask(self, vocab):
        """Returns the id of the mask: [MASK] or <mask>, else the last of the model.

        Raises:
            ConfigError: the last stands for something else.
        """
        named = self._tokenizer.specials if self._tokenizer else {}
        for name in ("[MASK]", "<mask>"):
            if name in named:
                return named[name]
        return int(self._last(vocab, 1, "a mask")[0])

    def sentinels(self, vocab, count):
        """Returns `count` ids of sentinels: <extra_id_0> and on, else the model's last, downwards.

        Raises:
            ConfigError: the tokenizer has fewer, or the last stand for something else.
        """
        named = self._tokenizer.specials if self._tokenizer else {}
        numbers = {re.fullmatch(r"<extra_id_(\d+)>", name): i for name, i in named.items()}
        own = {int(match[1]): i for match, i in numbers.items() if match}
        if not own:
            return self._last(vocab, count, f"{count} sentinels")
        if len(own) < count:
            raise ConfigError(
                f"config.data.transforms: rows of this length take {count} sentinels, and the "
                f"tokenizer has {len(own)}, <extra_id_0> and on.\n"
                "  Try a shorter --config.data.length, or fewer spans: a smaller rate."
            )
        return np.array([own[n] for n in sorted(own)[:count]], np.int32)

    def _last(self, vocab, count, what):
        room = self._room or vocab
        ids = np.arange(room - 1, room - 1 - count, -1, dtype=np.int32)
        used = {self.eos, *([self._tokenizer.bos, self._tokenizer.pad] if self._tokenizer else [])}
        taken = [
            i
            for i in ids.tolist()
            if i < 0 or i in used or (i < len(self.pieces) and self.pieces[i].kind != "special")
        ]
        if taken:
            here = max(taken)
            shown = repr(self.pieces[here].text) if 0 <= here < len(self.pieces) else "no id"
            raise ConfigError(
                f"config.model.vocab={room} leaves no ids for {what}: {here} stands for {shown}.\n"
                f"  Try --config.model.vocab={max(self.vocab, 0) + count}."
            )
        return ids


NOTHING = Marks()
