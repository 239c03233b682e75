"""Quality filters by rule: Gopher's of quality and of repetition, C4's, FineWeb's, word lists.

A rule looks at the texts of a `Batch` and names for each the reason to drop it, or "". Numbers of
words and of repeated n-grams are counted for all of them at once (`words`).
"""

import functools
import re

import numpy as np

from jaxllm.config import ConfigError, arguments
from jaxllm.corpus import classifier as classifiers
from jaxllm.corpus import perplexity as perplexities
from jaxllm.corpus import words as wording

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
_BULLETS = ("-", "*", "•", "‣", "◦", "●", "–")
_ENDS = (".", "!", "?", '"', "'", "”", "’", "。", "！", "？", "…")
_SENTENCE = re.compile(r"[.!?。！？]+(?=\s|$|[\"'”’])")

_BATCH_CHARACTERS = 1 << 20  # looked at together


class Batch:
    """Texts and, once asked for, their words."""

    def __init__(self, texts):
        self.texts = texts

    @functools.cached_property
    def words(self):
        """`wording.Words`."""
        return wording.split(self.texts)


def gopher_quality(
    batch,
    *,
    min_words=50,
    max_words=100_000,
    min_mean_word=3.0,
    max_mean_word=10.0,
    max_symbols=0.1,
    max_bullets=0.9,
    max_ellipses=0.3,
    min_letters=0.8,
    min_stop_words=2,
):
    """Gopher's rules of quality (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1).

    Args:
        batch: `Batch`.
        min_words, max_words: of a document.
        min_mean_word, max_mean_word: characters of its words, on average.
        max_symbols: "#" and ellipses, each over words.
        max_bullets, max_ellipses: part of the lines that begin, and end, with one.
        min_letters: part of the words that have a letter.
        min_stop_words: how many different English words of eight must occur; 0 where the text is
            not English.

    Returns:
        [reason or ""].
    """
    texts, found = batch.texts, batch.words
    count = np.bincount(found.document, minlength=found.count)
    some = np.maximum(count, 1)
    mean = np.bincount(found.document, found.size, found.count) / some
    letters = np.bincount(found.document, found.letters, found.count) / some
    stops = np.zeros(found.count, np.int64)
    if min_stop_words:
        for word in STOP_WORDS:
            here = found.document[found.hash == wording.hash_of(word)]
            stops += np.bincount(here, minlength=found.count) > 0
    reasons = []
    for i, text in enumerate(texts):
        lines = [line for line in map(str.strip, text.split("\n")) if line]
        rules = (
            ("too few words", count[i] < min_words),
            ("too many words", count[i] > max_words),
            ("words too short", mean[i] < min_mean_word),
            ("words too long", mean[i] > max_mean_word),
            ("many #", text.count("#") > max_symbols * count[i]),
            ("many …", text.count("…") + text.count("...") > max_symbols * count[i]),
            ("lines that are bullets", _part(lines, str.startswith, _BULLETS) > max_bullets),
            ("lines that end in …", _part(lines, str.endswith, ("…", "...")) > max_ellipses),
            ("few words with letters", letters[i] < min_letters),
            ("few stop words", stops[i] < min_stop_words),
        )
        reasons.append(next((reason for reason, holds in rules if holds), ""))
    return reasons


def _part(lines, test, ends):
    """The part of some lines that a test holds for."""
    return sum(test(line, ends) for line in lines) / max(len(lines), 1)


# Largest part of the characters within n-grams, by n: in the most frequent one, in repeated ones.
_TOP = {2: 0.20, 3: 0.18, 4: 0.16}
_REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


