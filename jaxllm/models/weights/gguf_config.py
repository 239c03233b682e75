"""config.json from the keys of a GGUF file, and back."""

import numpy as np

from jaxllm.models.weights.tensors import WeightsError

# {GGUF's key: config.json's}; those of GPT-2 have names of their own.
NEEDED = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
}
GPT2 = {
    "block_count": "n_layer",
    "context_length": "n_positions",
    "embedding_length": "n_embd",
    "feed_forward_length": "n_inner",
    "attention.head_count": "n_head",
}
EPS = {"gpt2": "layer_norm_epsilon", "phi": "layer_norm_eps"}
ACTIVATION = {
    "gpt2": ("activation_function", "gelu_new"),
    "phi": ("hidden_act", "gelu_new"),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), ("hidden_activation", "gelu_pytorch_tanh")),
}
SOFTCAPS = {
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
TOKENS = {"bos": "bos", "eos": "eos", "padding": "pad"}
# What transformers' classes take where config.json leaves a field out.
ASSUMED = {
    "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma2 window": 4096,
    "gemma3_text": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
}
# The largest of each scales queries by hidden size / heads, the others by the heads' width: the
# files do not say, and every reader of them goes by the number of layers.
SCALED_BY_WIDTH = {"gemma2": 46, "gemma3_text": 62}
GEMMA3_LOCAL_BASE, GEMMA3_PATTERN, GEMMA2_PATTERN = 10_000.0, 6, 2
# Llama 3's stretched positions, of which files hold only the factors that follow from them.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3_ORIGINAL = 8192


def to_hf(keys, architecture, tensors, path):
    """Makes a config.json.

    Args:
        keys: {key: value} of the header.
        architecture: of `gguf_names`.
        tensors: {GGUF's name: Tensor}; shapes, and those that are settings.
        path: of the file, for errors.

    Returns:
        The object, with Hugging Face's names.

    Raises:
        WeightsError: a key that must be is missing or no number, or says what cannot be said in
            a config.json.
    """
    kind, get = architecture.model_type, _getter(keys, architecture.gguf, path)
    config = {"model_type": kind, "architectures": [architecture.model]}
    for theirs, ours in (GPT2 if kind == "gpt2" else NEEDED).items():
        config[ours] = _whole(get, theirs, path, architecture.gguf)
    heads = config[(GPT2 if kind == "gpt2" else NEEDED)["attention.head_count"]]
    config["vocab_size"] = tensors["token_embd.weight"].shape[0]
    config["tie_word_embeddings"] = "output.weight" not in tensors
    eps = "layer_norm_epsilon" if kind in EPS else "layer_norm_rms_epsilon"
    config[EPS.get(kind, "rms_norm_eps")] = get(f"attention.{eps}", None)
    if None in config.values():
        raise WeightsError(f"{path} has no key {architecture.gguf}.attention.{eps}.")
    name, value = ACTIVATION.get(kind, ("hidden_act", "silu"))
    config[name] = value
    config |= _tokens(keys)
    if kind == "gpt2":
        return config
    width = get("attention.key_length", None) or config["hidden_size"] // heads
    kv_heads = get("attention.head_count_kv", heads)
    if isinstance(kv_heads, float) or not 1 <= kv_heads <= heads or not 1 <= width < 1 << 31:
        raise WeightsError(
            f"{path}: {kv_heads} of {heads} heads, of width {width}, cannot be a model's keys."
        )
    config["num_key_value_heads"] = kv_heads
    if kind not in ("phi", "phi3", "olmo2"):
        config["head_dim"] = width
    config["rope_theta"] = get("rope.freq_base", 10_000.0)
    if kind in ("phi", "phi3"):
        config["partial_rotary_factor"] = get("rope.dimension_count", width) / width
    if kind in ("llama", "mistral", "mixtral", "qwen3", "olmo2"):
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if kind == "llama":
        config["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    if kind == "mixtral":
        config["num_local_experts"] = get("expert_count", None)
        config["num_experts_per_tok"] = get("expert_used_count", 2)
    config |= _windows(kind, get, config, width)
    return config | _stretched(get, config, tensors, path)


def _getter(keys, name, path):
    """Returns get(key, default), which reads numbers without the tail of a float32."""

    def get(key, default):
        value = keys.get(f"{name}.{key}", default)
        if isinstance(value, np.ndarray):
            if not len(value) or (value != value[0]).any():
                raise WeightsError(
                    f"{path}: {name}.{key} differs from layer to layer, which has no counterpart "
                    "here."
                )
            value = value[0].item()
        if isinstance(value, float):
            value = float(str(np.float32(value)))
        elif value is not default and not isinstance(
            value, str if isinstance(default, str) else int
        ):
            raise WeightsError(f"{path}: {name}.{key}={str(value)[:80]!r} must be a number.")
        return value

    return get


def _whole(get, key, path, name):
    value = get(key, None)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 31:
        raise WeightsError(f"{path}: {name}.{key}={value!r} must be a whole number above 0.")
    return value


def _tokens(keys):
    """Ids of the special tokens."""
    found = {ours: keys.get(f"tokenizer.ggml.{key}_token_id") for key, ours in TOKENS.items()}
    return {f"{ours}_token_id": i for ours, i in found.items() if isinstance(i, int)}


def _windows(kind, get, config, width):
    """Windows, soft caps and the scale of queries."""
    found = {}
    if kind in ("mistral", "phi3", "gemma2", "gemma3_text"):
        found["sliding_window"] = get("attention.sliding_window", ASSUMED.get(f"{kind} window"))
    if kind in ("gemma2", "gemma3_text"):
        for theirs, ours in SOFTCAPS.items():
            found[ours] = get(theirs, ASSUMED[kind][ours])
        by_width = config["num_hidden_layers"] == SCALED_BY_WIDTH[kind]
        heads = config["num_attention_heads"]
        found["query_pre_attn_scalar"] = config["hidden_size"] // heads if by_width else width
        found["sliding_window_pattern"] = GEMMA2_PATTERN
    if kind == "gemma3_text":
        found["rope_local_base_freq"] = get("rope.freq_base_swa", GEMMA3_LOCAL_BASE)
        found["sliding_window_pattern"] = get("attention.sliding_window_pattern", GEMMA3_PATTERN)
    return found


def _stretched(get, config, tensors, path):
    """Stretched positions, from keys or from the factors stored as tensors."""
    read = {n: tensors[n].read((slice(None),)) for n in _FACTORS if n in tensors}
    read = {name: np.asarray(values, np.float64) for name, values in read.items()}
    original = get("rope.scaling.original_context_length", None)
    if "rope_freqs.weight" in read:
        return {"rope_scaling": _llama3(read["rope_freqs.weight"], config, original, path)}
    if "rope_factors_long.weight" in read:
        lists = {
            f"{n}_factor": [float(str(np.float32(x))) for x in read[f"rope_factors_{n}.weight"]]
            for n in ("short", "long")
        }
        found = {"rope_scaling": {"rope_type": "longrope", **lists}}
        return found | {"original_max_position_embeddings": original}
    kind = get("rope.scaling.type", "none")
    if kind == "none":
        return {}
    if kind not in ("linear", "yarn"):
        raise WeightsError(f"{path}: rope.scaling.type={kind!r}; known are none, linear and yarn.")
    scaling = {"rope_type": kind, "factor": float(get("rope.scaling.factor", 1.0))}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = original
    return {"rope_scaling": scaling}


_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def llama3_factors(config, scaling):
    """How far each frequency is stretched, float32[head width / 2] (arXiv:2407.21783)."""
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    theta = rope(config)[0]
    wavelength = 2 * np.pi * theta ** (np.arange(0, width, 2) / width)
    original = scaling["original_max_position_embeddings"]
    low, high = (original / scaling[f"{n}_freq_factor"] for n in ("low", "high"))
    smooth = (original / wavelength - original / low) / (original / high - original / low)
    between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    factors = np.where(wavelength < high, 1.0, between)
    return np.where(wavelength > low, scaling["factor"], factors).astype(np.float32)


def _llama3(factors, config, original, path):
    """The settings that stored factors follow from, which are checked against them."""
    scaling = {
        "rope_type": "llama3",
        "factor": float(str(np.float32(factors.max()))),
        **LLAMA3,
        "original_max_position_embeddings": original or LLAMA3_ORIGINAL,
    }
    made = llama3_factors(config, scaling)
    if made.shape != factors.shape or not np.allclose(made, factors, rtol=1e-4):
        raise WeightsError(
            f"{path}: rope_freqs.weight does not follow from Llama 3's way of stretching positions "
            f"with factor {scaling['factor']} from {scaling['original_max_position_embeddings']:,}."
        )
    return scaling


def rope(config):
    """Returns (base, scaling or {}, base of windowed layers or None), of old and new files."""
    new = config.get("rope_parameters") or {}
    local = config.get("rope_local_base_freq")
    if "full_attention" in new:
        local = (new.get("sliding_attention") or {}).get("rope_theta", local)
        new = new["full_attention"]
    scaling = config.get("rope_scaling") or new
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    base = config.get("rope_theta") or new.get("rope_theta") or 10_000.0
    return float(base), {} if kind == "default" else {**scaling, "rope_type": kind}, local


def from_hf(config, architecture):
    """Makes the keys of a GGUF file from a config.json; the inverse of `to_hf`.

    Args:
        config: the object.
        architecture: of `gguf_names`.

    Returns:
        ({key: int, float or str}, {name of a tensor that holds settings: float32 array}).

    Raises:
        WeightsError: a field that must be is missing, or has no key.
    """
    kind, name = architecture.model_type, architecture.gguf
    needed = GPT2 if kind == "gpt2" else NEEDED
    values = {}
    for theirs, ours in needed.items():
        value = config.get(ours)
        if value is None and ours == "n_inner":
            value = 4 * config["n_embd"]
        if not isinstance(value, int) or isinstance(value, bool):
            raise WeightsError(f"config.json: {ours}={value!r} must be a whole number.")
        values[theirs] = value
    values["vocab_size"] = config["vocab_size"]
    eps = "layer_norm_epsilon" if kind in EPS else "layer_norm_rms_epsilon"
    values[f"attention.{eps}"] = float(config[EPS.get(kind, "rms_norm_eps")])
    ids = {
        f"tokenizer.ggml.{key}_token_id": config.get(f"{n}_token_id") for key, n in TOKENS.items()
    }
    ids = {key: i for key, i in ids.items() if isinstance(i, int) and 0 <= i < config["vocab_size"]}
    if kind == "gpt2":
        return {f"{name}.{key}": value for key, value in values.items()} | ids, {}
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    base, scaling, local = rope(config)
    fraction = config.get("partial_rotary_factor")
    if fraction is None:
        fraction = (config.get("rope_parameters") or {}).get("partial_rotary_factor")
    if fraction is None:
        fraction = 0.5 if kind == "phi" else 1.0
    values["attention.head_count_kv"] = config.get("num_key_value_heads") or heads
    values["attention.key_length"] = values["attention.value_length"] = width
    values["rope.dimension_count"] = int(fraction * width)
    values["rope.freq_base"] = base
    if kind == "mixtral":
        values["expert_count"] = config["num_local_experts"]
        values["expert_used_count"] = config["num_experts_per_tok"]
    if kind in ("mistral", "phi3", "gemma2", "gemma3_text") and config.get("sliding_window"):
        values["attention.sliding_window"] = config["sliding_window"]
    for theirs, ours in SOFTCAPS.items():
        if config.get(ours):
            values[theirs] = float(config[ours])
    if kind == "gemma3_text":
        values["rope.freq_base_swa"] = float(local or GEMMA3_LOCAL_BASE)
    _refuse(config, kind, width)
    factors = _scaling(config, scaling, values)
    return {f"{name}.{key}": value for key, value in values.items()} | ids, factors


def _refuse(config, kind, width):
    """Raises WeightsError for what a file could not say."""
    if kind in ("gemma2", "gemma3_text"):
        by_width = config["num_hidden_layers"] == SCALED_BY_WIDTH[kind]
        said = config["hidden_size"] // config["num_attention_heads"] if by_width else width
        if config.get("query_pre_attn_scalar", said) != said:
            raise WeightsError(
                f"config.json: query_pre_attn_scalar={config['query_pre_attn_scalar']} cannot be "
                f"said in a GGUF file; readers take {said}."
            )
        every = {"gemma2": GEMMA2_PATTERN, "gemma3_text": GEMMA3_PATTERN}[kind]
        types = ["full" if (i + 1) % every == 0 else "sliding" for i in range(1000)]
        found = [t.removesuffix("_attention") for t in config.get("layer_types") or ()]
        if found != types[: len(found)] or config.get("sliding_window_pattern", every) != every:
            raise WeightsError(
                f"config.json: every layer but each {every}th must have a window; GGUF readers "
                "take it so."
            )
    if kind == "qwen2" and config.get("use_sliding_window"):
        raise WeightsError("config.json: use_sliding_window=true cannot be said in a GGUF file.")


def _scaling(config, scaling, values):
    """Adds the keys of stretched positions to `values`; returns {tensor: its factors}."""
    kind = scaling.get("rope_type")
    if not scaling:
        return {}
    original = scaling.get("original_max_position_embeddings")
    original = original or config.get("original_max_position_embeddings")
    if original:
        values["rope.scaling.original_context_length"] = original
    if kind == "llama3":
        if any(scaling[name] != value for name, value in LLAMA3.items()):
            raise WeightsError(f"config.json: rope_scaling must have {LLAMA3}, has {scaling}.")
        return {"rope_freqs.weight": llama3_factors(config, scaling)}
    if kind == "longrope":
        return {
            f"rope_factors_{n}.weight": np.array(scaling[f"{n}_factor"], np.float32)
            for n in ("long", "short")
        }
    if kind not in ("linear", "yarn"):
        raise WeightsError(f"config.json: rope_scaling of type {kind!r} has no keys in GGUF.")
    values["rope.scaling.type"] = kind
    values["rope.scaling.factor"] = float(scaling["factor"])
    return {}
