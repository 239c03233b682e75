"""RG-LRU layers: as the published model computes them, and as plain recurrence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models, trees
from jaxllm.config import ConfigError
from jaxllm.models import cache as caches
from jaxllm.models.attention import Rows
from jaxllm.models.config import resolve
from jaxllm.models.recurrence import _root
from tests.conftest import random_params, tiny_config

FIELDS = dict(
    layers=5, width=16, heads=3, kv_heads=1, head_width=8, mlp_width=40, attention_every=3,
    recurrent_width=36, conv_width=4, window=7, rope_fraction=0.5, norm_plus_one=True, tied=True,
    embed_scale=True, logit_softcap=30.0, activation="gelu_tanh", out_bias=True, mlp_bias=True,
)  # fmt: skip


def test_logits_equal_those_of_the_published_architecture():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    # A width whose root is exact: theirs is rounded to bfloat16.
    theirs = transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(
            vocab_size=51, hidden_size=16, num_hidden_layers=5, num_attention_heads=3,
            num_key_value_heads=1, head_dim=8, intermediate_size=80, lru_width=36,
            attention_window_size=7, conv1d_width=4, logits_soft_cap=30.0,
        )
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    tensors = {name: x.detach().numpy() for name, x in theirs.state_dict().items()}
    c = resolve(FIELDS, vocab=51, length=32)
    infos = models.abstract_params(c)
    params = {}
    for path, info in infos.items():
        params[path] = _theirs(path, info, tensors).astype(np.float32)
    ids = np.random.default_rng(0).integers(0, 51, (2, 23))
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor(ids), use_cache=False).logits.numpy()
    model = models.make(models.for_platform(c, "cpu", 32))
    place = np.tile(np.arange(23, dtype=np.int32), (2, 1))
    batch = {"tokens": ids.astype(np.int32), "position": place, "segment": np.ones_like(place)}
    logits = jax.jit(model.apply)(trees.unflatten(params), batch)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)
    assert np.abs(wanted).max() > 1


NAMES = {
    "recurrence/gate": "temporal_block.linear_y", "recurrence/enter": "temporal_block.linear_x",
    "recurrence/o": "temporal_block.linear_out", "recurrence/conv": "temporal_block.conv_1d.weight",
    "recurrence/conv_bias": "temporal_block.conv_1d.bias",
    "recurrence/rate": "temporal_block.rg_lru.recurrent_param",
    "recurrence/input_gate/w": "temporal_block.rg_lru.input_gate_weight",
    "recurrence/input_bias": "temporal_block.rg_lru.input_gate_bias",
    "recurrence/rate_gate/w": "temporal_block.rg_lru.recurrent_gate_weight",
    "recurrence/rate_bias": "temporal_block.rg_lru.recurrent_gate_bias",
    "attn/q": "temporal_block.q_proj", "attn/k": "temporal_block.k_proj",
    "attn/v": "temporal_block.v_proj", "attn/o": "temporal_block.o_proj",
    "mlp/gate": "mlp_block.gate_proj", "mlp/up": "mlp_block.up_proj",
    "mlp/down": "mlp_block.down_proj", "attn_norm/scale": "temporal_pre_norm.weight",
    "mlp_norm/scale": "channel_pre_norm.weight",
}  # fmt: skip


def _theirs(path, info, tensors):
    """One of our parameters, made of theirs."""
    if path == "embed":
        return tensors["model.embed_tokens.weight"]
    if path == "final_norm/scale":
        return tensors["model.final_norm.weight"]
    part = path.removeprefix("layers/")
    having = range(5)
    if part.startswith(("attn/", "recurrence/")):
        having = [i for i in range(5) if (i % 3 == 2) == part.startswith("attn/")]
    name = NAMES.get(part) or NAMES[part[:-2]] + {"w": ".weight", "b": ".bias"}[part[-1]]
    one = []
    for layer in having:
        x = tensors[f"model.layers.{layer}.{name}"]
        linear = part.endswith("/w") and not part.endswith(("input_gate/w", "rate_gate/w"))
        x = x.T if linear or part == "recurrence/conv" else x
        one.append(x.reshape(info.shape[1:]))
    return np.stack(one)


def test_it_is_the_recurrence_written_out():
    """With documents that begin anew, and padding between and behind them."""
    c = tiny_config(**{**FIELDS, "layers": 3})
    model = models.make(c)
    part = trees.flatten(random_params(model, scale=0.5)["layers"]["recurrence"])
    module = models.abstract_module(c).layers.recurrence
    from flax import nnx

    graph, state = nnx.split(module)
    flat = {path: x[0] for path, x in part.items()}
    nnx.replace_by_pure_dict(state, trees.unflatten(flat))
    module = nnx.merge(graph, state)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 12, 16)).astype(np.float32)
    position = np.array([[0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4]], np.int32)
    segment = np.array([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]], np.int32)
    rows = Rows(position, position, segment, segment, position)
    y, _ = module(x, rows, models.place_nowhere)
    wanted = _plain(x[0], position[0], flat)
    np.testing.assert_allclose(y[0], wanted, atol=2e-5)
    assert np.abs(wanted).max() > 0.1


def _plain(x, position, p):
    """The paper's equations, a token at a time."""

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    gate = np.asarray(jax.nn.gelu(x @ p["gate/w"] + p["gate/b"], approximate=True))
    enter = x @ p["enter/w"] + p["enter/b"]
    h, out = 0.0, []
    for t in range(len(x)):
        u = p["conv_bias"] + sum(
            p["conv"][3 - back] * enter[t - back] for back in range(4) if back <= position[t]
        )
        blocks = u.reshape(3, 12)
        r, i = (
            sigmoid(np.einsum("nh,nhw->nw", blocks, p[f"{n}_gate/w"]) + p[f"{n}_bias"]).ravel()
            for n in ("rate", "input")
        )
        a = np.exp(-8 * r * np.log1p(np.exp(p["rate"])))
        h = i * u if position[t] == 0 else a * h + np.sqrt(1 - a * a) * i * u
        out.append(h)
    return (np.array(out) * gate) @ p["o/w"] + p["o/b"]


