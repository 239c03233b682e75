"""The cache for every feature, the rules of drawing, stop strings, choices, drafts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import cache as caches
from jaxllm.models import generate
from jaxllm.models.generate import How, Sampling, choices, sampling, speculative
from jaxllm.models.generate.text import Stream
from tests import generate_helpers as helpers
from tests import runs
from tests.conftest import random_params, tiny_config
from tests.test_models import KINDS

LENGTHS = (14, 3, 9)


# What caches differ by; the other kinds' layers are of these kinds, too.
QUICK = ("gpt2", "gemma2", "longrope", "first tokens", "reformer", "places", "griffin")
STEPPED = {}  # compiled steps by model, dtype of the cache and shape


@pytest.fixture(scope="module", params=runs.slow(KINDS, KINDS.keys() - set(QUICK)))
def kind(request):
    """(Model, params, tokens, logits of whole rows) of each kind."""
    model = models.make(tiny_config(**KINDS[request.param], length=32))
    params = random_params(model)
    tokens = np.random.default_rng(0).integers(0, 65, (3, 22)).astype(np.int32)
    batch = generate.pad(tokens.tolist())
    return model, params, tokens, np.asarray(jax.jit(model.apply)(params, batch))


def through_cache(model, params, tokens, kv_dtype="", slack=0, lengths=LENGTHS):
    """Logits of rows of unequal length: whole prompts, then tokens in pieces of 1, 3, 1, 3."""
    cache = caches.make(model.config, 3, 22, kv_dtype=kv_dtype, slack=slack)
    weights = caches.lay_out(model.whole(params))
    found = [[], [], []]

    def extend(cache, counts, T, **options):
        pieces = [tokens[row, int(cache["at"][row]) :][:n].tolist() for row, n in enumerate(counts)]
        batch = {n: np.zeros((3, T), np.int32) for n in ("tokens", "segment")}
        for row, piece in enumerate(pieces):
            batch["tokens"][row, : len(piece)] = piece
            batch["segment"][row, : len(piece)] = 1
        name = model.config, kv_dtype, slack, T
        if name not in STEPPED:
            STEPPED[name] = jax.jit(lambda w, b, c: model.extend(w, b, c, **options))
        step = STEPPED[name]
        logits, cache = step(weights, batch, cache)
        for row, n in enumerate(counts):
            found[row].append(np.asarray(logits[row, :n]))
        return cache

    cache = extend(cache, lengths, 16, fresh=True)
    cache = extend(cache, (1, 1, 1), 1)
    cache = extend(cache, (3, 1, 2), 3)
    cache = extend(cache, (1, 0, 1), 1)
    cache = extend(cache, (0, 3, 3), 3)
    return [np.concatenate(rows) for rows in found], cache


def test_rows_of_unequal_length_through_the_cache_equal_whole_rows(kind):
    model, params, tokens, whole = kind
    found, cache = through_cache(model, params, tokens)
    for row, logits in enumerate(found):
        assert len(logits) == cache["at"][row] > LENGTHS[row]
        np.testing.assert_allclose(logits, whole[row, : len(logits)], atol=3e-5)


def test_windowed_layers_keep_a_ring(kind):
    model, _, _, _ = kind
    c = model.config
    cache = caches.make(c, 3, 22, slack=0 if c.attention_every else 2)
    for layer, held in enumerate(cache["layers"]):
        if not c.has_attention(layer):
            continue
        ring = (
            min(22, c.window + c.window_first + (0 if c.attention_every else 2))
            if c.is_windowed(layer)
            else 22
        )
        assert held["k"].shape == (3, c.kv_heads, c.head_width, ring)
        assert held["v"].shape == (3, c.kv_heads, ring, c.head_width)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "first tokens"])
def test_what_is_taken_back_leaves_no_trace(name):
    """A cache with slack is as if tokens that were taken back had never been there."""
    model = models.make(tiny_config(**KINDS[name], length=32))
    params, tokens = random_params(model), np.random.default_rng(0).integers(0, 65, (3, 22))
    whole = helpers.logits_of(model)(params, generate.pad(tokens.tolist()))
    cache = caches.make(model.config, 3, 22, slack=4)
    weights = caches.lay_out(model.whole(params))
    extend = jax.jit(model.extend)
    for first, last in ((0, 4), (4, 8), (8, 12), (12, 13), (13, 16)):
        wrong = {"tokens": (tokens[:, first : first + 4] + 1) % 65, "segment": np.ones((3, 4), int)}
        _, tried = extend(weights, wrong, cache)
        cache = {**tried, "at": cache["at"]}
        real = np.tile(np.arange(4) < last - first, (3, 1)).astype(int)
        piece = {"tokens": tokens[:, first : first + 4], "segment": real}
        logits, cache = extend(weights, piece, cache)
        np.testing.assert_allclose(logits[:, : last - first], whole[:, first:last], atol=3e-5)


@pytest.mark.parametrize("name", ["gpt2", "first tokens"])
def test_int8_keys_and_values_are_within_their_bound(name):
    model = models.make(tiny_config(**KINDS[name], length=32))
    params, tokens = random_params(model), np.random.default_rng(0).integers(0, 65, (3, 22))
    whole = np.asarray(helpers.logits_of(model)(params, generate.pad(tokens.tolist())))
    found, cache = through_cache(model, params, tokens, kv_dtype="int8")
    _, exact = through_cache(model, params, tokens)
    # The first layer reads no quantized number, so its keys differ by rounding alone.
    q, x = cache["layers"][0], exact["layers"][0]
    for name, scale, axis in (
        ("k", q["k_scale"][:, :, None], 2),
        ("v", q["v_scale"][..., None], 3),
    ):
        off = np.abs(np.float32(q[name]) * scale - x[name]).max(axis)
        most = np.abs(x[name]).max(axis)
        here = np.abs(np.float32(q[name])).max(axis) > 0  # what is written
        assert here.any() and (off <= most / 254 + 1e-6)[here].all()
    difference = max(np.abs(a - whole[row, : len(a)]).max() for row, a in enumerate(found))
    assert 0 < difference < 0.1 * np.abs(whole).max()


@pytest.mark.parametrize(
    "how", [
        Sampling(0.7), Sampling(1.0, top_k=5), Sampling(1.3, top_p=0.8), Sampling(1.0, min_p=0.2),
        Sampling(0.5, 20, 0.9, 0.05, 1.3), Sampling(1.0, repetition_penalty=0.7),
    ],
)  # fmt: skip
def test_what_may_be_drawn_is_that_of_transformers(how):
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    rng = np.random.default_rng(0)
    logits = np.float32(rng.normal(size=(6, 300)) * 3)
    ids = rng.integers(0, 300, (6, 20))
    steps = [
        process.RepetitionPenaltyLogitsProcessor(how.repetition_penalty),
        process.TemperatureLogitsWarper(how.temperature),
        *([process.TopKLogitsWarper(how.top_k)] if how.top_k else []),
        *([process.TopPLogitsWarper(how.top_p)] if how.top_p < 1 else []),
        *([process.MinPLogitsWarper(how.min_p)] if how.min_p else []),
    ]
    wanted = torch.from_numpy(logits)
    for step in steps:
        wanted = step(torch.from_numpy(ids), wanted)
    has = np.zeros((6, 300), bool)
    has[np.arange(6)[:, None], ids] = True
    drawn = np.zeros((6, 300), np.int32)
    drawn[has & (np.arange(300) % 2 == 0)] = 2  # some of them were drawn, not given
    found = sampling.warp(jnp.asarray(logits), how, sampling.Seen(has & (drawn == 0), drawn))
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)


def test_penalties_for_presence_and_frequency_count_what_was_drawn():
    how = Sampling(presence_penalty=0.5, frequency_penalty=0.25)
    seen = sampling.Seen(jnp.array([[True, False, True]]), jnp.array([[0, 3, 1]]))
    found = sampling.penalise(jnp.array([[1.0, 2.0, -1.0]]), seen, how)
    np.testing.assert_allclose(found, [[1.0, 2.0 - 0.5 - 0.75, -1.0 - 0.5 - 0.25]])


def test_draws_have_the_distribution_that_is_asked_for():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    keys = jax.vmap(jax.random.key)(jnp.arange(20_000))
    drawn = sampling.choose(jnp.tile(logits, (20_000, 1)), keys, Sampling(1.0, top_p=0.9))
    shares = np.bincount(drawn, minlength=4) / 20_000
    np.testing.assert_allclose(shares, np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.015)


@pytest.mark.parametrize("wrong", [
    dict(temperature=-1.0), dict(top_k=-1), dict(top_p=0.0), dict(min_p=1.5),
    dict(repetition_penalty=0.0), dict(frequency_penalty=float("nan")),
])  # fmt: skip
def test_a_value_out_of_range_is_told(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong)) + "=.*Try"):
        Sampling(**wrong).check()


def test_log_probabilities_are_those_of_the_whole_row():
    model, params, _ = helpers.llama()
    tokenizer, prompt = helpers.byte_tokenizer(), [5, 9, 77, 30]
    how = How(Sampling(1.0), tokens=12, top=3, eos=())
    result = generate.generate(model, params, tokenizer, [prompt], how)[0]
    batch = generate.pad([[*prompt, *result.tokens]])
    logp = jax.nn.log_softmax(helpers.logits_of(model)(params, batch))[0, len(prompt) - 1 :]
    assert len(result.tokens) == len(result.logp) == len(result.top) == 12
    for place, token in enumerate(result.tokens):
        assert result.logp[place] == pytest.approx(float(logp[place, token]), abs=1e-4)
        likely = np.argsort(-np.asarray(logp[place]))[:3]
        assert [t for t, _ in result.top[place]] == likely.tolist()
        assert result.top[place][2][1] == pytest.approx(float(logp[place, likely[2]]), abs=1e-4)


def test_stop_strings_end_a_text_wherever_tokens_begin():
    tokenizer = helpers.byte_tokenizer()
    text = "one täo\nthree STOP four"
    ids = [int(t) for t in tokenizer.encode(text)]
    for stop, wanted in (("STOP", "one täo\nthree "), ("äo\nt", "one t"), ("none", text)):
        for size in (1, 2, 5, 100):
            out, parts = Stream(tokenizer, [65], (stop, "zzz")), []
            for i in range(0, len(ids), size):
                parts.append(out.push(ids[i : i + size], i + size >= len(ids)))
                assert "\N{REPLACEMENT CHARACTER}" not in parts[-1]
                assert wanted.startswith("".join(parts))  # nothing is ever taken back
            assert "".join(parts) == out.text == wanted and out.stopped == (stop != "none")
            if out.stopped:  # no token after that which completes it
                whole = tokenizer.decode(out.tokens)
                assert stop in whole and stop not in tokenizer.decode(out.tokens[:-1])


def test_generate_stops_at_a_string_and_frees_the_slot():
    model, params, _ = helpers.llama()
    tokenizer = helpers.byte_tokenizer()
    prompts = [[70 + i, 30] for i in range(4)]
    how = How(Sampling(1.0), tokens=40, slots=2, steps=4, eos=())
    free = generate.generate(model, params, tokenizer, prompts, how)
    stop = free[1].text[5:7]
    found = generate.generate(model, params, tokenizer, prompts, how._replace(stop=(stop,)))
    assert found[1].text == free[1].text[: free[1].text.index(stop)]
    assert found[1].reason == "stop" and len(found[1].logp) == len(found[1].tokens) < 40
    for a, b in zip(free, found, strict=True):
        assert a.text.split(stop)[0] == b.text


def test_choices_are_exact():
    model = models.make(tiny_config(vocab=259, layers=1))
    params, tokenizer = random_params(model), helpers.byte_tokenizer()
    names = ("red", "blue", "blueish", "green")
    how = How(Sampling(2.0), tokens=20, choices=names, eos=(2,))
    prompts = [[i + 3, i + 4] for i in range(40)]
    found = generate.generate(model, params, tokenizer, prompts, how)
    assert {one.text for one in found} == set(names)
    first = [tokenizer.encode(name) for name in names]
    greedy = generate.generate(
        model, params, tokenizer, prompts[:4], how._replace(sampling=Sampling(0.0))
    )
    for prompt, one in zip(prompts, greedy, strict=False):
        logp = helpers.logits_of(model)(params, generate.pad([prompt]))[0, -1]
        likeliest = max({int(ids[0]) for ids in first}, key=lambda token: float(logp[token]))
        assert tokenizer.encode(one.text)[0] == likeliest


def test_choices_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ConfigError, match="beginning of another"):
        choices.make([[1, 2], [1, 2, 3]], -1)
    with pytest.raises(ConfigError, match="at least one token"):
        choices.make([[1], []], 0)


def small_draft(model):
    """A smaller model of the same vocabulary."""
    c = dataclasses.replace(model.config, layers=1, width=24, mlp_width=32, window=0)
    small = models.make(c)
    return small, random_params(small, seed=3)


@pytest.mark.parametrize("kind, same", [("llama", False), ("gemma2", True)])
def test_greedy_with_a_draft_is_greedy(kind, same):
    model, params, _ = getattr(helpers, kind)()
    draft = (model, params) if same else small_draft(model)
    tokenizer, prompts = helpers.byte_tokenizer(), helpers.ragged_prompts(5)
    how = How(Sampling(0.0), tokens=30, eos=(7, 8, 9, 10))
    wanted = generate.generate(model, params, tokenizer, prompts, how)
    found = generate.generate(model, params, tokenizer, prompts, how._replace(draft=draft))
    assert [one.tokens for one in found] == [one.tokens for one in wanted]
    assert [one.reason for one in found] == [one.reason for one in wanted]
    shares = [one.accepted for one in found]
    assert min(shares) > 0.99 if same else min(shares) < 0.9


def test_draws_with_a_draft_have_the_models_distribution():
    """Chi-squared of the first three tokens' joint counts against the model's own chances."""
    model = models.make(tiny_config(vocab=5, length=16))
    small = models.make(tiny_config(vocab=5, length=16, layers=1))
    params, light = random_params(model, 1, 0.6), random_params(small, 2, 0.6)
    how, B, prompt = Sampling(1.0, top_p=0.95), 6000, [1, 2, 3]
    decoders = generate.decoder(model), generate.decoder(small)
    run = speculative.make_speculate(*decoders, 3, how, ahead=2)
    weights = [one.prepare(p) for one, p in zip(decoders, (params, light), strict=True)]
    batch = generate.pad([prompt] * B)
    found = jax.jit(run)(*weights, batch, jnp.arange(B, dtype=jnp.uint32))
    rows = np.array([[*prompt, a, b, c] for a in range(5) for b in range(5) for c in range(5)])
    logits = helpers.logits_of(model)(params, generate.pad(rows.tolist()))
    chance = np.ones(125)
    for place in range(3):
        p = jax.nn.softmax(sampling.warp(logits[:, 2 + place], how))
        chance *= np.asarray(p)[np.arange(125), rows[:, 3 + place]]
    drawn = np.asarray(found.tokens) @ np.array([25, 5, 1])
    counts = np.bincount(drawn, minlength=125)
    assert counts[chance == 0].sum() == 0
    kept = chance * B >= 5
    other = [~kept & (chance > 0)]
    expected = np.append(chance[kept], [chance[o].sum() for o in other]) * B
    observed = np.append(counts[kept], [counts[o].sum() for o in other])
    degrees = len(expected) - 1
    chi2 = ((observed - expected) ** 2 / np.maximum(expected, 1e-9)).sum()
    assert chi2 < degrees + 4 * np.sqrt(2 * degrees)
    share = np.asarray(found.accepted).sum() / np.asarray(found.proposed).sum()
    assert 0.05 < share < 0.95


def test_an_ensemble_averages_probabilities_or_logits():
    model, params, _ = helpers.llama()
    other = random_params(model, seed=5)
    decoder = generate.decoder(model)
    prompts = helpers.ragged_prompts(3, high=12)
    a, b = (
        jax.nn.log_softmax(
            np.stack(
                [helpers.logits_of(model)(p, generate.pad([x], 12))[0, len(x) - 1] for x in prompts]
            )
        )
        for p in (params, other)
    )
    for average, wanted in (
        ("probabilities", jnp.log((jnp.exp(a) + jnp.exp(b)) / 2)),
        ("logits", jax.nn.log_softmax((a + b) / 2)),
    ):
        both = generate.ensemble([decoder, decoder], average)
        read = jax.jit(lambda p, batch, both=both: both.read(both.prepare(p), batch, 20)[0])
        logits = read((params, other), generate.pad(prompts))
        np.testing.assert_allclose(jax.nn.log_softmax(logits[:, 0]), wanted, atol=1e-4)


def test_rows_split_over_a_mesh_decode_as_on_one_device():
    from jaxllm import sharding

    model, params, _ = helpers.gemma2()
    shape = {
        **dict.fromkeys(("slice", "seq", "expert", "stage"), 1),
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
    }
    mesh = sharding.make_mesh(shape, jax.devices()[:8])
    spread = models.make(model.config, sharding.make_shard(mesh))
    prompts = helpers.ragged_prompts(8)
    drawn = [
        jax.jit(generate.make_generate(one, 16, Sampling(0.0)))(
            params, generate.pad(prompts), jax.random.key(0)
        )
        for one in (model, spread)
    ]
    np.testing.assert_array_equal(drawn[0].tokens, drawn[1].tokens)


def test_what_exceeds_learned_positions_is_refused():
    model = models.make(tiny_config(position="learned", length=16))
    with pytest.raises(ConfigError, match=r"10 prompt tokens and 9 new ones .* at most 6 tokens"):
        generate.generate(
            model, random_params(model), helpers.byte_tokenizer(), [[1] * 10], How(tokens=9)
        )
