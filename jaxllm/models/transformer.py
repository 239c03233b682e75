"""The transformer: stacks of blocks, scanned; a decoder, an encoder, or both."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models import cache as caches
from jaxllm.models import orders
from jaxllm.models.attention import Attention, Rows
from jaxllm.models.block import Block, Context, Memory
from jaxllm.models.cache import Place
from jaxllm.models.distance import Buckets
from jaxllm.models.layers import (
    ACTIVATIONS,
    Norm,
    Projection,
    dropout,
    flat_product,
    look_up,
    make_param,
    narrow_product,
    rope_angles,
    softcap,
    split_keys,
)
from jaxllm.models.mlp import Mlp
from jaxllm.models.moe import Moe
from jaxllm.models.narrow import Int8, is_narrow
from jaxllm.models.narrow import look_up as look_up_int8
from jaxllm.models.recurrence import Recurrence
from jaxllm.models.stacked import run_layers
from jaxllm.sharding import wire

# Standard deviation of the logits at the start: small, so that the first loss is ln(vocabulary).
LOGIT_STD = 0.3


class Scores(NamedTuple):
    """What a cross-entropy needs of the logits, float32[B, T].

    Attributes:
        partition_BT: logarithm of the sum of their exponentials.
        chosen_BT: logit of the target.
        top_BT: the largest; it has no gradient.
        mean_BT: their mean, or None where it was not asked for.
    """

    partition_BT: Any
    chosen_BT: Any
    top_BT: Any
    mean_BT: Any = None


class Stack(nnx.Module):
    """Layers, what is added to the tokens before them, and the norm behind them.

    Args:
        c: the model's configuration; `c.of_encoder` for the encoder of an encoder-decoder.
        table: whether it has a table of tokens of its own.
        rngs: random keys.
    """

    def __init__(self, c, *, table=True, rngs):
        self.c = c

        def make_table(std, rows, axis):
            normal = jax.nn.initializers.truncated_normal(std)
            return make_param(normal, rngs.params(), (rows, c.width), (axis, "embed"))

        of_head = LOGIT_STD if c.head_scale else LOGIT_STD * c.width**-0.5
        self.embed = make_table(of_head if c.tied else 0.02, c.vocab, "vocab") if table else None
        learned, rows = c.position == "learned", c.position_offset + c.positions
        self.position = make_table(0.02, rows, "positions") if learned else None
        self.types = make_table(0.02, c.token_types, "types") if c.token_types else None
        self.query = make_table(0.02, 1, "types") if c.two_streams else None
        self.prompt = self.prefix_source = None  # see `adapters`
        self.lead = 0  # places at the start of a document that these have
        self.embed_norm = Norm(c, c.width, "D", rngs=rngs) if c.embed_norm else None
        self.distance = Buckets(c, rngs=rngs) if c.position == "buckets" else None
        keys = jax.random.split(rngs.params(), c.layers)

        def stack(make, keys):
            return nnx.vmap(lambda key: make(rngs=nnx.Rngs(params=key)))(keys)

        self.layers = stack(functools.partial(Block, c), keys)
        if c.attention_every:
            of_attn, of_rest = jax.random.split(rngs.params())
            attending = c.layers // c.attention_every
            keys = jax.random.split(of_attn, max(attending, 1))
            self.layers.attn = stack(functools.partial(Attention, c), keys)
            keys = jax.random.split(of_rest, c.layers - attending)
            self.layers.recurrence = stack(functools.partial(Recurrence, c), keys)
        if c.experts and c.moe_every > 1:
            of_mlp, of_moe = jax.random.split(rngs.params())
            sparse = c.layers // c.moe_every
            keys = jax.random.split(of_mlp, c.layers - sparse)
            self.layers.mlp = stack(functools.partial(Mlp, c, c.mlp_width), keys)
            keys = jax.random.split(of_moe, sparse)
            self.layers.moe = stack(functools.partial(Moe, c), keys)
        self.final_norm = None if c.norm_place == "post" else Norm(c, c.width, "D", rngs=rngs)

    def run(self, table_VD, batch, shard, gather, key=None, cache=None, fresh=False, memory=None):
        """Runs the stack on tokens.

        Args:
            table_VD: of tokens, with rows and columns of this device.
            batch: {"tokens", "position", "segment": int32[B, T]}; "index" where rows are split;
                "order", "prefix", "type" where there are any; "noise" [B, T, D], which is added to
                the embeddings of the tokens.
            shard, gather: as in `Transformer.hidden`; paths are those below this stack.
            key, cache, fresh: as in `Transformer.hidden`.
            memory: `Memory` that the layers look at besides, or None.

        Returns:
            (hidden states [B, T, D], cache with the new keys and values, or None, sums of the
            routers' losses).
        """
        c, keys = self.c, split_keys(key, 2)
        batch = {"index": jnp.arange(batch["tokens"].shape[1], dtype=jnp.int32)[None], **batch}
        x_BTD = self._look_up(shard(table_VD, "vocab", "embed"), batch["tokens"])
        x_BTD = x_BTD + batch["noise"].astype(c.dtype) if "noise" in batch else x_BTD
        x_BTD = x_BTD if self.prompt is None else self.prompt(x_BTD, batch["position"])
        if c.embed_scale:
            x_BTD = x_BTD * jnp.asarray(c.width**0.5, c.dtype)
        if "order" in batch:  # the second stream does not know the tokens that it stands for
            query_BTD = jnp.broadcast_to(self.query[...].astype(c.dtype), x_BTD.shape)
            x_BTD = jnp.concatenate([x_BTD, query_BTD], axis=1)
            batch = orders.two_streams(batch)
        if self.position is not None:
            place_BT = batch["position"] + c.position_offset
            x_BTD = x_BTD + look_up(self.position[...], place_BT).astype(c.dtype)
        if self.types is not None:
            type_BT = batch.get("type", jnp.zeros_like(batch["tokens"]))
            x_BTD = x_BTD + look_up(self.types[...], type_BT).astype(c.dtype)
        x_BTD = x_BTD if self.embed_norm is None else self.embed_norm(x_BTD)
        context, cache = self._context(batch, shard, gather, cache, fresh, memory)
        x_BTD = shard(x_BTD, "batch", "length", "embed")
        x_BTD = dropout(x_BTD, c.dropout, keys[0], context.index_BT)
        x_BTD, cache, losses = run_layers(c, self.layers, x_BTD, context, keys[1], cache)
        if "order" in batch:
            x_BTD = x_BTD[:, x_BTD.shape[1] // 2 :]
        return x_BTD if self.final_norm is None else self.final_norm(x_BTD), cache, losses

    def _look_up(self, table_VD, tokens_BT):
        """Embeddings of tokens, also from a table of which this device has some rows."""
        if table_VD.shape[0] < self.c.vocab:
            found = wire.own_rows(look_up, table_VD, wire.join(tokens_BT)).astype(self.c.dtype)
            return wire.sum_parts(found)
        if isinstance(table_VD, Int8):
            return look_up_int8(table_VD, tokens_BT, self.c.dtype)
        # Gathered whole over fsdp first: rows, not parts of their width, are looked up.
        return look_up(table_VD, tokens_BT).astype(self.c.dtype)

    def _context(self, batch, shard, gather, cache, fresh, memory):
        """Gathers what all layers share, and the cache's part that is stacked by layer."""
        c = self.c
        position_BT, segment_BT = wire.join(batch["position"]), wire.join(batch["segment"])
        angles = {False: None, True: None}
        # What a row has room for, not what stands in it: keys in a cache keep their angles.
        length = position_BT.shape[1] * wire.size("seq")
        length = length if cache is None else caches.room(c, cache)
        if c.position == "rope":
            kinds = {c.is_windowed(layer) for layer in range(c.layers)}
            for windowed in kinds:
                angles[windowed] = rope_angles(c, position_BT, windowed=windowed, length=length)
        index_BT, at = batch["index"], None
        if cache is None:
            whole_BT = wire.join(index_BT)
            sight = orders.of_rows(c, batch, index_BT)
            rows = Rows(*map(wire.join, sight), segment_BT, segment_BT, position_BT)
        else:
            at = Place(cache["at"], jnp.sum(segment_BT > 0, axis=1, dtype=jnp.int32), fresh)
            index_BT = position_BT
            rows = Rows(position_BT, position_BT, segment_BT, segment_BT, position_BT)
            cache = {**cache, "at": at.at_B + at.count_B}
        bias = None
        if self.distance is not None:
            bias = self.distance(whole_BT, whole_BT) if cache is None else self.distance
        elif c.position == "sinusoids":
            bias = whole_BT, whole_BT
        prefix = None if self.prefix_source is None else self.prefix_source()
        return Context(index_BT, rows, angles, at, shard, gather, bias, memory, prefix), cache


class Transformer(Stack):
    """A stack, an encoder before it where there are two, and what reads the hidden states."""

    def __init__(self, c, *, rngs):
        super().__init__(c, rngs=rngs)
        std, keywords = LOGIT_STD * c.width**-0.5, dict(c=c, rngs=rngs)
        sizes = {"D": c.width, "V": c.vocab, "W": c.width, "Y": c.labels}
        options = dict(std=std, hidden=False, **keywords)
        own_head = c.lm_head and not c.tied
        self.head = (
            Projection("BTD,DV->BTV", sizes, bias=c.head_bias, **options) if own_head else None
        )
        free = c.lm_head and c.tied and c.head_bias  # a bias of no projection
        zeros, key = jax.nn.initializers.zeros, rngs.params() if free else None
        self.head_bias = make_param(zeros, key, (c.vocab,), ("vocab",)) if free else None
        turns = c.lm_head and c.head_transform
        self.transform = Projection("BTD,DW->BTW", sizes, bias=True, **keywords) if turns else None
        self.transform_norm = Norm(c, c.width, "D", rngs=rngs) if turns else None
        self.pool = Projection("BD,DW->BW", sizes, bias=True, **keywords) if c.pool_layer else None
        has_task = c.task not in ("none", "embed")
        self.task = Projection("BD,DY->BY", sizes, bias=True, **options) if has_task else None
        two = c.assembly == "encoder_decoder"
        self.encoder = Stack(c.of_encoder, table=not c.shared_table, rngs=rngs) if two else None

    def hidden(self, batch, shard, gather, key=None, cache=None, fresh=False):
        """Runs everything but the head, whose and whose table's weights are given whole.

        Args:
            batch: {"tokens", "position", "segment": int32[B, T]}, and "index" where rows are
                split. Of an encoder-decoder also {"inputs", "inputs_segment": int32[B, S]}, and
                "inputs_position" where a row holds several documents; with a cache, where they
                are not in it yet. "type" [B, T] where there are types of tokens; "prefix" and
                "order": see `orders`. "noise", and "inputs_noise" [B, S, D]: see `Stack.run`.
            shard: function (x, *logical axes) -> x.
            gather: function (path, parameter) -> parameter, for the parameters of one layer.
            key: one dropout key a row [B], or None for no dropout.
            cache: None, or what `cache.make` returns.
            fresh: whether nothing is in the cache yet.

        Returns:
            (final hidden state [B, T, D], cache with the new keys and values, or None, sums of the
            routers' losses).
        """
        table_VD, memory = self.embed[...], None
        if self.encoder is not None and "inputs" not in batch:
            memory = Memory(None, cache["inputs_segment"])
        elif self.encoder is not None:
            keys = split_keys(key, 2)
            memory, key = self._encode(batch, shard, gather, keys[0]), keys[1]
            if cache is not None:
                cache = {**cache, "inputs_segment": memory.segment_BS}
        return self.run(table_VD, batch, shard, gather, key, cache, fresh, memory)

    def _encode(self, batch, shard, gather, key):
        """Returns the `Memory` of a batch's inputs."""
        segment_BS = batch["inputs_segment"]
        S = segment_BS.shape[1]
        index_1S = jnp.arange(S, dtype=jnp.int32)[None] + wire.index("tensor") * S
        inputs = {
            "tokens": batch["inputs"],
            "segment": segment_BS,
            "position": batch.get("inputs_position", jnp.broadcast_to(index_1S, segment_BS.shape)),
            "index": index_1S,
        }
        inputs |= {"noise": batch["inputs_noise"]} if "inputs_noise" in batch else {}
        table_VD = (self if self.encoder.embed is None else self.encoder).embed[...]

        def of_encoder(path, x):
            return gather(f"encoder/{path}", x)

        x_BSD, _, _ = self.encoder.run(table_VD, inputs, shard, of_encoder, key)
        return Memory(wire.join(x_BSD), wire.join(segment_BS))

    def read(self, x_BTD, batch):
        """Returns what the task's head makes of final hidden states, in float32.

        [B, labels] for classify and regress, [B, D] for embed, each the same on all devices that
        share a row; [B, T, labels] for tag and span.
        """
        c = self.c
        if c.task in ("tag", "span"):
            return self.task(x_BTD).astype(jnp.float32)
        pooled_BD = self._pool(x_BTD, batch)
        if c.task == "embed":
            return pooled_BD
        pooled_BD = pooled_BD if self.pool is None else jnp.tanh(self.pool(pooled_BD))
        return self.task(pooled_BD).astype(jnp.float32)

    def _pool(self, x_BTD, batch):
        """The first or last token of a row's first document, or the mean of all, float32.

        Places of a prefix are no tokens. A soft prompt's are none of the text, but its first vector
        is the first token, which PEFT pools, too.
        """
        first = 0 if self.c.pool == "first" and self.prompt is not None else self.lead
        real_BT = (batch["segment"] == 1) & (batch["position"] >= first)
        end_B1 = wire.largest(jnp.where(real_BT, batch["position"], 0).max(1, keepdims=True))
        at_BT = {"first": first, "last": end_B1, "mean": batch["position"]}[self.c.pool]
        chosen_BT = (real_BT & (batch["position"] == at_BT)).astype(jnp.float32)
        total_BD = jnp.einsum("BT,BTD->BD", chosen_BT, x_BTD.astype(jnp.float32))
        total_BD, count_B = wire.sum_tokens((total_BD, chosen_BT.sum(1)))
        return total_BD / jnp.maximum(count_B, 1.0)[:, None]

    def logits(self, x_BTD):
        """Returns float32 logits [..., V] of final hidden states [..., D]."""
        return self._to_vocab(self._before_head(x_BTD))

    def _before_head(self, x_BTD):
        """What stands between the final hidden states and the product with the vocabulary."""
        c = self.c
        if self.transform is not None:
            x_BTD = self.transform_norm(ACTIVATIONS[c.activation](self.transform(x_BTD)))
        return x_BTD * jnp.asarray(c.width**-0.5, x_BTD.dtype) if c.head_scale else x_BTD

    def _to_vocab(self, x_BTD):
        c = self.c
        if self.head is None:
            table_VD, by_hand = self.embed[...], c.products != "direct"
            if isinstance(table_VD, Int8):
                z = narrow_product(x_BTD, table_VD, 1)
            elif is_narrow(table_VD, c.dtype):
                z = narrow_product(x_BTD, table_VD.T, 1)
            else:
                table_VD = table_VD.astype(c.dtype)
                z = flat_product(x_BTD, table_VD.T, 1) if by_hand else jnp.matmul(x_BTD, table_VD.T)
            z = z if self.head_bias is None else z + self.head_bias[...].astype(c.dtype)
        else:
            z = self.head(x_BTD)
        z = z.astype(jnp.float32)
        return softcap(z, c.logit_softcap) if c.logit_softcap else z

    def _splits_vocab(self):
        """Whether this device has only some rows of the table and columns of the head."""
        return self.embed[...].shape[0] < self.c.vocab

    def scores(self, x_BTD, target_BT, mean=False):
        """Returns the `Scores` of targets, without the logits of the whole vocabulary at once.

        Args:
            x_BTD: final hidden states.
            target_BT: int32.
            mean: whether the mean of the logits is asked for.
        """
        split, x_BTD = self._splits_vocab(), self._before_head(x_BTD)
        if split:
            x_BTD, target_BT = wire.join(x_BTD), wire.join(target_BT)
        z_BTV = self._to_vocab(x_BTD)
        top_BT = jnp.max(jax.lax.stop_gradient(z_BTV), axis=-1)
        top_BT = wire.largest(top_BT) if split else top_BT
        sum_BT = jnp.sum(jnp.exp(z_BTV - top_BT[..., None]), axis=-1)
        # A select, not a gather: it fuses, and its gradient is no scatter.
        first = wire.index("tensor") * z_BTV.shape[-1] if split else 0
        is_target = jnp.arange(z_BTV.shape[-1]) == (target_BT - first)[..., None]
        chosen_BT = jnp.sum(jnp.where(is_target, z_BTV, 0.0), axis=-1)
        mean_BT = jnp.sum(z_BTV, axis=-1) / self.c.vocab if mean else None
        if split:
            sum_BT, chosen_BT = wire.sum_parts(sum_BT), wire.sum_parts(chosen_BT)
            top_BT = wire.own_part(top_BT)
            mean_BT = wire.sum_parts(mean_BT) if mean else None
        return Scores(top_BT + jnp.log(sum_BT), chosen_BT, top_BT, mean_BT)

    def divergence(self, x_BTD, other_BTD):
        """Returns KL(p, q) + KL(q, p) of the distributions of two hidden states, float32[B, T]."""
        split = self._splits_vocab()

        def log_probabilities(x_BTD):
            x_BTD = self._before_head(x_BTD)
            z_BTV = self._to_vocab(wire.join(x_BTD) if split else x_BTD)
            top_BT1 = jnp.max(jax.lax.stop_gradient(z_BTV), axis=-1, keepdims=True)
            z_BTV = z_BTV - (wire.largest(top_BT1) if split else top_BT1)
            sum_BT1 = jnp.sum(jnp.exp(z_BTV), axis=-1, keepdims=True)
            return z_BTV - jnp.log(wire.sum_heads(sum_BT1) if split else sum_BT1)

        p_BTV, q_BTV = log_probabilities(x_BTD), log_probabilities(other_BTD)
        sum_BT = jnp.sum((jnp.exp(p_BTV) - jnp.exp(q_BTV)) * (p_BTV - q_BTV), axis=-1)
        return wire.sum_parts(sum_BT) if split else sum_BT
