"""Room at the start of every document: its places taken out, rows hold what they did without."""

import numpy as np
import pytest

from jaxllm import data
from jaxllm.config import ConfigError
from tests.data_helpers import BYTES, data_config
from tests.example_helpers import SUMMARY, chat_tokenizer_of, config_of, pair_rows, talks, write

LENGTH = 48


@pytest.fixture(scope="module")
def chat_tokenizer():
    return chat_tokenizer_of()


def configs(directory):
    """{kind of rows: config}."""
    texts = {"sources": {"main": {"kind": "synthetic", "documents": 60, "words": 14}}}
    pairs = write(directory / "pairs.jsonl", pair_rows(40))
    chats = write(directory / "chats.jsonl", [{"messages": m} for m in talks(12, longest=1)])
    found = {
        name: data_config(length=LENGTH, rows=name, validation_fraction=0.0, **texts)
        for name in ("windows", "packed")
    }
    for name in ("pairs", "completion", "together"):
        found[name] = config_of(
            pairs, "pairs", name, LENGTH, source=SUMMARY, validation_fraction=0.0, input_length=24
        )
    found["chat"] = config_of(
        chats, "chats", "chat", 160, template="chatml", validation_fraction=0.0
    )
    for task in ("classify", "tag", "span"):
        section = {"main": {"kind": "counting", "task": task, "count": 30}}
        found[task] = data_config(
            sources=section, rows="examples", length=LENGTH, validation_fraction=0.0
        )
    return found


KINDS = ("packed", "pairs", "completion", "together", "chat", "classify", "tag", "span")


def opened(config, tokenizer, directory, lead, steps=4):
    made = tokenizer if config.rows == "chat" else BYTES
    data.prepare(config, made, directory, lead=lead)
    return data.open_split(config, made, directory, "train", 0, steps=steps, lead=lead)


def taken_out(batch, lead):
    """[what its arrays hold without the lead's places] of every document.

    Asserts what the places are: `lead` at the start of each document, of token 0, not learned.
    """
    inputs = "inputs" in batch
    names = ("inputs", "inputs_position", "inputs_segment")
    tokens, position, segment = names if inputs else ("tokens", "position", "segment")
    sides = batch[tokens].shape[:-1]
    found = []
    for at in np.ndindex(sides):
        for number in range(1, batch[segment][at].max(initial=0) + 1):
            here = np.flatnonzero(batch[segment][at] == number)
            assert batch[position][at][here].tolist() == list(range(len(here)))
            assert not batch[tokens][at][here[:lead]].any() and len(here) > lead
            rest = here[lead:]
            one = [tuple(batch[tokens][at][rest].tolist())]
            if inputs:
                rest = np.flatnonzero(batch["segment"][at] == number)
                one.append(tuple(batch["tokens"][at][rest].tolist()))
            if batch["weight"].shape == batch["tokens"].shape:
                weight = batch["weight"][at]
                assert inputs or not weight[here[:lead]].any()
                real = weight[rest] > 0
                one += [tuple(real.tolist()), tuple(batch["targets"][at][rest][real].tolist())]
            if "label" in batch:
                one.append(int(batch["label"][at]))
            if "span" in batch:
                one.append(tuple((batch["span"][at] - lead).tolist()))
            found.append(tuple(one))
    return sorted(found)


@pytest.mark.parametrize("kind", KINDS)
def test_the_places_taken_out_rows_hold_the_same_documents(kind, chat_tokenizer, tmp_path):
    """Those of rows that are so much shorter, also where documents are cut."""
    for lead in (1, 5):
        config = configs(tmp_path)[kind]
        source, length = opened(config, chat_tokenizer, tmp_path, lead), config.length
        less = "input_length" if kind == "pairs" else "length"
        setattr(config, less, config[less] - lead)
        plain = opened(config, chat_tokenizer, tmp_path, 0)
        for epoch in (0, 1):
            n, m = (np.arange(s.train_rows) + epoch * s.train_rows for s in (plain, source))
            same = taken_out(source.take(m), lead) == taken_out(plain.take(n), 0)
            assert same  # not told apart: a difference of long lists takes minutes
        shapes = {name: x.shape for name, x in source.empty(3).items()}
        assert {name: x.shape for name, x in source.take(m[:3]).items()} == shapes
        assert shapes["tokens"][-1] == length


