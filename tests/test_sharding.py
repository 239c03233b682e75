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

# {mesh: (rules, settings of the model that it needs)}
EIGHT = {
    "data 2 x fsdp 2 x tensor 2": ("zero3", ()),
    "fsdp 8": ("zero3", ()),
    "tensor 8": ("zero3", (("heads", 8), ("vocab", 264))),
    "data 8": ("zero1", ()),
    "seq 8": ("zero3", ()),
    "expert 4 x data 2": ("zero3", (("experts", 8), ("capacity", 1.25))),
    "expert 2 x tensor 2 x fsdp 2": ("zero3", (("experts", 4), ("shared_experts", 1))),
    "stage 4 x data 2": ("zero3", (("layers", 4), ("pipeline_pieces", 1))),
    "data 2 x stage 2 x tensor 2": ("zero3", (("layers", 8), ("pipeline_rounds", 4))),
    "seq 2 x tensor 2 x fsdp 2": ("zero3", ()),
    "data 4 x tensor 2": ("zero1", (("kv_heads", 1),)),
}
ONE = "data 1"


@functools.cache
def losses(mesh, rules, fields, place, cache, steps=20):
    """Losses of a run of SGD in float32, and the state at its end, which lies as at its birth."""
    cli.use_compile_cache(cache)
    run = make_run(mesh, rules, fields, place, steps)
    rows = sharding.local_rows(run.mesh, 8)
    state, found = run.create(place_key(run.mesh, 0)), []
    for step in range(steps):
        batch = sharding.global_batch(run.mesh, rows, run.train(step, rows), 8)
        state, metrics = run.step(state, {}, batch)
        found.append(float(metrics["loss"]))
    wanted = trees.flatten(run.abstract)
    for path, leaf in trees.flatten(state).items():
        assert leaf.sharding.is_equivalent_to(wanted[path].sharding, leaf.ndim), path
    return np.array(found), state


def make_run(mesh, rules, fields, place, steps=20):
    """The run of a mesh, such as "data 2 x fsdp 4", and of fields of the model."""
    shape = runs.shape_of(mesh)
    wanted = {f"mesh.{axis}": size for axis, size in shape.items()}
    wanted |= {"sharding": rules, "steps": steps, "model.layers": 2, "step.ema": 0.5}
    wanted["model.dropout"] = 0.1  # a token drops the same on any device
    wanted |= {f"model.{name}": value for name, value in fields}
    return setup.assemble(runs.config(wanted), place, jax.devices()[: math.prod(shape.values())])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def check_equal(mesh, rules, fields, place, cache):
    one, state = losses(ONE, "zero3", fields, place, cache)
    eight, sharded = losses(mesh, rules, fields, place, cache)
    assert one[-1] < one[0] - 1
    np.testing.assert_allclose(eight, one, 1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-5), state.params, sharded.params
    )


# Those whose axes are in others, too.
SLOW = ("tensor 8", "seq 8", "data 4 x tensor 2", "data 8")


@pytest.mark.parametrize("mesh", runs.slow(EIGHT, SLOW))
def test_eight_devices_train_as_one(mesh, place, compile_cache):
    check_equal(mesh, *EIGHT[mesh], place, compile_cache)


@pytest.mark.parametrize("rules", ["zero1", pytest.param("replicated", marks=pytest.mark.slow)])
def test_eight_devices_train_as_one_by_every_rule(rules, place, compile_cache):
    check_equal("data 2 x fsdp 2 x tensor 2", rules, (), place, compile_cache)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_heads_that_are_normed_together_may_be_on_several_devices(kv_heads, place, compile_cache):
    fields = (("norm_place", "out"), ("qk_norm_whole", True), ("kv_heads", kv_heads))
    check_equal("data 2 x fsdp 2 x tensor 2", "zero3", fields, place, compile_cache)


