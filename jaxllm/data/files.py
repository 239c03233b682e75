"""Finding files and streaming their bytes, plain or compressed, in bounded memory.

A file is a `pathlib.Path` or what has its `name`, `suffix` and `open`: `remote.Remote` in an object
store, `archives.Member` of an archive.
"""

import bz2
import codecs
import glob
import lzma
import os
import pathlib
import zlib

import zstandard

from jaxllm.data import remote
from jaxllm.data.errors import DataError

CHUNK_BYTES = 1 << 20
# Deflate grows a byte to at most 1,032, zstandard four to 128 KiB: small bites bound one step.
GZ_BITE_BYTES = 1 << 14
ZST_BITE_BYTES = 1 << 10
ZST_WINDOW_BYTES = 1 << 27
XZ_MEMORY_BYTES = 1 << 28

PACKED = {  # suffix: (what makes a decompressor, bytes that it is fed at once)
    ".gz": (lambda: zlib.decompressobj(wbits=31), GZ_BITE_BYTES),
    ".bz2": (bz2.BZ2Decompressor, GZ_BITE_BYTES),
    ".xz": (lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY_BYTES), GZ_BITE_BYTES),
    ".zst": (
        lambda: zstandard.ZstdDecompressor(max_window_size=ZST_WINDOW_BYTES).decompressobj(),
        ZST_BITE_BYTES,
    ),
}


class CorruptError(Exception):
    """A compressed file that is damaged or cut short."""


class TooLongError(Exception):
    """A line or document longer than the limit."""


def find(path, suffixes):
    """Returns the sorted files that `path` names.

    Args:
        path: a file, a directory (searched at all depths for `suffixes`, also with .gz, .bz2, .xz
            or .zst), a glob, or several of these joined by commas; or the same in an object store,
            as scheme://….
        suffixes: such as (".txt", ".md"); "" for all.

    Raises:
        DataError: nothing is named, a part of it matches no file, or a directory cannot be read.
    """
    if not path:
        raise DataError("path is empty; name a file, a directory or a glob.")
    wanted = tuple(s + z for s in suffixes for z in ("", *PACKED))
    found, far = set(), set()
    whole = pathlib.Path(path).expanduser().exists()
    for part in [path] if whole else path.split(","):
        part = part.strip()
        if remote.is_url(part):
            matches = remote.find(part, wanted)
            far.update(matches)
        else:
            matches = _find_here(pathlib.Path(part).expanduser(), wanted)
            found.update(map(_resolved, matches))
        if not matches:
            raise DataError(
                f"path={part!r} matches no files (seen from {pathlib.Path.cwd()}). "
                f"A directory is searched for {', '.join(wanted)}."
            )
    return sorted(found) + sorted(far, key=str)


def _find_here(here, wanted):
    if here.is_dir():
        return [p for p in walk(here) if p.name.endswith(wanted) and p.is_file()]
    if here.is_file():
        return [here]
    return [p for p in map(pathlib.Path, glob.glob(str(here), recursive=True)) if p.is_file()]


def walk(directory):
    """Yields all that is no directory under a directory.

    Raises:
        DataError: one of the directories cannot be read.
    """

    def fail(error):
        raise DataError(
            f"path={str(directory)!r} holds a directory that cannot be read: {error}. "
            "Give this user the right to, or name what is beside it."
        ) from error

    for parent, _, names in os.walk(directory, onerror=fail):
        yield from (pathlib.Path(parent, name) for name in names)


def _resolved(path):
    """The path without links, but for one whose name says what the file is and its target not."""
    real = path.resolve()
    return real if real.suffix == path.suffix else pathlib.Path(os.path.abspath(path))


def describe(paths):
    """Returns [path, size in bytes, version] of files, which change when a file does."""
    rows = []
    for path in paths:
        if isinstance(path, remote.Remote):
            rows.append([str(path), path.size(), path.version()])
        else:
            stat = path.stat()
            rows.append([str(path), stat.st_size, stat.st_mtime_ns])
    return rows


def chunks(path):
    """Yields the decompressed bytes of a file in pieces of bounded size.

    Raises:
        CorruptError: a compressed file is damaged or cut short.
    """
    with path.open("rb") as file:
        if path.suffix in PACKED:
            yield from _frames(file, *PACKED[path.suffix])
        else:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _frames(file, decompressor, bite_bytes):
    """Yields the contents of all frames of a compressed file.

    Not the libraries' own readers: zstandard's takes a file cut short as whole, and the others
    throw away what stands before the damage.
    """
    frame, fed = decompressor(), False
    while bite := file.read(bite_bytes):
        while bite:
            if frame.eof:
                bite = bite.lstrip(b"\0")  # padding, as tape archives leave it
                if not bite:
                    break
                frame = decompressor()
            fed = True
            yield from _bitten(frame, bite)
            bite = frame.unused_data if frame.eof else b""
    if not fed:
        raise CorruptError("the file has no bytes at all")
    if not frame.eof:
        raise CorruptError("the file ends inside a compressed frame")


def _bitten(frame, bite):
    """Yields what one bite decompresses to; bz2 and xz grow without bound, so they are asked."""
    bounded = (CHUNK_BYTES,) if hasattr(frame, "needs_input") else ()
    while True:
        try:
            chunk = frame.decompress(bite, *bounded)
        except (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError) as error:
            raise CorruptError(str(error)) from error
        if chunk:
            yield chunk
        if not bounded or frame.eof or frame.needs_input:
            return
        bite = b""


def whole(path, limit_bytes):
    """Returns all decompressed bytes of a file.

    Raises:
        CorruptError, TooLongError: as they say.
    """
    parts, size = [], 0
    for chunk in chunks(path):
        parts.append(chunk)
        size += len(chunk)
        if size > limit_bytes:
            raise TooLongError(f"longer than {limit_bytes:,} bytes")
    return b"".join(parts)


class Stream:
    """Pieces of bytes as a file to read."""

    def __init__(self, pieces):
        self._pieces, self._piece, self._at = iter(pieces), b"", 0

    def read(self, size):
        """Returns at most `size` bytes, fewer where a piece ends, none where all do."""
        while self._at == len(self._piece):
            self._piece, self._at = next(self._pieces, None), 0
            if self._piece is None:
                self._piece = b""
                return b""
        found = self._piece[self._at : self._at + size]
        self._at += len(found)
        return found

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


def lines(path, limit_bytes):
    """Yields (line number from 1, line as bytes without its newline) of a file.

    A line longer than the limit is passed over: it comes as None.

    Raises:
        CorruptError: as it says, after the lines before the damage were yielded.
    """
    number, parts, size = 1, [], 0
    for chunk in chunks(path):
        pieces = chunk.split(b"\n")
        for i, piece in enumerate(pieces):
            size += len(piece)
            if size <= limit_bytes:
                parts.append(piece)
            else:
                parts = []
            if i < len(pieces) - 1:
                yield number, b"".join(parts) if size <= limit_bytes else None
                number, parts, size = number + 1, [], 0
    if size:
        yield number, b"".join(parts) if size <= limit_bytes else None


class Decoder:
    """Decodes UTF-8 piece by piece and knows the line where it fails."""

    def __init__(self):
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.line = 1

    def __call__(self, chunk, final=False):
        """Returns the text of the bytes so far undecoded and `chunk`.

        Raises:
            UnicodeDecodeError: not UTF-8; `line` is then the line of the first bad byte.
        """
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            self.line += error.object.count(b"\n", 0, error.start)
            raise
        self.line += text.count("\n")
        return text
