"""Splash attention: jax's Pallas kernel for TPUs, which skips blocks that the mask leaves empty."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from jaxllm.models.layers import KEPT
from jaxllm.models.ring import Kernel, Tokens, attend, merge

LANES = 128  # the kernel's tiles: lengths are multiples of it, and heads are filled up to it
BLOCK = 512  # queries and keys a block, at most


def why_not(c, length, devices=1):
    """Returns why the kernel cannot run a model on rows of `length` tokens, or "".

    Args:
        c: the model's configuration.
        length: tokens in a row.
        devices: how many share a row.
    """
    if length % (LANES * (2 * devices if devices > 1 else 1)):
        shared = f" x 2 x {devices} devices" if devices > 1 else ""
        return f"config.data.length={length} is no multiple of {LANES}{shared}"
    if c.window_first:
        return f"its masks do not know where documents start, as window_first={c.window_first} does"
    if devices > 1 and c.window:
        return f"window={c.window} does not go with mesh.seq={devices}"
    return ""


def fill_up(*heads):
    """Widens heads [B, T, N, H] with zeros, which add nothing to scores, to a multiple of LANES."""
    room = -heads[0].shape[-1] % LANES
    return [jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, room))) if room else x for x in heads]


def block_sizes(length):
    """The largest blocks up to BLOCK that divide `length`, the same in all three passes."""
    size = next(n for n in range(min(BLOCK, length), 0, -LANES) if length % n == 0)
    return kernels.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )


def _make(one, heads, cap, interpret, **options):
    """The kernel of a mask that all heads share."""
    return kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([one] * heads),
        block_sizes=block_sizes(one.shape[0]),
        attn_logits_soft_cap=cap or None,
        interpret=interpret,
        **options,
    )


def splash(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, cap, first=0, interpret=False):
    """Attention by blocks; the scores are never in memory. For rows in order, without a cache.

    Args:
        q_BTNH, k_BSKH, v_BSKH: with T = S, a multiple of 128.
        rows: `attention.Rows`; its indices must be those of whole rows in order.
        scale, window, cap: as in `attention.reference`; `first` is not supported.
        interpret: runs the kernel as plain jax, for a CPU.
    """
    if first:
        raise ValueError(f"first={first} is not supported by splash attention.")
    T, N, H = q_BTNH.shape[1:]
    q_BTNH, k_BSKH, v_BSKH = fill_up(q_BTNH, k_BSKH, v_BSKH)
    one = masks.LocalMask((T, T), (window - 1, 0), 0) if window else masks.CausalMask((T, T))
    kernel = _make(one, N, cap, interpret, residual_checkpoint_name=KEPT)
    swap = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    ids = kernels.SegmentIds(rows.query_segment_BT, rows.key_segment_BS)
    y_BTNH = swap(jax.vmap(kernel)(swap(q_BTNH * scale), swap(k_BSKH), swap(v_BSKH), ids))
    return y_BTNH[..., :H]


def ring_splash(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, cap, first=0, interpret=False):
    """Splash attention in a ring over `seq`; arguments as in `splash`, T a multiple of 256.

    A device has an early and a late part of the row. Of another's keys its late queries see the
    early ones, and besides either its early queries see the early ones or its late queries the
    late ones: two whole products in every round, without a mask.
    """
    if window:
        raise ValueError(f"window={window} does not go with a ring of splash attention.")
    options = dict(cap=cap, interpret=interpret)
    kernel = Kernel(
        functools.partial(_ring_forward, **options), functools.partial(_ring_backward, **options)
    )
    H = q_BTNH.shape[-1]
    return attend(*fill_up(q_BTNH * scale, k_BSKH, v_BSKH), rows, kernel)[..., :H]


def _half(tokens, late):
    """The early or late half of Tokens; `late` may be traced."""
    size = tokens.index_BT.shape[1] // 2

    def cut(x, axis):
        return jax.lax.dynamic_slice_in_dim(x, late * size, size, axis=axis)

    arrays = tuple(cut(x, 2) for x in tokens.arrays)
    return Tokens(arrays, None, cut(tokens.segment_BT, 1), None)


def _pairs(queries, keys, own):
    """Halves that see each other: [(late queries, late keys, causal)]."""
    if own:
        return [(0, 0, True), (1, 1, True), (1, 0, False)]
    from_later = jnp.int32(keys.index_BT[0, 0] > queries.index_BT[0, 0])
    return [(1, 0, False), (from_later, from_later, False)]


def _mask(size, causal):
    return masks.CausalMask((size, size)) if causal else masks.FullMask((size, size))


def _ring_forward(queries, keys, own, *, cap, interpret):
    (q,), size = queries.arrays, queries.index_BT.shape[1] // 2
    shape = q.shape[0], q.shape[1], 2, size
    y = jnp.zeros((*shape, q.shape[3]), jnp.float32)
    partition = jnp.full(shape, -1e30, jnp.float32)
    for late, late_keys, causal in _pairs(queries, keys, own):
        some, more = _half(queries, late), _half(keys, late_keys)
        kernel = _make(_mask(size, causal), q.shape[1], cap, interpret, save_residuals=True)
        ids = kernels.SegmentIds(some.segment_BT, more.segment_BT)
        here, (weight,) = jax.vmap(kernel)(*some.arrays, *more.arrays, ids)
        at = functools.partial(jax.lax.dynamic_index_in_dim, index=late, axis=2, keepdims=False)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=late, axis=2)
        seen = merge((at(y), at(partition)), (here.astype(jnp.float32), weight))
        y, partition = put(y, seen[0]), put(partition, seen[1])
    return y.reshape(q.shape), partition.reshape(q.shape[:3])


def _ring_backward(queries, keys, own, *, cap, interpret):
    size = queries.index_BT.shape[1] // 2
    wholes = (queries.arrays[0], *keys.arrays)
    sums = [jnp.zeros((*x.shape[:2], 2, size, x.shape[3]), jnp.float32) for x in wholes]
    for late, late_keys, causal in _pairs(queries, keys, own):
        some, more = _half(queries, late), _half(keys, late_keys)
        kernel = _make(_mask(size, causal), wholes[0].shape[1], cap, interpret)

        def gradients(q, g, y, partition, k, v, ids, kernel=kernel):
            options = kernel.kwargs
            kept = (q, k, v, ids, None, y, partition, kernel.dq_mask_info, kernel.dkv_mask_info)
            names = (
                "save_residuals", "mask_value", "is_mqa", "block_sizes", "residual_checkpoint_name",
                "mask_function", "attn_logits_soft_cap", "interpret",
            )  # fmt: skip
            return kernels._splash_attention_bwd(*(options[n] for n in names), kept, g)[3:6]

        ids = kernels.SegmentIds(some.segment_BT, more.segment_BT)
        found = jax.vmap(gradients)(*some.arrays, *more.arrays, ids)
        for i, (x, half) in enumerate(zip(found, (late, late_keys, late_keys), strict=True)):
            at = dict(index=half, axis=2)
            before = jax.lax.dynamic_index_in_dim(sums[i], keepdims=False, **at)
            sums[i] = jax.lax.dynamic_update_index_in_dim(
                sums[i], before + x.astype(jnp.float32), **at
            )
    return tuple(x.reshape(like.shape) for x, like in zip(sums, wholes, strict=True))
