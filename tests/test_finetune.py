"""Fine-tuning methods: what they change at first, what they train, and on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from jaxllm import finetune, models, objectives, sharding, trees
from jaxllm.config import ConfigError, make
from jaxllm.finetune import parts
from jaxllm.models import quantized
from jaxllm.models.families import model_config
from jaxllm.training import setup
from jaxllm.training.step import make_gradient
from tests import runs

VOCAB, LENGTH, ROWS = 50, 16, 8
SIZES = dict(family="llama", size="", layers=2, width=64, heads=4, kv_heads=2, mlp_width=128)
KINDS = {
    "lora": dict(kind="lora", rank=4),
    "dora": dict(kind="lora", rank=4, dora=True),
    "pissa": dict(kind="lora", rank=4, start="pissa"),
    "rslora": dict(kind="lora", rank=4, rslora=True, targets="attn/(q|v)$"),
    "qlora": dict(kind="qlora", rank=4),
    "loftq": dict(kind="qlora", rank=4, start="loftq"),
    "int8": dict(kind="qlora", rank=4, base="int8"),
    "houlsby": dict(kind="adapter", width=8),
    "pfeiffer": dict(kind="adapter", width=8, style="pfeiffer"),
    "ia3": dict(kind="ia3"),
    "prompt": dict(kind="prompt", tokens=3),
    "prefix": dict(kind="prefix", tokens=3),
    "prefix_made": dict(kind="prefix", tokens=3, hidden=8),
    "full": dict(kind="full", freeze="embed|mlp"),
}


@functools.cache
def config(**more):
    c = model_config(ConfigDict({**SIZES, **more}), vocab=VOCAB, length=LENGTH)
    return models.for_platform(c, "cpu", LENGTH)


@functools.cache
def base(c):
    """{path: array} of a plain model."""
    return trees.flatten(jax.jit(models.make(c).init)(jax.random.key(0)))


def method_of(kind):
    return make(finetune.METHODS, KINDS[kind], "finetune")


def start(kind, c, moved=0.0):
    """(method, trained parameters, frozen ones), {path: array} each; `moved` off their start."""
    method = method_of(kind) if isinstance(kind, str) else kind
    drawn = trees.flatten(models.make(c, rewrite=method.rewrite).init(jax.random.key(1)))
    first = finetune.begin(method, c, base(c), drawn)
    trained, frozen = finetune.split(method, c)
    held = finetune.freeze(method, c, base(c), first, c.dtype)
    own = {path: first.get(path, base(c).get(path)) for path in trained}
    keys = jax.random.split(jax.random.key(2), len(own))
    own = {
        path: x + moved * jax.random.normal(key, x.shape)
        for key, (path, x) in zip(keys, own.items(), strict=True)
    }
    return method, own, {path: held[path] for path in frozen}


def batch(rows=ROWS, length=LENGTH):
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, VOCAB, (rows, length + 1)).astype(np.int32)
    position = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    ones = np.ones((rows, length), np.int32)
    weight = ones.astype(np.float32)
    return dict(tokens=tokens[:, :-1], targets=tokens[:, 1:], segment=ones, position=position,
                weight=weight)  # fmt: skip


def logits(method, c, own, frozen, rows):
    model = models.make(c, rewrite=method.rewrite)
    return jax.jit(model.apply)(trees.unflatten({**frozen, **own}), rows)


def first(kind, c):
    method, own, frozen = start(kind, c)
    return method, c, own, frozen


EXACT = ("lora", "rslora", "houlsby", "pfeiffer", "ia3", "full")


@pytest.mark.parametrize("kind", [*EXACT, "dora", "pissa"])
def test_at_the_start_the_model_is_the_base(kind):
    """To the last bit, but where the start itself rounds: lengths of DoRA, what PiSSA takes out."""
    c = config()
    want = jax.jit(models.make(c).apply)(trees.unflatten(base(c)), batch())
    method, own, frozen = start(kind, c)
    found = logits(method, c, own, frozen, batch())
    if kind in EXACT:
        np.testing.assert_array_equal(found, want)
    else:
        np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "dora", "pissa", "qlora", "loftq", "ia3"])
def test_merged_computes_what_unmerged_does(kind):
    c = config(qkv_bias=True)
    method, own, frozen = start(kind, c, moved=0.05)
    found = logits(method, c, own, frozen, batch())
    plain = trees.unflatten(finetune.merge(method, c, {**own, **frozen}))
    want = jax.jit(models.make(c).apply)(plain, batch())
    assert float(jnp.abs(want - logits(*first(kind, c), batch())).max()) > 1e-2

    np.testing.assert_allclose(found, want, atol=1e-4)


def test_loftq_takes_back_the_largest_part_of_what_few_bits_lose():
    """What is left are the singular values past the rank: no other pair of A and B leaves less."""
    c = config()
    method, own, frozen = start("loftq", c)
    merged = finetune.merge(method, c, {**own, **frozen})
    plain, held, few = start("qlora", c)
    rounded = finetune.merge(plain, c, {**held, **few})
    for path in ("layers/attn/q/w", "layers/mlp/down/w"):
        before = np.float64(base(c)[path] - rounded[path]).reshape(c.layers, -1, c.width)
        after = np.float64(base(c)[path] - merged[path]).reshape(before.shape)
        lost = np.linalg.svd(before, compute_uv=False)
        left = np.linalg.norm(after, axis=(1, 2))
        np.testing.assert_allclose(left, np.linalg.norm(lost[:, 4:], axis=1), rtol=1e-4)
        assert (left < np.linalg.norm(lost, axis=1)).all() and (left > 0).all()


def test_loftq_is_for_few_bits():
    with pytest.raises(ConfigError, match="kind=qlora"):
        make(finetune.METHODS, dict(kind="lora", start="loftq"), "finetune")


def by_hand(kind, c):
    """Trained parameters, counted from the sizes alone."""
    L, D, F, N, K, H, R = c.layers, c.width, c.mlp_width, c.heads, c.kv_heads, c.head_width, 4
    attn = [(D, N * H), (D, K * H), (D, K * H), (N * H, D)]
    every = [*attn, (D, F), (D, F), (F, D)]
    low_rank = L * R * sum(i + o for i, o in every)
    return {
        "lora": low_rank,
        "pissa": low_rank,
        "qlora": low_rank,
        "loftq": low_rank,
        "dora": low_rank + L * sum(o for _, o in every),
        "rslora": L * R * (D + N * H + D + K * H),
        "houlsby": L * 2 * (D * 8 + 8 + 8 * D + D),
        "pfeiffer": L * (D * 8 + 8 + 8 * D + D),
        "ia3": L * (2 * K * H + F),
        "prompt": 3 * D,
        "prefix": L * 2 * 3 * K * H,
        "prefix_made": 3 * D + D * 8 + 8 + L * 2 * (8 + 1) * K * H,
    }[kind]


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("full", "int8")])
def test_trained_parameters_are_those_counted_by_hand(kind):
    c = config()
    _, own, _ = start(kind, c)
    assert sum(x.size for x in own.values()) == by_hand(kind, c)


# All parts at once: a model has room for each.
EVERY = finetune.Method(
    "lora",
    (
        parts.Lora("layers/", 4, 2.0, magnitude=True),
        parts.Scale(r"attn/(k|v)$", r"mlp/down$"),
        parts.Bottleneck(8, "gelu", True),
        parts.Prompt(3),
        parts.Prefix(3, 8),
    ),
    lead=3,
)
OVER_FEW_BITS = finetune.Method("qlora", (parts.Quantize("nf4"), parts.Lora("layers/", 4, 2.0)))


def gradient_over(method, shape, micro=1, remat="none"):
    """(sums, gradients) of the loss over a mesh, from the same parameters."""
    c = config(remat=remat, attention="blocks" if shape.get("seq", 1) > 1 else "reference")
    method, own, frozen = start(method, c, moved=0.02)
    mesh = runs.mesh(**shape)
    shard, rules = sharding.make_shard(mesh), sharding.RULES["zero3"]
    infos = models.abstract_params(c, method.rewrite)
    specs = sharding.param_specs(infos, rules.params, mesh)
    gather = sharding.make_gather(infos, specs, mesh)
    loss = objectives.OBJECTIVES["lm"](models.make(c, shard, gather, method.rewrite))
    refs_specs = {"base": {path: specs[path] for path in frozen}}
    own_specs = {path: specs[path] for path in own}
    gradient = make_gradient(setup.over_base(loss), micro, mesh, own_specs, refs_specs)
    refs = {"base": trees.unflatten(frozen)}
    return jax.device_get(
        jax.jit(gradient)(trees.unflatten(own), refs, batch(), None, jnp.float32(1))
    )


@functools.cache
def on_one_device(method):
    return gradient_over(method, dict(data=1))


CASES = [
    (EVERY, dict(data=2, fsdp=2, tensor=2)),
    (OVER_FEW_BITS, dict(data=2, fsdp=2, tensor=2)),
    pytest.param(EVERY, dict(fsdp=4, seq=2), marks=pytest.mark.slow),
    pytest.param(OVER_FEW_BITS, dict(fsdp=4, seq=2), marks=pytest.mark.slow),
    pytest.param(EVERY, dict(stage=2, fsdp=2, data=2), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("method, shape", CASES)
def test_devices_change_neither_sums_nor_gradients(method, shape):
    same(on_one_device(method), gradient_over(method, shape))


@pytest.mark.parametrize("method", [EVERY, OVER_FEW_BITS], ids=["every", "few bits"])
def test_pieces_and_remat_change_nothing(method):
    same(on_one_device(method), gradient_over(method, dict(data=1), micro=4, remat="full"))


def same(one, other):
    (one, grads), (many, parted) = one, other
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4), one, many)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(grads))
    assert largest > 1e-3 and all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, 1e-3, 1e-4 * largest), grads, parted)


def test_few_bits_are_those_of_the_paper():
    """A weight that is a level times its block's scale comes back as it was; 4.127 bits each."""
    shape, axes = (512, 8, 64), ("embed", "heads", "head")
    layout = quantized.layout(shape, axes)
    levels = np.asarray(quantized.NF4, np.float32)
    assert len(levels) == 16 and levels[0] == -1 and levels[7] == 0 and levels[15] == 1
    rng = np.random.default_rng(0)
    index = rng.integers(0, 16, shape)
    index[..., 0] = 15
    w = levels[index] * np.float32(0.5)  # every block has the same scale, so it is exact
    parts = quantized.quantize(jnp.asarray(w), layout, "nf4")
    back = quantized.dequantize(parts, layout, "nf4", jnp.float32)
    np.testing.assert_allclose(back, w, atol=1e-7)
    bits = sum(x.size * x.dtype.itemsize * 8 for x in map(np.asarray, parts)) / w.size
    assert round(bits, 3) == 4.127


