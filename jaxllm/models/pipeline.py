"""A pipeline: each device of `stage` has some of the layers, and pieces of rows go through all.

Rows are split over `stage` too, outside of the layers: each device embeds its own and takes the
loss of its own. With S stages, P pieces in all and v rounds, stage s has v chunks of layers, those
numbered s, s + S, s + 2 S, …; a piece goes round v times (Narayanan et al. 2021, arXiv:2104.04473,
section 2.2). Of P v + S - 1 ticks each stage works in P v.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.sharding import wire


def bubble(stages, pieces, rounds):
    """The share of ticks in which a stage has nothing to do.

    Args:
        stages: S.
        pieces: that the rows of one device are cut into; P is S times as many.
        rounds: v.
    """
    return (stages - 1) / (stages * pieces * rounds + stages - 1)


def run(function, x_BTD, shared, weights, gather, *, pieces, rounds, policy=None):
    """Sends this device's rows through the layers of all stages.

    Args:
        function: (x [b, T, D], shared of its rows, weights of a chunk, number of the chunk) ->
            (x, sums); sums is a tree of scalars.
        x_BTD: this device's rows.
        shared: tree of arrays [B, …], what the layers need to know of each row.
        weights: tree of arrays [L / S, …], this device's part of the stacked layers.
        gather: weights -> weights, whole over the axes that are split only to save memory. Done
            once, before the first tick, and not in each.
        pieces: that B is cut into.
        rounds: v; L is a multiple of S v.
        policy: of `jax.checkpoint`, what the backward pass finds of a tick; None for all but what
            was only picked, not least the weights of a chunk.

    Returns:
        (x_BTD after all layers, sums of this device's layers over all rows of the pipeline).
    """
    S, me = wire.size("stage"), wire.index("stage")
    chunks = jax.tree.map(lambda w: _deal(w, rounds), weights)
    chunks = jax.tree.map(lambda w: w.reshape(rounds, -1, *w.shape[1:]), _hold(gather, chunks))
    split = jax.tree.map(
        lambda a: a.reshape(pieces, a.shape[0] // pieces, *a.shape[1:]), (x_BTD, shared)
    )
    x_PbTD, shared = jax.lax.all_gather(split, "stage", axis=0, tiled=True)
    P = S * pieces
    ticks = P * rounds + S - 1
    fed = x_PbTD[_piece(np.minimum(np.arange(ticks), P * rounds - 1), S, rounds)]
    around = [(i, (i + 1) % S) for i in range(S)]

    def tick(arrived, now):
        t, x_bTD = now
        turn = jnp.clip(t - me, 0, P * rounds - 1)  # how many chunks this stage has done
        works = turn == t - me
        piece, lap = _piece(turn, S, rounds), turn % (S * rounds) // S
        pick = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)
        x_bTD = jnp.where((me == 0) & (lap == 0), x_bTD, arrived)
        of_rows = jax.tree.map(lambda a: pick(a, piece), shared)
        chunk = _use(*jax.tree.map(lambda w: pick(w, lap), chunks))
        x_bTD, sums = function(x_bTD, of_rows, chunk, lap * S + me)
        sums = jax.tree.map(lambda s: jnp.where(works, s, 0), sums)
        return jax.lax.ppermute(x_bTD, "stage", around), (x_bTD, sums)

    tick = jax.checkpoint(tick, policy=policy or _is_computed, prevent_cse=False)
    start = jnp.zeros(x_PbTD.shape[1:], x_PbTD.dtype)
    _, (left, sums) = jax.lax.scan(tick, start, (jnp.arange(ticks), fed))
    turns = np.arange(P * rounds)
    last_lap = turns[turns % (S * rounds) // S == rounds - 1]
    x_PbTD = jnp.where(me == S - 1, left[last_lap + S - 1], 0)
    x_PbTD = jax.lax.psum_scatter(x_PbTD, "stage", scatter_dimension=0, tiled=True)
    return x_PbTD.reshape(x_BTD.shape), jax.tree.map(lambda s: s.sum(0), sums)


def _is_computed(primitive, *_, **__):
    """Whether something is more than a part of what is there anyway."""
    return primitive.name not in ("dynamic_slice", "squeeze", "reshape")


def _piece(turn, stages, rounds):
    """The piece that is in its turn: S pieces go through all rounds, then the next S."""
    return turn // (stages * rounds) * stages + turn % stages


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _hold(gather, weights):
    """Returns (gathered weights, zeros in float32 whose gradient is taken for that of weights).

    So gradients add up over the ticks in float32, whatever the weights are gathered in.
    """
    return _hold_forward(gather, weights)[0]


def _hold_forward(gather, weights):
    whole, back = jax.vjp(gather, weights)
    return (whole, jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), whole)), back


def _hold_backward(gather, back, g):
    return back(jax.tree.map(lambda like, sums: sums.astype(like.dtype), *g))


_hold.defvjp(_hold_forward, _hold_backward)


@jax.custom_vjp
def _use(weights, sums):
    """Returns the weights; their gradient goes to `sums`."""
    return weights


_use.defvjp(
    lambda weights, sums: (weights, None),
    lambda _, g: (None, jax.tree.map(lambda x: x.astype(jnp.float32), g)),
)


def _deal(w, v):
    """Gives each stage its chunks: from v in a row, v s to v s + v - 1, to s, s + S, ….

    In each of v exchanges every stage sends one chunk and gets one. w is [L / S, …].
    """
    S = wire.size("stage")
    if v == 1:
        return w
    shape, w = w.shape, w.reshape(v, -1, *w.shape[1:])
    me, shift = wire.index("stage"), S // math.gcd(v, S)
    got, slot = [], np.zeros((S, v), np.int32)  # slot[stage, n]: exchange that brings its n-th
    for i in range(v):
        ways = []
        for s in range(S):
            chunk = s * v + (i + s // shift) % v
            ways.append((s, chunk % S))
            slot[chunk % S, chunk // S] = i
        sent = jax.lax.dynamic_index_in_dim(w, (i + me // shift) % v, keepdims=False)
        got.append(jax.lax.ppermute(sent, "stage", ways))
    return jnp.stack(got)[jnp.asarray(slot)[me]].reshape(shape)
