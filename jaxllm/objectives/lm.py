"""Next-token prediction with a cross-entropy that need not hold all logits at once."""

import functools

import jax
import jax.numpy as jnp

from jaxllm import trees
from jaxllm.objectives import documents
from jaxllm.objectives.base import Loss, check_rdrop, doubled, halved
from jaxllm.objectives.classify import check_smoothing
from jaxllm.sharding import wire

# Logits held at once when `chunk` is 0: 2^26 float32 numbers are 256 MiB a device.
LOGITS_AT_ONCE = 2**26
PER = ("token", "example")
ADDED = ("z_loss", "smoothing", "rdrop")  # to the loss of the tokens, where they are on


def pieces(batch, length, vocab, chunk):
    """Returns into how many pieces a row of `length` positions is cut.

    Args:
        batch, length, vocab: shape of the logits.
        chunk: positions a piece, at most; 0 for as many as keep a piece within LOGITS_AT_ONCE.
    """
    fits = chunk or max(LOGITS_AT_ONCE // (batch * vocab), 1)
    return next(n for n in range(1, length + 1) if length % n == 0 and length // n <= fits)


def add_pieces(function, params, x_BTD, row, n):
    """Returns the sums of function(params, x, rest) over `n` pieces, one after another.

    Where there are several, the gradient of each is taken while its logits are there, and kept for
    the backward pass, which multiplies it by the sum's: no logits are computed twice, and never
    are those of two pieces held (Liger's fused loss does so, arXiv:2410.10989, section 3.2).

    Args:
        function: (params, x [B, T / n, D], arrays [B, T / n, ...]) -> (scalar that is
            differentiated by params and x, tree of scalars that are not).
        params: tree; leaves of integers have no gradient.
        x_BTD, row: arrays [B, T, ...], cut along T, so that rows stay on their devices.
        n: pieces.
    """
    if n == 1:
        total, sums = function(params, x_BTD, row)
        return total, jax.lax.stop_gradient(sums)
    cut = jax.tree.map(
        lambda a: jnp.moveaxis(a.reshape(a.shape[0], n, -1, *a.shape[2:]), 1, 0), (x_BTD, row)
    )
    return _add(function, params, *cut)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _add(function, params, x_PBTD, row):
    return trees.sum_over(lambda piece: function(params, *piece), (x_PBTD, row))


def _add_forward(function, params, x_PBTD, row):
    leaves, form = jax.tree.flatten(params)
    real = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]

    def of_real(some, x_BTD, rest):
        found = list(leaves)
        for i, leaf in zip(real, some, strict=True):
            found[i] = leaf
        return function(form.unflatten(found), x_BTD, rest)

    some = [leaves[i] for i in real]
    gradient = jax.value_and_grad(of_real, argnums=(0, 1), has_aux=True)

    def one(piece):
        sums, (of_params, of_x) = gradient(some, *piece)
        return (sums, of_params), of_x

    (sums, of_params), of_x = trees.sum_over(one, (x_PBTD, row), beside=True)
    grads = [None] * len(leaves)
    for i, g in zip(real, of_params, strict=True):
        grads[i] = g
    return sums, (form.unflatten(grads), of_x)


def _add_backward(function, kept, g):
    del function
    scaled = jax.tree.map(lambda x: (x * g[0]).astype(x.dtype), kept)
    return *scaled, None


_add.defvjp(_add_forward, _add_backward)


def by_document(weight_BT, segment_BT):
    """Returns (weights that sum to one in each document of a row, number of documents with any).

    Args:
        weight_BT: float32, of the targets; a device's part of each row.
        segment_BT: int32, documents of a row from 1; 0 is padding.
    """
    ways = wire.size("seq") * wire.size("tensor")
    total_BS = documents.sums(weight_BT, segment_BT)
    own_BT = jnp.take_along_axis(total_BS, segment_BT, axis=1)
    weight_BT = jnp.where(weight_BT > 0, weight_BT / jnp.where(own_BT > 0, own_BT, 1), 0)
    # Each of the devices that share a row finds all of its documents.
    return weight_BT, jnp.sum(total_BS[:, 1:] > 0, dtype=jnp.float32) / ways


def make(model, *, z_loss=0.0, chunk=0, per="token", smoothing=0.0, rdrop=0.0):
    """Makes the language-modelling loss: mean negative log-likelihood of the targets.

    Args:
        model: `models.Model`.
        z_loss: weight of the squared log-partition, which keeps logits from drifting
            (Chowdhery et al. 2022, section 5); 1e-4 is usual, 0 is off.
        chunk: positions of every row whose logits are held at once; 0 chooses.
        per: what counts alike: every "token", or every "example": the mean over the tokens of each
            document in a row counts one, however long it is.
        smoothing: share of the target that goes to all tokens alike (Szegedy et al. 2016,
            arXiv:1512.00567, section 7); 0.1 is usual, 0 is off.
        rdrop: in training each row is read twice with other dropout, and rdrop / 2 (KL(p, q) +
            KL(q, p)) of what they predict comes to the mean of both losses (Liang et al. 2021,
            arXiv:2106.14448); 0 is off.

    Returns:
        loss(params, refs, batch, key) -> Loss in nats, counted in tokens or examples. `key` is None
        or one a row [B], for dropout. `batch` holds tokens, targets, position, segment:
        int32[B, T], weight: float32[B, T].
        Sums: loss (of the tokens alone), accuracy, the routers' losses; z_loss, smoothing and rdrop
        where they are on: what each adds to the loss.

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

    check_smoothing(smoothing)
    check_rdrop(rdrop)

    def of_piece(params, x_BTD, piece, twice):
        target_BT, weight_BT = piece
        found = model.scores(params, x_BTD, target_BT, smoothing > 0)
        hit_BT = found.chosen_BT >= found.top_BT
        lost = jnp.sum((found.partition_BT - found.chosen_BT) * weight_BT)
        sums = {"accuracy": jnp.sum(hit_BT * weight_BT)}
        if z_loss:
            sums["z_loss"] = z_loss * jnp.sum(jnp.square(found.partition_BT) * weight_BT)
        if smoothing:
            lost_BT = found.chosen_BT - found.mean_BT
            sums["smoothing"] = smoothing * jnp.sum(lost_BT * weight_BT)
        if twice:
            far_BT = model.divergence(params, *jnp.split(x_BTD, 2))
            sums["rdrop"] = rdrop * jnp.sum(far_BT * jnp.split(weight_BT, 2)[0])
        return lost + sum(sums.get(name, 0.0) for name in ADDED), sums

    def loss(params, refs, batch, key=None):
        del refs  # nothing frozen takes part
        twice = rdrop > 0 and key is not None
        if twice:
            batch, key = doubled(batch, key)
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
        one = functools.partial(of_piece, twice=twice)
        total, sums = add_pieces(one, params, x_BTD, (batch["targets"], weight_BT), n)
        sums["loss"] = total - sum(sums.get(name, 0.0) for name in ADDED)
        found = Loss(total + sum(extra.values()), count, sums | extra)
        return halved(found) if twice else found

    return loss
