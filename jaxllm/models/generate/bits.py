"""Which weights are laid out in fewer bits for decoding."""

import math

import jax
import jax.numpy as jnp

from jaxllm import trees
from jaxllm.config import ConfigError
from jaxllm.models.cache import Apart, is_apart
from jaxllm.models.narrow import Int8, quantize

NARROW = ("bfloat16", "int8")


def narrow(params, infos, kind):
    """Returns parameters with the weights of dense products, and of a tied head, in fewer bits.

    Weights of experts and of recurrences stay as they are.

    Args:
        params: laid out by layer, as `cache.lay_out` returns them.
        infos: {path: ParamInfo} of the model.
        kind: "bfloat16", "int8", or "" for no change.

    Raises:
        ConfigError: an unknown kind.
    """
    if not kind:
        return params
    if kind not in NARROW:
        raise ConfigError(f"weights={kind!r} is unknown. Try {' or '.join(NARROW)}, or ''.")
    tied = not any(path.startswith("head/") for path in infos)

    def one(path, x):
        if is_apart(x):
            return Apart([one(path, layer) for layer in x])
        info = infos[path]
        is_head = path == "embed" and tied
        dense = path.endswith("/w") and not {"moe", "recurrence"} & set(path.split("/"))
        if not (is_head or (dense and info.multiplies)):
            return x
        if kind == "bfloat16":
            return x.astype(jnp.bfloat16)
        if is_head:
            return Int8(*quantize(x), x.shape[:1])
        contracted = len(info.inputs) or 1
        made = x.shape[contracted:]
        return Int8(*quantize(x.reshape(-1, math.prod(made)).T), made)

    return jax.tree_util.tree_map_with_path(
        lambda path, x: one(trees.path_string(path), x), params, is_leaf=is_apart
    )
