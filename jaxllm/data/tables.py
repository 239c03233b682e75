"""Documents of tables: a text column of CSV or Parquet files and of Hugging Face data sets."""

import csv
import json
import pathlib
import re

from jaxllm.data import files
from jaxllm.data.errors import DataError
from jaxllm.data.sources import LIMIT_BYTES, Document, FileSource, check_text

_ROWS = 1024  # of a batch
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream


class _Rows:
    """Lines of a CSV file for the parser, and what is wrong with those of the row at hand."""

    def __init__(self, path, limit):
        self._lines, self._limit = files.lines(path, limit), limit
        self.number = self.first = self._size = 0
        self.wrong = None  # (reason, detail)

    def begin(self):
        """Starts a row."""
        self.first, self._size, self.wrong = self.number + 1, 0, None

    def __iter__(self):
        return self

    def __next__(self):
        self.number, line = next(self._lines)
        if line is None:
            self.wrong = ("line too long", f"longer than {self._limit:,} bytes; set limit")
            return "\n"
        self._size += len(line)
        if self._size > self._limit:
            detail = f"longer than {self._limit:,} bytes, or its quote never ends; set limit"
            self.wrong = ("field too long", detail)
            raise csv.Error(detail)
        try:
            return line.decode("utf-8-sig" if self.number == 1 else "utf-8") + "\n"
        except UnicodeDecodeError as error:
            self.wrong = ("undecodable bytes", f"{error.reason} (not UTF-8)")
            return line.decode("utf-8", "replace") + "\n"


def parsed(path, limit, delimiter, quote, bad):
    """Yields (line number, row) of a CSV file, those that are broken apart."""
    rows = _Rows(path, limit)
    csv.field_size_limit(max(csv.field_size_limit(), limit))  # ours is told by line
    form = {"quotechar": quote} if quote else {"quoting": csv.QUOTE_NONE}
    parser = csv.reader(rows, delimiter=delimiter, strict=True, **form)
    while True:
        rows.begin()
        try:
            row = next(parser)
        except StopIteration:
            return
        except csv.Error as error:
            bad(*_broken(rows.wrong or ("broken row", str(error)), f"{path}:{rows.first}"))
            continue
        except files.CorruptError as error:
            bad("corrupt compressed data", f"{path}:{rows.number + 1}", str(error))
            return
        if rows.wrong:
            bad(*_broken(rows.wrong, f"{path}:{rows.first}"))
        else:
            yield rows.first, row


def _broken(wrong, where):
    return wrong[0], where, wrong[1]


def read_csv(path, bad, field, limit, delimiter="", quote='"'):
    """Yields the Documents of a CSV file; see `csv_files`."""
    name = path.name.removesuffix(path.suffix) if path.suffix in files.PACKED else path.name
    delimiter = delimiter or ("\t" if name.endswith((".tsv", ".tab")) else ",")
    rows = parsed(path, limit, delimiter, quote, bad)
    _, header = next(rows, (0, None))
    if header is None:
        bad("empty file", path)
        return
    if header.count(field) != 1:
        reason = "duplicate column" if field in header else "missing field"
        known = ", ".join(map(repr, header[:8]))
        bad(reason, f"{path}:1", f"{field!r} is not among {known}" if reason[0] == "m" else field)
        return
    column = header.index(field)
    for number, row in rows:
        where = f"{path}:{number}"
        if len(row) != len(header):
            bad("uneven row", where, f"{len(row)} fields; the header has {len(header)}")
            continue
        document = check_text(row[column], field, where, bad)
        if document is not None:
            yield document


def csv_files(*, path="", field="text", delimiter="", quote='"', limit=LIMIT_BYTES):
    """CSV files (.csv, .tsv, also as .gz, .bz2, .xz or .zst) with a header, a document a row.

    Args:
        path: a file, a directory, a glob, or several joined by commas.
        field: name of the column that holds the text.
        delimiter: between fields; "" is a tab for .tsv and a comma for all else.
        quote: around fields that hold delimiters or newlines; "" where there is no such thing.
        limit: most bytes of one row, which bounds memory.

    Raises:
        DataError: no file matches, no field is named, or a mark is no single character.
    """
    _check_field(field)
    for name, mark in (("delimiter", delimiter), ("quote", quote)):
        if len(mark) > 1:
            raise DataError(f"{name}={mark!r} must be one character or empty.")
    options = {"field": field, "limit": limit, "delimiter": delimiter, "quote": quote}
    return FileSource("csv", files.find(path, (".csv", ".tsv")), read_csv, options)


