"""The 8-bit code of Adam's moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.optim import adam8bit


def test_8_bit_codes_are_the_papers_and_survive_a_round_trip():
    """All codes decode to the dynamic tree's midpoints, and code again to themselves."""

    def tree(refine):  # midpoints of equal parts of each decade
        edges = [np.linspace(0.1, 1, 2**i * refine + 1) * 10.0 ** (i - 6) for i in range(7)]
        return np.concatenate([(e[1:] + e[:-1]) / 2 for e in edges])

    quantize = jax.jit(adam8bit.quantize, static_argnums=(1, 2))
    dequantize = jax.jit(adam8bit.dequantize, static_argnums=(1, 2))
    codes = jnp.arange(256, dtype=jnp.uint8)[None]
    for signed, table in [
        (True, np.sort(np.concatenate([-tree(1), [0], tree(1), [1]]))),
        (False, np.concatenate([[0], tree(2), [1]])),
    ]:
        coded = adam8bit.Quantized(codes, jnp.full((1, 1), 3.0))
        values = dequantize(coded, 256, signed)
        np.testing.assert_allclose(np.sort(values[0]), 3 * table, rtol=1e-5)
        again = quantize(values, 256, signed)
        np.testing.assert_array_equal(again.codes, codes)
        np.testing.assert_allclose(again.maximum, 3.0)


@pytest.mark.parametrize(
    "shape, block", [((5, 3, 64), 16), ((4, 50), 16), ((7, 6), 256), ((9,), 4)]
)
def test_8_bit_error_is_small_in_every_block(shape, block):
    """Blocks that do not divide the last axis are padded, and one outlier spoils only its block."""
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    x[..., 0] = 1e4
    quantize = jax.jit(adam8bit.quantize, static_argnums=(1, 2))
    dequantize = jax.jit(adam8bit.dequantize, static_argnums=(1, 2))
    coded = quantize(x, block, True)
    assert coded.codes.shape == shape and coded.codes.dtype == jnp.uint8
    assert coded.maximum.shape == (*shape[:-1], -(-shape[-1] // min(block, shape[-1])))
    error = np.abs(dequantize(coded, block, True) - x)
    assert np.all(error[..., 0] == 0)
    largest = np.repeat(coded.maximum, block, axis=-1)[..., : shape[-1]]
    # Decade i of the largest entry has 2^i equal parts, and codes decode to their middles.
    decade = np.floor(np.log10(np.abs(x) / largest)) + 7
    bound = np.where(decade < 0, np.abs(x), 0.45 * 10 ** (decade - 6) / 2**decade * largest)
    assert np.all(error <= 1.001 * bound)


def test_8_bit_second_moments_stay_positive():
    """Adam divides by them: what is positive must not round to zero, however small."""
    coded = adam8bit.quantize(jnp.asarray([1.0, 1e-12, 0.0]), 4, False)
    values = adam8bit.dequantize(coded, 4, False)
    assert values[1] > 0 and values[2] == 0
