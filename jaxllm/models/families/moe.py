"""Mixtral and Switch: decoders whose MLPs are mixtures of experts.

Sources: arXiv:2401.04088; arXiv:2101.03961, table 9. Switch Transformers are encoder-decoders with
T5's relative positions; here their layers make a decoder with rotary ones.
"""

from jaxllm.models.families import llama
from jaxllm.models.families.llama import MISTRAL
from jaxllm.models.weights.names import OUT_IN, Entry

MIXTRAL = dict(MISTRAL, rope_base=1e6, experts=8, experts_per_token=2)

MIXTRAL_SIZES = {
    "8x7b": dict(layers=32, width=4096, heads=32, kv_heads=8, mlp_width=14336),
    "8x22b": dict(
        layers=56, width=6144, heads=48, kv_heads=8, head_width=128, mlp_width=16384,
        vocab=32768, positions=65536,
    ),
}  # fmt: skip


def expert(theirs, ours):
    """Entry of a matrix of each expert."""
    return Entry(f"{llama.LAYER}{theirs}.weight", (f"layers/moe/experts/{ours}/w",), OUT_IN)


MIXTRAL_NAMES = llama.names(
    *llama.NORMS,
    *llama.ATTENTION,
    Entry(f"{llama.LAYER}block_sparse_moe.gate.weight", ("layers/moe/router/w",), OUT_IN),
    expert("block_sparse_moe.experts.{expert}.w1", "gate"),
    expert("block_sparse_moe.experts.{expert}.w2", "down"),
    expert("block_sparse_moe.experts.{expert}.w3", "up"),
)

# Qwen3-MoE: Qwen 3 with experts in every layer (arXiv:2505.09388, table 2).
QWEN3_MOE = dict(
    norm="rms", norm_eps=1e-6, position="rope", rope_base=1e6, positions=40960, qk_norm=True,
    head_width=128, activation="silu", gated=True, vocab=151936, experts=128, experts_per_token=8,
    balance_loss=0.001, router_z_loss=0.0,
)  # fmt: skip

QWEN3_MOE_SIZES = {
    "30b-a3b": dict(
        layers=48, width=2048, heads=32, kv_heads=4, mlp_width=6144, expert_width=768,
    ),
    "235b-a22b": dict(
        layers=94, width=4096, heads=64, kv_heads=4, mlp_width=12288, expert_width=1536,
    ),
}  # fmt: skip

QWEN3_MOE_NAMES = llama.names(
    *llama.NORMS,
    *llama.ATTENTION,
    *llama.MLP,
    Entry(f"{llama.LAYER}mlp.gate.weight", ("layers/moe/router/w",), OUT_IN),
    expert("mlp.experts.{expert}.gate_proj", "gate"),
    expert("mlp.experts.{expert}.up_proj", "up"),
    expert("mlp.experts.{expert}.down_proj", "down"),
)

SWITCH = dict(
    norm="rms", norm_eps=1e-6, position="rope", activation="relu", gated=False, tied=True,
    vocab=32128, positions=2048, experts_per_token=1, router_norm=False, moe_every=2,
    capacity=1.25, balance_loss=0.01, router_z_loss=0.0, experts=8,
)  # fmt: skip

SWITCH_SIZES = {
    "base-8": dict(layers=12, width=768, heads=12, mlp_width=3072, experts=8),
    "base-128": dict(layers=12, width=768, heads=12, mlp_width=3072, experts=128),
    "large-128": dict(layers=24, width=1024, heads=16, mlp_width=4096, experts=128),
    "c-2048": dict(
        layers=15, width=2080, heads=32, head_width=64, mlp_width=6144, experts=2048, moe_every=1
    ),
}
