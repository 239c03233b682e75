"""Gemma 1, 2, 3 (text): GeGLU, norms that multiply by 1 + w, scaled tied embeddings.

Sources: arXiv:2403.08295, 2408.00118, 2503.19786.
"""

from jaxllm.models.families import llama

GEMMA = dict(
    norm="rms",
    norm_eps=1e-6,
    norm_plus_one=True,
    position="rope",
    positions=8192,
    activation="gelu_tanh",
    gated=True,
    tied=True,
    embed_scale=True,
    head_width=256,
    vocab=256000,
)


def _size(layers, width, heads, kv_heads, mlp_width, **more):
    return dict(
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, mlp_width=mlp_width, **more
    )


GEMMA_SIZES = {
    "2b": _size(18, 2048, 8, 1, 16384),
    "7b": _size(28, 3072, 16, 16, 24576),
}

GEMMA2 = dict(
    GEMMA,
    norm_place="around",
    attention_softcap=50.0,
    logit_softcap=30.0,
    window=4096,
    global_every=2,
)

GEMMA2_SIZES = {
    "2b": _size(26, 2304, 8, 4, 9216),
    "9b": _size(42, 3584, 16, 8, 14336),
    "27b": _size(46, 4608, 32, 16, 36864, head_width=128, query_scale=144**-0.5),
}

GEMMA3 = dict(
    GEMMA,
    norm_place="around",
    qk_norm=True,
    global_every=6,
    rope_base=1e6,
    rope_local_base=1e4,
    vocab=262208,
)


def _gemma3(*size, **more):
    """The sizes with 131,072 positions: global layers have positions divided by 8."""
    return _size(
        *size, window=1024, positions=131072, rope_scaling="linear", rope_factor=8.0, **more
    )


GEMMA3_SIZES = {
    "1b": _size(26, 1152, 4, 1, 6912, window=512, positions=32768, vocab=262144),
    "4b": _gemma3(34, 2560, 8, 4, 10240),
    "12b": _gemma3(48, 3840, 16, 8, 15360),
    "27b": _gemma3(62, 5376, 32, 16, 21504, head_width=128, query_scale=168**-0.5),
}

# Griffin (arXiv:2402.19427) as RecurrentGemma has it: of three layers two recur, one looks back
# over a window.
GRIFFIN = dict(
    GEMMA,
    attention_every=3,
    window=2048,
    rope_fraction=0.5,
    out_bias=True,
    mlp_bias=True,
    logit_softcap=30.0,
    kv_heads=1,
)

GRIFFIN_SIZES = {
    "2b": _size(26, 2560, 10, 1, 7680),
    "9b": _size(38, 4096, 16, 1, 12288),
}

GEMMA_NAMES = llama.LLAMA_NAMES

_NAMES = llama.names(
    *llama.norm("input_layernorm", "attn_norm"),
    *llama.norm("post_attention_layernorm", "attn_out_norm"),
    *llama.norm("pre_feedforward_layernorm", "mlp_norm"),
    *llama.norm("post_feedforward_layernorm", "mlp_out_norm"),
    *llama.ATTENTION,
    *llama.MLP,
)
GEMMA2_NAMES = _NAMES
# Larger files of Gemma 3 hold a model of pictures besides, which is left where it is.
GEMMA3_NAMES = _NAMES._replace(
    prefixes=("model.", "language_model.model.", "model.language_model.", ""),
    ignored=(*_NAMES.ignored, r"(model\.)?(vision_tower|multi_modal_projector)\..*"),
    copies=(*_NAMES.copies, ("language_model.lm_head.weight", "{prefix}embed_tokens.weight")),
)
