"""Intervals of what is computed from sums over examples, by drawing the examples again.

The percentile bootstrap, paired (Efron and Tibshirani 1993, chapters 13 and 8; of systems compared
on one test set: Koehn 2004): each resample takes the same examples of all models.
"""

import numpy as np

DRAWS = 2_000
COVERED = 95.0  # per cent


def weights(examples, seed, draws=DRAWS):
    """Returns how often each resample takes each example, float64[draws, examples].

    Args:
        examples: how many there are.
        seed: a whole number, or several.
        draws: resamples.
    """
    random = np.random.default_rng(seed)
    return random.multinomial(examples, np.full(examples, 1 / examples), draws).astype(np.float64)


def interval(values):
    """Returns (low, high), which hold the middle `COVERED` per cent of resampled values.

    NaN stands where a resample has no value, such as a ratio to 0: both ends are then as far as
    they can be, (-inf, inf), if it is more than a resample in a hundred.
    """
    values = np.asarray(values, np.float64)
    missing = np.isnan(values)
    if missing.mean() > 0.01:
        return -np.inf, np.inf
    tail = (100 - COVERED) / 2
    low, high = np.percentile(values[~missing], [tail, 100 - tail], method="inverted_cdf")
    return float(low), float(high)
