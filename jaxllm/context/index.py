"""An index of a folder of documents by embeddings, which only embeds what has changed."""

import hashlib
import io
import json
import pathlib
from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError, near
from jaxllm.context import chunks
from jaxllm.context.select import unit
from jaxllm.whole_files import replacing

MANIFEST, PASSAGES, VECTORS = "manifest.json", "passages.jsonl", "vectors.npy"
ENDINGS = (".txt", ".md", ".rst", ".tex")
FILE_BYTES = 64 << 20
SEARCHES = ("exact", "faiss")
NEEDS = "pip install -r requirements-context.txt"
BATCH = 64  # passages embedded at a time


class Passage(NamedTuple):
    """A passage of a document.

    Attributes:
        source: path of its file below the folder.
        start, end: characters from the file's beginning.
        line: of its first character, counted from 1.
        text: what it says.
        score: cosine with the query, 0 where none was asked.
    """

    source: str
    start: int
    end: int
    line: int
    text: str
    score: float = 0.0


class Refreshed(NamedTuple):
    """What `refresh` did: the index, files embedded, kept and removed, and [(file, why not)]."""

    index: "Index"
    embedded: int
    kept: int
    removed: int
    skipped: list


class Index:
    """Passages and their embeddings.

    Args:
        passages: [Passage].
        vectors_ND: float32[passages, d], each of length 1.
        search: "exact", a product with all vectors (1 ms for 10,000 of 384 numbers); or
            "faiss", a graph of neighbours that is made when the index is opened, for millions.
    """

    def __init__(self, passages, vectors_ND, search="exact"):
        if search not in SEARCHES:
            raise ConfigError(
                f"search={search!r} is unknown.{near(search, SEARCHES)} "
                f"Known: {', '.join(SEARCHES)}."
            )
        self.passages, self.vectors_ND = passages, vectors_ND
        self._graph = _graph(vectors_ND) if search == "faiss" and len(passages) else None

    def search(self, embed, query, k):
        """Finds the passages most similar to a query.

        Args:
            embed: [text] -> float32[n, d], the function the index was made with.
            query: a text.
            k: most passages to return.

        Returns:
            [Passage], the most similar first; of equals, the first in the index.
        """
        if not self.passages or k < 1:
            return []
        query_D = unit(embed, [query])[0]
        if len(query_D) != self.vectors_ND.shape[1]:
            raise ConfigError(
                f"the index has embeddings of {self.vectors_ND.shape[1]} numbers, the query's has "
                f"{len(query_D)}: it was made with another function. Make it again."
            )
        if self._graph is not None:
            scores, places = self._graph.search(query_D[None], min(k, len(self.passages)))
            found = [(i, s) for i, s in zip(places[0], scores[0], strict=True) if i >= 0]
        else:
            scores_N = self.vectors_ND @ query_D
            found = [(i, scores_N[i]) for i in np.argsort(-scores_N, kind="stable")[:k]]
        return [self.passages[i]._replace(score=float(score)) for i, score in found]


