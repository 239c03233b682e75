"""A look at the first rows as text, with what is learned marked, before anything is trained."""

import itertools
import os
import sys
import unicodedata
from typing import NamedTuple

import jax
import numpy as np

from jaxllm import data
from jaxllm.training import setup

LEARNED, READ, PLAIN = "\x1b[32m", "\x1b[2m", "\x1b[0m"
END = "\N{DOUBLE VERTICAL LINE}"  # of a document
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
SHORT = 600  # characters of a row on the start page
STRETCH = 200  # of them, of one stretch
DIRECTIONS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}  # these turn a terminal's text round


class Token(NamedTuple):
    """A token of a row: its id, and whether it is learned."""

    id: int
    learned: bool


def show(config, workdir, rows):
    """Prints the first rows of a config, and trains nothing; tokenizes what is not yet.

    Args:
        config: completed ConfigDict.
        workdir: directory of the run.
        rows: how many.

    Returns:
        Exit status, 0.

    Raises:
        ConfigError, DataError: as training would.
    """
    setup.check(config, jax.device_count())
    tokenizer = setup.open_tokenizer(config, workdir)
    source, _, notes = setup.open_data(config, tokenizer, workdir)
    print(page(source, tokenizer, rows, colour=in_colour()))
    print("\n".join(f"  {note}" for note in notes))
    return 0


def first_rows(run, first):
    """Returns two rows from number `first` on, short, for the start page of a `setup.Run`."""
    return page(run.train, run.tokenizer, 2, first=first, colour=in_colour(), short=True)


