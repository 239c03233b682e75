"""Sharded training is the same training; what is sharded is sharded from birth."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import cli, models, optim, sharding, trees
from jaxllm.config import ConfigError
from jaxllm.dims import ParamInfo
from jaxllm.training import setup
from jaxllm.training.state import born_sharded, create, place_key
from tests import runs
from tests.conftest import random_params, tiny_config

EIGHT = {
    "data 2 x fsdp 2 x tensor 2": ((2, 2, 2), "zero3"),
    "zero1": ((2, 2, 2), "zero1"),
    "fsdp 8": ((1, 8, 1), "zero3"),
    "data 8": ((8, 1, 1), "zero1"),
}


@functools.cache
def losses(shape, rules, place, cache, steps=20):
    """Losses of a run of SGD in float32, and the state at its end."""
    cli.use_compile_cache(cache)
    mesh = dict(zip(sharding.MESH_AXES, shape, strict=True))
    fields = {f"mesh.{axis}": size for axis, size in mesh.items()}
    fields |= {"sharding": rules, "steps": steps, "model.layers": 2, "step.ema": 0.5}
    fields["model.dropout"] = 0.1  # a row drops the same on any device
    run = setup.assemble(runs.config(fields), place, jax.devices()[: math.prod(shape)])
    rows = sharding.local_rows(run.mesh, 8)
    state, found = run.create(place_key(run.mesh, 0)), []
    for step in range(steps):
        batch = sharding.global_batch(run.mesh, rows, run.train(step, rows), 8)
        state, metrics = run.step(state, {}, batch)
        found.append(float(metrics["loss"]))
    return np.array(found), state


SLOW = {"replicated": ((2, 2, 2), "replicated")}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("name", [*EIGHT, pytest.param("replicated", marks=pytest.mark.slow)])
def test_eight_devices_train_as_one(name, place, compile_cache):
    one, state = losses((1, 1, 1), "zero3", place, compile_cache)
    eight, sharded = losses(*{**EIGHT, **SLOW}[name], place, compile_cache)
    assert one[-1] < one[0] - 1
    np.testing.assert_allclose(eight, one, 1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-5), state.params, sharded.params
    )


def bytes_on_device(tree, device=0):
    """Bytes that one device holds of a tree of arrays."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += sum(s.data.nbytes for s in leaf.addressable_shards if s.device.id == device)
    return total


def test_how_much_a_device_holds(place, compile_cache):
    """Stage 3 splits everything over fsdp and tensor, stage 1 the optimizer's state only."""
    whole = bytes_on_device(losses((1, 1, 1), "zero3", place, compile_cache)[1].params)
    parts = {}
    for name, how in EIGHT.items():
        state = losses(*how, place, compile_cache)[1]
        parts[name] = [bytes_on_device(t) / whole for t in (state.params, state.opt, state.ema)]
    nearly = functools.partial(pytest.approx, rel=0.02, abs=0.01)  # norms are not split
    # The vocabulary of 259 does not split over 2: the table and the head are split by width only.
    assert parts["fsdp 8"] == nearly([1 / 8] * 3)
    assert parts["data 8"] == nearly([1, 1 / 8, 1])
    params, opt, ema = parts["data 2 x fsdp 2 x tensor 2"]
    assert params == ema == pytest.approx(opt, rel=1e-3) and 1 / 4 < params < 1 / 2
    params, opt, ema = parts["zero1"]
    assert params == ema and params > 1 / 2 and opt < params / 2.5


def test_the_state_after_steps_is_sharded_as_at_birth(place, compile_cache):
    for how in EIGHT.values():
        mesh = dict(zip(sharding.MESH_AXES, how[0], strict=True))
        fields = {f"mesh.{axis}": size for axis, size in mesh.items()} | {"sharding": how[1]}
        config = runs.config({**fields, "model.layers": 2, "step.ema": 0.5, "steps": 20})
        run = setup.assemble(config, place)
        state = losses(*how, place, compile_cache)[1]
        wanted = trees.flatten(run.abstract)
        for path, leaf in trees.flatten(state).items():
            assert leaf.sharding.is_equivalent_to(wanted[path].sharding, leaf.ndim), path


def make_mesh(data, fsdp, tensor):
    shape = dict(data=data, fsdp=fsdp, tensor=tensor)
    return sharding.make_mesh(shape, jax.devices()[: data * fsdp * tensor])


# Where a sign or a root of a tiny number decides, roundings show more.
SOME = ("embed", "layers/attn/o/w", "layers/mlp/up/w", "layers/mlp_norm/scale")
TOLERANCE = {"adamw8bit": 2e-2, "lion": 1e-5, "muon": 1e-4}


