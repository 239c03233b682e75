"""What users rely on of the transformer, whatever its family."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import cache as caches
from jaxllm.models.attention import Rows, reference, xla
from jaxllm.models.config import resolve
from jaxllm.models.families import FAMILIES, model_config
from tests.conftest import ragged_batch, random_params, tiny_config

# Published counts (Hugging Face config and weights of each model).
COUNTS = {
    ("gpt2", "124m"): 124_439_808,
    ("gpt2", "medium"): 354_823_168,
    ("gpt2", "large"): 774_030_080,
    ("gpt2", "xl"): 1_557_611_200,
    ("llama", "7b"): 6_738_415_616,
    ("llama", "13b"): 13_015_864_320,
    ("llama", "70b"): 68_976_648_192,
    ("llama", "3-8b"): 8_030_261_248,
    ("llama", "3.2-1b"): 1_235_814_400,
    ("llama", "smollm2-135m"): 134_515_008,
    ("mistral", "7b"): 7_241_732_096,
    ("phi2", "2.7b"): 2_779_683_840,
    ("phi3", "3.5-mini"): 3_821_079_552,
    ("qwen2", "0.5b"): 494_032_768,
    ("qwen3", "0.6b"): 596_049_920,
    ("gemma", "2b"): 2_506_172_416,
    ("gemma2", "2b"): 2_614_341_888,
    ("gemma3", "1b"): 999_885_952,
    ("palm", "540b"): 540_356_474_880,  # "540.35B" in the paper's table 1
    ("bert", "base"): 109_514_298,
    ("bert", "large"): 335_174_458,
    ("roberta", "base"): 124_697_433,
    ("t5", "small"): 60_506_624,
    ("t5", "3b"): 2_851_598_336,
    ("t5", "11b"): 11_307_321_344,
    ("t5v1.1", "base"): 247_577_856,
    ("bart", "large"): 406_291_456 + 50_265,  # and the bias of its logits, a constant there
}

# One tiny model for each choice that changes the forward pass.
KINDS = {
    "llama": dict(),
    "gpt2": dict(
        norm="layer", norm_bias=True, position="learned", qkv_bias=True, mlp_bias=True,
        out_bias=True, activation="gelu_tanh", gated=False, tied=True, kv_heads=4,
    ),
    "palm": dict(norm="layer", parallel=True, kv_heads=1, tied=True, embed_scale=True),
    "gemma2": dict(
        norm_place="around", norm_plus_one=True, tied=True, window=4, global_every=2, layers=5,
        attention_softcap=5.0, logit_softcap=3.0, activation="gelu_tanh",
    ),
    "gemma3": dict(
        norm_place="around", qk_norm=True, window=3, global_every=3, layers=4, rope_base=1e6,
        rope_local_base=1e4, rope_scaling="linear", rope_factor=8.0,
    ),
    "phi2": dict(
        norm="layer", norm_bias=True, parallel=True, rope_fraction=0.5, head_bias=True,
        gated=False, activation="gelu",
    ),
    "post": dict(norm_place="post", norm="layer", norm_bias=True, position="learned"),
    "olmo2": dict(norm_place="out", qk_norm_whole=True),
    "yarn": dict(
        rope_scaling="yarn", rope_factor=4.0, rope_high_factor=32.0, rope_original=8,
        rope_attention=1.14,
    ),
    "longrope": dict(
        rope_scaling="longrope", rope_short=(1.0, 1.1, 1.2, 1.3), rope_long=(1.0, 2.0, 3.0, 4.0),
        rope_original=4, rope_attention=1.2,
    ),
    "nope": dict(position="none", window=5),
    "unrolled": dict(unroll=2, remat="dots"),
    "first tokens": dict(window=3, window_first=2, attention="blocks"),
    "reformer": dict(attention="lsh", kv_heads=4),
    "dropless": dict(experts=4, shared_experts=1, expert_width=24),
    "griffin": dict(
        attention_every=3, layers=5, window=5, recurrent_width=48, conv_width=3, out_bias=True,
    ),
    "places": dict(experts=4, capacity=4.0, layers=4, moe_every=2, window=5, global_every=4),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """(Model, params) of each kind."""
    model = models.make(tiny_config(**KINDS[request.param]))
    model = model._replace(apply=jax.jit(model.apply), extend=jax.jit(model.extend))
    return model, random_params(model)


@pytest.mark.parametrize("family,size", COUNTS)
def test_parameter_counts_are_the_published_ones(family, size):
    c = model_config({"family": family, "size": size}, vocab=65, length=16)
    count = sum(math.prod(info.shape) for info in models.abstract_params(c).values())
    assert count == COUNTS[family, size]


def test_every_size_of_every_family_resolves():
    for family, (_, sizes, _) in FAMILIES.items():
        for size in sizes:
            c = model_config({"family": family, "size": size}, vocab=65, length=16)
            for path, info in models.abstract_params(c).items():
                assert len(info.axes) == len(info.shape), (family, size, path)
                assert set(info.inputs) <= set(info.axes), (family, size, path)


def test_a_token_sees_nothing_later(kind):
    model, params = kind
    batch = ragged_batch(rows=3, documents=1)
    batch["segment"][:] = 1
    batch["position"][:] = np.arange(16)
    changed = {**batch, "tokens": batch["tokens"].copy()}
    changed["tokens"][0, 9] = (changed["tokens"][0, 9] + 1) % 65
    before, after = model.apply(params, batch), model.apply(params, changed)
    np.testing.assert_array_equal(before[0, :9], after[0, :9])
    assert jnp.abs(before[0, 9:] - after[0, 9:]).max() > 1e-3


def test_packed_equals_unpacked(kind):
    """A document gives the same logits alone in a row as behind another one."""
    model, params = kind
    batch = ragged_batch(rows=3)
    packed = np.asarray(model.apply(params, batch))
    for row in range(3):
        for segment in (1, 2):
            where = np.flatnonzero(batch["segment"][row] == segment)
            n = len(where)
            alone = {name: np.zeros((3, 16), x.dtype) for name, x in batch.items()}
            for name in ("tokens", "position"):
                alone[name][0, :n] = batch[name][row, where]
            alone["segment"][0, :n] = 1
            logits = np.asarray(model.apply(params, alone))[0, :n]
            np.testing.assert_allclose(logits, packed[row, where], atol=2e-5)


def test_decoding_from_the_cache_equals_the_whole_row(kind):
    model, params = kind
    batch = ragged_batch(rows=3, documents=1)
    batch["segment"][:] = 1
    batch["position"][:] = np.arange(16)
    whole = model.apply(params, batch)[:, :11]
    cache, parts = caches.make(model.config, 3, 16), []
    for first, last in [(0, 8), (8, 9), (9, 10), (10, 11)]:
        piece = {n: batch[n][:, first:last] for n in ("tokens", "position", "segment")}
        logits, cache = model.extend(params, piece, cache)
        parts.append(logits)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)


def test_first_loss_is_that_of_a_uniform_guess(key):
    for tied in (False, True):
        model = models.make(tiny_config(width=128, mlp_width=256, tied=tied, vocab=1000))
        params = jax.jit(model.init)(key)
        batch = ragged_batch(rows=32, vocab=1000)
        logp = jax.nn.log_softmax(jax.jit(model.apply)(params, batch))
        nll = -np.take_along_axis(np.asarray(logp), batch["targets"][..., None], -1)[..., 0]
        loss = (nll * batch["weight"]).sum() / batch["weight"].sum()
        assert abs(loss - math.log(1000)) < 0.1


@pytest.mark.parametrize("family, part", [("llama", "attn"), ("t5", "attn"), ("t5", "cross")])
def test_scores_of_attention_begin_with_a_variance_of_one(family, part, key):
    """T5's, too, which are not scaled: a softmax of larger ones starts with one key each."""
    fields = dict(family=family, size="", layers=2, width=64, heads=4, head_width=32)
    c = model_config(fields, vocab=65, length=16)
    weights = jax.jit(models.make(c).init)(key)["layers"][part]
    x = jax.random.normal(key, (256, c.width))
    q, k = (jnp.einsum("tD,DNH->NtH", x, weights[name]["w"][0]) for name in "qk")
    assert 0.7 < (c.query_scale * q @ k.mT).std() < 1.4


