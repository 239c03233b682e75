"""GGUF files as views of models: read piece by piece, dequantized when asked."""

import pathlib

import numpy as np

from jaxllm.config import near
from jaxllm.models.weights import gguf_config, gguf_names, gguf_tokens, gguf_values
from jaxllm.models.weights.gguf_header import read_header
from jaxllm.models.weights.gguf_write import write_gguf
from jaxllm.models.weights.tensors import View, WeightsError

__all__ = ["open_gguf", "write_gguf"]

LAYERS = 1_024


def open_gguf(path):
    """Opens a GGUF file as Hugging Face's folders describe a model.

    The header is checked before anything is allocated from what it says. Tensors have Hugging
    Face's names, (out, in) shapes, order of query and key rows and norm weights; quantized ones
    read as float32, and reading some rows dequantizes no others.

    Args:
        path: the file; one that is split over several is refused.

    Returns:
        View.

    Raises:
        WeightsError: a file that is damaged, of an architecture unknown here, or that lacks what
            such a model must have; or the gguf package is not installed.
    """
    path = pathlib.Path(path).expanduser()
    gguf_values.package()
    keys, entries = read_header(path)
    if keys.get("split.count", 1) not in (0, 1):
        raise WeightsError(
            f"{path} is one of {keys['split.count']} parts of a split file.\n"
            "  Try llama-gguf-split --merge FIRST_PART WHOLE.gguf first."
        )
    architecture = gguf_names.of_file(keys, path)
    stored = {entry.name: entry for entry in entries}
    if "token_embd.weight" not in stored:
        raise WeightsError(f"{path} has no tensor token_embd.weight: it holds no whole model.")
    data = np.memmap(path, np.uint8, "r")
    rows = {name: gguf_values.Rows(data, entry) for name, entry in stored.items()}
    plain = {n: gguf_values.tensor(rows[n], entry.shape) for n, entry in stored.items()}
    config = gguf_config.to_hf(keys, architecture, plain, path)
    layers = config.get("num_hidden_layers") or config["n_layer"]
    if layers > LAYERS:
        raise WeightsError(f"{path}: block_count={layers:,} is beyond {LAYERS:,}.")
    tensors = _named(architecture, layers, config, stored, rows, path)
    return View(config, tensors, gguf_tokens.files(keys, path), str(path))


def _named(architecture, layers, config, stored, rows, path):
    """Returns {Hugging Face's name: Tensor} and raises WeightsError for what is left over."""
    used, tensors = set(gguf_names.SETTINGS), {}
    for theirs, ours in gguf_names.pairs(architecture, layers):
        if ours in stored:
            used.add(ours)
            tensors[theirs] = _tensor(architecture, theirs, stored[ours], rows[ours], config, path)
    if architecture.model_type == "mixtral":
        used |= _experts(layers, config, stored, rows, tensors, path)
    if architecture.model_type == "phi":
        used |= _fused(layers, stored, rows, tensors, path)
    left = [n for n in stored if n not in used and not gguf_names.FOLLOWS.fullmatch(n)]
    if left:
        raise WeightsError(
            f"{path}: {len(left)} tensors have no place in a {architecture.model_type} model, the "
            f"first {left[0]!r}.{near(left[0], [o for _, o in gguf_names.pairs(architecture, 1)])}"
        )
    return tensors


def _tensor(architecture, name, entry, rows, config, path):
    """One tensor in Hugging Face's form."""
    module, _, part = name.rpartition(".")
    shape, order, plus = entry.shape, None, 0.0
    if len(shape) > 2 or (len(shape) == 1 and not rows.plain):
        raise WeightsError(
            f"{path}: {entry.name!r} is {entry.kind} of shape {shape}; only matrices are so."
        )
    transposed = module.endswith(architecture.transposed or ("\0",)) and part == "weight"
    if architecture.norm_plus and module.endswith("norm") and part == "weight":
        plus = -architecture.norm_plus
    which = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
    heads = next((config[n] for end, n in which.items() if module.endswith(end)), 0)
    if architecture.paired and heads:
        if shape[0] % (2 * heads):
            raise WeightsError(f"{path}: {entry.name!r} has {shape[0]} rows for {heads} heads.")
        order = gguf_values.interleaved(heads, shape[0])
        if len(shape) == 1:  # a bias: its numbers are rows of one
            entry = entry._replace(shape=(*shape, 1), row_bytes=entry.bytes // shape[0])
            return gguf_values.flat(gguf_values.Rows(rows.data, entry), order)
    return gguf_values.tensor(rows, shape[::-1] if transposed else shape, order, plus, transposed)


def _experts(layers, config, stored, rows, tensors, path):
    """Adds each expert's matrices; returns the names in the file."""
    used, experts = set(), config["num_local_experts"]
    if not isinstance(experts, int) or not 1 <= experts <= 4096:
        raise WeightsError(f"{path}: llama.expert_count={experts!r} must be 1 to 4096.")
    for theirs, ours, old, number in gguf_names.expert_pairs(layers, experts):
        if old in stored:
            used.add(old)
            tensors[theirs] = gguf_values.tensor(rows[old], stored[old].shape)
        elif ours in stored:
            used.add(ours)
            count, *shape = stored[ours].shape
            if count != experts or len(shape) != 2:
                raise WeightsError(
                    f"{path}: {ours!r} has shape {stored[ours].shape} for {experts} experts."
                )
            tensors[theirs] = gguf_values.tensor(rows[ours], shape, first=number * shape[0])
    return used


def _fused(layers, stored, rows, tensors, path):
    """Adds the parts of queries, keys and values that older Phi-2 files have as one."""
    used = set()
    for i in range(layers):
        for part in ("weight", "bias"):
            name = f"blk.{i}.attn_qkv.{part}"
            if name not in stored:
                continue
            entry = stored[name]
            if entry.shape[0] % 3 or len(entry.shape) != 1 + (part == "weight"):
                raise WeightsError(f"{path}: {name!r} has shape {entry.shape}, not three parts.")
            if part == "bias" and not rows[name].plain:
                raise WeightsError(f"{path}: {name!r} is {entry.kind}; only matrices are so.")
            used.add(name)
            third = entry.shape[0] // 3
            if part == "bias":
                three = entry._replace(shape=(3, third), row_bytes=entry.bytes // 3)
                of, shape, step = gguf_values.Rows(rows[name].data, three), (third,), 1
            else:
                of, shape, step = rows[name], (third, *entry.shape[1:]), third
            for number, letter in enumerate("qkv"):
                theirs = f"model.layers.{i}.self_attn.{letter}_proj.{part}"
                tensors[theirs] = gguf_values.tensor(of, shape, first=number * step)
    return used
