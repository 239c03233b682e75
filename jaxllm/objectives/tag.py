"""Tags of words: cross-entropy over the outputs of a head at each token that has one."""

import jax.numpy as jnp

from jaxllm.objectives.base import of_head
from jaxllm.objectives.classify import check_smoothing, entropy


def make(model, *, smoothing=0.0, rdrop=0.0):
    """Makes the loss of a tagger.

    Args:
        model: `models.Model` with `task`: (params, x [B, T, D], batch) -> float32[B, T, C].
        smoothing: of the labels; 0 is off.
        rdrop: as of `base.of_head`.

    Returns:
        loss(params, refs, batch, key) -> Loss in nats, counted in tagged tokens. `batch` holds what
        the model reads, targets: int32[B, T] and weight: float32[B, T]. Sums: loss, accuracy, rdrop
        where it is on, the routers' losses.

    Raises:
        ValueError: an option out of range.
    """
    check_smoothing(smoothing)

    def sums_of(logits_BTC, batch):
        weight_BT, target_BT = batch["weight"], batch["targets"]
        hit_BT = jnp.argmax(logits_BTC, axis=-1) == target_BT
        sums = {
            "loss": jnp.sum(entropy(logits_BTC, target_BT, smoothing) * weight_BT),
            "accuracy": jnp.sum(hit_BT * weight_BT),
        }
        return sums, weight_BT

    return of_head(model, sums_of, rdrop)
