"""Pictures of a data card, as PNG files; they need matplotlib (requirements-plot.txt)."""

import importlib.util
import pathlib

NEEDS = "pip install -r requirements-plot.txt"
_DARK, _LIGHT = "#3b6ea5", "#c3d7ea"
_STAGES = {  # colour of what each drops
    "read": "#8d6a9f",
    "standardise": "#7fa8d1",
    "language": "#5b8c5a",
    "quality": "#3b6ea5",
    "duplicates": "#e0a458",
    "decontaminate": "#c8553d",
    "privacy": "#444444",
}
_ROWS = 18  # languages
_REASONS = 8  # of each stage


def draw(manifest, directory):
    """Draws what there is to draw; returns {"lengths", "languages", "dropped", "copies": file}.

    Args:
        manifest: of the corpus.
        directory: where the files go.

    Returns None where matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return None
    made = {}
    for name, picture in _PICTURES.items():
        figure = picture(manifest)
        if figure is not None:
            made[name] = f"{name}.png"
            # Its own name and version are all that matplotlib would add.
            figure.savefig(
                pathlib.Path(directory) / made[name], dpi=110, metadata={"Software": None}
            )
    return made


def _figure(height):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)
    panel = figure.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


def _bars(panel, labels, values, **style):
    """Horizontal bars, the first on top, each with its number at its end."""
    rows = range(len(labels))
    bars = panel.barh(rows, values, height=0.72, **style)
    panel.set_yticks(rows, [label if len(label) <= 50 else label[:49] + "…" for label in labels])
    panel.set_ylim(len(labels) - 0.4, -0.6)
    panel.bar_label(bars, [f"{value:,}" for value in values], padding=3, size=8)
    panel.margins(x=0.12)
    panel.tick_params(axis="y", length=0)
    panel.locator_params(axis="x", nbins=5)
    panel.xaxis.set_major_formatter(_short)
    return bars


def _short(value, _=None):
    """A number in short: "500", "20k", "1.5M"."""
    size = next((n for n in (9, 6, 3) if abs(value) >= 10**n), 0)
    return f"{value / 10**size:g}" + {0: "", 3: "k", 6: "M", 9: "G"}[size]


def _lengths(manifest):
    reports = manifest["reports"]
    before, after = (
        {int(n): count for n, count in reports[stage]["lengths"].items()}
        for stage in ("read", "tokens")
    )
    if not before:
        return None
    figure, panel = _figure(3.6)
    bins = range(min(before), max([*before, *after]) + 1)
    for counts, colour, label in ((before, _LIGHT, "as read"), (after, _DARK, "of the corpus")):
        values = [counts.get(n, 0) for n in bins]
        bars = panel.bar(bins, values, 0.94, align="edge", color=colour, label=label)
        if counts is before and len(bins) <= 16:  # the tail is too low to be seen
            panel.bar_label(bars, [f"{n:,}" if n else "" for n in values], padding=2, size=7)
    step = 1 if len(bins) <= 16 else 2
    edges = range(bins.start, bins.stop + 1, step)
    panel.set_xticks(edges, [_power(n) for n in edges])
    panel.margins(y=0.1)
    panel.yaxis.set_major_formatter(_short)
    panel.set(xlabel="characters (1K is 1,024)", ylabel="documents", title="Lengths of documents")
    panel.legend(frameon=False)
    return figure


def _power(n):
    """2^n in short: "512", "1K", "2K", …, "1M"."""
    return f"{2 ** (n % 10)}{('', 'K', 'M', 'G')[n // 10]}"


def languages(manifest):
    """Returns [(language, documents before any was dropped for it, documents of the corpus)]."""
    found, left = (
        {
            name.removeprefix("language "): count
            for name, count in manifest["reports"].get(stage, {"counts": {}})["counts"].items()
            if name.startswith("language ")
        }
        for stage in ("language", "tokens")
    )
    order = sorted(found, key=lambda name: (-found[name], name))
    return [(name or "unknown", found[name], left.get(name, 0)) for name in order]


def _languages(manifest):
    rows = languages(manifest)
    if not rows:
        return None
    shown = rows[:_ROWS]
    if rows[_ROWS:]:
        others = [sum(column) for column in list(zip(*rows[_ROWS:], strict=True))[1:]]
        shown.append((f"{len(rows[_ROWS:]):,} others", *others))
    labels, found, left = zip(*shown, strict=True)
    figure, panel = _figure(1.3 + 0.24 * len(labels))
    _bars(panel, labels, found, color=_LIGHT, label="found")
    panel.barh(range(len(labels)), left, height=0.72, color=_DARK, label="of the corpus")
    panel.set(xlabel="documents", title="Languages")
    figure.legend(frameon=False, ncols=2, loc="outside lower center")
    return figure


def dropped(manifest, most=None):
    """Returns [(stage, reason, documents)], the stages in their order, the most first in each.

    Args:
        manifest: of the corpus.
        most: reasons of a stage; the others become one, such as "7 other reasons".
    """
    rows = []
    for stage in manifest["stages"]:
        found = manifest["reports"][stage]["dropped"].items()
        found = sorted(found, key=lambda item: (-item[1], item[0]))
        kept = len(found) if most is None or len(found) <= most + 1 else most
        rows += [(stage, reason, count) for reason, count in found[:kept]]
        if found[kept:]:
            others = sum(count for _, count in found[kept:])
            rows.append((stage, f"{len(found) - kept} other reasons", others))
    return rows


def _dropped(manifest):
    rows = dropped(manifest, _REASONS)
    if not rows:
        return None
    stages, labels, counts = zip(*rows, strict=True)
    figure, panel = _figure(1.3 + 0.24 * len(labels))
    bars = _bars(panel, labels, counts, color=[_STAGES.get(stage, "#bbbbbb") for stage in stages])
    firsts = dict(zip(stages, bars, strict=True))
    figure.legend(firsts.values(), firsts.keys(), frameon=False, ncols=len(firsts),
                  loc="outside lower center")  # fmt: skip
    panel.set(xlabel="documents", title="What was dropped")
    return figure


def _copies(manifest):
    sizes = {int(size): count for size, count in manifest["copies"]["sizes"].items()}
    if not sizes:
        return None
    labels, counts = zip(*_classes(sizes), strict=True)
    figure, panel = _figure(3.6)
    bars = panel.bar(labels, counts, 0.8, color=_DARK)
    panel.bar_label(bars, [f"{count:,}" if count else "" for count in counts], padding=2, size=8)
    panel.margins(y=0.1)
    panel.yaxis.set_major_formatter(_short)
    if max(counts) > 100 * min(filter(None, counts)):
        panel.set_yscale("log")
        panel.set_ylim(0.8, max(counts) * 4)
        panel.yaxis.set_major_formatter(_short)
    panel.set(xlabel="documents of a group", ylabel="groups", title="Groups of copies")
    return figure


def _classes(sizes):
    """[("2", groups), ("3", …), ("4", …), ("5–8", …), ("9–16", …), …] without gaps."""
    largest, low = max(sizes), 2
    for high in (2, 3, 4, *(2**n for n in range(3, 9)), largest):
        if low > largest:
            return
        label = str(low) if low == high else f"{low}–{high}"
        label = f"over {low - 1}" if low > 256 else label
        yield label, sum(count for size, count in sizes.items() if low <= size <= high)
        low = high + 1


_PICTURES = {
    "lengths": _lengths,
    "languages": _languages,
    "dropped": _dropped,
    "copies": _copies,
}
