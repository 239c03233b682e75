"""Greedy and beam search give transformers' very tokens; slots change nothing."""

import jax
import numpy as np
import pytest

from jaxllm.models import generate
from jaxllm.models.generate import Beams, Engine, Plan, Request, Sampling, beam
from tests import generate_helpers as helpers
from tests import runs

GREEDY = Sampling(0.0)
MODELS = {"llama": helpers.llama, "gemma2": helpers.gemma2}


def run(engine, requests):
    """Tokens of each request."""
    found = [[] for _ in requests]
    for piece in engine.run(requests):
        found[piece.index] += piece.tokens
    return found


@pytest.mark.parametrize("kind", runs.slow(MODELS, ("gemma2",)))
def test_greedy_is_that_of_transformers_to_the_last_token(kind):
    model, params, theirs = MODELS[kind]()
    prompts = helpers.ragged_prompts()
    wanted = [helpers.continue_theirs(theirs, p, 200)[0].tolist() for p in prompts]
    batch = generate.pad(prompts)
    drawn = jax.jit(generate.make_generate(model, 200, GREEDY))(params, batch, jax.random.key(0))
    assert drawn.tokens.tolist() == wanted
    # Three slots for ten prompts: each goes in when another comes out.
    engine = Engine(generate.decoder(model), params, Plan(GREEDY), slots=3, steps=7)
    assert run(engine, [Request(p, 200) for p in prompts]) == wanted
    assert len({tuple(tokens) for tokens in wanted}) == 10


@pytest.mark.parametrize("early, penalty", [(False, 0.5), (True, 1.0), ("never", 2.0)])
def test_four_beams_are_those_of_transformers(early, penalty):
    model, params, theirs = helpers.llama(0.12)
    decoder, eos = generate.decoder(model), (4, 7, 22, 30, 31, 55, 60)
    how = Beams(4, penalty, early, returned=3)
    weights = decoder.prepare(params)
    find = jax.jit(beam.make_beam_search(decoder, 24, how, eos))
    ended = 0
    for prompt in helpers.ragged_prompts(4, seed=4):
        wanted = helpers.continue_theirs(
            theirs, prompt, 24, num_beams=4, num_return_sequences=3, early_stopping=early,
            length_penalty=penalty, eos_token_id=list(eos),
        )  # fmt: skip
        found = np.asarray(find(weights, generate.pad([prompt], 48)).tokens)[0]
        ended += (found < 0).any()
        found = np.where(found < 0, 2, found)[:, : wanted.shape[1]]
        np.testing.assert_array_equal(found, wanted)
    assert ended or early == "never"  # some ended before the longest


def test_beams_of_several_prompts_are_those_of_each_alone():
    model, params, _ = helpers.llama(0.12)
    decoder, prompts = generate.decoder(model), helpers.ragged_prompts(4)
    find = jax.jit(beam.make_beam_search(decoder, 16, Beams(3), (7,)))
    weights = decoder.prepare(params)
    together = find(weights, generate.pad(prompts))
    for row, prompt in enumerate(prompts):
        alone = find(weights, generate.pad([prompt], 48))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.score[0], together.score[row], rtol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours_slot_or_number_of_slots():
    model, params, _ = helpers.llama()
    how, prompts = Sampling(1.0, top_p=0.9, min_p=0.01), helpers.ragged_prompts(7)
    requests = [Request(p, 5 + 9 * i, seed=i) for i, p in enumerate(prompts)]
    decoder = generate.decoder(model)

    def engine(slots, steps):
        return Engine(decoder, params, Plan(how, eos=(7, 8, 9)), slots=slots, steps=steps)

    together = run(engine(4, 5), requests)
    alone = engine(1, 8)
    for request, tokens in zip(requests, together, strict=True):
        assert run(alone, [request])[0] == tokens
        ends = [i for i, t in enumerate(tokens) if t in (7, 8, 9)]
        assert ends in ([], [len(tokens) - 1]) and len(tokens) <= request.tokens
    other = run(alone, [requests[6]._replace(seed=99)])[0]
    assert other != together[6] and len(together[6]) > 1


@pytest.mark.slow
def test_a_cache_that_grows_changes_nothing(monkeypatch):
    model, params, _ = helpers.gemma2()
    prompts = helpers.ragged_prompts(3)
    requests = [Request(p, 70) for p in prompts]

    def tokens():
        return run(Engine(generate.decoder(model), params, Plan(GREEDY), slots=2), requests)

    wanted = tokens()
    monkeypatch.setattr(generate.engine, "SMALLEST", 32)
    monkeypatch.setattr(generate.engine, "GROWS", 32)
    assert tokens() == wanted


def test_a_stopped_request_makes_place():
    model, params, _ = helpers.llama()
    engine = Engine(generate.decoder(model), params, Plan(GREEDY), slots=1, steps=4)
    prompts, found = helpers.ragged_prompts(3), [[], [], []]
    for piece in engine.run([Request(p, 60) for p in prompts]):
        found[piece.index] += piece.tokens
        if piece.index == 0 and len(found[0]) >= 5:
            engine.stop(0)
    assert 5 <= len(found[0]) < 60 and len(found[1]) == len(found[2]) == 60


@pytest.mark.slow
def test_smollm2_greedy_is_that_of_transformers():
    pytest.importorskip("gguf")
    from benchmarks import smollm2

    model, params, theirs, _ = smollm2.load()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(100, 40000, n).tolist() for n in (3, 17, 40)]
    engine = Engine(generate.decoder(model), params, Plan(GREEDY), slots=3)
    found = run(engine, [Request(p, 60) for p in prompts])
    for prompt, tokens in zip(prompts, found, strict=True):
        assert tokens == helpers.continue_theirs(theirs, prompt, 60)[0].tolist()
