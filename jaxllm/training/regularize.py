"""What holds training back from forgetting and overfitting: `config.regularize` as values.

A step divides the loss by what it counts, tokens or examples, and then adds penalties of the
parameters: they are of an update, not of its tokens, so that neither pieces nor devices nor the
size of a batch change them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm import finetune, trees
from jaxllm.config import ConfigError, near
from jaxllm.objectives import noise

ANCHORS = ("start", "fisher")  # names in `refs` of what penalties look at


class Regularize(NamedTuple):
    """`config.regularize`, read.

    Attributes:
        l2_start: weight of half the squared distance from the parameters of `config.init_from`.
        ewc: the same with each square times its Fisher information.
        neftune: size of uniform noise on embeddings; 0 is off.
        freelb: `noise.Ascent`.
    """

    l2_start: float = 0.0
    ewc: float = 0.0
    neftune: float = 0.0
    freelb: noise.Ascent = noise.Ascent()

    @property
    def draws(self):
        """Whether a step needs random keys for it."""
        return self.neftune > 0 or self.freelb.steps > 0

    @property
    def anchors(self):
        """Names of the frozen trees that it takes: those of ANCHORS."""
        return (*["start"] * (self.l2_start > 0 or self.ewc > 0), *["fisher"] * (self.ewc > 0))


def read(config):
    """Returns the `Regularize` of a config; of one from before there was such a section, none.

    Raises:
        ConfigError: unknown settings, or one out of range.
    """
    section = dict(config.get("regularize", {}))
    section["freelb"] = _read(noise.Ascent, section.get("freelb", {}), "regularize.freelb")
    found = _read(Regularize, section, "regularize")
    steps, largest = found.freelb.steps, found.freelb.largest
    for field, good, allowed, value, example in (
        *(
            (name, 0 <= getattr(found, name) < float("inf"), "at least 0", getattr(found, name), 1)
            for name in ("l2_start", "ewc", "neftune")
        ),
        ("freelb.steps", steps >= 0 and steps != 1, "0 (off) or at least 2", steps, 3),
        ("freelb.lr", found.freelb.lr > 0, "positive", found.freelb.lr, 0.1),
        ("freelb.start", found.freelb.start >= 0, "at least 0", found.freelb.start, 0.1),
        ("freelb.largest", largest >= 0, "at least 0", largest, 0.3),
    ):
        if not good:
            raise ConfigError(
                f"config.regularize.{field}={value} must be {allowed}.\n"
                f"  Try --config.regularize.{field}={example}."
            )
    return found


def _read(kind, section, field):
    for name in section:
        if name not in kind._fields:
            known = ", ".join(kind._fields)
            raise ConfigError(
                f"config.{field}.{name} is unknown.{near(name, kind._fields)} Known: {known}."
            )
    return kind(**section)


def check(config, c, method):
    """Raises ConfigError for settings that have nothing to work on.

    Args:
        config: the ConfigDict.
        c: the model's configuration.
        method: `finetune.Method`.
    """
    found = read(config)
    for name in ("l2_start", "ewc"):
        value = getattr(found, name)
        if not value:
            continue
        if not config.init_from:
            raise ConfigError(
                f"config.regularize.{name}={value} keeps parameters near those of init_from, and "
                "config.init_from is empty.\n  Try --config.init_from=runs/NAME."
            )
        if method.kind != "full":
            raise ConfigError(
                f"config.regularize.{name}={value} keeps the parameters of init_from near, and "
                f"finetune.kind={method.kind!r} leaves them as they are.\n"
                f"  Try --config.finetune.kind=full, or --config.regularize.{name}=0."
            )
    rdrop = config.objective.get("rdrop", 0.0)
    if rdrop and not (c.dropout or method.dropout or found.neftune):
        raise ConfigError(
            f"config.objective.rdrop={rdrop} compares two passes that differ by what is dropped, "
            "and model.dropout=0.\n  Try --config.model.dropout=0.1."
        )


def of_step(found, loss, width):
    """Returns (loss of training, what `step.make_step` takes besides: of_pieces, penalty).

    Args:
        found: `Regularize`.
        loss: (params, refs, batch, key) -> Loss.
        width: of embeddings.
    """
    loss = noise.neftune(loss, found.neftune, width) if found.neftune else loss
    more = {"penalty": penalty(found)}
    if found.freelb.steps:
        more["of_pieces"] = lambda loss: noise.freelb(loss, found.freelb, width)
    return loss, more


def anchored(found, infos, fresh):
    """Returns {name of ANCHORS: {path: ParamInfo}} of what penalties look at.

    Args:
        found: `Regularize`.
        infos: {path: ParamInfo} of what is trained.
        fresh: `config.init_fresh`: what is drawn anew has no start to keep to.

    Raises:
        ConfigError: `fresh` is no regular expression.
    """
    drawn = finetune.drawn(fresh, infos)
    kept = {path: x for path, x in infos.items() if path not in drawn}
    return dict.fromkeys(found.anchors, kept)


def penalty(found):
    """Returns penalty(params, refs) -> {name: number that is added to the loss}; None for none.

    l2_start / 2 · Σ (θ - θ₀)², of Li et al. 2018, arXiv:1802.01483, equation 2; ewc / 2 ·
    Σ F (θ - θ₀)², of Kirkpatrick et al. 2017, arXiv:1612.00796, equation 3, with F of one token (or
    example) of the old task: at 1, about the nats that a token of it has lost.
    """
    if not found.anchors:
        return None

    def of_params(params, refs):
        params, sums = trees.flatten(params), {}
        start = trees.flatten(refs["start"])
        moved = {path: jnp.square(params[path] - start[path]) for path in start}
        if found.l2_start:
            total = sum(jnp.sum(x) for x in moved.values())
            sums["l2_start"] = found.l2_start / 2 * total
        if found.ewc:
            fisher = trees.flatten(refs["fisher"])
            total = sum(jnp.sum(fisher[path] * x) for path, x in moved.items())
            sums["ewc"] = found.ewc / 2 * total
        return sums

    return of_params


def add_slopes(penalty, params, refs, grads):
    """Returns (gradients with those of the penalties, {name: penalty})."""

    def total(params):
        terms = penalty(params, refs)
        return sum(terms.values()), terms

    slopes, terms = jax.grad(total, has_aux=True)(params)
    return jax.tree.map(jnp.add, grads, slopes), terms
