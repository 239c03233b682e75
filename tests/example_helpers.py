"""Files of examples and sources over them, for tests."""

import json

import numpy as np

from jaxllm import data
from tests.data_helpers import BYTES, data_config

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
