"""Token shards: flat files of ids, document offsets and a manifest, written once.

A shard set is a directory with, for each split, `SPLIT-00000.bin` … (little-endian uint16 or
uint32 ids, `shard_tokens` in each but the last), `SPLIT.offsets.npy` (int64, where each
document starts in the split's token stream), perhaps further arrays `SPLIT.NAME.npy` (of examples:
their parts and labels), and `manifest.json`, which is written last.
"""

import hashlib
import json
import pathlib

import numpy as np

from jaxllm.data.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
SPLITS = ("train", "validation")
SHARD_TOKENS = 1 << 28


def id_dtype(vocab_size):
    """Returns the smallest dtype of shards that holds every id of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class ArrayWriter:
    """Writes an .npy file row by row, whose length is known at the end.

    Args:
        path: of the file.
        dtype: of its numbers.
        columns: numbers a row; 0 for an array of one axis.
    """

    def __init__(self, path, dtype, columns=0):
        self._path, self._dtype, self._columns = pathlib.Path(path), np.dtype(dtype), columns
        self._partial = self._path.with_name(f".{self._path.name}.partial")
        self._file = open(self._partial, "wb+")  # noqa: SIM115
        self._rows = 0

    def write(self, rows):
        """Appends rows, an array [n] or [n, columns]."""
        rows = np.asarray(rows, self._dtype).reshape(-1, *[self._columns] * (self._columns > 0))
        self._rows += len(rows)
        self._file.write(rows.tobytes())

    def close(self):
        """Finishes the file and returns its part of the manifest."""
        shape = (self._rows, *[self._columns] * (self._columns > 0))
        with open(self._path, "wb") as file:
            header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            self._file.seek(0)
            while chunk := self._file.read(1 << 20):
                file.write(chunk)
        self._file.close()
        self._partial.unlink()
        return {"file": self._path.name, "shape": shape, "sha256": hash_file(self._path)}


class SplitWriter:
    """Writes one split's shards, holding no more than one piece of text in memory.

    Args:
        directory: where the files go.
        split: name of the split.
        vocab_size: ids must be below it.
        shard_tokens: tokens in each shard but the last.
    """

    def __init__(self, directory, split, vocab_size, shard_tokens):
        self._directory, self._split = pathlib.Path(directory), split
        self._vocab_size, self._shard_tokens = vocab_size, shard_tokens
        self._dtype = id_dtype(vocab_size)
        self._shards, self._file, self._hash, self._room = [], None, None, 0
        self._offsets, self._arrays = self._array("offsets", "<i8"), {}
        self.tokens = self.documents = self.bytes = self.characters = 0
        self.largest_id = -1

    def _array(self, name, dtype, columns=0):
        return ArrayWriter(self._directory / f"{self._split}.{name}.npy", dtype, columns)

    def array(self, name, dtype, columns=0):
        """Returns the ArrayWriter of a further array of the split, made when first asked for."""
        if name not in self._arrays:
            self._arrays[name] = self._array(name, dtype, columns)
        return self._arrays[name]

    def start_document(self):
        """Marks that the next ids begin a document."""
        self._offsets.write([self.tokens])
        self.documents += 1

    def write(self, ids, where):
        """Appends token ids.

        Raises:
            DataError: an id outside the vocabulary; `where` says which document holds it.
        """
        if not ids.size:
            return
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self._vocab_size:
            raise DataError(
                f"{where}: the tokenizer gave id {low if low < 0 else high}, outside its "
                f"vocabulary of {self._vocab_size}."
            )
        self.largest_id = max(self.largest_id, high)
        self.tokens += ids.size
        ids = ids.astype(self._dtype)
        while ids.size:
            if not self._room:
                self._next_shard()
            part, ids = ids[: self._room], ids[self._room :]
            content = part.tobytes()
            self._file.write(content)
            self._hash.update(content)
            self._room -= part.size

    def _next_shard(self):
        self._close_shard()
        name = f"{self._split}-{len(self._shards):05d}.bin"
        self._file = open(self._directory / name, "wb")  # noqa: SIM115
        self._hash, self._room = hashlib.sha256(), self._shard_tokens
        self._shards.append({"file": name})

    def _close_shard(self):
        if self._file is not None:
            self._file.close()
            tokens = self._shard_tokens - self._room
            self._shards[-1].update(tokens=tokens, sha256=self._hash.hexdigest())
            self._file = None

    def close(self):
        """Finishes the files and returns the split's part of the manifest."""
        self._close_shard()
        offsets = self._offsets.close()
        arrays = {name: array.close() for name, array in self._arrays.items()}
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "characters": self.characters,
            "largest_id": self.largest_id,
            "shards": self._shards,
            "offsets": {"file": offsets["file"], "sha256": offsets["sha256"]},
            **({"arrays": arrays} if arrays else {}),
        }