@pytest.mark.parametrize("remat", ["dots", "light", "full", "offload"])
def test_remat_changes_no_gradient(key, remat):
    batch = ragged_batch()
    keys = jax.random.split(key, len(batch["tokens"]))

    def grads(remat):
        model = models.make(tiny_config(remat=remat, dropout=0.2))
        params = random_params(model)
        return jax.jit(jax.grad(lambda p: jnp.square(model.apply(p, batch, keys)).sum()))(params)

    for a, b in zip(*(jax.tree.leaves(grads(r)) for r in ("none", remat)), strict=True):
        assert np.abs(a).max() > 1e-3
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [0, 5])
def test_attention_kernels_agree(key, window):
    keys = jax.random.split(key, 3)
    q, k, v = (jax.random.normal(s, (2, 16, n, 8)) for s, n in zip(keys, (4, 2, 2), strict=True))
    batch = ragged_batch(rows=2)
    index = jnp.arange(16)[None]
    rows = Rows(index, index, batch["segment"], batch["segment"])
    one, two = (
        f(q, k, v, rows, scale=0.3, window=window, cap=0.0) for f in (reference, xla)
    )  # fmt: skip
    real = batch["segment"] > 0
    np.testing.assert_allclose(one[real], two[real], atol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean(key):
    from jaxllm.models.layers import dropout

    y = dropout(jnp.ones((4, 250, 100)), 0.2, jax.random.split(key, 4), jnp.arange(250)[None])
    assert abs(float((y == 0).mean()) - 0.2) < 0.01
    assert abs(float(y.mean()) - 1) < 0.01
    assert not np.array_equal(y[0], y[1])


def test_llama3_rope_keeps_short_and_stretches_long_wavelengths():
    """Frequencies of Llama 3.1 (head 128, base 5e5, factor 8), from the published rule."""
    from jaxllm.models.layers import rope_frequencies

    c = model_config({"family": "llama", "size": "3.1-8b"}, vocab=65, length=16)
    got = np.asarray(rope_frequencies(c, windowed=False), np.float64)
    plain = 500_000.0 ** (-np.arange(0, 128, 2) / 128)
    wave = 2 * np.pi / plain
    smooth = (8192 / wave - 1) / (4 - 1)
    blended = (1 - smooth) * plain / 8 + smooth * plain
    want = np.where(wave < 8192 / 4, plain, np.where(wave > 8192, plain / 8, blended))
    np.testing.assert_allclose(got, want, rtol=2e-6)


@pytest.mark.parametrize(
    "fields,name",
    [
        (dict(heads=5), "heads"),
        (dict(heads=4, kv_heads=3), "kv_heads"),
        (dict(positions=8), "positions"),
        (dict(vocab=60), "vocab"),
        (dict(norm="batch"), "norm"),
        (dict(widht=3), "widht"),
        (dict(dropout=1.0), "dropout"),
        (dict(norm_bias=True), "norm_bias"),
        (dict(head_width=7), "head_width"),
    ],
)
def test_contradictions_name_the_field_and_what_to_type(fields, name):
    values = {"layers": 2, "width": 32, "heads": 4, "mlp_width": 64, **fields}
    with pytest.raises(ConfigError, match=rf"config\.model\.{name}|{name}") as error:
        resolve(values, vocab=65, length=16)
    assert "Try --config" in str(error.value) or "Did you mean" in str(error.value)
