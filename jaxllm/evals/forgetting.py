"""What a model lost by training on something else: retention, its interval, and the trade-off."""

import math
import zlib
from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError, near
from jaxllm.evals import bootstrap
from jaxllm.evals.suite import METRICS

ENOUGH = 80.0  # per cent of a score; below it a warning is given


class Measured(NamedTuple):
    """A model and its scores.

    Attributes:
        workdir, step: of its checkpoint.
        tokenizer: its tokenizer's fingerprint.
        scores: {task: `general.Scores`}.
    """

    workdir: str
    step: int
    tokenizer: str
    scores: dict


class Row(NamedTuple):
    """One task before and after, in per cent where not said otherwise.

    Attributes:
        task, metric: their names.
        target: whether it is what was trained for.
        examples: how many.
        before, after: scores as they are.
        retention: after / before, or before / after where less is better; None where that is a
            ratio to 0.
        low, high: of its interval; None for no bound.
        above_chance: retention of what is above guessing; None where there is no such thing.
        also: {another metric of the kind: (before, after)}.
    """

    task: str
    metric: str
    target: bool
    examples: int
    before: float
    after: float
    retention: float | None
    low: float | None
    high: float | None
    above_chance: float | None
    also: dict


class Comparison(NamedTuple):
    """A model against the one before it.

    Attributes:
        workdir, step: of the checkpoint.
        rows: [`Row`].
        gain: (mean, low, high) of retention - 100 over the targets, per cent; None without any.
        loss: (mean, low, high) of 100 - retention over the others; None without any.
    """

    workdir: str
    step: int
    rows: list
    gain: tuple | None
    loss: tuple | None


def check_targets(tasks, targets):
    """Raises ConfigError for a target that is no task."""
    names = [task.name for task in tasks]
    for name in targets:
        if name not in names:
            raise ConfigError(
                f"--target={name} is no task.{near(name, names)} Known: {', '.join(names)}."
            )


def check_tokenizers(tasks, models, file):
    """Raises ConfigError for a task that counts tokens, of models with different tokenizers.

    Args:
        tasks: [`suite.Task`].
        models: [(work directory, fingerprint of its tokenizer)], the one before first.
        file: of the tasks, for the error.
    """
    first, own = models[0]
    for workdir, other in models[1:]:
        for task in tasks:
            if METRICS[task.how.metric].by_token and own != other:
                raise ConfigError(
                    f"task {task.name!r} of {file} has metric={task.how.metric!r}, which counts "
                    f"tokens, and {first} and {workdir} have different tokenizers ({own[:12]}, "
                    f"{other[:12]}): a token of one is not one of the other.\n"
                    '  Try "metric": "bits_per_byte".'
                )


def compare(before, after, targets=(), seed=0):
    """Compares two models on the same examples.

    Args:
        before, after: `Measured`, with the scores of the same tasks.
        targets: names of tasks that the training was for.
        seed: of the resamples.

    Returns:
        `Comparison`.
    """
    rows, gains, losses = [], [], []
    for name, old in before.scores.items():
        new, target = after.scores[name], name in targets
        drawn = bootstrap.weights(len(old.over), [seed, zlib.crc32(name.encode())])
        point, values = _retention(old, new, drawn)
        low, high = bootstrap.interval(values)
        rows.append(
            Row(
                task=name,
                metric=old.metric,
                target=target,
                examples=len(old.over),
                before=old.score,
                after=new.score,
                retention=_finite(point),
                low=_finite(low),
                high=_finite(high),
                above_chance=_above_chance(old, new),
                also={other: (x, new.also[other]) for other, x in old.also.items()},
            )
        )
        if not math.isnan(point):
            (gains if target else losses).append((point, values))
    gain = _mean([(point - 100, values - 100) for point, values in gains])
    loss = _mean([(100 - point, 100 - values) for point, values in losses])
    return Comparison(after.workdir, after.step, rows, gain, loss)


def _retention(old, new, drawn):
    """Returns (per cent of all examples, per cent of each resample); NaN for a ratio to 0."""
    metric = METRICS[old.metric]

    def of(scores, weights):
        with np.errstate(all="ignore"):
            return metric.of((weights @ scores.over) / (weights @ scores.under))

    def ratio(weights):
        top, bottom = of(new, weights), of(old, weights)
        if metric.less_is_better:
            top, bottom = bottom, top
        with np.errstate(all="ignore"):
            return np.where(bottom > 0, 100 * (top / bottom), np.nan)

    return float(ratio(np.ones(len(old.over)))), ratio(drawn)


