"""Web pages as text: title, headings, paragraphs, lists, tables and code, without the rest.

Laid out as browsers lay out text that is copied: blocks on lines of their own, an empty line
around paragraphs and headings, list items behind "- " or their number, cells parted by " | ", code
as it stands. One pass over the page in time linear in its length, whatever its nesting.
"""

import codecs
import functools
import html
import re

from jaxllm.data import files
from jaxllm.data.sources import LIMIT_BYTES, Document, FileSource


def _words(text):
    return frozenset(text.split())


# Elements left out with all that they hold.
DROPPED = _words(
    "script style nav header footer aside noscript template svg math iframe object canvas audio "
    "video button select datalist textarea dialog menu map head"
)
# Elements whose content is no markup: it ends at their end tag.
_RAW = _words("script style textarea title iframe noembed noframes noscript xmp")
# Newlines around blocks: 2 leave a line empty.
_GAPS = {
    **dict.fromkeys(_words("p h1 h2 h3 h4 h5 h6 pre blockquote ul ol dl table figure hr"), 2),
    **dict.fromkeys(
        _words(
            "div section article main body html li dt dd tr caption address form fieldset details "
            "summary figcaption thead tbody tfoot center legend td th"
        ),
        1,
    ),
}
_INLINE_BLOCKS = frozenset(("td", "th"))  # kept on the line of their row
_VOID = _words("br hr img input meta link wbr")
_KEPT = frozenset(_GAPS) | DROPPED
_STARTS = _KEPT | {"br"}
_CLOSES = {  # a start tag: what it ends where that stands open innermost
    "li": {"li", "p"},
    "tr": {"tr", "td", "th"},
    "td": {"td", "th"},
    "th": {"td", "th"},
    "dt": {"dt", "dd"},
    "dd": {"dt", "dd"},
    "body": {"head"},
    **dict.fromkeys(
        _words("p h1 h2 h3 h4 h5 h6 ul ol div pre table blockquote section"), _words("p")
    ),
}

_NAME = re.compile(r"</?([a-zA-Z][^\s/>]*+)")
_TAG = re.compile(r"</?([a-zA-Z][^\s/>]*+)((?:[^>\"']++|\"[^\"]*+\"|'[^']*+')*+)>")
_QUOTED = re.compile(r"\"[^\"]*+\"|'[^']*+'")
_HIDDEN = re.compile(r"(?:^|\s)hidden(?:[\s=/]|$)", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\n\r\f]+")
_DEEPEST = 8  # levels of lists that are indented
_BAD_TAGS = 64  # with a quote that never ends, before tags are taken to end at the next ">"

_CHARSET = re.compile(rb"<(?:meta|\?xml)[^>]*?(?:charset|encoding)\s*=\s*[\"']?\s*([\w.:-]+)", re.I)
_HEAD_BYTES = 4096
_CODECS = {  # https://encoding.spec.whatwg.org/#names-and-labels, those that pages still have
    **dict.fromkeys(_words("utf-8 utf8 utf-16 utf-16le utf-16be unicode"), "utf-8"),
    **dict.fromkeys(_words("iso-8859-1 latin1 latin-1 l1 ascii us-ascii windows-1252"), "cp1252"),
    **dict.fromkeys(_words("gb2312 gbk gb18030 x-gbk euc-cn"), "gb18030"),
    **dict.fromkeys(_words("shift_jis shift-jis sjis x-sjis windows-31j"), "cp932"),
    **dict.fromkeys(_words("euc-kr ks_c_5601-1987 ksc5601 windows-949"), "cp949"),
    **{f"iso-8859-{n}": f"iso8859-{n}" for n in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)},
    **{f"windows-125{n}": f"cp125{n}" for n in (0, 1, 3, 4, 5, 6, 7, 8)},
    **{"iso-8859-9": "cp1254", "iso-8859-11": "cp874", "tis-620": "cp874", "windows-874": "cp874"},
    **{"big5": "big5hkscs", "big5-hkscs": "big5hkscs", "koi8-r": "koi8-r", "koi8-u": "koi8-u"},
    **{"euc-jp": "euc_jp", "iso-2022-jp": "iso2022_jp", "macintosh": "mac_roman"},
    **{"x-mac-cyrillic": "mac_cyrillic", "ibm866": "cp866"},
}
_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"),
         (codecs.BOM_UTF16_BE, "utf-16-be"))  # fmt: skip


