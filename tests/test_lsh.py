"""Hashing attention is attention over the union of what each round of hashing finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import attention, lsh
from jaxllm.models.attention import Rows
from tests.conftest import tiny_config

B, T, N, H = 2, 96, 2, 8


def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    q, v, g = (jax.random.normal(key, (B, T, N, H)) for key in keys)
    index = jnp.tile(jnp.arange(T, dtype=jnp.int32), (B, 1))
    segment = 1 + (index > jnp.asarray([[40], [70]])).astype(jnp.int32)
    return q, v, g, Rows(index, index, segment, segment)


def with_gradients(function, q, v, g):
    y, back = jax.vjp(lambda q, v: function(q, lsh.keys_of(q), v), q, v)
    return y, *back(g)


@pytest.mark.parametrize("rounds, cap", [(1, 2.0), (3, 0.0)])
def test_with_one_bucket_it_is_attention_to_others(rounds, cap, monkeypatch):
    """One chunk and one bucket hold all tokens: found in every round, they count once."""
    monkeypatch.setattr(lsh, "CHUNK", T)
    q, v, g, rows = inputs()
    options = dict(scale=0.5, window=0, cap=cap)
    wanted = with_gradients(
        lambda *a: attention.reference(*a, rows, others=True, **options), q, v, g
    )
    found = with_gradients(
        lambda *a: lsh.lsh(*a, rows, rounds=rounds, buckets=1, **options), q, v, g
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("rounds, size", [(1, 48), (2, 16), (4, 8)])
def test_a_token_sees_those_of_its_bucket_in_this_chunk_and_the_last(rounds, size, monkeypatch):
    monkeypatch.setattr(lsh, "CHUNK", size)
    q, v, _, rows = inputs()
    buckets = max(T // (2 * size) * 2, 1)
    bucket = np.asarray(lsh.hashes(jnp.swapaxes(q, 1, 2), buckets, rounds))
    k = np.asarray(lsh.keys_of(q))
    y = lsh.lsh(q, k, v, rows, scale=0.5, window=0, cap=0.0, rounds=rounds)
    seen = np.asarray(attention.visible(rows, 0))
    missed = 0
    for b, n in np.ndindex(B, N):
        union = np.zeros((T, T), bool)
        for r in range(rounds):
            place = np.argsort(np.lexsort((np.arange(T), bucket[b, n, r]))) // size
            near = (place[:, None] - place[None]) % (T // size) <= 1
            union |= near & (bucket[b, n, r][:, None] == bucket[b, n, r][None])
        missed += np.sum(seen[b] & ~union)
        score = 0.5 * np.asarray(q)[b, :, n] @ k[b, :, n].T - 1e5 * np.eye(T)
        weight = jax.nn.softmax(jnp.where(seen[b] & union, score, -1e30), axis=-1)
        np.testing.assert_allclose(y[b, :, n], weight @ v[b, :, n], atol=1e-5)
    assert missed > 0


@pytest.mark.parametrize(
    "fields, why",
    [
        (dict(attention="lsh", kv_heads=2), "kv_heads=2"),
        (dict(attention="lsh", window=4), "window=4"),
        (dict(attention="cudnn"), "float32"),
        (dict(attention="cudnn", dtype="bfloat16", attention_softcap=1.0), "soft cap"),
        (dict(attention="xla", attention_softcap=1.0), "soft cap"),
        (dict(attention="splash"), "length=16 is no multiple"),
    ],
)
def test_what_a_kernel_lacks_is_told(fields, why):
    with pytest.raises(ConfigError, match=why):
        models.for_platform(tiny_config(**({"kv_heads": 4} | fields)), "", 16)


@pytest.mark.parametrize("name", ["reference", "xla", "lsh", "cudnn"])
def test_rows_that_devices_share_need_a_ring(name):
    c = tiny_config(attention=name, kv_heads=4, dtype="bfloat16")
    with pytest.raises(ConfigError, match=r"mesh\.seq=4"):
        models.for_platform(c, "", 64, 4)
    assert models.for_platform(tiny_config(), "cpu", 64, 4).attention == "blocks"


def test_cudnn_is_for_gpus():
    c = tiny_config(attention="cudnn", dtype="bfloat16")
    with pytest.raises(ConfigError, match="runs on a GPU"):
        models.for_platform(c, "cpu", 64)
    assert models.for_platform(c, "gpu", 64).attention == "cudnn"
