"""Where documents come from: the embedded corpus, text files, JSONL, made-up text.

A source has `documents(bad)`, which yields `Document`s in a fixed order and reports what it
cannot use to `bad`, and `describe()`, whose value changes whenever the documents might. One that
reads files is a `FileSource`, whose files can be read apart.
"""

import functools
import hashlib
import json
import pathlib
import random
import types
from collections.abc import Mapping
from typing import NamedTuple

from jaxllm.data import files
from jaxllm.data.errors import BadInput, DataError

SHAKESPEARE = pathlib.Path(__file__).parent / "shakespeare" / "input.txt"
LIMIT_BYTES = 1 << 28


class Document(NamedTuple):
    """One document: its text, its file and line for messages, and what else its source knows."""

    text: str
    where: str
    notes: Mapping = types.MappingProxyType({})


class FileSource:
    """Documents of files, one file after another.

    Args:
        kind: as in `SOURCES`.
        paths: the files.
        read: generator function of a module, (path, bad, **options) -> Documents.
        options: its keyword arguments.

    Attributes:
        paths: the files, in the order in which they are read.
    """

    def __init__(self, kind, paths, read, options):
        self.paths = list(paths)
        self._kind, self._read, self._options = kind, read, options

    def describe(self):
        return {"kind": self._kind, "files": files.describe(self.paths), **self._options}

    def sizes(self):
        """Returns the size in bytes of every file."""
        return [size for _, size, _ in files.describe(self.paths)]

    def only(self, *paths):
        """Returns the same source over some of its files."""
        return FileSource(self._kind, paths, self._read, self._options)

    def documents(self, bad=None):
        bad = bad or BadInput()
        for path in self.paths:
            yield from read_file(path, bad, functools.partial(self._read, **self._options))


def read_file(path, bad, read):
    """Yields the documents that `read(path, bad)` yields; reports what stops it."""
    try:
        yield from read(path, bad)
    except files.CorruptError as error:
        bad("corrupt compressed data", path, str(error))
    except files.TooLongError as error:
        bad("document too long", path, f"{error}; set limit")
    except OSError as error:
        bad("unreadable file", path, str(error))


def read_text(path, bad, separator, limit):
    """Yields the Documents of a text file; see `text`."""
    decode, parts, size, first_line, empty = files.Decoder(), [], 0, 1, True
    try:
        for text in _texts(path, decode):
            empty = False
            pieces = [text]
            if separator:
                # The tail of earlier text is joined on, lest a separator be cut in two.
                parts.append(text)
                pieces = "".join(parts).split(separator)
                parts, size = [], 0
                for piece in pieces[:-1]:
                    if piece:
                        yield Document(piece, f"{path}:{first_line}")
                    first_line += piece.count("\n") + separator.count("\n")
            parts.append(pieces[-1])
            size += len(pieces[-1])
            if size > limit:
                raise files.TooLongError(f"longer than {limit:,} characters")
    except UnicodeDecodeError as error:
        bad("undecodable bytes", f"{path}:{decode.line}", f"{error.reason} (not UTF-8)")
        return
    except files.CorruptError as error:
        bad("corrupt compressed data", f"{path}:{decode.line}", str(error))
        return
    except files.TooLongError as error:
        bad("document too long", f"{path}:{first_line}", f"{error}; set separator or limit")
        return
    if empty:
        bad("empty file", path)
    elif size:
        yield Document("".join(parts), f"{path}:{first_line}")


def _texts(path, decode):
    for chunk in files.chunks(path):
        if text := decode(chunk):
            yield text
    if text := decode(b"", final=True):
        yield text


class Shakespeare(FileSource):
    """The embedded corpus, the same wherever this package lies."""

    def describe(self):
        digest = hashlib.sha256(SHAKESPEARE.read_bytes()).hexdigest()
        return {"kind": "shakespeare", "sha256": digest}


def shakespeare():
    """The embedded corpus: tiny Shakespeare, one document of 1,115,394 characters."""
    options = {"separator": "", "limit": LIMIT_BYTES}
    return Shakespeare("shakespeare", [SHAKESPEARE], read_text, options)


