"""Documents of zip and tar archives, whose members are read where they stand, never extracted."""

import functools
import pathlib
import re
import stat
import struct
import tarfile
import zipfile
import zlib

from jaxllm.data import files, html, sources, tables
from jaxllm.data.errors import DataError
from jaxllm.data.sources import LIMIT_BYTES, FileSource

SUFFIXES = (".zip", ".tar", ".tgz", ".tbz2", ".txz")
_TAR_PACKED = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz"}
_NESTED = (*SUFFIXES, ".7z", ".rar", ".whl", ".jar", ".epub")
_SLACK_BYTES = 1 << 20  # that a small archive may hold whatever its ratio
_BLOCKS_BYTES = 1 << 15  # that the library reads at once and copies at every member
_HEADER_BYTES = 1 << 20  # of a tar's extended header, which is read whole
_EXTENDED = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_DEFLATED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the others grow without bound
_ZIP_ERRORS = (  # that the library raises for damage
    *(zipfile.BadZipFile, zlib.error, struct.error),
    *(EOFError, RuntimeError, ValueError, OverflowError, OSError),
)
_READERS = {  # suffix: (reader, options of `make` that it takes)
    **dict.fromkeys((".txt", ".md"), (sources.read_text, ("separator", "limit"))),
    **dict.fromkeys((".jsonl", ".json"), (sources.read_jsonl, ("field", "limit"))),
    **dict.fromkeys((".html", ".htm", ".xhtml"), (html.read_html, ("limit",))),
    **dict.fromkeys((".csv", ".tsv"), (tables.read_csv, ("field", "limit"))),
}


class _BombError(Exception):
    """More bytes than a budget allows."""


class _DamageError(Exception):
    """An archive that cannot be read on."""


class _Budget:
    """Bytes that may still be decompressed."""

    def __init__(self, most, why):
        self._left, self.why = most, why

    def spend(self, pieces):
        """Yields pieces of bytes as long as they fit."""
        for piece in pieces:
            if len(piece) > self._left:
                yield piece[: self._left]
                raise _BombError(self)
            self._left -= len(piece)
            yield piece


class Member:
    """A file in an archive, to be read once.

    Args:
        where: the archive's path, ":" and the member's name.
        pieces: iterator of its bytes.
    """

    def __init__(self, where, pieces):
        self._where, self._pieces = where, pieces
        path = pathlib.PurePosixPath(where)
        self.name, self.suffix = path.name, path.suffix

    def __str__(self):
        return self._where

    def open(self, mode="rb"):
        del mode
        return files.Stream(self._pieces)


def _budget(size, ratio, total):
    """The budget of what so many compressed bytes may become."""
    grown = max(_SLACK_BYTES, int(ratio * size))
    if grown < total:
        return _Budget(grown, f"it grows by more than {ratio:g}; set ratio")
    return _Budget(total, f"it holds more than {total:,} bytes; set total")


def _documents(member, budget, own, bad, options):
    """Yields the documents of one member, by its suffix; those of unknown suffix are no text.

    Args:
        member: `Member`.
        budget: of the archive.
        own: budget of the member.
        bad, options: as everywhere.
    """
    name = str(member)
    if member.suffix in files.PACKED:
        pieces = budget.spend(own.spend(files.chunks(member)))
        member = Member(name.removesuffix(member.suffix), pieces)
    if member.suffix.lower() not in _READERS:
        return
    read, taken = _READERS[member.suffix.lower()]
    chosen = functools.partial(read, **{option: options[option] for option in taken})
    try:
        yield from sources.read_file(member, bad, chosen)
    except _BombError as error:
        if error.args[0] is not own:
            raise
        bad("archive too large", name, own.why)


def _unsafe(name):
    """Why a member's name or kind keeps it from being read, or ""."""
    if name.startswith(("/", "\\")) or re.match(r"[a-zA-Z]:", name):
        return "absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "path out of the archive"
    base = pathlib.PurePosixPath(name)
    if base.suffix in files.PACKED:
        base = base.with_suffix("")
    return "nested archive" if base.suffix.lower() in _NESTED else ""


def read_archive(path, bad, field, separator, limit, ratio, total):
    """Yields the Documents of an archive; see `make`."""
    options = {"field": field, "separator": separator, "limit": limit}
    is_zip = path.suffix.lower() == ".zip"
    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:
            bad("empty file", path)
            return
        budget = _budget(size, ratio, total)
        read = _zip_members if is_zip else _tar_members
        empty = True
        try:
            members = read(path, file, bad, budget, ratio, total)
            for member, own in members:
                empty = False
                if member:
                    yield from _documents(member, budget, own, bad, options)
        except _BombError as error:
            bad("archive too large", path, error.args[0].why)
            return
        except (_DamageError, files.CorruptError, tarfile.TarError, zipfile.BadZipFile) as error:
            bad("corrupt archive", path, str(error))
            return
        if empty:
            bad("empty archive", path, "it has no members")


