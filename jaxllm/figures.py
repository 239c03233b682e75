"""Figures as PNG files; they need matplotlib (requirements-plot.txt)."""

import importlib.util

from jaxllm.config import ConfigError

COLOURS = (
    "#3b6ea5", "#7fa8d1", "#c3d7ea", "#5b8c5a", "#a7c7a5", "#e0a458", "#c8553d", "#8d6a9f",
)  # fmt: skip
# For lines and points of different things: neighbours differ most.
UNLIKE = (
    "#3b6ea5", "#c8553d", "#5b8c5a", "#e0a458", "#8d6a9f", "#7fa8d1", "#a7c7a5", "#6b6b6b",
    "#d98cb3", "#2f9c95",
)  # fmt: skip


def check():
    """Raises ConfigError where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib. Try pip install -r requirements-plot.txt.")


def panels(columns, width=5.2, height=3.8):
    """Returns (figure, its panels), side by side.

    Args:
        columns: how many.
        width, height: of a panel, inches.

    Raises:
        ConfigError: matplotlib is missing.
    """
    check()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]
