"""Files that are there whole or not at all, whenever their writer is killed."""

import contextlib
import os
import pathlib


@contextlib.contextmanager
def replacing(path):
    """Opens a file to write that takes its place only once it is whole and on the disk.

    Args:
        path: of the file; its directory is made where missing. What stood there stays until the
            end, and for good where the writer raises.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
