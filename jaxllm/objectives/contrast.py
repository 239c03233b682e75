"""Embeddings: texts that belong together are near, those of other examples far."""

import jax
import jax.numpy as jnp

from jaxllm import sharding
from jaxllm.objectives.base import Loss
from jaxllm.objectives.classify import entropy
from jaxllm.sharding import wire

NEVER = -1e30  # of a row of padding


def make(model, *, temperature=0.05, both_ways=True):
    """Makes InfoNCE with the other examples of the whole batch as negatives.

    Source: van den Oord et al. 2018, arXiv:1807.03748, equation 4; Chen et al. 2020,
    arXiv:2002.05709, equation 1, for cosines and the temperature.

    Devices exchange embeddings, so that negatives are those of the global batch, however many
    devices share it. Micro-batches are computed one after another and see only their own rows: the
    loss would be another one, and `training.setup` refuses it.

    Args:
        model: `models.Model` with `task`: (params, x [R, T, D], batch) -> float32[R, D].
        temperature: that cosines are divided by.
        both_ways: text 0 looks for text 1 among all, and text 1 for text 0; else only the first.

    Returns:
        loss(params, refs, batch, key) -> Loss in nats, counted in examples. `batch` holds tokens,
        position, segment: int32[B, 2, T] and weight: float32[B]. Sums: loss, accuracy (the nearest
        of all texts 1 is the right one), the routers' losses.

    Raises:
        ValueError: temperature is not above 0; or, while tracing, axis 1 is not 2 long.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} must be above 0, such as 0.05.")

    def embed(params, batch, key):
        B, sides, T = batch["tokens"].shape
        if sides != 2:
            raise ValueError(f"contrast wants tokens as [B, 2, T], got {[B, sides, T]}.")
        texts = {n: x.reshape(2 * B, *x.shape[2:]) for n, x in batch.items() if x.ndim >= 3}
        key = None if key is None else jax.vmap(jax.random.split)(key).reshape(2 * B)
        x_RTD, extra = model.hidden(params, texts, key)
        z_RD = model.task(params, x_RTD, texts).astype(jnp.float32)
        # A row of padding has no direction: 1e-12 keeps its gradient a number.
        z_RD *= jax.lax.rsqrt(jnp.sum(jnp.square(z_RD), axis=-1, keepdims=True) + 1e-12)
        return z_RD.reshape(B, 2, -1), extra

    def loss(params, refs, batch, key=None):
        del refs  # nothing frozen takes part
        z_B2D, extra = embed(model.whole(params), batch, key)
        weight_B = wire.share(batch["weight"])
        all_A2D, counts_A, first = gathered(z_B2D), gathered(weight_B), place(len(weight_B))
        target_B = first + jnp.arange(len(weight_B))
        total, sums = 0.0, {}
        for side in (0, 1) if both_ways else (0,):
            cosine_BA = jnp.einsum("BD,AD->BA", z_B2D[:, side], all_A2D[:, 1 - side])
            logits_BA = jnp.where(counts_A > 0, cosine_BA / temperature, NEVER)
            each_B = jnp.where(weight_B > 0, entropy(logits_BA, target_B), 0.0)
            total += jnp.sum(each_B * weight_B)
            if side == 0:
                hit_B = jnp.argmax(logits_BA, axis=-1) == target_B
                sums["accuracy"] = jnp.sum(hit_B * weight_B)
        sums["loss"] = total / (2 if both_ways else 1)
        return Loss(sums["loss"] + sum(extra.values()), jnp.sum(weight_B), sums | extra)

    return loss


def gathered(x):
    """Returns the rows of all devices, in the order of the global batch."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return x
    return jax.lax.all_gather(x, sharding.ROW_AXES, axis=0, tiled=True)


def place(rows):
    """Returns the number in the global batch of a device's first row."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return 0
    return jax.lax.axis_index(sharding.ROW_AXES) * rows
