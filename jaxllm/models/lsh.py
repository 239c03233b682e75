"""Locality-sensitive hashing attention: queries look at keys of like direction only.

Queries are keys (the key is the query at length one), tokens are hashed by random rotations,
sorted by hash and cut into chunks; a token sees those of its own hash in its own chunk and the one
before. Several rounds of hashing are averaged by their sums of weights; a key found in several
counts once. A token sees itself only where it sees nothing else. Cost grows with T · chunk.

Source: Kitaev et al. 2020 (Reformer, arXiv:2001.04451), section 2 and appendix A.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.layers import softcap

CHUNK = 64  # tokens
ROUNDS = 4
_NEVER, _SELF = -1e30, -1e5


def keys_of(q_BTNH):
    """The keys: queries at the length that random queries have on average."""
    x = q_BTNH.astype(jnp.float32)
    norm = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-6)
    return (x * norm).astype(q_BTNH.dtype)


def why_not(c, length):
    """Returns why it cannot run a model on rows of `length` tokens, or ""."""
    if c.kv_heads != c.heads:
        return f"queries are keys, so kv_heads={c.kv_heads} must equal heads={c.heads}"
    if c.window:
        return f"it chooses keys by direction, not by distance as window={c.window} does"
    if length % CHUNK and length > CHUNK:
        return f"config.data.length={length} is no multiple of its chunks of {CHUNK}"
    return ""


def hashes(q_BNTH, buckets, rounds):
    """Bucket of each token in each round, int32[B, N, R, T].

    Args:
        q_BNTH: queries.
        buckets: even; 1 puts all into one.
        rounds: R.
    """
    shape = q_BNTH.shape
    if buckets == 1:
        return jnp.zeros((*shape[:2], rounds, shape[2]), jnp.int32)
    # The same rotations in every step: a step stays a function of its arguments.
    turn = np.random.default_rng(0).standard_normal((rounds, shape[3], buckets // 2))
    x = jnp.einsum("BNTH,RHU->BNRTU", q_BNTH.astype(jnp.float32), jnp.asarray(turn, jnp.float32))
    return jnp.argmax(jnp.concatenate([x, -x], axis=-1), axis=-1).astype(jnp.int32)


def lsh(q_BTNH, k_BSKH, v_BSKH, rows, *, scale, window, cap, first=0, rounds=ROUNDS, buckets=0):
    """Attention among tokens of like hash.

    Args:
        q_BTNH, k_BSKH, v_BSKH: keys are `keys_of` the queries.
        rows: `attention.Rows` of whole rows.
        scale, window, cap, first: as in `attention.reference`; no window.
        rounds: of hashing.
        buckets: hashes; 0: two chunks' worth of tokens each.
    """
    B, T, N, H = q_BTNH.shape
    size = min(CHUNK, T)
    C = T // size
    buckets = buckets or max(T // (2 * size) * 2, 1)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH, k_BSKH, v_BSKH))
    bucket = jax.lax.stop_gradient(hashes(q, buckets, rounds))
    index = jnp.broadcast_to(rows.query_BT, (B, T))
    order = jnp.argsort(bucket * T + jnp.arange(T), axis=-1)  # [B, N, R, T]
    back_to = jnp.argsort(order, axis=-1)  # where each token stands when sorted
    place = jnp.stack([bucket, back_to // size], axis=-1)  # [B, N, R, T, 2]

    def sort(x):
        """From [B, N, T, …] to chunks [B, N, R, C, size, …]."""
        x = jax.vmap(jax.vmap(lambda one, order: one[order]))(x, order)
        return x.reshape(*x.shape[:3], C, size, *x.shape[4:])

    def with_last(x):
        """Each chunk behind the one before it, the first behind the last."""
        return jnp.concatenate([jnp.roll(x, 1, axis=3), x], axis=4)

    def spread(x):
        return jnp.broadcast_to(x[:, None], (B, N, *x.shape[1:]))

    q_s, k_s, v_s = sort(q * scale), with_last(sort(k)), with_last(sort(v))
    index_s, segment_s = sort(spread(index)), sort(spread(rows.query_segment_BT))
    place_s = sort(jnp.moveaxis(place, 2, 3))  # [B, N, R, C, size, R, 2]
    score = jnp.einsum("BNRCQH,BNRCSH->BNRCQS", q_s, k_s, preferred_element_type=jnp.float32)
    score = softcap(score, cap) if cap else score
    back = index_s[..., :, None] - with_last(index_s)[..., None, :]
    seen = (back >= 0) & (segment_s[..., :, None] == with_last(segment_s)[..., None, :])
    # Round by round: same bucket, and the key's chunk the query's or the one before.
    one, other = place_s[..., :, None, :, :], with_last(place_s)[..., None, :, :, :]
    near = (one[..., 1] - other[..., 1]) % C <= 1
    found = jnp.moveaxis((one[..., 0] == other[..., 0]) & near, -1, 0)  # [R', B, N, R, C, Q, S]
    times = jnp.maximum(found.sum(0), 1)
    here = jnp.arange(rounds)[:, None] == jnp.arange(rounds)[None, :]
    seen &= jnp.any(found & here[:, None, None, :, None, None, None], axis=0)
    if C == 1:  # the chunk before is this one: it counts once
        seen &= jnp.arange(2 * size) >= size
    score = score - jnp.log(times) + jnp.where(back == 0, _SELF, 0.0)
    score = jnp.where(seen, score, _NEVER)
    partition = jax.nn.logsumexp(score, axis=-1)
    weight = jnp.where(seen, jnp.exp(score - partition[..., None]), 0.0).astype(v.dtype)
    y = jnp.einsum("BNRCQS,BNRCSH->BNRCQH", weight, v_s)
    y = jnp.take_along_axis(y.reshape(B, N, rounds, T, H), back_to[..., None], axis=3)
    partition = jnp.take_along_axis(partition.reshape(B, N, rounds, T), back_to, axis=3)
    share = jax.nn.softmax(partition, axis=2)[..., None].astype(y.dtype)
    return jnp.swapaxes(jnp.sum(y * share, axis=2), 1, 2)
