"""Encoders, encoder-decoders, two streams: what a token sees; devices change nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, objectives, sharding
from jaxllm.config import ConfigError
from jaxllm.models import attention, distance
from jaxllm.models import cache as caches
from jaxllm.models.config import resolve
from jaxllm.sharding import wire
from jaxllm.training.step import make_gradient
from tests import runs
from tests.conftest import TINY, ragged_batch, random_params, tiny_config

LENGTH, VOCAB = 16, 64
POST = dict(norm="layer", norm_bias=True, norm_place="post", embed_norm=True, tied=True)
# One tiny model for each way to put blocks together.
KINDS = {
    "bert": dict(
        POST, assembly="encoder", position="learned", token_types=2, head_transform=True,
        head_bias=True, gated=False, activation="gelu", qkv_bias=True, mlp_bias=True,
    ),
    "rope encoder": dict(assembly="encoder"),
    "t5": dict(
        assembly="encoder_decoder", position="buckets", distance_buckets=8, distance_max=12,
        tied=True, head_scale=True, query_scale=1.0, encoder_layers=3, kv_heads=4,
    ),
    "bart": dict(
        POST, assembly="encoder_decoder", position="learned", position_offset=2, head_bias=True,
    ),
    "two tables": dict(assembly="encoder_decoder", shared_table=False),
    "xlnet": dict(POST, assembly="encoder", position="sinusoids", two_streams=True),
}  # fmt: skip


def make_model(name, mesh=None, **fields):
    """A tiny model of a kind, and its configuration, for CPUs; spread over a mesh if there is."""
    c = resolve({**TINY, **KINDS[name], **fields}, vocab=VOCAB, length=LENGTH)
    c = models.for_platform(c, "cpu", LENGTH)
    if mesh is None:
        return models.make(c)
    infos = models.abstract_params(c)
    specs = sharding.param_specs(infos, sharding.RULES["zero3"].params, mesh)
    gather = sharding.make_gather(infos, specs, mesh)
    return models.make(c, sharding.make_shard(mesh), gather), specs


def make_batch(name, rows=8, seed=0):
    """Rows of two documents and padding, with inputs of two documents where there are any."""
    batch = ragged_batch(rows, LENGTH, VOCAB, seed)
    rng = np.random.default_rng(seed + 1)
    if KINDS[name]["assembly"] == "encoder_decoder":
        other = ragged_batch(rows, LENGTH, VOCAB, seed + 2)
        names = dict(inputs="tokens", inputs_segment="segment", inputs_position="position")
        batch |= {ours: other[theirs] for ours, theirs in names.items()}
    if name == "bert":
        batch["type"] = rng.integers(0, 2, batch["tokens"].shape).astype(np.int32)
    if name == "xlnet":
        batch["order"] = random_order(batch["segment"], rng)
    return batch


def random_order(segment, rng):
    """The place of each token in a random order of its document."""
    order = np.zeros_like(segment)
    for row, places in zip(segment, order, strict=True):
        for number in np.unique(row):
            places[row == number] = rng.permutation((row == number).sum())
    return order


@functools.cache
def apply(name):
    """The model's jitted `apply`, and parameters."""
    model = make_model(name)
    return jax.jit(model.apply), random_params(model)


@pytest.mark.parametrize("name", KINDS)
def test_packed_equals_alone(name):
    """The second document of a row, with its own inputs, gives what it gives in a row alone."""
    run, params = apply(name)
    batch = make_batch(name)
    packed, alone = np.asarray(run(params, batch)), {k: np.zeros_like(v) for k, v in batch.items()}
    for row in range(len(packed)):
        for key, value in batch.items():
            segment = batch["inputs_segment" if key.startswith("inputs") else "segment"][row]
            mine = value[row][segment == 2]
            alone[key][row, : len(mine)] = 1 if key.endswith("segment") else mine
    single = np.asarray(run(params, alone))
    for row, segment in enumerate(batch["segment"]):
        mine = packed[row][segment == 2]
        # What is first in a random order sees nothing, and equal parts of everything then.
        some = batch["order"][row][segment == 2] > 0 if "order" in batch else slice(None)
        found = single[row, : len(mine)]
        np.testing.assert_allclose(found[some], mine[some], 1e-4, 1e-5)
    assert np.abs(packed).max() > 0.1