def _check_field(field):
    if not field:
        raise DataError("field is empty; name the column that holds the text.")


def library():
    """Returns pyarrow, with Parquet and Arrow files.

    Raises:
        DataError: it is not installed.
    """
    try:
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"A source of Parquet or Arrow files needs pyarrow ({error}).\n"
            "  Install it with: pip install -r requirements-prepare.txt"
        ) from error
    return pyarrow


def read_columns(path, bad, field, limit):
    """Yields the Documents of a Parquet or Arrow file; see `parquet` and `hf_dataset`."""
    arrow = library()
    with path.open("rb") as file:
        if not file.read(1):
            bad("empty file", path)
            return
        file.seek(0)
        read = _stream if path.suffix == ".arrow" else _row_groups
        first = 1
        for batch in read(arrow, file, path, field, bad):
            if isinstance(batch, int):
                first += batch
                continue
            for i, value in enumerate(batch.to_pylist()):
                document = _document(value, field, limit, f"{path}:{first + i}", bad)
                if document is not None:
                    yield document
            first += len(batch)


def _document(value, field, limit, where, bad):
    if value is None:
        return bad("null value", where, f"{field!r} is null")
    if len(value) > limit:
        return bad("document too long", where, f"longer than {limit:,} bytes; set limit")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        return bad("undecodable bytes", where, f"{error.reason} (not UTF-8)")
    return Document(text, where) if text else bad("empty text", where, f"{field!r} is empty")


def _row_groups(arrow, file, path, field, bad):
    """Yields the column of a Parquet file as arrays of bytes; of a bad row group, its rows."""
    try:
        table = arrow.parquet.ParquetFile(file, page_checksum_verification=True)
        schema = table.schema_arrow
    except (arrow.ArrowException, ValueError, OSError) as error:
        bad("corrupt file", path, line(error))
        return
    if not _check_column(arrow, schema, path, field, bad):
        return
    if not table.metadata.num_rows:
        bad("empty file", path, "it has no rows")
    done = 0
    for group in range(table.num_row_groups):
        rows, given = table.metadata.row_group(group).num_rows, 0
        try:
            for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[field]):
                yield _bytes(arrow, batch.column(0))
                given += len(batch)
        except (arrow.ArrowException, ValueError, OSError) as error:
            bad("corrupt row group", f"{path}:{done + given + 1}", line(error))
            yield rows - given
        done += rows


def _stream(arrow, file, path, field, bad):
    """Yields the column of an Arrow file as arrays of bytes."""
    done = 0
    try:
        table = arrow.ipc.open_stream(file)
        if not _check_column(arrow, table.schema, path, field, bad):
            return
        index = table.schema.get_field_index(field)
        for batch in table:
            try:
                batch.validate()
                yield _bytes(arrow, batch.column(index))
            except arrow.ArrowException as error:
                bad("corrupt batch", f"{path}:{done + 1}", line(error))
                yield batch.num_rows
            done += batch.num_rows
    except DataError:
        raise
    except (arrow.ArrowException, ValueError, OSError) as error:
        bad("corrupt file", f"{path}:{done + 1}", line(error))
        return
    file.seek(-len(_END), 2)
    if file.read() != _END:  # one cut between batches reads as whole
        bad("corrupt file", f"{path}:{done + 1}", "it has no end mark")
    elif not done:
        bad("empty file", path, "it has no rows")


def _bytes(arrow, column):
    """The values as bytes, so that one that is no UTF-8 spoils no other."""
    if isinstance(column, arrow.DictionaryArray):
        column.validate(full=True)
        column = column.dictionary_decode()
    column = column.cast(arrow.large_binary())
    column.validate(full=True)  # else offsets may point anywhere
    return column


