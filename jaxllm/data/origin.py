"""Where the rows of a step come from, what a run reads, what the order of all rows depends on."""

import hashlib
import json
from typing import NamedTuple

import numpy as np


class Origin(NamedTuple):
    """Where one row comes from.

    Attributes:
        row: its number in the global batch.
        source: name of the source.
        epoch: of the source, from 0; -1 in a curriculum, which draws with replacement.
        pieces: [Piece], in the order of the row.
    """

    row: int
    source: str
    epoch: int
    pieces: list


class Piece(NamedTuple):
    """A stretch of a document in a row.

    Attributes:
        column: where it begins in the row.
        document: number of the document in the split, from 0.
        offset: token of the document that it begins with.
        tokens: how many.
        start: where it begins in the split's stream of tokens.
    """

    column: int
    document: int
    offset: int
    tokens: int
    start: int


def explain(source, step, rows=None):
    """Returns where the rows of the global batch of a step come from.

    Args:
        source: as `data.open_split` returns, or a mixture.
        step: the step, from 0: the one that makes update step + 1.
        rows: row numbers, or None for all.

    Returns:
        [Origin].
    """
    rows = np.arange(source.batch) if rows is None else np.asarray(rows)
    found = source.where(np.int64(step) * source.batch + rows)
    return [Origin(int(row), *origin) for row, origin in zip(rows, found, strict=True)]


def describe(source, steps):
    """Returns a line for each source: how often a run of `steps` steps walks it.

    Args:
        source: as `open_split` returns.
        steps: steps of the run.
    """
    read, lines = source.read(steps * source.batch), []
    for name, epochs in source.epochs(steps).items():
        line = f"data {name}: {read[name]:,} rows of the run, {epochs:.2f} epochs of "
        lines.append(f"{line}{source.sources[name].train_rows:,}")
        if name in source.held:
            lines[-1] += " (held to its max_epochs; the others have the rest)"
    for name, one in source.sources.items():
        if cut := getattr(one, "cut", 0):
            lines.append(f"data {name}: {cut:,} of {one.examples:,} examples are cut to a row")
        for why, count in getattr(one, "left_out", {}).items():
            lines.append(f"data {name}: {count:,} of {one.examples:,} examples left out: {why}")
        if shortened := {"shortened": 0, **one.manifest}["shortened"]:
            lines.append(f"data {name}: {shortened:,} chats lost their oldest turns to fit a row")
    lines += [
        f"data {name}: no rows (its max_epochs allow less than one in a thousand)"
        for name in source.held
        if name not in read
    ]
    return lines


def classes(source):
    """Returns the names of the classes or tags of a source's examples, () where it has none.

    Args:
        source: as `data.open_split` returns.
    """
    found = [{"classes": (), **one.manifest}["classes"] for one in source.sources.values()]
    return tuple(next(filter(None, found), ()))


def record(source, config, seed):
    """Returns all that the order of rows depends on, {name: text or number}.

    Args:
        source: as `data.open_split` returns.
        config: `config.data`.
        seed: of the order.
    """
    found = {"seed": seed, "batch": source.batch, "length": source.length}
    found["rows"] = {"rows": "windows", **config}["rows"]
    for one in source.sources.values():
        found |= one.options._asdict() if hasattr(one, "options") else {}
    lead = next(iter(source.sources.values())).lead
    found |= {"lead": lead} if lead else {}
    for name, section in config["sources"].items():
        found |= {f"sources.{name}.rows": section["rows"]} if section.get("rows") else {}
    for name, one in source.sources.items():
        content = json.dumps(one.manifest["splits"], sort_keys=True)
        found[f"sources.{name}.shards"] = hashlib.sha256(content.encode()).hexdigest()[:12]
    for first, quotas in getattr(source, "stages", []):
        for name, rows in quotas.items():
            found[f"sources.{name}.rows in a thousand from row {first * 1000}"] = rows
    for name, section in {"transforms": {}, **config}["transforms"].items():
        found[f"transforms.{name}"] = json.dumps(dict(section), sort_keys=True)
    for name, one in source.sources.items():
        found |= {f"sources.{name}.{k}": v for k, v in getattr(one, "order", {}).items()}
    return found


def differences(before, now):
    """Returns lines of two columns for what differs between two records, or []."""
    names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
    table = [("", "was", "is")]
    table += [(n, str(before.get(n, "none")), str(now.get(n, "none"))) for n in names]
    if not names:
        return []
    widths = [max(len(line[i]) for line in table) for i in range(3)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in table
    ]
