"""The key-value cache that decoding fills: every row stands at its own place.

A cache is {"layers": `Apart` of one dict a layer, "at": int32[B], tokens in each row}. Axis 0 of
every array counts rows, so rows are taken, put and repeated by one gather on axis 0.

Keys stand as [B, K, H, S] and values as [B, K, S, H], so that both products of a step are batches
of plain matrix products without a transposition: XLA's CPU backend takes half the time of keys as
[B, K, S, H] (16 rows, 256 keys), and a tenth of that of [B, S, K, H].

A windowed layer keeps a ring: the first `window_first` keys, and behind them the last ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm import trees
from jaxllm.config import ConfigError
from jaxllm.models.layers import softcap
from jaxllm.models.narrow import quantize

KV_DTYPES = ("", "int8")
OF_MEMORY = ("memory_k", "memory_v")  # of an encoder's hidden states, [B, K, H, S], [B, K, S, H]


@jax.tree_util.register_pytree_with_keys_class
class Apart:
    """One tree a layer, where training has all layers in one stacked array.

    A layer of a stack is a copy of its weights, for each token anew.
    """

    def __init__(self, layers):
        self.layers = tuple(layers)

    def __getitem__(self, i):
        return self.layers[i]

    def __iter__(self):
        return iter(self.layers)

    def __len__(self):
        return len(self.layers)

    def tree_flatten_with_keys(self):
        keys = jax.tree_util.SequenceKey
        return [(keys(i), layer) for i, layer in enumerate(self.layers)], None

    @classmethod
    def tree_unflatten(cls, _, children):
        return cls(children)


def is_apart(x):
    """Whether x holds its layers one by one."""
    return isinstance(x, Apart)


class Place(NamedTuple):
    """Where new tokens go.

    Attributes:
        at_B: tokens that each row has, int32.
        count_B: new tokens of each row that are no padding, int32.
        fresh: whether at_B is known to be 0, a Python bool.
    """

    at_B: Any
    count_B: Any
    fresh: bool


class Ring(NamedTuple):
    """How positions map to places in a layer's cache.

    Attributes:
        first: keys at the start that stay, where it turns.
        turns: whether the layer is windowed.
    """

    first: int
    turns: bool


def make(c, rows, length, *, kv_dtype="", slack=0, inputs=0):
    """Returns an empty cache.

    Args:
        c: the model's configuration.
        rows: B.
        length: tokens that a row may have.
        kv_dtype: "" for that of the computation, or "int8": with one float32 scale a head and
            position, so that each number is off by at most 1 / 254 of the largest of its head.
        slack: tokens at a row's end that may be taken back (speculative decoding).
        inputs: tokens of an encoder's inputs, S; of an encoder-decoder only.

    Returns:
        {"layers": `Apart` of {"k": [B, K, H, S], "v": [B, K, S, H]} and, where int8, {"k_scale",
        "v_scale": float32[B, K, S]}; "at": int32[B]}. Of a layer with a recurrence {"tail": the
        last inputs of its convolution, "state": float32[B, F]}. Of an encoder-decoder also
        OF_MEMORY in each layer, and "inputs_segment": int32[B, S].

    Raises:
        ConfigError: an unknown kv_dtype, or a model that writes no text.
    """
    if c.assembly == "encoder":
        raise ConfigError(
            "This model is an encoder: it reads text and writes none. Take a decoder or an "
            "encoder_decoder (config.model.assembly)."
        )
    if c.attention_every and slack:
        raise ConfigError(
            "A recurrence (config.model.attention_every) cannot take back a token, as drafts of "
            "another model need it. Leave --draft out."
        )
    if kv_dtype not in KV_DTYPES:
        raise ConfigError(f"kv_dtype={kv_dtype!r} is unknown. Try kv_dtype='int8', or ''.")
    K, H, dtype = c.kv_heads, c.head_width, kv_dtype or c.dtype

    def one(layer):
        if not c.has_attention(layer):
            tail = (rows, c.conv_width - 1, c.recurrent_width)
            return {"tail": jnp.zeros(tail, c.dtype), "state": jnp.zeros((rows, tail[-1]))}
        S = length
        if c.is_windowed(layer):
            S = min(length, c.window + c.window_first + slack)
        made = {"k": jnp.zeros((rows, K, H, S), dtype), "v": jnp.zeros((rows, K, S, H), dtype)}
        if kv_dtype:
            made |= {name: jnp.zeros((rows, K, S)) for name in ("k_scale", "v_scale")}
        if c.assembly == "encoder_decoder":
            shapes = (rows, K, H, inputs), (rows, K, inputs, H)
            made |= {n: jnp.zeros(s, c.dtype) for n, s in zip(OF_MEMORY, shapes, strict=True)}
        return made

    found = {
        "layers": Apart([one(layer) for layer in range(c.layers)]),
        "at": jnp.zeros(rows, jnp.int32),
    }
    if c.assembly == "encoder_decoder":
        found["inputs_segment"] = jnp.zeros((rows, inputs), jnp.int32)
    return found


def room(c, cache):
    """Tokens that a row of a cache has room for; `positions` where all layers are rings."""
    whole = [i for i in range(c.layers) if c.has_attention(i) and not c.is_windowed(i)]
    rows = [cache["layers"][i]["k"].shape[3] for i in whole]
    return max(rows, default=c.positions)


def lay_out(params):
    """Returns params with each layer's apart, for decoding. Do it once, not once a token.

    Args:
        params: what `Model.whole` returns.
    """
    layers = params["layers"]
    first = trees.flatten(layers)

    def one(x):
        return x if is_apart(x) else Apart([x[i] for i in range(x.shape[0])])

    return {**params, "layers": jax.tree.map(one, layers, is_leaf=is_apart)} if first else params


def is_laid_out(params):
    """Whether params are what `lay_out` returned."""
    leaves = jax.tree.leaves(params["layers"], is_leaf=is_apart)
    return bool(leaves) and all(map(is_apart, leaves))


def _slots(length, position, ring):
    """Index in the cache of positions; of a layer that does not turn, the position itself."""
    if not ring.turns:
        return position
    size = length - ring.first
    turned = ring.first + (position - ring.first) % max(size, 1)
    return jnp.where(position < ring.first, position, turned)


def positions(held, at_B, ring):
    """Position of the key at each index of a layer's cache, int32[B, S]; negative for none.

    Args:
        held: one layer's cache.
        at_B: tokens in each row.
        ring: `Ring`.
    """
    S = held["k"].shape[3]
    slot_S, last_B1 = jnp.arange(S, dtype=jnp.int32), at_B[:, None] - 1
    if not ring.turns:
        return jnp.where(slot_S <= last_B1, slot_S, -1)
    back = (last_B1 - slot_S) % max(S - ring.first, 1)  # of the last that stands there
    turned = jnp.where(last_B1 - back >= ring.first, last_B1 - back, -1)
    return jnp.where(slot_S < ring.first, jnp.where(slot_S <= last_B1, slot_S, -1), turned)


def _stored(held, k_BTKH, v_BTKH):
    """New keys and values as the cache stores them, {name: [B, T, K, …]}."""
    if "k_scale" not in held:
        return {"k": k_BTKH.astype(held["k"].dtype), "v": v_BTKH.astype(held["v"].dtype)}
    (k, k_scale), (v, v_scale) = quantize(k_BTKH), quantize(v_BTKH)
    return {"k": k, "v": v, "k_scale": k_scale[..., 0], "v_scale": v_scale[..., 0]}


# Where time goes, from [B, T, K, …].
_ORDER = {"k": (0, 2, 3, 1), "v": (0, 2, 1, 3), "k_scale": (0, 2, 1), "v_scale": (0, 2, 1)}
_TIME = {"k": 3, "v": 2, "k_scale": 2, "v_scale": 2}
_AXES = {
    "k": ("batch", "kv_heads", "head", "length"),
    "v": ("batch", "kv_heads", "length", "head"),
    "k_scale": ("batch", "kv_heads", "length"),
    "v_scale": ("batch", "kv_heads", "length"),
}


def write(held, k_BTKH, v_BTKH, place, ring, shard):
    """Returns one layer's cache with new keys and values; padding is not written.

    Args:
        held: the layer's cache.
        k_BTKH, v_BTKH: what is new.
        place: `Place`.
        ring: `Ring`.
        shard: function (x, *logical axes) -> x.
    """
    T, S = k_BTKH.shape[1], held["k"].shape[3]
    stored = _stored(held, k_BTKH, v_BTKH)
    put = _put_fresh if place.fresh else _put
    if not place.fresh:
        step_T = jnp.arange(T, dtype=jnp.int32)
        position_BT = place.at_B[:, None] + step_T
        slot_BT = _slots(S, position_BT, ring)
        good_BT = step_T < place.count_B[:, None]
        if ring.turns and S - ring.first < T:  # later ones would take the same place
            end_B1 = (place.at_B + place.count_B)[:, None]
            good_BT &= (position_BT >= end_B1 - (S - ring.first)) | (position_BT < ring.first)
        index = jnp.where(good_BT, slot_BT, S)  # dropped
    elif T > S:
        index = jnp.clip(positions(held, place.count_B, ring), 0, T - 1)
    else:
        index = None
    return {
        name: shard(put(name, held[name], new, index), *_AXES[name]) for name, new in stored.items()
    }


def _put(name, old, new, slot_BT):
    row_B1 = jnp.arange(old.shape[0])[:, None]
    where = (
        (row_B1, slice(None), slice(None), slot_BT)
        if name == "k"
        else (row_B1, slice(None), slot_BT)
    )
    return old.at[where].set(new, mode="drop")


def _put_fresh(name, old, new, position_BS):
    """The same for an empty cache: one copy, no scatter. Padding is written, but not seen."""
    if position_BS is not None:
        new = jnp.take_along_axis(
            new, position_BS.reshape(*position_BS.shape, *(1,) * (new.ndim - 2)), axis=1
        )
    new = new.transpose(_ORDER[name])
    return jax.lax.dynamic_update_slice(old, new, (0,) * old.ndim)


def beside(held, k_BTKH, v_BTKH):
    """Returns one layer's cache with new keys and values behind the old, for one attention."""
    stored = _stored(held, k_BTKH, v_BTKH)
    return {
        name: jnp.concatenate([held[name], new.transpose(_ORDER[name])], axis=_TIME[name])
        for name, new in stored.items()
    }