def hash_file(path):
    """Returns the sha256 in hex of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory, manifest):
    """Writes the manifest, which makes a shard set complete."""
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    (pathlib.Path(directory) / MANIFEST).write_text(text)


def read_manifest(directory):
    """Reads a shard set's manifest.

    Raises:
        DataError: it is missing, unreadable or of another format.
    """
    path = pathlib.Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}.\n  {_again(directory)}") from error
    if found != FORMAT:
        raise DataError(f"{path} has format {found}, not {FORMAT}.\n  {_again(directory)}")
    return manifest


def check_sizes(directory, manifest):
    """Raises DataError unless every file has the size that the manifest says."""
    itemsize = np.dtype(manifest["dtype"]).itemsize
    for part in manifest["splits"].values():
        for shard in part["shards"]:
            _check_size(pathlib.Path(directory) / shard["file"], shard["tokens"] * itemsize)
        offsets = pathlib.Path(directory) / part["offsets"]["file"]
        _check_array(offsets, (part["documents"],), "offsets")
        for entry in arrays(part).values():
            path = pathlib.Path(directory) / entry["file"]
            _check_array(path, tuple(entry["shape"]), "numbers")


def arrays(part):
    """Returns {name: file, shape and hash} of a split's further arrays, of its manifest."""
    return {"arrays": {}, **part}["arrays"]


def _check_array(path, shape, what):
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False).shape
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged: {error}.\n  {_again(path.parent)}") from error
    if found != shape:
        raise DataError(
            f"{path} holds {found} {what}, the manifest says {shape}.\n  {_again(path.parent)}"
        )


def _check_size(path, size_bytes):
    found = path.stat().st_size if path.is_file() else "no file"
    if found != size_bytes:
        raise DataError(
            f"{path} has {found} bytes, the manifest says {size_bytes}.\n  {_again(path.parent)}"
        )


def check_hashes(directory, manifest):
    """Raises DataError unless every file has the sha256 that the manifest says."""
    for part in manifest["splits"].values():
        for entry in [*part["shards"], part["offsets"], *arrays(part).values()]:
            path = pathlib.Path(directory) / entry["file"]
            if hash_file(path) != entry["sha256"]:
                raise DataError(
                    f"{path} has changed since it was written (sha256).\n  {_again(directory)}"
                )


def read_array(directory, manifest, split, name):
    """Returns a further array of a split, memory-mapped.

    Raises:
        DataError: the shard set has none of that name.
    """
    found = arrays(manifest["splits"][split])
    if name not in found:
        raise DataError(f"{directory} has no {name!r} of its {split} split. {_again(directory)}")
    if not found[name]["shape"][0]:  # nothing to map
        return np.load(pathlib.Path(directory) / found[name]["file"], allow_pickle=False)
    return np.load(pathlib.Path(directory) / found[name]["file"], "r", allow_pickle=False)


