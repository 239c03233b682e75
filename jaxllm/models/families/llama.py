"""Llama 1, 2, 3, Mistral, SmolLM2: RMS norm, RoPE, SwiGLU, no biases.

Sources: arXiv:2302.13971, 2307.09288, 2407.21783, 2310.06825, 2502.02737.
"""

from jaxllm.models.weights.names import FLAT, OUT_IN, SAME, Entry, Names
from jaxllm.models.weights.names import linear as of_matrix
from jaxllm.models.weights.names import norm as of_norm

LLAMA = dict(norm="rms", norm_eps=1e-6, position="rope", activation="silu", gated=True)


def _size(layers, width, heads, mlp_width, kv_heads=0, **more):
    return dict(
        layers=layers, width=width, heads=heads, mlp_width=mlp_width, kv_heads=kv_heads, **more
    )


def _llama1(*size):
    return _size(*size, vocab=32000, positions=2048)


def _llama2(*size):
    return _size(*size, vocab=32000, positions=4096, norm_eps=1e-5)


def _llama3(*size, positions=131072, factor=8.0, **more):
    """Llama 3.1 and 3.2: RoPE stretched from 8,192 positions."""
    return _size(
        *size,
        vocab=128256,
        positions=positions,
        norm_eps=1e-5,
        rope_base=500_000.0,
        rope_scaling="llama3",
        rope_factor=factor,
        **more,
    )


LLAMA_SIZES = {
    "7b": _llama2(32, 4096, 32, 11008),
    "13b": _llama2(40, 5120, 40, 13824),
    "70b": _llama2(80, 8192, 64, 28672, 8),
    "1-7b": _llama1(32, 4096, 32, 11008),
    "1-13b": _llama1(40, 5120, 40, 13824),
    "1-33b": _llama1(60, 6656, 52, 17920),
    "1-65b": _llama1(80, 8192, 64, 22016),
    "3-8b": {
        **_llama3(32, 4096, 32, 14336, 8, positions=8192),
        **dict(rope_scaling="none", rope_factor=1.0),
    },
    "3-70b": {
        **_llama3(80, 8192, 64, 28672, 8, positions=8192),
        **dict(rope_scaling="none", rope_factor=1.0),
    },
    "3.1-8b": _llama3(32, 4096, 32, 14336, 8),
    "3.1-70b": _llama3(80, 8192, 64, 28672, 8),
    "3.1-405b": _llama3(126, 16384, 128, 53248, 8),
    "3.2-1b": _llama3(16, 2048, 32, 8192, 8, factor=32.0, tied=True),
    "3.2-3b": _llama3(28, 3072, 24, 8192, 8, factor=32.0, tied=True),
    "smollm2-135m": _size(
        30, 576, 9, 1536, 3, vocab=49152, positions=8192, rope_base=1e5, norm_eps=1e-5, tied=True
    ),
    "smollm2-360m": _size(
        32, 960, 15, 2560, 5, vocab=49152, positions=8192, rope_base=1e5, norm_eps=1e-5, tied=True
    ),
    "smollm2-1.7b": _size(
        24, 2048, 32, 8192, vocab=49152, positions=8192, rope_base=1.3e5, norm_eps=1e-5, tied=True
    ),
}

LAYER, OURS = "{prefix}layers.{layer}.", "layers/"


def linear(theirs, *ours):
    """Entries of a matrix of each layer and of its bias, where there is one."""
    return of_matrix(LAYER + theirs, *(OURS + path for path in ours))


def norm(theirs, ours):
    """Entries of a norm of each layer, whose bias some have."""
    return of_norm(LAYER + theirs, OURS + ours)


# Queries, keys and values, the output, and the norms of queries and keys that some have.
ATTENTION = (
    *linear("self_attn.q_proj", "attn/q"),
    *linear("self_attn.k_proj", "attn/k"),
    *linear("self_attn.v_proj", "attn/v"),
    *linear("self_attn.o_proj", "attn/o"),
    *norm("self_attn.q_norm", "attn/q_norm"),
    *norm("self_attn.k_norm", "attn/k_norm"),
)
MLP = (
    *linear("mlp.gate_proj", "mlp/gate"),
    *linear("mlp.up_proj", "mlp/up"),
    *linear("mlp.down_proj", "mlp/down"),
)
NORMS = (
    *norm("input_layernorm", "attn_norm"),
    *norm("post_attention_layernorm", "mlp_norm"),
)
ENDS = (
    Entry("{prefix}embed_tokens.weight", ("embed",), SAME),
    Entry("{prefix}norm.weight", ("final_norm/scale",), FLAT),
    Entry("lm_head.weight", ("head/w",), OUT_IN),
)


def names(*entries):
    """The table of a family whose files are laid out as Llama's."""
    return Names(
        (*ENDS, *entries),
        prefixes=("model.", ""),
        copies=(("lm_head.weight", "{prefix}embed_tokens.weight"),),
        ignored=(r".*rotary_emb\.inv_freq",),  # in files of before 2023
    )


LLAMA_NAMES = names(*NORMS, *ATTENTION, *MLP)

MISTRAL = dict(LLAMA, norm_eps=1e-5, vocab=32000, positions=32768)

MISTRAL_SIZES = {
    "7b": _size(32, 4096, 32, 14336, 8, window=4096),  # v0.1
    "7b-v0.3": _size(32, 4096, 32, 14336, 8, vocab=32768, rope_base=1e6),
    "nemo-12b": _size(
        40, 5120, 32, 14336, 8, head_width=128, vocab=131072, positions=131072, rope_base=1e6
    ),
}