def attend(q_BTNH, held, mask_BTS, cap, bias=None):
    """Attention over a cache, softmax in float32.

    Args:
        q_BTNH: queries, already scaled.
        held: keys and values as `make` has them for one layer.
        mask_BTS: which keys each query sees.
        cap: scores become cap · tanh(score / cap); 0: off.
        bias: added to the scores, float32[B, N, T, S], or None.
    """
    B, T, N, H = q_BTNH.shape
    K, S = held["k"].shape[1], held["k"].shape[3]
    G = N // K
    q_BKQH = jnp.moveaxis(q_BTNH.reshape(B, T, K, G, H), 1, 3).reshape(B, K, G * T, H)
    k, v = held["k"].astype(q_BTNH.dtype), held["v"].astype(q_BTNH.dtype)
    score = jnp.einsum("BKQH,BKHS->BKQS", q_BKQH, k, preferred_element_type=jnp.float32)
    if "k_scale" in held:
        score = score * held["k_scale"][:, :, None]
    score = score.reshape(B, K, G, T, S)
    score = softcap(score, cap) if cap else score
    score = score if bias is None else score + bias.reshape(-1, K, G, T, S)
    score = jnp.where(mask_BTS[:, None, None], score, -1e30)
    weight = jax.nn.softmax(score, axis=-1).reshape(B, K, G * T, S)
    if "v_scale" in held:
        weight = weight * held["v_scale"][:, :, None]
    y = jnp.einsum("BKQS,BKSH->BKQH", weight.astype(v.dtype), v)
    return jnp.moveaxis(y.reshape(B, K, G, T, H), 3, 1).reshape(B, T, N, H)


