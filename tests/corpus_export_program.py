"""Reads an exported TFDS data set in three ways; run as a process by test_corpus_card."""

import json
import sys

import tensorflow_datasets as tfds

from jaxllm import config, data


def main(directory):
    builder = tfds.builder_from_directory(f"{directory}/corpus/1.0.0")
    found = {
        split: [{name: value.decode() for name, value in one.items()} for one in source]
        for split, source in builder.as_data_source().items()
    }
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert counts == {split: len(rows) for split, rows in found.items()}, counts
    # As our own training reads it, by name.
    section = dict(kind="tfds", name="corpus", data_dir=directory)
    source = config.make(data.SOURCES, section, "data.sources.main")
    assert [one.text for one in source.documents()] == [one["text"] for one in found["train"]]
    assert "tensorflow" not in sys.modules
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
