"""Random numbers as a function of a row's key."""

import numpy as np

from jaxllm.data import permute


def uniform(keys, use, size):
    """Returns float64[rows, size] in [0, 1).

    Args:
        keys: uint64[rows].
        use: what they are for; other uses of the same keys get other numbers.
        size: numbers a row.
    """
    row = permute.mix(keys ^ np.uint64(permute.make_key("draw", use)))
    bits = permute.subkeys(0, np.arange(size)) ^ row[:, None]
    return (permute.mix(permute.mix(bits)) >> np.uint64(11)) * 2.0**-53


def ranks(values):
    """Returns the place of each value of each row [B, n] in its row's ascending order."""
    return np.argsort(np.argsort(values, axis=1, kind="stable"), axis=1)
