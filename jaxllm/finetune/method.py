"""A fine-tuning method as a value: what it rewrites, and how its parameters are told apart."""

import dataclasses
import re

import jax.numpy as jnp

from jaxllm import trees
from jaxllm.config import ConfigError
from jaxllm.models import abstract_params
from jaxllm.models.quantized import PARTS


@dataclasses.dataclass(frozen=True)
class Method:
    """What a `config.finetune` stands for; as a function it rewrites a model (see `models.make`).

    Attributes:
        kind: its name.
        parts: rewrites, of `parts`, in order.
        freeze: regular expression of the paths that a method which trains all leaves as they are.
        lead: places at the start of every document that it takes.
        start: how what is put in starts: "" as the parts do; pissa, loftq; or the text of a prompt.
        lr_scales: ((regular expression, factor of the learning rate), …).
    """

    kind: str
    parts: tuple = ()
    freeze: str = ""
    lead: int = 0
    start: str = ""
    lr_scales: tuple = ()

    def __call__(self, module, key):
        for part in self.parts:
            part(module, key)

    @property
    def rewrite(self):
        """What `models.make` takes: None where nothing is rewritten."""
        return self if self.parts else None

    @property
    def few_bits(self):
        """The format of few bits that frozen weights are kept in, or ""."""
        return next((part.format for part in self.parts if hasattr(part, "format")), "")

    @property
    def dropout(self):
        """Whether a part drops anything in training."""
        return any(getattr(part, "dropout", 0) > 0 for part in self.parts)


def added(method, c):
    """Returns the paths of what a method puts into a model besides the base's weights, sorted."""
    base = abstract_params(c)
    found = abstract_params(c, method.rewrite)
    return [path for path in found if path not in base and not is_quantized(path, base)]


def is_quantized(path, base):
    """Whether a path is that of a part of one of the base's weights in few bits."""
    weight, _, part = path.rpartition("/")
    return part in PARTS and weight in base


def drawn(pattern, paths):
    """Returns the paths, of `paths`, that `config.init_fresh` names: drawn anew, not read.

    Args:
        pattern: `config.init_fresh`: a regular expression of beginnings; "" names none.
        paths: str of parameters.

    Raises:
        ConfigError: it is no regular expression.
    """
    try:
        return [path for path in paths if pattern and re.match(pattern, path)]
    except re.error as error:
        raise ConfigError(
            f"config.init_fresh={pattern!r} is no regular expression: {error}.\n"
            "  Try --config.init_fresh='task/'."
        ) from None


def split(method, c, fresh=""):
    """Returns (paths that are trained, paths that are frozen), in the order of the parameters.

    Args:
        method: `Method`.
        c: the model's configuration.
        fresh: `config.init_fresh`; what is drawn anew is trained too.

    Raises:
        ConfigError: nothing is left to train, or a pattern that matches nothing.
    """
    infos, base = abstract_params(c, method.rewrite), abstract_params(c)
    if method.kind == "full":
        frozen = _matching(method.freeze, infos) if method.freeze else set()
    else:
        own = set(added(method, c))
        frozen = {path for path in infos if path not in own}
        frozen -= set(drawn(fresh, base))
    trained = [path for path in infos if path not in frozen]
    if not trained:
        raise ConfigError(
            f"config.finetune.freeze={method.freeze!r} leaves nothing to train.\n"
            "  Try --config.finetune.freeze='^embed$'."
        )
    return trained, [path for path in infos if path in frozen]


def infos(method, c, fresh=""):
    """Returns {path: ParamInfo} of what is trained, and of what is frozen, as it is stored.

    Arguments and errors as of `split`.
    """
    whole = abstract_params(c, method.rewrite)
    trained, frozen = split(method, c, fresh)
    frozen = frozen_infos({path: whole[path] for path in frozen}, c.dtype)
    return {path: whole[path] for path in trained}, frozen


def _matching(pattern, infos):
    try:
        found = {path for path in infos if re.search(pattern, path)}
    except re.error as error:
        raise ConfigError(
            f"config.finetune.freeze={pattern!r} is no regular expression: {error}."
        ) from None
    if not found:
        raise ConfigError(
            f"config.finetune.freeze={pattern!r} matches none of the {len(infos)} parameters.\n"
            f"  They are named like {', '.join(list(infos)[:: max(1, len(infos) // 5)])}.\n"
            "  Try --config.finetune.freeze='^embed$'."
        )
    return found


def frozen_infos(infos, dtype):
    """Returns {path: ParamInfo} of what is frozen as it is stored.

    Matrices and tables are kept in the dtype of the computation, which they would be cast to
    anyway; norms and biases as they are.

    Args:
        infos: {path: ParamInfo} of what is frozen.
        dtype: of the computation.
    """
    found = {}
    for path, info in infos.items():
        cast = info.multiplies or info.is_table
        found[path] = info._replace(dtype=jnp.dtype(dtype)) if cast else info
    return found


def join(trained, frozen):
    """Returns one tree of parameters of the two that a method makes."""
    if not frozen:
        return trained
    return trees.unflatten({**trees.flatten(frozen), **trees.flatten(trained)})


def check(method, c, mesh_shape):
    """Raises ConfigError for a method that a model, or a mesh, has no place for."""
    name = f"config.finetune.kind={method.kind!r}"
    if method.lead and c.two_streams:
        raise ConfigError(
            f"{name} takes places at the start of documents, and model.two_streams reads them in "
            "any order.\n  Try --config.finetune.kind=lora."
        )
    if method.kind == "prefix" and (c.attention == "lsh" or c.attention_every):
        raise ConfigError(
            f"{name} puts in keys and values, and not all of this model's layers have their own.\n"
            "  Try --config.finetune.kind=prompt."
        )
    split(method, c)
    if method.few_bits and mesh_shape["stage"] > 1:
        raise ConfigError(
            f"{name} does not go with a pipeline (mesh.stage={mesh_shape['stage']}).\n"
            "  Try --config.mesh.stage=1 --config.mesh.fsdp=-1."
        )
