"""The decoder-only transformer: blocks stacked on axis 0 and scanned."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models.attention import Attention, Rows
from jaxllm.models.layers import (
    ACTIVATIONS,
    Norm,
    Projection,
    dropout,
    make_param,
    rope_angles,
    softcap,
    split_keys,
)

# What the backward pass may keep; the rest it computes again.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}

# Standard deviation of the logits at the start: small, so that the first loss is ln(vocabulary).
LOGIT_STD = 0.3


class Mlp(nnx.Module):
    """Two matrices, or three where gated (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, c, *, rngs):
        sizes = {"D": c.width, "F": c.mlp_width}
        keywords = dict(bias=c.mlp_bias, c=c, rngs=rngs)
        self.gate = Projection("BTD,DF->BTF", sizes, **keywords) if c.gated else None
        self.up = Projection("BTD,DF->BTF", sizes, **keywords)
        std = (c.mlp_width * 2 * c.layers) ** -0.5
        self.down = Projection("BTF,FD->BTD", sizes, std=std, **keywords)
        self.activation = c.activation

    def __call__(self, x_BTD, shard):
        """Returns [B, T, D]."""
        act, up_BTF = ACTIVATIONS[self.activation], self.up(x_BTD)
        y_BTF = act(up_BTF) if self.gate is None else act(self.gate(x_BTD)) * up_BTF
        return self.down(shard(y_BTF, "batch", "length", "mlp"))


class Context(NamedTuple):
    """What every layer reads besides its input.

    Attributes:
        rows: where queries and keys stand.
        angles: {windowed: (cos, sin)}, or {False: None, True: None} without rotary positions.
        at: index in the cache of the first query, or None.
        shard: function (x, *logical axes) -> x.
        gather: function (path, parameter) -> parameter, whole over the devices that share rows.
    """

    rows: Rows
    angles: dict
    at: Any
    shard: Any
    gather: Any


