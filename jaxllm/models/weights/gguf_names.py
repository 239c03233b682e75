"""Which tensor of a GGUF file is which of Hugging Face's, by architecture."""

import re
from typing import NamedTuple

from jaxllm.config import near
from jaxllm.models.weights.gguf_values import package
from jaxllm.models.weights.tensors import WeightsError

_OUTER = ("model.embed_tokens", "model.norm", "lm_head")
_ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")
_MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_PRE = ("input_layernorm", "post_attention_layernorm")
_QK_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
_AROUND = (*_PRE, "pre_feedforward_layernorm", "post_feedforward_layernorm")
EXPERTS = {"w1": "ffn_gate_exps", "w2": "ffn_down_exps", "w3": "ffn_up_exps"}


class Architecture(NamedTuple):
    """A kind of model in both worlds.

    Attributes:
        gguf: general.architecture of the file.
        model_type: of config.json.
        model: class that transformers loads it with.
        outer: names outside the layers, without ".weight" and ".bias".
        inner: names within a layer.
        layers: what comes before a layer's number.
        paired: rotated dimensions of queries and keys are neighbours in the file.
        norm_plus: what norms' weights have been given besides.
        transposed: names whose matrices are (in, out) in Hugging Face's files.
    """

    gguf: str
    model_type: str
    model: str
    outer: tuple = _OUTER
    inner: tuple = (*_PRE, *_ATTENTION, *_MLP)
    layers: str = "model.layers."
    paired: bool = False
    norm_plus: float = 0.0
    transposed: tuple = ()


_GPT2_MATRICES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
_ARCHITECTURES = (
    Architecture("llama", "llama", "LlamaForCausalLM", paired=True),
    Architecture("llama", "mistral", "MistralForCausalLM", paired=True),
    Architecture(
        "llama",
        "mixtral",
        "MixtralForCausalLM",
        inner=(*_PRE, *_ATTENTION, "block_sparse_moe.gate"),
        paired=True,
    ),
    Architecture("qwen2", "qwen2", "Qwen2ForCausalLM"),
    Architecture(
        "qwen3", "qwen3", "Qwen3ForCausalLM", inner=(*_PRE, *_ATTENTION, *_QK_NORMS, *_MLP)
    ),
    Architecture("gemma", "gemma", "GemmaForCausalLM", norm_plus=1.0),
    Architecture(
        "gemma2",
        "gemma2",
        "Gemma2ForCausalLM",
        inner=(*_AROUND, *_ATTENTION, *_MLP),
        norm_plus=1.0,
    ),
    Architecture(
        "gemma3",
        "gemma3_text",
        "Gemma3ForCausalLM",
        inner=(*_AROUND, *_ATTENTION, *_QK_NORMS, *_MLP),
        norm_plus=1.0,
    ),
    Architecture(
        "phi2",
        "phi",
        "PhiForCausalLM",
        outer=("model.embed_tokens", "model.final_layernorm", "lm_head"),
        inner=("input_layernorm", *_ATTENTION[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    ),
    Architecture(
        "phi3",
        "phi3",
        "Phi3ForCausalLM",
        inner=(
            *_PRE,
            *("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        ),
    ),
    Architecture(
        "gpt2",
        "gpt2",
        "GPT2LMHeadModel",
        outer=("transformer.wte", "transformer.wpe", "transformer.ln_f", "lm_head"),
        inner=("ln_1", "ln_2", *_GPT2_MATRICES),
        layers="transformer.h.",
        transposed=_GPT2_MATRICES,
    ),
    Architecture(
        "olmo2",
        "olmo2",
        "Olmo2ForCausalLM",
        inner=(*_AROUND[1::2], *_ATTENTION, *_QK_NORMS, *_MLP),
    ),
)
BY_TYPE = {a.model_type: a for a in _ARCHITECTURES}
# Tensors of the file that are settings in config.json, or follow from it.
SETTINGS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
FOLLOWS = re.compile(r"blk\.\d+\.(attn_rot_embd|attn\.masked_bias|attn\.bias)(\.weight)?")


def of_file(keys, path):
    """Returns the Architecture that the keys of a file name.

    Raises:
        WeightsError: none that is known here.
    """
    name = keys.get("general.architecture")
    found = [a for a in _ARCHITECTURES if a.gguf == name]
    if not found:
        known = list(dict.fromkeys(a.gguf for a in _ARCHITECTURES))
        raise WeightsError(
            f"{path}: general.architecture={name!r} has no counterpart here."
            f"{near(str(name), known)} Known: {', '.join(known)}."
        )
    if keys.get(f"{name}.expert_count"):
        if name != "llama":
            raise WeightsError(f"{path}: {name} with experts has no counterpart here.")
        return BY_TYPE["mixtral"]
    if name == "llama" and keys.get("llama.attention.sliding_window"):
        return BY_TYPE["mistral"]
    return found[0]


def of_config(config):
    """Returns the Architecture of a config.json.

    Raises:
        WeightsError: GGUF's table, or this one, has none for it.
    """
    kind = config.get("model_type")
    if kind not in BY_TYPE:
        raise WeightsError(
            f"model_type={kind!r} cannot be written as GGUF.{near(str(kind), BY_TYPE)} "
            f"Known: {', '.join(BY_TYPE)}."
        )
    return BY_TYPE[kind]


def pairs(architecture, layers):
    """Lists (Hugging Face's name, GGUF's name) of all that an architecture may have.

    Args:
        architecture: `Architecture`.
        layers: number of layers.

    Returns:
        Names with ".weight" and ".bias", experts left out; see `expert_pairs`.
    """
    of = _map(architecture, layers)
    names = list(architecture.outer)
    for i in range(layers):
        names += [f"{architecture.layers}{i}.{part}" for part in architecture.inner]
    # gguf's table gives Gemma no head of its own: it is always the embedding's.
    found = [(name, of.get_name(name)) for name in names]
    return [
        (f"{theirs}.{part}", f"{ours}.{part}")
        for theirs, ours in found
        if ours is not None
        for part in ("weight", "bias")
    ]


def expert_pairs(layers, experts):
    """Yields (Hugging Face's name, GGUF's stacked name, GGUF's older name, number) of experts."""
    for i in range(layers):
        for e in range(experts):
            for theirs, ours in EXPERTS.items():
                old = f"blk.{i}.{ours.removesuffix('_exps')}.{e}.weight"
                name = f"model.layers.{i}.block_sparse_moe.experts.{e}.{theirs}.weight"
                yield name, f"blk.{i}.{ours}.weight", old, e


def _map(architecture, layers):
    gguf = package()
    number = {name: a for a, name in gguf.MODEL_ARCH_NAMES.items()}[architecture.gguf]
    return gguf.get_tensor_name_map(number, layers)
