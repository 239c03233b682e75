"""GPT-2 (Radford et al. 2019): learned positions, layer norm, GELU, biases, tied."""

from jaxllm.models.weights.names import IN_OUT, OUT_IN, SAME, Entry, Names, linear, norm

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

_LAYER = "{prefix}h.{layer}."


def _conv1d(theirs, *ours):
    return linear(_LAYER + theirs, *(f"layers/{path}" for path in ours), layout=IN_OUT)


GPT2_NAMES = Names(
    (
        Entry("{prefix}wte.weight", ("embed",), SAME),
        Entry("{prefix}wpe.weight", ("position",), SAME),
        *norm("{prefix}h.{layer}.ln_1", "layers/attn_norm"),
        *_conv1d("attn.c_attn", "attn/q", "attn/k", "attn/v"),
        *_conv1d("attn.c_proj", "attn/o"),
        *norm("{prefix}h.{layer}.ln_2", "layers/mlp_norm"),
        *_conv1d("mlp.c_fc", "mlp/up"),
        *_conv1d("mlp.c_proj", "mlp/down"),
        *norm("{prefix}ln_f", "final_norm"),
        Entry("lm_head.weight", ("head/w",), OUT_IN),
    ),
    prefixes=("transformer.", ""),
    copies=(("lm_head.weight", "{prefix}wte.weight"),),
    ignored=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # masks
)
