"""Answers in a text: where they begin and where they end."""

import jax.numpy as jnp

from jaxllm.objectives.base import of_head
from jaxllm.objectives.classify import entropy
from jaxllm.sharding import wire

NEVER = -1e30  # of a token of padding; finite, since 0 times infinity is no number


def make(model):
    """Makes the loss of extracting spans (Devlin et al. 2019, arXiv:1810.04805, section 4.2).

    Args:
        model: `models.Model` with `task`: (params, x [B, T, D], batch) -> float32[B, T, 2].

    Returns:
        loss(params, refs, batch, key) -> Loss in nats, the mean of the cross-entropies of first and
        last token over the tokens that are no padding, counted in rows. `batch` holds what the
        model reads, span: int32[B, 2] (0, 0 for no answer) and weight: float32[B]. Sums: loss,
        accuracy (both are the likeliest), the routers' losses.
    """

    def sums_of(logits_BT2, batch):
        real_BT1 = wire.join(batch["segment"])[..., None] > 0
        logits_BT2 = jnp.where(real_BT1, wire.join(logits_BT2), NEVER)
        logits_B2T, weight_B = jnp.swapaxes(logits_BT2, 1, 2), wire.share(batch["weight"])
        each_B = jnp.mean(entropy(logits_B2T, batch["span"]), axis=-1)
        hit_B = jnp.all(jnp.argmax(logits_B2T, axis=-1) == batch["span"], axis=-1)
        sums = {"loss": jnp.sum(each_B * weight_B), "accuracy": jnp.sum(hit_B * weight_B)}
        return sums, weight_B

    return of_head(model, sums_of)
