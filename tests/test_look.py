"""A look at the first rows: what is marked is what is learned, in every kind of rows."""

import re

import numpy as np
import pytest

from jaxllm import data
from jaxllm.training import look
from tests import runs
from tests.data_helpers import BYTES, data_config
from tests.example_helpers import (
    SUMMARY,
    chat_tokenizer_of,
    config_of,
    opened,
    pair_rows,
    talks,
    write,
)

MARKED = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)


def shown(source, tokenizer=BYTES, rows=1, **how):
    return look.page(source, tokenizer, rows, **how)


def plain(text):
    """A page's text without the indentation of its lines."""
    return "\n".join(line[4:] if line.startswith("    ") else line for line in text.split("\n"))


def test_chats_are_shown_as_written_with_their_answers_marked(tmp_path):
    tokenizer = chat_tokenizer_of()
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "two\nlines"}]
    path = write(tmp_path / "a.jsonl", [{"messages": messages}])
    config = config_of(path, "chats", "chat", 64, template="chatml", validation_fraction=0.0)
    page = plain(shown(opened(config, tmp_path, tokenizer=tokenizer), tokenizer))
    wanted = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n[[two\nlines<|im_end|>]]\n‖"
    assert page.endswith(wanted)
    found = re.search(r"row 0: 1 document, (\d+) of 64 places, (\d+) learned", page)
    assert int(found[1]) > int(found[2]) > 2


@pytest.mark.parametrize("rows", ["completion", "pairs", "chat"])
def test_what_is_marked_is_what_counts(rows, tmp_path):
    tokenizer = chat_tokenizer_of() if rows == "chat" else BYTES
    if rows == "chat":
        path = write(tmp_path / "a.jsonl", [{"messages": m} for m in talks()])
        config = config_of(path, "chats", rows, 256, template="chatml")
    else:
        path = write(tmp_path / "a.jsonl", pair_rows())
        config = config_of(path, "pairs", rows, 64, source=SUMMARY)
    source = opened(config, tmp_path, tokenizer=tokenizer)
    batch = source.take(np.arange(4))
    learned = batch["targets"][batch["weight"] > 0]
    page = "".join(MARKED.findall(plain(shown(source, tokenizer, rows=4).split("\n", 1)[1])))
    said = page.replace("<eos>", "").replace("<|im_end|>", "")
    assert said == tokenizer.decode(learned) != ""
    ends = page.count("<eos>") + page.count("<|im_end|>")
    assert ends == np.isin(learned, [tokenizer.eos, *tokenizer.specials.values()]).sum() > 0


@pytest.mark.parametrize("rows", ["windows", "packed"])
def test_documents_are_shown_whole_with_their_ends(rows, tmp_path):
    config = data_config(rows=rows, length=200, batch=2)
    data.prepare(config, BYTES, tmp_path)
    source = data.open_split(config, BYTES, tmp_path, "train", 0, steps=1)
    batch = source.take(np.arange(1))
    body = plain(shown(source).split("\n", 2)[2])
    documents = body.split("‖")[:-1]
    assert len(documents) == batch["segment"].max()
    text = "".join(documents).replace("[[", "").replace("]]", "").replace("<eos>", "")
    real = batch["segment"][0] > 0
    last = batch["targets"][0][real][-1:] if batch["weight"][0][real][-1] else []
    if rows == "windows":  # a packed document's last token is a target alone
        assert text == BYTES.decode([*batch["tokens"][0][real], *last])
    assert "".join(MARKED.findall(body)).replace("<eos>", "") == BYTES.decode(
        batch["targets"][0][batch["weight"][0] > 0]
    )


@pytest.mark.parametrize(
    ("task", "label"), [("classify", "up|down"), ("regress", "[-0-9.]+"), ("tag", "[a-z ]+")]
)
def test_labels_are_shown(task, label, tmp_path):
    section = {"main": {"kind": "counting", "task": task, "count": 30}}
    config = data_config(sources=section, rows="examples", length=64)
    page = shown(opened(config, tmp_path))
    assert re.search(rf"‖ -> \[\[({label})\]\]$", page)


def test_an_answer_in_a_context_is_marked(tmp_path):
    section = {"main": {"kind": "counting", "task": "span", "count": 30}}
    config = data_config(sources=section, rows="examples", length=64)
    asked = re.search(r"after (\w+)\?<eos>(.*?)<eos>", shown(opened(config, tmp_path)))
    assert re.fullmatch(rf"{asked[1]} \[\[\w+\]\].*", asked[2])


def test_masked_tokens_are_shown_as_what_they_stand_for(tmp_path):
    config = data_config(length=64, transforms={"a": {"kind": "bert", "rate": 0.3}})
    data.prepare(config, BYTES, tmp_path)
    source = data.open_split(config, BYTES, tmp_path, "train", 0, steps=1, vocab=260)
    batch = source.take(np.arange(1))
    body = shown(source).split("\n", 2)[2]
    assert "".join(MARKED.findall(plain(body))) == BYTES.decode(
        batch["targets"][0][batch["weight"][0] > 0]
    )
    text = body.replace("[[", "").replace("]]", "").replace("‖", "").replace("<eos>", "")
    assert plain(text) == BYTES.decode(batch["targets"][0])


def test_a_text_cannot_steer_the_terminal_and_rows_may_be_short(tmp_path):
    evil = {"document": "\x1b[2J\u202etxt" + "d" * 900, "summary": "s" * 900}
    path = write(tmp_path / "a.jsonl", [evil])
    config = config_of(path, "pairs", "completion", 2048, source=SUMMARY, validation_fraction=0.0)
    source = opened(config, tmp_path)
    page = shown(source)
    assert "\x1b" not in page and "\u202e" not in page and r"\x1b[2J\u202etxt" in page
    assert len(page) > 1_800 and page.endswith("s<eos>]]‖")
    short = shown(source, short=True)
    assert len(short) < 800 and short.endswith("s<eos>]]‖")  # the beginning and the end of each
    colours = shown(source, colour=True)
    assert re.search(r"\x1b\[2msum: .*\x1b\[0m\x1b\[32ms+<eos>\x1b\[0m", colours, re.DOTALL)
    assert "[[" not in colours


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert not look.in_colour()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert look.in_colour()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not look.in_colour()


def test_a_look_trains_nothing(tmp_path, capsys):
    config = runs.config(file="configs/seq2seq.py:smoke")
    assert look.show(config, tmp_path, 3) == 0
    said = capsys.readouterr().out
    assert [f"row {n}:" in said for n in range(4)] == [True, True, True, False]
    assert "rows of the run" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "tokenizer"]
