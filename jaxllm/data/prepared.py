"""Token shards that `jaxllm.prepare` has written, as a source that needs no preparing."""

import pathlib

from jaxllm.data import shards
from jaxllm.data.errors import DataError

CORPUS = "corpus"  # in the directory that jaxllm.prepare worked in, the shards of its last run


class Prepared:
    """A corpus.

    Args:
        directory: of its shards.

    Attributes:
        directory: the same.
    """

    def __init__(self, directory):
        self.directory = directory

    def describe(self):
        """What its shards are made of."""
        return shards.read_manifest(self.directory)["source"]

    def documents(self, bad=None):
        """There are only tokens here.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"{self.directory} holds tokens, not text, so no tokenizer can learn from it.\n"
            f"  Try --config.tokenizer.kind=saved --config.tokenizer.path={self.directory}."
        )


def make(*, path=""):
    """Token shards that `python -m jaxllm.prepare --workdir=PATH` wrote.

    Args:
        path: its work directory, or a folder of shards in it.

    Raises:
        DataError: there are none.
    """
    return Prepared(find(path))


def find(path):
    """Returns the folder of shards that a path names.

    Raises:
        DataError: there is none.
    """
    place = pathlib.Path(path).expanduser()
    for folder in (place, place / CORPUS):
        if path and (folder / shards.MANIFEST).is_file():
            return folder
    raise DataError(
        f"path={path!r} holds no corpus (seen from {pathlib.Path.cwd()}).\n"
        "  Make one: python -m jaxllm.prepare --config=configs/data/text.py --workdir=…"
    )