def _zip_members(path, file, bad, budget, ratio, total):
    """Yields (Member, its budget) of a zip; (None, None) of one that is not to be read."""
    file.seek(0)
    try:
        archive = zipfile.ZipFile(file)
    except _ZIP_ERRORS as error:
        raise _DamageError(str(error)) from error
    for info in archive.infolist():
        mode = stat.S_IFMT(info.external_attr >> 16)
        why = _unsafe(info.filename)
        if not why and mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            why = "link" if mode == stat.S_IFLNK else "device or pipe"
        if not why and info.flag_bits & 1:
            why = "encrypted member"
        if not why and info.compress_type not in _DEFLATED:
            why = "unknown compression"
        if why:
            bad(why, f"{path}:{info.filename}")
        if why or info.filename.endswith("/"):
            yield None, None
            continue
        own = _budget(info.compress_size, ratio, total)
        pieces = budget.spend(own.spend(_zip_pieces(archive, info)))
        yield Member(f"{path}:{info.filename}", pieces), own


def _zip_pieces(archive, info):
    try:
        with archive.open(info) as member:
            while piece := member.read(files.CHUNK_BYTES):
                yield piece
    except _ZIP_ERRORS as error:
        raise files.CorruptError(str(error)) from error


class _Header(tarfile.TarInfo):
    """A tar's header; what the library takes for the end of the archive is damage here."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        header = super().frombuf(buf, encoding, errors)
        if header.type in _EXTENDED and header.size > _HEADER_BYTES:
            raise _DamageError(f"an extended header has {header.size:,} bytes")
        return header

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as error:
            raise _DamageError(f"{error}, at byte {archive.offset:,}") from error


def _tar_members(path, file, bad, budget, ratio, total):
    """Yields (Member, its budget) of a tar; (None, None) of one that is not to be read."""
    del file
    name = path.name.lower()
    packed = _TAR_PACKED.get(path.suffix.lower())
    if packed:
        name, path = f"{name}{packed}", _Renamed(path, packed)
    pieces = _stopping(budget.spend(files.chunks(path)))
    with tarfile.open(
        fileobj=files.Stream(pieces), mode="r|", bufsize=_BLOCKS_BYTES, tarinfo=_Header
    ) as archive:
        for info in archive:
            why = _unsafe(info.name)
            if not why and (info.issym() or info.islnk()):
                why = "link"
            if not why and not info.isdir() and (not info.isreg() or info.issparse()):
                why = "device or pipe" if not info.issparse() else "sparse file"
            if why:
                bad(why, f"{path}:{info.name}")
            if why or info.isdir():
                yield None, None
                continue
            own = _budget(info.size, ratio, total)
            yield Member(f"{path}:{info.name}", _tar_pieces(archive, info)), own
    for _ in pieces:  # damage behind the last member is damage
        pass


class _Renamed:
    """A file under the suffix that says how it is packed."""

    def __init__(self, path, suffix):
        self._path, self.suffix, self.open = path, suffix, path.open

    def __str__(self):
        return str(self._path)


def _stopping(pieces):
    """Damage of the archive, told from damage of a member."""
    try:
        yield from pieces
    except files.CorruptError as error:
        raise _DamageError(str(error)) from error


def _tar_pieces(archive, info):
    member = archive.extractfile(info)
    try:
        while piece := member.read(files.CHUNK_BYTES):
            yield piece
    except tarfile.TarError as error:
        raise _DamageError(f"{info.name}: {error}") from error


def make(*, path="", field="text", separator="", limit=LIMIT_BYTES, ratio=200.0, total=1 << 36):
    """Archives (.zip, .tar, also as .gz, .bz2, .xz or .zst), whose members are read by suffix.

    Text, HTML, JSONL and CSV members, also compressed, are read as their own kinds are; others are
    passed over. Nothing is written to disk. Members with absolute paths or "..", links, devices,
    encrypted members and archives in the archive count as bad input.

    Args:
        path: a file, a directory, a glob, or several joined by commas.
        field: of JSONL and CSV members.
        separator: of text members, as for kind "text".
        limit: most characters of a document, bytes of a line or page.
        ratio: most bytes that a compressed byte may become, beyond the first MiB.
        total: most bytes that an archive may hold.

    Raises:
        DataError: no file matches, no field is named, or a limit is not above 0.
    """
    if not field:
        raise DataError("field is empty; name the field that holds the text.")
    if ratio <= 0 or total <= 0:
        raise DataError(f"ratio={ratio:g} and total={total} must be above 0.")
    options = {"field": field, "separator": separator, "limit": limit}
    options |= {"ratio": ratio, "total": total}
    return FileSource("archive", files.find(path, SUFFIXES), read_archive, options)