@pytest.mark.parametrize("kind", ["windows", "packed"])
@pytest.mark.parametrize("lead", [0, 1, 7, 30])
def test_every_token_but_the_first_of_a_document_is_a_target_once(
    kind, lead, chat_tokenizer, tmp_path
):
    config = configs(tmp_path)[kind]
    source = opened(config, chat_tokenizer, tmp_path, lead)
    (one,) = source.sources.values()
    stream, starts = one.ids(0, source.tokens), one._stream.starts
    wanted = np.bincount(np.delete(stream, starts), minlength=259)
    found = np.zeros(259, int)
    for batch in source.epoch(8):
        taken_out(batch, lead)
        real = batch["weight"] > 0
        found += np.bincount(batch["targets"][real], minlength=259)
        inside = real[:, :-1] & (batch["segment"][:, 1:] == batch["segment"][:, :-1])
        assert np.array_equal(batch["tokens"][:, 1:][inside], batch["targets"][:, :-1][inside])
    assert np.array_equal(found, wanted)
    # In training too, over an epoch (windows leave the ends of the split out).
    if kind == "packed":
        batch = source.take(np.arange(source.train_rows))
        counts = np.bincount(batch["targets"][batch["weight"] > 0], minlength=259)
        assert np.array_equal(counts, wanted)


def test_pieces_name_what_is_behind_the_lead(chat_tokenizer, tmp_path):
    for kind in ("windows", "packed"):
        source = opened(configs(tmp_path)[kind], chat_tokenizer, tmp_path, 3)
        batch = source(2)
        for row, (_, name, _, pieces) in enumerate(data.explain(source, 2)):
            assert len(pieces) == batch["segment"][row].max()
            for piece in pieces:
                here = slice(piece.column, piece.column + piece.tokens)
                ids = source.sources[name].ids(piece.start, piece.tokens)
                assert np.array_equal(batch["tokens"][row, here], ids)


def test_the_record_and_the_checks_know_of_it(chat_tokenizer, tmp_path):
    config = configs(tmp_path)["packed"]
    plain, source = (opened(config, chat_tokenizer, tmp_path, lead) for lead in (0, 4))
    before, now = (data.record(s, config, 0) for s in (plain, source))
    assert data.differences(before, now)[1].split() == ["lead", "none", "4"]
    with pytest.raises(ConfigError, match=r"no room for the 47 places.*\n  Try --config"):
        opened(config, chat_tokenizer, tmp_path, LENGTH - 1)
    config.transforms = {"a": {"kind": "bert"}}
    with pytest.raises(ConfigError, match="Leave the transforms out"):
        opened(config, chat_tokenizer, tmp_path, 4)


def test_chats_are_shortened_for_the_room_that_is_left(chat_tokenizer, tmp_path):
    chats = write(tmp_path / "chats.jsonl", [{"messages": m} for m in talks(30, longest=5)])
    config = config_of(chats, "chats", "chat", 120, template="chatml", validation_fraction=0.0)
    without = opened(config, chat_tokenizer, tmp_path, 0)
    source = opened(config, chat_tokenizer, tmp_path, 40)
    assert source.manifest["shortened"] > without.manifest["shortened"]
    batch = source.take(np.arange(source.train_rows))
    taken_out(batch, 40)
    assert not source.left_out


def test_a_curriculum_reads_rows_with_a_lead(chat_tokenizer, tmp_path):
    config = configs(tmp_path)["windows"]
    config.curriculum = {"kind": "length", "until": 0.5}
    source = opened(config, chat_tokenizer, tmp_path, 5, steps=20)
    taken_out(source(0), 5)
