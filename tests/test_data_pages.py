"""Web pages, web archives and source code as text."""

import gzip
import time

import pytest

from jaxllm.config import ConfigError
from jaxllm.data import code, html
from tests.reader_files import PAGE, as_warc, make, read, write


def test_a_page_becomes_its_text():
    page = """<!doctype html><html><head><title>T &amp; t</title><style>p {}</style>
    <script>if (a < b) "</p>"</script></head><body><nav><ul><li>Home</ul></nav>
    <header>top</header><h1>A <em>head</em>ing</h1><p>One
    two &eacute;&#x1F600; a &lt; b.<p>Next<br>line<ul><li>a<li>b<ol><li>x</li><li>y</li></ol></ul>
    <pre><code>def f():
    return 1 &lt; 2
</code></pre><table><tr><td>1</td><td>2</td></tr><tr><th>3<th>4</table><div hidden>no</div>
    <div class="x hidden y">yes <span hidden>no <b>no</b></span>5 < 6 <a href="a>b">link</a></div>
    <aside>aside</aside><footer>foot</footer><!-- <p>no --></body></html>"""
    assert html.to_text(page).split("\n") == [
        *("T & t", "", "A heading", "", "One two é😀 a < b.", "", "Next", "line", ""),
        *("- a", "- b", "  1. x", "  2. y", "", "def f():", "    return 1 < 2", ""),
        *("1 | 2", "3 | 4", "", "yes 5 < 6 link"),
    ]


@pytest.mark.parametrize(
    ("charset", "declared"),
    [
        ("utf-8", ""),
        ("utf-8", '<meta charset="utf-8">'),
        ("cp1252", ""),
        ("cp1252", '<meta http-equiv=Content-Type content="text/html; charset=iso-8859-1">'),
        ("utf-16", ""),
        ("utf-8-sig", "<meta charset=latin1>"),
        ("cp1252", '<?xml version="1.0" encoding="windows-1252"?>'),
    ],
)
def test_a_page_is_decoded_as_it_says(tmp_path, charset, declared):
    path = write(tmp_path / "a.html", f"{declared}<p>Grüße, naïve €".encode(charset))
    assert read(make("html", path))[0] == ["Grüße, naïve €"]


def test_charsets_of_the_east():
    for label, codec in (("shift_jis", "cp932"), ("gb2312", "gb18030"), ("euc-kr", "cp949")):
        text = {"cp949": "안녕하세요"}.get(codec, "日本")
        assert html.to_text(html.decode(f"<meta charset={label}>{text}".encode(codec))) == text
    with pytest.raises(UnicodeDecodeError):
        html.decode(b"<meta charset=utf-8>\xff\xfe\xfd")