def grow(cache, c, length, slack=0):
    """Returns a cache with room for rows of `length` tokens, what is in it unchanged.

    Args:
        cache: what `make` returned, or a cache extended since.
        c, slack: as given to `make`.
        length: tokens; at least what it has room for now.
    """

    def one(layer, held):
        ring = c.window + c.window_first + slack
        S = min(length, ring) if c.is_windowed(layer) else length

        def pad(name, x):
            if name not in _TIME:
                return x
            more = S - x.shape[_TIME[name]]
            widths = [(0, more if axis == _TIME[name] else 0) for axis in range(x.ndim)]
            return jnp.pad(x, widths)

        return {name: pad(name, x) for name, x in held.items()}

    return {**cache, "layers": Apart([one(i, held) for i, held in enumerate(cache["layers"])])}


def widen(cache, inputs):
    """Returns a cache with room for `inputs` tokens of an encoder's inputs."""
    axes = {"memory_k": 3, "memory_v": 2, "inputs_segment": 1}

    def one(path, x):
        axis = axes.get(path[-1].key)
        if axis is None:
            return x
        more = inputs - x.shape[axis]
        return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

    return jax.tree_util.tree_map_with_path(one, cache)


def take_rows(cache, row_B):
    """Returns a cache of the rows with these indices, int32[B]: to repeat or reorder them."""
    return jax.tree.map(lambda x: x[row_B], cache)


def reorder(cache, row_B):
    """The same for rows that change places with others of the same encoder's inputs.

    What an encoder's memory gave stays where it is.
    """

    def one(path, x):
        return x if path[-1].key in (*OF_MEMORY, "inputs_segment") else x[row_B]

    return jax.tree_util.tree_map_with_path(one, cache)


def put_rows(cache, rows, row_P):
    """Returns a cache with some rows replaced by those of a shorter cache.

    Args:
        cache: the cache.
        rows: cache of P rows, for rows of at most as many tokens.
        row_P: where each goes, int32; beyond the last row for nowhere.
    """

    def put(old, new):
        where = (row_P, *(slice(0, n) for n in new.shape[1:]))
        return old.at[where].set(new, mode="drop")

    return jax.tree.map(put, cache, rows)
