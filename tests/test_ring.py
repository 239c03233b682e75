"""Attention by blocks, alone and in a ring, is attention written out; so are its gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.models import attention, ring
from jaxllm.models.attention import Rows
from jaxllm.sharding import by_hand
from tests import runs

B, T, N, K, H = 2, 64, 4, 2, 16


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(ring, "BLOCK", 8)


def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    q, k, v, g = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    index = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
    segment = jnp.stack([1 + index[0] // 37, 1 + index[1] // 50 * (index[1] < 60)])
    return (q, k, v), g, Rows(index, index, segment, segment)


def with_gradients(kernel, arrays, g, rows, options):
    y, back = jax.vjp(lambda *arrays: kernel(*arrays, rows, scale=0.3, **options), *arrays)
    return y, *back(g)


def in_a_ring(devices, arrays, g, rows, options):
    """What `ring.blocks` gives where the rows are dealt out to several devices."""
    order = by_hand.length_order(T, devices)
    mesh = runs.mesh(seq=devices)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P(None, "seq"), out_specs=P(None, "seq"), check_vma=False
    )
    def call(arrays, g, rows):
        return with_gradients(ring.blocks, arrays, g, rows, options)

    dealt = jax.tree.map(lambda x: x[:, order], (arrays, g, rows))
    return jax.tree.map(lambda x: x[:, np.argsort(order)], jax.jit(call)(*dealt))


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("window, cap", [(0, 0.0), (11, 0.0), (0, 2.0), (40, 2.0)])
def test_blocks_equal_attention_written_out(window, cap, devices):
    arrays, g, rows = inputs()
    options = dict(window=window, cap=cap)
    wanted = with_gradients(attention.reference, arrays, g, rows, options)
    found = in_a_ring(devices, arrays, g, rows, options)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 2e-5)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_every_device_of_a_ring_has_as_many_pairs_to_look_at(devices):
    order = by_hand.length_order(T, devices)
    assert sorted(order) == list(range(T))
    pairs = (order + 1).reshape(devices, -1).sum(axis=1)  # keys that its queries see
    assert np.all(pairs == T * (T + 1) // 2 / devices)
