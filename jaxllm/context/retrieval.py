"""Answers from documents: the best passages in a prompt, with their sources.

Retrieval-augmented generation, Lewis et al. 2020, arXiv:2005.11401. What a document says is
material, but a model may still follow instructions that stand in one: an answer is not to be
trusted further than the documents are.
"""

import re
from typing import NamedTuple

from jaxllm.config import ConfigError
from jaxllm.context.index import Passage
from jaxllm.tokenizers import sandbox

TEMPLATE = (
    "Answer the question from the sources, and name the number of each source that you use, such "
    "as [1]. Say so where they do not tell.\n\n"
    "{% for passage in passages %}"
    "{{ '[' ~ loop.index ~ '] ' + passage.source ~ ', line ' ~ passage.line }}{{ ':\n' }}"
    "{{ passage.text }}{{ '\n\n' }}{% endfor %}"
    "{{ 'Question: ' + question + '\nAnswer:' }}"
)


class Prompt(NamedTuple):
    """A prompt with sources: its text, its tokens' number, and the passages, [1] first."""

    text: str
    tokens: int
    passages: list[Passage]


def assemble(tokenizer, question, passages, limit_tokens, template=TEMPLATE):
    """Makes a prompt of a question and as many of the best passages as fit.

    A passage that does not fit is left out, and a shorter one after it may still be in. One that
    lies over a passage already in is left out, too.

    Args:
        tokenizer: see `jaxllm.tokenizers.Tokenizer`.
        question: a text.
        passages: [Passage], the best first; see `Index.search`.
        limit_tokens: most tokens of the prompt, room for the answer not counted.
        template: Jinja with `question` and `passages`.

    Returns:
        Prompt.

    Raises:
        ConfigError: the question does not fit without passages, or the template fails.
    """

    def attempt(chosen):
        values = {"question": question, "passages": [p._asdict() for p in chosen]}
        try:
            text = sandbox.render(template, values, strict=True)
        except sandbox.TemplateError as error:
            raise ConfigError(f"the prompt template fails: {error}") from error
        return Prompt(text, len(tokenizer.encode(text)), chosen)

    best = attempt([])
    if best.tokens > limit_tokens:
        raise ConfigError(
            f"the question takes {best.tokens:,} tokens without passages, of {limit_tokens:,} "
            f"allowed.\n  Try limit_tokens={best.tokens}, or a shorter question."
        )
    for passage in passages:
        if any(_overlap(passage, other) for other in best.passages):
            continue
        longer = attempt([*best.passages, passage])
        best = longer if longer.tokens <= limit_tokens else best
    return best


def _overlap(one, other):
    """Whether more than half of a passage is in another."""
    shared = min(one.end, other.end) - max(one.start, other.start)
    return one.source == other.source and 2 * shared > one.end - one.start


def ask(index, embed, tokenizer, question, *, k=8, limit_tokens=1_536, template=TEMPLATE):
    """Finds passages for a question and makes the prompt; see `Index.search` and `assemble`."""
    found = index.search(embed, question, k)
    return assemble(tokenizer, question, found, limit_tokens, template)


def cited(answer, passages):
    """Finds the sources that an answer names.

    Args:
        answer: a text with numbers such as [1] or [2, 3].
        passages: of the prompt.

    Returns:
        ([Passage] in the order they are first named, [numbers that no passage has]).
    """
    groups = re.findall(r"\[(\d{1,4}(?:\s*,\s*\d{1,4})*)\]", answer)
    numbers = dict.fromkeys(int(n) for group in groups for n in group.split(","))
    known = [n for n in numbers if 1 <= n <= len(passages)]
    return [passages[n - 1] for n in known], [n for n in numbers if n not in known]
