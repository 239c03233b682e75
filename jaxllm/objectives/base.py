"""What every objective returns, and what those of a task's head share."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.layers import split_keys


class Loss(NamedTuple):
    """Sums over a piece of a batch; the step adds pieces up and divides once.

    Attributes:
        total: what the gradient is taken of, summed over the piece, in nats.
        count: what it is counted in (tokens, pairs), float32.
        sums: {metric: sum over the piece}; "loss" is reported where it is present.
    """

    total: Any
    count: Any
    sums: dict


def check_rdrop(rdrop):
    """Raises ValueError for a weight that is none."""
    if not 0 <= rdrop < float("inf"):
        raise ValueError(f"rdrop={rdrop} must be at least 0, such as 1.0; 0 is off.")


def doubled(batch, key):
    """Returns a batch whose rows are there twice, the second half with other dropout keys."""
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)
    return twice, split_keys(key, 2).reshape(-1)


def halved(loss):
    """Returns the Loss of a doubled batch as that of the batch: the mean of both halves."""
    return jax.tree.map(lambda x: x / 2, loss)


def apart(logits_R):
    """Returns KL(p, q) + KL(q, p) of rows [..., C] and the same rows of the second half."""
    p, q = jnp.split(jax.nn.log_softmax(logits_R.astype(jnp.float32)), 2)
    return jnp.sum((jnp.exp(p) - jnp.exp(q)) * (p - q), axis=-1)


def of_head(model, sums_of, rdrop=0.0):
    """Makes the loss of what a task's head says.

    Args:
        model: `models.Model` with `task`: (params, x [B, T, D], batch) -> float32[...].
        sums_of: (what the head says, batch) -> ({metric: sum}, weights [...] of what is counted);
            "loss" is one of them.
        rdrop: weight of how far apart two passes with other dropout are, of heads that give a
            distribution: rdrop / 2 (KL(p, q) + KL(q, p)) beside the mean of their losses (Liang et
            al. 2021, arXiv:2106.14448). 0 is off.

    Returns:
        loss(params, refs, batch, key) -> Loss of "loss", "rdrop" and the routers' losses.
    """
    check_rdrop(rdrop)

    def loss(params, refs, batch, key=None):
        del refs  # nothing frozen takes part
        params, twice = model.whole(params), rdrop > 0 and key is not None
        if twice:
            batch, key = doubled(batch, key)
        x_BTD, extra = model.hidden(params, batch, key)
        found = model.task(params, x_BTD, batch)
        sums, weight = sums_of(found, batch)
        if twice:
            extra = {**extra, "rdrop": rdrop * jnp.sum(apart(found) * jnp.split(weight, 2)[0])}
        loss = Loss(sums["loss"] + sum(extra.values()), jnp.sum(weight), sums | extra)
        return halved(loss) if twice else loss

    return loss
