"""Sources of examples: texts with texts, classes, numbers, tags, answers."""

import math

from jaxllm.data import files
from jaxllm.data.errors import DataError
from jaxllm.data.examples.records import (
    SUFFIXES,
    Example,
    ExampleSource,
    Part,
    Unfit,
    entries,
    get,
    mapping,
    text,
    whole,
)

OUTSIDE = "O"  # the tag of a word in no entity


def make_pair(record, where, input, target, prefix, suffix):
    """Returns the Example of a row; see `pairs`."""
    first = prefix + text(record, input)
    parts = [Part(first, "input")]
    if suffix:
        parts.append(Part(suffix, "input"))
    return Example((*parts, Part(text(record, target), "target", loss=True)), where, group=first)


def pairs(*, path="", input="input", target="target", prefix="", suffix="", where=""):
    """Texts and what is to be written for them: summaries, translations, instructions.

    Args:
        path: JSONL, CSV or Parquet files (.jsonl, .csv, .tsv, .parquet; also .gz, .zst): a file, a
            directory, a glob, or several joined by commas.
        input, target: names of the fields.
        prefix: goes before every input, such as "summarize: ".
        suffix: goes behind every input and is never cut off, such as "\\nTL;DR: ".
        where: "field=value": only the rows that have it.

    Raises:
        DataError: no file matches, or no field is named.
    """
    _check(input=input, target=target)
    options = {"input": input, "target": target, "prefix": prefix, "suffix": suffix}
    return ExampleSource(
        "pairs", files.find(path, SUFFIXES), make_pair, options,
        fields=(input, target), where=where, task="pairs",
    )  # fmt: skip


def _texts(record, text_field, second):
    """Returns the parts of one text or two."""
    parts = [Part(text(record, text_field), "text")]
    if second:
        parts.append(Part(text(record, second), "second"))
    return tuple(parts)


def make_labelled(record, where, text, second, label):
    """Returns the Example of a row; see `labelled`."""
    value = get(record, label)
    if isinstance(value, bool | int):
        value = str(value)
    if not isinstance(value, str) or not value:
        raise Unfit("label is no class", f"{label!r} is {value!r}")
    return Example(_texts(record, text, second), where, whole(value, label))


def labelled(*, path="", text="text", second="", label="label", classes=(), where=""):
    """Texts, or pairs of texts, of classes.

    Args:
        path, where: as of `pairs`.
        text: name of the field that holds the text.
        second: of the one that holds a second text; "" for none.
        label: of the one that holds the class: text, or a whole number.
        classes: their names, in the order of the model's outputs; () for all that the files have,
            sorted. A row of another class is bad input.

    Raises:
        DataError: no file matches, no field is named, or a class is named twice.
    """
    _check(text=text, label=label)
    _check_names("classes", classes)
    options = {"text": text, "second": second, "label": label}
    return ExampleSource(
        "labelled", files.find(path, SUFFIXES), make_labelled, options, where=where,
        fields=[f for f in (text, second, label) if f], task="classify", classes=classes,
    )  # fmt: skip


def make_unlabelled(record, where, text, second):
    """Returns the Example of a row; see `unlabelled`."""
    return Example(_texts(record, text, second), where)


def unlabelled(*, path="", text="text", second="", where=""):
    """The texts of `labelled`, for a model to say their classes; no source of rows to train on."""
    _check(text=text)
    return ExampleSource(
        "unlabelled", files.find(path, SUFFIXES), make_unlabelled, {"text": text, "second": second},
        where=where, fields=[f for f in (text, second) if f], task="classify",
    )  # fmt: skip


