"""Kinds of examples: a row holds what the file says; what is no example is told or counted."""

import gzip
import json
import pickle

import numpy as np
import pytest

from jaxllm import config as configs
from jaxllm import data, tokenizers
from jaxllm.config import ConfigError
from jaxllm.data import DataError
from jaxllm.data.errors import BadInput
from tests.data_helpers import BYTES
from tests.example_helpers import config_of, opened, words, write

EOS, BOS = BYTES.eos, BYTES.bos


def source_of(kind, path, **options):
    return configs.make(
        data.SOURCES, {"kind": kind, "path": str(path), **options}, "data.sources.a"
    )


def every(source):
    """All rows of a source, in order."""
    return source.in_order(np.arange(source.epoch_rows))


def test_a_class_is_a_number_in_the_order_of_its_names(tmp_path):
    rng = np.random.default_rng(0)
    names = ["spam", "ham", "eggs"]
    rows = [{"text": words(rng, 3, 20), "label": names[i % 3]} for i in range(30)]
    path = write(tmp_path / "a.jsonl", rows)
    for given, order in (((), sorted(names)), (tuple(names), names)):
        config = config_of(
            path, "labelled", "examples", source={"classes": given}, validation_fraction=0.0
        )
        source = opened(config, tmp_path)
        assert data.classes(source) == tuple(order)
        found = {}
        for tokens, segment, label in zip(
            *(every(source)[n] for n in ("tokens", "segment", "label")), strict=True
        ):
            found.setdefault(tuple(tokens[segment > 0].tolist()), set()).add(order[label])
        for row in rows:
            assert row["label"] in found[(BOS, *BYTES.encode(row["text"]).tolist(), EOS)]


def test_two_texts_have_types_and_the_longer_is_cut(tmp_path):
    rows = [{"a": "first", "b": "second text", "y": 1}, {"a": "x" * 40, "b": "y" * 5, "y": 0}]
    path = write(tmp_path / "a.jsonl", rows)
    options = {"text": "a", "second": "b", "label": "y"}
    config = config_of(
        path, "labelled", "examples", length=24, source=options, validation_fraction=0.0
    )
    source = opened(config, tmp_path)
    batch, ids = every(source), BYTES.encode
    assert source.cut == 1 and data.classes(source) == ("0", "1")
    want = [BOS, *ids("first"), EOS, *ids("second text"), EOS]
    assert batch["tokens"][0, : len(want)].tolist() == want
    assert batch["type"][0].tolist() == [0] * 7 + [1] * 12 + [0] * 5
    assert batch["tokens"][1].tolist() == [BOS, *ids("x" * 16), EOS, *ids("y" * 5), EOS]
    assert batch["label"].tolist() == [1, 0] and batch["weight"].tolist() == [1, 1]
    assert batch["segment"].sum(axis=1).tolist() == [19, 24]


def test_bert_marks_are_those_of_the_tokenizer(tmp_path):
    texts = lambda: iter(["one two three four five six"] * 9)  # noqa: E731
    special = ("[CLS]", "[SEP]", "[MASK]")
    bert = tokenizers.make({"kind": "hf", "vocab_size": 275, "specials": special}, texts)
    path = write(tmp_path / "a.jsonl", [{"text": "one two", "label": "x"}])
    config = config_of(path, "labelled", "examples", validation_fraction=0.0)
    source = opened(config, tmp_path, tokenizer=bert)
    row = every(source)["tokens"][0]
    n = len(bert.encode("one two")) + 2
    assert row[0] == bert.specials["[CLS]"] and row[n - 1] == bert.specials["[SEP]"]
    assert bert.decode(row[1 : n - 1]) == "one two"


def test_numbers_stay_what_they_are(tmp_path):
    rows = [{"text": f"text {i}", "label": i / 7 - 1} for i in range(9)]
    path = write(tmp_path / "a.jsonl", rows)
    config = config_of(path, "scored", "examples", validation_fraction=0.0)
    batch = every(opened(config, tmp_path))
    assert batch["label"].dtype == np.float32
    for tokens, label in zip(batch["tokens"], batch["label"], strict=True):
        text = BYTES.decode(tokens[1:])
        assert label == np.float32(int(text.rstrip("\0")[5:]) / 7 - 1)


