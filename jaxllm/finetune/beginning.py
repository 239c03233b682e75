"""How a run's parameters start: what is trained, and the base as it stays frozen."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.finetune import method as methods
from jaxllm.finetune import parts
from jaxllm.models import abstract_module, abstract_params, adapters, quantized


def begin(method, c, base, drawn, ids=()):
    """Returns what a method's own parameters are at first, {path: array}.

    Args:
        method: `Method`.
        c: the model's configuration.
        base: {path: array} of the base's parameters, whole.
        drawn: {path: array} of `added`, as the parts draw them.
        ids: tokens of the text that a soft prompt starts from.
    """
    found = {path: drawn[path] for path in methods.added(method, c)}
    lora = _part(method, parts.Lora)
    if lora and method.start in ("pissa", "loftq"):
        few = freeze(method, c, base, {}, c.dtype) if method.start == "loftq" else {}
        for path in _loras(found):
            a, w = found[f"{path}/lora/a"], base[f"{path}/w"]
            w = w - _read(method, c, path, few) if few else w
            a, b = principal(w, a, forms(c)[path], lora.scale)
            found |= {f"{path}/lora/a": a, f"{path}/lora/b": b}
    if lora and lora.magnitude:
        frozen = freeze(method, c, base, found, c.dtype)
        for path in _loras(found):
            w = _read(method, c, path, frozen)
            found[f"{path}/lora/m"] = _lengths(found, path, w, forms(c)[path], lora.scale)
    if ids:
        path = next(path for path in found if path.endswith("prompt/table"))
        rows = jnp.asarray([ids[i % len(ids)] for i in range(found[path].shape[0])])
        encoder = "encoder/embed"
        found[path] = base[encoder if encoder in base else "embed"][rows].astype(jnp.float32)
    return found


def freeze(method, c, base, first, dtype):
    """Returns the base as it stays: {path: array} of all that is not `added`.

    Args:
        method, c, base: as in `begin`.
        first: what `begin` returned, at the very first start of the run.
        dtype: of matrices and tables that are not in few bits.
    """
    infos, lora = abstract_params(c), _part(method, parts.Lora)
    whole = abstract_params(c, method.rewrite)
    taken = _loras(first) if lora and method.start == "pissa" else ()
    found, few = {}, _part(method, parts.Quantize)
    for path, info in infos.items():
        w, name = base[path], path.removesuffix("/w")
        if name in taken:
            a, b = first[f"{name}/lora/a"], first[f"{name}/lora/b"]
            w = w - lora.scale * product(a, b, forms(c)[name].stacks).reshape(w.shape)
        if path in whole:
            cast = info.multiplies or info.is_table
            found[path] = w.astype(dtype) if cast else w
            continue
        cut = int(info.is_stacked)
        layout = quantized.layout(info.shape[cut:], info.axes[cut:])
        one = functools.partial(quantized.quantize, layout=layout, format=few.format)
        made = jax.lax.map(one, w) if cut else one(w)
        found |= {f"{path}/{n}": x for n, x in zip(quantized.PARTS, made, strict=True)}
    return found


def principal(w, a, form, scale):
    """Returns (A, B) of a weight's largest singular vectors; scale · A B is the nearest to it.

    Args:
        w: the weight.
        a: A as drawn, whose shape it has.
        form: `Form` of the weight.
        scale: of the product.

    Source: Meng et al. 2024, arXiv:2404.02948, section 3.
    """
    (stacks, inputs), rank = form, a.shape[-1]
    ins = math.prod(w.shape[stacks : stacks + inputs])
    made = w.shape[stacks + inputs :]

    def one(w_IO):
        u_IR, s_R, v_RO = jnp.linalg.svd(w_IO.astype(jnp.float32), full_matrices=False)
        root_R = jnp.sqrt(s_R[:rank] / scale)
        return u_IR[:, :rank] * root_R, root_R[:, None] * v_RO[:rank]

    flat = w.reshape(-1, ins, math.prod(made))
    a_new, b_new = jax.lax.map(one, flat)
    return a_new.reshape(a.shape), b_new.reshape(*w.shape[:stacks], rank, *made)


def _part(method, kind):
    return next((part for part in method.parts if isinstance(part, kind)), None)


def _loras(found):
    return [path.removesuffix("/lora/a") for path in found if path.endswith("/lora/a")]


class Form(NamedTuple):
    """How a projection's weight is laid out.

    Attributes:
        stacks: leading dimensions that number independent weights, of layers, experts or heads.
        inputs: dimensions behind those that are contracted.
    """

    stacks: int
    inputs: int


@functools.lru_cache
def forms(c):
    """Returns {path: `Form`} of a model's projections."""

    def form(part):
        layers = len(part.w.shape) - len(part.letters)
        return Form(layers + int(part.stacked), len(part.contracted))

    found = parts.projections(abstract_module(c))
    return {path: form(part) for path, part in found.items()}


def product(a, b, stacks):
    """Returns A B of each of stacked pairs, [stack…, inputs, outputs], flat on both sides."""
    rank, count = a.shape[-1], math.prod(a.shape[:stacks])
    whole = jnp.matmul(a.reshape(count, -1, rank), b.reshape(count, rank, -1))
    return whole.reshape(*a.shape[:stacks], *whole.shape[1:])


def _read(method, c, path, frozen):
    """A weight as the model reads it, float32."""
    few, info = _part(method, parts.Quantize), abstract_params(c)[f"{path}/w"]
    if few is None or f"{path}/w" in frozen:
        return frozen[f"{path}/w"].astype(jnp.float32)
    return dense(info, few.format, [frozen[f"{path}/w/{name}"] for name in quantized.PARTS])


def dense(info, format, held):
    """Returns a weight, float32, of what is held of it in few bits."""
    cut = int(info.is_stacked)
    layout = quantized.layout(info.shape[cut:], info.axes[cut:])

    def one(held):
        return quantized.dequantize(held, layout, format, jnp.float32)

    return jax.lax.map(one, tuple(held)) if cut else one(tuple(held))


def _lengths(found, path, w, form, scale):
    a, b = found[f"{path}/lora/a"], found[f"{path}/lora/b"]
    axes = tuple(range(form.inputs))

    def one(held):
        w, a, b = held
        return adapters.length(w, a, b, scale, axes)

    return jax.lax.map(one, (w, a, b)) if form.stacks else one((w, a, b))
