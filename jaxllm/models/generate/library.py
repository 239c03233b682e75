"""Text from prompts in one call, for evaluation, chat and scripts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import ConfigError
from jaxllm.models.generate import beam, choices, loop, speculative
from jaxllm.models.generate.decoder import Decoder, decoder
from jaxllm.models.generate.engine import Engine, Request
from jaxllm.models.generate.sampling import Sampling
from jaxllm.models.generate.text import Stream


class How(NamedTuple):
    """How to generate.

    Attributes:
        sampling: `Sampling`.
        tokens: a prompt, at most.
        seed: of the first prompt; each next one has the next.
        stop: strings before which a text ends.
        choices: where given, a text is one of these strings.
        top: alternatives at each place whose log-probabilities are told.
        eos: end tokens; None for the tokenizer's.
        slots: prompts that decode at once.
        steps: tokens a call to the device.
        kv_dtype: of the cache, "" or "int8".
        beams: `beam.Beams`, or None to draw.
        draft: (Model, params) of a smaller model that proposes tokens, or None.
        ahead: tokens that it proposes at a time.
        weights: "" for those of the computation, or "bfloat16", "int8": fewer bytes to read a
            token, and not the same numbers; see `models.narrow`.
        start: token that an encoder-decoder's rows begin with; -1: the padding token, or 0 without
            one, as in training. Its prompts are its inputs, and end with the tokenizer's end token.
    """

    sampling: Any = Sampling()
    tokens: int = 200
    seed: int = 0
    stop: tuple = ()
    choices: tuple = ()
    top: int = 0
    eos: Any = None
    slots: int = 8
    steps: int = 16
    kv_dtype: str = ""
    beams: Any = None
    draft: Any = None
    ahead: int = 4
    start: int = -1
    weights: str = ""


class Result(NamedTuple):
    """What became of a prompt.

    Attributes:
        text: of the continuation.
        tokens: its ids, without end token; with that of a stop string.
        logp: log-probability of each under the model's own distribution; None of a beam or draft.
        top: for each, [(token, log-probability), …]; None of a beam or draft.
        reason: "end" token, "stop" string, "length", or "choice".
        score: of a beam, its log-probability over length ** length_penalty; else None.
        accepted: of a draft, share of its tokens that passed; else None.
    """

    text: str
    tokens: list
    logp: Any = None
    top: Any = None
    reason: str = ""
    score: Any = None
    accepted: Any = None


def make_engine(model, params, tokenizer, how):
    """Returns the `Engine` for a way to generate; keep it for more prompts of the same way.

    Args:
        model: `models.Model` or `Decoder`.
        params: its parameters.
        tokenizer: as in `jaxllm.tokenizers`.
        how: `How`.
    """
    ends, trie = ends_of(tokenizer, how), None
    if how.choices:
        sequences = [tokenizer.encode(text) for text in how.choices]
        trie = choices.make(sequences, ends[0] if ends else -1)
    plan = loop.Plan(how.sampling.check(), ends, how.top, trie)
    decodes = as_decoder(model, tokenizer, how)
    return Engine(decodes, params, plan, slots=how.slots, steps=how.steps)


def as_decoder(model, tokenizer, how):
    """The `Decoder` of a model, or what is one already."""
    if isinstance(model, Decoder):
        return model
    start = how.start if how.start >= 0 else max(tokenizer.pad, 0)
    return decoder(model, how.kv_dtype, start, how.weights)


def ends_of(tokenizer, how):
    """The end tokens, a tuple."""
    if how.eos is not None:
        return tuple(how.eos)
    return (tokenizer.eos,) if tokenizer.eos >= 0 else ()


def stream(engine, tokenizer, prompts, how):
    """Yields (index, new text, `Result` or None) as text comes; a Result with the last of each.

    Args:
        engine: what `make_engine` returned.
        tokenizer: as in `jaxllm.tokenizers`.
        prompts: texts, or lists of token ids.
        how: `How`; tokens, seed and stop are read.
    """
    reads, ends = engine.decoder.start >= 0, engine.plan.eos
    ids = [encode(tokenizer, prompt, reads) for prompt in prompts]
    streams = [Stream(tokenizer, () if reads else one, how.stop, ends) for one in ids]
    logp, top = [[] for _ in ids], [[] for _ in ids]
    requests = [Request(one, how.tokens, how.seed + i) for i, one in enumerate(ids)]
    for piece in engine.run(requests):
        i, out = piece.index, streams[piece.index]
        logp[i] += piece.logp
        top[i] += piece.top
        new = out.push(piece.tokens, piece.done)
        if not (piece.done or out.stopped):
            yield i, new, None
            continue
        if out.stopped:
            engine.stop(i)
            reason = "stop"
        elif piece.tokens and piece.tokens[-1] in ends:
            reason = "end"
        else:
            reason = "choice" if engine.plan.trie else "length"
        n = len(out.tokens)
        yield i, new, Result(out.text, out.tokens, logp[i][:n], top[i][:n], reason)


def generate(model, params, tokenizer, prompts, how):
    """Continues prompts.

    Args:
        model: `models.Model`, or a `Decoder` such as that of an ensemble.
        params: its parameters, as trained.
        tokenizer: as in `jaxllm.tokenizers`.
        prompts: texts, or lists of token ids, of any lengths.
        how: `How`.

    Returns:
        A `Result` a prompt, in order; with beams, a list of `how.beams.returned` of them a prompt.

    Raises:
        ConfigError: a setting out of range, or a prompt and tokens beyond learned positions.

    Example:
        how = How(Sampling(temperature=0.8, min_p=0.1), tokens=100, stop=("\\n",))
        for result in generate(model, params, tokenizer, ["ROMEO:", "JULIET:"], how):
            print(result.text, sum(result.logp))
    """
    prompts = list(prompts)
    if not prompts:
        return []
    if how.beams is not None:
        return _search(model, params, tokenizer, prompts, how)
    if how.draft is not None:
        return _speculate(model, params, tokenizer, prompts, how)
    results = [None] * len(prompts)
    engine = make_engine(model, params, tokenizer, how)
    for index, _, result in stream(engine, tokenizer, prompts, how):
        results[index] = result or results[index]
    return results


def encode(tokenizer, prompt, reads=False):
    """Token ids of a prompt, at least one: a beginning-of-text token where the prompt is empty.

    Args:
        tokenizer: as in `jaxllm.tokenizers`.
        prompt: text, or token ids, which are taken as they are.
        reads: whether an encoder reads it, so that an end token stands behind it, as in training.
    """
    if not isinstance(prompt, str):
        return [int(t) for t in prompt]
    ids = [int(t) for t in tokenizer.encode(prompt)]
    ids += [tokenizer.eos] if reads and tokenizer.eos >= 0 else []
    if ids:
        return ids
    starts = [t for t in (tokenizer.bos, tokenizer.eos) if t >= 0]
    return starts[:1] or [int(t) for t in tokenizer.encode("\n")] or [0]


def _refuse(how, what, names):
    for name in names:
        if getattr(how, name) != How._field_defaults[name]:
            raise ConfigError(f"{name}={getattr(how, name)!r} does not go with {what}.")


def _batch(decodes, tokenizer, prompts, how):
    reads = decodes.start >= 0
    ids = [encode(tokenizer, prompt, reads) for prompt in prompts]
    loop.check_room(decodes, max(map(len, ids)), how.tokens)
    return [[] if reads else one for one in ids], loop.pad(ids)


def _result(tokenizer, prompt, tokens, how, **more):
    """The `Result` of tokens that were drawn as a whole."""
    ends = ends_of(tokenizer, how)
    tokens = [int(t) for t in tokens if t >= 0]
    out = Stream(tokenizer, prompt, how.stop, ends)
    out.push(tokens, True)
    ended = bool(tokens) and tokens[-1] in ends
    reason = "stop" if out.stopped else "end" if ended else "length"
    return Result(out.text, out.tokens, reason=reason, **more)


def _search(model, params, tokenizer, prompts, how):
    _refuse(how, "beams", ("choices", "top", "draft", "stop"))
    decodes = as_decoder(model, tokenizer, how)
    ids, batch = _batch(decodes, tokenizer, prompts, how)
    weights = jax.jit(decodes.prepare)(params)
    find = beam.make_beam_search(decodes, how.tokens, how.beams, ends_of(tokenizer, how))
    tokens, score = jax.device_get(jax.jit(find)(weights, batch))
    return [
        [_result(tokenizer, prompt, t, how, score=float(s)) for t, s in zip(a, b, strict=True)]
        for prompt, a, b in zip(ids, tokens, score, strict=True)
    ]


def _speculate(model, params, tokenizer, prompts, how):
    _refuse(how, "a draft model", ("choices", "top"))
    decodes, small = (as_decoder(one, tokenizer, how) for one in (model, how.draft[0]))
    for one in (decodes, small):
        ids, batch = _batch(one, tokenizer, prompts, how)
    weights, light = (
        jax.jit(one.prepare)(p) for one, p in ((decodes, params), (small, how.draft[1]))
    )
    ends = ends_of(tokenizer, how)
    speculate = speculative.make_speculate(
        decodes, small, how.tokens, how.sampling, ends, how.ahead
    )
    seed_B = jnp.asarray((np.arange(len(ids)) + how.seed) % 2**32, jnp.uint32)
    found = jax.device_get(jax.jit(speculate)(weights, light, batch, seed_B))
    shares = found.accepted / np.maximum(found.proposed, 1)
    return [
        _result(tokenizer, prompt, tokens, how, accepted=float(share))
        for prompt, tokens, share in zip(ids, found.tokens, shares, strict=True)
    ]