class Block(nnx.Module):
    """Attention and MLP with their norms and residual sums."""

    def __init__(self, c, *, rngs):
        self.attn, self.mlp = Attention(c, rngs=rngs), Mlp(c, rngs=rngs)
        self.place, self.parallel, self.rate = c.norm_place, c.parallel, c.dropout
        self.attn_norm = Norm(c, c.width, "D", rngs=rngs)
        two, around = not c.parallel, c.norm_place == "around"
        self.mlp_norm = Norm(c, c.width, "D", rngs=rngs) if two else None
        self.attn_out_norm = Norm(c, c.width, "D", rngs=rngs) if around else None
        self.mlp_out_norm = Norm(c, c.width, "D", rngs=rngs) if two and around else None

    def __call__(self, x_BTD, context, *, windowed, key, cache):
        """Returns (x of the next layer, cache or None)."""
        keys = split_keys(key, 2)

        def attend(y_BTD):
            held = None if cache is None else {**cache, "at": context.at}
            y_BTD, new = self.attn(
                y_BTD,
                context.angles[windowed],
                context.rows,
                context.shard,
                windowed=windowed,
                cache=held,
            )
            return dropout(y_BTD, self.rate, keys[0]), new

        def feed(y_BTD):
            return dropout(self.mlp(y_BTD, context.shard), self.rate, keys[1])

        if self.place == "post":  # x = norm(x + f(x)), as in the 2017 transformer
            y_BTD, new = attend(x_BTD)
            if self.parallel:
                return self.attn_norm(x_BTD + y_BTD + feed(x_BTD)), new
            x_BTD = self.attn_norm(x_BTD + y_BTD)
            return self.mlp_norm(x_BTD + feed(x_BTD)), new
        h_BTD = self.attn_norm(x_BTD)
        y_BTD, new = attend(h_BTD)
        if self.parallel:  # x + attention(norm(x)) + mlp(norm(x)): one norm serves both
            y_BTD = y_BTD + feed(h_BTD)
            return x_BTD + (y_BTD if self.attn_out_norm is None else self.attn_out_norm(y_BTD)), new
        x_BTD = x_BTD + (y_BTD if self.attn_out_norm is None else self.attn_out_norm(y_BTD))
        y_BTD = feed(self.mlp_norm(x_BTD))
        return x_BTD + (y_BTD if self.mlp_out_norm is None else self.mlp_out_norm(y_BTD)), new


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
        self.layers = nnx.vmap(lambda key: Block(c, rngs=nnx.Rngs(params=key)))(keys)
        self.final_norm = None if c.norm_place == "post" else Norm(c, c.width, "D", rngs=rngs)
        sizes, options = {"D": c.width, "V": c.vocab}, dict(std=std, hidden=False, c=c)
        self.head = (
            None
            if c.tied
            else Projection("BTD,DV->BTV", sizes, bias=c.head_bias, rngs=rngs, **options)
        )

    def hidden(self, batch, shard, gather, key=None, cache=None):
        """Runs everything but the head, whose and whose table's weights are given whole.

        Args:
            batch: {"tokens", "position", "segment": int32[B, T]}.
            shard: function (x, *logical axes) -> x.
            gather: function (path, parameter) -> parameter, for the parameters of one layer.
            key: one dropout key a row [B], or None for no dropout.
            cache: None, or what `cache.make` returns.

        Returns:
            (final hidden state [B, T, D], cache with the new keys and values, or None).
        """
        c, keys = self.c, split_keys(key, 2)
        # Gathered whole over fsdp first: rows, not parts of their width, are looked up.
        table_VD = shard(self.embed[...], "vocab", "embed")
        x_BTD = jnp.take(table_VD, batch["tokens"], axis=0).astype(c.dtype)
        if c.embed_scale:
            x_BTD = x_BTD * jnp.asarray(c.width**0.5, c.dtype)
        if self.position is not None:
            x_BTD = x_BTD + jnp.take(self.position[...], batch["position"], axis=0).astype(c.dtype)
        x_BTD = dropout(shard(x_BTD, "batch", "length", "embed"), c.dropout, keys[0])
        context, cache = self._context(batch, shard, gather, cache)
        x_BTD, cache = self._run_layers(x_BTD, context, keys[1], cache)
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD), cache

    def logits(self, x_BTD):
        """Returns float32 logits [..., V] of final hidden states [..., D]."""
        c = self.c
        if self.head is None:
            z = jnp.matmul(x_BTD, self.embed[...].astype(c.dtype).T)
        else:
            z = self.head(x_BTD)
        z = z.astype(jnp.float32)
        return softcap(z, c.logit_softcap) if c.logit_softcap else z

    def _context(self, batch, shard, gather, cache):
        """Gathers what all layers share, and the cache's part that is stacked by layer."""
        c, T = self.c, batch["tokens"].shape[1]
        angles = {False: None, True: None}
        if c.position == "rope":
            kinds = {c.is_windowed(layer) for layer in range(c.layers)}
            for windowed in kinds:
                angles[windowed] = rope_angles(c, batch["position"], windowed=windowed)
        index_T = jnp.arange(T, dtype=jnp.int32)[None]
        if cache is None:
            rows = Rows(index_T, index_T, batch["segment"], batch["segment"])
            return Context(rows, angles, None, shard, gather), None
        at = cache["at"]
        segment_BS = jax.lax.dynamic_update_slice_in_dim(
            cache["segment"], batch["segment"], at, axis=1
        )
        key_S = jnp.arange(segment_BS.shape[1], dtype=jnp.int32)[None]
        rows = Rows(index_T + at, key_S, batch["segment"], segment_BS)
        cache = {**cache, "segment": segment_BS, "at": at + T}
        return Context(rows, angles, at, shard, gather), cache

    def _run_layers(self, x_BTD, context, key, cache):
        """Scans the stacked layers, `period` at a time, so that what differs is static."""
        c = self.c
        graph, stacked = nnx.split(self.layers)
        per_layer = {"weights": stacked}
        if key is not None:
            per_layer["key"] = split_keys(key, c.layers)
        if cache is not None:
            per_layer["cache"] = {"k": cache["k"], "v": cache["v"]}

        def one(x_BTD, layer, windowed):
            weights = nnx.map_state(
                lambda path, variable: variable.replace(
                    context.gather("layers/" + "/".join(map(str, path)), variable[...])
                ),
                layer["weights"],
            )
            block = nnx.merge(graph, weights)
            held, dropped = layer.get("cache"), layer.get("key")
            x_BTD, new = block(x_BTD, context, windowed=windowed, key=dropped, cache=held)
            return context.shard(x_BTD, "batch", "length", "embed"), new

        if c.remat != "none" and cache is None:
            one = jax.checkpoint(one, policy=REMAT[c.remat], static_argnums=2, prevent_cse=False)

        def several(x_BTD, layers, first, count):
            new = []
            for i in range(count):
                layer = jax.tree.map(lambda a, i=i: a[i], layers)
                x_BTD, held = one(x_BTD, layer, c.is_windowed(first + i))
                new.append(held)
            return x_BTD, jax.tree.map(lambda *a: jnp.stack(a), *new)

        if c.unroll >= c.layers:
            x_BTD, new = several(x_BTD, per_layer, 0, c.layers)
            return x_BTD, cache if cache is None else {**cache, **new}
        period, whole = c.period, c.layers // c.period * c.period
        scanned = per_layer
        if period > 1:
            scanned = jax.tree.map(
                lambda a: a[:whole].reshape(whole // period, period, *a.shape[1:]), per_layer
            )

        def body(x_BTD, layers):
            if period == 1:
                return one(x_BTD, layers, c.is_windowed(0))
            return several(x_BTD, layers, 0, period)

        x_BTD, new = jax.lax.scan(body, x_BTD, scanned, unroll=max(c.unroll // period, 1))
        if period > 1:
            new = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), new)
        if whole < c.layers:  # the pattern's last, unfinished round
            rest = jax.tree.map(lambda a: a[whole:], per_layer)
            x_BTD, last = several(x_BTD, rest, whole, c.layers - whole)
            new = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), new, last)
        return x_BTD, cache if cache is None else {**cache, **new}
