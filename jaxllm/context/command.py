"""Flags of a command that makes prompts: from templates, examples and documents."""

import pathlib
import sys

from absl import flags

from jaxllm.config import ConfigError
from jaxllm.context import index, prompts, records, retrieval, select

WAYS = ("random", "nearest", "balanced")
OVERLAP = 8  # a passage shares at most one part in so many with the one before


def define_flags():
    """Defines the flags; they go with --prompt, --prompts_file and --seed of the command."""
    flags.DEFINE_string("template", "", f"of the prompt: {', '.join(prompts.TEMPLATES)}, or a file")
    flags.DEFINE_string("instruction", "", "what is to be done, before the examples")
    flags.DEFINE_string("examples", "", "JSON lines with 'input' and 'output', or the template's")
    flags.DEFINE_integer("shots", 4, "examples in the prompt, at most", lower_bound=0)
    flags.DEFINE_enum("select", "random", WAYS, "which examples; nearest needs --embed")
    flags.DEFINE_string("retrieve", "", "folder of documents that answer the prompts")
    flags.DEFINE_string("index", "", "directory of their index; made and kept up to date")
    flags.DEFINE_string("embed", "", "run of an encoder (model.task=embed)")
    flags.DEFINE_integer("passages", 8, "passages to retrieve", lower_bound=1)
    flags.DEFINE_integer("passage_tokens", 96, "of the encoder's, a passage", lower_bound=8)
    flags.DEFINE_enum("search", "exact", index.SEARCHES, "in the index")


def wanted(f):
    """Whether any flag asks for prompts other than those that are typed.

    Args:
        f: absl's flags.

    Raises:
        ConfigError: flags that lack another, or do not go together.
    """
    if f.retrieve and f.examples:
        raise ConfigError("--retrieve does not go with --examples. Leave one out.")
    if f.retrieve and f.instruction:
        raise ConfigError(
            "--instruction is for examples; documents have --template, a file with 'question' and "
            "'passages'."
        )
    if f.retrieve and not f.index:
        raise ConfigError(f"--retrieve={f.retrieve} needs a place.\n  Try --index=index.")
    nearest = bool(f.examples) and f.select == "nearest"
    if (f.retrieve or nearest) and not f.embed:
        flag = f"--retrieve={f.retrieve}" if f.retrieve else "--select=nearest"
        more = "" if f.retrieve else " Or try --select=random."
        raise ConfigError(
            f"{flag} needs embeddings.\n  Give a run of an encoder: --embed=WORKDIR.{more}"
        )
    if f.embed and not (f.retrieve or nearest):
        raise ConfigError("--embed is for --retrieve=FOLDER and --select=nearest.")
    if f.index and not f.retrieve:
        raise ConfigError("--index is for --retrieve=FOLDER.")
    return bool(f.retrieve or f.examples or f.template or f.instruction)


def make_prompts(f, questions, tokenizer, room_tokens, embed=None):
    """Makes the prompts that the flags ask for.

    Args:
        f: absl's flags, of which `wanted` is true.
        questions: what is typed, [text].
        tokenizer: of the model that goes on from the prompts.
        room_tokens: most tokens of a prompt: what the model sees less what it is to write.
        embed: `embed.Embedder` of --embed, or None.

    Returns:
        [(prompt, sources)]: sources are {"number", "source", "line", "score"} of the passages,
        [1] first, or {"source", "line"} of the examples, in their order.

    Raises:
        ConfigError: a file that cannot be read, a template that fails, or no room.
    """
    if room_tokens < 1:
        raise ConfigError(
            "the model's rows have no room for a prompt beside what it is to write.\n"
            "  Try fewer --tokens."
        )
    if f.retrieve:
        return _from_documents(f, questions, tokenizer, room_tokens, embed)
    return _from_examples(f, questions, tokenizer, room_tokens, embed)


def _from_documents(f, questions, tokenizer, room_tokens, embed):
    size = f.passage_tokens
    if size > embed.room:
        raise ConfigError(
            f"--passage_tokens={size} is more than the {embed.room} that the encoder reads.\n"
            f"  Try --passage_tokens={embed.room}."
        )
    made = index.refresh(
        f.retrieve, f.index, embed, embed.tokenizer,
        name=embed.name, size_tokens=size, overlap_tokens=size // OVERLAP, search=f.search,
    )  # fmt: skip
    _say(
        f"index {f.index}: {len(made.index.passages):,} passages; {made.embedded} files embedded, "
        f"{made.kept} kept, {made.removed} removed"
    )
    for file, why in made.skipped:
        _say(f"left out: {file}: {why}")
    if not made.index.passages:
        known = ", ".join(index.ENDINGS)
        raise ConfigError(f"--retrieve={f.retrieve} holds no text. Read are files of {known}.")
    template = _template(f.template, {}) if f.template else retrieval.TEMPLATE
    found = []
    for question in questions:
        prompt = retrieval.ask(
            made.index, embed, tokenizer, question,
            k=f.passages, limit_tokens=room_tokens, template=template,
        )  # fmt: skip
        if len(prompt.passages) < min(f.passages, len(made.index.passages)):
            _say(f"{len(prompt.passages)} of {f.passages} passages are in the prompt")
        sources = [
            dict(number=number, source=p.source, line=p.line, score=p.score)
            for number, p in enumerate(prompt.passages, 1)
        ]
        found.append((prompt.text, sources))
    return found


def _from_examples(f, questions, tokenizer, room_tokens, embed):
    template = prompts.PromptTemplate(_template(f.template or "plain", prompts.TEMPLATES))
    examples = records.read(f.examples, "--examples") if f.examples else []
    shots = f.shots if examples else 0
    if shots > len(examples):
        raise ConfigError(
            f"--shots={shots}, and {f.examples} holds {len(examples)} examples.\n"
            f"  Try --shots={len(examples)}."
        )
    choose = _chooser(f, examples, embed)
    found = []
    for item, question in enumerate(questions):
        chosen = [examples[i] for i in choose(item, question, shots)] if shots else []
        values = [example for _, example in chosen]
        text, count = template.fit(
            tokenizer, room_tokens, {"input": question}, values, f.instruction
        )
        if count < shots:
            _say(f"{count} of {shots} examples fit in {room_tokens:,} tokens")
        kept = chosen[len(chosen) - count :]
        found.append((text, [dict(source=f.examples, line=line) for line, _ in kept]))
    return found


def _chooser(f, examples, embed):
    """Returns a function (number of the question, question, k) -> numbers of examples."""
    count = len(examples)
    if f.select == "balanced":
        labels = [_field(f.examples, line, example, "output") for line, example in examples]
        return lambda item, question, k: select.balanced(labels, k, f.seed, item)
    if f.select == "nearest" and examples:
        texts = [_field(f.examples, line, example, "input") for line, example in examples]
        near = select.Nearest(embed, texts)
        return lambda item, question, k: near.choose(question, k)
    return lambda item, question, k: select.at_random(count, k, f.seed, item)


def _field(file, line, example, name):
    value = example.get(name)
    if not isinstance(value, str):
        raise ConfigError(
            f"--examples={file}, line {line}: --select needs the text {name!r} of each example."
        )
    return value


def _template(name, known):
    """The text of a template: a known name as it is, else what a file holds."""
    if name in known or "{{" in name or "{%" in name:
        return name
    path = pathlib.Path(name).expanduser()
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        names = f"\n  Known names: {', '.join(known)}." if known else ""
        raise ConfigError(f"--template={name}: {error}.{names}") from None


def _say(words):
    print(f"note: {words}", file=sys.stderr)
