"""FLOPs against published numbers, and against XLA's own count."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.models.config import resolve
from jaxllm.models.families import FAMILIES
from jaxllm.models.families.gpt2 import GPT2, GPT2_SIZES
from jaxllm.models.families.palm import PALM, PALM_SIZES
from jaxllm.scaling import devices, flops, shapes
from tests.conftest import tiny_config


def family(fields, size, length):
    return resolve({**fields, **size}, vocab=1, length=length)


def test_gpt2_matches_the_published_count():
    """nanoGPT's transformer_sizing notebook: one sequence of 1,024 tokens of GPT-2 124M."""
    c = family(GPT2, GPT2_SIZES["124m"], 1024)
    assert 1024 * flops.forward_flops_per_token(c, 1024) == 291_648_307_200
    assert 1024 * flops.train_flops_per_token(c, 1024) == 874_944_921_600


def test_palm_matches_its_own_utilisation():
    """Chowdhery et al. 2022, appendix B: 46.2 % with attention, 45.7 % without."""
    c = family(PALM, PALM_SIZES["540b"], 2048)
    assert flops.matmul_params(c) == pytest.approx(540.35e9, rel=1e-4)
    peak = 6144 * devices.DEVICES["TPU v4"].peak_flops
    whole = flops.utilisation(238.3e3, flops.train_flops_per_token(c, 2048), peak)
    without = flops.utilisation(238.3e3, 6 * flops.matmul_params(c), peak)
    assert round(100 * whole, 1) == 46.2 and round(100 * without, 1) == 45.7


@pytest.mark.parametrize(
    "fields", [{}, dict(gated=False), dict(tied=True), dict(kv_heads=1, head_width=16)]
)
def test_parameters_that_multiply_are_those_of_the_model(fields):
    """The formula counts the model's hidden matrices and its head, whatever its shape."""
    c = tiny_config(**fields)
    infos = models.abstract_params(c)
    hidden = sum(np.prod(info.shape) for info in infos.values() if info.inputs)
    assert flops.matmul_params(c) == hidden + c.vocab * c.width


STACKS = {
    "encoder": dict(assembly="encoder", head_transform=True),
    "recurrent": dict(layers=6, attention_every=3),
    "encoder and decoder": dict(assembly="encoder_decoder", encoder_layers=3),
}


@pytest.mark.parametrize("name", STACKS)
def test_every_parameter_that_multiplies_is_counted_once(name):
    """Those of both stacks, of recurrences, and of what stands before the head."""
    c = tiny_config(**STACKS[name])
    infos = models.abstract_params(c)
    gates = [p for p in infos if p.endswith(("input_gate/w", "rate_gate/w"))]
    met = [p for p, info in infos.items() if info.inputs or p in gates]
    hidden = sum(np.prod(infos[p].shape) for p in met)
    assert flops.matmul_params(c) + flops.input_params(c) == hidden + c.vocab * c.width


@pytest.mark.parametrize("name", FAMILIES)
def test_the_products_of_every_parameter_sum_up_to_a_forward_pass(name):
    """Of all families, where attention itself has no parameters."""
    shared, _, _ = FAMILIES[name]
    sizes = dict(layers=6, width=64, heads=4, mlp_width=96, head_width=16, positions=64)
    c = resolve({"kv_heads": 4, **shared, **sizes}, vocab=90, length=64)
    shape = shapes.plain(c, 64)
    found = flops.weight_flops_per_row(c, models.abstract_params(c), shape)
    hidden = 64 * flops.layer_params(c) + shape.inputs * flops.input_params(c)
    assert sum(found.values()) == 2 * (hidden + 64 * flops.head_params(c))


def test_rows_count_what_is_done_with_them():
    """An encoder's inputs count for the targets; a head that is not asked for does not."""
    c = tiny_config(assembly="encoder_decoder", encoder_layers=3)
    few, more = (shapes.Shape(1, 8, inputs, 1, True) for inputs in (16, 32))
    of_few, of_more = (flops.forward_flops_per_row(c, shape) for shape in (few, more))
    heads = c.heads * c.head_width
    scores = 4 * heads * (c.encoder_layers * (32**2 - 16**2) + c.layers * 8 * 16)
    assert of_more - of_few == 2 * 16 * flops.input_params(c) + scores
    c = tiny_config(assembly="encoder", task="classify", labels=3, pool_layer=True)
    whole = flops.forward_flops_per_row(c, shapes.Shape(1, 8, 0, 1, True))
    task = flops.forward_flops_per_row(c, shapes.Shape(1, 8, 0, 1, False))
    assert whole - task == 2 * 8 * c.vocab * c.width - 2 * c.width * (c.width + 3)
    causal = flops.attention_flops_per_token(c, 8, "causal")
    assert causal == flops.attention_flops_per_token(c, 8, "palm")  # all tokens are seen


def test_xla_counts_the_same():
    """XLA's count of the unrolled forward pass, where products are nearly all there is."""
    length = 256
    wide = dict(width=256, heads=4, kv_heads=4, head_width=64, mlp_width=1024, layers=1)
    c = tiny_config(length=length, vocab=512, attention="reference", **wide)
    model = models.make(c)
    params = jax.eval_shape(model.init, jax.random.key(0))
    rows = jax.ShapeDtypeStruct((2, length), np.int32)
    batch = dict(tokens=rows, position=rows, segment=rows)
    counted = jax.jit(model.apply).lower(params, batch).compile().cost_analysis()["flops"]
    ours = 2 * length * flops.forward_flops_per_token(c, length)
    assert counted == pytest.approx(ours, rel=0.05)


def test_causal_counts_half_and_windows_less():
    """Half of all pairs; a window of half the row leaves three quarters of that half."""
    c = tiny_config(length=64)
    full = flops.attention_flops_per_token(c, 64, "palm")
    assert flops.attention_flops_per_token(c, 64, "causal") == full / 2
    local = tiny_config(length=64, window=32)
    assert flops.attention_flops_per_token(local, 64, "palm") == full
    assert flops.attention_flops_per_token(local, 64, "causal") == full / 2 * 0.75
    mixed = tiny_config(length=64, window=32, global_every=2)
    assert flops.attention_flops_per_token(mixed, 64, "causal") == full / 2 * 0.875


def test_windowed_keys_agree_with_counting():
    """The mean over queries of min(position, window), up to the half key on the diagonal."""
    for length, window in ((512, 0), (512, 64), (512, 512), (512, 9999)):
        seen = np.minimum(np.arange(1, length + 1), window or length).mean()
        assert abs(flops.keys_seen(length, window) - seen) <= 0.5


def test_an_unknown_convention_is_refused():
    """With the names that are known."""
    with pytest.raises(ValueError, match="palm, causal"):
        flops.train_flops_per_token(tiny_config(), 16, "half")


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("TPU v4 lite", None),
        ("Fantasy 9000", None),
    ],
)
def test_a_device_is_taken_for_no_other(kind, peak):
    """Its peak is the published one or unknown, never that of a device with a like name."""
    found, how = devices.peak_flops(SimpleNamespace(platform="other", device_kind=kind))
    assert found == peak and kind in how


def test_a_cpu_is_measured():
    """More than a billion, less than any machine has, and named as measured."""
    peak, how = devices.peak_flops(jax.devices("cpu")[0])
    assert 1e9 < peak < 1e14 and how.startswith("measured")
