"""Values of tensors in a GGUF file: rows read from the memory map, dequantized when asked."""

import ml_dtypes
import numpy as np

from jaxllm.models.weights.tensors import Tensor, WeightsError

NEEDS = "pip install -r requirements-convert.txt"
# What quantized rows become at a time, so that the temporaries of dequantizing stay small.
PIECE_VALUES = 1 << 22
PLAIN = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}


def package():
    """Returns the `gguf` package.

    Raises:
        WeightsError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise WeightsError(f"GGUF files need the gguf package.\n  Try {NEEDS}.") from error
    return gguf


class Rows:
    """A tensor of a GGUF file as rows, its last dimension being one.

    Args:
        data: uint8 memory map of the file.
        entry: the tensor's entry in the header.
    """

    def __init__(self, data, entry):
        self.data, self.kind, self.width = data, entry.kind, entry.shape[-1]
        raw = data[entry.start : entry.start + entry.bytes].reshape(-1, entry.row_bytes)
        self.plain = entry.kind in PLAIN
        self.dtype = PLAIN.get(entry.kind, np.dtype(np.float32))
        self.raw = raw.view(self.dtype) if self.plain else raw

    def read(self, rows, columns):
        """Returns values[rows, columns].

        Args:
            rows: slice, or array of row numbers.
            columns: slice.
        """
        if self.plain:
            return np.array(self.raw[rows, columns])
        gguf = package()
        kind = gguf.GGMLQuantizationType[self.kind]
        chosen = self.raw[rows]
        width = len(range(self.width)[columns])
        found = np.empty((len(chosen), width), np.float32)
        step = max(1, PIECE_VALUES // self.width)
        for start in range(0, len(chosen), step):
            piece = gguf.quants.dequantize(np.ascontiguousarray(chosen[start : start + step]), kind)
            found[start : start + step] = piece[:, columns]
        return found


def tensor(rows, shape, order=None, plus=0.0, transposed=False, first=0):
    """Makes the Tensor of rows in a file.

    Args:
        rows: `Rows`.
        shape: of the result; its last dimension is a row, or the first if `transposed`.
        order: (number of a row of the result) -> its number in the file, None where they agree.
        plus: added to what is read.
        transposed: the file has the matrix the other way round.
        first: number of the first row, where the tensor is one of several stacked.

    Returns:
        Tensor, which reads no rows but those asked for.
    """
    stored = tuple(shape[::-1] if transposed else shape)
    outer = stored[:-1]

    def read(index):
        index = tuple(index)[::-1] if transposed else tuple(index)
        # Ranges, since a slice may end beyond the tensor or count from its end.
        *above, columns = (range(side)[part] for side, part in zip(stored, index, strict=True))
        sizes = tuple(map(len, above))
        numbers = np.zeros(sizes, np.int64)
        for axis, chosen in enumerate(above):
            step = int(np.prod(outer[axis + 1 :]))
            places = np.asarray(chosen, np.int64) * step
            numbers += places.reshape((-1,) + (1,) * (len(above) - axis - 1))
        numbers = numbers.reshape(-1)
        if order is not None:
            numbers = order(numbers)
        picked = first + numbers
        in_row = len(picked) and picked[-1] - picked[0] == len(picked) - 1 and order is None
        wanted = slice(int(picked[0]), int(picked[-1]) + 1) if in_row else picked
        values = rows.read(wanted, slice(columns.start, columns.stop))
        if plus:
            values = values.astype(np.float32) + np.float32(plus)
        values = values.reshape(*sizes, len(columns))
        return values.T if transposed else values

    return Tensor(tuple(shape), np.dtype(np.float32) if plus else rows.dtype, read)


def flat(rows, order):
    """Makes the Tensor of a bias, whose numbers are rows of one in the file; see `tensor`."""
    of = tensor(rows, (len(rows.raw), 1), order)
    return Tensor(of.shape[:1], of.dtype, lambda index: of.read((*index, slice(None)))[:, 0])


def interleaved(heads, rows):
    """Undoes the order of queries and keys in files whose rotation pairs neighbours.

    Such files have row (head, pair, half) where Hugging Face's have (head, half, pair).

    Args:
        heads: number of heads.
        rows: rows of the matrix.

    Returns:
        (numbers of rows of Hugging Face's matrix) -> their numbers in the file.
    """
    half = rows // heads // 2

    def order(numbers):
        head, rest = np.divmod(numbers, 2 * half)
        part, pair = np.divmod(rest, half)
        return head * 2 * half + pair * 2 + part

    return order


def deinterleaved(heads, rows):
    """The inverse of `interleaved`: numbers of rows in the file -> those of Hugging Face's."""
    half = rows // heads // 2

    def order(numbers):
        head, rest = np.divmod(numbers, 2 * half)
        pair, part = np.divmod(rest, 2)
        return head * 2 * half + part * half + pair

    return order
