"""An adapter's folder, checked before it is used: fields and tensors of Hugging Face PEFT."""

import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from jaxllm.config import near
from jaxllm.finetune.peft_names import CONFIG, DIGEST, FRESH, OWN_TYPE, WEIGHTS
from jaxllm.models.weights import safetensors
from jaxllm.models.weights.tensors import WeightsError

TYPES = ("LORA", "IA3", "PROMPT_TUNING", "PREFIX_TUNING", OWN_TYPE)
# Fields that change nothing of what a trained adapter computes, or that the tensors tell.
_HARMLESS = frozenset(
    [
        "auto_mapping", "base_model_name_or_path", "revision", "task_type", "peft_type",
        "peft_version", "inference_mode", "target_modules", "exclude_modules", "modules_to_save",
        "fan_in_fan_out", "layers_to_transform", "layers_pattern", "megatron_core",
        "megatron_config", "loftq_config", "eva_config", "runtime_config", "qalora_group_size",
        "feedforward_modules", "init_ia3_weights", "num_virtual_tokens", "token_dim",
        "num_attention_heads", "num_layers", "encoder_hidden_size", "prompt_tuning_init",
        "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "init_weights",
    ]
)  # fmt: skip
_LORA = frozenset(
    [
        "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern",
        "alpha_pattern", "init_lora_weights", "bias",
    ]
)  # fmt: skip
# With these values alone. Other starts change the base, which then is not what is here.
_ONLY = {
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "prefix_projection": (False,),  # saved prefixes are what a projection made
    "num_transformer_submodules": (1, None),
}
_OFF = (None, False, [], {}, "")
MOST = 65_536  # of ranks and virtual tokens


class Adapter(NamedTuple):
    """An adapter in a folder.

    Attributes:
        config: the object of adapter_config.json.
        kind: its peft_type.
        tensors: {name: Tensor}.
        digest: of the base that it was trained over, "" where the file does not say.
        fresh: paths of our parameters that were trained whole, None where it does not say.
        origin: the folder.
    """

    config: dict
    kind: str
    tensors: dict
    digest: str
    fresh: Any
    origin: str


def open_adapter(path):
    """Opens a folder with adapter_config.json and adapter_model.safetensors; reads no tensor.

    Raises:
        WeightsError: something is missing, damaged, unknown, or of a kind that could run code.
    """
    folder = pathlib.Path(path).expanduser()
    config = safetensors.read_json(folder / CONFIG)
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(p for p in folder.iterdir() if p.suffix in safetensors.PICKLES)
        if pickles:
            safetensors.refuse_pickle(pickles[0])
        raise WeightsError(f"{folder} has no {WEIGHTS}. Download the folder again, whole.")
    tensors = safetensors.open_file(folder / WEIGHTS)
    metadata = safetensors.read_metadata(folder / WEIGHTS)
    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise WeightsError(
            f"{folder / CONFIG}: peft_type={kind!r} has no counterpart here."
            f"{near(str(kind), TYPES)} Known: {', '.join(TYPES)}."
        )
    if kind != OWN_TYPE:
        _check_fields(config, kind, folder / CONFIG)
    fresh = metadata.get(FRESH)
    if fresh is not None:
        fresh = [path for path in fresh.split(",") if path]
    return Adapter(config, kind, tensors, metadata.get(DIGEST, ""), fresh, str(folder))


def _check_fields(config, kind, path):
    """Raises WeightsError for a field that is unknown and switches something on."""
    known = _HARMLESS | (_LORA if kind == "LORA" else set()) | set(_ONLY)
    for name, value in config.items():
        allowed = _ONLY.get(name)
        if allowed is not None and not any(value is a or value == a for a in allowed):
            known_values = ", ".join(map(repr, allowed))
            raise WeightsError(f"{path}: {name}={value!r} cannot be followed: {known_values} can.")
        if name not in known and value not in _OFF:
            raise WeightsError(
                f"{path}: {name}={str(value)[:80]} is unknown here.{near(name, known)} It may "
                "change what the adapter computes. Remove it if it does not."
            )


def read_tensor(adapter, name, shape):
    """Returns a tensor of a known shape, float32.

    Raises:
        WeightsError: it is missing, of another shape or kind, or not finite.
    """
    tensor = adapter.tensors.get(name)
    if tensor is None:
        raise WeightsError(f"{adapter.origin}: {name} is missing.{near(name, adapter.tensors)}")
    if tuple(tensor.shape) != tuple(shape):
        raise WeightsError(
            f"{adapter.origin}: {name} has shape {tuple(tensor.shape)}, and over this base it is "
            f"{tuple(shape)}."
        )
    if np.dtype(tensor.dtype).kind not in "fV" or np.dtype(tensor.dtype).itemsize < 2:
        raise WeightsError(f"{adapter.origin}: {name} is {tensor.dtype}; weights are F16 to F64.")
    array = np.asarray(tensor.read(tuple(slice(None) for _ in shape))).astype(np.float32)
    if not np.isfinite(array).all():
        raise WeightsError(f"{adapter.origin}: {name} has values that are infinite or no number.")
    return array


def number(adapter, name, low, high, default=None, whole=False):
    """Returns a number of adapter_config.json; WeightsError where it is none, or out of range."""
    value = adapter.config.get(name, default)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (whole and value != int(value)):
        raise WeightsError(
            f"{adapter.origin}/{CONFIG}: {name}={value!r} must be "
            f"{'a whole number' if whole else 'a number'} from {low} to {high}."
        )
    return int(value) if whole else float(value)
