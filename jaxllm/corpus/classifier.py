"""A small classifier of texts: logistic regression on hashed words and pairs of words.

Source: the features of fastText's text classifier (Joulin et al. 2016, arXiv:1607.01759), without
its hidden layer; the use of one as a filter is GPT-3's (Brown et al. 2020, appendix A).
"""

import functools
from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.corpus import words as wording
from jaxllm.data import sources
from jaxllm.data.errors import BadInput

_STEPS, _RATE, _DECAY = 150, 0.5, 1e-4


class Classifier(NamedTuple):
    """Weights of features, and of none.

    Attributes:
        weights: float64[2^bits].
        bias: float.
    """

    weights: np.ndarray
    bias: float


def features(texts, bits):
    """Returns (document, bucket, value) of all features: words and pairs, each as often as it is.

    A document's values have length 1 together, so that long ones count no more than short ones.
    """
    found = wording.split(texts, plain=True)
    pairs, first = wording.grams(found, 2)
    document = np.concatenate([found.document, found.document[first]])
    hashes = np.concatenate([found.hash, pairs])
    key = document.astype(np.uint64) << np.uint64(bits) | hashes >> np.uint64(64 - bits)
    each, counts = np.unique(key, return_counts=True)
    document = (each >> np.uint64(bits)).astype(np.int64)
    length = np.sqrt(np.bincount(document, counts**2.0, len(texts)))
    bucket = (each & np.uint64((1 << bits) - 1)).astype(np.int64)
    return document, bucket, counts / length[document]


def train(good, bad, bits):
    """Returns the `Classifier` that tells two lists of texts apart; the same for the same texts."""
    document, bucket, value = features([*good, *bad], bits)
    wanted = np.repeat([1.0, 0.0], [len(good), len(bad)])
    # Each side weighs the same, however many texts it has.
    weight = np.where(wanted == 1, 0.5 / len(good), 0.5 / len(bad))
    own, bias, squares, square = np.zeros(1 << bits), 0.0, np.full(1 << bits, 1e-8), 1e-8
    for _ in range(_STEPS):  # Adagrad on all texts at once
        error = (_chance(own, bias, document, bucket, value, len(wanted)) - wanted) * weight
        slope = np.bincount(bucket, error[document] * value, 1 << bits) + _DECAY * own
        squares += slope**2
        square += error.sum() ** 2
        own -= _RATE * slope / np.sqrt(squares)
        bias -= _RATE * error.sum() / np.sqrt(square)
    return Classifier(own, bias)


def chances(classifier, texts):
    """Returns the chance of each text to be one of the good: float64[texts]."""
    bits = len(classifier.weights).bit_length() - 1
    return _chance(*classifier, *features(texts, bits), len(texts))


def _chance(weights, bias, document, bucket, value, count):
    return 1 / (1 + np.exp(-np.bincount(document, weights[bucket] * value, count) - bias))


@functools.cache
def of_files(good, bad, field, bits):
    """The `Classifier` of two sets of JSONL files; trained once in a process.

    Raises:
        ConfigError: one of them is missing or empty.
    """
    texts = []
    for name, path in (("good", good), ("bad", bad)):
        if not path:
            raise ConfigError(f"a classifier needs {name}: JSONL files of texts that are {name}.")
        found = sources.jsonl(path=path, field=field).documents(BadInput())
        texts.append([document.text for document in found])
        if not texts[-1]:
            raise ConfigError(f"{name}={path!r} holds no text.")
    return train(*texts, bits)
