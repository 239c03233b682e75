"""A layer: attention and MLP, or experts, with their norms and residual sums."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from jaxllm.models import cache as caches
from jaxllm.models.attention import Attention, Rows
from jaxllm.models.layers import Norm, dropout, keep, split_keys
from jaxllm.models.mlp import Mlp
from jaxllm.models.moe import Moe
from jaxllm.sharding import wire


class Memory(NamedTuple):
    """What an encoder made of the inputs, joined over `tensor`.

    Attributes:
        x_BSD: its hidden states; None where the layers' caches hold what they made of them.
        segment_BS: document of each, int32; a token of the decoder looks at its own.
    """

    x_BSD: Any
    segment_BS: Any


class Context(NamedTuple):
    """What every layer reads besides its input.

    Attributes:
        index_BT: place in its row of each token of the stream.
        rows: where queries and keys stand, joined over `tensor`.
        angles: {windowed: (cos, sin)}, or {False: None, True: None} without rotary positions.
        at: `cache.Place` of the queries in the cache, or None.
        shard: function (x, *logical axes) -> x.
        gather: function (path, parameter) -> parameter, whole over the devices that share rows.
        bias: what is added to the scores, float32[1 or B, N, T, S], with a cache a function of the
            places of queries and keys that gives it; with position="sinusoids" these places, of
            which each layer makes its own; or None.
        memory: `Memory` of an encoder, or None.
        prefix: what `adapters.PrefixSource` gives, or None.
    """

    index_BT: Any
    rows: Rows
    angles: dict
    at: Any
    shard: Any
    gather: Any
    bias: Any = None
    memory: Any = None
    prefix: Any = None


class Block(nnx.Module):
    """Attention and MLP, or experts, with their norms and residual sums.

    Where layers differ, in having experts or a recurrence in the place of attention, a block is
    made without either, and `Stack` stacks them apart.
    """

    def __init__(self, c, *, rngs):
        if not c.attention_every:
            self.attn = Attention(c, rngs=rngs)
        looks = c.assembly == "encoder_decoder"
        self.cross = Attention(c, cross=True, rngs=rngs) if looks else None
        self.cross_norm = Norm(c, c.width, "D", rngs=rngs) if looks else None
        if not c.experts:
            self.mlp = Mlp(c, c.mlp_width, rngs=rngs)
        elif c.moe_every == 1:
            self.moe = Moe(c, rngs=rngs)
        self.attn_adapter = self.mlp_adapter = None  # see `adapters.Bottleneck`
        self.place, self.parallel, self.rate = c.norm_place, c.parallel, c.dropout
        two, before = not c.parallel, c.norm_place != "out"
        after = c.norm_place in ("around", "out")
        self.attn_norm = Norm(c, c.width, "D", rngs=rngs) if before else None
        self.mlp_norm = Norm(c, c.width, "D", rngs=rngs) if two and before else None
        self.attn_out_norm = Norm(c, c.width, "D", rngs=rngs) if after else None
        self.mlp_out_norm = Norm(c, c.width, "D", rngs=rngs) if two and after else None

    def __call__(self, x_BTD, context, *, windowed, sparse, attends, key, cache):
        """Returns (x of the next layer, cache or None, sums of the router's losses).

        Args:
            x_BTD: input.
            context: `Context`.
            windowed: whether this layer sees only the model's window.
            sparse: whether it has experts.
            attends: whether it has attention; else it has a recurrence.
            key: one dropout key a row, or None.
            cache: None, or this layer's, as `cache.make` has it.
        """
        keys, losses = split_keys(key, 2 if self.cross is None else 3), {}

        def attend(y_BTD):
            if attends:
                y_BTD, new = self.attn(
                    wire.join(y_BTD),
                    context.angles[windowed],
                    context.rows,
                    context.shard,
                    windowed=windowed,
                    cache=None if cache is None else (cache, context.at),
                    bias=context.bias,
                )
            else:
                y_BTD, new = self.recurrence(wire.join(y_BTD), context.rows, context.shard, cache)
            y_BTD = dropout(y_BTD, self.rate, keys[0], context.index_BT)
            return y_BTD if self.attn_adapter is None else self.attn_adapter(y_BTD), new

        def feed(y_BTD):
            y_BTD = wire.join(y_BTD)
            if sparse:
                segment_BT, decodes = context.rows.query_segment_BT, cache is not None
                y_BTD, found = self.moe(y_BTD, segment_BT, context.shard, dropless=decodes)
                losses.update(found)
            else:
                y_BTD = self.mlp(y_BTD, context.shard)
            y_BTD = dropout(y_BTD, self.rate, keys[1], context.index_BT)
            return y_BTD if self.mlp_adapter is None else self.mlp_adapter(y_BTD)

        if self.place == "post":  # x = norm(x + f(x)), as in the 2017 transformer
            y_BTD, new = attend(x_BTD)
            if self.parallel:
                return self.attn_norm(x_BTD + y_BTD + feed(x_BTD)), new, losses
            x_BTD = self.attn_norm(x_BTD + y_BTD)
            if self.cross is not None:
                y_BTD, crossed = self._look(x_BTD, context, keys[2], cache)
                x_BTD = self.cross_norm(x_BTD + y_BTD)
                new = {**new, **crossed} if crossed else new
            return self.mlp_norm(x_BTD + feed(x_BTD)), new, losses
        h_BTD = x_BTD if self.attn_norm is None else self.attn_norm(x_BTD)
        y_BTD, new = attend(h_BTD)
        if self.parallel:  # x + attention(norm(x)) + mlp(norm(x)): one norm serves both
            y_BTD = y_BTD + feed(h_BTD)
            y_BTD = y_BTD if self.attn_out_norm is None else self.attn_out_norm(y_BTD)
            return x_BTD + y_BTD, new, losses
        y_BTD = y_BTD if self.attn_out_norm is None else self.attn_out_norm(y_BTD)
        x_BTD = keep(x_BTD + y_BTD)
        if self.cross is not None:
            y_BTD, crossed = self._look(self.cross_norm(x_BTD), context, keys[2], cache)
            x_BTD = keep(x_BTD + y_BTD)
            new = {**new, **crossed} if crossed else new
        y_BTD = feed(x_BTD if self.mlp_norm is None else self.mlp_norm(x_BTD))
        y_BTD = y_BTD if self.mlp_out_norm is None else self.mlp_out_norm(y_BTD)
        return x_BTD + y_BTD, new, losses

    def _look(self, y_BTD, context, key, cache):
        """Attention to an encoder's memory. Returns (y_BTD, what a cache keeps of the memory)."""
        y_BTD, memory, held = wire.join(y_BTD), context.memory, {}
        if cache is None:
            segment_BT = context.rows.query_segment_BT
            # All of a token's own document: none stands before or behind another.
            zeros = jnp.zeros_like(segment_BT), jnp.zeros_like(memory.segment_BS)
            rows = Rows(*zeros, segment_BT, memory.segment_BS)
            y_BTD, _ = self.cross(y_BTD, None, rows, context.shard, memory_BSD=memory.x_BSD)
        else:
            if memory.x_BSD is None:
                held = {name: cache[name] for name in caches.OF_MEMORY}
            else:
                held = self.cross.remember(memory.x_BSD)
            y_BTD = self.cross.recall(y_BTD, held, memory.segment_BS)
        return dropout(y_BTD, self.rate, key, context.index_BT), held