def sees(name, batch, field="tokens"):
    """bool[T, T]: whether the logits of a place of row 0 change with the token at another."""
    run, params = apply(name)
    before, found = np.asarray(run(params, batch)), np.zeros((LENGTH, LENGTH), bool)
    rows = {k: np.repeat(v[:1], LENGTH, 0) for k, v in batch.items()}
    rows[field][np.arange(LENGTH), np.arange(LENGTH)] += 1
    rows[field] %= VOCAB
    for changed, after in enumerate(np.asarray(run(params, rows))):
        found[:, changed] = np.abs(after - before[0]).max(-1) > 1e-6
    return found


def same_document(a, b):
    return (a[:, None] == b[None, :]) & (a[:, None] > 0)


@pytest.mark.parametrize("name", ["bert", "rope encoder"])
def test_an_encoder_sees_all_of_its_document_and_no_more(name):
    batch = make_batch(name, rows=LENGTH)
    segment = batch["segment"][0]
    real = segment > 0
    np.testing.assert_array_equal(sees(name, batch)[real], same_document(segment, segment)[real])


@pytest.mark.parametrize("name", ["t5", "bart", "two tables"])
def test_a_decoder_sees_what_came_before_and_all_inputs_of_its_document(name):
    batch = make_batch(name, rows=LENGTH)
    segment, inputs = batch["segment"][0], batch["inputs_segment"][0]
    real = segment > 0
    past = np.tril(same_document(segment, segment))
    np.testing.assert_array_equal(sees(name, batch)[real], past[real])
    found = sees(name, batch, "inputs")
    np.testing.assert_array_equal(found[real], same_document(segment, inputs)[real])


def test_the_second_stream_sees_what_is_before_it_in_the_order_but_not_itself():
    """With the order of a text from left to right it predicts a token from those before it."""
    batch = make_batch("xlnet", rows=LENGTH)
    segment, order = batch["segment"][0], batch["order"][0]
    # A token that is first sees nothing: its weights are equal over all, and mean nothing.
    rows = (segment > 0) & (order > 0)
    before = same_document(segment, segment) & (order[None, :] < order[:, None])
    np.testing.assert_array_equal(sees("xlnet", batch)[rows], before[rows])


def test_a_prefix_is_seen_from_all_of_it_and_what_follows_looks_back():
    c = tiny_config(VOCAB, LENGTH)
    model = models.make(models.for_platform(c, "cpu", LENGTH))
    params, batch = random_params(model), ragged_batch(2, LENGTH, VOCAB)
    batch["prefix"] = ((batch["position"] < 3) & (batch["segment"] > 0)).astype(np.int32)
    run = jax.jit(model.apply)
    before = np.asarray(run(params, batch))
    first = np.flatnonzero(batch["segment"][0] == 2)[0]
    changed = {**batch, "tokens": batch["tokens"].copy()}
    changed["tokens"][0, first + 2] ^= 1  # the prefix's last token
    moved = np.abs(np.asarray(run(params, changed)) - before)[0].max(-1) > 1e-6
    np.testing.assert_array_equal(moved, batch["segment"][0] == 2)
    changed["tokens"][0, first + 2] ^= 1
    changed["tokens"][0, first + 3] ^= 1  # the first behind it
    moved = np.abs(np.asarray(run(params, changed)) - before)[0].max(-1) > 1e-6
    later = (batch["segment"][0] == 2) & (batch["position"][0] >= 3)
    np.testing.assert_array_equal(moved, later)


