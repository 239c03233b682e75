"""Positions as a bias of the scores of attention that depends on the distance of two tokens."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models.layers import Projection, look_up, make_param


def bucket(back_BTS, count, largest, *, both):
    """Returns the bucket of each distance (Raffel et al. 2020, section 2.1).

    Half of the buckets are for one distance each, the others for ranges that grow with the
    logarithm; from `largest` on all are in the last.

    Args:
        back_BTS: how far the key stands before the query, int32.
        count: buckets.
        largest: see above.
        both: whether half of the buckets are for keys behind the query; else those count as 0.
    """
    first = 0
    if both:
        count //= 2
        first = jnp.where(back_BTS < 0, count, 0)
    far_BTS = jnp.abs(back_BTS) if both else jnp.maximum(back_BTS, 0)
    exact = count // 2
    share = jnp.log(jnp.maximum(far_BTS, 1).astype(jnp.float32) / exact)
    ranges = exact + (share / math.log(largest / exact) * (count - exact)).astype(jnp.int32)
    return first + jnp.where(far_BTS < exact, far_BTS, jnp.minimum(ranges, count - 1))


class Buckets(nnx.Module):
    """A bias for each head and range of distances, the same in all layers of a stack (T5)."""

    def __init__(self, c, *, rngs):
        init = jax.nn.initializers.truncated_normal(0.02)
        shape, axes = (c.distance_buckets, c.heads), ("buckets", "heads")
        self.table = make_param(init, rngs.params(), shape, axes)
        self.c = c

    def __call__(self, query_BT, key_BS):
        """Returns the bias of queries and keys at these places of a row, float32[B, N, T, S]."""
        c, back_BTS = self.c, query_BT[:, :, None] - key_BS[:, None, :]
        both = c.assembly == "encoder"
        of_BTS = bucket(back_BTS, c.distance_buckets, c.distance_max, both=both)
        return jnp.moveaxis(look_up(self.table[...], of_BTS), -1, 1)


def sinusoids(width, distance_P):
    """Returns sines, then cosines, of distances, float32[P, width] (Dai et al. 2019)."""
    frequency = 10_000.0 ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = distance_P[:, None].astype(jnp.float32) * frequency
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Sinusoids(nnx.Module):
    """The relative positions of Transformer-XL and XLNet (Dai et al. 2019, arXiv:1901.02860).

    A score is (q + u)·k + (q + v)·(W r), with r the sinusoids of the distance.
    """

    def __init__(self, c, *, rngs):
        sizes = {"D": c.width, "N": c.heads, "H": c.head_width}
        self.project = Projection("BTD,DNH->BTNH", sizes, c=c, rngs=rngs)
        init, shape = jax.nn.initializers.truncated_normal(0.02), (c.heads, c.head_width)
        self.of_content = make_param(init, rngs.params(), shape, ("heads", "head"))
        self.of_distance = make_param(init, rngs.params(), shape, ("heads", "head"))
        self.width = c.width

    def __call__(self, q_BTNH, places):
        """Returns (queries of contents, what is added to their scores, float32[B, N, T, S]).

        Args:
            q_BTNH: queries.
            places: (query_BT, key_BS), places in the row, from 0.
        """
        query_BT, key_BS = places
        T, S = query_BT.shape[1], key_BS.shape[1]
        distance_P = jnp.arange(-(S - 1), T)
        r_PNH = self.project(sinusoids(self.width, distance_P)[None])[0]
        wanted = q_BTNH + self.of_distance[...].astype(q_BTNH.dtype)
        score_BNTP = jnp.einsum("BTNH,PNH->BNTP", wanted, r_PNH, preferred_element_type=jnp.float32)
        at_BTS = query_BT[:, :, None] - key_BS[:, None, :] + S - 1
        at_BTS = jnp.broadcast_to(at_BTS, (q_BTNH.shape[0], T, S))
        bias = jnp.take_along_axis(score_BNTP, at_BTS[:, None], axis=-1)
        return q_BTNH + self.of_content[...].astype(q_BTNH.dtype), bias
