"""Chats: text and ids as transformers has them, no special token out of a message, no bombs."""

import json
import os
import time

import numpy as np
import pytest
import tokenizers as hf_library
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm import tokenizers
from jaxllm.tokenizers import TokenizerError, chat, sandbox
from jaxllm.tokenizers.chat_templates import BUILT_IN
from jaxllm.tokenizers.hf import HfTokenizer
from tests.gguf_helpers import TEXT

SPECIALS = ["<s>", "</s>", *dict.fromkeys(t for b in BUILT_IN.values() for t in b.tokens)]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "  Hello, 12 naïve 東京 😀?\n"},
    {"role": "assistant", "content": " Hi!  "},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "No.\nNever."},
]
# No {% generation %}, content seen through functions, a date, a loop that breaks.
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if loop.index > 40 %}{% break %}{% endif %}\n"
    "    {% if m.content is string and m.content.startswith('M') %}!{% endif %}\n"
    "{{ '<|im_start|>' + m.role }}\n{{ m.content | trim }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    model = hf_library.Tokenizer(hf_library.models.BPE())
    model.pre_tokenizer = hf_library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = hf_library.decoders.ByteLevel()
    trainer = hf_library.trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIALS,
        initial_alphabet=hf_library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator([TEXT * 4], trainer)
    return HfTokenizer(model.to_str().encode(), {"eos": "</s>", "bos": "<s>", "pad": ""})


@pytest.fixture(scope="module")
def theirs(tokenizer):
    """The same tokenizer in transformers."""
    transformers = pytest.importorskip("transformers")
    (content,) = tokenizer._files.values()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=hf_library.Tokenizer.from_str(content.decode()),
        bos_token="<s>",
        eos_token="</s>",
    )


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", BUILT_IN)
def test_text_ids_and_mask_equal_transformers(name, prompt, tokenizer, theirs):
    template = chat.built_in(name, tokenizer)
    options = dict(chat_template=template.text, add_generation_prompt=prompt)
    for messages in (CHAT, CHAT[1:], CHAT[1:4], CHAT[:2]):
        wanted = theirs.apply_chat_template(messages, tokenize=False, **options)
        assert template.render(messages, add_generation_prompt=prompt) == wanted
        found = theirs.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True, **options
        )
        for trusted in (False, True):
            ids, mask = chat.encode_chat(
                tokenizer, template, messages, add_generation_prompt=prompt, trusted=trusted
            )
            assert ids.tolist() == found["input_ids"] and ids.dtype == np.int32
            assert mask.astype(int).tolist() == found["assistant_masks"]
        assert mask.any() == (len(messages) > 2)


def test_any_template_renders_as_in_transformers(theirs):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"<": "é & 'q'"}}}]
    template = chat.ChatTemplate(PLAIN, {"bos_token": "<s>"})
    for messages in (CHAT, CHAT * 10, [{"role": "user", "content": "My"}]):
        wanted = theirs.apply_chat_template(
            messages, tools=tools, chat_template=PLAIN, tokenize=False, add_generation_prompt=True
        )
        assert template.render(messages, tools=tools, add_generation_prompt=True) == wanted


def test_answers_are_found_without_the_generation_tag(tokenizer):
    """By what each message adds: the words and the end of the turn, not the line's end."""
    template = chat.ChatTemplate(PLAIN, {"bos_token": "<s>"})
    ids, mask = chat.encode_chat(tokenizer, template, CHAT)
    runs = np.split(ids, np.flatnonzero(np.diff(mask)) + 1)[1::2]
    end = tokenizer.specials["<|im_end|>"]
    assert [tokenizer.decode(run) for run in runs] == ["Hi!", "No.\nNever."]
    assert [run[-1] for run in runs] == [end, end]


def test_answers_that_later_messages_change_are_refused(tokenizer):
    template = chat.ChatTemplate(
        "{% for m in messages %}{{ m.content if loop.last else '…' }}{% endfor %}"
    )
    with pytest.raises(
        TokenizerError, match=r"(?s)messages\[2\]: where the answer begins.*generation"
    ):
        chat.encode_chat(tokenizer, template, CHAT)


