"""Web archives: pages of WARC files and texts of WET files, through warcio."""

import itertools

from jaxllm.data import files, html
from jaxllm.data.errors import DataError
from jaxllm.data.sources import LIMIT_BYTES, Document, FileSource

_PAGES = ("text/html", "application/xhtml+xml")
_LINE_BYTES = 1 << 16
_ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")  # that warcio undoes


def _library():
    try:
        import warcio
        import warcio.archiveiterator
        import warcio.exceptions
        import warcio.limitreader
    except ImportError as error:
        raise DataError(
            f"A warc source needs warcio ({error}).\n"
            "  Install it with: pip install -r requirements-prepare.txt"
        ) from error
    return warcio


def read_warc(path, bad, limit):
    """Yields the Documents of a WARC or WET file; see `make`."""
    library = _library()
    stream = files.Stream(files.chunks(path))
    records, line = library.archiveiterator.WARCIterator(stream), None
    for number in itertools.count(1):
        where = f"{path}:{number}"
        try:
            if line:  # on from the record after the broken one
                records.next_line, records.record, line = line, None, None
                records.the_iter = records._iterate_records()
            record = next(records, None)
            if record is None:
                if number == 1:
                    bad("empty file", path)
                return
            if not isinstance(record.raw_stream, library.limitreader.LimitReader):
                raise library.exceptions.ArchiveLoadFailed("the record does not say its length")
            document = _document(record, where, bad, limit)
            while record.raw_stream.read(files.CHUNK_BYTES):
                pass
            if record.raw_stream.limit:
                bad("corrupt compressed data", where, "the file ends inside a record")
                return
            if document is not None:
                yield document
        except library.exceptions.ArchiveLoadFailed as error:
            bad("broken record", where, str(error).strip().splitlines()[0][:300])
            line = _next_record(records.reader)
            if not line:
                return


def _next_record(reader):
    """Reads on to the first line of a record and returns it, b"" where there is none."""
    new_line = True
    while line := reader.readline(_LINE_BYTES):
        if new_line and line.startswith(b"WARC/1."):
            return line
        new_line = line.endswith(b"\n")
    return b""


def _document(record, where, bad, limit):
    """Returns the Document of a record, or None: it holds no text, or was reported to `bad`."""
    uri = record.rec_headers.get_header("WARC-Target-URI") or ""
    where, notes = f"{where}:{uri}", {"url": uri}
    if record.rec_type == "conversion":
        kind, charset = "text/plain", "utf-8"
    elif record.rec_type == "response" and record.http_headers:
        if not (record.http_headers.get_statuscode() or "").startswith("2"):
            return None
        kind, charset = _content_type(record.http_headers)
        encoding = record.http_headers.get_header("Content-Encoding") or ""
        if kind in (*_PAGES, "text/plain") and encoding.strip().lower() not in _ENCODINGS:
            return bad("unknown content encoding", where, encoding)
    else:
        return None
    if kind not in (*_PAGES, "text/plain"):
        return None
    parts, size = [], 0
    content = record.content_stream()
    while part := content.read(_LINE_BYTES):
        parts.append(part)
        size += len(part)
        if size > limit:
            return bad("document too long", where, f"longer than {limit:,} bytes; set limit")
    data = b"".join(parts)
    if not data:
        return bad("empty text", where, "the record has none")
    if kind in _PAGES:
        return html.page_document(data, where, bad, charset, notes)
    try:
        text = html.decode(data, charset)
    except UnicodeDecodeError as error:
        return bad("undecodable bytes", where, f"{error.reason} ({error.encoding})")
    return Document(text, where, notes)


def _content_type(headers):
    """Returns (media type, charset) that a server said; HTML where it said nothing."""
    kind, _, rest = (headers.get_header("Content-Type") or "text/html").partition(";")
    charset = rest.lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
    return kind.strip().lower(), charset


def make(*, path="", limit=LIMIT_BYTES):
    """Web archives (.warc, .wet, also as .gz, .bz2, .xz or .zst), a document a record.

    Of responses with status 2xx, HTML becomes text as for kind "html" and plain text stays; WET's
    conversions are taken as they are; other records are passed over. A document's `where` ends in
    its URI.

    Args:
        path: a file, a directory, a glob, or several joined by commas.
        limit: most bytes of one page.

    Raises:
        DataError: no file matches, or warcio is not installed.
    """
    _library()
    return FileSource("warc", files.find(path, (".warc", ".wet")), read_warc, {"limit": limit})
