"""Prepares a small TFDS data set and reads it; run as a process by test_data_sources."""

import sys

import tensorflow_datasets as tfds

from jaxllm import config, data
from jaxllm.data.errors import BadInput


class Poems(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(20):
            yield i, {"text": f"roses {i} \u00e9"}


def main(directory):
    Poems(data_dir=directory, file_format="array_record").download_and_prepare()
    section = dict(kind="tfds", name="poems", data_dir=directory)
    source = config.make(data.SOURCES, section, "data.sources.main")
    texts = sorted(d.text for d in source.documents())
    assert texts == sorted(f"roses {i} \u00e9" for i in range(20)), texts
    section["field"] = "body"
    bad = BadInput("skip")
    assert not list(config.make(data.SOURCES, section, "data.sources.main").documents(bad))
    assert bad.counts == {"missing field": 20}, bad.counts
    section["name"] = "odes"
    try:
        config.make(data.SOURCES, section, "data.sources.main")
    except config.ConfigError as error:
        print(error)
    assert "tensorflow" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1])
