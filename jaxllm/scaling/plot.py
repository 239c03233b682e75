"""Pictures of plans, as PNG files; they need matplotlib (requirements-plot.txt)."""

from jaxllm import figures
from jaxllm.figures import COLOURS
from jaxllm.scaling.devices import GB


def against_devices(estimates, file):
    """Draws memory by kind and time of a step against the number of devices.

    Args:
        estimates: [`estimate.Estimate`] of one model and batch, by number of devices.
        file: path of the PNG file.
    """
    figure, (left, right) = figures.panels(2)
    counts = [str(one.machine.count) for one in estimates]
    parts = [one.memory.state | one.memory.step for one in estimates]
    kinds = list(dict.fromkeys(kind for part in parts for kind in part))
    below = [0.0] * len(estimates)
    for kind, colour in zip(kinds, COLOURS, strict=False):
        sizes = [part.get(kind, 0) / GB for part in parts]
        left.bar(counts, sizes, bottom=below, label=kind, color=colour, width=0.7)
        below = [a + b for a, b in zip(below, sizes, strict=True)]
    room = estimates[0].machine.device.hbm_bytes / GB
    left.axhline(room, color="black", linestyle="--", linewidth=1, label="a device has")
    top = 2 * room
    for count, total in zip(counts, below, strict=True):
        if total > top:  # what is far too large would flatten the rest
            left.annotate(f"{total:,.0f}", (count, top), (0, -10), textcoords="offset points",
                          size=7, ha="center", color="white")  # fmt: skip
    left.set(xlabel="devices", ylabel="GB a device", title="Memory by kind", ylim=(0, top))
    left.legend(fontsize=7, frameon=False)
    hidden = [one.times.hidden for one in estimates]
    exposed = [one.times.exposed for one in estimates]
    ideal = [exposed[0] * estimates[0].machine.count / one.machine.count for one in estimates]
    right.fill_between(counts, hidden, exposed, color=COLOURS[1], label="wire hidden to exposed")
    right.plot(counts, exposed, color=COLOURS[0], marker="o", markersize=4)
    right.plot(
        counts, ideal, color="black", linestyle=":", linewidth=1, label="as many times faster"
    )
    right.set(xlabel="devices", ylabel="seconds", title="A step", yscale="log")
    for count, one in zip(counts, estimates, strict=True):
        words = f"{100 * one.mfu(one.times.exposed, 'palm'):.0f} %"
        right.annotate(
            words, (count, one.times.exposed), (0, 7), textcoords="offset points", size=7
        )
    right.margins(x=0.09, y=0.12)
    right.legend(fontsize=7, frameon=False, title="(MFU, exposed)", title_fontsize=7)
    config = estimates[0].share.config
    name = f"{config.model.family} {config.model.size}".strip()
    tokens = estimates[0].step_tokens / 1e6
    figure.suptitle(f"{name}, {tokens:.2f} million tokens a step, {estimates[0].machine.family}")
    figure.savefig(file, dpi=110)


def pareto(tried, best, file):
    """Draws the layouts of a search, memory against time, and those that no other beats.

    Args:
        tried: [`search.Layout`].
        best: those of them that no other beats.
        file: path of the PNG file.
    """
    figure, (panel,) = figures.panels(1)
    for fits, colour, label in ((False, "#cccccc", "does not fit"), (True, COLOURS[1], "fits")):
        some = [one for one in tried if one.fits == fits and one.needed < 3 * _room(one)]
        x, y = [one.needed / GB for one in some], [one.seconds for one in some]
        panel.scatter(x, y, s=9, color=colour, label=label)
    made = [one for one in tried if one.compiled]
    x, y = [one.needed / GB for one in made], [one.seconds for one in made]
    panel.scatter(x, y, s=40, facecolors="none", edgecolors="black", label="compiled")
    x, y = [one.needed / GB for one in best], [one.seconds for one in best]
    panel.step(x, y, where="post", color=COLOURS[6], label="no other is better in both")
    panel.axvline(_room(tried[0]) / GB, color="black", linestyle="--", linewidth=1)
    panel.set(xlabel="GB a device", ylabel="seconds a step, exposed", xscale="log", yscale="log")
    panel.legend(fontsize=7, frameon=False)
    figure.savefig(file, dpi=110)


def _room(one):
    return one.found.machine.device.hbm_bytes
