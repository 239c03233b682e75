"""Keyed permutations: a shuffle of any length, looked up place by place.

A shuffled list needs memory for every entry and a generator whose state must be saved. A
keyed permutation needs neither: the place of entry i is computed from (key, i) alone.
"""

import hashlib

import numpy as np

ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUND_KEYS = [np.uint64((r + 1) * 0xD1B54A32D192ED03 % 2**64) for r in range(ROUNDS)]
_MIX1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX2 = np.uint64(0x94D049BB133111EB)


def make_key(*parts):
    """Returns a key (an int below 2^64) from anything that prints the same everywhere."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix(x):
    """Scrambles uint64 values (the finaliser of SplitMix64; Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX1
    x = (x ^ (x >> np.uint64(27))) * _MIX2
    return x ^ (x >> np.uint64(31))


def subkeys(key, n):
    """Returns a uint64 key for each number in `n`, all different streams of `key`."""
    return mix(np.uint64(key) + _GOLDEN * (np.asarray(n).astype(np.uint64) + np.uint64(1)))


def permute(keys, i, size):
    """Returns the place of each entry `i` in a permutation of range(size).

    A generalised Feistel network over a x b >= size, walked until it lands inside
    (Black and Rogaway, 2002, "Ciphers with arbitrary finite domains").

    Args:
        keys: uint64 array, one key an entry; equal keys are one permutation.
        i: int64 array, 0 <= i < size, of the same shape.
        size: length of the permutation, or an array with that of each entry, below 2^52.

    Returns:
        int64 array of places in range(size).
    """
    size = np.asarray(size)
    a = np.floor(np.sqrt(size - 1)).astype(np.int64) + 1
    sides = a.astype(np.uint64), (-(-size // a)).astype(np.uint64)
    place = _rounds(keys, i.astype(np.uint64), *sides)
    while (outside := np.flatnonzero(place >= size)).size:
        some = [side[outside] if size.ndim else side for side in sides]
        place[outside] = _rounds(keys[outside], place[outside], *some)
    return place.astype(np.int64)


def _rounds(keys, x, a, b):
    left, right = x // b, x % b
    for r in range(0, ROUNDS, 2):
        left = (left + mix((keys ^ _ROUND_KEYS[r]) + right) % a) % a
        right = (right + mix((keys ^ _ROUND_KEYS[r + 1]) + left) % b) % b
    return left * b + right
