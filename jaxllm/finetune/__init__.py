"""Fine-tuning methods: what they put into a model, which parameters they train, how these start."""

from jaxllm.config import make
from jaxllm.finetune import methods
from jaxllm.finetune.beginning import begin, freeze
from jaxllm.finetune.merging import merge
from jaxllm.finetune.method import Method, added, check, drawn, infos, join, split

METHODS = {
    "full": methods.full,
    "lora": methods.lora,
    "qlora": methods.qlora,
    "prompt": methods.prompt,
    "prefix": methods.prefix,
    "adapter": methods.adapter,
    "ia3": methods.ia3,
}

__all__ = [
    "METHODS",
    "Method",
    "added",
    "begin",
    "check",
    "drawn",
    "freeze",
    "infos",
    "join",
    "merge",
    "of",
    "split",
]


def of(config):
    """Returns the `Method` that a config's `finetune` stands for."""
    return make(METHODS, config.finetune, "finetune")
