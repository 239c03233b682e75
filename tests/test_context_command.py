"""Prompts by flags: examples and documents, what is left out is told, what is wrong is refused."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags

from jaxllm import tokenizers
from jaxllm.config import ConfigError
from jaxllm.context import command, records

DEFAULTS = dict(
    template="", instruction="", examples="", shots=4, select="random", retrieve="", index="",
    embed="", passages=8, passage_tokens=96, search="exact", seed=0,
)  # fmt: skip


class Letters:
    """An embedding that can be worked out by hand: how often each letter is there."""

    room, name = 512, "letters"
    tokenizer = tokenizers.make({"kind": "byte"}, lambda: iter([]))

    def __call__(self, texts):
        return np.array([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts])


def asked(**fields):
    return SimpleNamespace(**{**DEFAULTS, **fields})


def made(question, embedder=None, room=4096, **fields):
    f = asked(**fields)
    assert command.wanted(f)
    return command.make_prompts(f, [question], Letters.tokenizer, room, embedder)[0]


@pytest.fixture(name="examples")
def examples_file(tmp_path):
    pairs = [("aaa", "A"), ("bbb", "B"), ("aab", "A"), ("zzz", "B"), ("zzy", "B"), ("xyz", "B")]
    lines = [json.dumps({"input": x, "output": y}) for x, y in pairs]
    file = tmp_path / "examples.jsonl"
    file.write_text("\n".join([lines[0], "", *lines[1:]]))  # an empty line counts as a line
    return str(file)


def test_flags_have_the_defaults_that_the_functions_expect():
    known = set(DEFAULTS) - {"seed"}
    before = set(flags.FLAGS)
    if not known <= before:  # of a command that another test has not defined yet
        command.define_flags()
    values = {name: flags.FLAGS[name].default for name in known}
    assert values == {name: DEFAULTS[name] for name in known}
    for name in known - before:
        delattr(flags.FLAGS, name)


def test_nothing_is_asked_for_by_default():
    assert not command.wanted(asked())
    assert command.wanted(asked(template="question"))


def test_a_template_alone_frames_what_is_typed(tmp_path):
    assert made("Why?", template="question") == ("Question: Why?\nAnswer:", [])
    own = tmp_path / "own.jinja"
    own.write_text("{{ instruction }}|{{ query.input }}")
    assert made("Why?", template=str(own), instruction="Say")[0] == "Say|Why?"


def test_the_nearest_examples_stand_next_to_the_question(examples):
    fields = dict(examples=examples, shots=2, select="nearest", embed="run", template="arrow")
    text, sources = made("aaab", Letters(), **fields)
    assert text == "aaa => A\n\naab => A\n\naaab =>"
    assert [source["line"] for source in sources] == [1, 4]


def test_balanced_examples_have_each_label_alike(examples):
    for seed in range(5):
        _, sources = made("q", examples=examples, shots=4, select="balanced", seed=seed)
        assert sum(source["line"] in (1, 4) for source in sources) == 2


def test_random_examples_go_by_the_seed_and_the_question(examples):
    def lines(seed, questions=("q",)):
        f = asked(examples=examples, shots=3, seed=seed)
        found = command.make_prompts(f, questions, Letters.tokenizer, 4096)
        return [tuple(source["line"] for source in sources) for _, sources in found]

    assert lines(0) == lines(0)
    assert len({lines(seed)[0] for seed in range(9)}) > 3
    assert len(set(lines(0, ["q"] * 9))) > 3


def test_examples_that_do_not_fit_are_left_out_and_it_is_said(examples, capsys):
    whole, _ = made("q", examples=examples, shots=3)
    room = len(Letters.tokenizer.encode(whole))
    text, sources = made("q", room=room - 1, examples=examples, shots=3)
    assert whole.endswith(text) and len(sources) == 2
    assert sources == made("q", examples=examples, shots=3)[1][1:]
    assert "2 of 3 examples fit" in capsys.readouterr().err


def test_documents_answer_with_their_sources(tmp_path, capsys):
    folder, place = tmp_path / "docs", tmp_path / "index"
    folder.mkdir()
    (folder / "a.txt").write_text("Zebras graze.\n\nBees buzz by the hives.")
    (folder / "b.txt").write_text("Mmm.")
    fields = dict(retrieve=str(folder), index=str(place), embed="run", passage_tokens=24)

    def ask():
        return made("buzz hives bees", Letters(), **fields, passages=2)

    text, sources = ask()
    assert sources[0] | {"score": 0} == dict(number=1, source="a.txt", line=3, score=0)
    assert [source["number"] for source in sources] == [1, 2]
    assert "[1] a.txt, line 3:\nBees buzz by the hives." in text
    assert text.endswith("Question: buzz hives bees\nAnswer:")
    assert "2 files embedded, 0 kept" in capsys.readouterr().err
    assert ask() == (text, sources) and "0 files embedded, 2 kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    "fields, says",
    [
        (dict(retrieve="d"), "--index=index"),
        (dict(retrieve="d", index="i"), "--embed=WORKDIR"),
        (dict(retrieve="d", index="i", embed="e", examples="x"), "does not go with --examples"),
        (dict(retrieve="d", index="i", embed="e", instruction="x"), "--instruction"),
        (dict(examples="x", select="nearest"), "--select=random"),
        (dict(examples="x", embed="e"), "--embed is for"),
        (dict(index="i"), "--index is for"),
    ],
)
def test_flags_that_lack_one_another_are_refused(fields, says):
    with pytest.raises(ConfigError, match=says):
        command.wanted(asked(**fields))


@pytest.mark.parametrize(
    "content, says",
    [
        (b'{"input": "a", "output": "b"}\n[1]\n', "line 2: it needs an object"),
        (b'{"input": \n', "line 1"),
        (b"\xff\xfe", "decode"),
        (b"\n\n", "holds no example"),
        (b"[" * 100_000, "line 1"),
    ],
)
def test_a_file_that_is_none_of_examples_is_refused_with_its_line(tmp_path, content, says):
    file = tmp_path / "examples.jsonl"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        records.read(file, "--examples")


def test_what_cannot_be_made_is_refused(examples, tmp_path):
    with pytest.raises(ConfigError, match="--shots=6"):
        made("q", examples=examples, shots=7)
    with pytest.raises(ConfigError, match="No such file"):
        made("q", examples=str(tmp_path / "none.jsonl"))
    with pytest.raises(ConfigError, match="Known names: plain"):
        made("q", template="nothing")
    with pytest.raises(ConfigError, match="fewer --tokens"):
        made("q", room=0, template="plain")
    (tmp_path / "empty").mkdir()
    fields = dict(retrieve=str(tmp_path / "empty"), index=str(tmp_path / "i"), embed="run")
    with pytest.raises(ConfigError, match="holds no text"):
        made("q", Letters(), **fields)
    with pytest.raises(ConfigError, match="--passage_tokens=512"):
        made("q", Letters(), **fields, passage_tokens=600)
