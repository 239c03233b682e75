"""Lines and paragraphs that many documents share: menus, notices, signatures.

`count` looks at a shard by itself, `common` at the counts of all shards together.
"""

import hashlib

import numpy as np

# {kind: what separates its pieces}.
KINDS = {"paragraphs": "\n\n", "lines": "\n"}
SHORTEST = 20  # characters of a piece that is counted; shorter ones are shared by chance


def _hash(piece):
    return int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")


def _pieces(text, separator):
    """Yields (piece, its hash, or None where it is too short to count)."""
    for piece in text.split(separator):
        plain = " ".join(piece.split())
        yield piece, _hash(plain) if len(plain) >= SHORTEST else None


def count(texts, kinds):
    """Returns {kind: (uint64 hashes of pieces, int64 in how many texts each is)}.

    Args:
        texts: of a shard.
        kinds: that are asked for.
    """
    found = {}
    for kind in kinds:
        each = [{h for _, h in _pieces(text, KINDS[kind]) if h is not None} for text in texts]
        hashes = np.array([h for some in each for h in some], np.uint64)
        found[kind] = np.unique(hashes, return_counts=True)
    return found


def common(parts, most):
    """Returns the sorted hashes of the pieces that are in more than `most` documents.

    Args:
        parts: [(hashes, counts)] of all shards, as `count` gives them.
        most: documents.
    """
    hashes = np.concatenate([np.zeros(0, np.uint64), *(hashes for hashes, _ in parts)])
    counts = np.concatenate([np.zeros(0, np.int64), *(counts for _, counts in parts)])
    each, place = np.unique(hashes, return_inverse=True)
    return each[np.bincount(place, counts, len(each)) > most]


def make(known):
    """Returns a stage that takes out shared pieces, and drops documents of nothing else.

    Args:
        known: {kind: sorted hashes}.
    """

    def stage(documents, report):
        left = []
        for document in documents:
            text = document.text
            for kind, hashes in known.items():
                kept = [
                    piece
                    for piece, h in _pieces(text, KINDS[kind])
                    if h is None or not _is_among(h, hashes)
                ]
                new = KINDS[kind].join(kept)
                report.changed[f"shared {kind}"] += new != text
                text = new
            if not text.strip():
                report.drop("shared text alone", document)
            else:
                left.append(document._replace(text=text))
        return left

    return stage


def _is_among(value, ordered):
    """Whether a sorted array holds a value."""
    at = np.searchsorted(ordered, np.uint64(value))
    return at < len(ordered) and ordered[at] == value
