"""A model of the base's own shape that computes what a fine-tuned one does."""

import jax.numpy as jnp

from jaxllm.config import ConfigError
from jaxllm.finetune import beginning, parts
from jaxllm.models import abstract_params, quantized

MERGED = ("full", "lora", "qlora", "ia3")


def merge(method, c, params):
    """Returns {path: float32 array} of the plain model.

    Args:
        method: `Method`.
        c: the model's configuration.
        params: {path: array}, what is trained and what is frozen together.

    Raises:
        ConfigError: a method whose parts no weight of the base can stand for.
    """
    if method.kind not in MERGED:
        raise ConfigError(
            f"finetune.kind={method.kind!r} puts in parts that no weight of the base can stand for."
            f" Those that can be merged: {', '.join(MERGED)}."
        )
    few = next((p for p in method.parts if isinstance(p, parts.Quantize)), None)
    lora = next((p for p in method.parts if isinstance(p, parts.Lora)), None)
    found, forms = {}, beginning.forms(c)
    for path, info in abstract_params(c).items():
        if path in params:
            w = params[path].astype(jnp.float32)
        else:
            w = beginning.dense(info, few.format, [params[f"{path}/{n}"] for n in quantized.PARTS])
        name, end = path.rpartition("/")[::2]
        if end == "w" and f"{name}/lora/a" in params:
            w = _with_lora(w, forms[name], name, params, lora.scale)
        if name in forms:
            w = _scaled(w, forms[name].stacks, name, end, params)
        found[path] = w
    return found


def _with_lora(w, form, name, params, scale):
    stacks, inputs = form
    a, b = params[f"{name}/lora/a"], params[f"{name}/lora/b"]
    w = w + scale * beginning.product(a, b, stacks).reshape(w.shape)
    if f"{name}/lora/m" not in params:
        return w
    axes = tuple(range(stacks, stacks + inputs))
    size = jnp.sqrt(jnp.sum(jnp.square(w), axis=axes, keepdims=True))
    m = params[f"{name}/lora/m"]
    return w / size * m.reshape(*size.shape)


def _scaled(w, stacks, name, end, params):
    """A weight or a bias with the factors of IA3 in it."""
    factor = params.get(f"{name}/scale_out/w")
    if factor is not None:
        own = (*factor.shape[:stacks], *(1,) * (w.ndim - factor.ndim), *factor.shape[stacks:])
        w = w * factor.reshape(own)
    factor = params.get(f"{name}/scale_in/w")
    if factor is not None and end == "w":
        w = w * factor.reshape(*factor.shape, *(1,) * (w.ndim - factor.ndim))
    return w
