"""Model families as tables: what all sizes share, and each size."""

from collections.abc import Callable
from typing import NamedTuple

from jaxllm.config import ConfigError, near
from jaxllm.models.config import resolve
from jaxllm.models.families.bert import (
    BERT,
    BERT_SIZES,
    ROBERTA,
    ROBERTA_SIZES,
    XLNET,
    XLNET_SIZES,
    bert_names,
    roberta_names,
)
from jaxllm.models.families.gemma import (
    GEMMA,
    GEMMA2,
    GEMMA2_NAMES,
    GEMMA2_SIZES,
    GEMMA3,
    GEMMA3_NAMES,
    GEMMA3_SIZES,
    GEMMA_NAMES,
    GEMMA_SIZES,
    GRIFFIN,
    GRIFFIN_SIZES,
)
from jaxllm.models.families.gpt2 import GPT2, GPT2_NAMES, GPT2_SIZES
from jaxllm.models.families.llama import (
    LLAMA,
    LLAMA_NAMES,
    LLAMA_SIZES,
    MISTRAL,
    MISTRAL_SIZES,
)
from jaxllm.models.families.moe import (
    MIXTRAL,
    MIXTRAL_NAMES,
    MIXTRAL_SIZES,
    QWEN3_MOE,
    QWEN3_MOE_NAMES,
    QWEN3_MOE_SIZES,
    SWITCH,
    SWITCH_SIZES,
)
from jaxllm.models.families.olmo import OLMO2, OLMO2_NAMES, OLMO2_SIZES
from jaxllm.models.families.palm import PALM, PALM_SIZES
from jaxllm.models.families.phi import (
    PHI2,
    PHI2_NAMES,
    PHI2_SIZES,
    PHI3,
    PHI3_NAMES,
    PHI3_SIZES,
)
from jaxllm.models.families.qwen import QWEN2, QWEN2_SIZES, QWEN3, QWEN3_SIZES
from jaxllm.models.families.t5 import (
    BART,
    BART_SIZES,
    T5,
    T5_SIZES,
    T5V1_1,
    T5V1_1_SIZES,
    bart_names,
    t5_names,
)
from jaxllm.models.weights.names import Names


class Family(NamedTuple):
    """A family of models.

    Attributes:
        shared: fields of ModelConfig that all sizes have.
        sizes: {size: fields over those}.
        names: `weights.names.Names` of its files, or a function from a ModelConfig to them; None
            where nobody publishes any.
    """

    shared: dict
    sizes: dict
    names: Names | Callable | None = None


FAMILIES = {
    "gpt2": Family(GPT2, GPT2_SIZES, GPT2_NAMES),
    "palm": Family(PALM, PALM_SIZES),
    "llama": Family(LLAMA, LLAMA_SIZES, LLAMA_NAMES),
    "mistral": Family(MISTRAL, MISTRAL_SIZES, LLAMA_NAMES),
    "mixtral": Family(MIXTRAL, MIXTRAL_SIZES, MIXTRAL_NAMES),
    "switch": Family(SWITCH, SWITCH_SIZES),
    "qwen2": Family(QWEN2, QWEN2_SIZES, LLAMA_NAMES),
    "qwen3": Family(QWEN3, QWEN3_SIZES, LLAMA_NAMES),
    "qwen3_moe": Family(QWEN3_MOE, QWEN3_MOE_SIZES, QWEN3_MOE_NAMES),
    "gemma": Family(GEMMA, GEMMA_SIZES, GEMMA_NAMES),
    "gemma2": Family(GEMMA2, GEMMA2_SIZES, GEMMA2_NAMES),
    "gemma3": Family(GEMMA3, GEMMA3_SIZES, GEMMA3_NAMES),
    "griffin": Family(GRIFFIN, GRIFFIN_SIZES),
    "phi2": Family(PHI2, PHI2_SIZES, PHI2_NAMES),
    "phi3": Family(PHI3, PHI3_SIZES, PHI3_NAMES),
    "olmo2": Family(OLMO2, OLMO2_SIZES, OLMO2_NAMES),
    "bert": Family(BERT, BERT_SIZES, bert_names),
    "roberta": Family(ROBERTA, ROBERTA_SIZES, roberta_names),
    "xlnet": Family(XLNET, XLNET_SIZES),
    "t5": Family(T5, T5_SIZES, t5_names),
    "t5v1.1": Family(T5V1_1, T5V1_1_SIZES, t5_names),
    "bart": Family(BART, BART_SIZES, bart_names),
}


def names_of(family, c):
    """Returns the `weights.names.Names` of a family's files for a model, or None."""
    table = FAMILIES[family].names if family in FAMILIES else None
    return table(c) if callable(table) else table


# A family without a size is an architecture: its sizes are up to the config.
NAMED_SIZE = ("vocab", "positions", "head_width")


def model_config(section, *, vocab, length):
    """Makes the ModelConfig that `config.model` describes.

    Args:
        section: {"family", "size", and any field of ModelConfig (None where unset)}. Fields that
            are set win over the size's, and the size's over the family's.
        vocab: size of the tokenizer's vocabulary.
        length: tokens in a row of training data.

    Raises:
        ConfigError: unknown family, size or field, or fields that contradict each other.
    """
    values = {name: value for name, value in section.items() if value is not None}
    family, size = values.pop("family"), values.pop("size")
    if family not in FAMILIES:
        raise ConfigError(
            f"config.model.family={family!r} is unknown.{near(family, FAMILIES)} "
            f"Known: {', '.join(FAMILIES)}.\n  Try --config.model.family=llama."
        )
    shared, sizes, _ = FAMILIES[family]
    if size and size not in sizes:
        raise ConfigError(
            f"config.model.size={size!r} is unknown for family {family!r}.{near(size, sizes)} "
            f"Known: {', '.join(sizes)}, or '' for sizes of your own.\n"
            f"  Try --config.model.size={next(iter(sizes))}."
        )
    if not size:
        shared = {name: value for name, value in shared.items() if name not in NAMED_SIZE}
    return resolve({**shared, **sizes.get(size, {}), **values}, vocab=vocab, length=length)
