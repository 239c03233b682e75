"""T5 1.0 and 1.1 (which Flan-T5 is), BART: encoder-decoders.

Sources: arXiv:1910.10683, 2002.05202 (1.1's gated MLP), 2210.11416, 1910.13461.
"""

T5 = dict(
    assembly="encoder_decoder",
    norm="rms",
    norm_eps=1e-6,
    position="buckets",
    distance_buckets=32,
    distance_max=128,
    positions=512,
    query_scale=1.0,
    activation="relu",
    gated=False,
    tied=True,
    head_scale=True,
    vocab=32128,
    head_width=64,
)


def _size(layers, width, heads, mlp_width, **more):
    return dict(layers=layers, width=width, heads=heads, mlp_width=mlp_width, **more)


T5_SIZES = {
    "small": _size(6, 512, 8, 2048),
    "base": _size(12, 768, 12, 3072),
    "large": _size(24, 1024, 16, 4096),
    "3b": _size(24, 1024, 32, 16384, head_width=128),
    "11b": _size(24, 1024, 128, 65536, head_width=128),
}

T5V1_1 = dict(T5, activation="gelu_tanh", gated=True, tied=False, head_scale=False)

T5V1_1_SIZES = {
    "small": _size(8, 512, 6, 1024),
    "base": _size(12, 768, 12, 2048),
    "large": _size(24, 1024, 16, 2816),
    "xl": _size(24, 2048, 32, 5120),
    "xxl": _size(24, 4096, 64, 10240),
}

BART = dict(
    assembly="encoder_decoder",
    norm="layer",
    norm_bias=True,
    norm_eps=1e-5,
    norm_place="post",
    position="learned",
    positions=1024,
    position_offset=2,
    embed_norm=True,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    activation="gelu",
    gated=False,
    tied=True,
    head_bias=True,
    vocab=50265,
)

BART_SIZES = {
    "base": _size(6, 768, 12, 3072),
    "large": _size(12, 1024, 16, 4096),
}
