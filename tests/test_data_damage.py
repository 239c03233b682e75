"""Bad input of every format: an error that says where, or counted; what is good survives."""

import gzip
import io
import lzma
import os
import random
import tarfile
import zipfile

import pytest

from jaxllm.data import DataError, files
from tests.reader_files import (
    LINES,
    MORE,
    PACK,
    PAGE,
    TEXTS,
    as_csv,
    as_dataset,
    as_parquet,
    as_warc,
    make,
    read,
    special,
    tarred,
    write,
    zipped,
)

# Bad input: (kind, path, options, reason, texts that are left) of each.


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def _packed(tmp_path, suffix, change):
    """Two files, the first one damaged."""
    write(tmp_path / f"a.jsonl{suffix}", change(PACK[suffix](MORE)))
    write(tmp_path / "b.jsonl", LINES)
    return "jsonl", tmp_path, {}, "corrupt compressed data", None


def _archive(members, reason, left, **options):
    def build(tmp_path):
        return "archive", write(tmp_path / "a.tar", tarred(members)), options, reason, left

    return build


def _zip(members, reason, left, change=bytes, method=zipfile.ZIP_DEFLATED, **options):
    def build(tmp_path):
        path = zipped(tmp_path / "a.zip", members, method)
        path.write_bytes(change(path.read_bytes()))
        return "archive", path, options, reason, left

    return build


def _file(kind, name, content, reason, left, **options):
    def build(tmp_path):
        return kind, write(tmp_path / name, content), options, reason, left

    return build


def _parquet(columns, reason, left, change=bytes, **options):
    def build(tmp_path):
        path = as_parquet(
            tmp_path / "a.parquet", columns, row_group_size=2, compression="none",
            use_dictionary=False, data_page_version="1.0", write_page_checksum=True,
            write_statistics=False,
        )  # fmt: skip
        path.write_bytes(change(path.read_bytes()))
        return "parquet", path, options, reason, left

    return build


def _encrypted(content):
    """Sets the flag of encryption on the first member."""
    content = bytearray(content)
    content[6] |= 1
    content[content.index(b"PK\1\2") + 8] |= 1
    return bytes(content)


def _zip_link():
    info = zipfile.ZipInfo("link.txt")
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def _warc(change, reason, left, packed=False):
    def build(tmp_path):
        records = [(f"http://a/{i}", "text/plain", f"page {i}".encode()) for i in range(4)]
        name = "a.warc.gz" if packed else "a.warc"
        return "warc", write(tmp_path / name, change(as_warc(records, packed))), {}, reason, left

    return build


def _dataset(change, reason, left):
    def build(tmp_path):
        folder = as_dataset(tmp_path / "set", TEXTS)
        path = folder / "data-00000-of-00001.arrow"
        path.write_bytes(change(path.read_bytes()))
        return "hf_dataset", folder, {}, reason, left

    return build


def _gone(tmp_path):
    write(tmp_path / "a.txt", b"gone")
    write(tmp_path / "b.txt", b"good")
    return "text", tmp_path, {}, "unreadable file", ["good"]


GOOD = {"a.txt": b"good", "z.txt": b"fine"}
BOTH = ["good", "fine"]
BOMB = bytes(8 << 20)
ROWS = b"id,text\n1,one\n"
LINK, HARD, DEVICE, PIPE = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE


def amid(name, content=b""):
    """A bad member between two good ones."""
    return {"a.txt": b"good", name: content, "z.txt": b"fine"}


