"""Models: modules inside, plain functions over plain trees outside.

`make(config)` splits the module once; nothing above this package sees a module.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
from flax import nnx

from jaxllm.dims import ParamInfo
from jaxllm.models.config import ModelConfig
from jaxllm.models.transformer import Transformer


class Model(NamedTuple):
    """A model as functions over a tree of parameters.

    Attributes:
        config: what it is made of.
        init: key -> params, nested dicts of float32 arrays.
        hidden: (params, batch, key=None) -> final hidden states [B, T, D].
        logits: (params, x [..., D]) -> float32 logits [..., V].
        apply: (params, batch, key=None) -> float32 logits [B, T, V].
        extend: (params, batch, cache) -> (logits [B, T, V], cache), for decoding.
    """

    config: ModelConfig
    init: Callable
    hidden: Callable
    logits: Callable
    apply: Callable
    extend: Callable


def place_nowhere(x, *axes):
    """Leaves an activation where it is; the default where there is no mesh."""
    return x


@functools.lru_cache
def _abstract_module(c):
    """The module with shapes in place of arrays; only ever read."""
    return nnx.eval_shape(lambda: Transformer(c, rngs=nnx.Rngs(params=0)))


def make(c, shard=place_nowhere):
    """Returns the `Model` of a ModelConfig.

    Args:
        c: resolved configuration.
        shard: function (x, *logical axes) -> x that places an activation on the mesh.
    """
    graph, state, rest = nnx.split(_abstract_module(c), nnx.Param, ...)

    def module(params):
        filled = jax.tree.map(lambda leaf: leaf, state)
        nnx.replace_by_pure_dict(filled, params)
        return nnx.merge(graph, filled, rest)

    def init(key):
        return nnx.to_pure_dict(nnx.state(Transformer(c, rngs=nnx.Rngs(params=key)), nnx.Param))

    def hidden(params, batch, key=None):
        return module(params).hidden(batch, shard, key)[0]

    def logits(params, x):
        return module(params).logits(x)

    def apply(params, batch, key=None):
        return logits(params, hidden(params, batch, key))

    def extend(params, batch, cache):
        x_BTD, cache = module(params).hidden(batch, shard, cache=cache)
        return logits(params, x_BTD), cache

    return Model(c, init, hidden, logits, apply, extend)


@functools.lru_cache
def abstract_params(c):
    """Every parameter of a model as {path: ParamInfo}, allocating nothing.

    Initialisation, sharding rules, optimizers, counts and name maps all start here.
    """
    infos = {}
    for path, variable in nnx.to_flat_state(nnx.state(_abstract_module(c), nnx.Param)):
        stacked = ("layers",) if path[0] == "layers" else ()
        metadata = variable.get_metadata()
        infos["/".join(map(str, path))] = ParamInfo(
            tuple(variable.shape), variable.dtype, stacked + metadata["axes"], metadata["inputs"]
        )
    return infos
