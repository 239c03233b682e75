"""Samples text from a trained model.

python -m jaxllm.sample --workdir=DIR --prompt="ROMEO:" [--prompts_file=F] [--tokens=200]
    [--temperature=0.8] [--top_k=0] [--top_p=1] [--min_p=0] [--repetition_penalty=1]
    [--presence_penalty=0] [--frequency_penalty=0] [--stop=TEXT]... [--choices=yes,no]
    [--logprobs=0] [--count=1] [--seed=0] [--step=latest|best|N] [--slots=8] [--kv_int8]
    [--beams=4 [--length_penalty=1] [--early_stopping=no|yes|never]] [--draft=WORKDIR [--ahead=4]]
    [--ensemble=WORKDIR2,... [--average=probabilities|logits]] [--json] [--nostream]
    [--weights=bfloat16|int8] [--then=WORKDIR2]
    [--chat [--chat_template=chatml|plain|...] [--system=TEXT]]
    [--examples=F.jsonl [--shots=4] [--select=random|nearest|balanced] [--template=NAME|FILE]]
    [--retrieve=FOLDER --index=DIR --embed=ENCODER_WORKDIR [--passages=8]]

Of an encoder-decoder the prompt is the input text. With --examples or --retrieve it is a question
that is put behind examples, or passages of documents that are near it. --then=WORKDIR2 sends what
was written through another run, as back-translation does.
"""

import json
import pathlib
import sys

from absl import flags

from jaxllm import cli, data
from jaxllm.config import ConfigError
from jaxllm.context import command, embed
from jaxllm.models import generate
from jaxllm.tokenizers import TokenizerError
from jaxllm.tokenizers import chat as chats
from jaxllm.training import records, reopen

