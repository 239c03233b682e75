"""From a Hugging Face config.json to fields of ModelConfig."""

from jaxllm.config import ConfigError, near

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}

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
    "rope_base": ("rope_theta",),
    "rope_local_base": ("rope_local_base_freq",),
    "rope_fraction": ("partial_rotary_factor",),
    "attention_softcap": ("attn_logit_softcapping",),
    "logit_softcap": ("final_logit_softcapping",),
    "experts": ("num_local_experts",),
    "experts_per_token": ("num_experts_per_tok",),
    "tied": ("tie_word_embeddings",),
}

# model_type: (family, what the class takes where the file says nothing).
TYPES = {
    "gpt2": ("gpt2", dict(tied=True)),
    "llama": ("llama", dict(tied=False)),
    "mistral": ("mistral", dict(tied=False)),
    "mixtral": ("mixtral", dict(tied=False)),
    "qwen2": ("qwen2", dict(tied=False)),
    "qwen3": ("qwen3", dict(tied=False)),
    "gemma": ("gemma", dict(tied=True, head_width=256)),
    "gemma2": ("gemma2", dict(tied=True, head_width=256)),
    "gemma3_text": ("gemma3", dict(tied=True, head_width=256)),
    "phi": ("phi2", dict(tied=False)),
    "phi3": ("phi3", dict(tied=False)),
}


def from_hf(data):
    """Reads a config.json.

    Args:
        data: its object.

    Returns:
        ({"family", "size" and fields of ModelConfig}, [a line for each field that has no
        counterpart here and changes no shape]).

    Raises:
        ConfigError: another architecture, or a field that is missing or of the wrong type.
    """
    data = data.get("text_config", data) if data.get("model_type") == "gemma3" else data
    kind = data.get("model_type")
    kind = "gemma3_text" if kind == "gemma3" else kind
    if kind not in TYPES:
        raise ConfigError(
            f"model_type={kind!r} has no counterpart here.{near(str(kind), TYPES)} "
            f"Known: {', '.join(TYPES)}."
        )
    family, defaults = TYPES[kind]
    values = {"family": family, "size": "", **defaults}
    for ours, theirs in {**_NEEDED, **_OPTIONAL}.items():
        found = [data[name] for name in theirs if data.get(name) is not None]
        if found:
            values[ours] = _number(theirs[0], found[0])
        elif ours in _NEEDED:
            raise ConfigError(f"config.json has no {theirs[0]!r}.")
    values.setdefault("mlp_width", 4 * values["width"])
    values |= _biases(kind, data) | _windows(kind, data)
    activation = data.get("hidden_activation") or data.get("hidden_act")
    activation = activation or data.get("activation_function")
    if activation:
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"hidden_act={activation!r} has no counterpart here.{near(activation, ACTIVATIONS)}"
            )
        values["activation"] = ACTIVATIONS[activation]
    if data.get("query_pre_attn_scalar"):
        values["query_scale"] = data["query_pre_attn_scalar"] ** -0.5
    scaling, left_out = _rope_scaling(data.get("rope_scaling") or {})
    return values | scaling, left_out


def _number(name, value):
    if isinstance(value, bool | int | float):
        return value
    raise ConfigError(f"config.json: {name}={value!r} must be a number.")


def _biases(kind, data):
    """Biases that a file may switch on."""
    found = {}
    if data.get("attention_bias") and kind in ("llama", "mistral"):
        found |= dict(qkv_bias=True, out_bias=True)
    if data.get("mlp_bias"):
        found["mlp_bias"] = True
    return found


def _windows(kind, data):
    """Sliding windows, and which layers have them."""
    if kind == "qwen2" and not data.get("use_sliding_window"):
        return {"window": 0}
    if "sliding_window" not in data:
        return {}
    found = {"window": data["sliding_window"] or 0}
    if data.get("sliding_window_pattern"):
        found["global_every"] = data["sliding_window_pattern"]
    return found


def _rope_scaling(scaling):
    """Stretched positions; what is not known here changes no shape."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return {}, []
    if kind == "linear":
        return dict(rope_scaling="linear", rope_factor=float(scaling["factor"])), []
    if kind == "llama3":
        return (
            dict(
                rope_scaling="llama3",
                rope_factor=float(scaling["factor"]),
                rope_low_factor=float(scaling["low_freq_factor"]),
                rope_high_factor=float(scaling["high_freq_factor"]),
                rope_original=int(scaling["original_max_position_embeddings"]),
            ),
            [],
        )
    return {}, [
        f"rope_scaling of type {kind!r} has no counterpart here: positions are not stretched"
    ]
