"""From a Hugging Face config.json to fields of ModelConfig."""

from jaxllm.config import ConfigError, near
from jaxllm.models.families import hf_fields, hf_rope, hf_stacks

# Names of a field, the first that a file has: {ours: (theirs, …)}. Those without a default must be.
_NEEDED = {
    "layers": ("num_hidden_layers", "n_layer"),
    "width": ("hidden_size", "n_embd"),
    "heads": ("num_attention_heads", "n_head"),
    "vocab": ("vocab_size",),
}
_OPTIONAL = {
    "mlp_width": ("intermediate_size", "n_inner"),
    "kv_heads": ("num_key_value_heads",),
    "head_width": ("head_dim",),
    "positions": ("max_position_embeddings", "n_positions"),
    "norm_eps": ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    "attention_softcap": ("attn_logit_softcapping",),
    "logit_softcap": ("final_logit_softcapping",),
    "experts": ("num_local_experts", "num_experts"),
    "experts_per_token": ("num_experts_per_tok",),
    "expert_width": ("moe_intermediate_size",),
    "router_norm": ("norm_topk_prob",),
    "tied": ("tie_word_embeddings",),
}


def _class(eps=1e-6, base=10_000.0, tied=False, **more):
    return dict(norm_eps=eps, rope_base=base, tied=tied, **more)


# model_type: (family, what the class takes where the file says nothing).
TYPES = {
    "gpt2": ("gpt2", dict(tied=True, norm_eps=1e-5, positions=1024)),
    "llama": ("llama", _class(positions=2048)),
    "mistral": ("mistral", _class(positions=131072, window=4096)),
    "mixtral": ("mixtral", _class(1e-5, 1e6, positions=131072)),
    "qwen2": ("qwen2", _class(positions=32768)),
    "qwen3": ("qwen3", _class(positions=32768, head_width=128)),
    "qwen3_moe": ("qwen3_moe", _class(positions=32768, router_norm=False)),
    "gemma": ("gemma", _class(tied=True, head_width=256, positions=8192)),
    "gemma2": ("gemma2", _class(tied=True, head_width=256, positions=8192)),
    "gemma3_text": (
        "gemma3",
        _class(1e-6, 1e6, True, rope_local_base=1e4, head_width=256, positions=131072),
    ),
    "phi": ("phi2", _class(1e-5, rope_fraction=0.5, positions=2048)),
    "phi3": ("phi3", _class(1e-5, positions=4096)),
    "olmo2": ("olmo2", _class(1e-5, positions=2048)),
}

# Fields that are known with these values alone.
_ONLY = {
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    "qk_layernorm": (False,),
    "use_bidirectional_attention": (False,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "decoder_sparse_step": (1,),
    "mlp_only_layers": ([],),
}
_READ = frozenset(
    {
        *("attention_bias", "mlp_bias", "use_sliding_window", "sliding_window"),
        *("sliding_window_pattern", "layer_types", "query_pre_attn_scalar"),
    }
)


def from_hf(data, strict=False):
    """Reads a config.json.

    Args:
        data: its object.
        strict: whether a field that is unknown, or cannot be followed, is an error.

    Returns:
        ({"family", "size" and fields of ModelConfig}, [a line for each field that has no
        counterpart here and changes no shape]).

    Raises:
        ConfigError: another architecture, or a field that is missing or of the wrong type.
    """
    data = text_part(data)
    kind, known = data.get("model_type"), [*TYPES, *hf_stacks.READERS]
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(
            f"model_type={kind!r} has no counterpart here.{near(str(kind), known)} "
            f"Known: {', '.join(known)}."
        )
    if kind in hf_stacks.READERS:
        return hf_stacks.read(data, strict), []
    if strict:
        read = {name for names in (*_NEEDED.values(), *_OPTIONAL.values()) for name in names}
        hf_fields.check(kind, data, read | _READ | hf_rope.FIELDS, _ONLY)
    family, defaults = TYPES[kind]
    values = {"family": family, "size": "", **defaults}
    for ours, theirs in {**_NEEDED, **_OPTIONAL}.items():
        found = [(name, data[name]) for name in theirs if data.get(name) is not None]
        if found:
            values[ours] = hf_fields.number(*found[0])
        elif ours in _NEEDED:
            raise ConfigError(f"config.json has no {theirs[0]!r}.")
    for ours in ("attention_softcap", "logit_softcap"):
        if set(_OPTIONAL[ours]) & data.keys():
            values.setdefault(ours, 0.0)  # null is none, not the family's
    if "mlp_width" not in values:
        if strict and kind != "gpt2":
            raise ConfigError("config.json has no 'intermediate_size'.")
        values["mlp_width"] = 4 * values["width"]
    values |= _biases(kind, data) | _windows(kind, data, values["layers"])
    activation = data.get("hidden_activation") or data.get("hidden_act")
    activation = activation or data.get("activation_function")
    if activation:
        values["activation"] = hf_fields.activation(activation)
    if data.get("query_pre_attn_scalar"):
        scalar = data["query_pre_attn_scalar"]
        values["query_scale"] = hf_fields.number("query_pre_attn_scalar", scalar) ** -0.5
    stretch, left_out = hf_rope.read(kind, data, values)
    if strict and left_out:
        raise ConfigError(f"config.json: {left_out[0]}; the model would be another one.")
    return values | stretch, left_out


def text_part(data):
    """The config of the model of text in one of text and pictures (Gemma 3); else the whole."""
    if data.get("model_type") == "gemma3" and isinstance(data.get("text_config"), dict):
        return {**data["text_config"], "model_type": "gemma3_text"}
    return data | {"model_type": "gemma3_text"} if data.get("model_type") == "gemma3" else data


def _biases(kind, data):
    """Biases that a file may switch on."""
    found = {}
    if data.get("attention_bias") and kind not in ("gpt2", "phi", "phi3", "qwen2", "mixtral"):
        found |= dict(qkv_bias=True, out_bias=True)
    if data.get("mlp_bias") and kind == "llama":
        found["mlp_bias"] = True
    return found


def _windows(kind, data, layers):
    """Sliding windows, and which layers have them."""
    if kind in ("gpt2", "phi", "llama", "olmo2", "gemma"):
        return {}
    if kind.startswith("qwen") and not data.get("use_sliding_window"):
        return {"window": 0}
    found = {}
    if "sliding_window" in data:
        found["window"] = data["sliding_window"] or 0
    if data.get("layer_types"):
        found |= _pattern(data["layer_types"], layers)
    elif data.get("sliding_window_pattern"):
        found["global_every"] = data["sliding_window_pattern"]
    elif kind in ("qwen2", "qwen3"):  # the first so many layers see all
        first = data.get("max_window_layers", 28)
        kinds = ["full_attention" if i < first else "sliding_attention" for i in range(layers)]
        found |= _pattern(kinds, layers)
    return found


def _pattern(kinds, layers):
    """Which layers are global, from a list with the kind of each."""
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise ConfigError(f"config.json: layer_types must be a list of {layers}, one a layer.")
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        odd = next(k for k in kinds if k not in ("full_attention", "sliding_attention"))
        raise ConfigError(f"config.json: layer_types has {odd!r}, which has no counterpart here.")
    whole = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    if len(whole) == layers:
        return {"window": 0}
    # Without a global layer any number above that of the layers says so, 0 the plainest.
    every = whole[0] + 1 if whole else 0
    if whole != ([i for i in range(layers) if i % every == every - 1] if every else []):
        raise ConfigError(
            f"config.json: layer_types has full attention in layers {str(whole)[:80]}; known here "
            "are windows in all layers, or in all but every n-th."
        )
    return {"global_every": every}
