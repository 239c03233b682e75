"""Rows of chats: the ids and masks of transformers, packed or not, shortened as asked, or told."""

import json

import numpy as np
import pytest
import tokenizers as hf_library

from jaxllm import data, tokenizers
from jaxllm.config import ConfigError
from jaxllm.data import DataError
from jaxllm.tokenizers import chat
from tests.example_helpers import chat_tokenizer_of, config_of, opened, talks, write

# ChatML without {% generation %}; a rule on turns.
PLAIN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer_of()


def chats_of(directory, tokenizer, chats, length=512, source=None, lead=0, **changes):
    path = write(directory / "chats.jsonl", [{"messages": messages} for messages in chats])
    fields = {"template": "chatml", "validation_fraction": 0.0, **changes}
    config = config_of(path, "chats", "chat", length, source=source or {}, **fields)
    data.check(config)
    data.prepare(config, tokenizer, directory, lead=lead)
    return data.open_split(config, tokenizer, directory, "train", 0, steps=2, lead=lead), config


def found_in(source, batch=None):
    """[(ids, mask)] of the documents of all rows, sorted."""
    batch = batch or source.take(np.arange(source.train_rows))
    found = []
    for row in range(len(batch["tokens"])):
        for number in range(1, batch["segment"][row].max(initial=0) + 1):
            here = np.flatnonzero(batch["segment"][row] == number)[source.lead :]
            tokens, targets = batch["tokens"][row][here], batch["targets"][row][here]
            assert np.array_equal(tokens[1:], targets[:-1])
            assert batch["position"][row][here].tolist() == [
                *range(source.lead, len(here) + source.lead)
            ]
            mask = [False, *(batch["weight"][row][here] > 0).tolist()]
            found.append(([int(tokens[0]), *targets.tolist()], mask))
    return sorted(found)


