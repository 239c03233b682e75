"""GPT-2 (Radford et al. 2019): learned positions, layer norm, GELU, biases, tied."""

GPT2 = dict(
    vocab=50257,
    positions=1024,
    norm="layer",
    norm_bias=True,
    norm_eps=1e-5,
    position="learned",
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    activation="gelu_tanh",
    gated=False,
    tied=True,
)


def _size(layers, width, heads):
    return dict(layers=layers, width=width, heads=heads, mlp_width=4 * width)


GPT2_SIZES = {
    "124m": _size(12, 768, 12),
    "medium": _size(24, 1024, 16),
    "large": _size(36, 1280, 20),
    "xl": _size(48, 1600, 25),
}
