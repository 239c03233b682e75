"""Exact FLOPs of a decoder. A multiply and an add are two FLOPs.

Only matrix products count, as everywhere in the literature: norms, activations, softmax, biases
and the embedding look-up do not. The backward pass is twice the forward, and what remat computes
again is not counted, so that utilisation means useful work.

Two conventions for attention's products of queries with keys and of weights with values:

- "palm": every query meets all T keys, in every layer, masked or not. Forward and backward are
  then 6N + 12·L·N·H·T a token (heads N of width H), with N the parameters that multiply: hidden
  matrices and output head, tied or not, but no norms, biases, look-up tables or positions.
  Chowdhery et al. 2022 (arXiv:2204.02311), appendix B.
- "causal": only keys that a query may see, T / 2 on average, and W - W² / 2T in a layer with a
  window of W < T. What kernels that skip the masked half are measured by.
"""

CONVENTIONS = ("palm", "causal")


def matmul_params(c):
    """Parameters that multiply a token: hidden matrices and output head; of experts, those chosen.

    Args:
        c: resolved `models.config.ModelConfig`, or an object with its fields `vocab`, `layers`,
            `width`, `mlp_width`, `heads`, `kv_heads`, `head_width`, `gated`, and those of experts.
    """
    attention = c.width * c.head_width * (2 * c.heads + 2 * c.kv_heads)
    matrices = 3 if c.gated else 2
    mlp = c.width * c.mlp_width * matrices
    sparse = c.layers // c.moe_every if c.experts else 0
    chosen = c.experts_per_token + c.shared_experts
    experts = c.width * (c.expert_width * matrices * chosen + c.experts)
    mlps = (c.layers - sparse) * mlp + sparse * experts
    return c.layers * attention + mlps + c.vocab * c.width


def keys_seen(length, window=0):
    """Mean number of keys a query may see under a causal mask, in rows of `length` tokens.

    Args:
        length: tokens in a row.
        window: keys a query sees at most; 0 for all.
    """
    window = min(window, length) if window else length
    return window - window * window / (2 * length)


def attention_flops_per_token(c, length, convention="palm"):
    """Forward FLOPs a token of query-key and weight-value products, over all layers.

    Args:
        c: resolved ModelConfig; also `window` and `is_windowed(layer)` for "causal".
        length: tokens in a row.
        convention: "palm" or "causal".

    Raises:
        ValueError: unknown convention.
    """
    if convention == "palm":
        keys = c.layers * length
    elif convention == "causal":
        windows = [c.window if c.is_windowed(layer) else 0 for layer in range(c.layers)]
        keys = sum(keys_seen(length, window) for window in windows)
    else:
        raise ValueError(f"convention={convention!r} is unknown. Known: {', '.join(CONVENTIONS)}.")
    return 4 * c.heads * c.head_width * keys


def forward_flops_per_token(c, length, convention="palm"):
    """FLOPs of the forward pass a token; arguments and errors as `attention_flops_per_token`."""
    return 2 * matmul_params(c) + attention_flops_per_token(c, length, convention)


def train_flops_per_token(c, length, convention="palm"):
    """FLOPs of forward and backward a token; arguments and errors as for the forward pass."""
    return 3 * forward_flops_per_token(c, length, convention)


def utilisation(tokens_per_s, flops_per_token, peak_flops_per_s):
    """Model FLOPs utilisation, from 0 to 1, of devices with `peak_flops_per_s` together."""
    return tokens_per_s * flops_per_token / peak_flops_per_s