def wanted_of(tokenizer, chats, template=None):
    template = template or chat.built_in("chatml", tokenizer)
    made = [chat.encode_chat(tokenizer, template, messages) for messages in chats]
    return sorted((ids.tolist(), mask.tolist()) for ids, mask in made)


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("length", [512, 250])
def test_rows_hold_every_chat_once_with_the_mask_of_transformers(length, pack, tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    (content,) = tokenizer._files.values()
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=hf_library.Tokenizer.from_str(content.decode())
    )
    source, _ = chats_of(tmp_path, tokenizer, talks(), length, pack=pack)
    wanted = []
    for messages in talks():
        made = theirs.apply_chat_template(
            messages, chat_template=chat.built_in("chatml", tokenizer).text,
            return_dict=True, return_assistant_tokens_mask=True,
        )  # fmt: skip
        wanted.append((made["input_ids"], [bool(x) for x in made["assistant_masks"]]))
    for epoch in (0, 1):
        n = epoch * source.train_rows + np.arange(source.train_rows)
        assert found_in(source, source.take(n)) == sorted(wanted)
    assert (source.train_rows < 40) if pack else (source.train_rows == 40)
    end = tokenizer.specials["<|im_end|>"]
    learned = [i for ids, mask in wanted for i, on in zip(ids, mask, strict=True) if on]
    assert learned.count(end) == sum(len(m) // 2 for m in talks())


def test_a_template_without_the_generation_tag_gives_the_same_masks(tokenizer, tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text(PLAIN)
    source, _ = chats_of(tmp_path, tokenizer, talks(), template=str(path))
    built_in, _ = chats_of(tmp_path, tokenizer, talks())
    assert found_in(source) == found_in(built_in)
    # The same bytes, but another template: other shards.
    assert source.manifest["template"] != built_in.manifest["template"]


def test_what_is_learned(tokenizer, tmp_path):
    answers, last, everything = (
        dict_of(chats_of(tmp_path, tokenizer, talks(), loss_on=loss_on)[0])
        for loss_on in ("answers", "last", "all")
    )
    ends = tokenizer.specials["<|im_end|>"]
    for ids, mask in answers.items():
        assert all(everything[ids][1:]) and not everything[ids][0]
        final = np.flatnonzero(np.diff(mask, prepend=False, append=False))[-2:]
        assert np.flatnonzero(last[ids]).tolist() == list(range(*final))
        assert ids[final[1] - 1] == ends


def dict_of(source):
    return {tuple(ids): mask for ids, mask in found_in(source)}


def sizes(tokenizer, chats):
    return [len(ids) for ids, _ in wanted_of(tokenizer, chats)]


LENGTH = 90


def test_what_is_too_long_loses_its_oldest_turns(tokenizer, tmp_path):
    chats = [*talks(30, longest=6), [{"role": "user", "content": "x" * 200}, *talks()[0][-1:]]]
    source, _ = chats_of(tmp_path, tokenizer, chats, LENGTH)
    wanted, cut, dropped = [], 0, 0
    for messages in chats:
        head, turns = messages[: len(messages) % 2], messages[len(messages) % 2 :]
        whole = len(turns)
        while turns and sizes(tokenizer, [[*head, *turns]])[0] > LENGTH + 1:
            turns = turns[2:]
        if turns:
            wanted.append([*head, *turns])
            cut += len(turns) < whole
        dropped += not turns
    assert found_in(source) == wanted_of(tokenizer, wanted)
    assert cut > 3 and dropped >= 1
    assert f"data main: {cut} chats lost their oldest turns to fit a row" in data.describe(
        source, 2
    )
    assert source.manifest["skipped"] == {"longer than a row by its last turn alone": dropped}


def test_what_is_too_long_is_cut_or_dropped_and_told(tokenizer, tmp_path):
    chats = talks(30, longest=6)
    cut, _ = chats_of(tmp_path, tokenizer, chats, LENGTH, too_long="cut")
    drop, _ = chats_of(tmp_path, tokenizer, chats, LENGTH, too_long="drop")
    whole = wanted_of(tokenizer, chats)
    short = [(ids, mask) for ids, mask in whole if len(ids) <= LENGTH + 1]
    assert found_in(drop) == short
    kept = [(ids[: LENGTH + 1], mask[: LENGTH + 1]) for ids, mask in whole]
    left = [(ids, mask) for ids, mask in kept if any(mask)]
    assert found_in(cut) == sorted(left)
    over = len(whole) - len(short)
    assert over > 3 and cut.cut == over - (len(kept) - len(left))
    assert f"data main: {over} of 30 examples left out: longer than a row" in data.describe(drop, 2)
    assert any(f"{cut.cut} of 30 examples are cut" in line for line in data.describe(cut, 2))


def test_a_chat_with_nothing_to_learn_is_left_out_and_told(tokenizer, tmp_path):
    asked = [{"role": "user", "content": "only a question"}]
    late = [{"role": "user", "content": "q" * 400}, {"role": "assistant", "content": "never"}]
    source, _ = chats_of(tmp_path, tokenizer, [asked, late, talks()[0]], 400, too_long="cut")
    assert found_in(source) == wanted_of(tokenizer, [talks()[0]])
    assert source.left_out == {"no token to learn (data.loss_on=answers)": 2}
    with pytest.raises(ConfigError, match=r"no example.*2 no token to learn"):
        chats_of(tmp_path, tokenizer, [asked, late], 400, too_long="cut")


BAD = {
    "unknown role": {"messages": [{"role": "asistant", "content": "a"}]},
    "field is not a list": {"messages": "hello"},
    "no messages": {"messages": []},
    "missing field": {"conversations": []},
    "field is not an object": {"messages": ["hello"]},
    "content is not text": {"messages": [{"role": "user", "content": None}]},
    "empty message": {"messages": [{"role": "user", "content": " "}]},
}
SAID = {"unknown role": "Did you mean 'assistant'", "missing field": "looks like shape='sharegpt'"}


@pytest.mark.parametrize("why", BAD)
def test_a_chat_that_is_none_is_told_with_file_and_line(why, tokenizer, tmp_path):
    good = {"messages": talks()[0]}
    path = write(tmp_path / "a.jsonl", [good, BAD[why], good])
    fields = {"template": "chatml", "validation_fraction": 0.0}
    config = config_of(path, "chats", "chat", 512, **fields)
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {why}.*{SAID.get(why, '')}"):
        opened(config, tmp_path, tokenizer=tokenizer)
    config.bad_input = "skip"
    source = opened(config, tmp_path, tokenizer=tokenizer)
    assert source.examples == 2 and source.manifest["skipped"] == {why: 1}


def test_what_the_template_refuses_is_told_with_file_and_line(tokenizer, tmp_path):
    twice = [{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match=r"chats\.jsonl:2: chat that the template refuses.*turns"):
        chats_of(tmp_path, tokenizer, [talks()[0], twice], template="mistral")
    source, _ = chats_of(
        tmp_path, tokenizer, [talks()[0], twice], template="mistral", bad_input="skip"
    )
    assert source.manifest["skipped"] == {"chat that the template refuses": 1}
    broken = tmp_path / "broken.jinja"
    broken.write_text("{% for %}")
    with pytest.raises(DataError, match=r"cannot be used: it is no Jinja"):  # of all: never skipped
        chats_of(tmp_path, tokenizer, talks(2), template=str(broken), bad_input="skip")


def test_records_of_every_shape_are_the_same_chats(tokenizer, tmp_path):
    asked, said = "name a colour", "blue"
    shapes = {
        "sharegpt": {
            "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]
        },
        "alpaca": {"instruction": asked, "input": "", "output": said},
        "prompt": {"prompt": asked, "response": said},
    }
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
    mine = {
        "dialog": [
            {"who": role, "what": m["content"]}
            for role, m in zip(("me", "bot"), messages, strict=True)
        ]
    }
    own = {
        "fields": ("messages=dialog", "role=who", "content=what"),
        "roles": ("me=user", "bot=assistant"),
    }
    cases = [(row, {"shape": shape}) for shape, row in shapes.items()] + [(mine, own)]
    for row, options in cases:
        path = write(tmp_path / "a.jsonl", [row])
        fields = {"template": "chatml", "validation_fraction": 0.0}
        config = config_of(path, "chats", "chat", 64, source=options, **fields)
        source = opened(config, tmp_path, tokenizer=tokenizer)
        assert found_in(source) == wanted_of(tokenizer, [messages]), options
    more = {**shapes["alpaca"], "input": "a warm one"}
    path = write(tmp_path / "b.jsonl", [more])
    config = config_of(path, "chats", "chat", 64, source={"shape": "alpaca"}, **fields)
    messages[0]["content"] += "\n\na warm one"
    assert found_in(opened(config, tmp_path, tokenizer=tokenizer)) == wanted_of(
        tokenizer, [messages]
    )


def test_rows_are_a_function_of_seed_and_number_on_any_hosts(tokenizer, tmp_path):
    source, config = chats_of(tmp_path, tokenizer, talks(200), 128)
    for step in (0, 3, 50):
        whole = source(step)
        parts = [source(step, slice(2 * h, 2 * h + 2)) for h in range(4)]
        for name, value in whole.items():
            assert np.array_equal(np.concatenate([part[name] for part in parts]), value)
    before = data.record(source, config, 0)
    config.loss_on = "last"
    again = opened(config, tmp_path, tokenizer=tokenizer)
    (line,) = data.differences(before, data.record(again, config, 0))[1:]
    assert line.split() == ["loss_on", "answers", "last"]


def test_the_template_goes_with_the_tokenizer(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"(?s)no chat template came.*template=chatml"):
        chats_of(tmp_path, tokenizer, talks(2), template="own")
    (tmp_path / "hf").mkdir()
    (content,) = tokenizer._files.values()
    (tmp_path / "hf" / "tokenizer.json").write_bytes(content)
    named = {"chat_template": PLAIN, "eos_token": "</s>"}
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(named))
    theirs = tokenizers.make({"kind": "hf", "path": str(tmp_path / "hf")}, None)
    tokenizers.save(tmp_path / "run" / "tokenizer", theirs)
    again = tokenizers.make({"kind": "saved", "path": str(tmp_path / "run")}, None)
    assert again.template.text == PLAIN and again.template.specials["eos_token"] == "</s>"
    source, _ = chats_of(tmp_path, again, talks(3), template="own")
    assert found_in(source) == wanted_of(tokenizer, talks(3))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(loss_on="anwers"), "Did you mean 'answers'"),
        (dict(too_long="turn"), "Try --config.data.too_long=turns"),
        (dict(template="chatlm"), "Did you mean 'chatml'"),
        (dict(source={"shape": "sharegbt"}), "Did you mean 'sharegpt'"),
        (dict(source={"roles": ("bot",)}), "as in roles=('bot=assistant',)"),
        (dict(source={"fields": ("mesages=x",)}), "none of messages, role, content"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(changes, words, tokenizer, tmp_path):
    with pytest.raises(ConfigError) as error:
        chats_of(tmp_path, tokenizer, talks(2), **changes)
    assert words in str(error.value)
