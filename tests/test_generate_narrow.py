"""Weights in fewer bits: how far off, and by all ways to generate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import generate, layers, narrow
from jaxllm.models.generate import How, Sampling, bits
from tests import generate_helpers as helpers
from tests.conftest import random_params, tiny_config


@pytest.mark.parametrize("rows", [1, 5])
def test_a_product_is_off_by_no_more_than_its_rounding(rows):
    """Each of D summands by half a step of one factor times the other, and both."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, 48)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(48, 3, 10)), jnp.float32)
    wanted = jnp.tensordot(x, w, 1)
    values, scale = narrow.quantize(w.reshape(48, 30).T)
    found = layers.narrow_product(x, narrow.Int8(values, scale, (3, 10)), 1)
    step_x, step_w = jnp.abs(x).max(1) / 127, jnp.abs(w).max(0) / 127
    bound = step_x[:, None] / 2 * jnp.abs(w.reshape(48, 30)).sum(0)
    bound += step_w.reshape(30) / 2 * (jnp.abs(x).sum(1) + 48 * step_x / 2)[:, None]
    off = jnp.abs(found - wanted)
    assert (off.reshape(rows, 30) <= bound + 1e-4).all() and off.max() > 1e-3
    found = layers.narrow_product(x, w.astype(jnp.bfloat16), 1)
    sums = jnp.tensordot(jnp.abs(x), jnp.abs(w), 1)
    # Seven bits behind the first, in both factors; the sums are float32.
    assert (jnp.abs(found - wanted) <= sums * 2.1 * 2.0**-8).all()
    assert found.dtype == jnp.float32 and jnp.abs(found - wanted).max() > 1e-3


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", bits.NARROW)
def test_logits_are_near_and_weights_take_fewer_bytes(kind, tied):
    model = models.make(tiny_config(tied=tied, qkv_bias=True))
    params = random_params(model)
    decoder, small = generate.decoder(model), generate.decoder(model, weights=kind)
    batch = generate.pad(helpers.ragged_prompts(3, high=12))
    batch["tokens"] %= 65
    weights = [jax.jit(one.prepare)(params) for one in (decoder, small)]
    logits, near = (
        one.read(w, batch, 16)[0] for one, w in zip((decoder, small), weights, strict=True)
    )
    off = float(jnp.abs(near - logits).max() / jnp.abs(logits).max())
    assert 1e-5 < off < 0.06
    size = [sum(x.nbytes for x in jax.tree.leaves(w)) for w in weights]
    share = {"bfloat16": 0.5, "int8": 0.25}[kind]
    assert size[1] < (share + (0.1 if tied else 0.25)) * size[0]


def test_text_by_int8_and_what_is_unknown():
    model = models.make(tiny_config(vocab=260, layers=1))
    params, tokenizer = random_params(model), helpers.byte_tokenizer()
    how = How(Sampling(0.0), tokens=8, weights="int8")
    found = generate.generate(model, params, tokenizer, ["ab", "c"], how)
    batch = generate.pad([[97, 98], [99]])
    draw = jax.jit(generate.make_generate(generate.decoder(model, weights="int8"), 8, how.sampling))
    wanted = draw(params, batch, jax.random.key(0)).tokens.tolist()
    assert [one.tokens for one in found if one.reason == "length"] == wanted
    with pytest.raises(ConfigError, match=r"weights='int4' is unknown. Try bfloat16 or int8"):
        generate.generate(model, params, tokenizer, ["a"], how._replace(weights="int4"))