def test_rows_of_unequal_length_go_on_from_their_own_states():
    """Prompts padded behind, then a token at a time, equal each row alone from the start."""
    model = models.make(models.for_platform(tiny_config(**FIELDS), "cpu", 16))
    params = random_params(model)
    tokens = np.random.default_rng(1).integers(0, 65, (3, 12)).astype(np.int32)
    sizes = np.array([2, 5, 8])
    place = np.tile(np.arange(12, dtype=np.int32), (3, 1))
    batch = {"tokens": tokens, "position": place, "segment": np.ones_like(place)}
    whole = jax.jit(model.apply)(params, batch)
    cache = caches.make(model.config, 3, 16)
    prompt = {"tokens": tokens[:, :8], "segment": (place < sizes[:, None])[:, :8].astype(np.int32)}
    _, cache = jax.jit(functools.partial(model.extend, fresh=True))(params, prompt, cache)
    extend = jax.jit(model.extend)
    for step in range(4):
        at = sizes + step
        one = {"tokens": tokens[np.arange(3), at][:, None], "segment": np.ones((3, 1), np.int32)}
        logits, cache = extend(params, one, cache)
        np.testing.assert_allclose(logits[:, 0], whole[np.arange(3), at], atol=2e-5)


def test_the_gradient_stays_finite_where_nothing_is_forgotten():
    g = jax.grad(lambda x: _root(x))(jnp.float32(0.0))
    assert 0 < g <= 1000
    assert np.isclose(jax.grad(lambda x: _root(x))(jnp.float32(0.25)), 1.0)


def test_blocks_must_divide_and_encoders_do_not_recur():
    with pytest.raises(ConfigError, match="recurrent_width"):
        tiny_config(**{**FIELDS, "recurrent_width": 35})
    with pytest.raises(ConfigError, match="attention_every"):
        tiny_config(attention_every=2, assembly="encoder")
