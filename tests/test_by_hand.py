"""Gathering weights by hand: whatever way a gradient is scattered, each device gets its own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.sharding import by_hand
from tests import runs


@pytest.mark.parametrize("shape", [(16, 6), (16, 3, 2), (8,)])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_a_gradient_scattered_in_halves_is_the_sum(devices, shape):
    """As on TPUs: first over even and odd devices, then over neighbours."""
    mesh = runs.mesh(fsdp=devices)
    x = jax.random.normal(jax.random.key(0), shape)
    weight = jax.random.normal(jax.random.key(1), (devices, *shape))

    def gradient(in_halves):
        @functools.partial(
            jax.shard_map, mesh=mesh, in_specs=(P("fsdp"),) * 2, out_specs=P("fsdp"),
            check_vma=False,
        )  # fmt: skip
        def one(part, weight):
            whole, back = jax.vjp(lambda x: by_hand._gather(x, "fsdp", in_halves), part)
            assert whole.shape == shape
            return back(weight[0])[0]

        return jax.jit(one)(x, weight)

    np.testing.assert_allclose(gradient(True), weight.sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient(False), weight.sum(0), rtol=1e-5, atol=1e-6)


def test_gradients_of_a_look_up_add_up_in_float32():
    """A token that comes a thousand times gets the sum, not what bfloat16 makes of it."""
    from jaxllm.models.layers import look_up

    table = jnp.zeros((4, 2), jnp.bfloat16)
    rows = jnp.concatenate([jnp.zeros(1000, jnp.int32), jnp.asarray([3])])
    g = jax.grad(lambda table: look_up(table, rows).astype(jnp.float32).sum())(table)
    assert g.dtype == jnp.bfloat16
    np.testing.assert_array_equal(g[:, 0].astype(jnp.float32), [1000, 0, 0, 1])
