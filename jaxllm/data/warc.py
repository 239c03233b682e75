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
        import warcio.statusandheaders
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
    # HTTP headers are parsed here, lest broken ones end the file.
    records = library.archiveiterator.WARCIterator(stream, no_record_parse=True)
    reader, line = records.reader, None
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
            where = f"{where}:{record.rec_headers.get_header('WARC-Target-URI') or ''}"
            kind, charset = _text_kind(library, records.loader, record)
            data = _content(record, limit) if kind else b""
            while record.raw_stream.read(files.CHUNK_BYTES):
                pass
        except library.exceptions.ArchiveLoadFailed as error:
            bad("broken record", where, str(error).strip().splitlines()[0][:300])
            line = _next_record(reader)
            if not line:
                return
            continue
        if record.raw_stream.limit:
            bad("corrupt compressed data", where, "the file ends inside a record")
            return
        if kind and (document := _document(record, kind, charset, data, where, bad)):
            yield document


def _next_record(reader):
    """Reads on to the first line of a record and returns it, b"" where there is none."""
    new_line = True
    while line := reader.readline(_LINE_BYTES):
        if new_line and line.startswith(b"WARC/1."):
            return line
        new_line = line.endswith(b"\n")
    return b""


def _text_kind(library, loader, record):
    """Returns (media type, charset) of a record that holds text, else ("", ""); parses HTTP."""
    uri = record.rec_headers.get_header("WARC-Target-URI") or ""
    if record.rec_type == "conversion":
        return "text/plain", "utf-8"
    if record.rec_type != "response" or not uri:
        return "", ""
    try:
        headers = loader.load_http_headers("response", uri, record.raw_stream, record.length)
    except (library.statusandheaders.StatusAndHeadersParserException, EOFError):
        return "broken", ""
    status = "404" if headers is None else headers.get_statuscode()
    if not status.startswith("2"):
        return ("", "") if status.isdigit() else ("broken", "")
    record.http_headers = headers
    kind, _, rest = (headers.get_header("Content-Type") or _PAGES[0]).partition(";")
    charset = rest.lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
    kind = kind.strip().lower()
    return (kind, charset) if kind in (*_PAGES, "text/plain") else ("", "")


def _content(record, limit):
    """Returns a record's bytes without transfer and content encoding; None if too many."""
    parts, size, content = [], 0, record.content_stream()
    while part := content.read(_LINE_BYTES):
        parts.append(part)
        size += len(part)
        if size > limit:
            return None
    return b"".join(parts)


def _document(record, kind, charset, data, where, bad):
    """Returns the Document of a record's bytes, or None after reporting it to `bad`."""
    if kind == "broken":
        return bad("broken HTTP headers", where)
    headers = record.http_headers
    encoding = ((headers and headers.get_header("Content-Encoding")) or "").strip().lower()
    if encoding not in _ENCODINGS:
        return bad("unknown content encoding", where, encoding)
    if data is None:
        return bad("document too long", where, "it has more bytes than the limit; set limit")
    if not data:
        return bad("empty text", where, "the record has none")
    notes = {"url": record.rec_headers.get_header("WARC-Target-URI") or ""}
    if kind in _PAGES:
        return html.page_document(data, where, bad, charset, notes)
    try:
        return Document(html.decode(data, charset), where, notes)
    except UnicodeDecodeError as error:
        return bad("undecodable bytes", where, f"{error.reason} ({error.encoding})")


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
