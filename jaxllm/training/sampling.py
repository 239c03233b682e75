"""Sampled text for the log."""

import jax

from jaxllm import data, finetune
from jaxllm.models import generate
from jaxllm.training.state import place_key


def make_sampler(run, refs):
    """Returns sample(params, step) -> text, by config.sample; None where it asks for no tokens.

    Args:
        run: `setup.Run`.
        refs: its frozen trees.
    """
    how = run.config.sample
    if how.tokens == 0:
        return None
    tokens = how.tokens
    reads = run.model.config.assembly == "encoder_decoder"
    prompt = generate.encode(run.tokenizer, how.prompt, reads)
    if run.model.config.position == "learned":
        tokens = min(tokens, run.model.config.positions - len(prompt))
    if tokens < 1:
        return None
    sampling = generate.Sampling(how.temperature, how.top_k, how.top_p)
    how_to_start = generate.How(start=data.get(run.config.data, "start"))
    decodes = generate.as_decoder(run.model, run.tokenizer, how_to_start)
    draw = jax.jit(generate.make_generate(decodes, tokens, sampling, run.tokenizer.eos))
    batch = generate.pad([prompt])

    def sample(params, step):
        key = jax.random.fold_in(place_key(run.mesh, run.config.seed + 2), step)
        whole = finetune.join(params, refs.get("base"))
        drawn = jax.device_get(draw(whole, batch, key)).tokens[0]
        return run.tokenizer.decode([*prompt, *cut_at(drawn, run.tokenizer.eos)])

    return sample


def cut_at(tokens, eos):
    """The tokens before the first `eos`."""
    tokens = [int(t) for t in tokens]
    return tokens[: tokens.index(eos)] if eos in tokens else tokens
