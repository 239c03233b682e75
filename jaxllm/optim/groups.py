"""Groups of parameters, how much each parameter decays, and factors on updates.

Weight decay is decoupled everywhere (Loshchilov and Hutter 2019, arXiv:1711.05101): it is added to
the update just before the learning rate multiplies both.
"""

import math
import re
from typing import NamedTuple

import numpy as np
import optax

from jaxllm.config import ConfigError, near
from jaxllm.optim.matrices import info_of, is_hidden_matrix, is_lookup
from jaxllm.trees import map_with_path

INHERIT = -1.0  # a group's weight_decay where it is the optimizer's own


class Group(NamedTuple):
    """Parameters whose path matches a pattern, and what sets them apart.

    Attributes:
        name: what the config calls it.
        pattern: regular expression, searched for anywhere in the path.
        lr_scale: multiplies the learning rate; 0 freezes.
        weight_decay: replaces the optimizer's for every match, norms too; INHERIT keeps it.
    """

    name: str
    pattern: str
    lr_scale: float = 1.0
    weight_decay: float = INHERIT


def read_groups(section, infos):
    """Reads `config.optim.groups` = {name: {pattern, lr_scale, weight_decay}}.

    Returns:
        tuple of Group, in order of their names.

    Raises:
        ConfigError: unknown or missing setting, value out of range, a pattern that is no regular
            expression or matches nothing, or two groups that claim one parameter.
    """
    groups = tuple(_read_group(name, section[name]) for name in sorted(section))
    owner = {}
    for group in groups:
        field = f"config.optim.groups.{group.name}"
        found = [path for path in infos if re.search(group.pattern, path)]
        if not found:
            raise ConfigError(_no_match(field, group.pattern, infos))
        for path in found:
            if path in owner:
                raise ConfigError(
                    f"{field}.pattern={group.pattern!r} and config.optim.groups.{owner[path]} both "
                    f"match {path!r}; a parameter has one group.\n  Try a narrower pattern, such "
                    f"as --{field}.pattern='^{re.escape(path)}$'."
                )
            owner[path] = group.name
    return groups


def _read_group(name, section):
    """Reads one group; the patterns are checked against the parameters by `read_groups`."""
    field = f"config.optim.groups.{name}"
    known = [setting for setting in Group._fields if setting != "name"]
    if not hasattr(section, "items"):
        raise ConfigError(f"{field}={section!r} must be a dict with {', '.join(known)}.")
    values = dict(section.items())
    for setting, value in values.items():
        if setting not in known:
            raise ConfigError(
                f"{field}.{setting}={value!r} is unknown.{near(setting, known)} "
                f"Known: {', '.join(known)}."
            )
    pattern = values.get("pattern")
    if not (isinstance(pattern, str) and pattern):
        raise ConfigError(
            f"{field}.pattern={pattern!r} must say which parameters are meant.\n"
            f"  Try --{field}.pattern=embed."
        )
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{field}.pattern={pattern!r} is no regular expression: {error}."
        ) from None
    for setting in values.keys() - {"pattern"}:
        value = values[setting]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        inherits = setting == "weight_decay" and value == INHERIT
        if not number or not (inherits or 0 <= value < math.inf):
            raise ConfigError(
                f"{field}.{setting}={value!r} must be a number of at least 0.\n"
                f"  Try --{field}.{setting}=0.1."
            )
    return Group(name, **values)


def _no_match(field, pattern, infos):
    """The error for a pattern that matches no parameter."""
    # Near misses by the words of a path: a slip is in one of them, and paths are long.
    words = dict.fromkeys(word for path in infos for word in path.split("/"))
    tries = [word for word in re.split(r"[^A-Za-z0-9_]+", pattern) if word and word not in words]
    hints = "".join(near(word, words) for word in tries)
    return (
        f"{field}.pattern={pattern!r} matches none of the {len(infos)} parameters.{hints}\n"
        f"  Parameters are named like {', '.join(list(infos)[:: max(1, len(infos) // 5)])}.\n"
        f"  Try --{field}.pattern={next(iter(infos), '').split('/')[0]}."
    )


def group_of(path, groups):
    """Returns the Group that a path belongs to, or None."""
    return next((group for group in groups if re.search(group.pattern, path)), None)


def decays(infos, weight_decay, decay_embeddings, groups=()):
    """Returns {path: decay} for every parameter; norms and biases have 0 unless a group says so.

    Args:
        infos: {path: ParamInfo}.
        weight_decay: of hidden matrices, at least 0.
        decay_embeddings: whether embeddings and the output head decay as well.
        groups: Groups, whose weight_decay wins.

    Raises:
        ValueError: weight_decay is negative or not finite.
    """
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay={weight_decay} must be at least 0, such as 0.1.")

    def decay(path, info):
        group = group_of(path, groups)
        if group is not None and group.weight_decay != INHERIT:
            return group.weight_decay
        return weight_decay * (is_hidden_matrix(info) or (decay_embeddings and is_lookup(info)))

    return {path: decay(path, info) for path, info in infos.items()}


def add_decay(decay):
    """Makes the transformation that adds decay[path] * parameter to each update."""

    def one(path, update, param):
        rate = info_of(decay, path)
        return update + rate * param if rate else update

    return optax.stateless(lambda updates, params: map_with_path(one, updates, params))


def by_depth(decay, depths, infos):
    """Returns {path: decay ^ depth}, float32 of a shape that multiplies the parameter.

    Args:
        decay: factor a step.
        depths: {path: one number, or one for each layer of a stack}.
        infos: {path: ParamInfo}.
    """

    def one(path, info):
        steps = np.array(depths[path])
        shape = (-1, *(1,) * (len(info.shape) - 1)) if len(steps) > 1 else ()
        return np.float32(decay**steps).reshape(shape)

    return {path: one(path, info) for path, info in infos.items()}


def scale_by(factors):
    """Makes the transformation that multiplies each update by factors[path]: numbers, or arrays."""

    def one(path, update):
        factor = info_of(factors, path)
        return update if np.all(factor == 1.0) else factor * update

    return optax.stateless(lambda updates, _: map_with_path(one, updates))
