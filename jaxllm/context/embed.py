"""Embeddings of texts by an encoder of ours, as it was trained to make them."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import trees
from jaxllm.config import ConfigError
from jaxllm.data.examples.store import marks
from jaxllm.models.config import meaning

SHORTEST = 16  # tokens a row that texts are padded to, or twice that, and so on
ROWS = (1, 8, 32)  # texts at a time: a question alone, some passages, many


class Embedder:
    """A function [text] -> float32[n, D], each vector of length 1.

    A text stands in a row as in training: behind the places of a soft prompt or a prefix and [CLS],
    and before [SEP], where there are any. Rows are padded to a few lengths, so that few programs
    are compiled.

    Args:
        model: `models.Model` with task="embed".
        params: its parameters.
        tokenizer: see `jaxllm.tokenizers.Tokenizer`.

    Attributes:
        room: most tokens of a text, marks not counted; what is longer is cut.
        cut: how many texts were.
        name: says which function it is: another one for other weights or another tokenizer.
        tokenizer: as given.

    Raises:
        ConfigError: the model makes no embeddings, or its rows have no room for a text.
    """

    def __init__(self, model, params, tokenizer):
        c = model.config
        if c.task != "embed":
            raise ConfigError(
                f"config.model.task={c.task!r}: this run's model makes no embeddings.\n"
                "  Take a run that was trained with --config.model.task=embed."
            )
        if tokenizer.vocab_size > c.vocab:
            raise ConfigError(
                f"the tokenizer has {tokenizer.vocab_size:,} ids and the model {c.vocab:,} rows of "
                "embeddings.\n  Give the tokenizer of this model."
            )
        known = marks(tokenizer)
        self._first = [0] * model.lead + ([known["cls"]] if known["cls"] >= 0 else [])
        self._last = [known["sep"]] if known["sep"] >= 0 else []
        self.room = c.positions - len(self._first) - len(self._last)
        if self.room < 1:
            raise ConfigError(
                f"config.model.positions={c.positions} has no room for a text and its marks.\n"
                "  Take a run of longer rows."
            )
        self.cut, self.tokenizer, self._longest = 0, tokenizer, c.positions
        self._params = jax.jit(model.whole)(params)
        self.name = _fingerprint(c, params, tokenizer)

        def run(params, tokens_BT, length_B):
            position_1T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
            batch = {
                "tokens": tokens_BT,
                "position": jnp.broadcast_to(position_1T, tokens_BT.shape),
                "segment": (position_1T < length_B[:, None]).astype(jnp.int32),
            }
            x_BTD, _ = model.hidden(params, batch)
            z_BD = model.task(params, x_BTD, batch).astype(jnp.float32)
            return z_BD * jax.lax.rsqrt(jnp.sum(jnp.square(z_BD), -1, keepdims=True) + 1e-12)

        self._run = jax.jit(run)

    def __call__(self, texts):
        """Returns the embeddings of texts, float32[n, D]."""
        rows = [self._row(text) for text in texts]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        found, start = [None] * len(rows), 0
        while start < len(order):
            left = len(order) - start
            size = next((n for n in ROWS if n >= left), ROWS[-1])
            chosen = order[start : start + size]
            length = self._padded(max(len(rows[i]) for i in chosen))
            tokens_BT = np.zeros((size, length), np.int32)
            for place, i in enumerate(chosen):
                tokens_BT[place, : len(rows[i])] = rows[i]
            length_B = np.array([len(rows[i]) for i in chosen] + [1] * (size - len(chosen)))
            made_BD = np.asarray(self._run(self._params, tokens_BT, length_B))
            for place, i in enumerate(chosen):
                found[i] = made_BD[place]
            start += size
        width = self._params["embed"].shape[1]
        return np.stack(found) if found else np.zeros((0, width), np.float32)

    def _row(self, text):
        ids = self.tokenizer.encode(text)
        self.cut += len(ids) > self.room
        return np.concatenate([self._first, ids[: self.room], self._last]).astype(np.int32)

    def _padded(self, length):
        padded = SHORTEST
        while padded < length:
            padded *= 2
        return min(padded, self._longest)


def _fingerprint(c, params, tokenizer):
    """sha256 in hex over all that an embedding depends on."""
    key = hashlib.sha256(f"{sorted(meaning(c).items())} {c.dtype} {tokenizer.fingerprint}".encode())
    for path, leaf in sorted(trees.flatten(params).items()):
        key.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
        key.update(np.ascontiguousarray(np.asarray(leaf)).tobytes())
    return key.hexdigest()
