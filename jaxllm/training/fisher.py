"""The diagonal Fisher information of a model: how much its predictions hang on each parameter."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm import objectives, sharding
from jaxllm.config import ConfigError
from jaxllm.training.state import place_key


def sample_lm(model, params, batch, key):
    """Returns a batch whose targets are drawn from what the model predicts."""
    return batch | {"targets": jax.random.categorical(key, model.apply(params, batch))}


def sample_head(name):
    """Returns the same of a head, whose targets a batch has under `name`."""

    def sample(model, params, batch, key):
        params = model.whole(params)
        logits = model.task(params, model.hidden(params, batch)[0], batch)
        return batch | {name: jax.random.categorical(key, logits)}

    return sample


# Objectives whose outputs are distributions: how targets are drawn from them.
SAMPLES = {"lm": sample_lm, "classify": sample_head("label"), "tag": sample_head("targets")}


def check(config):
    """Raises ConfigError for a run that it cannot be estimated of."""
    kind, method = config.objective.kind, config.finetune.kind
    if kind not in SAMPLES:
        raise ConfigError(
            f"--fisher: objective.kind={kind!r} predicts no distribution over classes. Those that "
            f"do: {', '.join(SAMPLES)}."
        )
    if method != "full" or config.finetune.freeze:
        raise ConfigError(
            f"--fisher: it is of all parameters, and finetune.kind={method!r} trained some. Take a "
            "run that was trained whole, or one that python -m jaxllm.convert imported."
        )


def estimate(trained, source, rows):
    """Returns (Fisher information, tree like the parameters, of one token or example; rows; count).

    F is the mean of the squared gradient of log p(y | x), with y drawn from the model and not read
    from the data: so gradients of different tokens do not correlate, and the square of a sum over
    rows has the mean of the sum of squares, whatever is computed together. Rows are drawn as in
    training; one at a time is taken on each device.

    Args:
        trained: `reopen.Trained`.
        source: rows, as `data.open_split` returns.
        rows: how many.

    Source: Kirkpatrick et al. 2017, arXiv:1612.00796, section 2.1; Martens 2014, arXiv:1412.1193,
    section 5, on drawing y.
    """
    run = trained.run
    kind, model, mesh = run.config.objective.kind, run.model, run.mesh
    loss_fn = objectives.OBJECTIVES[kind](model)
    places = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.params)

    def add(sums, params, batch, key):
        batch = SAMPLES[kind](model, params, batch, key)

        def total(params):
            loss = loss_fn(params, {}, batch)
            return loss.sums["loss"], loss.count

        grads, count = jax.grad(total, has_aux=True)(params)
        return jax.tree.map(lambda s, g: s + jnp.square(g.astype(jnp.float32)), sums, grads), count

    zeros = jax.jit(lambda params: jax.tree.map(jnp.zeros_like, params), out_shardings=places)
    sums, count, key = zeros(trained.params), 0.0, place_key(mesh, run.config.seed + 3)
    add = jax.jit(add, donate_argnums=0, out_shardings=(places, None))
    size = math.prod(mesh.shape[axis] for axis in sharding.ROW_AXES)
    here, batches = sharding.local_rows(mesh, size), -(-rows // size)
    for index in range(batches):
        local = source.take(np.int64(index) * size + np.arange(size)[here])
        batch = sharding.global_batch(mesh, here, local, size)
        sums, counted = add(sums, trained.params, batch, jax.random.fold_in(key, index))
        count += float(counted)
    if not count:
        raise ConfigError(f"--fisher={rows}: none of these rows has a target.")
    return jax.tree.map(lambda s: s / count, sums), batches * size, count