PLAIN = chats.ChatTemplate(
    "{% for message in messages %}{{ message['role'] | capitalize + ': ' + message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "directory of the run", required=True)
    flags.DEFINE_string("step", "latest", "checkpoint: latest, best (by validation) or a number")
    flags.DEFINE_multi_string("prompt", [], "text to go on from; may be given several times")
    flags.DEFINE_string("prompts_file", "", "prompts: one a line, or JSON lines with 'prompt'")
    flags.DEFINE_integer("tokens", 200, "tokens to draw, at most", lower_bound=1)
    flags.DEFINE_float("temperature", 0.8, "divides the logits; 0 takes the likeliest token")
    flags.DEFINE_integer("top_k", 0, "only the k likeliest tokens; 0: all")
    flags.DEFINE_float("top_p", 1.0, "only the likeliest tokens with this probability together")
    flags.DEFINE_float("min_p", 0.0, "only tokens at least this share as likely as the likeliest")
    flags.DEFINE_float("repetition_penalty", 1.0, "over 1: tokens that are there get less likely")
    flags.DEFINE_float("presence_penalty", 0.0, "taken from logits of tokens drawn before")
    flags.DEFINE_float("frequency_penalty", 0.0, "the same, times how often they were drawn")
    flags.DEFINE_multi_string("stop", [], "text before which to end; may be given several times")
    flags.DEFINE_list("choices", [], "comma-separated; the text is one of them")
    flags.DEFINE_integer("logprobs", 0, "likeliest tokens a place told by --json", lower_bound=0)
    flags.DEFINE_integer("count", 1, "samples a prompt", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "of the drawing; each sample has the next")
    flags.DEFINE_integer("slots", 8, "samples that are drawn at once", lower_bound=1)
    flags.DEFINE_bool("kv_int8", False, "keys and values in 8 bits")
    flags.DEFINE_integer("beams", 0, "search for likely texts by so many beams; 0: draw")
    flags.DEFINE_float("length_penalty", 1.0, "of beams: over 0 favours long texts")
    flags.DEFINE_enum("early_stopping", "no", ["no", "yes", "never"], "of beams")
    flags.DEFINE_string("draft", "", "run of a smaller model that proposes tokens")
    flags.DEFINE_integer("ahead", 4, "tokens that it proposes at a time", lower_bound=1)
    flags.DEFINE_list("ensemble", [], "comma-separated runs, drawn from together with this one")
    flags.DEFINE_enum("average", "probabilities", ["probabilities", "logits"], "of an ensemble")
    flags.DEFINE_string("then", "", "run that what was written goes through in turn")
    flags.DEFINE_bool("json", False, "one JSON object a sample")
    flags.DEFINE_bool("stream", True, "print a single sample as it is drawn")
    flags.DEFINE_enum("weights", "", ["", *generate.NARROW], "fewer bits a weight; not exact")
    flags.DEFINE_bool("chat", False, "talk with the model; with --prompt, one turn a prompt")
    flags.DEFINE_string("chat_template", "", "by name; plain: roles as words; '': the model's")
    flags.DEFINE_string("system", "", "what a chat's system message says")
    command.define_flags()


def way(f):
    """Returns the `How` that the flags ask for.

    Raises:
        ConfigError: flags out of range, or that do not go together.
    """
    sampling = generate.Sampling(
        f.temperature, f.top_k, f.top_p, f.min_p,
        f.repetition_penalty, f.presence_penalty, f.frequency_penalty,
    )  # fmt: skip
    try:
        sampling.check()
        beams = None
        if f.beams:
            early = {"no": False, "yes": True, "never": "never"}[f.early_stopping]
            beams = generate.Beams(f.beams, f.length_penalty, early, f.count).check()
    except ConfigError as error:
        raise ConfigError(f"--{error}") from None
    _check_pairs(f)
    return generate.How(
        sampling=sampling, tokens=f.tokens, seed=f.seed, stop=tuple(f.stop),
        choices=tuple(f.choices), top=f.logprobs, slots=f.slots,
        kv_dtype="int8" if f.kv_int8 else "", beams=beams, ahead=f.ahead, weights=f.weights,
    )  # fmt: skip


# {flag: what does not go with it}
APART = {
    "then": ("chat", "beams", "draft", "choices", "logprobs"),
    "beams": ("draft", "stop", "choices", "logprobs", "chat"),
    "draft": ("choices", "logprobs", "chat"),
    "chat": ("choices", "json", "prompts_file", "logprobs", "examples", "retrieve", "template"),
}
NEEDS = {"chat_template": "chat", "system": "chat", "logprobs": "json"}


def _check_pairs(f):
    """Raises ConfigError for flags that do not go together."""
    for one, others in APART.items():
        both = [other for other in others if getattr(f, one) and getattr(f, other)]
        if both:
            raise ConfigError(f"--{one} does not go with --{both[0]}. Leave one of them out.")
    for one, other in NEEDS.items():
        if getattr(f, one) and not getattr(f, other):
            raise ConfigError(f"--{one}={getattr(f, one)} needs --{other}. Add it.")
    if f.chat and f.count > 1:
        raise ConfigError(f"--chat does not go with --count={f.count}. Leave one of them out.")


def read_prompts(f):
    """Returns the prompts that the flags name; a line's end where they name none.

    Raises:
        ConfigError: a file that cannot be read.
    """
    prompts = list(f.prompt)
    if f.prompts_file:
        try:
            lines = pathlib.Path(f.prompts_file).read_text("utf-8").splitlines()
            is_json = f.prompts_file.endswith((".jsonl", ".json"))
            prompts += [json.loads(s)["prompt"] if is_json else s for s in lines if s.strip()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"--prompts_file={f.prompts_file}: {error!r}. It needs a prompt a line, or, where "
                'its name ends in .jsonl, {"prompt": "text"} a line.'
            ) from None
        if not all(isinstance(prompt, str) for prompt in prompts):
            raise ConfigError(f"--prompts_file={f.prompts_file}: a prompt is no text.")
    return prompts or ["\n"]


def open_others(f, trained):
    """Opens the runs of --draft and --ensemble, which must share the tokenizer of `trained`."""

    def other(flag, workdir):
        found = reopen.open_trained(workdir)
        if found.run.tokenizer.fingerprint != trained.run.tokenizer.fingerprint:
            raise ConfigError(
                f"--{flag}={workdir} has another tokenizer than --workdir={f.workdir}. Take a run "
                "of the same tokenizer."
            )
        return found.run.model, found.params

    draft = other("draft", f.draft) if f.draft else None
    return draft, [other("ensemble", workdir) for workdir in f.ensemble]


def main(file, overrides):
    """Restores the model, draws and prints."""
    if file:
        raise ConfigError("The run's own config is used. Leave --config out.")
    f = flags.FLAGS
    how = way(f)
    prompts, framed = read_prompts(f), command.wanted(f)
    cli.start(records.load_config(f.workdir, overrides))
    trained = reopen.open_trained(f.workdir, overrides, f.step)
    how = how._replace(start=data.get(trained.run.config.data, "start"))
    draft, others = open_others(f, trained)
    model, params, tokenizer = trained.run.model, trained.params, trained.run.tokenizer
    if framed:
        prompts = _framed(f, prompts, trained)
    if others:
        models, trees = zip((model, params), *others, strict=True)
        decoders = [generate.as_decoder(one, tokenizer, how) for one in models]
        model, params = generate.ensemble(decoders, f.average), trees
    if f.chat:
        return _chat(f, model, params, tokenizer, how, trained.run.config)
    if how.beams is None:
        prompts = [prompt for prompt in prompts for _ in range(f.count)]
    if how.beams is None and draft is None and not f.then:
        _draw(f, model, params, tokenizer, prompts, how)
        return 0
    if f.then:
        return _through(f, model, params, tokenizer, prompts, how)
    found = generate.generate(model, params, tokenizer, prompts, how._replace(draft=draft))
    if how.beams is not None:
        prompts = [prompt for prompt in prompts for _ in range(f.count)]
        found = [result for several in found for result in several]
    reads = generate.as_decoder(model, tokenizer, how).start >= 0
    for number, (prompt, result) in enumerate(zip(prompts, found, strict=True)):
        _show(f, number, len(prompts), prompt, result, reads)
    return 0


def _through(f, model, params, tokenizer, prompts, how):
    """Sends prompts through a run, and what it writes through another; prints what comes back."""
    other = reopen.open_trained(f.then)
    there = generate.generate(model, params, tokenizer, prompts, how)
    how = how._replace(start=data.get(other.run.config.data, "start"))
    texts = [result.text.strip() for result in there]
    back = generate.generate(other.run.model, other.params, other.run.tokenizer, texts, how)
    for number, (prompt, result) in enumerate(zip(prompts, back, strict=True)):
        _show(f, number, len(prompts), prompt, result, True)
    return 0


def _framed(f, prompts, trained):
    """Prompts behind examples or passages; tells on stderr where these are from."""
    tokenizer, encoder = trained.run.tokenizer, None
    if f.embed:
        other = reopen.open_trained(f.embed)
        encoder = embed.Embedder(other.run.model, other.params, other.run.tokenizer)
    room = trained.run.model.config.positions - f.tokens
    found = command.make_prompts(f, prompts, tokenizer, room, encoder)
    for number, (_, sources) in enumerate(found):
        for source in sources:
            print(f"prompt {number + 1}: {json.dumps(source)}", file=sys.stderr)
    return [text for text, _ in found]


def _draw(f, model, params, tokenizer, prompts, how):
    """Draws all, printing one alone as it comes and several in their order."""
    engine = generate.make_engine(model, params, tokenizer, how)
    alone, reads = f.stream and len(prompts) == 1 and not f.json, engine.decoder.start >= 0
    if alone and not reads:
        print(prompts[0], end="", flush=True)
    results, shown = {}, 0
    for index, new, result in generate.stream(engine, tokenizer, prompts, how):
        if alone:
            print(new, end="", flush=True)
        elif result is not None:
            results[index] = result
        while shown in results:
            result = results.pop(shown)
            _show(f, shown, len(prompts), prompts[shown], result, reads)
            shown += 1
    if alone:
        print()


def _show(f, number, count, prompt, result, reads):
    """Prints one result: an object, or text behind its prompt, unless an encoder `reads` that."""
    if f.json:
        found = {"prompt": prompt, **result._asdict()}
        found = {name: value for name, value in found.items() if value is not None}
        print(json.dumps(found, ensure_ascii=False), flush=True)
        return
    if count > 1:
        print(f"--- {number + 1}")
    print(result.text if reads else prompt + result.text)
    if result.accepted is not None:
        print(f"draft: {result.accepted:.0%} of its tokens passed", file=sys.stderr)


def _chat(f, model, params, tokenizer, how, config):
    template = _template(f, config, tokenizer)
    ends = tuple(
        dict.fromkeys([*generate.ends_of(tokenizer, how), *_turn_ends(tokenizer, template)])
    )
    how = how._replace(slots=1, eos=ends)
    if template is PLAIN:  # without a token that ends a turn
        how = how._replace(stop=(*how.stop, "\nUser:"))
    engine = generate.make_engine(model, params, tokenizer, how)
    if engine.decoder.start >= 0:
        raise ConfigError("--chat needs a decoder; this model reads by an encoder. Use --prompt.")

    def reply(messages):
        ids, _ = chats.encode_chat(tokenizer, template, messages, add_generation_prompt=True)
        parts = []
        for _, new, _ in generate.stream(engine, tokenizer, [ids], how):
            parts.append(new)
            print(new, end="", flush=True)
        print()
        return "".join(parts).strip()

    first = [{"role": "system", "content": f.system}] if f.system else []
    said = iter(f.prompt) if f.prompt else _typed()
    talk(reply, said, first)
    return 0


def _typed():
    """Yields what a user types, to the end of the input."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def talk(reply, said, messages=()):
    """Talks until nothing more is said.

    Args:
        reply: messages [{"role", "content"}, …] -> the answer.
        said: iterable of what the user says in turn; what is empty is passed over.
        messages: that come before.

    Returns:
        All messages.
    """
    messages = list(messages)
    for words in said:
        if words.strip():
            messages.append({"role": "user", "content": words})
            messages.append({"role": "assistant", "content": reply(messages)})
    return messages


def _template(f, config, tokenizer):
    """The chat template that --chat_template names, or that the run of a config was taught by."""
    if f.chat_template == "plain":
        return PLAIN
    if f.chat_template:
        return chats.choose(f.chat_template, tokenizer)
    if data.get(config.data, "rows") == "chat":
        return chats.choose(data.get(config.data, "template"), tokenizer)
    if tokenizer.template is None:
        raise ConfigError(
            f"--chat: {f.workdir} has no {chats.TEMPLATE_FILE}, so how this model was taught to "
            "talk is not known. Try --chat_template=chatml, or --chat_template=plain for roles as "
            "words."
        )
    return tokenizer.template


def _turn_ends(tokenizer, template):
    """Special tokens that a template ends an answer with: [id] or []."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        ids, mask = chats.encode_chat(tokenizer, template, messages)
    except TokenizerError as error:
        print(f"No token that ends an answer: {error}", file=sys.stderr)
        return []
    last = int(ids[mask][-1])
    return [last] if last in tokenizer.specials.values() else []


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
