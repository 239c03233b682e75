"""The TPU's attention kernel, run as plain jax, against attention written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models.attention import Rows, reference
from jaxllm.models.layers import rotate, rotate_by_product
from jaxllm.models.splash import splash
from tests.conftest import tiny_config

B, T, N, K = 2, 256, 4, 2


def random(key, heads, width):
    return jax.random.normal(key, (B, T, heads, width))


@pytest.mark.parametrize(
    "window, cap, H",
    [(0, 0.0, 128), (40, 0.0, 128), (0, 10.0, 128), (0, 0.0, 64)],
    ids=["causal", "window", "cap", "narrow"],
)
def test_values_and_gradients_are_those_of_the_reference(key, window, cap, H):
    """With segments and grouped queries; heads of 64 are filled up."""
    *qkv, weight = (
        random(k, n, H) for k, n in zip(jax.random.split(key, 4), (N, K, K, N), strict=True)
    )
    segment_BT = jnp.asarray(
        np.sort(np.random.default_rng(0).integers(1, 4, (B, T)), axis=1), jnp.int32
    )
    index_BT = jnp.arange(T, dtype=jnp.int32)[None]
    rows = Rows(index_BT, index_BT, segment_BT, segment_BT)

    def value_and_grads(kernel, **more):
        def total(*qkv):
            return jnp.sum(
                weight * kernel(*qkv, rows, scale=H**-0.5, window=window, cap=cap, **more)
            )

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*qkv)

    wanted = value_and_grads(reference)
    for a, b in zip(
        jax.tree.leaves(wanted), jax.tree.leaves(value_and_grads(splash, interpret=True)),
        strict=True,
    ):  # fmt: skip
        scale = np.abs(a).max()
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-4 if a.ndim == 0 else 5e-6)


def test_a_tpu_gets_it_by_itself_and_others_are_told_why_not():
    c = tiny_config(width=256, heads=2, head_width=128)
    assert models.for_platform(c, "tpu", 256).attention == "splash"
    assert models.for_platform(c, "tpu", 200).attention == "reference"
    assert models.for_platform(c, "cpu", 256).attention == "reference"
    asked = tiny_config(width=256, heads=2, head_width=128, attention="splash")
    for platform, length, why in ("cpu", 256, "runs on a TPU"), ("tpu", 200, "no multiple of 128"):
        with pytest.raises(ConfigError, match=why):
            models.for_platform(asked, platform, length)


@pytest.mark.parametrize("rotated", [128, 32])
def test_rotating_by_a_product_is_rotating(key, rotated):
    x_BTNH = random(key, N, 128)
    angle = jax.random.normal(key, (B, T, rotated // 2))
    angles = jnp.cos(angle), jnp.sin(angle)
    np.testing.assert_allclose(
        rotate_by_product(x_BTNH, angles), rotate(x_BTNH, angles), rtol=1e-6, atol=1e-6
    )
