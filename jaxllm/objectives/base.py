"""What every objective returns, and what those of a task's head share."""

from typing import Any, NamedTuple

import jax.numpy as jnp


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


def of_head(model, sums_of):
    """Makes the loss of what a task's head says.

    Args:
        model: `models.Model` with `task`: (params, x [B, T, D], batch) -> float32[...].
        sums_of: (what the head says, batch) -> ({metric: sum}, weights [...] of what is counted);
            "loss" is one of them.

    Returns:
        loss(params, refs, batch, key) -> Loss of "loss" and the routers' losses.
    """

    def loss(params, refs, batch, key=None):
        del refs  # nothing frozen takes part
        params = model.whole(params)
        x_BTD, extra = model.hidden(params, batch, key)
        sums, weight = sums_of(model.task(params, x_BTD, batch), batch)
        return Loss(sums["loss"] + sum(extra.values()), jnp.sum(weight), sums | extra)

    return loss