@pytest.mark.parametrize(
    "page",
    ["<div>", "<!-- ", '<a "', "<", "<a '\">", "<script>", "<ul><li>x", "<a \"'>'", "</", "&a",
     "<!", "<table><tr><td>", "</div>", "<p>" + " " * 500, "<pre> </pre>", "<title>", "<svg>",
     "<li hidden>"],
)  # fmt: skip
def test_no_page_takes_more_than_linear_time(page):
    def seconds(size):
        start = time.process_time()
        html.to_text((page * (size // len(page) + 1)) + "end")
        return time.process_time() - start

    assert seconds(1 << 19) < 20 * max(seconds(1 << 16), 0.05)


def test_pages_and_texts_of_web_archives(tmp_path):
    latin = "<meta charset=latin1><title>Grüße</title>".encode("cp1252")
    records = [
        ("http://a/page", "text/html", PAGE.encode()),
        ("http://a/latin", "text/html", latin),
        ("http://a/server", "text/html; charset=windows-1251", "<p>привет".encode("cp1251")),
        ("http://a/plain", "text/plain", b"plain"),
        ("http://a/image", "image/png", b"\x89PNG\0"),
    ]
    wanted = ["A page\n\nof text", "Grüße", "привет", "plain"]
    for name, packed in (("a.warc", False), ("b.warc.gz", True)):
        source = make("warc", write(tmp_path / name, as_warc(records, packed)))
        assert read(source) == (wanted, {})
        found = list(source.documents())
        assert found[0].where == f"{tmp_path / name}:1:http://a/page"
        assert found[1].notes == {"url": "http://a/latin"}


def test_chunked_and_packed_pages_and_those_that_are_missing(tmp_path):
    pytest.importorskip("warcio")
    content = gzip.compress(PAGE.encode())
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    packed = b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n"
    replies = [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n" + packed + b"\r\n" + body,
        b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n<p>missing",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n<p>what",
        b"nonsense\r\n\r\n<p>what",
        b"HTTP/1.1 200 OK\r\n\r\n<p>last",
    ]
    records = b"".join(
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/%d\r\n"
        b"Content-Type: application/http; msgtype=response\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
        % (i, len(reply), reply)
        for i, reply in enumerate(replies)
    )
    texts, counts = read(make("warc", write(tmp_path / "a.warc", records)), "skip")
    assert texts == ["A page\n\nof text", "last"]
    assert counts == {"unknown content encoding": 1, "broken HTTP headers": 1}


def test_wet_is_taken_as_it_is(tmp_path):
    pytest.importorskip("warcio")
    text = "Grüße\nline".encode()
    record = (
        b"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://a\r\n"
        b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n" % (len(text), text)
    )
    info = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nContent-Length: 3\r\n\r\na:b\r\n\r\n"
    path = write(tmp_path / "a.warc.wet.gz", gzip.compress(info) + gzip.compress(record))
    (document,) = make("warc", path).documents()
    assert (document.text, document.where) == ("Grüße\nline", f"{path}:2:http://a")


MIT = b"MIT\n\nPermission is hereby granted, free of\ncharge, to any person obtaining a copy"


def test_code_has_its_language_and_its_licence(tmp_path):
    contents = {
        "LICENSE": MIT,
        "a.py": b"x = 1\n",
        "lib/COPYING": b"Apache License\n  Version 2.0, January 2004",
        "lib/src/b.rs": b"fn main() {}\n",
        "lib/Makefile": b"all:\n",
        "data.bin": b"\0\1",
    }
    for name, content in contents.items():
        write(tmp_path / name, content)
    documents = make("code", tmp_path).documents()
    found = {one.where.rpartition("/")[2]: (one.text, one.notes) for one in documents}
    assert found == {
        "a.py": ("x = 1\n", {"programming_language": "python", "licence_file": "LICENSE",
                             "licence": "MIT"}),
        "b.rs": ("fn main() {}\n", {"programming_language": "rust", "licence_file": "lib/COPYING",
                                    "licence": "Apache-2.0"}),
        "Makefile": ("all:\n", {"programming_language": "makefile", "licence_file": "lib/COPYING",
                                "licence": "Apache-2.0"}),
    }  # fmt: skip
    assert read(make("code", tmp_path, languages=("rust",)))[0] == ["fn main() {}\n"]
    with pytest.raises(ConfigError, match=r"'pyhton' is unknown\. Did you mean 'python'"):
        make("code", tmp_path, languages=("pyhton",))
    with pytest.raises(ConfigError, match="holds no code in zig"):
        make("code", tmp_path, languages=("zig",))


def test_what_nobody_wrote_is_counted_and_left_out_of_code(tmp_path):
    contents = {
        "good.js": b"let x = 1\n",
        "node_modules/a/b.js": b"let y = 1\n",
        "jquery.min.js": b"let z = 1\n",
        "packed.js": b"let z=1;" * 500,
        "binary.py": b"a\0b",
        "__init__.py": b"",
    }
    for name, content in contents.items():
        write(tmp_path / name, content)
    texts, counts = read(make("code", tmp_path), "error")
    assert texts == ["let x = 1\n"]
    assert counts == {"vendored file": 1, "minified file": 2, "binary file": 1, "empty file": 1}


def test_no_end_of_a_name_has_two_languages():
    ends = [end for ends in code.LANGUAGES.values() for end in ends.split()]
    assert len(ends) == len(set(ends))