@pytest.mark.parametrize("format", quantized.FORMATS)
@pytest.mark.parametrize("shape", [(64, 2, 64), (60, 100), (33, 7), (2, 36, 128)])
def test_a_weight_comes_back_to_half_a_level(format, shape):
    axes = {2: ("embed", "mlp"), 3: ("embed", "heads", "head")}[len(shape)]
    w = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    layout = quantized.layout(shape, axes)
    parts = quantized.quantize(jnp.asarray(w), layout, format)
    back = np.asarray(quantized.dequantize(parts, layout, format, jnp.float32))
    assert back.shape == shape
    steps = np.diff(quantized.FORMATS[format]).max()
    assert np.abs(back - w).max() <= np.abs(w).max() * (steps / 2 + 0.02)


@pytest.mark.parametrize(
    "section, error",
    [
        (dict(kind="lora", targets="atn/q"), r"matches none.*layers/attn/q.*Try --config.finetune"),
        (dict(kind="lora", targets="("), "no regular expression"),
        (dict(kind="lora", rank=0), "rank=0 must be at least 1"),
        (dict(kind="qlora", base="nf3"), "base='nf3' must be one of nf4"),
        (dict(kind="full", freeze=".*"), "leaves nothing to train"),
        (dict(kind="full", freeze="attnn"), "matches none of the"),
        (dict(kind="lorra"), "Did you mean 'lora'"),
    ],
)
def test_what_cannot_be_is_refused(section, error):
    with pytest.raises(ConfigError, match=f"(?s){error}"):
        method = make(finetune.METHODS, section, "finetune")
        finetune.check(method, config(), sharding.full_shape())


def test_few_bits_and_a_pipeline_are_refused():
    with pytest.raises(ConfigError, match="does not go with a pipeline"):
        finetune.check(method_of("qlora"), config(), sharding.full_shape(stage=2))
