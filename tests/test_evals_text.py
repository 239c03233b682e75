"""Scores of generated text are those of the libraries that are known for them."""

import random

import pytest

from jaxllm.evals import metrics

# What rouge-score 0.1.2 (rougeL, F1) and sacrebleu 2.6.0 (sentence chrF / 100) give.
KNOWN = [
    ("the cat sat on the mat", "a cat was on the mat", 0.666667, 0.505714),
    ("Hard drive benchmark", "Hard drive benchmark suite", 0.857143, 0.793356),
    ("", "something", 0, 0.0),
    ("x", "completely other words here", 0.0, 0.0),
    ("police killed the gunman", "the gunman police killed", 0.5, 0.855046),
    ("Python 3 library, for-loops!", "library for python3 loops", 0.666667, 0.592673),
    ("abc", "abc", 1.0, 1.0),
]


@pytest.mark.parametrize("said, gold, rouge, chrf", KNOWN)
def test_figures_of_the_libraries(said, gold, rouge, chrf):
    assert metrics.rouge_l(said, gold) == pytest.approx(rouge, abs=1e-6)
    assert metrics.chrf(said, gold) == pytest.approx(chrf, abs=1e-6)


def test_other_scripts_count():
    """chrF as sacrebleu has it; ROUGE-L of words that rouge-score would drop."""
    assert metrics.chrf("Où est la gare ?", "Où se trouve la gare ?") == pytest.approx(
        0.38572, abs=1e-5
    )
    assert metrics.chrf("犬が好き", "猫が好きです") == pytest.approx(0.3125)
    assert metrics.rouge_l("собака спит", "собака спит здесь") == pytest.approx(0.8)


def _sentences(words, seed, count=60):
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(0, 12))) for _ in range(count)]


def test_equal_to_the_libraries_on_many_texts():
    rouge = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    sacrebleu = pytest.importorskip("sacrebleu")
    words = ["the", "a", "cat's", "Dog,", "run", "runs", "12", "it-is.", "o"]
    for a, b in zip(_sentences(words, 0), _sentences(words, 1), strict=True):
        assert metrics.rouge_l(a, b) == pytest.approx(rouge.score(b, a)["rougeL"].fmeasure)
        assert metrics.chrf(a, b) == pytest.approx(sacrebleu.sentence_chrf(a, [b]).score / 100)


def test_exact_match_passes_over_case_punctuation_and_articles():
    assert metrics.exact_match("The Cat!", "cat") == 1.0
    assert metrics.exact_match("cats", "cat") == 0.0
