"""The header of a GGUF file, read within bounds: every count and length is checked before use.

Layout of the format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3; what
differs in version 2 is not read here).
"""

import math
import mmap
import struct
from typing import Any, NamedTuple

import numpy as np

from jaxllm.models.weights.tensors import WeightsError

VERSIONS = (2, 3)
KEYS = 65_536
TENSORS = 65_536
NAME_BYTES = 1_024
STRING_BYTES = 16 << 20
ELEMENTS = 4 << 20  # of one array: vocabularies and their merges have some hundred thousand
DIMENSIONS = 4
SIDE = 1 << 31  # numbers along one dimension
ALIGNMENT = 65_536
# A key takes 8 bytes of length, 1 of name, 4 of type, 1 of value; a tensor's entry 8 + 1, one
# dimension of 4 + 8, its type and its offset.
KEY_BYTES, ENTRY_BYTES = 14, 33

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "<u1"}
SCALARS |= {10: "<u8", 11: "<i8", 12: "<f8"}

# {number in the file: (name, values in a block, bytes of a block)}.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
}


class Entry(NamedTuple):
    """A tensor as the header lists it.

    Attributes:
        name: its name.
        shape: rows first, as NumPy has it; the file lists it the other way round.
        kind: a name in `TYPES`, such as "Q4_K".
        start: place of its first byte in the file.
        row_bytes: bytes of a row, which is the last dimension.
        bytes: bytes of the whole.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    row_bytes: int
    bytes: int


class _Reader:
    """A place in a file, from which values are taken that are known to be inside it."""

    def __init__(self, data, path):
        self.data, self.path, self.at = data, path, 0

    def fail(self, what):
        raise WeightsError(
            f"{self.path} is no usable GGUF file: {what}.\n  Fetch it again, or convert the model "
            "from its safetensors files."
        )

    def left(self):
        return len(self.data) - self.at

    def take(self, size, what):
        if size > self.left():
            self.fail(f"it ends within {what} ({size:,} bytes from byte {self.at:,} on)")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, form, what):
        return struct.unpack("<" + form, self.take(struct.calcsize(form), what))[0]

    def string(self, limit, what):
        size = self.number("Q", f"the length of {what}")
        if size > limit:
            self.fail(f"{what} is said to have {size:,} bytes, of {limit:,} allowed")
        content = self.take(size, what)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return self.fail(f"{what} is no UTF-8 text")

    def count(self, limit, least_bytes, what):
        size = self.number("Q", f"the number of {what}")
        if size > min(limit, self.left() // least_bytes):
            self.fail(
                f"it is said to hold {size:,} {what}, but has {self.left():,} bytes left "
                f"(and {limit:,} are allowed)"
            )
        return size

    def value(self, kind, what):
        if kind == STRING:
            return self.string(STRING_BYTES, what)
        if kind == ARRAY:
            return self.array(what)
        if kind not in SCALARS:
            self.fail(f"{what} is of type {kind}, which there is not")
        found = self.numbers(kind, 1, what)[0]
        return bool(found) if kind == BOOL else found.item()

    def array(self, what):
        kind = self.number("I", f"the type of {what}")
        if kind != STRING and kind not in SCALARS:
            self.fail(f"{what} is an array of type {kind}; only numbers and strings are read")
        least = 8 if kind == STRING else np.dtype(SCALARS[kind]).itemsize
        size = self.count(ELEMENTS, least, f"elements of {what}")
        if kind == STRING:
            return [self.string(STRING_BYTES, f"an element of {what}") for _ in range(size)]
        return self.numbers(kind, size, what)

    def numbers(self, kind, size, what):
        form = np.dtype(SCALARS[kind])
        found = np.frombuffer(self.take(size * form.itemsize, what), form)
        if kind == BOOL and found.size and found.max() > 1:
            self.fail(f"{what} is neither true nor false, but {found.max()}")
        return found


def read_header(path) -> tuple[dict[str, Any], list[Entry]]:
    """Reads the keys and the list of tensors of a GGUF file; memory is bounded by the file's size.

    Args:
        path: the file.

    Returns:
        ({key: number, bool, str, list of str or 1-D array}, [Entry]).

    Raises:
        WeightsError: not a GGUF file, of a version or byte order that is not read, cut short, or
            with counts, lengths, names, shapes, types or places that cannot be.
    """
    try:
        with open(path, "rb") as file:
            if file.seek(0, 2) < 24:
                raise WeightsError(f"{path} is no GGUF file: it has fewer than 24 bytes.")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.") from error
    with data:
        return _read(_Reader(data, path))


def _read(reader):
    if reader.take(4, "its first bytes") != b"GGUF":
        reader.fail("it does not begin with GGUF")
    version = reader.number("I", "its version")
    if version not in VERSIONS:
        swapped = version >> 16 and version & 0xFFFF == 0
        order = "of the other byte order" if swapped else f"of version {version}"
        reader.fail(f"it is {order}; little-endian files of version 2 and 3 are read")
    entries = reader.count(TENSORS, ENTRY_BYTES, "tensors")
    keys = reader.count(KEYS, KEY_BYTES, "keys")
    found = {}
    for _ in range(keys):
        name = reader.string(NAME_BYTES, "a key's name")
        if not name or name in found:
            reader.fail(f"it has the key {name!r} twice" if name else "a key has no name")
        found[name] = reader.value(reader.number("I", f"the type of {name!r}"), repr(name))
    listed = [_entry(reader) for _ in range(entries)]
    return found, _places(reader, found, listed)


def _entry(reader):
    """Reads a tensor's entry; its `start` is still counted from the end of the header."""
    name = reader.string(NAME_BYTES, "a tensor's name")
    dimensions = reader.number("I", f"the number of dimensions of {name!r}")
    if not name or not 1 <= dimensions <= DIMENSIONS:
        reader.fail(f"tensor {name!r} has {dimensions} dimensions, of 1 to {DIMENSIONS}")
    shape = tuple(reader.number("Q", f"the shape of {name!r}") for _ in range(dimensions))[::-1]
    kind = reader.number("I", f"the type of {name!r}")
    start = reader.number("Q", f"the place of {name!r}")
    if not all(1 <= side <= SIDE for side in shape):
        reader.fail(f"tensor {name!r} has the shape {shape}")
    if kind not in TYPES:
        known = ", ".join(name for name, *_ in TYPES.values())
        reader.fail(f"tensor {name!r} is of type {kind}; those read are {known}")
    kind, values, size = TYPES[kind]
    if shape[-1] % values:
        reader.fail(f"rows of {name!r} have {shape[-1]:,} values, no multiple of {values} ({kind})")
    row = shape[-1] // values * size
    return Entry(name, shape, kind, start, row, math.prod(shape[:-1]) * row)


def _places(reader, keys, entries):
    """Checks where the tensors lie, and counts it from the file's first byte."""
    alignment = keys.get("general.alignment", 32)
    power = isinstance(alignment, int) and 0 < alignment <= ALIGNMENT
    if not power or isinstance(alignment, bool) or alignment & (alignment - 1):
        reader.fail(f"general.alignment={alignment!r} is no power of two up to {ALIGNMENT:,}")
    first, end, names = -(-reader.at // alignment) * alignment, 0, set()
    for entry in sorted(entries, key=lambda entry: entry.start):
        if entry.name in names:
            reader.fail(f"it has the tensor {entry.name!r} twice")
        names.add(entry.name)
        if entry.start % alignment:
            reader.fail(f"tensor {entry.name!r} at {entry.start:,} is no multiple of {alignment}")
        if entry.start < end:
            reader.fail(f"tensor {entry.name!r} lies over another one")
        end = entry.start + entry.bytes
        if first + end > len(reader.data):
            reader.fail(
                f"tensor {entry.name!r} ends at byte {first + end:,} of {len(reader.data):,}"
            )
    return [entry._replace(start=first + entry.start) for entry in entries]
