"""Prompts from templates: an instruction, examples, a query.

Learning from examples in the prompt: Brown et al. 2020, arXiv:2005.14165.
"""

from jaxllm.config import ConfigError, near
from jaxllm.tokenizers import sandbox

_EXAMPLES = (
    "{% if instruction %}{{ instruction }}{{ '\n\n' }}{% endif %}"
    "{% for example in examples %}"
    "{{ BEFORE + example.input + BETWEEN + ' ' + example.output + '\n\n' }}{% endfor %}"
    "{{ BEFORE + query.input + BETWEEN }}"
)


def _named(before, between):
    return _EXAMPLES.replace("BEFORE", repr(before)).replace("BETWEEN", repr(between))


TEMPLATES = {
    "plain": _named("Input: ", "\nOutput:"),
    "question": _named("Question: ", "\nAnswer:"),
    "label": _named("Text: ", "\nLabel:"),
    "arrow": _named("", " =>"),
}


class PromptTemplate:
    """A template of a prompt.

    Args:
        text: Jinja, rendered as chat templates are, with the variables `instruction`,
            `examples` (a list) and `query`; or a name: plain, question, label, arrow, whose
            examples have the fields `input` and `output`. A field that is not there is an error.

    Raises:
        ConfigError: a text without {{ or {%, and no known name.
    """

    def __init__(self, text="plain"):
        if text not in TEMPLATES and "{{" not in text and "{%" not in text:
            raise ConfigError(
                f"prompt template {text!r} is neither a known name nor Jinja."
                f"{near(text, TEMPLATES)} Known: {', '.join(TEMPLATES)}."
            )
        self.text = TEMPLATES.get(text, text)

    def render(self, query, examples=(), instruction=""):
        """Renders a prompt; without examples it is zero-shot.

        Args:
            query: {field: value} of what is asked.
            examples: [{field: value}], with answers.
            instruction: what is to be done, "" for none.

        Raises:
            ConfigError: the template fails, such as at a field that is not there.
        """
        values = {"query": query, "examples": list(examples), "instruction": instruction}
        try:
            return sandbox.render(self.text, values, strict=True)
        except sandbox.TemplateError as error:
            raise ConfigError(f"the prompt template fails: {error}") from error

    def fit(self, tokenizer, limit_tokens, query, examples=(), instruction=""):
        """Renders a prompt with as many examples as fit.

        Args:
            tokenizer: see `jaxllm.tokenizers.Tokenizer`.
            limit_tokens: most tokens of the prompt.
            query, examples, instruction: see `render`; the first examples are dropped first, since
                those nearest the query do most.

        Returns:
            (prompt, number of examples in it).

        Raises:
            ConfigError: it does not fit without any example.
        """
        examples = list(examples)
        low, high, best = 0, len(examples), None
        while low <= high:  # tokens grow with the examples, so halving finds the most
            count = (low + high) // 2
            text = self.render(query, examples[len(examples) - count :], instruction)
            if len(tokenizer.encode(text)) <= limit_tokens:
                best, low = (text, count), count + 1
            else:
                high = count - 1
        if best is None:
            found = len(tokenizer.encode(self.render(query, (), instruction)))
            raise ConfigError(
                f"the prompt has {found:,} tokens without examples, of {limit_tokens:,} allowed.\n"
                f"  Try limit_tokens={found}, or a shorter query."
            )
        return best


def messages(query, examples=(), instruction=""):
    """The same as a chat: each example is a question and its answer.

    Args:
        query: {"input"}.
        examples: [{"input", "output"}].
        instruction: for the system message, "" for none.

    Returns:
        [{"role", "content"}] for `jaxllm.tokenizers.chat.encode_chat`.
    """
    found = [{"role": "system", "content": instruction}] if instruction else []
    for example in examples:
        found.append({"role": "user", "content": example["input"]})
        found.append({"role": "assistant", "content": example["output"]})
    return [*found, {"role": "user", "content": query["input"]}]
