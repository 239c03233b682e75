"""Fine-tuning methods in models of every kind, and in decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import finetune, models, trees
from jaxllm.config import make
from jaxllm.finetune import parts
from jaxllm.models import generate
from jaxllm.models.config import resolve
from tests import runs
from tests.conftest import TINY, ragged_batch, random_params
from tests.test_assemblies import KINDS, LENGTH, VOCAB, make_batch

EVERY = finetune.Method(
    "lora",
    (
        parts.Lora("layers/", 4, 2.0),
        parts.Scale(r"attn/(k|v)$", r"(mlp|experts)/down$"),
        parts.Bottleneck(8, "gelu", True),
    ),
)
MERGED = finetune.Method("lora", EVERY.parts[:2])
MODELS = {
    "bert": dict(KINDS["bert"]),
    "t5": dict(KINDS["t5"]),
    "dropless": dict(experts=4, shared_experts=1),
    "places": dict(experts=4, capacity=2.0, moe_every=2),
    "griffin": dict(attention_every=3, layers=3),
}


def config(**fields):
    c = resolve({**TINY, **fields}, vocab=VOCAB, length=LENGTH)
    return models.for_platform(c, "cpu", LENGTH)


def start(method, c, moved=0.0):
    """(params of the plain model, model, all params of the fine-tuned one)."""
    plain = trees.flatten(jax.jit(models.make(c).init)(jax.random.key(0)))
    model = models.make(c, rewrite=method.rewrite)
    drawn = trees.flatten(model.init(jax.random.key(1)))
    own = finetune.begin(method, c, plain, drawn)
    key = jax.random.key(2)
    own = {
        path: x + moved * jax.random.normal(jax.random.fold_in(key, i), x.shape)
        for i, (path, x) in enumerate(own.items())
    }
    return plain, model, {**plain, **own}


def run(model, params, batch):
    # As users compile: without the compiler's optimizations, which tests go without, two programs
    # may round the last place of a row differently.
    compiled = jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 3})
    return compiled(trees.unflatten(params), batch)


SLOW = ("griffin", "places", "dropless")


@pytest.mark.parametrize("name", runs.slow(MODELS, SLOW))
def test_every_kind_of_model_starts_as_its_base_and_can_be_merged(name):
    c = config(**MODELS[name])
    batch = make_batch(name) if name in KINDS else ragged_batch(4, LENGTH, VOCAB)
    plain, model, params = start(EVERY, c)
    want = run(models.make(c), plain, batch)
    np.testing.assert_array_equal(run(model, params, batch), want)
    plain, model, params = start(MERGED, c, moved=0.1)
    found = run(model, params, batch)
    assert float(jnp.abs(found - want).max()) > 1e-2
    merged = finetune.merge(MERGED, c, params)
    np.testing.assert_allclose(run(models.make(c), merged, batch), found, atol=1e-4)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("name", runs.slow(("decoder", "t5", "windows"), ("t5",)))
def test_a_cache_gives_what_whole_rows_give(kind, name):
    """Greedy tokens of prompts of unequal length are those of rows computed whole each time."""
    fields = {"windows": dict(window=5, window_first=3), "t5": KINDS["t5"]}.get(name, {})
    c = config(**fields)
    method = make(finetune.METHODS, dict(kind=kind, tokens=3), "finetune")
    model = models.make(c, rewrite=method.rewrite)
    params = random_params(model, scale=0.4)
    reads = name == "t5"
    prompts = [[5, 9, 11, 30, 2], [7], [8, 8, 40]]
    decodes = generate.decoder(model, start=1)
    draw = jax.jit(generate.make_generate(decodes, 6, generate.Sampling(0.0)))
    found = draw(params, generate.pad(prompts), jax.random.key(0))
    apply = jax.jit(model.apply)
    for prompt, tokens, logps in zip(prompts, found.tokens.tolist(), found.logp, strict=True):
        given, row = [0, 0, 0, *prompt], [1] if reads else [0, 0, 0, *prompt]
        for token, logp in zip(tokens, logps, strict=True):
            batch = whole_row(row)
            if reads:
                batch |= {f"inputs_{n}" if n != "tokens" else "inputs": x
                          for n, x in whole_row(given).items()}  # fmt: skip
            want = jax.nn.log_softmax(apply(params, batch)[0, len(row) - 1])
            assert int(want.argmax()) == token
            np.testing.assert_allclose(logp, want[token], atol=1e-4)
            row.append(token)
    assert len(np.unique(found.tokens)) > 3
    plain = generate.decoder(models.make(c), start=1)
    other = jax.jit(generate.make_generate(plain, 6, generate.Sampling(0.0)))
    base = {p: x for p, x in trees.flatten(params).items() if p in models.abstract_params(c)}
    without = other(trees.unflatten(base), generate.pad(prompts), jax.random.key(0))
    assert without.tokens.tolist() != found.tokens.tolist()


def whole_row(row):
    """A batch of one row, padded."""
    tokens, real = np.zeros((1, LENGTH), np.int32), np.arange(LENGTH)[None] < len(row)
    tokens[0, : len(row)] = row
    position = np.where(real, np.arange(LENGTH)[None], 0).astype(np.int32)
    return dict(tokens=tokens, segment=real.astype(np.int32), position=position)


def test_dropped_inputs_of_an_adapter_are_each_rows_own():
    """The same key drops the same, another other; without a key nothing is dropped."""
    c = config()
    method = make(finetune.METHODS, dict(kind="lora", dropout=0.5), "finetune")
    _, model, params = start(method, c, moved=0.3)
    params, batch = trees.unflatten(params), ragged_batch(4, LENGTH, VOCAB)

    @jax.jit
    def hidden(key):
        keys = None if key is None else jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(4))
        return model.hidden(model.whole(params), batch, keys)[0]

    plain, one, other = hidden(None), hidden(jax.random.key(0)), hidden(jax.random.key(1))
    np.testing.assert_array_equal(one, hidden(jax.random.key(0)))
    assert float(jnp.abs(one - plain).max()) > 1e-2
    assert float(jnp.abs(one - other).max()) > 1e-2