def gopher_repetition(
    batch, *, max_lines=0.3, max_line_characters=0.2, max_paragraphs=0.3, scale=1.0
):
    """Gopher's rules of repetition (Rae et al. 2021, arXiv:2112.11446, table A1).

    Args:
        batch: `Batch`.
        max_lines, max_paragraphs: part of them that repeat another.
        max_line_characters: part of the characters that are in repeated lines.
        scale: of the limits on repeated n-grams.

    Returns:
        [reason or ""].
    """
    texts, found = batch.texts, batch.words
    reasons = [
        _repeats(text, "\n", "lines", max_lines, max_line_characters)
        or _repeats(text, "\n\n", "paragraphs", max_paragraphs, max_line_characters)
        for text in texts
    ]
    size = np.maximum(np.bincount(found.document, found.size, found.count), 1)
    for n, limit in _TOP.items():
        _name(reasons, _top_gram(found, n) / size > limit * scale, f"one {n}-gram again and again")
    repeated = _repeated_grams(found, 5) / size
    _name(reasons, repeated > _REPEATED[5] * scale, "repeated 5-grams")
    # What repeats ten words repeats five: only where five repeat so much can more be too many.
    near = np.flatnonzero(repeated > min(_REPEATED.values()) * scale)
    if len(near):
        few = wording.split([texts[i] for i in near])
        for n, limit in _REPEATED.items():
            over = np.zeros(found.count, bool)
            over[near] = _repeated_grams(few, n) / size[near] > limit * scale
            _name(reasons, over, f"repeated {n}-grams")
    return reasons


def _name(reasons, over, reason):
    """Gives a reason to those documents that have none yet."""
    for i in np.flatnonzero(over):
        reasons[i] = reasons[i] or reason


def _repeats(text, separator, name, most, most_characters):
    parts = [part for part in text.split(separator) if part.strip()]
    once = set(parts)
    if len(once) == len(parts):
        return ""
    if 1 - len(once) / len(parts) > most:
        return f"repeated {name}"
    size = sum(map(len, parts))
    if 1 - sum(map(len, once)) / size > most_characters:
        return f"characters in repeated {name}"
    return ""


def _top_gram(found, n):
    """Characters within the most frequent n-gram of each document, if it occurs twice."""
    key, first = wording.keyed_grams(found, n)
    if not len(key):
        return np.zeros(found.count)
    order = np.argsort(key)
    key = key[order]
    heads = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    counts = np.diff(np.append(heads, len(key)))
    sums = np.concatenate([[0], np.cumsum(found.size)])
    example = first[order[heads]]
    inside = (sums[example + n] - sums[example]) * counts * (counts > 1)
    best = np.zeros(found.count)
    np.maximum.at(best, found.document[example], inside)
    return best


def _repeated_grams(found, n):
    """Characters of each document that lie within an n-gram that it had before."""
    key, first = wording.keyed_grams(found, n)
    order = np.argsort(key, kind="stable")
    again = np.concatenate([[False], key[order][1:] == key[order][:-1]])[: len(key)]
    starts = first[order[again]]
    edge = np.zeros(len(found.hash) + 1, np.int64)
    np.add.at(edge, starts, 1)
    np.add.at(edge, starts + n, -1)
    covered = np.cumsum(edge[:-1]) > 0
    return np.bincount(found.document[covered], found.size[covered], found.count)


def c4(batch, *, min_sentences=3, max_word=1_000):
    """C4's rules for whole pages (Raffel et al. 2020, arXiv:1910.10683, section 2.2).

    Args:
        batch: `Batch`.
        min_sentences: of a page.
        max_word: characters of a word.

    Returns:
        [reason or ""].
    """
    reasons = []
    for text in batch.texts:
        small = text.lower()
        sentences = sum(1 for _ in _SENTENCE.finditer(text)) if min_sentences else 0
        rules = (
            ("lorem ipsum", "lorem ipsum" in small),
            ("braces", "{" in text),
            ("javascript notice", "javascript" in small and "enable javascript" in small),
            ("few sentences", sentences < min_sentences),
            ("a very long word", max(map(len, text.split()), default=0) > max_word),
        )
        reasons.append(next((reason for reason, holds in rules if holds), ""))
    return reasons