def _graph(vectors_ND):
    """A graph of neighbours (Malkov & Yashunin 2018, arXiv:1603.09320)."""
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(f'search="faiss" needs faiss.\n  Try {NEEDS}.') from error
    graph = faiss.IndexHNSWFlat(vectors_ND.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efSearch = 128
    graph.add(np.ascontiguousarray(vectors_ND))
    return graph


def refresh(
    folder, directory, embed, tokenizer, *, name, size_tokens=256, overlap_tokens=32, search="exact"
):
    """Brings the index of a folder up to date, and makes it where there is none.

    A file whose bytes are as they were keeps its embeddings; settings other than those the
    index was made with embed all anew.

    Args:
        folder: documents in it and below: .txt, .md, .rst and .tex in UTF-8.
        directory: where the index is stored.
        embed: [text] -> float32[n, d].
        tokenizer: counts the passages' tokens.
        name: says which function `embed` is; another name embeds all anew.
        size_tokens, overlap_tokens: see `chunks.cut`.
        search: see `Index`.

    Returns:
        `Refreshed`; it lists files that cannot be read.

    Raises:
        ConfigError: no such folder, or an index that is damaged.
    """
    folder, directory = (pathlib.Path(p).expanduser() for p in (folder, directory))
    if not folder.is_dir():
        raise ConfigError(f"folder={str(folder)!r} is no folder (seen from {pathlib.Path.cwd()}).")
    settings = {"embed": name, "tokenizer": tokenizer.fingerprint}
    settings |= {"size_tokens": size_tokens, "overlap_tokens": overlap_tokens}
    old, known = _stored(directory, settings)
    texts, skipped = _documents(folder)
    passages, vectors, files, kept = [], [], {}, 0
    for source, content in texts.items():
        digest = hashlib.sha256(content).hexdigest()
        first = len(passages)
        if known.get(source, {}).get("sha256") == digest:
            rows = slice(known[source]["first"], known[source]["first"] + known[source]["count"])
            passages += old.passages[rows]
            vectors.append(old.vectors_ND[rows])
            kept += 1
        else:
            made = _passages(source, content.decode(), tokenizer, size_tokens, overlap_tokens)
            passages += made
            vectors += [
                unit(embed, [p.text for p in made[i : i + BATCH]])
                for i in range(0, len(made), BATCH)
            ]
        files[source] = {"sha256": digest, "first": first, "count": len(passages) - first}
    vectors = [part for part in vectors if len(part)]
    vectors_ND = np.concatenate(vectors) if vectors else np.zeros((0, 0), np.float32)
    _save(directory, settings, files, passages, vectors_ND)
    removed = len(known.keys() - texts.keys())
    index = Index(passages, vectors_ND, search)
    return Refreshed(index, len(texts) - kept, kept, removed, skipped)


def _documents(folder):
    """Returns ({path below the folder: bytes}, [(path, why it is left out)])."""
    found, skipped, inside = {}, [], folder.resolve()
    for path in sorted(folder.rglob("*")):
        source = path.relative_to(folder).as_posix()
        if path.suffix.lower() not in ENDINGS or not path.is_file():
            continue
        if not path.resolve().is_relative_to(inside):
            skipped.append((source, "a link that leads out of the folder"))
        elif path.stat().st_size > FILE_BYTES:
            skipped.append((source, f"larger than {FILE_BYTES:,} bytes"))
        else:
            content = path.read_bytes()
            try:
                content.decode()
            except UnicodeDecodeError:
                skipped.append((source, "no UTF-8 text"))
                continue
            found[source] = content
    return found, skipped


def _passages(source, text, tokenizer, size_tokens, overlap_tokens):
    return [
        Passage(source, c.start, c.end, text.count("\n", 0, c.start) + 1, c.text)
        for c in chunks.cut(text, tokenizer, size_tokens, overlap_tokens)
    ]


def _save(directory, settings, files, passages, vectors_ND):
    """Writes an index; the manifest, with the hashes of the rest, comes last."""
    lines = "".join(json.dumps(p[:-1], ensure_ascii=False) + "\n" for p in passages)
    array = io.BytesIO()
    np.save(array, vectors_ND, allow_pickle=False)
    contents = {PASSAGES: lines.encode(), VECTORS: array.getvalue()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = {"settings": settings, "hashes": hashes, "files": files}
    contents[MANIFEST] = json.dumps(manifest, indent=1).encode()
    for name, content in contents.items():
        with replacing(directory / name) as file:
            file.write(content)


def _read(directory):
    """Returns (manifest, [Passage], vectors) of a stored index."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        contents = {name: (directory / name).read_bytes() for name in (PASSAGES, VECTORS)}
        for name, content in contents.items():
            if hashlib.sha256(content).hexdigest() != manifest["hashes"][name]:
                raise ConfigError(
                    f"{directory / name} is not what was stored.\n  Remove {directory} and make "
                    "the index again."
                )
        # Not splitlines: text may hold other ends of lines than \n, which JSON leaves as they are.
        lines = contents[PASSAGES].decode().split("\n")[:-1]
        passages = [Passage(*json.loads(line)) for line in lines]
        vectors_ND = np.load(io.BytesIO(contents[VECTORS]), allow_pickle=False)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ConfigError(
            f"{directory} holds no whole index: {error!r}.\n  Remove it and make the index again."
        ) from error
    return manifest, passages, vectors_ND


def _stored(directory, settings):
    """Returns (Index, {file: what is known of it}), both empty where nothing can be kept."""
    nothing = Index([], np.zeros((0, 0), np.float32)), {}
    if not (directory / MANIFEST).is_file():
        return nothing
    manifest, passages, vectors_ND = _read(directory)
    if manifest["settings"] != settings:
        return nothing
    return Index(passages, vectors_ND), manifest["files"]


def load(directory, search="exact"):
    """Opens a stored index.

    Args:
        directory: where `refresh` stored it.
        search: see `Index`.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    _, passages, vectors_ND = _read(pathlib.Path(directory).expanduser())
    return Index(passages, vectors_ND, search)
