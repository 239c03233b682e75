"""The decoder-only transformer: blocks stacked on axis 0 and scanned."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models import pipeline
from jaxllm.models.attention import Rows
from jaxllm.models.block import Block, Context
from jaxllm.models.cache import Apart, Place, is_apart
from jaxllm.models.layers import (
    KEPT,
    Norm,
    Projection,
    dropout,
    flat_product,
    look_up,
    make_param,
    rope_angles,
    softcap,
    split_keys,
)
from jaxllm.models.mlp import Mlp
from jaxllm.models.moe import Moe
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

# Standard deviation of the logits at the start: small, so that the first loss is ln(vocabulary).
LOGIT_STD = 0.3


class Scores(NamedTuple):
    """What a cross-entropy needs of the logits, float32[B, T].

    Attributes:
        partition_BT: logarithm of the sum of their exponentials.
        chosen_BT: logit of the target.
        top_BT: the largest; it has no gradient.
    """

    partition_BT: Any
    chosen_BT: Any
    top_BT: Any


class Transformer(nnx.Module):
    """Embedding, layers, final norm, head."""

    def __init__(self, c, *, rngs):
        self.c = c
        normal = jax.nn.initializers.truncated_normal
        std = LOGIT_STD * c.width**-0.5
        self.embed = make_param(
            normal(std if c.tied else 0.02), rngs.params(), (c.vocab, c.width), ("vocab", "embed")
        )
        shape, axes, learned = (
            (c.positions, c.width),
            ("positions", "embed"),
            c.position == "learned",
        )
        self.position = make_param(normal(0.02), rngs.params(), shape, axes) if learned else None
        keys = jax.random.split(rngs.params(), c.layers)

        def stack(make, keys):
            return nnx.vmap(lambda key: make(rngs=nnx.Rngs(params=key)))(keys)

        self.layers = stack(functools.partial(Block, c), keys)
        if c.experts and c.moe_every > 1:
            of_mlp, of_moe = jax.random.split(rngs.params())
            sparse = c.layers // c.moe_every
            keys = jax.random.split(of_mlp, c.layers - sparse)
            self.layers.mlp = stack(functools.partial(Mlp, c, c.mlp_width), keys)
            keys = jax.random.split(of_moe, sparse)
            self.layers.moe = stack(functools.partial(Moe, c), keys)
        self.final_norm = None if c.norm_place == "post" else Norm(c, c.width, "D", rngs=rngs)
        sizes, options = {"D": c.width, "V": c.vocab}, dict(std=std, hidden=False, c=c)
        self.head = (
            None
            if c.tied
            else Projection("BTD,DV->BTV", sizes, bias=c.head_bias, rngs=rngs, **options)
        )

    def hidden(self, batch, shard, gather, key=None, cache=None, fresh=False):
        """Runs everything but the head, whose and whose table's weights are given whole.

        Args:
            batch: {"tokens", "position", "segment": int32[B, T]}, and "index" where rows are
                split.
            shard: function (x, *logical axes) -> x.
            gather: function (path, parameter) -> parameter, for the parameters of one layer.
            key: one dropout key a row [B], or None for no dropout.
            cache: None, or what `cache.make` returns.
            fresh: whether nothing is in the cache yet.

        Returns:
            (final hidden state [B, T, D], cache with the new keys and values, or None, sums of the
            routers' losses).
        """
        c, keys = self.c, split_keys(key, 2)
        # Gathered whole over fsdp first: rows, not parts of their width, are looked up.
        table_VD = shard(self.embed[...], "vocab", "embed")
        if self._splits_vocab():
            x_BTD = wire.own_rows(look_up, table_VD, wire.join(batch["tokens"])).astype(c.dtype)
            x_BTD = wire.sum_parts(x_BTD)
        else:
            x_BTD = look_up(table_VD, batch["tokens"]).astype(c.dtype)
        if c.embed_scale:
            x_BTD = x_BTD * jnp.asarray(c.width**0.5, c.dtype)
        if self.position is not None:
            x_BTD = x_BTD + look_up(self.position[...], batch["position"]).astype(c.dtype)
        context, cache = self._context(batch, shard, gather, cache, fresh)
        x_BTD = shard(x_BTD, "batch", "length", "embed")
        x_BTD = dropout(x_BTD, c.dropout, keys[0], context.index_BT)
        x_BTD, cache, losses = self._run_layers(x_BTD, context, keys[1], cache)
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD), cache, losses

    def logits(self, x_BTD):
        """Returns float32 logits [..., V] of final hidden states [..., D]."""
        c = self.c
        if self.head is None:
            table_VD = self.embed[...].astype(c.dtype)
            if c.products == "direct":
                z = jnp.matmul(x_BTD, table_VD.T)
            else:
                z = flat_product(x_BTD, table_VD.T, 1)
        else:
            z = self.head(x_BTD)
        z = z.astype(jnp.float32)
        return softcap(z, c.logit_softcap) if c.logit_softcap else z

    def _splits_vocab(self):
        """Whether this device has only some rows of the table and columns of the head."""
        return self.embed[...].shape[0] < self.c.vocab

    def scores(self, x_BTD, target_BT):
        """Returns the `Scores` of targets, without the logits of the whole vocabulary at once.

        Args:
            x_BTD: final hidden states.
            target_BT: int32.
        """
        split = self._splits_vocab()
        if split:
            x_BTD, target_BT = wire.join(x_BTD), wire.join(target_BT)
        z_BTV = self.logits(x_BTD)
        top_BT = jnp.max(jax.lax.stop_gradient(z_BTV), axis=-1)
        top_BT = wire.largest(top_BT) if split else top_BT
        sum_BT = jnp.sum(jnp.exp(z_BTV - top_BT[..., None]), axis=-1)
        # A select, not a gather: it fuses, and its gradient is no scatter.
        first = wire.index("tensor") * z_BTV.shape[-1] if split else 0
        is_target = jnp.arange(z_BTV.shape[-1]) == (target_BT - first)[..., None]
        chosen_BT = jnp.sum(jnp.where(is_target, z_BTV, 0.0), axis=-1)
        if split:
            sum_BT, chosen_BT = wire.sum_parts(sum_BT), wire.sum_parts(chosen_BT)
            top_BT = wire.own_part(top_BT)
        return Scores(top_BT + jnp.log(sum_BT), chosen_BT, top_BT)

    def _context(self, batch, shard, gather, cache, fresh):
        """Gathers what all layers share, and the cache's part that is stacked by layer."""
        c, T = self.c, batch["tokens"].shape[1]
        position_BT, segment_BT = wire.join(batch["position"]), wire.join(batch["segment"])
        angles = {False: None, True: None}
        if c.position == "rope":
            kinds = {c.is_windowed(layer) for layer in range(c.layers)}
            for windowed in kinds:
                angles[windowed] = rope_angles(c, position_BT, windowed=windowed)
        index_BT = batch.get("index", jnp.arange(T, dtype=jnp.int32)[None])
        if cache is None:
            whole_BT = wire.join(index_BT)
            rows = Rows(whole_BT, whole_BT, segment_BT, segment_BT, position_BT)
            return Context(index_BT, rows, angles, None, shard, gather), None
        place = Place(cache["at"], jnp.sum(segment_BT > 0, axis=1, dtype=jnp.int32), fresh)
        rows = Rows(position_BT, position_BT, segment_BT, segment_BT, position_BT)
        cache = {**cache, "at": place.at_B + place.count_B}
        return Context(position_BT, rows, angles, place, shard, gather), cache

    def _run_layers(self, x_BTD, context, key, cache):
        """Runs all layers: scanned, or through the stages of a pipeline."""
        c = self.c
        graph, weights = nnx.split(self.layers)
        if wire.size("stage") == 1:
            per_layer = {"weights": weights}
            if key is not None:
                per_layer["key"] = split_keys(key, c.layers)
            if cache is not None:
                per_layer["cache"] = cache["layers"]
            x_BTD, (new, losses) = self._scan_layers(graph, x_BTD, context, per_layer, c.layers)
            return x_BTD, cache if cache is None else {**cache, "layers": new}, losses
        layers = c.layers // wire.size("stage") // c.pipeline_rounds  # a chunk

        def chunk(x_BTD, shared, weights, number):
            index_BT, rows, angles, key = shared
            per_layer = {"weights": weights}
            if key is not None:
                keys = split_keys(key, c.layers)
                per_layer["key"] = jax.lax.dynamic_slice_in_dim(keys, number * layers, layers)
            here = Context(index_BT, rows, angles, None, context.shard, is_whole)
            x_BTD, (_, losses) = self._scan_layers(graph, x_BTD, here, per_layer, layers)
            return x_BTD, losses

        B = x_BTD.shape[0]
        shared = jax.tree.map(
            lambda a: jnp.broadcast_to(a, (B, *a.shape[1:])),
            (context.index_BT, context.rows, context.angles, key),
        )
        options = dict(pieces=c.pipeline_pieces or B, rounds=c.pipeline_rounds)
        if c.remat != "none":  # every layer's input, and what the layers keep themselves
            inputs = jax.checkpoint_policies.save_only_these_names(INPUT)
            both = jax.checkpoint_policies.save_from_both_policies
            options["policy"] = both(inputs, REMAT[c.remat])
        gather = functools.partial(_gather_layers, context.gather)
        x_BTD, losses = pipeline.run(chunk, x_BTD, shared, weights, gather, **options)
        return x_BTD, None, losses

    def _scan_layers(self, graph, x_BTD, context, per_layer, layers):
        """Scans stacked layers, `period` at a time, so that what differs is static.

        Args:
            graph: of one layer, as `nnx.split` gives it.
            x_BTD: input.
            context: `Context`.
            per_layer: {"weights", "key", "cache"}: stacked, the last two where there are any.
            layers: how many; the first begins a period.

        Returns:
            (x of the next layer, (caches of the layers, or None without, sums of the routers'
            losses)).
        """
        c = self.c

        def one(x_BTD, layer, windowed, sparse):
            if c.remat == "offload":
                x_BTD = checkpoint_name(x_BTD, INPUT)
            block = nnx.merge(graph, _gather_layers(context.gather, layer["weights"]))
            held, dropped = layer.get("cache"), layer.get("key")
            x_BTD, new, losses = block(
                x_BTD, context, windowed=windowed, sparse=sparse, key=dropped, cache=held
            )
            return context.shard(x_BTD, "batch", "length", "embed"), (new, losses)

        # What is gathered is gathered again, whatever else is kept: it was split to save memory.
        gathers = any(wire.size(axis) > 1 for axis in ("fsdp", "expert", "seq"))
        if (c.remat != "none" or gathers) and "cache" not in per_layer:
            # Where both passes are in one computation, a compiler finds what is computed twice.
            one = jax.checkpoint(
                one, policy=REMAT[c.remat], static_argnums=(2, 3), prevent_cse=c.unroll >= layers
            )

        def run_one(x_BTD, *rest):  # a pipeline's backward pass keeps what is named out here
            return one(checkpoint_name(x_BTD, INPUT), *rest)

        def several(x_BTD, stacked, first, count):
            new, losses = [], []
            for i in range(count):
                layer = _layer_of(c, stacked, i)
                kinds = c.is_windowed(first + i), c.has_experts(first + i)
                x_BTD, (held, found) = run_one(x_BTD, layer, *kinds)
                new.append(held)
                losses += [found] if found else []
            new = Apart(new) if "cache" in per_layer else None
            return x_BTD, (new, jax.tree.map(lambda *a: sum(a), *losses) if losses else {})

        # A scan would copy every layer's cache; unrolled, each is written in place.
        if c.unroll >= layers or "cache" in per_layer:
            return several(x_BTD, per_layer, 0, layers)
        period, rounds = c.period, layers // c.period
        whole, scanned = rounds * period, per_layer
        if period > 1:  # a stack of some of the layers has whole rounds only
            scanned = jax.tree.map(lambda a: a[:whole].reshape(rounds, -1, *a.shape[1:]), per_layer)

        def body(x_BTD, layer):
            if period == 1:
                return run_one(x_BTD, layer, c.is_windowed(0), c.has_experts(0))
            return several(x_BTD, layer, 0, period)

        x_BTD, (new, losses) = jax.lax.scan(body, x_BTD, scanned, unroll=max(c.unroll // period, 1))
        losses = jax.tree.map(lambda a: a.sum(0), losses)
        if whole < layers:  # the pattern's last, unfinished round
            rest = jax.tree.map(lambda a: a[whole:], per_layer)
            x_BTD, (_, more) = several(x_BTD, rest, whole, layers - whole)
            losses = jax.tree.map(jnp.add, losses, more)
        return x_BTD, (new, losses)


def _layer_of(c, stacked, i):
    """Takes layer i of stacks of which those of MLPs and experts may have fewer."""
    apart = c.experts and c.moe_every > 1
    sparse = i // c.moe_every
    index = {"moe": sparse, "mlp": i - sparse} if apart else {}

    def pick(path, a):
        name = str(getattr(path[1], "key", "")) if len(path) > 1 else ""
        return a[min(index.get(name, i), len(a) - 1)]

    return jax.tree_util.tree_map_with_path(pick, stacked, is_leaf=is_apart)


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
