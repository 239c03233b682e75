"""Layers stacked along axis 0: scanned, or sent through the stages of a pipeline."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models import adapters, pipeline
from jaxllm.models.block import Context
from jaxllm.models.cache import Apart, is_apart
from jaxllm.models.depth import layers_having
from jaxllm.models.layers import KEPT, split_keys
from jaxllm.sharding import wire

INPUT = "input"  # name of a layer's input


def _all_but_gathered(primitive, *_, **params):
    """Keeps everything but what was gathered, under whatever shape or name."""
    inner = params.get("call_jaxpr")  # of a function with a gradient of its own
    names = {primitive.name} | {e.primitive.name for e in (inner.jaxpr.eqns if inner else ())}
    return names.isdisjoint(("all_gather", "transpose", "reshape", "name"))


# What the backward pass may keep; the rest it computes again.
REMAT = {
    "none": _all_but_gathered,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "light": jax.checkpoint_policies.save_only_these_names(KEPT),
    "full": jax.checkpoint_policies.nothing_saveable,
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def run_layers(c, stacked, x_BTD, context, key, cache):
    """Runs all layers: scanned, or through the stages of a pipeline.

    Args:
        c: the model's configuration.
        stacked: a `Block` whose parameters are those of all layers, along axis 0.
        x_BTD: input.
        context: `Context`.
        key: one dropout key a row, or None.
        cache: None, or what `cache.make` returns.

    Returns:
        (x behind the last layer, cache with the new keys and values or None, sums of the routers'
        losses).
    """
    graph, weights = nnx.split(stacked)
    if wire.size("stage") == 1:
        per_layer = {"weights": weights}
        if key is not None:
            per_layer["key"] = split_keys(key, c.layers)
        if cache is not None:
            per_layer["cache"] = cache["layers"]
        x_BTD, (new, losses) = _scan_layers(c, graph, x_BTD, context, per_layer, c.layers)
        return x_BTD, cache if cache is None else {**cache, "layers": new}, losses
    layers = c.layers // wire.size("stage") // c.pipeline_rounds  # a chunk

    def chunk(x_BTD, shared, weights, number):
        index_BT, rows, angles, key, prefix = shared
        per_layer = {"weights": weights}
        if key is not None:
            keys = split_keys(key, c.layers)
            per_layer["key"] = jax.lax.dynamic_slice_in_dim(keys, number * layers, layers)
        prefix = None if prefix is None else prefix[0]
        here = Context(index_BT, rows, angles, None, context.shard, is_whole, prefix=prefix)
        x_BTD, (_, losses) = _scan_layers(c, graph, x_BTD, here, per_layer, layers)
        return x_BTD, losses

    B = x_BTD.shape[0]
    shared = jax.tree.map(
        lambda a: jnp.broadcast_to(a, (B, *a.shape[1:])),
        (context.index_BT, context.rows, context.angles, key),
    )
    if context.prefix is not None:  # the same for all rows
        prefix = jnp.broadcast_to(context.prefix, (B, *context.prefix.shape))
        shared = (*shared, prefix)
    else:
        shared = (*shared, None)
    options = dict(pieces=c.pipeline_pieces or B, rounds=c.pipeline_rounds)
    if c.remat != "none":  # every layer's input, and what the layers keep themselves
        inputs = jax.checkpoint_policies.save_only_these_names(INPUT)
        both = jax.checkpoint_policies.save_from_both_policies
        options["policy"] = both(inputs, REMAT[c.remat])
    gather = functools.partial(_gather_layers, context.gather)
    x_BTD, losses = pipeline.run(chunk, x_BTD, shared, weights, gather, **options)
    return x_BTD, None, losses


def _scan_layers(c, graph, x_BTD, context, per_layer, layers):
    """Scans stacked layers, `period` at a time, so that what differs is static.

    Args:
        c: the model's configuration.
        graph: of one layer, as `nnx.split` gives it.
        x_BTD: input.
        context: `Context`.
        per_layer: {"weights", "key", "cache"}: stacked, the last two where there are any.
        layers: how many; the first begins a period.

    Returns:
        (x of the next layer, (caches of the layers, or None without, sums of the routers'
        losses)).
    """

    def one(x_BTD, layer, windowed, sparse, attends):
        if c.remat == "offload":
            x_BTD = checkpoint_name(x_BTD, INPUT)
        block = nnx.merge(graph, _gather_layers(context.gather, layer["weights"]))
        held, dropped = layer.get("cache"), layer.get("key")
        adapters.inform(block, dropped, context.index_BT, context.prefix)
        kinds = dict(windowed=windowed, sparse=sparse, attends=attends)
        x_BTD, new, losses = block(x_BTD, context, key=dropped, cache=held, **kinds)
        return context.shard(x_BTD, "batch", "length", "embed"), (new, losses)

    # What is gathered is gathered again, whatever else is kept: it was split to save memory.
    gathers = any(wire.size(axis) > 1 for axis in ("fsdp", "expert", "seq"))
    if (c.remat != "none" or gathers) and "cache" not in per_layer:
        # Where both passes are in one computation, a compiler finds what is computed twice.
        one = jax.checkpoint(
            one, policy=REMAT[c.remat], static_argnums=(2, 3, 4), prevent_cse=c.unroll >= layers
        )

    def run_one(x_BTD, *rest):  # a pipeline's backward pass keeps what is named out here
        return one(checkpoint_name(x_BTD, INPUT), *rest)

    def kinds_of(layer):
        return c.is_windowed(layer), c.has_experts(layer), c.has_attention(layer)

    def several(x_BTD, stacked, first, count):
        new, losses = [], []
        for i in range(count):
            layer = _layer_of(c, stacked, i)
            x_BTD, (held, found) = run_one(x_BTD, layer, *kinds_of(first + i))
            new.append(held)
            losses += [found] if found else []
        new = Apart(new) if "cache" in per_layer else None
        return x_BTD, (new, jax.tree.map(lambda *a: sum(a), *losses) if losses else {})

    # A scan would copy every layer's cache; unrolled, each is written in place.
    if c.unroll >= layers or "cache" in per_layer:
        return several(x_BTD, per_layer, 0, layers)
    period, rounds = c.period, layers // c.period
    whole, scanned = rounds * period, per_layer
    if period > 1:

        def cut(name, a):
            return a[: _rows(c, name, whole)].reshape(rounds, -1, *a.shape[1:])

        scanned = _map_stacks(cut, per_layer)

    def body(x_BTD, layer):
        if period == 1:
            return run_one(x_BTD, layer, *kinds_of(0))
        return several(x_BTD, layer, 0, period)

    x_BTD, (new, losses) = jax.lax.scan(body, x_BTD, scanned, unroll=max(c.unroll // period, 1))
    losses = jax.tree.map(lambda a: a.sum(0), losses)
    if whole < layers:  # the pattern's last, unfinished round
        # Of a part that these layers have not, any one: a block is made of all its parts.
        rest = _map_stacks(lambda n, a: a[min(_rows(c, n, whole), len(a) - 1) :], per_layer)
        x_BTD, (_, more) = several(x_BTD, rest, whole, layers - whole)
        losses = jax.tree.map(jnp.add, losses, more)
    return x_BTD, (new, losses)


def _rows(c, name, layers):
    """How many of the first `layers` layers have the part of a block called `name`."""
    return sum(layer < layers for layer in layers_having(c, name))


def _map_stacks(function, stacked):
    """Maps function(name of the part of a block, or "", stack) over what is stacked by layer."""

    def one(path, a):
        return function(str(getattr(path[1], "key", "")) if len(path) > 1 else "", a)

    return jax.tree_util.tree_map_with_path(one, stacked, is_leaf=is_apart)


def _layer_of(c, stacked, i):
    """Takes layer i, counted from a period's start; a part that it has not is any layer's."""
    return _map_stacks(lambda name, a: a[min(_rows(c, name, i), len(a) - 1)], stacked)


def is_whole(path, x):
    """Leaves a parameter as it is; the default where none is gathered by hand."""
    return x


def _gather_layers(gather, weights):
    """Gathers the parameters of one layer, or of stacked ones."""
    return nnx.map_state(
        lambda path, variable: variable.replace(
            gather("layers/" + "/".join(map(str, path)), variable[...])
        ),
        weights,
    )
