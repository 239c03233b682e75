"""OLMo 2 (arXiv:2501.00656): norms after each part, queries and keys normed over all heads."""

from jaxllm.models.families import llama

OLMO2 = dict(
    norm="rms",
    norm_eps=1e-6,
    norm_place="out",
    position="rope",
    rope_base=500_000.0,
    positions=4096,
    qk_norm_whole=True,
    activation="silu",
    gated=True,
    vocab=100352,
)

OLMO2_SIZES = {
    "1b": dict(layers=16, width=2048, heads=16, mlp_width=8192),
    "7b": dict(layers=32, width=4096, heads=32, mlp_width=11008),
    "13b": dict(layers=40, width=5120, heads=40, mlp_width=13824),
    "32b": dict(layers=64, width=5120, heads=40, kv_heads=8, mlp_width=27648),
}

OLMO2_NAMES = llama.names(
    *llama.norm("post_attention_layernorm", "attn_out_norm"),
    *llama.norm("post_feedforward_layernorm", "mlp_out_norm"),
    *llama.ATTENTION,
    *llama.MLP,
)
