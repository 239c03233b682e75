"""Splash attention: jax's Pallas kernel for TPUs, which skips blocks that the mask leaves empty."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

LANES = 128  # the kernel's tiles: head widths and lengths are multiples of it
BLOCK = 512  # queries and keys a block, at most


def why_not(c, length):
    """Returns why the kernel cannot run a model on rows of `length` tokens, or ""."""
    if c.head_width % LANES:
        return f"head_width={c.head_width} is no multiple of {LANES}"
    if length % LANES:
        return f"config.data.length={length} is no multiple of {LANES}"
    return ""


def block_sizes(length, block=BLOCK):
    """The largest blocks up to `block` that divide `length`, the same in all three passes."""
    size = next(n for n in range(min(block, length), 0, -LANES) if length % n == 0)
    return kernel.BlockSizes(
        block_q=size,
        block_kv=size,
        block_kv_compute=size,
        block_q_dkv=size,
        block_kv_dkv=size,
        block_kv_dkv_compute=size,
        block_q_dq=size,
        block_kv_dq=size,
    )


def splash(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, cap, interpret=False):
    """Attention by blocks; the scores are never in memory. For rows in order, without a cache.

    Args:
        q_BTNH, k_BSKH, v_BSKH: with T = S, a multiple of 128, as is H.
        rows: `attention.Rows`; its indices must be those of whole rows in order.
        scale, window, cap: as in `attention.reference`.
        interpret: runs the kernel as plain jax, for a CPU.
    """

    def heads(segment_BT, q_BNTH, k_BKSH, v_BKSH):
        N, T = q_BNTH.shape[1:3]
        one = masks.LocalMask((T, T), (window - 1, 0), 0) if window else masks.CausalMask((T, T))
        attend = kernel.make_splash_mha_single_device(
            masks.MultiHeadMask([one] * N),
            block_sizes=block_sizes(T),
            attn_logits_soft_cap=cap or None,
            interpret=interpret,
        )
        ids = kernel.SegmentIds(segment_BT, segment_BT)
        return jax.vmap(attend)(q_BNTH, k_BKSH, v_BKSH, ids)

    swap = functools.partial(jnp.swapaxes, axis1=1, axis2=2)
    arrays = swap(q_BTNH * scale), swap(k_BSKH), swap(v_BSKH)
    return swap(heads(rows.key_segment_BS, *arrays))