def write_scores(directory, split, scores):
    """Stores a number for each document of a split beside its shards, for a curriculum.

    Args:
        directory: of the shard set.
        split: name of the split.
        scores: float[documents], higher is harder.

    Raises:
        DataError: not one finite number a document.
    """
    scores = np.asarray(scores, np.float32)
    documents = read_manifest(directory)["splits"][split]["documents"]
    if scores.shape != (documents,) or not np.isfinite(scores).all():
        raise DataError(
            f"scores of {directory}, split {split}: {scores.shape} given, of which "
            f"{int(np.isfinite(scores).sum())} are finite; it has {documents} documents."
        )
    np.save(pathlib.Path(directory) / f"{split}.scores.npy", scores)


def read_scores(directory, manifest, split):
    """Returns what `write_scores` stored, float32[documents].

    Raises:
        DataError: there is none, or it is of another number of documents.
    """
    path = pathlib.Path(directory) / f"{split}.scores.npy"
    try:
        scores = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {error}.\n  Write it with data.shards.write_scores, or try "
            "--config.data.curriculum.kind=length."
        ) from error
    documents = manifest["splits"][split]["documents"]
    if scores.shape != (documents,):
        raise DataError(f"{path} has {scores.shape} scores for {documents} documents.")
    return scores


def _again(directory):
    return f"Delete {directory} and prepare again."


class TokenStream:
    """A split's tokens as one long stream over memory-mapped shards.

    Attributes:
        size: number of tokens.
        starts: int64[documents], where each document starts.
    """

    def __init__(self, directory, manifest, split):
        directory, part = pathlib.Path(directory), manifest["splits"][split]
        dtype = np.dtype(manifest["dtype"])
        self._maps = [
            np.memmap(directory / shard["file"], dtype, "r", shape=(shard["tokens"],))
            for shard in part["shards"]
        ]
        self._shard_tokens = manifest["shard_tokens"]
        self.size = part["tokens"]
        offsets = directory / part["offsets"]["file"]
        if part["documents"]:
            self.starts = np.load(offsets, mmap_mode="r", allow_pickle=False)
        else:
            self.starts = np.zeros(0, np.int64)

    def read(self, starts, length):
        """Returns stream[start : start + length] for each start, int32[len(starts), length]."""
        out = np.empty((len(starts), length), np.int32)
        if len(self._maps) == 1:
            shard, last = np.zeros(len(starts), np.int64), 0
        else:
            shard = starts // self._shard_tokens
            last = (starts + length - 1) // self._shard_tokens
        whole = shard == last
        for s in np.unique(shard[whole]):
            rows = np.flatnonzero(whole & (shard == s))
            windows = np.lib.stride_tricks.sliding_window_view(self._maps[s], length)
            out[rows] = windows[starts[rows] - s * self._shard_tokens]
        for row in np.flatnonzero(~whole):
            out[row] = self._across(int(starts[row]), length)
        return out

    def piece(self, start, length):
        """Returns one stretch of the stream, in the dtype of the shards."""
        s, inside = divmod(start, self._shard_tokens)
        if inside + length <= self._shard_tokens and length:
            return self._maps[s][inside : inside + length]
        return self._across(start, length) if length else np.zeros(0, np.int32)

    def read_pieces(self, starts, lengths, places, tokens, targets):
        """Writes stretches of the stream, and the same one token later.

        Args:
            starts, lengths: of the stretches; each is followed by one more token.
            places: where each goes in `tokens` and `targets`, int32[…].
        """
        size = self._shard_tokens
        for start, length, place in zip(
            starts.tolist(), lengths.tolist(), places.tolist(), strict=True
        ):
            s, inside = divmod(start, size)
            piece = self._maps[s][inside : inside + length + 1]
            if len(piece) <= length:
                piece = self._across(start, length + 1)
            tokens[place : place + length] = piece[:-1]
            targets[place : place + length] = piece[1:]

    def _across(self, start, length):
        """Reads one stretch that crosses from shard to shard."""
        parts = []
        while length:
            s, inside = divmod(start, self._shard_tokens)
            part = self._maps[s][inside : inside + length]
            parts.append(part)
            start, length = start + len(part), length - len(part)
        return np.concatenate(parts)
