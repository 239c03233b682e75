"""The state of training: what the step reads, writes and donates."""

import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm import optim, sharding, trees


class LossScale(NamedTuple):
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740).

    Attributes:
        factor: what the loss is multiplied by, float32.
        good: finite steps since it last changed, int32.
    """

    factor: Any
    good: Any


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
        step: batches consumed, int32.
        params: tree of float32 parameters.
        opt: the optimizer's state.
        ema: exponential moving average of params, or () where it is off.
        bad_run: non-finite updates in a row, int32.
        skipped: non-finite updates so far, int32.
        scale: LossScale, or () where the computation is not float16.
    """

    step: Any
    params: Any
    opt: Any
    ema: Any
    bad_run: Any
    skipped: Any
    scale: Any


FIRST_SCALE = 2.0**15


def create(init, tx, key, *, ema, scaled):
    """Makes the state of step 0.

    Args:
        init: key -> params.
        tx: optax.GradientTransformation.
        key: random key of the initial weights.
        ema: whether an average of the parameters is kept.
        scaled: whether the loss is scaled (float16).
    """
    params = init(key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        opt=tx.init(params),
        # A copy: the step donates the state, and one buffer cannot be given away twice.
        ema=jax.tree.map(jnp.copy, params) if ema else (),
        bad_run=zero,
        skipped=zero,
        scale=LossScale(jnp.float32(FIRST_SCALE), zero) if scaled else (),
    )


def shardings(abstract, tx, infos, rules, mesh):
    """Returns the sharding of every leaf of a TrainState.

    Args:
        abstract: TrainState of ShapeDtypeStructs.
        tx: the optimizer.
        infos: {path: ParamInfo}.
        rules: `sharding.Rules`.
        mesh: the mesh.
    """
    whole = sharding.replicated(mesh)
    params = trees.unflatten(sharding.param_shardings(infos, rules.params, mesh))

    def of_state(leaf, axes):
        return NamedSharding(mesh, sharding.spec(axes, leaf.shape, rules.optimizer, mesh))

    axes = optim.state_axes(tx, infos)
    placed = jax.tree.map(lambda leaf: whole, abstract)
    return placed._replace(
        params=params,
        opt=jax.tree.map(of_state, abstract.opt, axes),
        ema=params if abstract.ema else (),
    )


def born_sharded(make, tx, infos, rules, mesh):
    """Returns (abstract state with shardings, function key -> state that is never whole).

    Args:
        make: key -> TrainState.
    """
    # The very argument it is called with later, so that it is traced once.
    key = jax.eval_shape(jax.random.key, 0)
    abstract = jax.eval_shape(make, key.update(sharding=sharding.replicated(mesh)))
    placed = shardings(abstract, tx, infos, rules, mesh)
    target = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        abstract,
        placed,
    )
    # Runs once: compiled with few optimizations, which takes a third of the time on a CPU. Whoever
    # says how many, in XLA_FLAGS, has these.
    level, options = "xla_backend_optimization_level", None
    if mesh.devices.flat[0].platform == "cpu" and level not in os.environ.get("XLA_FLAGS", ""):
        options = {level: 1}
    return target, jax.jit(make, out_shardings=placed, compiler_options=options)


def place_key(mesh, seed):
    """A random key that lives whole on every device of the mesh."""
    whole = NamedSharding(mesh, PartitionSpec())
    # Made there: a key cannot be put onto the devices of another process.
    return jax.jit(jax.random.key, static_argnums=0, out_shardings=whole)(seed)
