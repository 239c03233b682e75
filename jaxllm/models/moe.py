"""Mixture of experts: a router sends each token to a few of many MLPs.

Two ways to carry tokens to experts. With `capacity`, every row has so many places at each expert
and tokens beyond them pass by (Lepikhin et al. 2020, arXiv:2006.16668; Fedus et al. 2021,
arXiv:2101.03961); places go over the mesh axis `expert` by all-to-all. Without, no token is
dropped: tokens are sorted by expert and multiplied group by group (Gale et al. 2022,
arXiv:2211.15841), and each device of `expert` takes those of all the others that chose its experts.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxllm.models.layers import Projection, make_param
from jaxllm.models.mlp import Mlp, put_apart
from jaxllm.sharding import wire


class Choice(NamedTuple):
    """What the router decided, of J choices a token.

    Attributes:
        expert_BTJ: int32, most likely first.
        weight_BTJ: float32, of the expert's output.
    """

    expert_BTJ: Any
    weight_BTJ: Any


def capacity(c, tokens):
    """Places of each expert for a row of `tokens`; a multiple of 8 where that matters little."""
    places = math.ceil(c.capacity * tokens * c.experts_per_token / c.experts)
    return min(tokens, math.ceil(places / 8) * 8 if places > 64 else places)


class Router(nnx.Module):
    """Scores of the experts, in float32 whatever the dtype of the computation."""

    def __init__(self, c, *, rngs):
        init = jax.nn.initializers.truncated_normal(c.width**-0.5)
        self.w = make_param(init, rngs.params(), (c.width, c.experts), ("embed", "router"))
        self.c = c

    def __call__(self, x_BTD, segment_BT):
        """Returns (Choice, {"balance_loss", "router_z_loss"}: weighted sums over the tokens).

        Args:
            x_BTD: input.
            segment_BT: 0 on padding, which counts for nothing in the losses.
        """
        c = self.c
        logits_BTE = jnp.matmul(x_BTD.astype(jnp.float32), self.w[...], precision="highest")
        chance_BTE = jax.nn.softmax(logits_BTE, axis=-1)
        weight_BTJ, expert_BTJ = jax.lax.top_k(chance_BTE, c.experts_per_token)
        if c.router_norm:
            weight_BTJ = weight_BTJ / weight_BTJ.sum(-1, keepdims=True)
        real_BT = (segment_BT > 0).astype(jnp.float32)
        z_BT = jnp.square(jax.nn.logsumexp(logits_BTE, axis=-1))
        # Joined over `tensor`, so each device of it has the sums of all: a part of them is its own.
        share = 1 / wire.size("tensor")
        losses = {
            "balance_loss": c.balance_loss * share * balance(chance_BTE, expert_BTJ, real_BT),
            "router_z_loss": c.router_z_loss * share * jnp.sum(z_BT * real_BT),
        }
        return Choice(expert_BTJ, weight_BTJ), losses


def balance(chance_BTE, expert_BTJ, real_BT):
    """The load-balancing loss of Fedus et al. 2021, equation 4, row by row, times real tokens.

    E · Σ_e f_e P_e, with f_e the share of choices and P_e the mean chance of expert e: 1 where all
    are chosen alike. By row, so that it depends on neither devices nor pieces of the batch.
    """
    E, J = chance_BTE.shape[-1], expert_BTJ.shape[-1]
    chosen_BTE = jnp.sum(jax.nn.one_hot(expert_BTJ, E), axis=2) / J
    sums = [jnp.sum(x * real_BT[..., None], axis=1) for x in (chosen_BTE, chance_BTE)]
    chosen_BE, chance_BE, tokens_B = wire.sum_row([*sums, real_BT.sum(1)])
    per_row_B = E * jnp.sum(chosen_BE * chance_BE, axis=-1) / jnp.maximum(tokens_B, 1.0)
    return jnp.sum(per_row_B) / wire.size("seq")


class Experts(Mlp):
    """The MLPs of all experts, stacked on axis 0."""

    def __init__(self, c, *, rngs):
        sizes = {"E": c.experts, "D": c.width, "F": c.expert_width}
        keywords = dict(c=c, rngs=rngs)
        self.gate = Projection("ECD,EDF->ECF", sizes, **keywords) if c.gated else None
        self.up = Projection("ECD,EDF->ECF", sizes, **keywords)
        std = (c.expert_width * 2 * c.layers) ** -0.5
        self.down = Projection("ECF,EFD->ECD", sizes, std=std, **keywords)
        self.activation, self.apart = c.activation, put_apart(c)

    def __call__(self, x, sizes=None):
        """Returns each device's part of the sum over `tensor`.

        Args:
            x: [E, C, D]; or [M, D], sorted by expert.
            sizes: how many of x each expert has, int32[E], in the second case.
        """
        return self.down(self.inside(x, sizes=sizes), sizes=sizes)


class Moe(nnx.Module):
    """Router and experts, in the place of an MLP."""

    def __init__(self, c, *, rngs):
        self.router, self.experts = Router(c, rngs=rngs), Experts(c, rngs=rngs)
        width = c.shared_experts * c.expert_width
        self.shared = Mlp(c, width, rngs=rngs) if width else None
        self.c = c

    def __call__(self, x_BTD, segment_BT, shard, *, dropless=False):
        """Returns ([B, T / tensor, D] of x joined over `tensor`, sums of the router's losses).

        Args:
            x_BTD: input.
            segment_BT: 0 on padding.
            shard: function (x, *logical axes) -> x.
            dropless: whether no token is dropped whatever the configuration (in decoding).
        """
        choice, losses = self.router(x_BTD, segment_BT)
        if self.c.capacity and not dropless:
            y_BTD = self._by_places(x_BTD, choice)
        else:
            y_BTD = self._by_groups(x_BTD, choice)
        y_BTD = wire.sum_parts(y_BTD)
        return y_BTD if self.shared is None else y_BTD + self.shared(x_BTD, shard), losses

    def _by_places(self, x_BTD, choice):
        """Tokens take places at their experts in order: none depends on later ones."""
        c = self.c
        B, T, D = x_BTD.shape
        J, E, C = c.experts_per_token, c.experts, capacity(c, T)
        expert_BX = choice.expert_BTJ.reshape(B, T * J)
        taken_BXE = jax.nn.one_hot(expert_BX, E, dtype=jnp.int32)
        place_BX = jnp.sum((jnp.cumsum(taken_BXE, axis=1) - 1) * taken_BXE, axis=-1)
        # Place of each choice among all E·C, the one after the last for those that get none.
        place_BX = jnp.where(place_BX < C, expert_BX * C + place_BX, E * C)
        token_X = jnp.repeat(jnp.arange(T), J)
        row_B1 = jnp.arange(B)[:, None]
        token_BP = jnp.full((B, E * C), T).at[row_B1, place_BX].set(token_X[None], mode="drop")
        x_BPD = jnp.take_along_axis(x_BTD, token_BP[..., None], axis=1, mode="fill", fill_value=0)
        x_BECD = wire.to_experts(x_BPD.reshape(B, E, C, D))
        rows, here = x_BECD.shape[:2]
        y = self.experts(jnp.swapaxes(x_BECD, 0, 1).reshape(here, rows * C, D))
        y_BECD = wire.from_experts(jnp.swapaxes(y.reshape(here, rows, C, D), 0, 1))
        y_BPD = y_BECD.reshape(B, E * C, D)
        y_BXD = jnp.take_along_axis(y_BPD, place_BX[..., None], axis=1, mode="fill", fill_value=0)
        weight_BTJ = choice.weight_BTJ.astype(y_BXD.dtype)
        return jnp.einsum("BTJD,BTJ->BTD", y_BXD.reshape(B, T, J, D), weight_BTJ)

    def _by_groups(self, x_BTD, choice):
        """Tokens are sorted by expert; none is dropped."""
        c, (_, T, D) = self.c, x_BTD.shape
        J, here = c.experts_per_token, c.experts // wire.size("expert")
        x_BTD, expert_BTJ, weight_BTJ = wire.gather_rows((x_BTD, *choice))
        x_MD, weight_X = x_BTD.reshape(-1, D), weight_BTJ.reshape(-1)
        expert_X = expert_BTJ.reshape(-1) - wire.index("expert") * here
        mine_X = (expert_X >= 0) & (expert_X < here)
        expert_X = jnp.where(mine_X, expert_X, here)
        order_X = jnp.argsort(expert_X, stable=True)
        sizes_E = jnp.bincount(expert_X, length=here).astype(jnp.int32)
        token_X = order_X // J
        y_XD = self.experts(x_MD[token_X], sizes_E)
        scale_X = jnp.where(mine_X, weight_X, 0.0)[order_X].astype(y_XD.dtype)
        # Rows past the last group are of others' experts, and of no defined value.
        y_XD = jnp.where(mine_X[order_X][:, None], y_XD, 0) * scale_X[:, None]
        y_MD = jnp.zeros_like(x_MD).at[token_X].add(y_XD)
        return wire.scatter_rows(y_MD.reshape(-1, T, D))