@pytest.mark.parametrize("kind", optim.OPTIMIZERS)
def test_one_sharded_update_of_every_optimizer(kind):
    c = tiny_config(64, 16, width=64, mlp_width=128)
    infos = {path: models.abstract_params(c)[path] for path in SOME}
    schedule = optim.make_schedule(dict(kind="constant", lr=0.1), 9)
    tx = optim.make_optimizer(dict(kind=kind), schedule, infos)
    params, grads = (
        trees.unflatten({path: tree[path] for path in SOME})
        for tree in (
            trees.flatten(random_params(models.make(c))),
            trees.flatten(random_params(models.make(c), seed=1, scale=0.01)),
        )
    )

    def moved(mesh):
        make = functools.partial(create, lambda key: jax.tree.map(jnp.asarray, params), tx)
        rules = sharding.RULES["zero3"]
        make_state = functools.partial(make, ema=False, scaled=False)
        abstract, born = born_sharded(make_state, tx, infos, rules, mesh)
        state = born(place_key(mesh, 0))
        places = trees.unflatten(sharding.param_shardings(infos, rules.params, mesh))
        shapes = jax.tree.map(lambda leaf: leaf.sharding, abstract.opt)

        @functools.partial(jax.jit, out_shardings=(places, shapes))
        def update(grads, state):
            return tx.update(grads, state.opt, state.params)

        return update(jax.device_put(grads, places), state)

    one, one_opt = jax.device_get(moved(make_mesh(1, 1, 1)))
    updates, opt = moved(make_mesh(2, 2, 2))
    for path, leaf in trees.flatten(one).items():
        size = np.abs(leaf).max()
        assert size > 0, path
        gap = np.abs(np.asarray(trees.flatten(updates)[path]) - leaf).max()
        assert gap <= TOLERANCE.get(kind, 1e-6) * size, (path, gap / size)
    assert jax.tree.structure(opt) == jax.tree.structure(one_opt)
    big = [x for x in jax.tree.leaves(opt) if x.size >= 4096]
    assert all(not x.sharding.is_fully_replicated for x in big)
    assert big or kind in ("adafactor",)


def test_what_does_not_split_evenly_is_split_less_and_listed():
    mesh = make_mesh(2, 2, 2)
    infos = {
        "even": ParamInfo((8, 6), jnp.float32, ("vocab", "embed"), ()),
        "odd": ParamInfo((259, 7), jnp.float32, ("vocab", "embed"), ()),
    }
    rules = sharding.RULES["zero3"].params
    assert sharding.unsplit(infos, rules, mesh) == [
        "odd: vocab 259 over tensor=2",
        "odd: embed 7 over fsdp=2",
    ]
    places = sharding.param_shardings(infos, rules, mesh)
    assert places["even"].shard_shape((8, 6)) == (4, 3)
    assert places["odd"].shard_shape((259, 7)) == (259, 7)
    # Over data x fsdp = 4, an axis of 6 is split over data alone, and that is told.
    wide = {"w": ParamInfo((6,), jnp.float32, ("embed",), ())}
    assert sharding.param_shardings(wide, sharding.RULES["zero1"].optimizer, mesh)["w"].shard_shape(
        (6,)
    ) == (3,)
    assert sharding.unsplit(wide, sharding.RULES["zero1"].optimizer, mesh) == [
        "w: embed 6 over fsdp=2"
    ]
    assert sharding.unsplit(infos, rules, make_mesh(8, 1, 1)) == []


@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_every_device_gets_its_rows(shape):
    mesh = make_mesh(*shape)
    ways = shape[0] * shape[1]
    tokens = np.arange(8 * 3).reshape(8, 3)
    rows = sharding.local_rows(mesh, 8)
    np.testing.assert_array_equal(rows, np.arange(8))  # all devices are of this process
    batch = sharding.global_batch(mesh, rows, {"tokens": tokens[rows]}, 8)["tokens"]
    np.testing.assert_array_equal(batch, tokens)
    for shard in batch.addressable_shards:
        data, fsdp, _ = (int(i[0]) for i in np.nonzero(mesh.devices == shard.device))
        part = data * shape[1] + fsdp
        wanted = tokens[part * 8 // ways : (part + 1) * 8 // ways]
        np.testing.assert_array_equal(shard.data, wanted)


@pytest.mark.parametrize(
    "shape, devices",
    [
        ((3, 1, 1), 8), ((1, 3, 1), 8), ((1, 1, 3), 8), ((-1, 3, 1), 8), ((-1, 1, 16), 8),
        ((-1, -1, 1), 8), ((0, 1, 1), 8), ((-2, 1, 1), 8), ((4, 4, 1), 8), ((2, 2, 2), 1),
        ((-1, 3, 5), 8), ((3, -1, 1), 8), ((1, 1, 1), 8), ((3, 3, -1), 8),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_names_edits_that_work(shape, devices):
    section = dict(zip(sharding.MESH_AXES, shape, strict=True))
    with pytest.raises(ConfigError, match=r"config\.mesh") as caught:
        sharding.mesh_shape(section, devices)
    text = str(caught.value)
    edits = runs.edits(text)
    assert edits, text
    for name, value in edits:
        section[name.removeprefix("mesh.")] = int(value)
    fitting = sharding.mesh_shape(section, devices)
    assert math.prod(fitting.values()) == devices
