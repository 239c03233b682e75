"""Attention by blocks, alone and in a ring, is attention written out; so are its gradients."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.models import attention, blocks, splash
from jaxllm.models.attention import Rows
from jaxllm.sharding import by_hand
from tests import runs

B, N, K = 2, 4, 2


def inputs(T, H):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    q, k, v, g = (jax.random.normal(*pair) for pair in zip(keys, shapes, strict=True))
    index = np.arange(T, dtype=np.int32)
    segment = np.stack([1 + (index > 0.6 * T), 1 + (index > 0.3 * T) + (index > 0.8 * T)])
    segment[1, -T // 20 :] = 0  # padding
    starts = [[np.flatnonzero(row == row[t])[0] for t in range(T)] for row in segment]
    index = np.tile(index, (B, 1))
    index, segment, position = (jnp.asarray(x, jnp.int32) for x in (index, segment, index - starts))
    return (q, k, v), g, Rows(index, index, segment, segment, position)


def with_gradients(kernel, arrays, g, rows, options):
    """The values and gradients of a kernel, under remat, as layers use it."""
    call = jax.checkpoint(lambda *arrays: kernel(*arrays, rows, scale=0.3, **options))
    y, back = jax.vjp(call, *arrays)
    return y, *back(g)


def in_a_ring(kernel, devices, arrays, g, rows, options):
    """What a kernel gives where the rows are dealt out to several devices."""
    T = g.shape[1]
    order = np.asarray(by_hand.deal(np.arange(T), devices))
    mesh = runs.mesh(seq=devices)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P(None, "seq"), out_specs=P(None, "seq"), check_vma=False
    )
    def call(arrays, g, rows):
        return with_gradients(kernel, arrays, g, rows, options)

    dealt = jax.tree.map(lambda x: x[:, order], (arrays, g, rows))
    return jax.tree.map(lambda x: x[:, np.argsort(order)], jax.jit(call)(*dealt))


def check(kernel, devices, T, H, **options):
    arrays, g, rows = inputs(T, H)
    wanted = with_gradients(attention.reference, arrays, g, rows, options)
    found = in_a_ring(kernel, devices, arrays, g, rows, options)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 2e-5)


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize(
    "window, first, cap", [(0, 0, 0.0), (11, 0, 0.0), (0, 0, 2.0), (40, 0, 2.0), (9, 3, 0.0)]
)
def test_blocks_equal_attention_written_out(window, first, cap, devices, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 8)
    check(blocks.blocks, devices, 64, 16, window=window, first=first, cap=cap)


@pytest.mark.parametrize("cap, width", [(0.0, 64), pytest.param(2.0, 128, marks=pytest.mark.slow)])
def test_a_ring_of_splash_equals_attention_written_out(cap, width):
    kernel = functools.partial(splash.ring_splash, interpret=True)
    check(kernel, 2, 512, width, window=0, cap=cap)


def largest_array(kernel):
    """Numbers in the largest array of a kernel's values and gradients under remat."""
    arrays, g, rows = inputs(2048, 16)
    options = dict(window=0, cap=0.0)
    text = str(jax.make_jaxpr(lambda *a: with_gradients(kernel, a, g, rows, options))(*arrays))
    shapes = re.findall(r"\w+\[([\d,]+)\]", text)
    return max(math.prod(map(int, shape.split(","))) for shape in shapes)


def test_scores_of_all_tokens_are_never_in_memory():
    block = B * N * blocks.BLOCK**2
    assert largest_array(blocks.blocks) == block
    assert largest_array(attention.reference) == 16 * block


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_every_device_of_a_ring_has_as_many_pairs_to_look_at(devices):
    T = 64
    order = by_hand.deal(np.arange(T), devices)
    assert sorted(order) == list(range(T))
    pairs = (order + 1).reshape(devices, -1).sum(axis=1)  # keys that its queries see
    assert np.all(pairs == T * (T + 1) // 2 / devices)
