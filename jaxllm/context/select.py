"""Choosing examples for a prompt: at random, evenly over labels, or by likeness to the query."""

import numpy as np

from jaxllm.config import ConfigError


def at_random(count, k, seed, item, exclude=()):
    """Chooses examples at random, the same ones for the same seed and item.

    Args:
        count: number of examples there are.
        k: number to choose.
        seed, item: what the choice depends on; `item` is the query's number.
        exclude: numbers that may not be chosen, such as the query's own.

    Returns:
        int64[k], no number twice.

    Raises:
        ConfigError: fewer than k are there.
    """
    left = _left(count, k, exclude)
    return np.random.default_rng([seed, item]).permutation(left)[:k]


def balanced(labels, k, seed, item, exclude=()):
    """Chooses examples so that the numbers of any two labels differ by one at most.

    A label that has too few examples gives all it has, and the others give the rest.

    Args:
        labels: of each example.
        k, seed, item, exclude: see `at_random`.

    Returns:
        int64[k], in random order.

    Raises:
        ConfigError: fewer than k are there.
    """
    random = np.random.default_rng([seed, item])
    left = random.permutation(_left(len(labels), k, exclude))
    names = sorted({labels[i] for i in left.tolist()}, key=str)
    piles = [[i for i in left.tolist() if labels[i] == names[n]] for n in range(len(names))]
    order, chosen = random.permutation(len(piles)), []
    while len(chosen) < k:
        for n in order:
            if piles[n] and len(chosen) < k:
                chosen.append(piles[n].pop())
    return random.permutation(np.array(chosen, np.int64))


class Nearest:
    """Examples by likeness to the query (Liu et al. 2022, arXiv:2101.06804).

    Args:
        embed: [text] -> float32[n, d].
        texts: of the examples, compared with the query's.
    """

    def __init__(self, embed, texts):
        self._embed, self._vectors_ND = embed, unit(embed, list(texts))

    def choose(self, query, k, exclude=()):
        """Chooses the k most similar examples by the cosine of their embeddings.

        Returns:
            int64[k], the most similar last, where it stands next to the query; of equals the
            first ones are chosen.

        Raises:
            ConfigError: fewer than k are there.
        """
        left = _left(len(self._vectors_ND), k, exclude)
        scores_N = self._vectors_ND[left] @ unit(self._embed, [query])[0]
        return left[np.argsort(-scores_N, kind="stable")[:k][::-1]]


def unit(embed, texts):
    """Embeds texts and brings each vector to length 1.

    Returns:
        float32[n, d].

    Raises:
        ConfigError: the function gives another number of vectors, or numbers that are none.
    """
    vectors_ND = np.asarray(embed(texts), np.float32)
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(texts) or not np.isfinite(vectors_ND).all():
        raise ConfigError(
            f"the embedding function must give finite float32[{len(texts)}, d] for {len(texts)} "
            f"texts; it gave {vectors_ND.dtype}{list(vectors_ND.shape)}."
        )
    norms_N1 = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.maximum(norms_N1, np.finfo(np.float32).tiny)


def _left(count, k, exclude):
    left = np.setdiff1d(np.arange(count), np.asarray(list(exclude), np.int64))
    if not 0 <= k <= len(left):
        raise ConfigError(f"k={k} examples of {len(left)} that there are.\n  Try k={len(left)}.")
    return left
