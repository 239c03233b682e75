"""Files of one JSON object a line that survive a kill at any moment.

JSON has no NaN and no infinity: they are written as the strings "NaN", "Infinity" and "-Infinity",
which Python's float() and pandas.to_numeric read, and `read` turns back. Other floats are written
with the fewest digits that give the same bits again.
"""

import json
import math
import os

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value, indent=None):
    """Returns valid JSON text of nested dicts, lists, strings, numbers, numpy and jax scalars."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def decode(text):
    """The inverse of `encode`.

    Raises:
        ValueError: not JSON.
    """
    return _special(json.loads(text))


def read(path):
    """Reads a file as a list of dicts; a last line without its newline is not there yet.

    Raises:
        ValueError: a line that is not a JSON object; names file and line.
    """
    objects, bad = _parse(path)
    if bad:
        raise ValueError(f"{path}:{bad[0]}: not a JSON object. Delete the line, or the file.")
    return objects


def truncate(path, first_step):
    """Drops what a run that goes on at `first_step` will write again, atomically.

    Args:
        path: file; made empty if absent.
        first_step: lines with a "step" from this one on are dropped.

    Returns:
        (objects that stay, numbers of whole lines that could not be read and were dropped).
    """
    objects, bad = _parse(path) if os.path.exists(path) else ([], [])
    kept = [line for line in objects if line.get("step", 0) < first_step]
    write_atomic(path, "".join(encode(line) + "\n" for line in kept))
    return kept, bad


def write_atomic(path, text):
    """Writes a small text file so that it is there whole or as it was before."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


class Appender:
    """Appends objects to a file; each line is one write, so a kill tears the last one at most."""

    def __init__(self, path):
        self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (open as long as the run)

    def write(self, value):
        """Appends one object as one line.

        Raises:
            OSError: the disk did not take all of it.
        """
        line = encode(value).encode() + b"\n"
        written = self.file.write(line)
        if written != len(line):
            raise OSError(f"{self.file.name}: {written} of {len(line)} bytes written. Disk full?")

    def close(self):
        """Puts all lines on the disk and closes the file."""
        if not self.file.closed:
            os.fsync(self.file.fileno())
            self.file.close()


def _parse(path):
    """Returns (objects, numbers of the lines that are none), without a torn last line."""
    with open(path, "rb") as file:
        lines = file.read().split(b"\n")[:-1]  # what follows the last newline was torn off
    objects, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            value = decode(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            objects.append(value)
        else:
            bad.append(number)
    return objects, bad


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if hasattr(value, "item"):  # numpy and jax scalars
        return _plain(value.item())
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return str(value)


def _special(value):
    if isinstance(value, dict):
        return {k: _special(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_special(v) for v in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value
