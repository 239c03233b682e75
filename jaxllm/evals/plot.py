"""The picture of a forgetting report: the trade-off, and what each task kept."""

import pathlib

from jaxllm import figures
from jaxllm.evals.forgetting import ENOUGH


def draw(compared, file):
    """Draws gain on the target against loss elsewhere, and retention by task.

    A model is a point; checkpoints of one run are joined in their order. Without a target there is
    the second panel alone.

    Args:
        compared: [`forgetting.Comparison`], checkpoints of a run in order.
        file: path of the PNG file.

    Raises:
        ConfigError: matplotlib is missing.
    """
    both = any(one.gain and one.loss for one in compared)
    figure, found = figures.panels(1 + both, width=6.0, height=4.4)
    if both:
        _trade_off(found[0], compared)
    runs = _runs(compared)
    if len(runs) == 1 and len(compared) > 1:
        _over_steps(found[-1], compared)
    else:
        _by_task(found[-1], compared)
    figure.savefig(file, dpi=110)


def _runs(compared):
    """{work directory: its comparisons}."""
    runs = {}
    for one in compared:
        runs.setdefault(one.workdir, []).append(one)
    return runs


def _bars(figures_):
    """(means, [distances down, distances up]) of (mean, low, high); no bar where unbounded."""
    means = [mean for mean, _, _ in figures_]
    down = [0 if low is None else mean - low for mean, low, _ in figures_]
    up = [0 if high is None else high - mean for mean, _, high in figures_]
    return means, [down, up]


def _trade_off(panel, compared):
    for (name, ones), style in zip(_runs(compared).items(), _styles(), strict=False):
        ones = [one for one in ones if one.gain and one.loss]
        x, x_bars = _bars([one.loss for one in ones])
        y, y_bars = _bars([one.gain for one in ones])
        panel.errorbar(x, y, y_bars, x_bars, **style, markersize=5, linewidth=1,
                       elinewidth=0.6, capsize=2, label=_short(name))  # fmt: skip
        for one, a, b in zip(ones, x, y, strict=True):
            panel.annotate(f"step {one.step}", (a, b), (5, 5), textcoords="offset points", size=7)
    panel.plot(0, 0, "k+", markersize=10, label="before")
    panel.axhline(0, color="black", linewidth=0.5)
    panel.axvline(100 - ENOUGH, color="black", linestyle="--", linewidth=0.8)
    panel.axvline(0, color="black", linewidth=0.5)
    panel.set(xlabel="mean loss elsewhere, %", ylabel="gain on the target, %", title="Trade-off")
    panel.legend(fontsize=7, frameon=False)


def _short(workdir):
    return pathlib.PurePath(workdir).name


def _styles():
    """Colours and shapes of points, no two alike for long."""
    for shape in "osv^DX*P":
        yield from (dict(color=colour, marker=shape) for colour in figures.UNLIKE)


def _over_steps(panel, compared):
    for number, (row, style) in enumerate(zip(compared[0].rows, _styles(), strict=False)):
        ones = [(one.step, one.rows[number]) for one in compared]
        ones = [(step, r) for step, r in ones if r.retention is not None]
        y, bars = _bars([(r.retention, r.low, r.high) for _, r in ones])
        panel.errorbar([step for step, _ in ones], y, bars, **style, markersize=4,
                       linewidth=1, elinewidth=0.6, capsize=2,
                       label=f"{row.task}{' *' if row.target else ''}")  # fmt: skip
    panel.set(xlabel="step")
    _finish(panel)


def _by_task(panel, compared):
    names = [row.task + (" *" if row.target else "") for row in compared[0].rows]
    for number, (one, style) in enumerate(zip(compared, _styles(), strict=False)):
        shift = (number - (len(compared) - 1) / 2) * 0.7 / len(compared)
        ones = [(i, row) for i, row in enumerate(one.rows) if row.retention is not None]
        y, bars = _bars([(row.retention, row.low, row.high) for _, row in ones])
        panel.errorbar([i + shift for i, _ in ones], y, bars, **style, linestyle="none",
                       markersize=4, elinewidth=0.8, capsize=2,
                       label=f"{_short(one.workdir)} step {one.step}")  # fmt: skip
    panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
    _finish(panel)


def _finish(panel):
    panel.axhline(100, color="black", linewidth=0.5)
    panel.axhline(ENOUGH, color="black", linestyle="--", linewidth=0.8)
    panel.set(ylabel="retention, %", title="What each task kept (* target)")
    panel.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
