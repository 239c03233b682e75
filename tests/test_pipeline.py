"""A pipeline is its layers one after another, whatever the stages, rounds and pieces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.models import pipeline
from tests import runs

ROWS, T, D = 4, 3, 5  # rows of each stage


def layers(x, weights):
    """Layers whose order matters; also returns a sum over them."""

    def one(x, w):
        x = jnp.tanh(x * w + 0.1 * x.sum(-1, keepdims=True))
        return x, x.sum()

    x, sums = jax.lax.scan(one, x, weights)
    return x, sums.sum()


def piped(stages, rounds, pieces, x, scale, weights):
    """The same through a pipeline: rows split over stages, and so are the weights."""
    mesh = runs.mesh(stage=stages)
    split = P("stage")

    def one_stage(x, scale, weights):
        def chunk(x, scale, weights, number):
            del number
            x, total = layers(x * scale[:, None, None], weights)
            return x, {"total": total}

        options = dict(pieces=pieces, rounds=rounds)
        x, sums = pipeline.run(chunk, x, scale, weights, lambda w: w, **options)
        return x, jax.lax.psum(sums["total"], "stage")

    return functools.partial(
        jax.shard_map(
            one_stage, mesh=mesh, in_specs=(split,) * 3, out_specs=(split, P()), check_vma=False
        )
    )(x, scale, weights)


def one_by_one(stages, rounds, x, scale, weights):
    """Chunk by chunk, as the numbers of the chunks have it."""
    total = 0.0
    for chunk in weights.reshape(stages * rounds, -1, D):
        x, more = layers(x * scale[:, None, None], chunk)
        total += more
    return x, total


@pytest.mark.parametrize(
    "stages, rounds, pieces", [(2, 1, 4), (4, 1, 1), (4, 2, 2), (2, 3, 1), (4, 6, 1), (8, 4, 2)]
)
def test_a_pipeline_is_its_layers_one_after_another(stages, rounds, pieces):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (ROWS * stages, T, D))
    scale = 1 + jax.random.uniform(keys[1], (ROWS * stages,))
    weights = jax.random.normal(keys[2], (2 * stages * rounds, D))
    g = jax.random.normal(keys[3], x.shape)

    def value(function, x, weights):
        y, total = function(x, scale, weights)
        return jnp.sum(y * g), total

    wanted = jax.value_and_grad(
        functools.partial(value, functools.partial(one_by_one, stages, rounds)), (0, 1), True
    )(x, weights)
    found = jax.jit(
        jax.value_and_grad(
            functools.partial(value, functools.partial(piped, stages, rounds, pieces)), (0, 1), True
        )
    )(x, weights)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, 2e-4, 1e-5)


def test_the_bubble_is_the_share_of_idle_ticks():
    """Each stage works in as many ticks as there are chunks and pieces; counted in the schedule."""
    for stages, pieces, rounds in (4, 1, 1), (4, 2, 1), (4, 2, 3), (8, 1, 2):
        turns = stages * pieces * rounds
        ticks = turns + stages - 1
        works = sum(0 <= t - stage < turns for t in range(ticks) for stage in range(stages))
        idle = 1 - works / (ticks * stages)
        assert pipeline.bubble(stages, pieces, rounds) == pytest.approx(idle)
    assert pipeline.bubble(4, 1, 1) == 3 / 7
