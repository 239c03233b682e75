"""Views of models as GGUF files, written tensor by tensor."""

import os
import pathlib

import ml_dtypes
import numpy as np

from jaxllm.config import near
from jaxllm.models.weights import gguf_config, gguf_names, gguf_tokens, gguf_values
from jaxllm.models.weights.tensors import Tensor, WeightsError

# {name: (of the type in gguf's tables, of the file as a whole)}.
QUANTIZE = {
    "f32": ("F32", "ALL_F32"),
    "f16": ("F16", "MOSTLY_F16"),
    "bf16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
    "q5_1": ("Q5_1", "MOSTLY_Q5_1"),
    "q5_0": ("Q5_0", "MOSTLY_Q5_0"),
    "q4_1": ("Q4_1", "MOSTLY_Q4_1"),
    "q4_0": ("Q4_0", "MOSTLY_Q4_0"),
}
KIND_OF_DTYPE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
F16_LARGEST = 65_504.0


def write_gguf(view, path, quantize="f16", tokenizer=True):
    """Writes a model as a GGUF file that llama.cpp's readers and `open_gguf` take.

    One tensor at a time is in memory. Norms, biases and whatever else has one dimension stay
    float32, as readers expect; matrices whose rows do not divide into blocks are float16.

    Args:
        view: `View` with Hugging Face's names.
        path: of the file; a file that is there is replaced once the new one is whole.
        quantize: type of the matrices: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0.
        tokenizer: whether to store the view's tokenizer.json and chat template.

    Returns:
        {GGUF's name of a tensor: its type in the file, such as "Q8_0"}.

    Raises:
        WeightsError: another type; a model, tokenizer or tensor that the format has no place for;
            values beyond float16's largest; or the gguf package is not installed.
    """
    gguf = gguf_values.package()
    if quantize not in QUANTIZE:
        raise WeightsError(
            f"quantize={quantize!r} is unknown.{near(quantize, QUANTIZE)} "
            f"Known: {', '.join(QUANTIZE)}.\n  Try quantize='f16'."
        )
    architecture = gguf_names.of_config(view.config)
    keys, settings = gguf_config.from_hf(view.config, architecture)
    tensors = _stored(view, architecture) | {n: _constant(x) for n, x in settings.items()}
    if tokenizer:
        keys |= gguf_tokens.keys_of(view.files, tensors["token_embd.weight"].shape[0])
    else:
        keys["tokenizer.ggml.model"] = "none"
    kinds = {name: _kind(name, tensor, quantize, gguf) for name, tensor in tensors.items()}
    path = pathlib.Path(path).expanduser()
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    writer = gguf.GGUFWriter(partial, architecture.gguf)
    try:
        writer.add_file_type(gguf.LlamaFileType[QUANTIZE[quantize][1]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        _add(writer, keys)
        for name, tensor in tensors.items():
            block, size = gguf.GGML_QUANT_SIZES[kinds[name]]
            count = int(np.prod(tensor.shape)) // block * size
            # The shape is of values for these, since the dtype is not bytes.
            writer.add_tensor_info(name, tensor.shape, np.float32, count, raw_dtype=kinds[name])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in tensors.items():
            writer.write_tensor_data(_packed(name, tensor, kinds[name], gguf))
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return {name: kind.name for name, kind in kinds.items()}


def _add(writer, keys):
    """Adds keys with the types that readers expect of them."""
    for key, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif value:
            writer.add_array(key, value)


def _constant(values):
    return Tensor(values.shape, values.dtype, lambda index: values[index])


def _stored(view, architecture):
    """Returns {GGUF's name: Tensor in the file's form}."""
    config = view.config
    layers = config.get("num_hidden_layers") or config["n_layer"]
    known = dict(gguf_names.pairs(architecture, layers))
    found, stacked = {}, {}
    if architecture.model_type == "mixtral":
        for theirs, ours, _, number in gguf_names.expert_pairs(layers, config["num_local_experts"]):
            stacked[theirs] = (ours, number)
    tied = config.get("tie_word_embeddings", architecture.model_type in _TIED)
    for name, tensor in view.tensors.items():
        if name in stacked:
            ours, number = stacked[name]
            found.setdefault(ours, {})[number] = tensor
        elif name not in known and not (name == "lm_head.weight" and tied):
            raise WeightsError(f"tensor {name!r} has no place in a GGUF file.{near(name, known)}")
        elif not (name == "lm_head.weight" and tied):
            found[known[name]] = _turned(architecture, name, tensor, config)
    for name, parts in list(found.items()):
        if isinstance(parts, dict):
            found[name] = _stack(name, parts, config["num_local_experts"])
    if "token_embd.weight" not in found:
        raise WeightsError("the model has no embedding table, so it cannot be written as GGUF.")
    return found


_TIED = ("gpt2", "gemma", "gemma2", "gemma3_text")


def _turned(architecture, name, tensor, config):
    """A tensor in the order that the file has."""
    module, _, part = name.rpartition(".")
    if module.endswith(architecture.transposed or ("\0",)) and part == "weight":
        return Tensor(tensor.shape[::-1], tensor.dtype, lambda i: tensor.read(i[::-1]).T)
    if architecture.norm_plus and module.endswith("norm") and part == "weight":
        plus = np.float32(architecture.norm_plus)
        read = tensor.read
        return Tensor(
            tensor.shape, np.dtype(np.float32), lambda i: read(i).astype(np.float32) + plus
        )
    which = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
    key = next((n for end, n in which.items() if module.endswith(end)), None)
    if architecture.paired and key:
        heads = config.get(key) or config["num_attention_heads"]
        order = gguf_values.deinterleaved(heads, tensor.shape[0])
        rows = order(np.arange(tensor.shape[0]))
        return Tensor(tensor.shape, tensor.dtype, lambda i: _whole(tensor)[rows][i])
    return tensor


def _stack(name, parts, experts):
    """One tensor of all experts' matrices."""
    if sorted(parts) != list(range(experts)):
        raise WeightsError(f"{name!r} needs {experts} experts' matrices; {len(parts)} are there.")
    first = parts[0]

    def read(index):
        return np.stack([_whole(parts[e]) for e in range(experts)])[index]

    return Tensor((experts, *first.shape), first.dtype, read)


def _whole(tensor):
    return np.asarray(tensor.read(tuple(slice(0, side) for side in tensor.shape)))


def _kind(name, tensor, quantize, gguf):
    """The type a tensor is stored as."""
    kinds = gguf.GGMLQuantizationType
    # Readers multiply routers and add positions in float32.
    if len(tensor.shape) == 1 or name.endswith("ffn_gate_inp.weight"):
        return kinds.F32
    kind = kinds[QUANTIZE[quantize][0]]
    blocks = gguf.GGML_QUANT_SIZES[kind][0]
    if tensor.shape[-1] % blocks or (blocks > 1 and name == "position_embd.weight"):
        return kinds.F16
    return kind


def _packed(name, tensor, kind, gguf):
    """A tensor's values as the file has them."""
    values = np.ascontiguousarray(_whole(tensor))
    if values.dtype != np.float32 or values.dtype.byteorder == ">":
        if kind.name == "BF16" and values.dtype == ml_dtypes.bfloat16:
            return values.view(np.uint8)
        if kind.name == "F16" and values.dtype == np.float16:
            return values
        values = values.astype(np.float32)
    if kind.name == "F16" and np.abs(values).max(initial=0) > F16_LARGEST:
        raise WeightsError(
            f"tensor {name!r} holds {np.abs(values).max():g}, beyond float16's {F16_LARGEST:g}.\n"
            "  Try quantize='bf16', or 'f32'."
        )
    if kind.name == "BF16":
        return values.astype(ml_dtypes.bfloat16).view(np.uint8)
    return gguf.quants.quantize(values, kind)
