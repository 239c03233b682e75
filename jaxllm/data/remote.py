"""Files in object stores, through fsspec: s3://, gs://, hf://, https://, memory://, …"""

import pathlib
import re

from jaxllm.data.errors import DataError


def is_url(path):
    """Whether a path names a place in an object store."""
    return bool(re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path))


class Remote:
    """A file in an object store: as much of a Path as readers need.

    Args:
        url: such as "s3://bucket/notes.jsonl.gz".
    """

    def __init__(self, url):
        self._url = url
        name = pathlib.PurePosixPath(url)
        self.name, self.suffix = name.name, name.suffix

    def __str__(self):
        return self._url

    def __eq__(self, other):
        return isinstance(other, Remote) and str(self) == str(other)

    def __hash__(self):
        return hash(self._url)

    def open(self, mode="rb"):
        store, path = _store(self._url)
        return store.open(path, mode)

    def size(self):
        store, path = _store(self._url)
        return store.size(path)

    def version(self):
        """What changes when the file does, such as a hash of its ETag."""
        store, path = _store(self._url)
        return str(store.ukey(path))


def find(url, wanted):
    """Returns the files that a URL names: one, those of a directory with a suffix, or a glob.

    Args:
        url: scheme://….
        wanted: tuple of suffixes that a directory is searched for.

    Raises:
        DataError: fsspec or what it needs for this scheme is missing, or the store refuses.
    """
    store, path = _store(url)
    try:
        if store.isfile(path):
            names = [path]
        elif store.isdir(path):
            names = [name for name in store.find(path) if name.endswith(wanted)]
        else:
            names = [name for name in store.glob(path) if store.isfile(name)]
    except Exception as error:  # every store raises its own kinds
        raise DataError(
            f"path={url!r} cannot be listed: {type(error).__name__}: {error}. "
            "Check its spelling and this machine's rights to it."
        ) from error
    return [Remote(store.unstrip_protocol(name)) for name in names]


def _store(url):
    """Returns (file system, path in it) of a URL."""
    try:
        import fsspec
    except ImportError as error:
        raise DataError(
            f"path={url!r} needs fsspec ({error}).\n"
            "  Install it with: pip install -r requirements-prepare.txt"
        ) from error
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise DataError(
            f"path={url!r}: {error}.\n  fsspec needs a library a store: pip install s3fs for "
            "s3://, gcsfs for gs://, adlfs for az://."
        ) from error
    except ValueError as error:
        raise DataError(f"path={url!r}: {error}. Name a scheme that fsspec knows.") from error
