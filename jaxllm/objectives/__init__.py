"""Objectives: make(model, **options) -> loss(params, refs, batch, key) -> Loss."""

from jaxllm.objectives import classify, contrast, lm, regress, span, tag
from jaxllm.objectives.base import Loss

OBJECTIVES = {
    "lm": lm.make,
    "classify": classify.make,
    "tag": tag.make,
    "span": span.make,
    "regress": regress.make,
    "contrast": contrast.make,
}
# Losses that are no sums over examples, so that no batch can be computed in pieces.
OF_WHOLE_BATCHES = ("contrast",)
# Losses that look at whole rows, which the mesh axis `seq` would cut.
OF_WHOLE_ROWS = ("classify", "span", "regress", "contrast")

__all__ = ["OBJECTIVES", "OF_WHOLE_BATCHES", "OF_WHOLE_ROWS", "Loss"]
