"""The words of many documents at once, as arrays: where they are, and a hash of each.

A loop over words in Python costs ten times what these passes over bytes do. Hashes depend on the
text alone, so that every process and every run finds the same.
"""

from typing import NamedTuple

import numpy as np

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[65:91] += 32
_PUNCTUATION = np.array([33 <= b < 128 and not chr(b).isalnum() for b in range(256)])
# Bytes that begin a character of a script without spaces (U+3000 to U+DFFF): a word each.
_NO_SPACES = (0xE3, 0xED)


class Words(NamedTuple):
    """Words in the order of the documents.

    Attributes:
        hash: uint64[words].
        document: int64[words], the index of each word's document.
        size: int64[words], characters.
        letters: bool[words], whether there is a letter in it.
        count: documents.
    """

    hash: np.ndarray
    document: np.ndarray
    size: np.ndarray
    letters: np.ndarray
    count: int


def split(texts, *, plain=False):
    """Returns the `Words` of texts, cut at white space.

    Args:
        texts: [str].
        plain: also cut at ASCII punctuation, and take each character of scripts without spaces for
            a word, so that copies that differ in these have the same words.

    Capital ASCII letters hash as small ones.
    """
    parts = [text.encode() for text in texts]
    # A space after each, so that no word goes from one to the next.
    raw = np.frombuffer(b" ".join([*parts, b""]), np.uint8)
    stops = np.cumsum([len(part) + 1 for part in parts])
    is_gap = raw <= 32
    if plain:
        is_gap |= _PUNCTUATION[raw]
    before = np.concatenate([[True], is_gap[:-1]])
    begins = ~is_gap & before
    if plain:
        single = (raw >= _NO_SPACES[0]) & (raw <= _NO_SPACES[1])
        after = np.concatenate([[False] * 3, single[:-3]])
        begins |= single | (after & ~is_gap)
    starts = np.flatnonzero(begins)
    gaps = np.flatnonzero(is_gap)
    ends = gaps[np.searchsorted(gaps, starts)] if len(gaps) else starts
    if plain:  # a word also ends where the next begins
        ends = np.minimum(ends, np.append(starts[1:], len(raw)))
    characters = _sums((raw & 0xC0) != 0x80)
    letters = _sums(((raw | 32) >= 97) & ((raw | 32) <= 122) | (raw >= 0x80))
    return Words(
        _hashes(_LOWER[raw], starts, ends),
        np.searchsorted(stops, starts, "right"),
        characters[ends] - characters[starts],
        letters[ends] > letters[starts],
        len(parts),
    )


def _sums(flags):
    """Sums of all before each place: int64[n + 1]."""
    return np.concatenate([[0], np.cumsum(flags)])


def _hashes(data, starts, ends):
    """A polynomial of each stretch's bytes modulo 2^64, mixed."""
    powers = _powers(_BASE, len(data))
    terms = np.empty(len(data) + 1, np.uint64)
    terms[0] = 0
    np.cumsum((data.astype(np.uint64) + np.uint64(1)) * powers, out=terms[1:])
    value = (terms[ends] - terms[starts]) * _powers(_INVERSE, len(data) + 1)[starts]
    return mix(value + (ends - starts).astype(np.uint64))


_KEPT = {}


def _powers(base, count):
    """base^0, base^1, …: uint64[count]; kept for the next batch."""
    found = _KEPT.get(int(base))
    if found is None or len(found) < count:
        found = np.full(max(count, 1 << 20), base, np.uint64)
        found[0] = 1
        np.multiply.accumulate(found, out=found)
        _KEPT[int(base)] = found
    return found[:count]


def mix(value):
    """Spreads uint64 over all bits (splitmix64's last steps; Steele et al. 2014)."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def grams(words, n):
    """Hashes of every n words in a row of one document.

    Returns:
        (uint64[grams], int64[grams]: the index of each gram's first word).
    """
    count = max(len(words.hash) - n + 1, 0)
    value = np.zeros(count, np.uint64)
    for i in range(n):
        value = value * _BASE + words.hash[i : i + count]
    whole = np.flatnonzero(words.document[:count] == words.document[n - 1 : n - 1 + count])
    return mix(value[whole]), whole


def keyed_grams(words, n):
    """The same as `grams`, with hashes that differ from document to document."""
    gram, first = grams(words, n)
    return mix(gram ^ mix(words.document[first].astype(np.uint64))), first


def batches(some, size=len, characters=1 << 20):
    """Yields lists of some texts, or of what has one, of about so many characters each.

    Args:
        some: in their order.
        size: function of one: its characters.
        characters: of a list, which ends behind the one that goes beyond them.
    """
    found, total = [], 0
    for one in some:
        found.append(one)
        total += size(one)
        if total > characters:
            yield found
            found, total = [], 0
    if found:
        yield found


def hash_of(word):
    """The hash that `split` gives a word."""
    return split([word]).hash[0]
