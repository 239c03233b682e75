"""Documents that hold text of an evaluation set, found by n-grams of words in common.

Source: Brown et al. 2020 (arXiv:2005.14165), appendix C, of 13 words.
"""

import numpy as np

from jaxllm.corpus import words as wording


def grams_of(texts, n):
    """Returns the sorted hashes of all n-grams of texts: uint64[grams]."""
    return np.unique(wording.grams(wording.split(texts, plain=True), n)[0])


def make(grams, n, most=0):
    """Returns a stage that drops documents with more than `most` of some n-grams.

    Args:
        grams: as `grams_of` returns, of the evaluation sets.
        n: words of them.
        most: that are let pass, for phrases that everybody uses.
    """

    def stage(documents, report):
        if not len(grams) or not documents:
            return documents
        found = wording.split([document.text for document in documents], plain=True)
        gram, first = wording.grams(found, n)
        at = np.minimum(np.searchsorted(grams, gram), len(grams) - 1)
        known = first[grams[at] == gram]
        counts = np.bincount(found.document[known], minlength=len(documents))
        left = []
        for document, count in zip(documents, counts, strict=True):
            if count > most:
                report.drop("text of an evaluation set", document)
            else:
                left.append(document)
        return left

    return stage