def in_colour():
    """Whether standard output takes colours: a terminal, and NO_COLOR is not set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def page(source, tokenizer, rows, *, first=0, colour=False, short=False):
    """Returns rows of the training order as text.

    Args:
        source: as `data.open_split` returns.
        tokenizer: the run's.
        rows: how many.
        first: number of the first one.
        colour: what is learned is green, what is only read dim; else it is within [[ ]].
        short: rows and stretches of them lose what is over SHORT and STRETCH characters.
    """
    batch = source.take(first + np.arange(rows))
    task = {"task": "", **next(iter(source.sources.values())).manifest}["task"]
    names = _names(tokenizer)
    how = "green: learned, dim: only read" if colour else "[[learned]]"
    lines = [f"  rows from {first:,} ({how}; {END} ends a document, or the row)"]
    for row in range(rows):
        one = {name: value[row] for name, value in batch.items()}
        lines.append(f"  row {first + row:,}: {_summary(one)}")
        for title, documents, label in _documents(one, task, source):
            text = _join(documents, label, names, tokenizer, colour, short)
            lines.append(_indent(f"{title}{text}"))
    return "\n".join(lines)


def _names(tokenizer):
    """Returns {id: name} of special tokens."""
    ends = {"eos": tokenizer.eos, "bos": tokenizer.bos, "pad": tokenizer.pad}
    plain = {i: f"<{name}>" for name, i in ends.items() if i >= 0}
    return plain | {i: name for name, i in tokenizer.specials.items()}


def _summary(row):
    segment = row["segment"]
    if segment.ndim > 1:
        return "texts that belong together"
    number, used = len(_numbers(segment)), (segment > 0).sum()
    words = f"{number} document{'s' * (number != 1)}, {used:,} of {len(segment):,} places"
    learned = f", {(row['weight'] > 0).sum():,} learned" if row["weight"].ndim else ""
    return words + learned


def _documents(row, task, source):
    """Yields (title, [tokens of each document], what is told behind them) of a row."""
    lead = next(iter(source.sources.values())).lead
    if row["tokens"].ndim > 1:
        for side, tokens in enumerate(row["tokens"]):
            here = (row["segment"][side] > 0) & (row["position"][side] >= lead)
            yield f"{side + 1}: ", [_plain(tokens[here])], ""
    elif "inputs" in row:
        here = row["inputs_position"] >= lead if "inputs_position" in row else True
        read, written = row["inputs_segment"] * here, row["segment"]
        yield "read: ", [_plain(row["inputs"][read == n]) for n in _numbers(read)], ""
        targets, learned = row["targets"], row["weight"] > 0
        found = [_pair(targets[written == n], learned[written == n]) for n in _numbers(written)]
        yield "written: ", found, ""
    elif task in ("classify", "regress", "span", "tag"):
        yield "", *_headed(row, task, source, lead)
    else:
        yield "", [_written(row, n, lead, task) for n in _numbers(row["segment"])], ""


def _numbers(segment):
    return np.unique(segment[segment > 0])


def _plain(ids):
    return _pair(ids, np.zeros(len(ids), bool))


def _pair(ids, learned):
    return [Token(int(i), bool(flag)) for i, flag in zip(ids, learned, strict=True)]


def _headed(row, task, source, lead):
    """Returns ([tokens], what is told behind them) of a row for a head."""
    real = (row["segment"] > 0) & (row["position"] >= lead)
    learned = np.zeros(len(real), bool)
    classes = data.classes(source)
    if task == "tag":
        learned = row["weight"] > 0
        label = " ".join(classes[i] for i in row["targets"][learned])
    elif task == "span":
        begin, last = (int(i) for i in row["span"])
        learned[begin : last + 1] = last > lead
        label = "" if last > lead else "no answer"
    else:
        label = classes[row["label"]] if task == "classify" else f"{float(row['label']):g}"
    return [_pair(row["tokens"][real], learned[real])], label


def _written(row, number, lead, task):
    """Returns the tokens of a document of a row that is written, with its targets.

    Where rows are of documents (no task) a last target that does not count begins another one.
    """
    here = np.flatnonzero((row["segment"] == number) & (row["position"] >= lead))
    tokens, targets, learned = row["tokens"][here], row["targets"][here], row["weight"][here] > 0
    ahead = targets[:-1] == tokens[1:]
    if len(here) > 1 and np.mean(ahead) < 0.5:  # targets are in the place of what they stand for
        return _pair(np.where(learned, targets, tokens), learned)
    keep = len(here) if task or learned[-1:].all() else len(here) - 1
    return [*_plain(tokens[:1]), *_pair(targets[:keep], learned[:keep])]


def _stretches(tokens, names, tokenizer):
    """Returns [(text, learned)] of tokens, as long as they go on alike; specials by their names."""

    def kind(token):
        return token.learned, token.id in names or token.id >= tokenizer.vocab_size

    found, before = [], []
    for (learned, special), group in itertools.groupby(tokens, kind):
        ids = [token.id for token in group]
        if special:
            text, before = "".join(names.get(i, f"<{i}>") for i in ids), []
        else:  # behind what is before it, since some tokenizers drop a first space
            text = tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]
            before = ids
        found.append((text, learned))
    alike = itertools.groupby(found, lambda one: one[1])
    return [("".join(text for text, _ in group), learned) for learned, group in alike]


def _join(documents, label, names, tokenizer, colour, short):
    """Returns documents as text with marks."""
    parts, size = [], 0
    for document in documents:
        for text, learned in _stretches(document, names, tokenizer):
            text = _safe(text)
            if short and len(text) > STRETCH:
                text = f"{text[: STRETCH // 2]} {ELLIPSIS} {text[-STRETCH // 2 :]}"
            if short and size + len(text) > SHORT:
                text = text[: max(SHORT - size, 0)] + ELLIPSIS
            size += len(text)
            parts.append(_mark(text, learned, colour))
            if short and size > SHORT:
                return "".join(parts)
        parts.append(f"{PLAIN if colour else ''}{END}")
    if label:
        parts.append(" -> " + _mark(_safe(label), True, colour))
    return "".join(parts)


def _mark(text, learned, colour):
    if colour:
        return f"{LEARNED if learned else READ}{text}{PLAIN}"
    return f"[[{text}]]" if learned else text


def _safe(text):
    """Text without characters that a terminal would obey."""
    return "".join(
        c
        if c in "\n\t" or (unicodedata.category(c) != "Cc" and ord(c) not in DIRECTIONS)
        else c.encode("unicode_escape").decode()
        for c in text
    )


def _indent(text):
    return "\n".join(f"    {line}" for line in text.split("\n"))