BAD = {
    **{
        f"cut{suffix}": lambda tmp_path, suffix=suffix: _packed(tmp_path, suffix, lambda c: c[:-9])
        for suffix in PACK
        if suffix
    },
    **{
        f"flipped{suffix}": lambda tmp_path, suffix=suffix: _packed(
            tmp_path, suffix, lambda c: flipped(c, len(c) // 2)
        )
        for suffix in PACK
        if suffix not in ("", ".zst")  # its frames have no checksum unless asked for
    },
    "long line": _file(
        "jsonl", "a.jsonl", LINES + b'{"text": "' + b"y" * 9_000 + b'"}\n' + LINES,
        "line too long", TEXTS * 2, limit=5_000,
    ),
    "file gone": _gone,
    "tar bomb by size": _archive(amid("m.txt", b"m" * 3_000), "archive too large", None,
                                 total=4_000),
    "tar bomb by ratio": _file("archive", "a.tar.gz", tarred(amid("m.txt", BOMB), gzip.compress),
                               "archive too large", ["good"]),
    "zip bomb by ratio": _zip(amid("m.txt", BOMB), "archive too large", None),
    "zip member bomb": _zip(amid("m.txt", bytes(2 << 20)) | {"y.bin": os.urandom(1 << 16)},
                            "archive too large", BOTH),
    "member of a member bomb": _archive(amid("m.txt.xz", lzma.compress(BOMB)), "archive too large",
                                        BOTH),
    "zip bomb by size": _zip(amid("m.txt", os.urandom(2_000).hex().encode()), "archive too large",
                             ["good"], total=3_000),
    "path out of a tar": _archive(amid("in/../../m.txt", b"bad"), "path out of the archive", BOTH),
    "path out of a zip": _zip(amid("..\\m.txt", b"bad"), "path out of the archive", BOTH),
    "absolute in a tar": _archive(amid("/etc/m.txt", b"bad"), "absolute path", BOTH),
    "absolute in a zip": _zip(amid("C:/m.txt", b"bad"), "absolute path", BOTH),
    "symlink": _archive(amid(special("m.txt", LINK, "/etc/passwd")), "link", BOTH),
    "symlink in a zip": _zip(amid(_zip_link(), b"/etc/passwd"), "link", BOTH),
    "hardlink": _archive(amid(special("m.txt", HARD, "a.txt")), "link", BOTH),
    "device": _archive(amid(special("m.txt", DEVICE)), "device or pipe", BOTH),
    "pipe": _archive(amid(special("m.txt", PIPE)), "device or pipe", BOTH),
    "encrypted": _zip({"m.txt": b"secret", **GOOD}, "encrypted member", BOTH, _encrypted),
    "lzma in a zip": _zip(GOOD, "unknown compression", [], method=zipfile.ZIP_LZMA),
    "nested zip": _archive(amid("m.zip", b"PK"), "nested archive", BOTH),
    "nested tar": _zip(amid("m.tar.gz", b"\x1f\x8b"), "nested archive", BOTH),
    "bytes in a member": _archive(amid("m.txt", b"\xff"), "undecodable bytes", BOTH),
    "cut member": _zip(amid("m.txt.gz", gzip.compress(b"text")[:-3]), "corrupt compressed data",
                       BOTH),
    "flipped in a zip": _zip({"m.txt": b"m" * 50, **GOOD}, "corrupt compressed data", BOTH,
                             lambda c: flipped(c, c.index(b"m.txt") + 6)),
    "empty tar": _file("archive", "a.tar", tarred({}), "empty archive", []),
    "empty zip": _zip({}, "empty archive", []),
    "tar of no bytes": _file("archive", "a.tar", b"", "empty file", []),
    "no tar": _file("archive", "a.tar", b"plain text " * 100, "corrupt archive", []),
    "no zip": _file("archive", "a.zip", b"plain text " * 100, "corrupt archive", []),
    "cut tar": _file("archive", "a.tar", tarred(amid("m.txt", b"m" * 5_000))[:4_096],
                     "corrupt archive", ["good"]),
    "cut tar between members": _file("archive", "a.tar", tarred(GOOD)[:2_048], "corrupt archive",
                                     BOTH),
    "flipped tar header": _file("archive", "a.tar", flipped(tarred(GOOD), 1_030),
                                "corrupt archive", ["good"]),
    "cut tar.xz": _file("archive", "a.tar.xz", lzma.compress(tarred(GOOD))[:-5],
                        "corrupt archive", BOTH),
    "cut zip": _zip(GOOD, "corrupt archive", [], lambda c: c[:-30]),
    "bytes in a page": _file("html", "a.html", b"<meta charset=utf-8><p>\xff\xfe",
                             "undecodable bytes", []),
    "NUL in a page": _file("html", "a.html", b"<p>a\0b", "binary file", []),
    "page without text": _file("html", "a.html", b"<script>x</script>", "empty text", []),
    "empty page": _file("html", "a.html", b"", "empty file", []),
    "half a pair": _file("jsonl", "a.jsonl", LINES + b'{"text": "\\udc00"}\n' + LINES,
                         "undecodable bytes", TEXTS * 2),
    "long page": _file("html", "a.html", PAGE.encode() * 100, "document too long", [], limit=999),
    "missing column": _file("csv", "a.csv", b"id,txt\n1,a\n", "missing field", []),
    "column twice": _file("csv", "a.csv", b"text,text\na,b\n", "duplicate column", []),
    "uneven rows": _file("csv", "a.csv", ROWS + b"2\n3,three,3\n4,four\n", "uneven row",
                         ["one", "four"]),
    "empty field": _file("csv", "a.csv", ROWS + b"2,\n4,four\n", "empty text", ["one", "four"]),
    "long field": _file("csv", "a.csv", ROWS + b'2,"' + b"y\n" * 3_000 + b'"\n', "field too long",
                        None, limit=2_000),
    "long CSV line": _file("csv", "a.csv", ROWS + b"2," + b"y" * 3_000 + b"\n4,four\n",
                           "line too long", ["one", "four"], limit=2_000),
    "open quote": _file("csv", "a.csv", ROWS + b'2,"two\n3,three\n', "broken row", ["one"]),
    "broken quote": _file("csv", "a.csv", ROWS + b'2,"two"2\n4,four\n', "broken row",
                          ["one", "four"]),
    "bytes in a row": _file("csv", "a.csv", ROWS + b"2,\xff\n4,four\n", "undecodable bytes",
                            ["one", "four"]),
    "empty CSV": _file("csv", "a.csv", b"", "empty file", []),
    "cut CSV": _file("csv", "a.csv.gz", gzip.compress(ROWS * 2)[:-4], "corrupt compressed data",
                     None),
    "no parquet": _file("parquet", "a.parquet", b"plain text", "corrupt file", []),
    "empty parquet file": _file("parquet", "a.parquet", b"", "empty file", []),
    "cut parquet": _parquet({"text": TEXTS}, "corrupt file", [], lambda c: c[:-100]),
    "flipped row group": _parquet({"text": ["a", "b", "first", "second", "e"]}, "corrupt row group",
                                  ["a", "b", "e"], lambda c: flipped(c, c.index(b"first") - 3)),
    "nulls": _parquet({"text": ["a", None, "c"]}, "null value", ["a", "c"]),
    "empty values": _parquet({"text": ["a", "", "c"]}, "empty text", ["a", "c"]),
    "bytes in a column": _parquet({"text": [b"a", b"\xff", b"c"]}, "undecodable bytes", ["a", "c"]),
    "no such column": _parquet({"txt": ["a"]}, "missing field", []),
    "column of numbers": _parquet({"text": [1, 2]}, "field is not text", []),
    "column of lists": _parquet({"text": [["a"], ["b"]]}, "field is not text", []),
    "long value": _parquet({"text": ["a", "b" * 99, "c"]}, "document too long", ["a", "c"],
                           limit=9),
    "cut arrow": _dataset(lambda c: c[:-200], "corrupt file", []),
    "arrow without its end": _dataset(lambda c: c[:-8], "corrupt file", TEXTS),
    "no arrow": _dataset(lambda c: b"plain text" * 9, "corrupt file", []),
    "empty arrow": _dataset(lambda c: b"", "empty file", []),
    "cut WARC": _warc(lambda c: c[:-30], "corrupt compressed data", ["page 0", "page 1", "page 2"]),
    "cut WARC.gz": _warc(lambda c: c[:-30], "corrupt compressed data",
                         ["page 0", "page 1", "page 2"], packed=True),
    "broken WARC record": _warc(
        lambda c: c.replace(b"WARC/1.0", b"WARX/1.0", 2).replace(b"WARX/1.0", b"WARC/1.0", 1),
        "broken record", ["page 0", "page 2", "page 3"]),
    "WARC record without length": _warc(
        lambda c: c.replace(b"Content-Length", b"Content-Lentgh", 1), "broken record",
        ["page 1", "page 2", "page 3"]),
    "no WARC": _file("warc", "a.warc", b"plain text\n" * 9, "broken record", []),
    "empty WARC": _file("warc", "a.warc", b"", "empty file", []),
    "bytes in code": lambda tmp_path: (
        "code", write(tmp_path / "a.py", b"x = '\xff'\n").parent, {}, "undecodable bytes", []),
    "long code": lambda tmp_path: (
        "code", write(tmp_path / "a.py", b"x = 1\n" * 99).parent, {"limit": 50},
        "document too long", []),
}  # fmt: skip


def bad_source(tmp_path, name):
    kind, path, options, reason, left = BAD[name](tmp_path)
    pytest.importorskip({"warc": "warcio", "parquet": "pyarrow", "hf_dataset": "pyarrow"}.get(
        kind, "json"))  # fmt: skip
    source = make(kind, path, **options)
    if name == "file gone":
        source.paths[0].unlink()
    return source, str(path), reason, left


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_an_error_that_says_where(tmp_path, name):
    source, path, reason, _ = bad_source(tmp_path, name)
    with pytest.raises(DataError) as error:
        read(source)
    assert str(error.value).startswith(path)
    assert f": {reason}" in str(error.value)
    assert "--config.data.bad_input=skip" in str(error.value)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_may_be_skipped_and_what_is_good_survives(tmp_path, name):
    source, _, reason, left = bad_source(tmp_path, name)
    texts, counts = read(source, "skip")
    assert reason in counts
    if left is not None:
        assert texts == left
        assert len(counts) == 1
    elif "jsonl" in str(source.paths):
        assert texts[-3:] == TEXTS  # of the file after the damaged one


def damaged(content, draw):
    """Bytes with one of the kinds of damage that disks and transfers do."""
    at, content = draw.randrange(len(content)), bytearray(content)
    how = draw.randrange(5)
    if how == 0:
        content[at] ^= 1 << draw.randrange(8)
    elif how == 1:
        del content[at:]
    elif how == 2:
        content[at:at] = draw.randbytes(draw.randrange(1, 40))
    elif how == 3:
        end = min(len(content), at + draw.randrange(600))
        content[at:end] = bytes(end - at)
    else:
        for _ in range(10):
            content[draw.randrange(len(content))] = draw.randrange(256)
    return bytes(content)


def sound_sources(tmp_path):
    """{name: (kind, path to read, path to damage)} of sound files."""
    members = {"a.txt": b"text", "b.jsonl": LINES, "c.html": PAGE.encode(), "d.csv": as_csv(TEXTS)}
    members["e.jsonl.gz"] = gzip.compress(LINES)
    records = [("http://a", "text/html", PAGE.encode())] * 3
    contents = {
        "csv": as_csv(TEXTS), "html": PAGE.encode(), "tar": tarred(members),
        "tar.zst": tarred(members, PACK[".zst"]), "warc": as_warc(records, False),
        "warc.gz": as_warc(records),
        **{f"jsonl{suffix}": pack(LINES) for suffix, pack in PACK.items()},
    }  # fmt: skip
    kinds = {"tar": "archive", "zip": "archive"}
    paths = [write(tmp_path / f"a.{suffix}", content) for suffix, content in contents.items()]
    paths.append(zipped(tmp_path / "a.zip", members))
    paths.append(as_parquet(tmp_path / "a.parquet", {"text": TEXTS * 9}, row_group_size=9))
    found = {}
    for path in paths:
        kind = path.name.split(".")[1]
        found[path.name] = (kinds.get(kind, kind), path, path)
    folder = as_dataset(tmp_path / "set", TEXTS)
    return found | {"set": ("hf_dataset", folder, folder / "data-00000-of-00001.arrow")}


def test_damage_of_any_kind_is_told_and_nothing_else_is_raised(tmp_path):
    draw = random.Random(0)
    for name, (kind, path, file) in sound_sources(tmp_path).items():
        content, told = file.read_bytes(), 0
        assert len(read(make(kind, path))[0]) > 0, name
        for _ in range(40):
            file.write_bytes(damaged(content, draw))
            told += bool(read(make(kind, path), "skip")[1])
        assert told, name


def test_nothing_of_an_archive_is_written(tmp_path):
    members = {"../out.txt": b"bad", "in/a.txt": b"good", special("in/b.txt", LINK, "a.txt"): b""}
    path = write(tmp_path / "here" / "a.tar", tarred(members))
    texts, counts = read(make("archive", path), "skip")
    assert (texts, counts) == (["good"], {"path out of the archive": 1, "link": 1})
    assert [p.name for p in tmp_path.rglob("*")] == ["here", "a.tar"]


def test_a_long_header_of_a_tar_is_not_read(tmp_path):
    """It would be held in memory whole, before any member is seen."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("a.txt")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"good"))
        long = tarfile.TarInfo("././@LongLink")
        long.type, long.size = tarfile.GNUTYPE_LONGNAME, 2 << 20
        archive.addfile(long, io.BytesIO(bytes(2 << 20)))
    path = write(tmp_path / "a.tar.gz", gzip.compress(out.getvalue()))
    texts, counts = read(make("archive", path, ratio=1e6), "skip")
    assert (texts, counts) == (["good"], {"corrupt archive": 1})


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_bomb_is_stopped_before_it_fills_memory(tmp_path, suffix):
    path = write(tmp_path / f"a.txt{suffix}", PACK[suffix](bytes(100 << 20)))
    pieces = files.chunks(path)
    assert max(len(next(pieces)) for _ in range(3)) <= 64 << 20
    with pytest.raises(DataError, match="document too long"):
        read(make("text", path, limit=1 << 20))