def bytes_on_device(tree, device=0):
    """Bytes that one device holds of a tree of arrays."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        total += sum(s.data.nbytes for s in leaf.addressable_shards if s.device.id == device)
    return total


def test_how_much_a_device_holds(place, compile_cache):
    """Stage 3 splits everything over fsdp and tensor, stage 1 the optimizer's state only."""
    whole = bytes_on_device(losses(ONE, "zero3", (), place, compile_cache)[1].params)
    parts = {}
    for mesh in ("fsdp 8", "data 8", "data 2 x fsdp 2 x tensor 2"):
        state = losses(mesh, *EIGHT[mesh], place, compile_cache)[1]
        parts[mesh] = [bytes_on_device(t) / whole for t in (state.params, state.opt, state.ema)]
    nearly = functools.partial(pytest.approx, rel=0.02, abs=0.01)  # norms are not split
    # The vocabulary of 259 does not split over 2: the table and the head are split by width only.
    assert parts["fsdp 8"] == nearly([1 / 8] * 3)
    assert parts["data 8"] == nearly([1, 1 / 8, 1])
    params, opt, ema = parts["data 2 x fsdp 2 x tensor 2"]
    assert params == ema == pytest.approx(opt, rel=1e-3) and 1 / 4 < params < 1 / 2
    state = losses("data 2 x fsdp 2 x tensor 2", "zero1", (), place, compile_cache)[1]
    params, opt, ema = (bytes_on_device(t) / whole for t in (state.params, state.opt, state.ema))
    assert params == ema and params > 1 / 2 and opt < params / 2.5


@pytest.mark.parametrize("mesh", SLOW)
def test_the_state_after_steps_is_sharded_as_at_birth(mesh, place, compile_cache):
    """Of the meshes that quick tests do not train on; `losses` looks at every one."""
    losses(mesh, *EIGHT[mesh], place, compile_cache)


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

    one, one_opt = jax.device_get(moved(runs.mesh(data=1)))
    updates, opt = moved(runs.mesh(data=2, fsdp=2, tensor=2))
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
    mesh = runs.mesh(data=2, fsdp=2, tensor=2)
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
    state_rules = sharding.RULES["zero1"].optimizer
    assert sharding.param_shardings(wide, state_rules, mesh)["w"].shard_shape((6,)) == (3,)
    assert sharding.unsplit(wide, state_rules, mesh) == ["w: embed 6 over fsdp=2"]
    assert sharding.unsplit(infos, rules, runs.mesh(data=8)) == []


@pytest.mark.parametrize(
    "name", ["data 1", "data 8", "data 2 x fsdp 2 x tensor 2", "stage 2 x expert 4", "seq 8"]
)
def test_every_device_gets_its_rows(name):
    mesh = runs.mesh(**runs.shape_of(name))
    ways = math.prod(mesh.shape[axis] for axis in sharding.ROW_AXES)
    tokens = np.arange(8 * 3).reshape(8, 3)
    rows = sharding.local_rows(mesh, 8)
    np.testing.assert_array_equal(rows, np.arange(8))  # all devices are of this process
    batch = sharding.global_batch(mesh, rows, {"tokens": tokens[rows]}, 8)["tokens"]
    np.testing.assert_array_equal(batch, tokens)
    for shard in batch.addressable_shards:
        place = [int(i[0]) for i in np.nonzero(mesh.devices == shard.device)]
        sizes = [mesh.shape[axis] for axis in sharding.ROW_AXES]
        part = np.ravel_multi_index(place[: len(sizes)], sizes)
        wanted = tokens[part * 8 // ways : (part + 1) * 8 // ways]
        np.testing.assert_array_equal(shard.data, wanted)


@pytest.mark.parametrize(
    "name, devices",
    [
        ("data 3", 8), ("fsdp 3", 8), ("tensor 3", 8), ("data -1 x fsdp 3", 8),
        ("data -1 x tensor 16", 8), ("data -1 x fsdp -1", 8), ("data 0", 8), ("data -2", 8),
        ("data 4 x fsdp 4", 8), ("data 2 x fsdp 2 x tensor 2", 1),
        ("data -1 x fsdp 3 x tensor 5", 8), ("data 3 x fsdp -1", 8), ("data 1", 8),
        ("data 3 x fsdp 3 x tensor -1", 8), ("stage 3 x seq -1", 8),
        ("slice 2 x expert 3 x seq 5", 8),
    ],
)  # fmt: skip
def test_a_mesh_that_does_not_fit_names_edits_that_work(name, devices):
    section = runs.shape_of(name)
    with pytest.raises(ConfigError, match=r"config\.mesh") as caught:
        sharding.mesh_shape(section, devices)
    text = str(caught.value)
    edits = runs.edits(text)
    assert edits, text
    for field, value in edits:
        section[field.removeprefix("mesh.")] = int(value)
    fitting = sharding.mesh_shape(section, devices)
    assert math.prod(fitting.values()) == devices