def fineweb(
    batch,
    *,
    min_ended_lines=0.12,
    max_short_lines=0.67,
    short_line=30,
    max_repeated=0.01,
    max_newlines=0.3,
):
    """FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6).

    Args:
        batch: `Batch`.
        min_ended_lines: part of the lines that end as a sentence does.
        max_short_lines: part of the lines below `short_line` characters.
        short_line: characters.
        max_repeated: part of the characters that are in repeated lines.
        max_newlines: line ends over words.

    Returns:
        [reason or ""].
    """
    reasons = []
    for text in batch.texts:
        lines = [line for line in text.split("\n") if line.strip()]
        short = sum(len(line) <= short_line for line in lines) / max(len(lines), 1)
        size = max(sum(map(len, lines)), 1)
        repeated = 1 - sum(map(len, set(lines))) / size
        newlines = text.count("\n") / max(len(text.split()), 1)
        rules = (
            ("few lines that end", _part(lines, str.endswith, _ENDS) < min_ended_lines),
            ("short lines", short > max_short_lines),
            ("repeated lines", repeated > max_repeated),
            ("many line ends", newlines > max_newlines),
        )
        reasons.append(next((reason for reason, holds in rules if holds), ""))
    return reasons


def word_list(batch, *, path="", words=(), most=0):
    """Drops documents with more than `most` words of a list.

    Args:
        batch: `Batch`.
        path: a file of them, one a line.
        words: or the words themselves.
        most: occurrences that are let pass.

    Returns:
        [reason or ""].

    Raises:
        ConfigError: there are no words.
    """
    listed = list(words)
    if path:
        with open(path, encoding="utf-8") as file:
            listed += [line.strip() for line in file if line.strip()]
    if not listed:
        raise ConfigError("a word_list names neither path nor words. Try words=('spam',).")
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, listed)) + r")\b", re.I)
    return [
        "words of the list" if len(pattern.findall(text)) > most else "" for text in batch.texts
    ]


def classifier(batch, *, good="", bad="", field="text", least=0.5, bits=18):
    """Drops what a small classifier finds more like the bad examples than like the good.

    Args:
        batch: `Batch`.
        good, bad: JSONL files of examples that it is trained on.
        field: of the text in them.
        least: chance to be good that is let pass.
        bits: of a hash of words; more keep them apart better and take more memory.

    Returns:
        [reason or ""].

    Raises:
        ConfigError: examples that are missing.
    """
    found = classifiers.chances(classifiers.of_files(good, bad, field, bits), batch.texts)
    return ["like the bad examples" if chance < least else "" for chance in found]


def perplexity(batch, *, workdir="", step="best", least=0.0, most=1e4):
    """Drops what a model of one's own finds too easy or too hard to foresee.

    Args:
        batch: `Batch`.
        workdir: of the model's training run.
        step: its checkpoint: latest, best or a number.
        least, most: perplexity a token of the beginning of a text.

    Returns:
        [reason or ""].

    Raises:
        ConfigError: there is no such run.
    """
    found = perplexities.of_texts(workdir, step, batch.texts)
    return [
        "perplexity too low" if value < least else "perplexity too high" if value > most else ""
        for value in found
    ]


RULES = {
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "c4": c4,
    "fineweb": fineweb,
    "word_list": word_list,
    "classifier": classifier,
    "perplexity": perplexity,
}


def make(section):
    """Returns a stage that drops what the rules of a section name.

    Args:
        section: {name: {"kind": of RULES, "on": whether it is applied, and its options}}.

    Raises:
        ConfigError: an unknown rule or option.
    """
    found = {
        name: arguments(RULES, one, f"quality.{name}", ignore=("on",))
        for name, one in section.items()
        if one["on"]
    }
    rules = {name: functools.partial(rule, **options) for name, (rule, options) in found.items()}

    def stage(documents, report):
        left = []
        batches = wording.batches(documents, lambda one: len(one.text), _BATCH_CHARACTERS)
        for some in batches:
            batch = Batch([document.text for document in some])
            reasons = {name: rule(batch) for name, rule in rules.items()}
            for i, document in enumerate(some):
                found = ((name, reasons[name][i]) for name in rules)
                name, reason = next(((n, why) for n, why in found if why), ("", ""))
                if reason:
                    report.drop(f"{name}: {reason}", document)
                else:
                    left.append(document)
        return left

    return stage
