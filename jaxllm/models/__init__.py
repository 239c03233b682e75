"""Models: modules inside, plain functions over plain trees outside.

`make(config)` splits the module once; nothing above this package sees a module.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm import trees
from jaxllm.dims import ParamInfo
from jaxllm.models import attention
from jaxllm.models import cache as caches
from jaxllm.models.config import ModelConfig
from jaxllm.models.depth import below_output
from jaxllm.models.stacked import is_whole
from jaxllm.models.transformer import Transformer

UNROLL_ON_CPU = 8  # layers

__all__ = ["Model", "abstract_params", "below_output", "for_platform", "make", "place_nowhere"]


class Model(NamedTuple):
    """A model as functions over a tree of parameters.

    Attributes:
        config: what it is made of.
        infos: {path: ParamInfo} of its parameters.
        init: key -> params, nested dicts of float32 arrays.
        whole: params -> params in the dtype of the computation (norms, biases and routers in their
            own), those outside the layers whole over the devices that share them; what the others
            below take.
        hidden: (params, batch, key=None) -> (final hidden states [B, T, D], {name: sum over the
            tokens of a loss of the routers, weighted}); key: one a row.
        logits: (params, x [..., D]) -> float32 logits [..., V].
        scores: (params, x [B, T, D], targets int32[B, T], mean=False) -> `Scores`; all that a
            cross-entropy needs, also where the vocabulary is split.
        divergence: (params, x [B, T, D], x [B, T, D]) -> float32[B, T], how far the tokens that two
            hidden states predict are apart, both ways; see `Transformer.divergence`.
        task: (params, x [B, T, D], batch) -> float32 outputs of the task's head, of
            `Transformer.read`.
        apply: (params, batch, key=None) -> float32 logits [B, T, V]; gathers by itself.
        extend: (params, {"tokens", "segment": int32[B, T]}, cache, *, fresh=False, last=False) ->
            (logits [B, T, V], cache), for decoding. Each row goes on from its own place; its
            padding (segment 0) stands at its end and is not written. fresh: the cache is empty,
            so that attention needs only the new keys; last: only the logits of each row's last
            token, [B, 1, V]. Of an encoder-decoder the first call has the inputs, too, those that
            go on from it have not.
        lead: places at the start of every document that stand for no token, but for what a soft
            prompt or a prefix has there.
    """

    config: ModelConfig
    infos: dict
    init: Callable
    whole: Callable
    hidden: Callable
    logits: Callable
    scores: Callable
    divergence: Callable
    task: Callable
    apply: Callable
    extend: Callable
    lead: int = 0


def place_nowhere(x, *axes):
    """Leaves an activation where it is; the default where there is no mesh."""
    return x


def _module(c, rewrite, key):
    """The module, with what a fine-tuning method puts into it."""
    module = Transformer(c, rngs=nnx.Rngs(params=key))
    if rewrite is not None:
        rewrite(module, jax.random.fold_in(key, 1))
    return module


@functools.lru_cache
def abstract_module(c, rewrite=None):
    """The module with shapes in place of arrays; only ever read."""
    return nnx.eval_shape(lambda: _module(c, rewrite, jax.random.key(0)))


def for_platform(c, platform, length, devices=1):
    """Returns the config with what is left to the backend filled in.

    XLA's CPU backend copies the stacked residuals of a scan; without one a step takes two thirds of
    the time. Deep models stay scanned, since compile time grows with what is unrolled, and so do
    those with remat: unrolled, that backend finds what is computed again and keeps it instead.
    What is best for products, `layers.flat_product` says.

    Args:
        c: resolved configuration.
        platform: "cpu", "gpu" or "tpu"; "" checks what can be checked without.
        length: tokens in a row.
        devices: how many share a row (mesh axis seq).

    Raises:
        ConfigError: a kernel that does not run there.
    """
    deepest = max(c.layers, c.encoder_layers)
    short = platform == "cpu" and deepest <= UNROLL_ON_CPU and c.remat == "none"
    unroll = c.unroll or (deepest if short else 1)
    products = {"auto": "flat" if platform == "cpu" else "direct"}.get(c.products, c.products)
    kernel = attention.choose(c, length, platform, devices)
    return dataclasses.replace(c, unroll=unroll, products=products, attention=kernel)


def make(c, shard=place_nowhere, gather=is_whole, rewrite=None):
    """Returns the `Model` of a ModelConfig.

    Args:
        c: resolved configuration.
        shard: function (x, *logical axes) -> x that places an activation on the mesh.
        gather: function (path, parameter) -> parameter, whole over the devices that share rows.
        rewrite: None, or a hashable function (module, key) that puts parts of `adapters` into a
            `Transformer` and weights into fewer bits; its attribute `lead` is the model's.
    """
    graph, state, rest = nnx.split(abstract_module(c, rewrite), nnx.Param, ...)

    def module(params):
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled, rest)

    def init(key):
        return nnx.to_pure_dict(nnx.state(_module(c, rewrite, key), nnx.Param))

    infos = abstract_params(c, rewrite)

    def whole(params):
        def one(path, x):
            # Before the layers' loop, so that gradients too are stacked in this dtype.
            if infos[path].multiplies or infos[path].is_table:
                x = x.astype(c.dtype)
            return x if infos[path].is_stacked else gather(path, x)

        return trees.map_with_path(one, params)

    def hidden(params, batch, key=None):
        x_BTD, _, losses = module(params).hidden(batch, shard, gather, key)
        return x_BTD, losses

    def logits(params, x):
        return module(params).logits(x)

    def scores(params, x, targets, mean=False):
        return module(params).scores(x, targets, mean)

    def divergence(params, x, other):
        return module(params).divergence(x, other)

    def task(params, x, batch):
        return module(params).read(x, batch)

    def apply(params, batch, key=None):
        params = whole(params)
        return logits(params, hidden(params, batch, key)[0])

    def extend(params, batch, cache, *, fresh=False, last=False):
        params = params if caches.is_laid_out(params) else whole(params)
        T = batch["tokens"].shape[1]
        segment_BT = jnp.minimum(batch["segment"], 1)
        position_BT = cache["at"][:, None] + jnp.arange(T, dtype=jnp.int32)
        inputs = {name: x for name, x in batch.items() if name.startswith("inputs")}
        batch = {"tokens": batch["tokens"], "segment": segment_BT, "position": position_BT}
        batch |= inputs
        x_BTD, cache, _ = module(params).hidden(batch, shard, gather, cache=cache, fresh=fresh)
        if last:
            last_B = jnp.maximum(segment_BT.sum(1) - 1, 0)
            x_BTD = jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)
        return logits(params, x_BTD), cache

    lead = getattr(rewrite, "lead", 0)
    reads = (hidden, logits, scores, divergence, task)
    return Model(c, infos, init, whole, *reads, apply, extend, lead)


@functools.lru_cache
def abstract_params(c, rewrite=None):
    """Every parameter of a model as {path: ParamInfo}, allocating nothing.

    Initialisation, sharding rules, optimizers, counts and name maps all start here. Arguments as
    of `make`.
    """
    infos = {}
    for path, variable in nnx.to_flat_state(nnx.state(abstract_module(c, rewrite), nnx.Param)):
        stacked = ("layers",) if "layers" in path else ()
        metadata = variable.get_metadata()
        infos["/".join(map(str, path))] = ParamInfo(
            tuple(variable.shape), variable.dtype, stacked + metadata["axes"], metadata["inputs"]
        )
    return infos
