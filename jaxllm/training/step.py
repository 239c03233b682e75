"""The train step, for every objective."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxllm import sharding, trees
from jaxllm.objectives import Loss
from jaxllm.training import regularize
from jaxllm.training.state import LossScale

GROWTH_STEPS = 2000  # finite steps after which the loss scale doubles


class StepOptions(NamedTuple):
    """What a step does besides the gradient.

    Attributes:
        micro_batches: pieces that a batch is cut into; memory falls, the update stays.
        clip: largest global norm of the gradient; 0 is off.
        ema: decay of the average of the parameters; 0 is off.
        skip_limit: non-finite updates in a row after which no update is applied any more.
        seed: of dropout.
        dropout: whether the model drops anything.
    """

    micro_batches: int = 1
    clip: float = 1.0
    ema: float = 0.0
    skip_limit: int = 4
    seed: int = 0
    dropout: bool = False


def plain_gradient(loss_fn):
    """Returns gradient(params, refs, rows, key, factor) -> (Loss sums, gradients) of a piece."""

    def of_piece(params, refs, rows, key, factor):
        def total(params):
            loss = loss_fn(params, refs, rows, key)
            return loss.total * factor, loss

        grads, loss = jax.grad(total, has_aux=True)(params)
        return loss, jax.tree.map(lambda g: g.astype(jnp.float32), grads)

    return of_piece


def make_gradient(
    loss_fn, micro_batches, mesh=None, specs=None, refs_specs=None, of_pieces=plain_gradient
):
    """Returns gradient(params, refs, batch, key, factor) -> (Loss sums, gradient sums).

    The batch is cut along axis 0 into `micro_batches` pieces; loss and gradient are summed, never
    averaged, so that a token weighs the same in whatever piece it falls. `mesh`, `specs` and
    `refs_specs` are those of `sharding.spread`; `of_pieces` is `plain_gradient` or the like.
    """
    of_piece = of_pieces(loss_fn)

    def gradient(params, refs, batch, key, factor):
        if micro_batches == 1:
            return of_piece(params, refs, batch, key, factor)
        # Deal examples out like cards, so that each piece has rows on every device.
        cut = jax.tree.map(
            lambda x: x.reshape(-1, micro_batches, *x.shape[1:]).swapaxes(0, 1), (batch, key)
        )
        return trees.sum_over(lambda piece: of_piece(params, refs, *piece, factor), cut)

    return sharding.spread(gradient, mesh, specs, refs_specs, gradients=True)


def make_step(
    loss_fn,
    tx,
    schedule,
    options,
    mesh=None,
    specs=None,
    refs_specs=None,
    *,
    of_pieces=plain_gradient,
    penalty=None,
):
    """Returns step(state, refs, batch) -> (state, metrics).

    Args:
        loss_fn: (params, refs, batch, key) -> Loss.
        tx: optax.GradientTransformation.
        schedule: update count -> learning rate, for the metrics.
        options: StepOptions.
        mesh, specs, refs_specs, of_pieces: as `make_gradient` takes them.
        penalty: None, or (params, refs) -> {metric: what is added to the loss of one token}.

    An update that is not finite changes nothing but the counters `skipped` and `bad_run` (and
    halves the loss scale, in float16). After `skip_limit` of them in a row no update is applied any
    more: the loop finds `bad_run` at the limit and stops, and how late it looks changes nothing.
    One of a batch in which nothing counts is skipped too, and is not bad.
    """
    gradient = make_gradient(loss_fn, options.micro_batches, mesh, specs, refs_specs, of_pieces)

    def step(state, refs, batch):
        key = None
        if options.dropout:
            key = jax.random.fold_in(jax.random.key(options.seed), state.step)
        factor = state.scale.factor if state.scale else jnp.float32(1)
        loss, grads = gradient(state.params, _without_anchors(refs), batch, key, factor)
        empty = loss.count == 0
        loss = loss._replace(count=jnp.where(empty, 1, loss.count))
        # Divide once, at the end.
        grads = jax.tree.map(lambda g: g / (loss.count * factor), grads)
        terms = {}
        if penalty is not None:
            grads, terms = regularize.add_slopes(penalty, state.params, refs, grads)
        norm = optax.tree.norm(grads)
        metrics = metrics_of(loss) | terms
        finite = jnp.isfinite(norm) & jnp.isfinite(metrics["loss"])
        apply = finite & ~empty & (state.bad_run < options.skip_limit)
        if options.clip:
            shrink = options.clip / jnp.maximum(norm, options.clip)
            grads = jax.tree.map(lambda g: g * shrink, grads)
        updates, opt = tx.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = ()
        if state.ema:
            ema = jax.tree.map(lambda a, p: a + (1 - options.ema) * (p - a), state.ema, params)

        def keep(new, old):
            return jax.tree.map(lambda n, o: jnp.where(apply, n, o), new, old)

        new = state._replace(
            step=state.step + 1,
            params=keep(params, state.params),
            opt=keep(opt, state.opt),
            ema=keep(ema, state.ema),
            skipped=state.skipped + ~apply,
            bad_run=_bad_run(state, finite, options.skip_limit),
            scale=_next_scale(state.scale, finite) if state.scale else (),
        )
        metrics |= {
            "count": jnp.where(empty, 0, loss.count),
            "grad_norm": norm,
            "lr": schedule(state.step - state.skipped),
            "skipped": new.skipped,
            "bad_run": new.bad_run,
        }
        if state.scale:
            metrics["loss_scale"] = factor
        return new, metrics

    return step


def metrics_of(loss):
    """Divides the sums of a Loss by its count: {"loss", …, "count"}."""
    sums = {"loss": loss.total, **loss.sums}
    return {name: value / loss.count for name, value in sums.items()} | {"count": loss.count}


def make_evaluate(loss_fn, mesh=None, specs=None, refs_specs=None):
    """Returns evaluate(params, refs, batch) -> Loss, without dropout and gradients."""
    spread = sharding.spread(loss_fn, mesh, specs, refs_specs, gradients=False)

    def evaluate(params, refs, batch) -> Loss:
        return spread(params, _without_anchors(refs), batch, None)

    return evaluate


def _without_anchors(refs):
    """Frozen trees without those that only penalties look at."""
    return {name: tree for name, tree in refs.items() if name not in regularize.ANCHORS}


def _bad_run(state, finite, limit):
    """Counts non-finite updates in a row; once at the limit it stays there.

    In float16 an overflow is how the loss scale finds its place, so only one at the lowest scale
    counts.
    """
    bad = ~finite
    if state.scale:
        bad &= state.scale.factor <= 1.0
    longer = jnp.where(bad, state.bad_run + 1, 0)
    return jnp.where(state.bad_run >= limit, state.bad_run, longer)


def _next_scale(scale, finite):
    """Halves the loss scale after an overflow, doubles it after GROWTH_STEPS finite steps."""
    good = jnp.where(finite, scale.good + 1, 0)
    grow = good >= GROWTH_STEPS
    factor = jnp.where(finite, scale.factor, jnp.maximum(scale.factor / 2, 1.0))
    return LossScale(jnp.where(grow, factor * 2, factor), jnp.where(grow, 0, good))
