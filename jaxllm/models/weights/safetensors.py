"""Safetensors files: headers checked before a byte is used, tensors mapped and read by the slice.

A file is 8 bytes with the size of its header, a JSON header {name: {"dtype", "shape",
"data_offsets"}}, and the bytes of all tensors end to end, little-endian and row-major. A folder has
one such file, or several and an index that says which tensor is in which.
"""

import json
import math
import pathlib

import ml_dtypes
import numpy as np

from jaxllm.config import near
from jaxllm.models.weights.tensors import Tensor, View, WeightsError
from jaxllm.whole_files import replacing

DTYPES = {
    "F64": np.dtype("float64"),
    "F32": np.dtype("float32"),
    "F16": np.dtype("float16"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("int64"),
    "I32": np.dtype("int32"),
    "I16": np.dtype("int16"),
    "I8": np.dtype("int8"),
    "U64": np.dtype("uint64"),
    "U32": np.dtype("uint32"),
    "U16": np.dtype("uint16"),
    "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

HEADER_BYTES = 100_000_000  # as the format's own library has it
JSON_BYTES = 50_000_000  # of config.json, index and the like
FILE_BYTES = 200_000_000  # of a tokenizer's file
TENSORS = 1_000_000
DIMENSIONS = 16
ALIGNMENT = 8  # of the first tensor's bytes

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
BESIDE = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_folder(path):
    """Opens a Hugging Face folder of safetensors.

    Args:
        path: the folder, with config.json and model.safetensors or its shards and their index.

    Returns:
        `View`; tensors are read when asked.

    Raises:
        WeightsError: something is missing, damaged, or of a kind that could run code.
    """
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise WeightsError(f"{folder} is no folder. Give one that has config.json and {SINGLE}.")
    config = read_json(folder / "config.json")
    tensors = _open_sharded(folder) if (folder / INDEX).is_file() else _open_single(folder)
    files = {name: _read_small(folder / name) for name in BESIDE if (folder / name).is_file()}
    return View(config, tensors, files, str(folder))


def _open_single(folder):
    if (folder / SINGLE).is_file():
        return open_file(folder / SINGLE)
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
    if pickles:
        refuse_pickle(folder / pickles[0])
    found = sorted(p.name for p in folder.glob("*.safetensors"))
    if len(found) == 1:
        return open_file(folder / found[0])
    raise WeightsError(
        f"{folder} has neither {SINGLE} nor {INDEX}. Safetensors there: "
        f"{', '.join(found[:5]) or 'none'}. Download the folder again, whole."
    )


def _open_sharded(folder):
    """Opens the shards that an index names; index and files must agree."""
    path = folder / INDEX
    where = read_json(path).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise WeightsError(f"{path} has no weight_map from names to files.")
    opened, tensors = {}, {}
    for name, shard in where.items():
        if not isinstance(shard, str) or not shard or pathlib.PurePath(shard).name != shard:
            raise WeightsError(f"{path} puts {name!r} into {shard!r}, which is no name of a file.")
        if pathlib.PurePath(shard).suffix in PICKLES:
            refuse_pickle(folder / shard)
        if shard not in opened:
            if not (folder / shard).is_file():
                raise WeightsError(
                    f"{path} names {shard}, which is missing. There: "
                    f"{', '.join(sorted(p.name for p in folder.glob('*.safetensors'))[:5])}. "
                    "Download the folder again, whole."
                )
            opened[shard] = open_file(folder / shard)
        if name not in opened[shard]:
            raise WeightsError(
                f"{path} says that {name!r} is in {shard}, and it is not."
                f"{near(name, opened[shard])}"
            )
        tensors[name] = opened[shard][name]
    for shard, held in opened.items():
        extra = [name for name in held if where.get(name) != shard]
        if extra:
            raise WeightsError(f"{folder / shard} holds {extra[0]!r}, which {path} does not name.")
    return tensors


def open_file(path):
    """Opens one safetensors file.

    Returns:
        {name: Tensor}, in the order of the file's bytes.

    Raises:
        WeightsError: it is not what the format allows.
    """
    path = pathlib.Path(path)
    if path.suffix in PICKLES:
        refuse_pickle(path)
    header, _, first = _read_header(path)
    spans = _check_header(path, header, path.stat().st_size - first)
    return {
        name: Tensor(shape, dtype, _reader(path, first + begin, dtype, shape))
        for name, (dtype, shape, begin) in spans.items()
    }


def read_metadata(path):
    """Returns {name: text} of what a safetensors file says of itself.

    Raises:
        WeightsError: it is not what the format allows.
    """
    path = pathlib.Path(path)
    _, metadata, _ = _read_header(path)
    if not all(isinstance(text, str) for text in metadata.values()):
        raise WeightsError(f"{path}: __metadata__ has a value that is no text.")
    return metadata


def _read_header(path):
    """Returns (the header's tensors, its metadata, first byte behind it)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size < 8:
            raise WeightsError(f"{path} has {size} bytes, too few for a safetensors file.")
        length = int.from_bytes(file.read(8), "little")
        limit = min(HEADER_BYTES, size - 8)
        if not 2 <= length <= limit:
            raise WeightsError(
                f"{path} says that its header has {length:,} bytes; at most {limit:,} are possible."
                " It is cut off, or no safetensors file."
            )
        return *_parse(path, file.read(length)), 8 + length


def _parse(path, text):
    """Returns (tensors, metadata) of a header: one JSON object, no name twice."""

    def unique(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(n for n in names if names.count(n) > 1)
            raise WeightsError(f"{path}: its header names {twice!r} twice.")
        return found

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its header is not JSON: {error}.") from None
    if not isinstance(header, dict):
        raise WeightsError(f"{path}: its header is a {type(header).__name__}, not a JSON object.")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise WeightsError(f"{path}: __metadata__ is no JSON object.")
    if len(header) > TENSORS:
        raise WeightsError(f"{path} names {len(header):,} tensors; at most {TENSORS:,} are read.")
    return header, metadata


def _check_header(path, header, room):
    """Returns {name: (dtype, shape, first byte)}, by offset; `room` bytes follow the header."""
    spans = {}
    for name, entry in header.items():
        where = f"{path}: tensor {name!r}"
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise WeightsError(f"{where} must have dtype, shape and data_offsets, and no more.")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in DTYPES:
            raise WeightsError(
                f"{where} has dtype {kind!r}.{near(kind, DTYPES)} Known: {', '.join(DTYPES)}."
            )
        if not _are_counts(shape) or len(shape) > DIMENSIONS:
            raise WeightsError(f"{where} has shape {str(shape)[:80]}: no list of whole numbers.")
        if not _are_counts(offsets) or len(offsets) != 2:
            raise WeightsError(f"{where} has data_offsets {str(offsets)[:80]}: not two bytes.")
        begin, end = offsets
        taken = math.prod(shape) * DTYPES[kind].itemsize
        if end - begin != taken:
            raise WeightsError(
                f"{where}: {kind}{shape} takes {taken:,} bytes, and its offsets have "
                f"{end - begin:,}."
            )
        if end > room:
            raise WeightsError(
                f"{where} ends at byte {end:,} of {room:,}: the file is cut off. Download it again."
            )
        spans[name] = (begin, end, DTYPES[kind], tuple(shape))
    at, found = 0, {}
    for name, (begin, end, dtype, shape) in sorted(spans.items(), key=lambda s: s[1][:2]):
        if begin != at:
            what = "overlaps the one before" if begin < at else "leaves a hole before it"
            raise WeightsError(f"{path}: tensor {name!r} at byte {begin:,} {what} (at {at:,}).")
        at, found[name] = end, (dtype, shape, begin)
    if at != room:
        raise WeightsError(f"{path} has {room - at:,} bytes after its last tensor, of no tensor.")
    return found


def _are_counts(values):
    """Whether it is a list of whole numbers from 0 that an array can have."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value < 2**62 for value in values
    )


def _reader(path, first, dtype, shape):
    """Returns a function from slices to what stands there; the file is mapped at each call."""

    def read(index):
        if 0 in shape:
            return np.empty(shape, dtype)[tuple(index)]
        mapped = np.memmap(path, np.uint8, "r", first, (math.prod(shape) * dtype.itemsize,))
        return np.array(mapped.view(dtype).reshape(shape)[tuple(index)])

    return read


def refuse_pickle(path):
    """Raises WeightsError with the line that converts a pickle, which could run code when read."""
    raise WeightsError(
        f"{path} is a pickle, which can run code when it is opened; it is not read here. Convert "
        "it once, with pip install torch safetensors:\n"
        '  python -c "import torch, safetensors.torch as s; '
        f"w = torch.load('{path}', weights_only=True, map_location='cpu'); "
        "s.save_file({k: v.contiguous().clone() for k, v in w.get('state_dict', w).items()}, "
        f"'{pathlib.Path(path).parent / SINGLE}')\""
    )


def read_json(path):
    """Returns the object of a JSON file from outside.

    Raises:
        WeightsError: there is none, it is too large, or no JSON object.
    """
    if not path.is_file():
        raise WeightsError(f"{path.parent} has no {path.name}. Download the folder again, whole.")
    if path.stat().st_size > JSON_BYTES:
        raise WeightsError(f"{path} has {path.stat().st_size:,} bytes; at most {JSON_BYTES:,}.")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise WeightsError(f"{path} holds a {type(found).__name__}, not a JSON object.")
    return found


def _read_small(path):
    if path.stat().st_size > FILE_BYTES:
        raise WeightsError(f"{path} has {path.stat().st_size:,} bytes; at most {FILE_BYTES:,}.")
    return path.read_bytes()


def write_folder(view, path, *, shard_bytes=5_000_000_000):
    """Writes a View as a Hugging Face folder, one tensor in memory at a time.

    Args:
        view: what to write.
        path: the folder; made where missing, and it must hold no weights.
        shard_bytes: most bytes of tensors in a file, unless one tensor has more.

    Raises:
        WeightsError: weights are there already, or a name or dtype that the format has not.
    """
    folder = pathlib.Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    there = sorted(p.name for p in folder.glob("*.safetensors*"))
    if there:
        raise WeightsError(f"{folder} holds {there[0]} already. Give another folder, or remove it.")
    shards, names = _share_out(view.tensors, shard_bytes), {}
    for number, shard in enumerate(shards, 1):
        several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        name = SINGLE if len(shards) == 1 else several
        write_file(shard, folder / name)
        names |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        total = sum(_size(tensor) for tensor in view.tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": names}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True))
    for name, content in view.files.items():
        if pathlib.PurePath(name).name != name:
            raise WeightsError(f"{name!r} is no name of a file.")
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text(json.dumps(view.config, indent=2))


def _share_out(tensors, shard_bytes):
    """Returns [{name: Tensor}], in order, each of at most `shard_bytes` where that is possible."""
    shards, room = [{}], shard_bytes
    for name, tensor in tensors.items():
        if shards[-1] and _size(tensor) > room:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = tensor
        room -= _size(tensor)
    return shards


def write_file(tensors, path, metadata=()):
    """Writes {name: Tensor} as one safetensors file, which appears when it is whole.

    Args:
        tensors: what to write.
        path: the file.
        metadata: {name: text} that it says of itself.

    Raises:
        WeightsError: a dtype that the format has not, or a tensor that is not as it says.
    """
    header, at = {"__metadata__": {"format": "pt", **dict(metadata)}}, 0
    for name, tensor in tensors.items():
        dtype = np.dtype(tensor.dtype)
        if dtype not in NAMES:
            raise WeightsError(f"{name!r} is {dtype}. Safetensors have {', '.join(DTYPES)}.")
        size = _size(tensor)
        offsets = [at, at + size]
        header[name] = dict(dtype=NAMES[dtype], shape=list(tensor.shape), data_offsets=offsets)
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors.items():
            array = tensor.read(tuple(slice(None) for _ in tensor.shape))
            if array.shape != tuple(tensor.shape) or array.dtype != tensor.dtype:
                raise WeightsError(f"{name!r} was read as {array.dtype}{array.shape}.")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _size(tensor):
    return math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
