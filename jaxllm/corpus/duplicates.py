"""Duplicates: exact by hash of the text, near by MinHash and locality-sensitive hashing.

`signatures` looks at a shard by itself; `find` at the signatures of all shards together, and keeps
of each group of copies the first in the order of the shards.

Source: Broder 1997 (MinHash); bands of rows as in Leskovec, Rajaraman and Ullman, Mining of Massive
Datasets, chapter 3; sizes near those of FineWeb (Penedo et al. 2024, arXiv:2406.17557).
"""

import hashlib
from typing import NamedTuple

import numpy as np

from jaxllm.corpus import words as wording

_BATCH_GRAMS = 1 << 16  # hashed together: what fits a processor's cache


class Options(NamedTuple):
    """How near copies are found.

    Attributes:
        exact: whether equal texts are found.
        near: whether near ones are.
        ngram: words of a shingle.
        bands, rows: of a signature; more rows ask for more likeness, more bands find more.
        similarity: least part of shingles in common, as the signature estimates it.
    """

    exact: bool = True
    near: bool = True
    ngram: int = 5
    bands: int = 16
    rows: int = 7
    similarity: float = 0.65


class Signatures(NamedTuple):
    """Of the documents of a shard.

    Attributes:
        text: uint64[documents, 2], a hash of the text.
        minhash: uint32[documents, bands x rows]; no rows where near copies are not asked for.
    """

    text: np.ndarray
    minhash: np.ndarray


def signatures(texts, options):
    """Returns the `Signatures` of texts."""
    digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    exact = np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)
    if not options.near:
        return Signatures(exact, np.zeros((len(texts), 0), np.uint32))
    parts = [_minhash(some, options) for some in wording.batches(texts)]
    none = np.zeros((0, options.bands * options.rows), np.uint32)
    return Signatures(exact, np.concatenate([none, *parts]))


def _minhash(texts, options):
    """uint32[documents, bands x rows]: the least of each permutation's hashes of shingles."""
    count = options.bands * options.rows
    out = np.full((len(texts), count), 0xFFFFFFFF, np.uint32)
    found = wording.split(texts, plain=True)
    gram, first = wording.grams(found, options.ngram)
    document = found.document[first]
    # Too short for one shingle: all its words together.
    short = np.setdiff1d(np.unique(found.document), document)
    for i in short:
        gram = np.append(gram, found.hash[found.document == i].sum(dtype=np.uint64))
        document = np.append(document, i)
    if len(short):
        order = np.argsort(document, kind="stable")
        gram, document = gram[order], document[order]
    multiply, add = _permutations(count)
    low = (gram >> np.uint64(32)).astype(np.uint64)
    for start in range(0, len(low), _BATCH_GRAMS):
        piece, of = low[start : start + _BATCH_GRAMS], document[start : start + _BATCH_GRAMS]
        heads = np.flatnonzero(np.concatenate([[True], of[1:] != of[:-1]]))
        rows = of[heads]
        for k in range(count):
            # The high half of a product with an odd number (Dietzfelbinger et al. 1997).
            hashed = ((piece * multiply[k] + add[k]) >> np.uint64(32)).astype(np.uint32)
            out[rows, k] = np.minimum(out[rows, k], np.minimum.reduceat(hashed, heads))
    return out


def _permutations(count):
    draw = np.random.Generator(np.random.PCG64(1)).integers(0, 1 << 63, (2, count), np.uint64)
    return draw[0] | np.uint64(1), draw[1]


class Found(NamedTuple):
    """What is a copy of what, over documents numbered through all shards.

    Attributes:
        original: int64[documents], the first of its group; itself where it has no copy before.
        exact: bool[documents], whether it is a copy to the letter.
    """

    original: np.ndarray
    exact: np.ndarray


def find(parts, options):
    """Finds the copies among the documents of all shards.

    Args:
        parts: [Signatures], in the order of the shards.
        options: `Options`.
    """
    text = np.concatenate([part.text for part in parts])
    count = len(text)
    original = np.arange(count)
    exact = np.zeros(count, bool)
    if options.exact and count:
        order = np.lexsort((np.arange(count), text[:, 1], text[:, 0]))
        same = (text[order][1:] == text[order][:-1]).all(1)
        heads = np.concatenate([[0], np.where(same, 0, np.arange(1, count))])
        original[order] = order[np.maximum.accumulate(heads)]
        exact = original != np.arange(count)
    if options.near and count:
        minhash = np.concatenate([part.minhash for part in parts])
        singles = np.flatnonzero(~exact)
        for a, b in _pairs(minhash, singles, options):
            _join(original, a, b)
    return Found(np.array([_root(original, i) for i in range(count)], np.int64), exact)


def _pairs(minhash, some, options):
    """Yields pairs of documents alike enough: those that share a band, tried on all rows."""
    for band in range(options.bands):
        rows = minhash[some, band * options.rows : (band + 1) * options.rows]
        key = np.zeros(len(some), np.uint64)
        for k in range(options.rows):
            key = wording.mix(key ^ rows[:, k].astype(np.uint64)) + np.uint64(k)
        order = np.argsort(key, kind="stable")
        same = np.concatenate([[False], key[order][1:] == key[order][:-1]])[: len(order)]
        heads = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
        a, b = some[order[heads[same]]], some[order[same]]
        for start in range(0, len(a), _BATCH_GRAMS):
            x, y = a[start : start + _BATCH_GRAMS], b[start : start + _BATCH_GRAMS]
            alike = (minhash[x] == minhash[y]).mean(1) >= options.similarity
            yield from zip(x[alike].tolist(), y[alike].tolist(), strict=True)


def _root(original, i):
    while original[i] != i:
        original[i] = original[original[i]]
        i = original[i]
    return i


def _join(original, a, b):
    """Joins two groups under the document that comes first."""
    a, b = _root(original, a), _root(original, b)
    original[max(a, b)] = min(a, b)


def groups(original, exact):
    """Returns how many groups of copies there are, and how large, as plain data.

    Args:
        original, exact: of `Found`.
    """
    sizes = np.bincount(original, minlength=len(original))
    near = (original != np.arange(len(original))) & ~exact
    some, counts = np.unique(sizes[sizes > 1], return_counts=True)
    return {
        "groups": int(counts.sum()),
        "groups_with_near_copies": len(np.unique(original[near])),
        "sizes": dict(zip(map(str, some.tolist()), counts.tolist(), strict=True)),
    }


def largest(original, most=5):
    """Returns [(the first of a group, its documents)] of the largest groups, largest first."""
    sizes = np.bincount(original, minlength=len(original))
    order = np.argsort(-sizes, kind="stable")[:most]
    return [(int(i), int(sizes[i])) for i in order if sizes[i] > 1]