def decode(data, charset=""):
    """Returns the text of a page's bytes.

    Args:
        data: bytes.
        charset: as the server said it, "" where it did not.

    Raises:
        UnicodeDecodeError: the bytes are neither in the page's charset nor UTF-8.
    """
    for mark, codec in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(codec)
    said = _CHARSET.search(data, 0, _HEAD_BYTES)
    names = [charset.strip().lower(), said[1].decode("ascii", "replace").lower() if said else ""]
    told = [_CODECS[name] for name in names if name in _CODECS]
    tried = [*told[:1], "utf-8"] if told else ["utf-8", "cp1252"]
    for codec in tried[:-1]:
        try:
            return data.decode(codec)
        except UnicodeDecodeError:
            continue
    return data.decode(tried[-1])


class _Page:
    """Text as it is laid out."""

    def __init__(self):
        self.parts, self.title = [], ""
        self._gap, self._space = 0, False
        self._mark = ""  # of the list item that has no text yet
        self._lists = []  # the next number of each open list; None of one with bullets
        self._open, self._count = [], {}  # elements, and how many of each name
        self._dropped = 0  # depth of `_open` from which on all is left out
        self._cell = False

    def text(self, raw):
        if self._dropped or not raw:
            return
        raw = html.unescape(raw) if "&" in raw else raw
        if self._count.get("pre"):
            raw = raw.replace("\r\n", "\n").replace("\r", "\n")
            if not self._gap or raw.strip("\n"):
                self._put(raw.lstrip("\n") if self._gap else raw)
            return
        text = _SPACE.sub(" ", raw)
        if text == " ":
            self._space = not self._gap
            return
        self._space = self._space or text[0] == " "
        self._put(text.strip(" "))
        self._space = text[-1] == " "

    def raw(self, name, content):
        """Takes the content of an element of `_RAW`."""
        if name == "title" and not self.title and not self._count.get("svg"):
            self.title = _SPACE.sub(" ", html.unescape(content)).strip()
        elif name == "xmp":
            self.text(html.escape(content))

    def _put(self, text):
        if self._gap or not self.parts:
            if self.parts:
                self.parts.append("\n" * self._gap)
            if self._mark:
                self.parts.append("  " * min(len(self._lists) - 1, _DEEPEST) + self._mark)
        elif self._cell:
            self.parts.append(" | ")
        elif self._space:
            self.parts.append(" ")
        self._gap, self._mark, self._space, self._cell = 0, "", False, False
        self.parts.append(text)

    def _break(self, newlines):
        if self.parts:
            self.parts[-1] = self.parts[-1].rstrip("\n")  # of code
            self._gap = max(self._gap, newlines)
        self._space = False

    def start(self, name, attributes):
        if name == "br":
            if self._count.get("pre"):
                self.text("\n")
            elif not self._dropped:
                self._gap = min(2, self._gap + 1) if self.parts else 0
            return
        if name not in _KEPT:
            self._drop_hidden(name, attributes)
            return
        while self._open and self._open[-1] in _CLOSES.get(name, ()):
            self._close()
        self._lay_out(name)
        if name in _VOID:
            return
        self._open.append(name)
        self._count[name] = self._count.get(name, 0) + 1
        if not self._dropped and (name in DROPPED or _is_hidden(attributes)):
            self._dropped = len(self._open)
        if not self._dropped and name in ("ul", "ol"):
            self._lists.append(1 if name == "ol" else None)
        if not self._dropped and name == "li":
            self._mark = "- "
            if self._lists and self._lists[-1] is not None:
                self._mark = f"{self._lists[-1]}. "
                self._lists[-1] += 1

    def _drop_hidden(self, name, attributes):
        """An inline element matters only where it hides what it holds."""
        if name not in _VOID and not self._dropped and _is_hidden(attributes):
            self._open.append(name)
            self._count[name] = self._count.get(name, 0) + 1
            self._dropped = len(self._open)

    def _lay_out(self, name):
        if self._dropped or name in DROPPED:
            return
        if name in _INLINE_BLOCKS:
            self._cell = not self._gap
        elif gap := _GAPS.get(name, 0):
            nested = name in ("ul", "ol") and len(self._lists) > 0
            self._break(1 if nested or (name == "p" and self._mark) else gap)

    def end(self, name):
        if self._count.get(name):
            while self._open[-1] != name:
                self._close()
            self._close()

    def _close(self):
        name = self._open.pop()
        self._count[name] -= 1
        if self._dropped:
            self._dropped = self._dropped if len(self._open) >= self._dropped else 0
            return
        if name in ("ul", "ol") and self._lists:
            self._lists.pop()
        if name == "li":
            self._mark = ""
        if name not in _INLINE_BLOCKS:
            self._lay_out(name)

    def whole(self):
        lines = "".join(self.parts).strip("\n").split("\n")
        body = "\n".join(line.rstrip() for line in lines).rstrip()
        first = body.partition("\n")[0]
        if self.title and self.title != first:
            return f"{self.title}\n\n{body}" if body else self.title
        return body