def _above_chance(old, new):
    if old.chance is None or old.score <= old.chance:
        return None
    return 100 * (new.score - old.chance) / (old.score - old.chance)


def _mean(parts):
    """(mean, low, high) over tasks, each with its own resamples."""
    if not parts:
        return None
    points, values = zip(*parts, strict=True)
    low, high = bootstrap.interval(np.mean(values, axis=0))
    return float(np.mean(points)), _finite(low), _finite(high)


def _finite(x):
    return float(x) if math.isfinite(x) else None


def warnings(found):
    """Returns a line for each task of a `Comparison` of which too little is left, or maybe."""
    name, lines = f"{found.workdir} step {found.step}", []
    for row in found.rows:
        if row.retention is None:
            lines.append(f"note: {name}: {row.task}: the score before is 0, so nothing can be kept")
            continue
        left = f"{row.task} kept {row.retention:.1f} % {_span(row.low, row.high)}"
        if row.target:
            if row.retention < 100:
                sure = row.high is not None and row.high < 100
                doubt = "" if sure else "; not certain: the interval crosses 100 %"
                lines.append(f"WARNING: {name}: the target became worse: {left}{doubt}")
            continue
        if row.retention < ENOUGH:
            sure = row.high is not None and row.high < ENOUGH
            doubt = "" if sure else f"; not certain: the interval crosses {ENOUGH:.0f} %"
            lines.append(f"WARNING: {name}: {left}, below {ENOUGH:.0f} %{doubt}")
        elif row.low is None or row.low < ENOUGH:
            lines.append(f"note: {name}: {left}; not certain: the interval crosses {ENOUGH:.0f} %")
    return lines


def _span(low, high):
    words = ("-inf" if low is None else f"{low:.1f}", "inf" if high is None else f"{high:.1f}")
    return f"[{words[0]}, {words[1]}]"


def as_dict(before, compared, seed):
    """The report as data that JSON can hold."""
    return {
        "before": {"workdir": before.workdir, "step": before.step},
        "interval": f"{bootstrap.COVERED:g} %, {bootstrap.DRAWS} paired resamples, seed {seed}",
        "enough_percent": ENOUGH,
        "after": [
            {
                **one._asdict(),
                "rows": [row._asdict() for row in one.rows],
                "warnings": warnings(one),
            }
            for one in compared
        ],
    }


def as_text(before, compared):
    """The report as a page: a table of tasks for each model, warnings, the trade-off."""
    lines = [
        f"before: {before.workdir} step {before.step}",
        "retention: after / before where more is better (+), before / after where less is (-);",
        f"  [{bootstrap.COVERED:g} % interval of {bootstrap.DRAWS:,} paired resamples of the "
        "examples]; * a target; above chance: of what is above guessing",
    ]
    for one in compared:
        lines += ["", f"after: {one.workdir} step {one.step}", *_table(_cells(one.rows))]
        lines += warnings(one)
    if any(one.gain for one in compared):
        cells = [("model", "step", "gain on the target", "loss elsewhere")]
        cells += [(o.workdir, str(o.step), _figure(o.gain), _figure(o.loss)) for o in compared]
        lines += ["", "trade-off, per cent of the score before:", *_table(cells)]
    return "\n".join(lines)


def _cells(rows):
    cells = [("task", "metric", "n", "before", "after", "retention", "interval", "above chance")]
    for row in rows:
        sign = "-" if METRICS[row.metric].less_is_better else "+"
        cells.append(
            (
                f"{row.task}{' *' if row.target else ''}",
                f"{sign} {row.metric}",
                str(row.examples),
                f"{row.before:.4g}",
                f"{row.after:.4g}",
                "none" if row.retention is None else f"{row.retention:.1f} %",
                "" if row.retention is None else _span(row.low, row.high),
                "" if row.above_chance is None else f"{row.above_chance:.1f} %",
            )
        )
    return cells


def _figure(found):
    return "" if found is None else f"{found[0]:+.1f} {_span(*found[1:])}"


def _table(cells):
    """Lines of a table, words to the left and numbers to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