@pytest.mark.parametrize("name", ["rope encoder", "bart"])
def test_attention_by_blocks_equals_the_reference(name):
    run, params = apply(name)
    batch = make_batch(name)
    blocks = make_model(name, attention="blocks")
    real = batch["segment"] > 0
    np.testing.assert_allclose(
        np.asarray(jax.jit(blocks.apply)(params, batch))[real],
        np.asarray(run(params, batch))[real], 1e-4, 1e-5,
    )  # fmt: skip


def gradients(name, mesh, batch, params, **fields):
    """(sums, gradients) of the cross-entropy, spread over a mesh."""
    model, specs = make_model(name, mesh, **fields)
    loss = objectives.OBJECTIVES["lm"](model)
    gradient = jax.jit(make_gradient(loss, 1, mesh, specs))
    return jax.device_get(gradient(params, {}, batch, None, 1.0))


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        pytest.param("bert", "data 2 x fsdp 2 x tensor 2", marks=pytest.mark.slow),
        ("t5", "data 2 x fsdp 2 x tensor 2"),
        pytest.param("bart", "data 2 x fsdp 2 x tensor 2", marks=pytest.mark.slow),
        ("xlnet", "data 2 x fsdp 4"),
        pytest.param("two tables", "fsdp 8", marks=pytest.mark.slow),
        pytest.param("rope encoder", "stage 2 x fsdp 4", marks=pytest.mark.slow),
    ],
)
def test_sharded_gradients_equal_those_of_one_device(name, mesh):
    batch = make_batch(name)
    params = random_params(make_model(name))
    one = gradients(name, runs.mesh(data=1), batch, params)
    eight = gradients(name, runs.mesh(**runs.shape_of(mesh)), batch, params)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(one[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-3, 1e-5 * largest), *(one, eight))


@pytest.mark.parametrize("name", ["t5", pytest.param("xlnet", marks=pytest.mark.slow)])
def test_remat_and_scanned_layers_change_nothing(name):
    batch, params = make_batch(name), random_params(make_model(name))
    one = gradients(name, runs.mesh(data=1), batch, params)
    other = gradients(name, runs.mesh(data=1), batch, params, remat="full", unroll=1)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(one[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-4, 1e-5 * largest), *(one, other))


@pytest.mark.parametrize(
    ("task", "pool"),
    [
        ("classify", "last"),
        pytest.param("tag", "first", marks=pytest.mark.slow),
        pytest.param("embed", "mean", marks=pytest.mark.slow),
    ],
)
def test_a_head_of_a_task_reads_the_same_on_many_devices(task, pool):
    fields = dict(task=task, labels=3, pool=pool, pool_layer=task == "classify", lm_head=False)
    model, batch = make_model("bert", **fields), make_batch("bert")
    params = random_params(model)

    def total(model):
        def loss(params, refs, batch, key):
            params = model.whole(params)
            x, _ = model.hidden(params, batch, key)
            found = jnp.sum(jnp.square(model.task(params, x, batch)))
            share = 1 if task == "tag" else wire.size("tensor")
            return objectives.Loss(found / share, jnp.float32(1), {})

        return loss

    def spread(mesh):
        model, specs = make_model("bert", mesh, **fields)
        return jax.device_get(
            jax.jit(make_gradient(total(model), 1, mesh, specs))(params, {}, batch, None, 1.0)[1]
        )

    one = spread(runs.mesh(data=1))
    eight = spread(runs.mesh(data=2, fsdp=2, tensor=2))
    largest = max(np.abs(g).max() for g in jax.tree.leaves(one))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-3, 1e-5 * largest), one, eight)
    x, _ = jax.jit(model.hidden)(params, batch)
    if task == "embed" and pool == "mean":
        wanted = [row[s == 1].mean(0) for row, s in zip(x, batch["segment"], strict=True)]
        np.testing.assert_allclose(model.task(params, x, batch), np.array(wanted), 1e-5, 1e-6)


