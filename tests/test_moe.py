"""A mixture of experts against each token's experts written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, trees
from jaxllm.config import ConfigError
from jaxllm.models import moe
from jaxllm.models.families import model_config
from jaxllm.scaling import flops
from tests.conftest import random_params, tiny_config

B, T, D, E = 2, 12, 16, 4


def layer(**fields):
    """A Moe of one layer with random weights, and its input."""
    from flax import nnx

    options = dict(experts=E, width=D, heads=2, mlp_width=24) | fields
    module = moe.Moe(tiny_config(**options), rngs=nnx.Rngs(params=3))
    x_BTD = jax.random.normal(jax.random.key(1), (B, T, D))
    segment_BT = jnp.ones((B, T), jnp.int32)
    return module, x_BTD, segment_BT


def written_out(module, x_D, chosen, weights):
    """What some experts make of one token."""
    e = module.experts
    y_D = np.zeros(D)
    for expert, weight in zip(chosen, weights, strict=True):
        gate, up = x_D @ e.gate.w[expert], x_D @ e.up.w[expert]
        y_D += weight * np.asarray((jax.nn.silu(gate) * up) @ e.down.w[expert])
    return y_D


def chances(module, x_BTD):
    return np.asarray(jax.nn.softmax(x_BTD @ module.router.w[...], axis=-1))


@pytest.mark.parametrize("capacity", [0.0, E])
@pytest.mark.parametrize("norm, choices", [(True, 2), (False, 1), (False, 3)])
def test_each_token_gets_its_experts(capacity, norm, choices):
    module, x_BTD, segment_BT = layer(
        capacity=float(capacity), router_norm=norm, experts_per_token=choices
    )
    y_BTD, _ = module(x_BTD, segment_BT, None)
    for b, t in np.ndindex(B, T):
        chance = chances(module, x_BTD)[b, t]
        chosen = np.argsort(-chance)[:choices]
        weights = chance[chosen] / (chance[chosen].sum() if norm else 1)
        wanted = written_out(module, x_BTD[b, t], chosen, weights)
        np.testing.assert_allclose(y_BTD[b, t], wanted, atol=1e-5)


def test_tokens_past_the_places_pass_by():
    """In each row an expert takes the first that choose it, as many as it has places for."""
    module, x_BTD, segment_BT = layer(capacity=0.7, router_norm=False, experts_per_token=1)
    places = moe.capacity(module.c, T)
    assert places == 3  # ceil(0.7 * 12 / 4)
    y_BTD, _ = module(x_BTD, segment_BT, None)
    dropped = 0
    for b in range(B):
        taken = np.zeros(E, int)
        for t in range(T):
            expert = chances(module, x_BTD)[b, t].argmax()
            taken[expert] += 1
            passes = taken[expert] > places
            dropped += passes
            assert passes == (np.abs(y_BTD[b, t]).max() == 0)
    assert 0 < dropped < B * T


def test_losses_of_the_router():
    """1 a token where experts are chosen alike, E where all choose one; padding does not count."""
    same = jnp.full((1, E, E), 1 / E)
    each = jnp.arange(E)[None, :, None]
    real = jnp.ones((1, E))
    assert float(moe.balance(same, each, real)) == pytest.approx(E)  # 1 x E tokens
    one = jnp.eye(E)[None, jnp.zeros(E, int)]
    assert float(moe.balance(one, jnp.zeros((1, E, 1), int), real)) == pytest.approx(E * E)
    half = real.at[:, 2:].set(0)
    assert float(moe.balance(one, jnp.zeros((1, E, 1), int), half)) == pytest.approx(E * 2)
    module, x_BTD, segment_BT = layer(router_z_loss=1.0, balance_loss=0.0)
    _, losses = module(x_BTD, segment_BT.at[0, 5:].set(0), None)
    z = np.log(np.exp(x_BTD @ module.router.w[...]).sum(-1)) ** 2
    assert float(losses["router_z_loss"]) == pytest.approx(z[0, :5].sum() + z[1].sum(), rel=1e-5)
    assert float(losses["balance_loss"]) == 0


def test_routers_learn():
    c = tiny_config(experts=E, layers=2, capacity=2.0)
    model = models.make(c)
    params = random_params(model)
    rng = np.random.default_rng(0)
    batch = {name: jnp.asarray(rng.integers(0, 9, (2, 16)), jnp.int32) for name in ("tokens",)}
    batch |= {"position": jnp.tile(jnp.arange(16), (2, 1)), "segment": jnp.ones((2, 16), jnp.int32)}

    def total(params):
        x, losses = model.hidden(params, batch)
        return jnp.square(x).sum() + sum(losses.values())

    for path, g in trees.flatten(jax.grad(total)(params)).items():
        if "moe" in path:
            assert all(np.abs(one).max() > 0 for one in g), path


@pytest.mark.parametrize(
    "family, size, total, active",
    [
        # Jiang et al. 2024 (arXiv:2401.04088): 47B and 13B; Mistral's card: 141B and 39B.
        ("mixtral", "8x7b", 46_702_792_704, 12.88e9),
        ("mixtral", "8x22b", 140_630_071_296, 39.15e9),
    ],
)
def test_parameters_of_known_mixtures(family, size, total, active):
    c = model_config({"family": family, "size": size}, vocab=65, length=16)
    infos = models.abstract_params(c)
    assert sum(int(np.prod(info.shape, dtype=np.int64)) for info in infos.values()) == total
    assert flops.matmul_params(c) + c.vocab * c.width == pytest.approx(active, rel=2e-3)


@pytest.mark.parametrize(
    "fields, why",
    [
        (dict(experts=2, experts_per_token=3), "experts_per_token=2"),
        (dict(experts=2, layers=3, moe_every=2), "layers=4"),
        (dict(experts=-1), "experts=0"),
        (dict(experts=2, layers=4, moe_every=2, window=3, global_every=3), "layers=6"),
    ],
)
def test_what_does_not_fit_is_refused_with_an_edit(fields, why):
    with pytest.raises(ConfigError, match=f"Try --config.model.{why}"):
        tiny_config(**fields)