def _check_column(arrow, schema, path, field, bad):
    """Whether a schema has one column of that name that holds text; reports what it has."""
    found = schema.get_all_field_indices(field)
    if len(found) != 1:
        known = ", ".join(map(repr, schema.names[:8])) or "none"
        reason = "duplicate column" if found else "missing field"
        bad(reason, path, field if found else f"{field!r} is not among {known}")
        return False
    kind, types = schema.field(found[0]).type, arrow.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary,
             types.is_string_view, types.is_binary_view)  # fmt: skip
    if not any(test(kind) for test in tests):
        bad("field is not text", path, f"{field!r} is a {kind}")
        return False
    return True


def line(error):
    """Returns the first line of what a library says is wrong."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def parquet(*, path="", field="text", limit=LIMIT_BYTES):
    """Parquet files (.parquet), a document a row, read row group by row group.

    Args:
        path: a file, a directory, a glob, or several joined by commas.
        field: name of the column that holds the text.
        limit: most bytes of one document.

    Raises:
        DataError: no file matches, no field is named, or pyarrow is not installed.
    """
    _check_field(field)
    library()
    options = {"field": field, "limit": limit}
    return FileSource("parquet", files.find(path, (".parquet",)), read_columns, options)


def hf_dataset(*, path="", split="train", field="text", limit=LIMIT_BYTES):
    """A Hugging Face data set in a folder: of save_to_disk, or of Parquet files; a document a row.

    Args:
        path: the folder, as save_to_disk wrote it or as it was downloaded.
        split: such as "train"; "" for all.
        field: name of the column that holds the text.
        limit: most bytes of one document.

    Raises:
        DataError: no such folder or split, files of it are missing, or pyarrow is.
    """
    _check_field(field)
    library()
    folder = pathlib.Path(path).expanduser()
    if not path or not folder.is_dir():
        raise DataError(f"path={path!r} is no folder (seen from {pathlib.Path.cwd()}).")
    paths = _saved(folder.absolute(), split) or _parquet_of(folder.absolute(), split)
    return FileSource("hf_dataset", paths, read_columns, {"field": field, "limit": limit})


def _saved(folder, split):
    """Returns the .arrow files that save_to_disk wrote, or [] if it did not write this."""
    whole = folder / "dataset_dict.json"
    if whole.is_file():
        known = list(_json(whole, "splits"))
        if split and split not in known:
            raise DataError(f"split={split!r} is not among {', '.join(known)} of {folder}.")
        return [p for name in known if split in ("", name) for p in _saved(folder / name, "")]
    state = folder / "state.json"
    if not state.is_file():
        if any(folder.glob("*.arrow")) or (folder / "dataset_info.json").is_file():
            raise DataError(f"{folder} has no state.json: save_to_disk did not end, or half of "
                            "the folder was copied. Save or copy it anew.")  # fmt: skip
        if not any(folder.rglob("*.parquet")):
            raise DataError(f"{folder} holds neither Parquet files nor what save_to_disk writes.")
        return []
    here = _json(state, "_split", "")
    if split and here and split != here:
        raise DataError(f"split={split!r} is not in {folder}, which holds {here!r}. Name that.")
    paths = [folder / entry["filename"] for entry in _json(state, "_data_files")]
    for path in paths:
        if path.parent != folder or not path.is_file():
            raise DataError(f"{state} names {path.name}, which is not there. Copy the folder anew.")
    return paths


def _json(path, name, *default):
    """Returns one entry of a JSON file of a data set."""
    try:
        record = json.loads(path.read_text("utf-8"))
        return record.get(name, *default) if default else record[name]
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}). Save or copy the folder anew.") from error


def _parquet_of(folder, split):
    """Returns a split's Parquet files, by the words of their paths, as the Hub does."""
    paths = sorted(p for p in files.walk(folder) if p.suffix == ".parquet")
    words = {p: set(re.split(r"[^\w]|_", p.relative_to(folder).as_posix())) for p in paths}
    some = [p for p in paths if not split or split in words[p]]
    known = sorted({"train", "validation", "valid", "dev", "test"} & set().union(*words.values()))
    if not some and (known or split != "train"):
        raise DataError(f"split={split!r} names no file of {folder}. It has: {', '.join(known)}.")
    return some or paths