def test_a_tag_stands_at_the_first_token_of_its_word(tmp_path):
    rows = [
        {"tokens": ["Ada", "Lovelace", "är", "här"], "tags": ["B-PER", "I-PER", "O", "O"]},
        {"tokens": ["Paris"], "tags": ["B-LOC"]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    texts = lambda: iter(["Ada Lovelace är här Paris"] * 9)  # noqa: E731
    makers = {"byte": {}, "hf": {"vocab_size": 270}, "sentencepiece": {"vocab_size": 290}}
    for kind, options in makers.items():
        tokenizer = tokenizers.make({"kind": kind, **options}, texts)
        config = config_of(path, "tagged", "examples", length=48, validation_fraction=0.0)
        source = opened(config, tmp_path / kind, tokenizer=tokenizer)
        names, batch = data.classes(source), every(source)
        assert names == ("B-LOC", "B-PER", "I-PER", "O")
        for row, want in zip(range(2), rows, strict=True):
            here = np.flatnonzero(batch["weight"][row])
            assert [names[i] for i in batch["targets"][row, here]] == want["tags"]
            edges = [*here.tolist(), int(batch["segment"][row].sum()) - 1]
            for a, b, word in zip(edges[:-1], edges[1:], want["tokens"], strict=True):
                ids = batch["tokens"][row, a:b]
                assert tokenizer.decode(ids).strip() == word, kind


CONTEXT = "The quick brown fox jumps over the lazy dög and then it sleeps until the next morning."


@pytest.mark.parametrize("kind", ["byte", "hf", "sentencepiece"])
def test_an_answer_is_where_its_characters_are_in_every_row_that_has_it_whole(kind, tmp_path):
    rows = []
    for word in ("fox", "dög", "morning", "The"):
        at = {"text": [word], "answer_start": [CONTEXT.index(word)]}
        rows.append({"question": f"where is {word}?", "context": CONTEXT, "answers": at})
    rows.append(
        {"question": "who?", "context": "nobody", "answers": {"text": [], "answer_start": []}}
    )
    path = write(tmp_path / "a.jsonl", rows)
    options = {} if kind == "byte" else {"vocab_size": 275 if kind == "hf" else 305}
    tokenizer = tokenizers.make({"kind": kind, **options}, lambda: iter([CONTEXT] * 9))
    config = config_of(
        path, "answers", "examples", length=64 if kind == "byte" else 32,
        source={"overlap": 8}, validation_fraction=0.0,
    )  # fmt: skip
    source = opened(config, tmp_path, tokenizer=tokenizer)
    batch, seen = every(source), {}
    assert source.epoch_rows > len(rows) and source.cut == 0
    for k, (_, pieces) in enumerate(
        zip(batch["tokens"], source.where_in_order(np.arange(source.epoch_rows)), strict=True)
    ):
        first, last = batch["span"][k].tolist()
        (piece,) = pieces
        if first:
            document, ids = source.stretch(k, first, last)
            assert document == piece.document
            seen.setdefault(document, set()).add(tokenizer.decode(ids).strip())
            assert np.array_equal(ids, batch["tokens"][k, first : last + 1])
    words_found = sorted(word for found in seen.values() for word in found)
    assert words_found == sorted(["fox", "dög", "morning", "The"])
    assert source.stretch(0, 0, 0)[1].size == 0  # the first mark is no answer


def test_csv_parquet_and_packed_files_give_the_same_rows(tmp_path):
    arrow, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))

    rows = [
        {"text": f'a "b", {i}\nc', "label": "xy"[i % 2], "source": "uv"[i % 2]} for i in range(9)
    ]
    write(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    lines = ["text,label,source"]
    lines += ['"' + r["text"].replace('"', '""') + f'",{r["label"]},{r["source"]}' for r in rows]
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    want = [(r["text"], r["label"]) for r in rows]
    for name in ("a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"):
        source = source_of("labelled", tmp_path / name)
        found = [(e.parts[0].content, e.label) for e in source.examples()]
        assert found == want, name
        some = source_of("labelled", tmp_path / name, where="source=v")
        assert [e.label for e in some.examples()] == ["y"] * 4
        assert source.describe() != some.describe()
        again = pickle.loads(pickle.dumps(source.only(*source.paths)))
        assert [(e.parts[0].content, e.label) for e in again.examples()] == want
        json.dumps(source.describe())


GOOD = {
    "pairs": {"input": "a", "target": "b"},
    "labelled": {"text": "a", "label": "b"},
    "scored": {"text": "a", "label": 1.5},
    "tagged": {"tokens": ["a", "b"], "tags": ["O", "X"]},
    "answers": {"question": "q", "context": "abc", "answers": {"text": ["b"], "answer_start": [1]}},
}
BAD = [
    ("pairs", {"input": "a"}, "missing field"),
    ("pairs", {"input": "a", "target": ""}, "empty text"),
    ("pairs", {"input": ["a"], "target": "b"}, "field is not text"),
    ("pairs", {"input": "a", "target": "\ud800"}, "undecodable bytes"),
    ("labelled", {"text": "a", "label": 0.5}, "label is no class"),
    ("labelled", {"text": "a", "label": None}, "label is no class"),
    ("labelled", {"text": "a", "label": ""}, "label is no class"),
    ("scored", {"text": "a", "label": "high"}, "label is no number"),
    ("scored", {"text": "a", "label": "nan"}, "label is no number"),
    ("scored", {"text": "a", "label": True}, "label is no number"),
    ("scored", {"text": "a", "label": 10**400}, "label is no number"),
    ("tagged", {"tokens": ["a"], "tags": ["O", "O"]}, "uneven row"),
    ("tagged", {"tokens": "a", "tags": ["O"]}, "field is not a list"),
    ("tagged", {"tokens": [], "tags": []}, "empty text"),
    ("tagged", {"tokens": ["a", None], "tags": ["O", "O"]}, "tag is no text"),
    ("answers", {**GOOD["answers"], "answers": {"text": ["b"], "answer_start": [2]}}, "answer"),
    ("answers", {**GOOD["answers"], "answers": {"text": ["b"], "answer_start": ["x"]}}, "answer"),
    ("answers", {**GOOD["answers"], "answers": {"text": ["b"], "answer_start": []}}, "uneven row"),
    ("answers", {**GOOD["answers"], "answers": ["b"]}, "field is not an object"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "reason"), BAD)
def test_what_is_no_example_names_its_line_or_is_counted(kind, row, reason, tmp_path):
    path = write(tmp_path / "a.jsonl", [GOOD[kind], row, GOOD[kind]])
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {reason}"):
        list(source_of(kind, path).examples())
    bad = BadInput("skip")
    assert len(list(source_of(kind, path).examples(bad))) == 2
    (told,) = bad.counts
    assert told.startswith(reason) and bad.counts[told] == 1
    rows = "pairs" if kind == "pairs" else "examples"
    config = config_of(path, kind, rows, bad_input="skip", validation_fraction=0.0)
    manifest = data.prepare(config, BYTES, tmp_path)["main"]
    assert manifest["skipped"] == {told: 1} and manifest["splits"]["train"]["documents"] == 2


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"input": "\xff"}', b"\n"])
def test_lines_that_are_no_rows_are_told(content, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"input": "a", "target": "b"}\n' + content + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2"):
        list(source_of("pairs", path).examples())


