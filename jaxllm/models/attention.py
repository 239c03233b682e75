"""Scaled dot-product attention: kernels in one table, and the module around them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.config import ConfigError
from jaxllm.models import cache as caches
from jaxllm.models import lsh, splash
from jaxllm.models.blocks import blocks
from jaxllm.models.distance import Sinusoids
from jaxllm.models.layers import (
    HeadsNorm,
    Norm,
    Projection,
    keep,
    rotate,
    rotate_by_product,
    softcap,
)
from jaxllm.sharding import wire


class Rows(NamedTuple):
    """Where queries and keys stand; a query sees keys of its own segment, none later than itself.

    Attributes:
        query_BT, key_BS: index of each token in its row (not in its document), int32.
        query_segment_BT, key_segment_BS: document of each token, from 1; 0 is padding.
        key_position_BS: place of each key in its document, int32; only where some keys are seen
            from beyond the window.
    """

    query_BT: Any
    key_BS: Any
    query_segment_BT: Any
    key_segment_BS: Any
    key_position_BS: Any = None


def visible(rows, window, first=0, others=False):
    """Mask of the keys that each query sees, bool[B, T, S].

    Args:
        window: keys a query sees, itself included; 0 for all before it.
        first: tokens at the start of a document that it sees besides.
        others: whether it sees itself only where it sees nothing else.
    """
    back_BTS = rows.query_BT[:, :, None] - rows.key_BS[:, None, :]
    same_BTS = rows.query_segment_BT[:, :, None] == rows.key_segment_BS[:, None, :]
    mask_BTS = same_BTS & (back_BTS >= 0)
    if others:
        before_BTS = same_BTS & (back_BTS > 0)
        mask_BTS = jnp.where(before_BTS.any(-1, keepdims=True), before_BTS, mask_BTS)
    if not window:
        return mask_BTS
    near_BTS = back_BTS < window
    return mask_BTS & (near_BTS | (rows.key_position_BS < first)[:, None] if first else near_BTS)


@jax.custom_vjp
def masked_softmax(score, mask):
    """Softmax over the last axis of the scores whose mask is true, in float32.

    The backward pass needs the weights alone, not the scores and the mask: a fifth of the whole
    step on a CPU. A row that sees nothing (padding) gets equal weights, not NaN.
    """
    return jax.nn.softmax(jnp.where(mask, score, -1e30), axis=-1)


def _softmax_forward(score, mask):
    weight = masked_softmax(score, mask)
    return weight, weight


def _softmax_backward(weight, g):
    return weight * (g - jnp.sum(weight * g, axis=-1, keepdims=True)), None


masked_softmax.defvjp(_softmax_forward, _softmax_backward)


def reference(
    q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, cap, first=0, others=False, bias=None
):
    """Attention written out, softmax in float32; every option is supported.

    Args:
        q_BTNH, k_BSKH, v_BSKH: N is a multiple of K.
        rows: `Rows`.
        scale: multiplies the scores.
        window, first, others: as in `visible`.
        cap: scores become cap · tanh(score / cap); 0: off.
        bias: added to the scores, float32[1 or B, N, T, S], or None.

    Heads stand before positions and the G queries of a key head are folded into its rows, so that
    both products are batches of plain matrix products: the layout XLA's CPU backend runs fastest.
    """
    B, T, N, H = q_BTNH.shape
    S, K = k_BSKH.shape[1:3]
    G = N // K
    q_BKGTH = jnp.moveaxis((q_BTNH * scale).reshape(B, T, K, G, H), 1, 3)
    k_BKSH, v_BKSH = jnp.swapaxes(k_BSKH, 1, 2), jnp.swapaxes(v_BSKH, 1, 2)
    rows_of_head = q_BKGTH.reshape(B, K, G * T, H)
    score = jnp.einsum(
        "BKQH,BKSH->BKQS", rows_of_head, k_BKSH, preferred_element_type=jnp.float32
    ).reshape(B, K, G, T, S)
    if cap:
        score = softcap(score, cap)
    if bias is not None:
        score = score + bias.reshape(-1, K, G, T, S)
    mask = visible(rows, window, first, others)[:, None, None]
    weight = masked_softmax(score, mask).astype(v_BSKH.dtype)
    y = jnp.einsum("BKQS,BKSH->BKQH", weight.reshape(B, K, G * T, S), v_BKSH)
    return jnp.moveaxis(y.reshape(B, K, G, T, H), 3, 1).reshape(B, T, N, H)


def xla(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, cap, first=0, implementation="xla"):
    """`jax.nn.dot_product_attention`: XLA's implementation, or cuDNN's; neither has a soft cap.

    Arguments as in `reference`. The mask is given whole, T x S bits a row.
    """
    if cap:
        raise ValueError(f"cap={cap}: {implementation} has no soft cap.")
    mask = visible(rows, window, first)[:, None]
    return jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=mask, scale=scale, implementation=implementation
    )


ATTENTION = {
    "reference": reference,
    "xla": xla,
    "blocks": blocks,
    "splash": splash.splash,
    "cudnn": functools.partial(xla, implementation="cudnn"),
    "lsh": lsh.lsh,
}

# Those for rows that several devices share, in the place of the same name above.
RINGS = {"splash": splash.ring_splash, "blocks": blocks}

# Those that mark their results for remat="light" themselves, with what else they need of them.
KEEPING = ("splash", "blocks")

# What a kernel runs on, where not on all.
PLATFORMS = {"splash": "tpu", "cudnn": "gpu"}


def choose(c, length, platform, devices=1):
    """Returns the name of the kernel that `config.model.attention` stands for.

    Args:
        c: the model's configuration.
        length: tokens in a row.
        platform: "cpu", "gpu" or "tpu", or "" where it is not yet known.
        devices: how many share a row (mesh axis seq).

    Raises:
        ConfigError: unknown kernel, or one that lacks what the model needs.
    """
    name = c.attention
    if name == "auto":
        other = "blocks" if devices > 1 else "reference"
        lacks = _lacks_sight(c, "splash") or splash.why_not(c, length, devices)
        return "splash" if platform == "tpu" and not lacks else other
    if name not in ATTENTION:
        raise ConfigError(
            f"config.model.attention={name!r} is unknown. Known: auto, {', '.join(ATTENTION)}.\n"
            "  Try --config.model.attention=auto."
        )
    lacks = _lacks_sight(c, name) or _lacks(c, name, length, devices)
    if platform and platform != PLATFORMS.get(name, platform):
        lacks = f"it runs on a {PLATFORMS[name].upper()} and this is a {platform.upper()}"
    if lacks:
        raise ConfigError(
            f"config.model.attention={name!r}: {lacks}.\n  Try --config.model.attention=auto."
        )
    return name


def _lacks_sight(c, name):
    """Returns what of a model's positions and order of tokens a kernel does not know, or ""."""
    if c.biased and name != "reference":
        return f"it has no bias of the scores, as position={c.position!r} needs"
    if name in ("splash", "lsh") and (c.assembly != "decoder" or c.two_streams):
        return "its tokens look back only, and an encoder's do not"
    if name not in ("reference", "xla") and c.two_streams:
        return "it has no second stream, and two_streams=True"
    return ""


