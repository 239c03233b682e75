"""Prompts and examples: what is asked for, the same for the same seed, within the limit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm import tokenizers
from jaxllm.config import ConfigError
from jaxllm.context import prompts, select
from jaxllm.context.prompts import PromptTemplate

EXAMPLES = [{"input": f"{i} + 1", "output": str(i + 1)} for i in range(5)]
QUERY = {"input": "9 + 1"}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.make({"kind": "byte"}, lambda: iter([]))


def letters(texts):
    """An embedding: how often each letter is there."""
    return np.array([[t.lower().count(c) for c in "abcdefghijklmnop"] for t in texts], np.float32)


def test_zero_and_few_shot():
    template = PromptTemplate("question")
    assert template.render(QUERY) == "Question: 9 + 1\nAnswer:"
    assert template.render(QUERY, EXAMPLES[:2], "Add.") == (
        "Add.\n\nQuestion: 0 + 1\nAnswer: 1\n\nQuestion: 1 + 1\nAnswer: 2\n\n"
        "Question: 9 + 1\nAnswer:"
    )


def test_a_template_of_ones_own():
    template = PromptTemplate(
        "{% for e in examples %}{{ e.x }}={{ e.y }};{% endfor %}{{ query.x }}="
    )
    assert template.render({"x": "c"}, [{"x": "a", "y": "b"}]) == "a=b;c="
    assert template.render({"x": "{{ 7 * 7 }}"}) == "{{ 7 * 7 }}="  # data is no template


@pytest.mark.parametrize(
    "text,said",
    [
        ("questoin", "Did you mean 'question'"),
        ("{{ query.text }}", "no attribute 'text'"),
        ("{{ query.input", "no Jinja"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'x' * 10 ** 12 }}", "MiB"),
    ],
)
def test_a_template_that_fails_is_told(text, said):
    with pytest.raises(ConfigError, match=said):
        PromptTemplate(text).render(QUERY)


def test_as_many_examples_as_fit(tokenizer):
    """Exactly: one more would be too many; the last ones stay."""
    template = PromptTemplate()
    for limit in range(20, 160):
        text, count = template.fit(tokenizer, limit, QUERY, EXAMPLES)
        assert text == template.render(QUERY, EXAMPLES[5 - count :])
        assert len(tokenizer.encode(text)) <= limit
        if count < 5:
            assert len(tokenizer.encode(template.render(QUERY, EXAMPLES[4 - count :]))) > limit
    with pytest.raises(ConfigError, match="20 tokens without examples, of 19"):
        template.fit(tokenizer, 19, QUERY, EXAMPLES)


def test_examples_as_a_chat():
    found = prompts.messages(QUERY, EXAMPLES[:1], "Add.")
    assert [m["role"] for m in found] == ["system", "user", "assistant", "user"]
    assert [m["content"] for m in found] == ["Add.", "0 + 1", "1", "9 + 1"]


def test_random_examples_depend_on_seed_and_item_alone():
    chosen = [select.at_random(50, 5, 0, i).tolist() for i in range(20)]
    assert chosen == [select.at_random(50, 5, 0, i).tolist() for i in range(20)]
    assert len({tuple(c) for c in chosen}) == 20
    assert select.at_random(50, 5, 1, 0).tolist() != chosen[0]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(0, 12), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_balanced_examples_are_balanced(labels, k, seed):
    exclude = [0] if labels else []
    left = labels[1:]
    if k > len(left):
        with pytest.raises(ConfigError, match=f"Try k={len(left)}"):
            select.balanced(labels, k, seed, 3, exclude)
        return
    chosen = select.balanced(labels, k, seed, 3, exclude).tolist()
    assert len(set(chosen)) == k and not set(chosen) & set(exclude)
    taken = {label: sum(labels[i] == label for i in chosen) for label in set(left)}
    for label, count in taken.items():  # fewer than another only where there are no more
        assert count == left.count(label) or count >= max(taken.values()) - 1


def test_the_nearest_come_last_and_none_is_the_query():
    texts = ["aaaa", "bbbb", "aaab", "abab", "bbbb"]
    nearest = select.Nearest(letters, texts)
    assert nearest.choose("aa", 3).tolist() == [3, 2, 0]
    assert nearest.choose("b", 2).tolist() == [4, 1]  # of equals the first is nearest
    assert nearest.choose("aaaa", 2, exclude=[0]).tolist() == [3, 2]
    with pytest.raises(ConfigError, match="Try k=5"):
        nearest.choose("a", 6)


@pytest.mark.parametrize(
    "embed", [lambda t: np.zeros(3), lambda t: np.zeros((1, 3)), lambda t: np.full((2, 3), np.nan)]
)
def test_an_embedding_that_is_none_is_refused(embed):
    with pytest.raises(ConfigError, match="the embedding function must give"):
        select.Nearest(embed, ["a", "b"])