def test_buckets_are_exact_near_by_and_logarithmic_far_off():
    """32 buckets up to 128, as T5 has them: the figures of its paper's code for some distances."""
    back = jnp.asarray([0, 1, 7, 8, 15, 16, 31, 32, 64, 127, 128, 1000, -1, -9])
    one_way = distance.bucket(back, 32, 128, both=False)
    np.testing.assert_array_equal(one_way, [0, 1, 7, 8, 15, 16, 21, 21, 26, 31, 31, 31, 0, 0])
    two_ways = distance.bucket(back, 32, 128, both=True)
    np.testing.assert_array_equal(two_ways, [0, 1, 7, 8, 9, 10, 11, 12, 14, 15, 15, 15, 17, 24])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (dict(assembly="encoder", encoder_layers=2), "encoder_layers"),
        (dict(assembly="encoder_decoder", two_streams=True), "two_streams"),
        (dict(assembly="encoder", window=4), "window"),
        (dict(position="buckets", distance_buckets=6), "distance_buckets"),
        (dict(lm_head=False), "lm_head"),
        (dict(assembly="autoencoder"), "encoder"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        tiny_config(**fields)


@pytest.mark.parametrize(
    ("fields", "axis"),
    [
        ({"model.assembly": "encoder", "mesh.seq": 2}, "mesh.seq"),
        ({"model.assembly": "encoder_decoder", "mesh.stage": 2}, "mesh.stage"),
        ({"model.position": "buckets", "mesh.seq": 2}, "mesh.seq"),
    ],
)
def test_axes_that_an_assembly_cannot_be_split_over_are_refused(fields, axis):
    from jaxllm.training import setup

    config = runs.config({"model.layers": 2, **fields})
    with pytest.raises(ConfigError, match=axis):
        setup.check_program(config, 8)


@pytest.mark.parametrize("name", ["t5", "bart", "two tables"])
def test_decoding_from_the_cache_equals_the_whole_row(name):
    """Inputs of unequal length are read once; tokens follow one by one, or several at a time."""
    model = make_model(name)
    params = random_params(model)
    batch = make_batch(name, rows=3)
    batch["position"][:], batch["segment"][:] = np.arange(LENGTH), 1
    size = np.array([4, 9, 16])
    batch["inputs_segment"] = (np.arange(LENGTH) < size[:, None]).astype(np.int32)
    batch["inputs_position"] = np.tile(np.arange(LENGTH, dtype=np.int32), (3, 1))
    whole = model.apply(params, batch)
    cache, parts = caches.make(model.config, 3, LENGTH, inputs=LENGTH), []
    inputs = {k: v for k, v in batch.items() if k.startswith("inputs")}
    for first, last in [(0, 1), (1, 6), (6, 7), (7, 8)]:
        piece = {n: batch[n][:, first:last] for n in ("tokens", "segment")}
        logits, cache = model.extend(
            params, piece | (inputs if first == 0 else {}), cache, fresh=first == 0
        )
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole[:, :8], atol=2e-5)


@pytest.mark.parametrize("name", KINDS)
def test_no_kernel_that_looks_back_only_is_taken_for_an_encoder(name):
    """On a TPU too, where rows of 1,024 tokens of a decoder go through splash attention."""
    c = resolve({**TINY, **KINDS[name]}, vocab=VOCAB, length=1024)
    assert attention.choose(c, 1024, "tpu") == "reference"
    decoder = resolve(TINY, vocab=VOCAB, length=1024)
    assert attention.choose(decoder, 1024, "tpu") == "splash"
    for kernel in ("splash", "lsh"):
        with pytest.raises(ConfigError, match=r"look back only|bias"):
            attention.choose(dataclasses.replace(c, attention=kernel), 1024, "tpu")


def test_an_encoder_writes_no_text():
    with pytest.raises(ConfigError, match="encoder"):
        caches.make(make_model("bert").config, 1, 8)
