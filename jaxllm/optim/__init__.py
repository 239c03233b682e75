"""Optimizers and schedules: two tables, and one function that reads `config.optim`."""

import math
import re

import optax

from jaxllm.config import ConfigError, make
from jaxllm.optim import optimizers, schedules
from jaxllm.optim.groups import by_depth, group_of, read_groups, scale_by
from jaxllm.optim.schedules import Schedule
from jaxllm.optim.state import param_of, state_axes, step_count
from jaxllm.trees import map_with_path

SCHEDULES = {
    "constant": schedules.constant,
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "step": schedules.step,
    "inverse_sqrt": schedules.inverse_sqrt,
    "wsd": schedules.wsd,
}

OPTIMIZERS = {
    "adamw": optimizers.adamw,
    "adafactor": optimizers.adafactor,
    "lamb": optimizers.lamb,
    "lion": optimizers.lion,
    "muon": optimizers.muon,
    "sgd": optimizers.sgd,
    "adamw8bit": optimizers.adamw8bit,
}

__all__ = [
    "OPTIMIZERS",
    "SCHEDULES",
    "Schedule",
    "make_optimizer",
    "make_schedule",
    "param_of",
    "state_axes",
    "step_count",
]


def make_schedule(section, steps):
    """Makes the `Schedule` that `config.schedule` describes, for a run of `steps` updates.

    Raises:
        ConfigError: unknown kind or option, or an option out of range.
    """
    return make(SCHEDULES, section, "schedule", steps)


def make_optimizer(section, schedule, infos, ignore=(), factors=(), depths=None):
    """Makes the optimizer that `config.optim` describes.

    Args:
        section: {kind, options, groups, layer_decay}; `groups` = {name: {pattern, lr_scale,
            weight_decay}} sets parameters apart by their path, see `Group`. A group with lr_scale 0
            is frozen: it gets no update and has no state. `layer_decay` is a factor of the learning
            rate for each layer further from the output (Clark et al. 2020, arXiv:2003.10555).
        schedule: a `Schedule`.
        infos: {path: ParamInfo} of every parameter that the tree will have.
        ignore: names in the section that are for others, such as gradient clipping.
        factors: ((regular expression, factor), …) of learning rates, of paths searched, besides.
        depths: {path: steps below the output, one for each stacked layer, or one}, as
            `models.below_output` has them; without layer_decay None will do.

    Returns:
        optax.GradientTransformation; its update needs params, and its counts are of updates that
        were applied.

    Raises:
        ConfigError: unknown kind, option or group setting, or a value out of range.
    """
    groups = read_groups(section.get("groups") or {}, infos)
    own = ("groups", "layer_decay", *ignore)
    tx = make(OPTIMIZERS, section, "optim", schedule, infos, groups, ignore=own)
    decay = section.get("layer_decay", 1.0)
    if not 0 < decay <= 1:
        raise ConfigError(
            f"config.optim.layer_decay={decay} must be above 0 and at most 1.\n"
            "  Try --config.optim.layer_decay=0.9."
        )
    if decay < 1:
        tx = optax.chain(tx, scale_by(by_depth(decay, depths, infos)))
    scales = {}
    for path in infos:
        group = group_of(path, groups)
        scales[path] = 1.0 if group is None else group.lr_scale
        scales[path] *= math.prod(by for pattern, by in factors if re.search(pattern, path))
    if any(scale != 1.0 for scale in scales.values()):
        tx = optax.chain(tx, scale_by(scales))
    if all(scales.values()):
        return tx

    def label(path, _):
        return "train" if scales[path] else "freeze"

    return optax.partition(
        {"train": tx, "freeze": optax.set_to_zero()}, lambda tree: map_with_path(label, tree)
    )
