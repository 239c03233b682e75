"""What tokenizers make of documents: how many tokens, how evenly, what is lost, what lies idle."""

import collections
import time
from typing import NamedTuple

import numpy as np

from jaxllm.tokenizers import base

LONGEST = 10  # pieces, and documents not restored, that a report names
_SHOWN = 40  # characters of a piece that the text shows
LANGUAGES = 20  # that the text names, those with the most bytes first


class Sums(NamedTuple):
    """Sums over documents, or those of one language. Words are what stands between white space."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0
    bytes: int = 0
    words: int = 0

    def plus(self, other):
        return Sums(*(a + b for a, b in zip(self, other, strict=True)))

    @property
    def rates(self):
        """{measure: value}; fertility is tokens a word."""
        return {
            "characters_per_token": _ratio(self.characters, self.tokens),
            "bytes_per_token": _ratio(self.bytes, self.tokens),
            "fertility": _ratio(self.tokens, self.words),
        }


class Report(NamedTuple):
    """One tokenizer over documents.

    Attributes:
        kind, vocab_size, fingerprint: the tokenizer's.
        languages: {label: Sums}, "" where documents have none.
        exact: documents that the round trip restored to the last character.
        failed: documents that could not be encoded; they are in no other number.
        changed: names of the first documents that failed or came back otherwise.
        unused: part of the ids, special ones aside, that no document took.
        unknown, byte: part of the tokens that are unknown, or bytes of characters without a piece.
        longest: the longest pieces in characters, the longest first.
        seconds: of encoding.
    """

    kind: str
    vocab_size: int
    fingerprint: str
    languages: dict
    exact: int
    failed: int
    changed: list
    unused: float
    unknown: float
    byte: float
    longest: list
    seconds: float

    @property
    def total(self):
        total = Sums()
        for sums in self.languages.values():
            total = total.plus(sums)
        return total


class Measure:
    """A report in the making.

    Args:
        tokenizer: whose report it is.
    """

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._counts = np.zeros(tokenizer.vocab_size, np.int64)
        self._languages = collections.defaultdict(Sums)
        self._exact, self._failed, self._changed, self._seconds = 0, 0, [], 0.0

    def add(self, text, language="", name=""):
        """Adds a document."""
        start = time.perf_counter()
        try:
            ids = self._tokenizer.encode(text)
        except base.TokenizerError:
            self._failed += 1
            self._note(name)
            return
        self._seconds += time.perf_counter() - start
        found, counts = np.unique(ids, return_counts=True)
        self._counts[found] += counts
        sums = Sums(1, len(ids), len(text), len(base.utf8(text)), len(text.split()))
        self._languages[language] = self._languages[language].plus(sums)
        if self._tokenizer.decode(ids) == text:
            self._exact += 1
        else:
            self._note(name)

    def _note(self, name):
        if len(self._changed) < LONGEST:
            self._changed.append(name)

    def report(self):
        """Returns the `Report` of the documents so far."""
        tokenizer, counts = self._tokenizer, self._counts
        pieces = tokenizer.pieces()
        kinds = np.array([piece.kind for piece in pieces])
        plain = kinds != "special"
        texts = sorted((p.text for p in pieces if p.kind == "text"), key=lambda t: (-len(t), t))
        by_bytes = sorted(self._languages.items(), key=lambda item: (-item[1].bytes, item[0]))
        return Report(
            kind=tokenizer.kind,
            vocab_size=tokenizer.vocab_size,
            fingerprint=tokenizer.fingerprint,
            languages=dict(by_bytes),
            exact=self._exact,
            failed=self._failed,
            changed=self._changed,
            unused=_ratio(int((counts[plain] == 0).sum()), int(plain.sum())),
            unknown=_ratio(int(counts[kinds == "unknown"].sum()), int(counts.sum())),
            byte=_ratio(int(counts[kinds == "byte"].sum()), int(counts.sum())),
            longest=texts[:LONGEST],
            seconds=self._seconds,
        )


def _ratio(part, whole):
    return part / whole if whole else 0.0


def compare(tokenizers, documents):
    """Returns {name: Report} of tokenizers over the same documents, read once.

    Args:
        tokenizers: {name: tokenizer}.
        documents: iterator of (text, language or "", name).
    """
    measures = {name: Measure(tokenizer) for name, tokenizer in tokenizers.items()}
    for document in documents:
        for measure in measures.values():
            measure.add(*document)
    return {name: measure.report() for name, measure in measures.items()}


def as_dict(report):
    """Returns a report as what JSON can hold, with its rates."""
    languages = {
        language: sums._asdict() | sums.rates for language, sums in report.languages.items()
    }
    total = report.total
    return report._asdict() | total._asdict() | total.rates | {"languages": languages}


def as_text(reports):
    """Returns {name: Report} as tables, a tokenizer a column."""
    totals = {name: one.total for name, one in reports.items()}
    rows = {
        "kind": [one.kind for one in reports.values()],
        "ids": [f"{one.vocab_size:,}" for one in reports.values()],
        "documents": [f"{total.documents:,}" for total in totals.values()],
        "tokens": [f"{total.tokens:,}" for total in totals.values()],
        "characters a token": [f"{t.rates['characters_per_token']:.3f}" for t in totals.values()],
        "bytes a token": [f"{t.rates['bytes_per_token']:.3f}" for t in totals.values()],
        "tokens a word": [f"{t.rates['fertility']:.3f}" for t in totals.values()],
        "ids unused": [f"{one.unused:.2%}" for one in reports.values()],
        "tokens unknown": [f"{one.unknown:.3%}" for one in reports.values()],
        "tokens bytes": [f"{one.byte:.3%}" for one in reports.values()],
        "restored exactly": [f"{one.exact:,}" for one in reports.values()],
        "not encoded": [f"{one.failed:,}" for one in reports.values()],
        "MB/s": [f"{_ratio(totals[n].bytes / 1e6, r.seconds):.2f}" for n, r in reports.items()],
    }
    lines = _table("", list(reports), rows)
    languages = list(next(iter(reports.values())).languages) if reports else []
    if len(languages) > 1:
        rows = {
            language or "(no label)": [
                f"{one.languages.get(language, Sums()).rates['fertility']:.3f}"
                for one in reports.values()
            ]
            for language in languages[:LANGUAGES]
        }
        lines += ["", *_table("tokens a word", list(reports), rows)]
        if len(languages) > LANGUAGES:
            lines.append(f"  and {len(languages) - LANGUAGES:,} more languages: --json has them")
    for name, one in reports.items():
        lines += ["", f"  longest of {name}: {', '.join(map(_short, one.longest[:5]))}"]
        if one.changed:
            lines.append(f"  not restored by {name}: {', '.join(one.changed)}")
    return "\n".join(lines)


def _short(text):
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 2]}…'"


def _table(title, names, rows):
    """Lines of a table: {first column: [the others]}."""
    first = max(map(len, [title, *rows]))
    widths = [max(map(len, column)) for column in zip(names, *rows.values(), strict=True)]
    return [
        f"  {label:<{first}}"
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for label, row in {title: names, **rows}.items()
    ]
