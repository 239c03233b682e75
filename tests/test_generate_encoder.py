"""Encoder-decoders write transformers' very tokens; slots, padding and drafts change nothing."""

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import generate
from jaxllm.models.generate import Beams, Engine, How, Plan, Request, Sampling, beam
from tests import encoder_helpers as helpers
from tests import generate_helpers
from tests.conftest import random_params, tiny_config

GREEDY = Sampling(0.0)


@pytest.fixture(scope="module", params=["t5", "bart"])
def kind(request):
    """(Model, params, transformers' model, our `Decoder`) of each kind."""
    model, params, theirs = helpers.pair(request.param)
    return model, params, theirs, generate.decoder(model, start=helpers.START[request.param])


def run(engine, requests):
    """Tokens of each request."""
    found = [[] for _ in requests]
    for piece in engine.run(requests):
        found[piece.index] += piece.tokens
    return found


def test_greedy_is_that_of_transformers(kind):
    _, params, theirs, decoder = kind
    prompts = helpers.inputs(5)
    wanted = [helpers.continue_theirs(theirs, p, 20)[0].tolist() for p in prompts]
    assert len({tuple(tokens) for tokens in wanted}) == 5
    draw = jax.jit(generate.make_generate(decoder, 20, GREEDY))
    drawn = draw(params, generate.pad(prompts), jax.random.key(0))
    assert drawn.tokens.tolist() == wanted
    # Two slots for six: inputs of another length go where longer ones were before.
    engine = Engine(decoder, params, Plan(GREEDY), slots=2, steps=7)
    assert run(engine, [Request(p, 20) for p in prompts]) == wanted


@pytest.mark.parametrize("early, penalty", [(False, 1.0), (True, 0.5), ("never", 2.0)])
def test_four_beams_are_those_of_transformers(kind, early, penalty):
    _, params, theirs, decoder = kind
    prompts, eos = helpers.inputs(3, seed=3), (4, 7, 22, 30, 31)
    how = Beams(4, penalty, early, returned=3)
    find = jax.jit(beam.make_beam_search(decoder, 12, how, eos))
    tokens = np.asarray(find(decoder.prepare(params), generate.pad(prompts)).tokens)
    for row, prompt in enumerate(prompts):
        wanted = helpers.continue_theirs(
            theirs, prompt, 12, num_beams=4, num_return_sequences=3, early_stopping=early,
            length_penalty=penalty, eos_token_id=list(eos), pad_token_id=2,
        )  # fmt: skip
        found = np.where(tokens[row] < 0, 2, tokens[row])[:, : wanted.shape[1]]
        np.testing.assert_array_equal(found, wanted)
        assert (tokens[row][:, wanted.shape[1] :] < 0).all()


@pytest.mark.slow
def test_text_for_texts_by_all_ways():
    model = models.make(
        tiny_config(assembly="encoder_decoder", position="buckets", vocab=260, tied=True)
    )
    params, tokenizer = random_params(model, scale=0.3), generate_helpers.byte_tokenizer()
    how, prompts = How(GREEDY, tokens=12, slots=2, eos=()), ["ab", "one two three four", "c"]
    greedy = generate.generate(model, params, tokenizer, prompts, how)
    # The end token stands behind an input, as in training; rows begin with the padding token.
    ids = [[*map(int, tokenizer.encode(p)), tokenizer.eos] for p in prompts]
    decoder = generate.decoder(model, start=max(tokenizer.pad, 0))
    draw = jax.jit(generate.make_generate(decoder, 12, GREEDY))
    wanted = draw(params, generate.pad(ids), jax.random.key(0)).tokens.tolist()
    assert [one.tokens for one in greedy] == wanted
    assert [one.text for one in greedy] == [tokenizer.decode(t) for t in wanted]
    assert len({one.text for one in greedy}) > 1
    alone = generate.generate(model, params, tokenizer, prompts, how._replace(beams=Beams(1)))
    assert [one[0].tokens for one in alone] == wanted
    drafted = how._replace(draft=(model, params))
    drafted = generate.generate(model, params, tokenizer, prompts, drafted)
    assert [one.tokens for one in drafted] == wanted and drafted[0].accepted == 1
    other = generate.generate(model, params, tokenizer, prompts, how._replace(start=9))
    assert [one.tokens for one in other] != wanted
    drawn = how._replace(sampling=Sampling(1.0, top_p=0.9))
    together = generate.generate(model, params, tokenizer, prompts, drawn)
    single = generate.generate(
        model, params, tokenizer, prompts[1:2], drawn._replace(seed=1, slots=1)
    )
    assert single[0].tokens == together[1].tokens != greedy[1].tokens


def test_what_cannot_be_is_told():
    model = models.make(tiny_config(assembly="encoder_decoder", position="learned", vocab=260))
    with pytest.raises(ConfigError, match=r"start=260 must be one of the model's 260 tokens"):
        generate.decoder(model, start=260)
    both = generate.decoder(model), generate.decoder(models.make(tiny_config(vocab=260)))
    with pytest.raises(ConfigError, match=r"begin rows with \[-1, 0\]"):
        generate.ensemble(both)
    params, tokenizer = random_params(model), generate_helpers.byte_tokenizer()
    for prompt, tokens in (([1] * 17, 4), ([1] * 4, 17)):
        with pytest.raises(ConfigError, match="exceed the model's 16 learned positions"):
            generate.generate(model, params, tokenizer, [prompt], How(GREEDY, tokens=tokens))
