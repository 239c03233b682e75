"""A small data config and tokenizer for the tests of the data pipeline."""

from ml_collections import ConfigDict

from jaxllm import data, tokenizers

BYTES = tokenizers.make({"kind": "byte"}, None)


def data_config(batch=8, length=16, **changes):
    """A data config with one synthetic source; `changes` replace fields."""
    fields = {
        "sources": {"main": {"kind": "synthetic", "documents": 40, "words": 12}},
        "batch": batch,
        "length": length,
        "validation_fraction": 0.1,
        "bad_input": "error",
        "cache_dir": "",
        "prefetch": 2,
    }
    return ConfigDict({**fields, **changes})


def open_source(config, directory, split="train", seed=0, tokenizer=BYTES):
    """Prepares and opens one split."""
    data.prepare(config, tokenizer, directory)
    return data.open_split(config, tokenizer, directory, split, seed)


def text_config(path, **changes):
    """A config that reads text files."""
    return data_config(sources={"main": {"kind": "text", "path": str(path)}}, **changes)