EVIL = st.lists(
    st.sampled_from(
        [*SPECIALS, "<|im_", "end|>", "<", "|>", "im_end", ">", "a", " ", "<|IM_END|>"]
    ),
    max_size=6,
).map("".join)


@given(st.lists(EVIL, min_size=1, max_size=4), st.sampled_from(["chatml", "llama3", "phi3"]))
@settings(max_examples=60, deadline=None)
def test_no_message_makes_a_special_token(tokenizer, contents, name):
    """As many special tokens as with harmless messages; and the messages' text is kept."""
    template = chat.built_in(name, tokenizer)

    def special(contents):
        messages = [
            {"role": ("user", "assistant")[i % 2], "content": content}
            for i, content in enumerate(contents)
        ]
        ids, _ = chat.encode_chat(tokenizer, template, messages)
        names = set(tokenizer.specials.values())
        return [i for i in ids.tolist() if i in names], ids, template.render(messages)

    wanted, _, _ = special(["a"] * len(contents))
    found, ids, text = special(contents)
    assert found == wanted
    pieces = hf_library.Tokenizer.from_str(next(iter(tokenizer._files.values())).decode())
    assert pieces.decode(ids.tolist(), skip_special_tokens=False) == text


@pytest.mark.parametrize("before,after", [("", ""), ("Now say <s and ", " if you can, please.")])
def test_two_messages_make_no_special_token_together(before, after, tokenizer):
    template = chat.ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}")
    messages = [{"role": "user", "content": part} for part in (before + "<|im_", "end|>" + after)]
    ids, _ = chat.encode_chat(tokenizer, template, messages)
    assert tokenizer.specials["<|im_end|>"] not in ids
    trusted, _ = chat.encode_chat(tokenizer, template, messages, trusted=True)
    assert tokenizer.specials["<|im_end|>"] in trusted


def test_tools_make_no_special_token(tokenizer):
    template = chat.ChatTemplate(PLAIN, {"bos_token": "<s>"})
    tools = [{"name": "<|im_end|>", "<|im_start|>": 1}]
    plain, _ = chat.encode_chat(tokenizer, template, CHAT[:2])
    ids, _ = chat.encode_chat(tokenizer, template, CHAT[:2], tools=tools)
    for name in ("<|im_end|>", "<|im_start|>"):
        assert (ids == tokenizer.specials[name]).sum() == (plain == tokenizer.specials[name]).sum()


@pytest.mark.parametrize("kind", ["sentencepiece", "hf"])
def test_trained_tokenizers_carry_chats(kind):
    """With the special tokens in their training, of every kind that takes them."""
    section = {"kind": kind, "vocab_size": 320, "specials": ("<|im_start|>", "<|im_end|>")}
    made = tokenizers.make(section, lambda: iter([TEXT * 20]))
    ids, mask = chat.encode_chat(made, chat.built_in("chatml", made), CHAT)
    end = made.specials["<|im_end|>"]
    assert (ids == end).sum() == len(CHAT) and (ids[mask] == end).sum() == 2
    assert made.decode(ids[mask]).split() == ["Hi!", "No.", "Never."]


BOMBS = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a product": "{{ 'a' * 10 ** 11 }}",
    "a width": "{{ '%1000000000000d' % 1 }}",
    "doubling": "{% set n = namespace(x='a') %}{% for i in range(60) %}"
    "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "much text": "{% for i in range(99999) %}{{ 'x' * 10000 }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "a range": "{% for i in range(10 ** 12) %}{% endfor %}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_an_error_in_time(name):
    start = time.monotonic()
    with pytest.raises(TokenizerError):
        sandbox.render(BOMBS[name], {}, timeout_s=1)
    assert time.monotonic() - start < 5
    assert sandbox.render("{{ x }} goes on", {"x": "it"}) == "it goes on"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ raise_exception.__globals__ }}",
    ],
)
def test_a_template_cannot_reach_out(text):
    with pytest.raises(TokenizerError):
        sandbox.render(text, {"messages": []}, strict=True)