def _lacks(c, name, length, devices):
    """Returns what a model needs that a kernel has not, or ""."""
    if devices > 1 and name not in RINGS:
        return f"it needs whole rows, and mesh.seq={devices} splits them"
    if name == "splash":
        return splash.why_not(c, length, devices)
    if name == "lsh":
        return lsh.why_not(c, length)
    if name in ("xla", "cudnn") and c.attention_softcap:
        return f"it has no soft cap, and attention_softcap={c.attention_softcap}"
    if name == "cudnn" and c.dtype == "float32":
        return "it computes in bfloat16 or float16, and dtype='float32'"
    if name == "cudnn" and (c.head_width % 8 or c.head_width > 128):
        return f"head_width={c.head_width} is no multiple of 8 up to 128"
    return ""


def _norm_of_heads(c, heads, letter, rngs):
    """The norm of queries or keys, or None."""
    if c.qk_norm_whole:
        return HeadsNorm(c, heads, letter, rngs=rngs)
    return Norm(c, c.head_width, "H", kind="rms", rngs=rngs) if c.qk_norm else None


class Attention(nnx.Module):
    """Grouped-query attention: each key head serves G = N / K query heads.

    Args:
        c: the model's configuration.
        cross: whether keys and values are those of an encoder.
        rngs: random keys.
    """

    def __init__(self, c, *, cross=False, rngs):
        sizes = {"D": c.width, "N": c.heads, "K": c.kv_heads, "H": c.head_width}
        keywords = dict(c=c, rngs=rngs)
        # Scores begin with a variance of one, by whatever they are scaled: T5 does not scale them.
        std = (c.width * c.head_width) ** -0.5 / c.query_scale
        self.q = Projection("BTD,DNH->BTNH", sizes, bias=c.qkv_bias, std=std, **keywords)
        # Not yet chosen where a model is made for no mesh, so for no platform.
        self.kernel = "reference" if c.attention == "auto" or cross else c.attention
        of_keys = functools.partial(Projection, "BSD,DKH->BSKH", sizes, bias=c.qkv_bias, **keywords)
        self.k = None if self.kernel == "lsh" else of_keys()  # queries are keys
        self.v = of_keys()
        # Small at the start, so that the sum over 2 L branches keeps the size of its parts.
        std = (c.heads * c.head_width * 2 * c.layers) ** -0.5
        self.o = Projection("BTNH,NHD->BTD", sizes, bias=c.out_bias, std=std, sums=True, **keywords)
        self.q_norm = _norm_of_heads(c, c.heads, "N", rngs)
        self.k_norm = None if self.k is None else _norm_of_heads(c, c.kv_heads, "K", rngs)
        self.norms_whole = c.qk_norm_whole
        sinusoids = c.position == "sinusoids" and not cross
        self.distance = Sinusoids(c, rngs=rngs) if sinusoids else None
        self.rotate = rotate_by_product if c.products == "direct" else rotate
        self.prefix = None  # see `adapters.Prefix`
        self.window, self.first = c.window, c.window_first
        self.group, self.kv_heads = c.group, c.kv_heads
        self.scale, self.cap = c.query_scale, c.attention_softcap

    def __call__(
        self, x_BTD, angles, rows, shard, *, windowed=False, cache=None, bias=None, memory_BSD=None
    ):
        """Attends.

        Args:
            x_BTD: input, joined over `tensor`.
            angles: (cos, sin) of the rotary positions, or None.
            rows: `Rows` of the queries and keys.
            shard: function (x, *logical axes) -> x that places an activation on the mesh.
            windowed: whether this layer sees only the model's window.
            cache: None, or (this layer's, as `cache.make` has it, `cache.Place` of the queries).
            bias: as in `Context`.
            memory_BSD: what keys and values are made of, where not of x.

        Returns:
            (output [B, T / tensor, D], cache with the new keys and values, or None).
        """
        q_BTNH, source_BSD = self.q(x_BTD), x_BTD if memory_BSD is None else memory_BSD
        only = self._key_heads(q_BTNH.shape[2])
        if self.q_norm is not None:
            q_BTNH = self.q_norm(q_BTNH)
        if self.k is None:
            k_BSKH = lsh.keys_of(q_BTNH)
        else:
            # Normed together, key heads are all needed where this device has the weights of all.
            k_BSKH = self.k(source_BSD, None if self.norms_whole else only)
            k_BSKH = k_BSKH if self.k_norm is None else self.k_norm(k_BSKH)
            if self.norms_whole and only:
                k_BSKH = jax.lax.dynamic_slice_in_dim(k_BSKH, *only, axis=2)
        v_BSKH = self.v(source_BSD, only)
        if self.distance is not None:
            q_BTNH, bias = self.distance(q_BTNH, bias)
            bias = bias * self.scale
        if angles is not None:
            q_BTNH, k_BSKH = self.rotate(q_BTNH, angles), self.rotate(k_BSKH, angles)
        if self.prefix is not None:
            k_BSKH, v_BSKH = self.prefix(k_BSKH, v_BSKH, rows.key_position_BS, only)
        # Scaled here, where it costs nothing, and not by the kernel.
        q_BTNH, k_BSKH, v_BSKH = keep(q_BTNH * self.scale), keep(k_BSKH), keep(v_BSKH)
        q_BTNH = shard(q_BTNH, "batch", "length", "heads", "head")
        k_BSKH = shard(k_BSKH, "batch", "length", "kv_heads", "head")
        v_BSKH = shard(v_BSKH, "batch", "length", "kv_heads", "head")
        window = self.window if windowed else 0
        options = dict(scale=1.0, window=window, cap=self.cap, first=self.first)
        if cache is None:
            options |= {} if bias is None else {"bias": bias}
            kernel = (RINGS if wire.size("seq") > 1 else ATTENTION)[self.kernel]
            y_BTNH = kernel(q_BTNH, k_BSKH, v_BSKH, rows, **options)
        else:
            y_BTNH, cache = self._decode(q_BTNH, k_BSKH, v_BSKH, rows, shard, options, cache, bias)
        y_BTNH = y_BTNH if self.kernel in KEEPING else keep(y_BTNH)
        return self.o(shard(y_BTNH, "batch", "length", "heads", "head")), cache

    def remember(self, memory_BSD):
        """Returns the keys and values of an encoder's hidden states, as a cache keeps them."""
        k_BSKH, v_BSKH = self.k(memory_BSD), self.v(memory_BSD)
        made = k_BSKH.transpose(0, 2, 3, 1), v_BSKH.transpose(0, 2, 1, 3)
        return dict(zip(caches.OF_MEMORY, made, strict=True))

    def recall(self, x_BTD, held, segment_BS):
        """Attends to what `remember` returned, all of it that is no padding."""
        q_BTNH = self.q(x_BTD) * self.scale
        keys = dict(zip(("k", "v"), (held[name] for name in caches.OF_MEMORY), strict=True))
        mask_BTS = jnp.broadcast_to(
            (segment_BS > 0)[:, None], (*q_BTNH.shape[:2], segment_BS.shape[1])
        )
        return self.o(caches.attend(q_BTNH, keys, mask_BTS, self.cap))

    def _decode(self, q_BTNH, k_BTKH, v_BTKH, rows, shard, options, cache, bias):
        """Attends over a cache and writes to it. Returns (output, new cache of the layer)."""
        held, place = cache
        window, first = options["window"], self.first
        ring = caches.Ring(first, bool(window))
        if place.fresh:  # all keys are at hand
            new = caches.write(held, k_BTKH, v_BTKH, place, ring, shard)
            kernel = ATTENTION["reference" if self.kernel in ("splash", "lsh") else self.kernel]
            more = {"others": True} if self.k is None else {}
            more |= {} if bias is None else {"bias": bias(rows.query_BT, rows.key_BS)}
            return kernel(q_BTNH, k_BTKH, v_BTKH, rows, **options, **more), new
        T, others = q_BTNH.shape[1], self.k is None
        if window and T > 1:  # what is written may take the place of what the first ones see
            keys = caches.beside(held, k_BTKH, v_BTKH)
            key_BS = caches.positions(held, place.at_B, ring)
            key_BS = jnp.concatenate([key_BS, rows.query_BT], axis=1)
            segment_BT = rows.query_segment_BT
            segment_BS = jnp.concatenate([key_BS[:, :-T] >= 0, segment_BT > 0], axis=1)
            new = caches.write(held, k_BTKH, v_BTKH, place, ring, shard)
        else:
            keys = new = caches.write(held, k_BTKH, v_BTKH, place, ring, shard)
            key_BS = caches.positions(held, place.at_B + place.count_B, ring)
            segment_BS = key_BS >= 0
        query_segment_BT = (rows.query_segment_BT > 0).astype(jnp.int32)
        segment_BS = segment_BS.astype(jnp.int32)
        seen = Rows(rows.query_BT, key_BS, query_segment_BT, segment_BS, key_BS)
        mask_BTS = visible(seen, window, first, others)
        bias = None if bias is None else bias(rows.query_BT, key_BS)
        return caches.attend(q_BTNH, keys, mask_BTS, self.cap, bias), new

    def _key_heads(self, heads):
        """Which key heads serve the query heads of this device: (first, count), or None for all.

        Where there are fewer key heads than devices, each device has the weights of all of them.
        """
        if self.v.w.shape[1] < self.kv_heads or heads == self.group * self.kv_heads:
            return None
        return wire.index("tensor") * heads // self.group, max(heads // self.group, 1)