def _is_hidden(attributes):
    return "hidden" in attributes and bool(_HIDDEN.search(_QUOTED.sub("", attributes)))


@functools.cache
def _end_of(name):
    return re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE)


def to_text(source):
    """Returns the text of a page.

    Args:
        source: HTML as str.
    """
    page, at, bad_tags = _Page(), 0, 0
    while True:
        tag = source.find("<", at)
        if tag < 0:
            page.text(source[at:])
            return page.whole()
        if tag > at:
            page.text(source[at:tag])
        second = source[tag + 1 : tag + 2]
        if second in ("!", "?"):
            end = "-->" if source.startswith("<!--", tag) else ">"
            at = source.find(end, tag + 2) + len(end)
            if at < len(end):
                return page.whole()
            continue
        found = _TAG.match(source, tag) if bad_tags < _BAD_TAGS else None
        if found:
            name, attributes, at = found[1].lower(), found[2], found.end()
        else:
            plain = _NAME.match(source, tag)
            if not plain:
                page.text("<")
                at = tag + 1
                continue
            bad_tags += 1
            at = source.find(">", tag) + 1
            if not at:
                return page.whole()
            name, attributes = plain[1].lower(), ""
        if second == "/":
            page.end(name)
        elif name in _RAW:
            closed = _end_of(name).search(source, at)
            end = closed.start() if closed else len(source)
            page.raw(name, source[at:end])
            at = source.find(">", end) + 1 or len(source)
        elif name in _STARTS or "hidden" in attributes:
            page.start(name, attributes)


def page_document(data, where, bad, charset="", notes=None):
    """Returns the Document of a page's bytes, or None after reporting it to `bad`."""
    try:
        source = decode(data, charset)
    except UnicodeDecodeError as error:
        return bad("undecodable bytes", where, f"{error.reason} ({error.encoding})")
    if "\0" in source:
        return bad("binary file", where, "it holds NUL, which no page does")
    text = to_text(source)
    if not text:
        return bad("empty text", where, "the page has none")
    if re.search(r"[\ud800-\udfff]", text):
        return bad("undecodable bytes", where, "it holds half of a surrogate pair")
    return Document(text, where, notes or {})


def read_html(path, bad, limit):
    """Yields the Document of an HTML file; see `make`."""
    data = files.whole(path, limit)
    if not data:
        bad("empty file", path)
        return
    document = page_document(data, str(path), bad)
    if document is not None:
        yield document


def make(*, path="", limit=LIMIT_BYTES):
    """Web pages (.html, .htm, .xhtml, also as .gz, .bz2, .xz or .zst) as text, a document a file.

    Navigation, headers, footers, asides, scripts and styles are left out; the charset is the
    page's own.

    Args:
        path: a file, a directory, a glob, or several joined by commas.
        limit: most bytes of one page.

    Raises:
        DataError: no file matches.
    """
    paths = files.find(path, (".html", ".htm", ".xhtml"))
    return FileSource("html", paths, read_html, {"limit": limit})