def test_what_a_template_refuses_is_told_with_its_message(tokenizer):
    template = chat.built_in("gemma", tokenizer)
    with pytest.raises(TokenizerError, match=r"messages\[2\] \(role 'user'\): .*take turns"):
        template.render([*CHAT[:2], CHAT[1], *CHAT[2:]])


@pytest.mark.parametrize(
    "messages,said",
    [
        ([], "at least one message"),
        ([{"role": "user", "content": ""}, {"content": "x"}], r"messages\[1\] has the role None"),
        ([{"role": "asistant", "content": "x"}], "Did you mean 'assistant'"),
        (["hello"], r"messages\[0\] has the role None"),
        ("hello", "at least one message"),
    ],
)
def test_messages_that_are_none_are_named(messages, said, tokenizer):
    with pytest.raises(TokenizerError, match=said):
        chat.encode_chat(tokenizer, chat.built_in("chatml", tokenizer), messages)


def test_a_tokenizer_without_the_tokens_is_told(tmp_path):
    made = tokenizers.make({"kind": "byte"}, lambda: iter([TEXT]))
    with pytest.raises(TokenizerError, match=r"needs the special tokens <\|im_start\|>"):
        chat.built_in("chatml", made)
    with pytest.raises(TokenizerError, match="Did you mean 'chatml'"):
        chat.built_in("chatlm", made)


def test_templates_of_folders(tokenizer):
    config = {"chat_template": PLAIN, "bos_token": {"content": "<s>"}}
    named = [{"name": n, "template": n + "{{ bos_token }}"} for n in ("default", "tool_use")]
    message = [{"role": "user", "content": "x"}]

    def render(name="default", **files):
        files = {n.replace("__", "."): json.dumps(f).encode() for n, f in files.items()}
        return chat.of_files(files, name).render(message)

    assert render(tokenizer_config__json=config).startswith("<s><|im_start|>user")
    several = {**config, "chat_template": named}
    assert render(tokenizer_config__json=several) == "default<s>"
    assert render("tool_use", tokenizer_config__json=several) == "tool_use<s>"
    with pytest.raises(TokenizerError, match="Did you mean 'tool_use'"):
        render("tool_us", tokenizer_config__json=several)
    files = {"tokenizer_config.json": json.dumps(config).encode(), "chat_template.jinja": b"file"}
    assert chat.of_files(files).render(message) == "file"
    assert chat.of_files({}) is None
    with pytest.raises(TokenizerError, match="damaged"):
        chat.of_files({"chat_template.jinja": b"\xff"})


def test_a_template_is_stored_beside_the_tokenizer(tokenizer, tmp_path):
    template = chat.built_in("llama3", tokenizer)
    tokenizer.save(tmp_path)
    assert chat.load(tmp_path) is None
    chat.save(tmp_path, template)
    assert tokenizers.load(tmp_path).fingerprint == tokenizer.fingerprint
    assert chat.load(tmp_path).render(CHAT) == template.render(CHAT)
    (tmp_path / chat.TEMPLATE_FILE).write_text("{}")
    with pytest.raises(TokenizerError, match="damaged"):
        chat.load(tmp_path)


def test_the_time_is_what_is_said():
    template = chat.ChatTemplate("{{ strftime_now('%Y-%m-%d') }}")
    message = [{"role": "user", "content": "x"}]
    day = time.mktime((2024, 2, 29, 12, 0, 0, 0, 0, -1))
    assert template.render(message, now=day) == "2024-02-29"


def test_a_forked_process_renders_too():
    """Its parent's child answers its parent."""
    assert sandbox.render("a", {}) == "a"
    child = os.fork()
    if not child:
        os._exit(0 if sandbox.render("b", {}) == "b" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sandbox.render("c", {}) == "c"
