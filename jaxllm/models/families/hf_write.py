"""From a ModelConfig to the config.json that transformers loads."""

from jaxllm.config import ConfigError
from jaxllm.models.config import differences
from jaxllm.models.families import hf, hf_rope, hf_stacks, model_config

# Class names, by model_type.
ARCHITECTURES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
}
_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
_GPT2 = dict(
    layers="n_layer", width="n_embd", heads="n_head", positions="n_positions", mlp_width="n_inner",
    norm_eps="layer_norm_epsilon", vocab="vocab_size", tied="tie_word_embeddings",
)  # fmt: skip
_COMMON = dict(
    layers="num_hidden_layers", width="hidden_size", heads="num_attention_heads",
    kv_heads="num_key_value_heads", mlp_width="intermediate_size", vocab="vocab_size",
    positions="max_position_embeddings", tied="tie_word_embeddings",
)  # fmt: skip
_WINDOWED = ("mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma2", "gemma3_text", "phi3")


def to_hf(c, family):
    """Returns the config.json's object of a model.

    Args:
        c: ModelConfig.
        family: of `FAMILIES`.

    Raises:
        ConfigError: files of the family cannot say what the model is.
    """
    kinds = {ours: kind for kind, (ours, _) in hf.TYPES.items()}
    known = [*kinds, *hf_stacks.ARCHITECTURES]
    if family not in known:
        raise ConfigError(
            f"config.model.family={family!r}: Hugging Face has no such model. Known: "
            f"{', '.join(known)}."
        )
    if family in hf_stacks.ARCHITECTURES:
        fields = hf_stacks.write(c, family)
        _check(c, fields)
        return fields
    kind = kinds[family]
    fields = {"model_type": kind, "architectures": [ARCHITECTURES[kind]]}
    # Else transformers takes those of the family's first model, which may be no tokens here.
    fields |= dict(bos_token_id=None, eos_token_id=None, pad_token_id=None)
    if kind == "gpt2":
        fields |= {theirs: getattr(c, ours) for ours, theirs in _GPT2.items()}
        fields["activation_function"] = _ACTIVATIONS[c.activation]
    else:
        fields |= {theirs: getattr(c, ours) for ours, theirs in _COMMON.items()}
        fields |= _particular(kind, c) | hf_rope.write(kind, c)
    _check(c, fields)
    return fields


def _particular(kind, c):
    """Fields that not all families have."""
    act = "hidden_activation" if kind in ("gemma2", "gemma3_text") else "hidden_act"
    found = {act: _ACTIVATIONS[c.activation]}
    found["layer_norm_eps" if kind == "phi" else "rms_norm_eps"] = c.norm_eps
    if kind not in ("phi", "phi3", "qwen2"):
        found["head_dim"] = c.head_width
    if kind not in ("phi", "phi3", "qwen2", "mixtral", "mistral"):
        found["attention_bias"] = c.qkv_bias
    if kind == "llama":
        found["mlp_bias"] = c.mlp_bias
    if kind in _WINDOWED:
        found["sliding_window"] = c.window or None
    if kind.startswith("qwen"):
        found["use_sliding_window"] = bool(c.window)
    if kind in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        names = {True: "sliding_attention", False: "full_attention"}
        found["layer_types"] = [names[c.is_windowed(i)] for i in range(c.layers)]
    if kind in ("gemma2", "gemma3_text"):
        found["query_pre_attn_scalar"] = c.query_scale**-2
        found["attn_logit_softcapping"] = c.attention_softcap or None
        found["final_logit_softcapping"] = c.logit_softcap or None
        scalar = round(found["query_pre_attn_scalar"])  # a whole number there
        if abs(scalar**-0.5 / c.query_scale - 1) < 1e-6:
            found["query_pre_attn_scalar"] = scalar
    if kind == "mixtral":
        found |= dict(num_local_experts=c.experts, num_experts_per_tok=c.experts_per_token)
        found["router_aux_loss_coef"] = c.balance_loss
    if kind == "qwen3_moe":
        found |= dict(num_experts=c.experts, num_experts_per_tok=c.experts_per_token)
        found |= dict(moe_intermediate_size=c.expert_width, norm_topk_prob=c.router_norm)
        found |= dict(decoder_sparse_step=1, mlp_only_layers=[])
        found["router_aux_loss_coef"] = c.balance_loss
    return found


def _check(c, fields):
    """Raises ConfigError unless the fields, read again, give the same model."""
    values, _ = hf.from_hf(fields, strict=True)
    again = model_config(values, vocab=c.vocab, length=1)
    lines = [
        f"    config.model.{name}: {ours!r} here, {theirs!r} in such a file"
        for name, ours, theirs in differences(c, again)
    ]
    if lines:
        raise ConfigError(
            f"model_type={fields['model_type']!r} cannot say what this model is:\n"
            + "\n".join(lines)
            + "\n  Export it as another family that can (--family=…), or train it without these."
        )
