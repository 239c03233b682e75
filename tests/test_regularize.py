"""Against overfitting: noise, two passes, smoothing, rates by layer; alike on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, objectives, optim, sharding, trees
from jaxllm.config import ConfigError
from jaxllm.models.layers import split_keys
from jaxllm.objectives import noise
from jaxllm.training import regularize, setup
from jaxllm.training.state import create
from jaxllm.training.step import StepOptions, make_gradient, make_step
from tests import runs
from tests.conftest import random_params, tiny_config
from tests.test_assemblies import make_batch, make_model
from tests.test_heads_sharded import rows_of

WIDTH = 32
KEY = jax.random.key(3)
ASCENT = noise.Ascent(steps=3, lr=0.4, start=0.5, largest=0.6)
HEAD = dict(task="classify", labels=3, pool="mean", lm_head=False, pool_layer=True)


def model_and_batch(name, mesh):
    """(model, specs, batch) of a kind; "classify" is an encoder with a head."""
    if name == "classify":
        return *make_model("bert", mesh, dropout=0.2, **HEAD), rows_of(name)
    if name == "t5":
        return *make_model(name, mesh, dropout=0.2), make_batch(name)
    c = tiny_config(64, dropout=0.2, layers=1)
    c = models.for_platform(c, "cpu", 16, mesh.shape["seq"])
    specs = specs_of(c, mesh)
    gather = sharding.make_gather(models.abstract_params(c), specs, mesh)
    return models.make(c, sharding.make_shard(mesh), gather), specs, make_batch("rope encoder")


def specs_of(c, mesh):
    """Where the parameters of a model lie on a mesh."""
    return sharding.param_specs(models.abstract_params(c), sharding.RULES["zero3"].params, mesh)


def gradient(name, shape, micro=1):
    """(sums, gradients) of a loss with all of it: noise of both kinds, two passes, smoothing."""
    mesh = runs.mesh(**shape)
    model, specs, batch = model_and_batch(name, mesh)
    kind = "classify" if name == "classify" else "lm"
    loss = objectives.OBJECTIVES[kind](model, rdrop=1.5, smoothing=0.2)
    loss = noise.neftune(loss, 5.0, WIDTH)

    def of_pieces(loss):
        return noise.freelb(loss, ASCENT, WIDTH)

    found = make_gradient(loss, micro, mesh, specs, of_pieces=of_pieces)
    return jax.device_get(jax.jit(found)(random_params(model), {}, batch, KEY, jnp.float32(1)))


@functools.cache
def on_one_device(name):
    return gradient(name, dict(data=1))


def same(one, other):
    (one, grads), (many, parted) = one, other
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4), one, many)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    assert largest > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-3, 1e-4 * largest), grads, parted)


MESHES = [
    ("decoder", dict(data=2, fsdp=2, tensor=2)),
    pytest.param("classify", dict(fsdp=2, tensor=2), marks=pytest.mark.slow),
    pytest.param("decoder", dict(fsdp=2, seq=2, tensor=2), marks=pytest.mark.slow),
    pytest.param("decoder", dict(expert=2, data=2), marks=pytest.mark.slow),
    pytest.param("t5", dict(data=2, tensor=2), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name, shape", MESHES)
def test_devices_change_neither_sums_nor_gradients(name, shape):
    same(on_one_device(name), gradient(name, shape))


def test_pieces_change_nothing():
    same(on_one_device("decoder"), gradient("decoder", dict(data=1), micro=4))


def test_noise_has_the_size_of_the_paper_in_every_document():
    """Numbers reach alpha / sqrt(L D) and not beyond; padding and evaluation have none."""
    batch = make_batch("t5")
    key_B = jax.random.split(KEY, 8)
    found = noise.draw(batch, key_B, 5.0, WIDTH)
    for name, segments in (("noise", "segment"), ("inputs_noise", "inputs_segment")):
        x, segment = np.asarray(found[name]), batch[segments]
        assert (x[segment == 0] == 0).all() and (segment == 0).any()
        for row in range(8):
            for number in (1, 2):
                mine = np.abs(x[row][segment[row] == number])
                bound = 5.0 / np.sqrt(len(mine) * WIDTH)
                assert 0.8 * bound < mine.max() <= bound
    assert np.abs(found["noise"] - found["inputs_noise"]).max() > 0.1
    seen = []

    def loss(params, refs, batch, key=None):
        seen.append(sorted(batch))

    noise.neftune(loss, 5.0, WIDTH)({}, {}, batch)
    noise.neftune(loss, 5.0, WIDTH)({}, {}, batch, key_B)
    assert seen[0] == sorted(batch) and set(seen[1]) - set(seen[0]) == {"noise", "inputs_noise"}


def test_freelb_is_algorithm_1_of_the_paper():
    """Written out with a gradient for the parameters and another one for the noise."""
    model = models.make(tiny_config(64, layers=1))
    params, batch = random_params(model), make_batch("rope encoder")
    batch["segment"] = np.minimum(batch["segment"], 1)  # one document a row
    key_B = jax.random.split(KEY, 8)
    loss_fn = objectives.lm.make(model)
    found, grads = jax.jit(noise.freelb(loss_fn, ASCENT, WIDTH))(params, {}, batch, key_B, 1.0)

    @jax.jit
    def both(params, delta):
        def total(params, delta):
            return loss_fn(params, {}, batch | {"noise": delta}).total

        return jax.value_and_grad(total, (0, 1))(params, delta)

    delta = noise.draw(batch, key_B, ASCENT.start, WIDTH)["noise"]
    losses, slopes = [], []
    for _ in range(3):
        loss, (of_params, of_delta) = both(params, delta)
        losses.append(float(loss))
        slopes.append(of_params)
        norm = jnp.linalg.norm(of_delta, axis=(1, 2), keepdims=True)
        delta = delta + 0.4 * of_delta / norm
        delta = delta * jnp.minimum(1, 0.6 / jnp.linalg.norm(delta, axis=(1, 2), keepdims=True))
    assert losses[0] < losses[1] < losses[2]
    np.testing.assert_allclose(found.total, np.mean(losses), 1e-5)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *slopes)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(mean))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-3, 1e-4 * largest), grads, mean)


def stepped(shape, micro):
    """(parameters by path, metrics) after a step of SGD with both penalties on a mesh."""
    mesh = runs.mesh(**shape)
    model, specs, batch = model_and_batch("decoder", mesh)
    infos = models.abstract_params(model.config)
    schedule = optim.make_schedule(dict(kind="constant", lr=0.5), 10)
    tx = optim.make_optimizer(dict(kind="sgd", momentum=0.0), schedule, infos)
    held = regularize.Regularize(l2_start=0.3, ewc=2.0)
    options = StepOptions(micro_batches=micro, clip=0.0)
    penalty = regularize.penalty(held)
    step = make_step(objectives.lm.make(model), tx, schedule, options, mesh, specs, penalty=penalty)
    places = sharding.param_shardings(infos, sharding.RULES["zero3"].params, mesh)
    params, start, firm = (
        trees.unflatten({p: jax.device_put(x, places[p]) for p, x in trees.flatten(t).items()})
        for t in (random_params(model), random_params(model, seed=1), squares(model))
    )
    state = create(lambda _: params, tx, None, ema=False, scaled=False)
    refs = {"start": start, "fisher": firm}
    state, metrics = jax.jit(step)(state, refs, batch)
    return trees.flatten(jax.device_get(state.params)), jax.device_get(metrics)


def squares(model):
    return jax.tree.map(np.square, random_params(model, seed=2))


def test_penalties_are_of_the_update_whatever_the_pieces_and_devices():
    """Half the weighted squared distance, beside the loss of a token; by hand."""
    (one, told), (many, parted) = stepped(dict(data=1), 1), stepped(dict(fsdp=2, tensor=2), 2)
    model, _, batch = model_and_batch("decoder", runs.mesh(data=1))
    params, start, firm = (
        trees.flatten(t)
        for t in (random_params(model), random_params(model, seed=1), squares(model))
    )
    gap = {path: params[path] - start[path] for path in params}
    distance = 0.3 / 2 * sum((x**2).sum() for x in gap.values())
    np.testing.assert_allclose(told["l2_start"], distance, 1e-5)
    by_fisher = 2.0 / 2 * sum((firm[p] * x**2).sum() for p, x in gap.items())
    np.testing.assert_allclose(told["ewc"], by_fisher, 1e-5)

    def mean(params):
        loss = objectives.lm.make(model)(params, {}, batch)
        return loss.total / loss.count

    value, slopes = jax.jit(jax.value_and_grad(mean))(trees.unflatten(params))
    np.testing.assert_allclose(told["loss"], value, 1e-5)
    for path, slope in trees.flatten(slopes).items():
        want = params[path] - 0.5 * (slope + (0.3 + 2.0 * firm[path]) * gap[path])
        np.testing.assert_allclose(one[path], want, 1e-4, 1e-5, err_msg=path)
        np.testing.assert_allclose(many[path], one[path], 1e-4, 1e-5, err_msg=path)
    for name in ("l2_start", "ewc", "loss", "grad_norm"):
        np.testing.assert_allclose(parted[name], told[name], 1e-5)


def log_p(model, params, batch, key_B):
    return jax.nn.log_softmax(jax.jit(model.apply)(params, batch, key_B))


def test_rdrop_is_the_formula_of_the_paper():
    """Mean of two losses and half of both divergences, from two passes written out."""
    model = models.make(tiny_config(64, layers=1, dropout=0.3))
    params, batch = random_params(model), make_batch("rope encoder")
    key_B = jax.random.split(KEY, 8)
    loss = jax.jit(objectives.lm.make(model, rdrop=2.0, chunk=4))(params, {}, batch, key_B)
    one, two = (log_p(model, params, batch, k) for k in split_keys(key_B, 2))
    w, chosen = batch["weight"], batch["targets"][..., None]
    nll = sum(-np.take_along_axis(p, chosen, -1)[..., 0] for p in map(np.asarray, (one, two)))
    far = np.sum((np.exp(one) - np.exp(two)) * (one - two), -1)  # KL(p, q) + KL(q, p)
    np.testing.assert_allclose(loss.sums["loss"], (nll / 2 * w).sum(), 1e-5)
    np.testing.assert_allclose(loss.sums["rdrop"], 2.0 / 2 * (far * w).sum(), 1e-4)
    np.testing.assert_allclose(loss.total, loss.sums["loss"] + loss.sums["rdrop"], 1e-6)
    assert loss.count == w.sum() and loss.sums["rdrop"] > 0.5
    plain = jax.jit(objectives.lm.make(model))(params, {}, batch)
    off = jax.jit(objectives.lm.make(model, rdrop=2.0))(params, {}, batch)  # no key: validation
    jax.tree.map(np.testing.assert_array_equal, plain, off)


def test_smoothing_gives_a_share_of_the_target_to_all_tokens():
    model = models.make(tiny_config(64, layers=1))
    params, batch = random_params(model), make_batch("rope encoder")
    loss = jax.jit(objectives.lm.make(model, smoothing=0.1))(params, {}, batch)
    p = np.asarray(log_p(model, params, batch, None))
    soft = 0.9 * np.eye(64)[batch["targets"]] + 0.1 / 64
    np.testing.assert_allclose(loss.total, (-(soft * p).sum(-1) * batch["weight"]).sum(), 1e-5)
    plain = jax.jit(objectives.lm.make(model))(params, {}, batch)
    np.testing.assert_allclose(loss.sums["loss"], plain.sums["loss"], 1e-6)


MIXED = dict(layers=4, experts=2, experts_per_token=1, expert_width=16, moe_every=2)


@pytest.mark.parametrize("fields", [dict(layers=3), MIXED, dict(layers=2, encoder_layers=3)])
def test_layer_decay_multiplies_the_rate_of_each_layer(fields):
    """By hand from the names: the head 1, the last layer d, the first d^n, embeddings d^(n + 1)."""
    assembly = "encoder_decoder" if "encoder_layers" in fields else "decoder"
    c = tiny_config(64, assembly=assembly, **fields)
    infos = models.abstract_params(c)
    schedule = optim.make_schedule(dict(kind="constant", lr=1.0), 10)
    section = dict(kind="sgd", momentum=0.0, layer_decay=0.5)
    tx = optim.make_optimizer(section, schedule, infos, depths=models.below_output(c, infos))
    ones = trees.unflatten({path: jnp.ones(info.shape) for path, info in infos.items()})
    moved = trees.flatten(tx.update(ones, tx.init(ones), ones)[0])
    n, checked = c.layers, 0
    for path, x in moved.items():
        own = path.removeprefix("encoder/")
        layers = c.encoder_layers if own != path else n
        want = [2.0**-i for i in range(layers, 0, -1)]
        if own.startswith("layers/moe/"):
            want = want[1::2]
        elif own.startswith("layers/mlp/") and "experts" in fields:
            want = want[0::2]
        elif own == "embed":
            want = [2.0 ** -(max(n, c.encoder_layers) + 1)]
        elif not own.startswith("layers/"):
            want = [1.0] if own.split("/")[0] in ("head", "final_norm") else None
        if want:
            checked += 1
            want = np.array(want).reshape(-1, *(1,) * (x.ndim - 1)) if len(want) > 1 else want[0]
            np.testing.assert_array_equal(x, np.broadcast_to(-want, x.shape), err_msg=path)
    assert checked >= len(infos) - 1


@functools.cache
def lowered(fields):
    config = runs.config(dict(fields))
    run = setup.assemble_program(config, 65, jax.devices()[:1])
    return run, run.step.lower(run.abstract, run.refs, setup.abstract_batch(run, 8)).as_text()


def test_what_is_off_is_not_in_the_program():
    """No random numbers, no frozen trees; a config without the section gives the same program."""
    run, text = lowered(())
    assert run.refs == {} and "threefry" not in text
    _, noisy = lowered((("regularize.neftune", 5.0),))
    assert "threefry" in noisy
    config = runs.config()
    config.unlock()
    del config.regularize, config.optim["layer_decay"]
    old = setup.assemble_program(config, 65, jax.devices()[:1])
    batch = setup.abstract_batch(old, 8)
    assert old.step.lower(old.abstract, old.refs, batch).as_text() == text


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"regularize.neftune": -1}, r"regularize.neftune=-1.0 must be at least 0"),
        ({"regularize.freelb.steps": 1}, r"freelb.steps=1 must be 0 \(off\) or at least 2"),
        ({"regularize.l2_start": 0.1}, r"init_from is empty.\n  Try --config.init_from"),
        ({"objective.rdrop": 1.0}, r"model.dropout=0.\n  Try --config.model.dropout=0.1"),
        ({"optim.layer_decay": 1.5}, r"layer_decay=1.5 must be above 0"),
        (
            {"regularize.ewc": 1, "init_from": "x", "finetune.kind": "lora"},
            r"'lora' leaves them.*\n  Try --config.finetune.kind=full",
        ),
    ],
)
def test_what_cannot_be_is_refused(fields, error):
    with pytest.raises(ConfigError, match=f"(?s){error}"):
        setup.check_program(runs.config(fields), 1)
