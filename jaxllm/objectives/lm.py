"""Next-token prediction with a cross-entropy that need not hold all logits at once."""

import jax
import jax.numpy as jnp

from jaxllm import trees
from jaxllm.objectives.base import Loss
from jaxllm.sharding import wire

# Logits held at once when `chunk` is 0: 2^26 float32 numbers are 256 MiB a device.
LOGITS_AT_ONCE = 2**26
PER = ("token", "example")


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


def by_document(weight_BT, segment_BT):
    """Returns (weights that sum to one in each document of a row, number of documents with any).

    Args:
        weight_BT: float32, of the targets; a device's part of each row.
        segment_BT: int32, documents of a row from 1; 0 is padding.
    """
    ways = wire.size("seq") * wire.size("tensor")
    room = weight_BT.shape[1] * ways + 1  # no row has more documents than places

    def add_up(weight_T, segment_T):
        return jnp.zeros(room, jnp.float32).at[segment_T].add(weight_T)

    total_BS = wire.sum_tokens(wire.sum_row(jax.vmap(add_up)(weight_BT, segment_BT)))
    own_BT = jnp.take_along_axis(total_BS, segment_BT, axis=1)
    weight_BT = jnp.where(weight_BT > 0, weight_BT / jnp.where(own_BT > 0, own_BT, 1), 0)
    # Each of the devices that share a row finds all of its documents.
    return weight_BT, jnp.sum(total_BS[:, 1:] > 0, dtype=jnp.float32) / ways


def make(model, *, z_loss=0.0, chunk=0, per="token"):
    """Makes the language-modelling loss: mean negative log-likelihood of the targets.

    Args:
        model: `models.Model`.
        z_loss: weight of the squared log-partition, which keeps logits from drifting
            (Chowdhery et al. 2022, section 5); 1e-4 is usual, 0 is off.
        chunk: positions of every row whose logits are held at once; 0 chooses. Fewer pieces than
            the whole length are computed again in the backward pass.
        per: what counts alike: every "token", or every "example": the mean over the tokens of each
            document in a row counts one, however long it is.

    Returns:
        loss(params, refs, batch, key) -> Loss in nats, counted in tokens or examples. `key` is None
        or one a row [B], for dropout. `batch` holds tokens, targets, position, segment:
        int32[B, T], weight: float32[B, T].
        Sums: loss (of the tokens alone), accuracy, z_loss where it is on, the routers' losses.

    Raises:
        ValueError: an option out of range.
    """
    if z_loss < 0:
        raise ValueError(f"z_loss={z_loss} must not be negative; 1e-4 is usual, 0 is off.")
    if chunk < 0:
        raise ValueError(f"chunk={chunk} must not be negative; 0 chooses.")
    if per not in PER:
        raise ValueError(f"per={per!r} is unknown. Known: {', '.join(PER)}, such as token.")
    c = model.config
    if per == "example" and c.experts and (c.balance_loss or c.router_z_loss):
        raise ValueError(
            "per='example' with routers, whose own losses count tokens. Set model.balance_loss and "
            "model.router_z_loss to 0, or take another, such as token."
        )

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
        weight_BT, count = batch["weight"], jnp.sum(batch["weight"])
        if per == "example":
            weight_BT, count = by_document(weight_BT, batch["segment"])
        n = pieces(*x_BTD.shape[:2], model.config.vocab, chunk)
        sums = add_pieces(piece_sums, params, (x_BTD, batch["targets"], weight_BT), n)
        total = sums["loss"] + sums.get("z_loss", 0.0) + sum(extra.values())
        return Loss(total, count, sums | extra)

    return loss
