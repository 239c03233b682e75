"""Objectives: make(model, **options) -> loss(params, refs, batch, key) -> Loss."""

from jaxllm.objectives import lm
from jaxllm.objectives.base import Loss

OBJECTIVES = {"lm": lm.make}

__all__ = ["OBJECTIVES", "Loss"]
