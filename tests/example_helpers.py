"""Files of examples and sources over them, for tests."""

import json

import numpy as np

from jaxllm import data, tokenizers
from tests.data_helpers import BYTES, data_config

CHAT_TEXT = "the quick brown fox said: no. User system assistant, abc def ghi.\n" * 30
SUMMARY = {"input": "document", "target": "summary", "prefix": "sum: "}


def write(path, rows):
    """Writes rows as JSONL and returns the path as text."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def words(rng, low, high):
    """A text of that many characters."""
    letters = rng.choice(list("abcdefghij   "), rng.integers(low, high))
    return "x" + "".join(letters)


def pair_rows(count=60, seed=0, longest=30):
    rng = np.random.default_rng(seed)
    return [
        {"document": words(rng, 3, longest), "summary": words(rng, 1, 12)} for _ in range(count)
    ]


def config_of(path, kind, rows, length=32, **changes):
    """A config of one source; `source` holds its options."""
    section = {"kind": kind, "path": path, **changes.pop("source", {})}
    return data_config(sources={"main": section}, rows=rows, length=length, **changes)


def opened(config, directory, split="train", steps=0, tokenizer=BYTES, seed=0):
    data.check(config)
    data.prepare(config, tokenizer, directory)
    return data.open_split(config, tokenizer, directory, split, seed, steps=steps)


def pairs_of(directory, rows="pairs", count=60, **changes):
    """Rows of `pair_rows`."""
    path = write(directory / "pairs.jsonl", pair_rows(count))
    config = config_of(path, "pairs", rows, source=SUMMARY, **changes)
    return opened(config, directory)


def chat_tokenizer_of():
    """A tokenizer with the special tokens of ChatML."""
    specials = ("<|im_start|>", "<|im_end|>")
    section = {"kind": "hf", "vocab_size": 300, "specials": specials}
    return tokenizers.make(section, lambda: iter([CHAT_TEXT]))


def talk(rng, turns, system=False):
    messages = [{"role": "system", "content": words(rng, 3, 12)}] if system else []
    for _ in range(turns):
        messages.append({"role": "user", "content": words(rng, 3, 25)})
        messages.append({"role": "assistant", "content": words(rng, 1, 20)})
    return messages


def talks(count=40, longest=4):
    rng = np.random.default_rng(0)
    return [talk(rng, int(rng.integers(1, longest + 1)), bool(i % 3)) for i in range(count)]
