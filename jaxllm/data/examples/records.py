"""Records of files: rows of JSONL, CSV and Parquet as {field: value}, and examples of them.

A row that cannot be read, or of which no example can be made, is told with file and line.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

from jaxllm.data import files, tables
from jaxllm.data.errors import BadInput, DataError
from jaxllm.data.sources import LIMIT_BYTES, Document, FileSource, json_lines, missing, read_file

ROWS = 1024  # of a Parquet file at once
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


class Part(NamedTuple):
    """A stretch of an example.

    Attributes:
        content: text, or ids as an int array.
        role: one of `ROLES` of `store`: what it is in the example.
        loss: whether its tokens are to be predicted.
        marks: numbers of characters, each (first, last + 1, value): the tokens of them get the
            value in the array "tags" of the token stream.
    """

    content: object
    role: str
    loss: bool = False
    marks: tuple = ()


class Example(NamedTuple):
    """What belongs together: parts, in order, and what is known of them.

    Attributes:
        parts: (Part, …).
        where: file and line, for messages.
        label: a class's name, a number, or (part, first character, last + 1); None for none.
        group: examples of one group go to one split; "" for the text of the first part.
    """

    parts: tuple
    where: str
    label: object = None
    group: str = ""


class Unfit(ValueError):  # noqa: N818  it is no error where bad input is skipped
    """A row of which no example can be made: a short reason, and the detail."""

    def __init__(self, reason, detail):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class ExampleSource(FileSource):
    """Examples of files, one file after another.

    Args:
        kind: as in `SOURCES`.
        paths: the files.
        make: function of a module, (record, where, **options) -> Example; raises Unfit.
        options: its keyword arguments.
        fields: names of the fields to be read.
        where: "field=value" that a row must have; "" for all rows.
        task: what the examples are for, one of `store.TASKS`.
        classes: names of classes or tags; () for those that the files have, sorted.
        settings: {name: value} for those who read the rows, such as how far windows overlap.
    """

    def __init__(
        self, kind, paths, make, options, *, fields, where, task, classes=(), settings=None
    ):
        super().__init__(kind, paths, None, options)
        self._make, self._fields, self._where = make, tuple(fields), where
        self.task, self.classes, self.settings = task, tuple(classes), dict(settings or {})
        self._only = where.partition("=")[::2]
        if where and not all(self._only):
            raise DataError(f"where={where!r} is no field and value, such as source=news.")

    def describe(self):
        own = {"where": self._where, "classes": self.classes, **self.settings}
        return {**super().describe(), **own}

    def only(self, *paths):
        """Returns the same source over some of its files."""
        more = {"fields": self._fields, "where": self._where, "task": self.task}
        more |= {"classes": self.classes, "settings": self.settings}
        return ExampleSource(self._kind, paths, self._make, self._options, **more)

    def examples(self, bad=None):
        """Yields the Examples in a fixed order; reports what is none to `bad`."""
        bad = bad or BadInput()
        field, value = self._only
        wanted = (*self._fields, *([field] if field else ()))
        for path in self.paths:
            for where, record in read_file(path, bad, functools.partial(read, fields=wanted)):
                if field and field not in record:
                    bad("missing field", where, missing(field, record))
                    continue
                if field and str(record[field]) != value:
                    continue
                try:
                    yield self._make(record, where, **self._options)
                except Unfit as error:
                    bad(error.reason, where, error.detail)

    def documents(self, bad=None):
        """Yields every example's texts as one Document, for tokenizers that learn."""
        for example in self.examples(bad):
            texts = [part.content for part in example.parts if isinstance(part.content, str)]
            yield Document("\n".join(texts), example.where)


def read(path, bad, fields):
    """Yields (where, {field: value}) of the rows of a file, by its suffix."""
    name = path.name.removesuffix(path.suffix) if path.suffix in files.PACKED else path.name
    if name.endswith(".parquet"):
        yield from _parquet(path, bad, fields)
    elif name.endswith((".csv", ".tsv")):
        yield from _csv(path, bad, name)
    else:
        yield from json_lines(path, bad, LIMIT_BYTES, advice="")


def _csv(path, bad, name):
    delimiter = "\t" if name.endswith(".tsv") else ","
    rows = tables.parsed(path, LIMIT_BYTES, delimiter, '"', bad)
    _, header = next(rows, (0, None))
    if header is None:
        bad("empty file", path)
        return
    for number, row in rows:
        where = f"{path}:{number}"
        if len(row) == len(header):
            yield where, dict(zip(header, row, strict=True))
        else:
            bad("uneven row", where, f"{len(row)} fields; the header has {len(header)}")


def _parquet(path, bad, fields):
    arrow = tables.library()
    done = 0
    with path.open("rb") as file:
        try:
            table = arrow.parquet.ParquetFile(file, page_checksum_verification=True)
            known = [field for field in fields if field in table.schema_arrow.names]
            for batch in table.iter_batches(ROWS, columns=known):
                for i, record in enumerate(batch.to_pylist(), 1):
                    yield f"{path}:{done + i}", record
                done += len(batch)
        except (arrow.ArrowException, ValueError) as error:
            bad("corrupt file", f"{path}:{done + 1}", tables.line(error))
            return
    if not done:
        bad("empty file", path, "it has no rows")


def text(record, field, empty=False):
    """Returns a field of a record, which must be text.

    Raises:
        Unfit: it is missing, no text, or empty where that is not allowed.
    """
    value = get(record, field)
    if not isinstance(value, str):
        raise Unfit("field is not text", f"{field!r} is a {type(value).__name__}")
    if not value and not empty:
        raise Unfit("empty text", f"{field!r} is empty")
    return whole(value, field)


def get(record, field):
    """Returns a field of a record.

    Raises:
        Unfit: it is missing.
    """
    if field not in record:
        raise Unfit("missing field", missing(field, record))
    return record[field]


def whole(value, field):
    """Returns a text.

    Raises:
        Unfit: it holds half of a surrogate pair.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        detail = f"{field!r} holds half of a surrogate pair"
        raise Unfit("undecodable bytes", detail) from None
    return value


def entries(record, field):
    """Returns a field that is a list.

    Raises:
        Unfit: it is missing or none.
    """
    value = get(record, field)
    if not isinstance(value, list):
        raise Unfit("field is not a list", f"{field!r} is a {type(value).__name__}")
    return value


def mapping(value, field):
    """Returns a value that must be an object.

    Raises:
        Unfit: it is none.
    """
    if not isinstance(value, Mapping):
        raise Unfit("field is not an object", f"{field!r} is a {type(value).__name__}")
    return value
