"""Next-token prediction with a cross-entropy that need not hold all logits at once."""

import jax
import jax.numpy as jnp

from jaxllm import trees
from jaxllm.objectives.base import Loss

# Logits held at once when `chunk` is 0: 2^26 float32 numbers are 256 MiB a device.
LOGITS_AT_ONCE = 2**26


def pieces(batch, length, vocab, chunk):
    """Returns into how many pieces a row of `length` positions is cut.

    Args:
        batch, length, vocab: shape of the logits.
        chunk: positions a piece, at most; 0 for as many as keep a piece within LOGITS_AT_ONCE.
    """
    fits = chunk or max(LOGITS_AT_ONCE // (batch * vocab), 1)
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= fits)


def add_pieces(function, params, row, n):
    """Returns the sum of function(params, piece) over `n` pieces of `row`.

    Args:
        function: (params, arrays [B, T / n, ...]) -> tree of scalars.
        row: arrays [B, T, ...], cut along T, so that rows stay on their devices.
        n: pieces; more than one are computed one after another, and again in the backward pass.
    """
    if n == 1:
        return function(params, row)
    cut = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(a.shape[0], n, -1, *a.shape[2:]), 1, 0), row
    )
    one = jax.checkpoint(function)
    return trees.sum_over(lambda piece: one(params, piece), cut)


def make(model, *, z_loss=0.0, chunk=0):
    """Makes the language-modelling loss: mean negative log-likelihood of the targets.

    Args:
        model: `models.Model`.
        z_loss: weight of the squared log-partition, which keeps logits from drifting
            (Chowdhery et al. 2022, section 5); 1e-4 is usual, 0 is off.
        chunk: positions of every row whose logits are held at once; 0 chooses. Fewer pieces than
            the whole length are computed again in the backward pass.

    Returns:
        loss(params, refs, batch, key) -> Loss in nats, counted in tokens. `key` is None or one a
        row [B], for dropout. `batch` holds
        tokens, targets, position, segment: int32[B, T], weight: float32[B, T].
        Sums: loss (of the tokens alone), accuracy, z_loss where it is on, the routers' losses.

    Raises:
        ValueError: an option out of range.
    """
    if z_loss < 0:
        raise ValueError(f"z_loss={z_loss} must not be negative; 1e-4 is usual, 0 is off.")
    if chunk < 0:
        raise ValueError(f"chunk={chunk} must not be negative; 0 chooses.")

    def piece_sums(params, piece):
        x_BTD, target_BT, weight_BT = piece
        found = model.scores(params, x_BTD, target_BT)
        hit_BT = found.chosen_BT >= found.top_BT
        sums = {
            "loss": jnp.sum((found.partition_BT - found.chosen_BT) * weight_BT),
            "accuracy": jnp.sum(hit_BT * weight_BT),
        }
        if z_loss:
            sums["z_loss"] = z_loss * jnp.sum(jnp.square(found.partition_BT) * weight_BT)
        return sums

    def loss(params, refs, batch, key=None):
        del refs  # nothing frozen takes part
        x_BTD, extra = model.hidden(model.whole(params), batch, key)
        # The backward pass is done with the head, and so with its logits, before it begins with
        # the layers: left to itself a compiler may hold them all the while.
        inside = ("layers", "encoder")
        outside = {name: leaf for name, leaf in params.items() if name not in inside}
        outside, x_BTD = trees.together((outside, x_BTD))
        params = model.whole(outside)
        n = pieces(*x_BTD.shape[:2], model.config.vocab, chunk)
        sums = add_pieces(piece_sums, params, (x_BTD, batch["targets"], batch["weight"]), n)
        total = sums["loss"] + sums.get("z_loss", 0.0) + sum(extra.values())
        return Loss(total, jnp.sum(batch["weight"]), sums | extra)

    return loss