def make_scored(record, where, text, second, label):
    """Returns the Example of a row; see `scored`."""
    value = get(record, label)
    try:
        number = float("nan" if isinstance(value, bool) or value is None else value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not abs(number) < 3e38:  # what float32 holds
        raise Unfit("label is no number", f"{label!r} is {value!r}")
    return Example(_texts(record, text, second), where, number)


def scored(*, path="", text="text", second="", label="label", where=""):
    """Texts, or pairs of texts, with a number each, such as how alike they are.

    Args:
        path, where: as of `pairs`.
        text, second: as of `labelled`.
        label: name of the field that holds the number.

    Raises:
        DataError: no file matches, or no field is named.
    """
    _check(text=text, label=label)
    options = {"text": text, "second": second, "label": label}
    return ExampleSource(
        "scored", files.find(path, SUFFIXES), make_scored, options, where=where,
        fields=[f for f in (text, second, label) if f], task="regress",
    )  # fmt: skip


def make_tagged(record, where, tokens, tags):
    """Returns the Example of a row; see `tagged`."""
    words, names = entries(record, tokens), entries(record, tags)
    if len(words) != len(names):
        raise Unfit("uneven row", f"{len(words)} in {tokens!r}, {len(names)} in {tags!r}")
    if not words:
        raise Unfit("empty text", f"{tokens!r} is empty")
    marks, begin = [], 0
    for word, tag in zip(words, names, strict=True):
        tag = str(tag) if isinstance(tag, int) and not isinstance(tag, bool) else tag
        if not isinstance(word, str) or not isinstance(tag, str) or not word or not tag:
            raise Unfit("tag is no text", f"{word!r} is {tag!r}")
        marks.append((begin, begin + len(whole(word, tokens)), whole(tag, tags)))
        begin += len(word) + 1
    return Example((Part(" ".join(words), "text", marks=tuple(marks)),), where)


def tagged(*, path="", tokens="tokens", tags="tags", classes=(), where=""):
    """Words with a tag each: entities (B-PER, I-PER, O), parts of speech.

    The words are joined by spaces; a word's tag stands at its first token.

    Args:
        path, where: as of `pairs`; JSONL or Parquet, which have lists.
        tokens: name of the field that holds the list of words.
        tags: of the one that holds the list of their tags: text, or whole numbers.
        classes: the tags, in the order of the model's outputs; () for all that the files have,
            sorted. A row with another is bad input.

    Raises:
        DataError: no file matches, no field is named, or a tag is named twice.
    """
    _check(tokens=tokens, tags=tags)
    _check_names("classes", classes)
    options = {"tokens": tokens, "tags": tags}
    return ExampleSource(
        "tagged", files.find(path, SUFFIXES), make_tagged, options,
        fields=(tokens, tags), where=where, task="tag", classes=classes,
    )  # fmt: skip


def make_answer(record, where, question, context, answers, answer, start):
    """Returns the Example of a row; see `answers`."""
    asked, read = text(record, question), text(record, context)
    if answers:
        found = mapping(get(record, answers), answers)
        texts, starts = entries(found, "text"), entries(found, "answer_start")
        if len(texts) != len(starts):
            raise Unfit("uneven row", f"{len(texts)} answers begin at {len(starts)} places")
        value, begin = (texts[0], starts[0]) if texts else ("", 0)
    else:
        value, begin = get(record, answer), get(record, start)
    try:
        begin = -1 if isinstance(begin, bool) else int(begin)
    except (TypeError, ValueError):
        begin = -1
    if not isinstance(value, str) or begin < 0 or read[begin : begin + len(value)] != value:
        raise Unfit("answer is not there", f"{value!r} does not begin at character {begin}")
    label = (1, begin, begin + len(value)) if value else None
    return Example((Part(asked, "question"), Part(read, "context")), where, label, group=read)


def answers(
    *,
    path="",
    question="question",
    context="context",
    answers="answers",
    answer="answer",
    start="answer_start",
    overlap=128,
    where="",
):
    """Questions with a text that holds the answer, as SQuAD has them (Rajpurkar et al. 2016).

    A context that does not fit a row is read in several that overlap; the answer is in those where
    it is whole. One that is empty, or has no entry, is no answer.

    Args:
        path, where: as of `pairs`.
        question, context: names of the fields.
        answers: of the one with lists "text" and "answer_start", of which the first is taken; "" if
            a row has one answer in fields of its own:
        answer, start: names of those of the answer and its first character, from 0.
        overlap: tokens that neighbouring rows of a context have in common.

    Raises:
        DataError: no file matches, or no field is named.
    """
    _check(question=question, context=context)
    if overlap < 0:
        raise DataError(f"overlap={overlap} must not be negative, such as 128.")
    options = {"question": question, "context": context, "answers": answers}
    options |= {"answer": answer, "start": start}
    fields = (question, context, *([answers] if answers else [answer, start]))
    return ExampleSource(
        "answers", files.find(path, SUFFIXES), make_answer, options,
        fields=fields, where=where, task="span", settings={"overlap": overlap},
    )  # fmt: skip


def _check(**fields):
    for name, field in fields.items():
        if not field:
            raise DataError(f"{name} is empty; name the field of the rows.")


def _check_names(field, names):
    for name in names:
        if not isinstance(name, str) or not name or list(names).count(name) > 1:
            raise DataError(f"{field}={names!r} must be names, each once, such as ('ham', 'spam').")
