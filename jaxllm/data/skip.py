"""Rows that count nothing: whole steps, and documents wherever they come."""

import hashlib
import pathlib

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.data.errors import DataError
from jaxllm.data.rows import Over


class Skipping(Over):
    """A source of which some steps and documents have weight 0; all else stays in its place.

    Args:
        source: as `data.open_split` returns.
        steps: numbers of updates, from 1.
        documents: {(source, number of the document)}.

    Attributes:
        digest: of both, which all hosts must have alike.
    """

    def __init__(self, source, steps, documents):
        super().__init__(source)
        self._steps, self._documents = np.array(sorted(steps), np.int64), frozenset(documents)
        text = f"{sorted(steps)} {sorted(documents)}"
        self.digest = hashlib.sha256(text.encode()).hexdigest()

    def take(self, n):
        """Returns rows `n` of the training order as a batch."""
        batch = self._source.take(n)
        batch["weight"][np.isin(n // self.batch + 1, self._steps)] = 0
        if self._documents:
            for row, (name, _, pieces) in enumerate(self._source.where(n)):
                skipped = [(name, piece.document) in self._documents for piece in pieces]
                if any(skipped):
                    silence(batch, row, np.array(skipped))
        return batch


def silence(batch, row, skipped):
    """Gives weight 0 to what a row has of some of its documents.

    Where a row counts as one, or a transform has made one stretch of its documents, all of it is.

    Args:
        batch: {name: array}; its weight is changed.
        row: number of the row.
        skipped: bool[documents of the row], in their order.
    """
    weight, segment = batch["weight"], batch["segment"][row]
    if weight.ndim == 1 or segment.max(initial=0) < len(skipped):
        weight[row] = 0
    else:
        weight[row] *= ~np.append(False, skipped)[segment]


def read(path, known):
    """Returns {(source, document)} of a file with "SOURCE DOCUMENT" a line; # begins a comment.

    Args:
        path: of the file; "" for none.
        known: {name: documents} of the sources.

    Raises:
        DataError: the file cannot be read, or a line names no document.
    """
    if not path:
        return set()
    try:
        lines = pathlib.Path(path).expanduser().read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"config.data.skip.documents={path!r} cannot be read: {error}.") from error
    found = set()
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or words[0] not in known or not words[1].isdigit():
            raise DataError(
                f"{path}:{number}: {line!r} is no source and number of a document, such as "
                f"{next(iter(known))} 17. Sources: {', '.join(known)}."
            )
        if int(words[1]) >= known[words[0]]:
            raise DataError(
                f"{path}:{number}: source {words[0]!r} has {known[words[0]]:,} documents, numbered "
                "from 0."
            )
        found.add((words[0], int(words[1])))
    return found


def check(steps, documents):
    """Raises ConfigError for a skip list that cannot be; reads no file."""
    del documents
    for step in steps:
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise ConfigError(
                f"config.data.skip.steps: {step!r} is no number of an update, from 1.\n"
                "  Try --config.data.skip.steps=(5,6)."
            )