def text(*, path="", separator="", limit=LIMIT_BYTES):
    """Text files (.txt, .md, also as .gz, .bz2, .xz or .zst), each one document.

    Args:
        path: a file, a directory, a glob, or several joined by commas.
        separator: where a file is cut into documents; "" keeps it whole.
        limit: most characters of one document, which bounds memory.

    Raises:
        DataError: no file matches.
    """
    options = {"separator": separator, "limit": limit}
    return FileSource("text", files.find(path, (".txt", ".md")), read_text, options)


def read_jsonl(path, bad, field, limit):
    """Yields the Documents of a JSONL file; see `jsonl`."""
    for where, record in json_lines(path, bad, limit):
        document = check_field(record, field, where, bad)
        if document is not None:
            yield document


def json_lines(path, bad, limit, advice="; set limit"):
    """Yields (file and line, {field: value}) of the lines of a JSONL file.

    Args:
        path: of the file, also compressed.
        bad: what is no such line is reported to it.
        limit: most bytes of a line.
        advice: behind the report of a longer one.
    """
    number = 0
    try:
        for number, line in files.lines(path, limit):
            where = f"{path}:{number}"
            if line is None:
                bad("line too long", where, f"longer than {limit:,} bytes{advice}")
                continue
            record = parse_line(line, where, bad)
            if record is not None:
                yield where, record
    except files.CorruptError as error:
        bad("corrupt compressed data", f"{path}:{number + 1}", str(error))
        return
    if not number:
        bad("empty file", path)


def parse_line(line, where, bad):
    """Returns {field: value} of one JSONL line, or None after reporting it to `bad`."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return bad("undecodable bytes", where, f"{error.reason} (not UTF-8)")
    except (ValueError, RecursionError) as error:
        return bad("invalid JSON", where, str(error))
    return record if isinstance(record, dict) else bad("not a JSON object", where)


def check_field(record, field, where, bad):
    """Returns a Document of a field of a record, or None after reporting it to `bad`."""
    if field not in record:
        return bad("missing field", where, missing(field, record))
    return check_text(record[field], field, where, bad)


def missing(field, record):
    """Says which fields a record has in the place of one."""
    return f"{field!r} is not among {', '.join(map(repr, list(record)[:8])) or 'none'}"


def check_text(value, field, where, bad):
    """Returns a Document of a text value, or None after reporting it to `bad`."""
    if not isinstance(value, str):
        return bad("field is not text", where, f"{field!r} is a {type(value).__name__}")
    if not value:
        return bad("empty text", where, f"{field!r} is empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        return bad("undecodable bytes", where, f"{field!r} holds half of a surrogate pair")
    return Document(value, where)


def jsonl(*, path="", field="text", limit=LIMIT_BYTES):
    """JSONL files (.jsonl, .json, also as .gz, .bz2, .xz or .zst), a document a line.

    Args:
        path: a file, a directory, a glob, or several joined by commas.
        field: name of the field that holds the text.
        limit: most bytes of one line, which bounds memory.

    Raises:
        DataError: no file matches, or no field is named.
    """
    if not field:
        raise DataError("field is empty; name the field that holds the text.")
    options = {"field": field, "limit": limit}
    return FileSource("jsonl", files.find(path, (".jsonl", ".json")), read_jsonl, options)


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


class SyntheticSource:
    """Made-up documents that count upwards in words, so that a tiny model can learn them."""

    def __init__(self, documents, words, seed):
        self._documents, self._words, self._seed = documents, words, seed

    def describe(self):
        return {"kind": "synthetic", **{k.strip("_"): v for k, v in vars(self).items()}}

    def documents(self, bad=None):
        del bad
        for i in range(self._documents):
            draw = random.Random(f"{self._seed}/{i}").random  # stable across Python versions
            start, step = int(10 * draw()), 1 + int(3 * draw())
            length = max(1, int(self._words * (0.5 + draw())))
            count = [NUMBERS[(start + step * j) % 10] for j in range(length)]
            yield Document(" ".join(count) + ".\n", f"synthetic:{i}")


def synthetic(*, documents=300, words=60, seed=0):
    """Made-up documents with a pattern to learn, for quick runs.

    Args:
        documents: how many.
        words: mean length in words.
        seed: another seed, other documents.

    Raises:
        DataError: no documents or words are asked for.
    """
    if documents < 1 or words < 1:
        raise DataError(f"documents={documents} and words={words} must be at least 1.")
    return SyntheticSource(documents, words, seed)
