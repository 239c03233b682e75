"""Qwen 2, 2.5 (biased queries, keys, values) and 3 (normed queries and keys).

Sources: arXiv:2407.10671, 2412.15115, 2505.09388.
"""

QWEN2 = dict(
    norm="rms",
    norm_eps=1e-6,
    position="rope",
    rope_base=1e6,
    positions=32768,
    qkv_bias=True,
    activation="silu",
    gated=True,
)


def _size(layers, width, heads, kv_heads, mlp_width, vocab=152064, tied=False, **more):
    return dict(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        mlp_width=mlp_width,
        vocab=vocab,
        tied=tied,
        **more,
    )


# Qwen 2 and 2.5 share the sizes that both have.
QWEN2_SIZES = {
    "0.5b": _size(24, 896, 14, 2, 4864, 151936, True),
    "1.5b": _size(28, 1536, 12, 2, 8960, 151936, True),
    "3b": _size(36, 2048, 16, 2, 11008, 151936, True),
    "7b": _size(28, 3584, 28, 4, 18944),
    "14b": _size(48, 5120, 40, 8, 13824),
    "32b": _size(64, 5120, 40, 8, 27648),
    "72b": _size(80, 8192, 64, 8, 29568),
}

QWEN3 = dict(QWEN2, qkv_bias=False, qk_norm=True, head_width=128, positions=40960, vocab=151936)

QWEN3_SIZES = {
    "0.6b": _size(28, 1024, 16, 8, 3072, 151936, True),
    "1.7b": _size(28, 2048, 16, 8, 6144, 151936, True),
    "4b": _size(36, 2560, 32, 8, 9728, 151936, True),
    "8b": _size(36, 4096, 32, 8, 12288, 151936),
    "14b": _size(40, 5120, 40, 8, 17408, 151936),
    "32b": _size(64, 5120, 64, 8, 25600, 151936),
}
