"""Finding files and streaming their bytes, plain or compressed, in bounded memory."""

import codecs
import glob
import pathlib
import zlib

import zstandard

from jaxllm.data.errors import DataError

CHUNK_BYTES = 1 << 20
# Deflate grows a byte to at most 1,032, zstandard four to 128 KiB: small bites bound one step.
GZ_BITE_BYTES = 1 << 14
ZST_BITE_BYTES = 1 << 10
ZST_WINDOW_BYTES = 1 << 27


class CorruptError(Exception):
    """A compressed file that is damaged or cut short."""


class TooLongError(Exception):
    """A line or document longer than the limit."""


def find(path, suffixes):
    """Returns the sorted files that `path` names.

    Args:
        path: a file, a directory (searched at all depths for `suffixes`, also with .gz or .zst),
            a glob, or several of these joined by commas.
        suffixes: such as (".txt", ".md").

    Raises:
        DataError: nothing is named, or a part of it matches no file.
    """
    if not path:
        raise DataError("path is empty; name a file, a directory or a glob.")
    wanted = tuple(s + z for s in suffixes for z in ("", ".gz", ".zst"))
    found = set()
    whole = pathlib.Path(path).expanduser().exists()
    for part in [path] if whole else path.split(","):
        here = pathlib.Path(part.strip()).expanduser()
        if here.is_dir():
            matches = [p for p in here.rglob("*") if p.name.endswith(wanted) and p.is_file()]
        elif here.is_file():
            matches = [here]
        else:
            names = glob.glob(str(here), recursive=True)
            matches = [p for p in map(pathlib.Path, names) if p.is_file()]
        if not matches:
            raise DataError(
                f"path={part.strip()!r} matches no files (seen from {pathlib.Path.cwd()}). "
                f"A directory is searched for {', '.join(wanted)}."
            )
        found.update(p.resolve() for p in matches)
    return sorted(found)


def describe(paths):
    """Returns [path, size in bytes, mtime in ns] of files, which change when a file does."""
    rows = []
    for path in paths:
        stat = path.stat()
        rows.append([str(path), stat.st_size, stat.st_mtime_ns])
    return rows


def chunks(path):
    """Yields the decompressed bytes of a file in pieces of bounded size.

    Raises:
        CorruptError: a .gz or .zst file is damaged or cut short.
    """
    with open(path, "rb") as file:
        if path.suffix == ".gz":
            yield from _frames(file, lambda: zlib.decompressobj(wbits=31), GZ_BITE_BYTES)
        elif path.suffix == ".zst":
            context = zstandard.ZstdDecompressor(max_window_size=ZST_WINDOW_BYTES)
            yield from _frames(file, context.decompressobj, ZST_BITE_BYTES)
        else:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk


def _frames(file, decompressor, bite_bytes):
    """Yields the contents of all frames of a compressed file.

    Not the libraries' own readers: zstandard's takes a file cut short as whole, and gzip's
    throws away what stands before the damage.
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
            try:
                chunk = frame.decompress(bite)
            except (zlib.error, zstandard.ZstdError) as error:
                raise CorruptError(str(error)) from error
            if chunk:
                yield chunk
            bite = frame.unused_data if frame.eof else b""
    if not fed:
        raise CorruptError("the file has no bytes at all")
    if not frame.eof:
        raise CorruptError("the file ends inside a compressed frame")


def lines(path, limit_bytes):
    """Yields (line number from 1, line as bytes without its newline) of a file.

    Raises:
        CorruptError, TooLongError: as they say, after the lines before them were yielded.
    """
    number, parts, size = 1, [], 0
    for chunk in chunks(path):
        pieces = chunk.split(b"\n")
        for i, piece in enumerate(pieces):
            parts.append(piece)
            size += len(piece)
            if size > limit_bytes:
                raise TooLongError(f"line {number} is longer than {limit_bytes:,} bytes")
            if i < len(pieces) - 1:
                yield number, b"".join(parts)
                number, parts, size = number + 1, [], 0
    if size:
        yield number, b"".join(parts)


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
