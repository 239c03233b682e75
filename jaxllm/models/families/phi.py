"""Phi-2 (parallel blocks, partial RoPE, biases) and Phi-3 (as Llama, windowed).

Sources: Javaheripi et al. 2023 (Phi-2), arXiv:2404.14219.
"""

from jaxllm.models.families import llama
from jaxllm.models.weights import names
from jaxllm.models.weights.names import SAME, Entry, Names

PHI2 = dict(
    norm="layer",
    norm_bias=True,
    norm_eps=1e-5,
    position="rope",
    positions=2048,
    rope_fraction=0.4,
    qkv_bias=True,
    out_bias=True,
    mlp_bias=True,
    head_bias=True,
    activation="gelu_tanh",
    gated=False,
    parallel=True,
    vocab=51200,
)

PHI2_SIZES = {
    "1.3b": dict(layers=24, width=2048, heads=32, mlp_width=8192, rope_fraction=0.5),  # Phi-1.5
    "2.7b": dict(layers=32, width=2560, heads=32, mlp_width=10240),
}

PHI3 = dict(
    norm="rms",
    norm_eps=1e-5,
    position="rope",
    positions=4096,
    activation="silu",
    gated=True,
    vocab=32064,
)

PHI3_SIZES = {
    "mini": dict(layers=32, width=3072, heads=32, mlp_width=8192, window=2047),
    # Phi-3.5-mini's 131,072 positions need per-dimension rope factors, which are weights of
    # a kind: here it keeps the 4,096 positions it was trained on.
    "3.5-mini": dict(layers=32, width=3072, heads=32, mlp_width=8192),
    "medium": dict(layers=40, width=5120, heads=40, kv_heads=10, mlp_width=17920, window=2047),
}

PHI2_NAMES = Names(
    (
        Entry("{prefix}embed_tokens.weight", ("embed",), SAME),
        *llama.norm("input_layernorm", "attn_norm"),
        *llama.linear("self_attn.q_proj", "attn/q"),
        *llama.linear("self_attn.k_proj", "attn/k"),
        *llama.linear("self_attn.v_proj", "attn/v"),
        *llama.linear("self_attn.dense", "attn/o"),
        *llama.linear("mlp.fc1", "mlp/up"),
        *llama.linear("mlp.fc2", "mlp/down"),
        *names.norm("{prefix}final_layernorm", "final_norm"),
        *names.linear("lm_head", "head"),
    ),
    prefixes=("model.",),
)

PHI3_NAMES = llama.names(
    *llama.NORMS,
    *llama.linear("self_attn.qkv_proj", "attn/q", "attn/k", "attn/v"),
    *llama.linear("self_attn.o_proj", "attn/o"),
    *llama.linear("mlp.gate_up_proj", "mlp/gate", "mlp/up"),
    *llama.linear("mlp.down_proj", "mlp/down"),
)
