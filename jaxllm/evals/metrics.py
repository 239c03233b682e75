"""Metrics of tasks, over arrays of NumPy: what is predicted against what is so."""

import collections
import re
import string

import numpy as np


def macro_f1(predicted, label, classes):
    """Returns the mean over the classes of 2 tp / (2 tp + fp + fn).

    A class that is neither there nor predicted does not count.
    """
    scores = []
    for c in range(classes):
        both = np.sum((predicted == c) & (label == c))
        either = np.sum(predicted == c) + np.sum(label == c)
        if either:
            scores.append(2 * both / either)
    return float(np.mean(scores))


def ranks(values):
    """Returns the ranks from 1 of values, equal ones with their mean rank."""
    _, index, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return (last - (count - 1) / 2)[index]


def auc(score, positive):
    """Returns the chance that a positive has a higher score than a negative, ties one half.

    From the rank sum (Mann and Whitney 1947); NaN where there are only positives or negatives.

    Args:
        score: float[examples].
        positive: bool[examples].
    """
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float("nan")
    return float((ranks(score)[positive].sum() - n * (n + 1) / 2) / (n * m))


def pearson(a, b):
    """Returns the correlation of two arrays; NaN where one is constant."""
    a, b = (np.asarray(x, np.float64) - np.mean(x, dtype=np.float64) for x in (a, b))
    size = np.sqrt(np.sum(a * a) * np.sum(b * b))
    return float(np.sum(a * b) / size) if size > 0 else float("nan")


def spearman(a, b):
    """Returns the correlation of the ranks of two arrays."""
    return pearson(ranks(a), ranks(b))


def entities(tags):
    """Returns {(type, first word, last word + 1)} of the tags of a text, in the BIO scheme.

    As the script of CoNLL-2000 does: an I- after another type, or after O, begins one, too.
    """
    found, kind, first = set(), None, 0
    for i, tag in enumerate([*tags, "O"]):
        head, _, name = tag.partition("-")
        if kind is not None and (head != "I" or name != kind):
            found.add((kind, first, i))
            kind = None
        if kind is None and head in ("B", "I") and name:
            kind, first = name, i
    return found


def entity_f1(predicted, gold):
    """Returns (precision, recall, F1) over texts of the entities that are right in whole.

    Args:
        predicted, gold: [[tag of each word] of each text].
    """
    right = said = there = 0
    for p, g in zip(predicted, gold, strict=True):
        p, g = entities(p), entities(g)
        right, said, there = right + len(p & g), said + len(p), there + len(g)
    precision, recall = right / max(said, 1), right / max(there, 1)
    return precision, recall, 2 * right / max(said + there, 1)


def plain(text):
    """Returns a text without case, punctuation, articles and runs of space.

    As the evaluation script of SQuAD compares answers (Rajpurkar et al. 2016, section 6.1).
    """
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(predicted, gold):
    """Returns F1 of the words of two texts; 1 where both are empty."""
    a, b = plain(predicted).split(), plain(gold).split()
    if not a or not b:
        return float(a == b)
    same = sum((collections.Counter(a) & collections.Counter(b)).values())
    return 2 * same / (len(a) + len(b))


def exact_match(predicted, gold):
    """Returns 1 where two texts are the same but for case, punctuation and articles, else 0."""
    return float(plain(predicted) == plain(gold))


def rouge_l(predicted, gold):
    """Returns ROUGE-L: F1 of the longest common subsequence of words (Lin 2004, section 3).

    As rouge-score gives it without stemming, of letters of all scripts: that library drops those
    that are not ASCII.
    """
    a, b = (re.findall(r"[^\W_]+", text.lower()) for text in (predicted, gold))
    common = [0] * (len(b) + 1)  # with the first so many words of b
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            longest = diagonal + 1 if word == other else max(common[j], common[j - 1])
            diagonal, common[j] = common[j], longest
    return 2 * common[-1] / (len(a) + len(b)) if common[-1] else 0.0


def chrf(predicted, gold, order=6, beta=2):
    """Returns chrF: F-beta of n-grams of characters without spaces (Popović 2015), from 0 to 1.

    As sacrebleu gives it for a sentence, divided by 100: precisions and recalls are means over the
    orders that both texts are long enough for.
    """
    a, b = ("".join(text.split()) for text in (predicted, gold))
    precision = recall = 0.0
    orders = min(order, len(a), len(b))
    for n in range(1, orders + 1):
        said, there = (
            collections.Counter(text[i : i + n] for i in range(len(text) - n + 1))
            for text in (a, b)
        )
        same = sum((said & there).values())
        precision, recall = precision + same / said.total(), recall + same / there.total()
    if not precision:
        return 0.0
    factor = beta**2
    return (1 + factor) * precision * recall / (factor * precision + recall) / orders
