"""The hash manifest that makes a directory a checkpoint.

Orbax checks nothing of the array bytes: one flipped bit on disk is restored as a wrong number
without an error. So the size and SHA-256 of every file go into `manifest.json`, and the SHA-256
of that file into the marker `COMMITTED`, written last. A directory without the marker is no
checkpoint; one with it must match it to the last bit.
"""

import concurrent.futures
import hashlib
import json
import os

NAME = "manifest.json"
MARKER = "COMMITTED"
FORMAT = 1
CHUNK_BYTES = 4 << 20
THREADS = min(8, os.cpu_count() or 1)


class DamagedError(RuntimeError):
    """A checkpoint whose files are not those that were written. Says which and how."""


def is_local(path):
    """Whether an epath is on a mounted file system rather than in an object store."""
    return "://" not in os.fspath(path)


def write_atomic(path, data):
    """Writes a small file so that it is there whole or not at all, and stays after a power cut.

    Object stores put whole objects, so there a plain write is enough.

    Args:
        path: epath.
        data: bytes.
    """
    if not is_local(path):
        path.write_bytes(data)
        return
    temporary = path.parent / f"{path.name}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync(path.parent)


def files(directory):
    """Returns the sorted relative paths of all files below a directory, but not the manifest's own.

    Args:
        directory: epath.
    """
    found, folders = [], [("", directory)]
    while folders:
        prefix, folder = folders.pop()
        for path in folder.iterdir():
            if path.is_dir():
                folders.append((f"{prefix}{path.name}/", path))
            else:
                found.append(prefix + path.name)
    return sorted(set(found) - {NAME, MARKER})


def digest(path):
    """Returns (bytes, SHA-256 in hex) of a file."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
            size += len(chunk)
    return size, sha.hexdigest()


def commit(directory, body):
    """Hashes all files of a directory, writes the manifest and then the marker.

    Everything is flushed to the disk before the marker appears.

    Args:
        directory: epath of the finished files.
        body: what else the manifest holds; JSON.
    """
    names = files(directory)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        digests = list(pool.map(lambda name: _flush_and_digest(directory / name), names))
    if is_local(directory):
        for folder in {os.path.dirname(os.fspath(directory / name)) for name in names}:
            _sync(folder)
    listed = {
        name: {"bytes": size, "sha256": sha}
        for name, (size, sha) in zip(names, digests, strict=True)
    }
    text = json.dumps({"format": FORMAT, **body, "files": listed}, indent=1).encode()
    write_atomic(directory / NAME, text)
    write_atomic(directory / MARKER, hashlib.sha256(text).hexdigest().encode())
    if is_local(directory):
        _sync(directory.parent)


def is_committed(directory):
    """Whether the marker is there; says nothing of what it marks."""
    return (directory / MARKER).exists()


def verify(directory):
    """Reads every byte of a checkpoint and returns its manifest.

    Raises:
        DamagedError: a file is missing, extra, of another length or of other content, or the
            manifest or the marker is not what was written.
    """
    try:
        return _verify(directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{directory} cannot be read: {error}") from error


def _verify(directory):
    marker = (directory / MARKER).read_bytes()
    text = (directory / NAME).read_bytes()
    if hashlib.sha256(text).hexdigest().encode() != marker:
        raise DamagedError(f"{directory / NAME} does not have the SHA-256 in {MARKER}")
    manifest = json.loads(text)
    if manifest["format"] != FORMAT:
        raise DamagedError(
            f"{directory / NAME} has format {manifest['format']}; this version reads {FORMAT}"
        )
    listed, found = manifest["files"], set(files(directory))
    for names, word in ((set(listed) - found, "missing"), (found - set(listed), "not listed")):
        if names:
            raise DamagedError(f"{directory / min(names)} is {word} ({len(names)} such files)")
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda name: digest(directory / name), listed)
        for (name, want), (size, sha) in zip(listed.items(), digests, strict=True):
            if size != want["bytes"]:
                raise DamagedError(f"{directory / name} has {size} bytes, not {want['bytes']}")
            if sha != want["sha256"]:
                raise DamagedError(f"{directory / name} has {size} bytes but another SHA-256")
    return manifest


def _flush_and_digest(path):
    if is_local(path):
        _sync(path)
    return digest(path)


def _sync(path):
    """Waits until a local file or directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