def test_a_class_that_is_not_named_is_bad_input(tmp_path):
    rows = [{"text": "a", "label": "ham"}, {"text": "b", "label": "spma"}]
    config = config_of(
        write(tmp_path / "a.jsonl", rows), "labelled", "examples",
        source={"classes": ("ham", "spam")}, validation_fraction=0.0,
    )  # fmt: skip
    with pytest.raises(DataError, match=r"a\.jsonl:2: unknown class.*Did you mean 'spam'"):
        data.prepare(config, BYTES, tmp_path)
    config.bad_input = "skip"
    assert data.prepare(config, BYTES, tmp_path)["main"]["skipped"] == {"unknown class": 1}


def test_sources_with_other_classes_are_refused(tmp_path):
    one = write(tmp_path / "1.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    two = write(tmp_path / "2.jsonl", [{"text": "a", "label": "x"}])
    config = config_of(one, "labelled", "examples", validation_fraction=0.0)
    config.sources = {n: {"kind": "labelled", "path": p} for n, p in (("a", one), ("b", two))}
    with pytest.raises(DataError, match=r"classes=\('x', 'y'\)"):
        opened(config, tmp_path)
    config.sources.b = {"kind": "scored", "path": two}
    with pytest.raises(ConfigError, match="not all for the same task"):
        data.check(config)


@pytest.mark.parametrize("name", ["train.parts.npy", "train.label.npy"])
def test_damaged_labels_are_noticed(name, tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "ab", "label": "x"}] * 3)
    config = config_of(path, "labelled", "examples", validation_fraction=0.0)
    opened(config, tmp_path)
    (file,) = tmp_path.glob(f"main-*/{name}")
    array = np.load(file)
    array.flat[-1] += 1
    np.save(file, array)
    data.open_split(config, BYTES, tmp_path, "train", 0)
    with pytest.raises(DataError, match=f"{name} has changed"):
        data.open_split(config, BYTES, tmp_path, "train", 0, verify=True)
    np.save(file, array[:-1])
    with pytest.raises(DataError, match=f"{name} holds"):
        data.open_split(config, BYTES, tmp_path, "train", 0)


def test_examples_of_one_text_go_to_one_split(tmp_path):
    rows = [{"document": f"text {i // 4}", "summary": f"s{i}"} for i in range(160)]
    path = write(tmp_path / "a.jsonl", rows)
    fields = {"input": "document", "target": "summary"}
    config = config_of(path, "pairs", "pairs", source=fields, validation_fraction=0.3)
    texts = {}
    for split in ("train", "validation"):
        source = opened(config, tmp_path, split)
        texts[split] = {tuple(source.sides(e)[0].tolist()) for e in range(source.examples)}
        assert source.examples % 4 == 0 and source.examples
    assert not texts["train"] & texts["validation"]
