"""Numbers of texts: squared error."""

import jax.numpy as jnp

from jaxllm.objectives.base import of_head
from jaxllm.sharding import wire


def make(model, *, mean=0.0, scale=1.0):
    """Makes the squared error of a number that is predicted of each text.

    Args:
        model: `models.Model` with `task`: (params, x [B, T, D], batch) -> float32[B, 1].
        mean, scale: of the numbers; the model predicts (number - mean) / scale, so that its outputs
            are about 1 in size. The loss is in units of the scale.

    Returns:
        loss(params, refs, batch, key) -> Loss, squared errors counted in examples. `batch` holds
        what the model reads, label: float32[B] and weight: float32[B]. Sums: loss, absolute (the
        absolute error in units of the number), the routers' losses.

    Raises:
        ValueError: scale is not above 0; or, while tracing, the model has more outputs than one.
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale={scale} must be above 0, such as 1.0.")

    def sums_of(found_B1, batch):
        if found_B1.shape[-1] != 1:
            raise ValueError(f"the model has {found_B1.shape[-1]} outputs; regression takes one.")
        error_B = found_B1[:, 0] - (batch["label"] - mean) / scale
        weight_B = wire.share(batch["weight"])
        sums = {
            "loss": jnp.sum(jnp.square(error_B) * weight_B),
            "absolute": jnp.sum(jnp.abs(error_B) * weight_B) * scale,
        }
        return sums, weight_B

    return of_head(model, sums_of)
