"""Trained tokenizers: lossless, the same in every process, special tokens out of reach of text."""

import json
import os
import pathlib
import subprocess
import sys
import unittest.mock

import numpy as np
import pytest
import tokenizers as hf_library
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxllm import tokenizers
from jaxllm.config import ConfigError
from jaxllm.corpus import documents, tokenizer_page
from jaxllm.data import DataError
from jaxllm.data.sources import SHAKESPEARE
from jaxllm.tokenizers import TokenizerError, hf_train, report

SPECIALS = ("<|im_start|>", "<|im_end|>", "</s>", "a, b", "and")
LINE = "The quick brown fox, 12345 years old, isn't and wasn't here.\n\n\t東京 <|im_start|> "
TEXTS = [LINE * 5] * 20 + ["<0x41> ##a ▁b"] * 9 + SHAKESPEARE.read_text()[:30_000].split("\n\n")
OPTIONS = {
    "byte_bpe": dict(kind="hf", algorithm="byte_bpe", vocab_size=380),
    "bpe": dict(kind="hf", algorithm="bpe", vocab_size=400),
    "unigram": dict(kind="hf", algorithm="unigram", vocab_size=340),
    "wordpiece": dict(kind="hf", algorithm="wordpiece", vocab_size=620),
    "sentencepiece": dict(kind="sentencepiece", vocab_size=400),
}
NAMES = list(OPTIONS)
ROOT = pathlib.Path(__file__).parents[1]


def train(name, **options):
    section = OPTIONS[name] | {"specials": SPECIALS} | options
    return tokenizers.make(section, lambda: iter(TEXTS))


@pytest.fixture(scope="module")
def trained():
    return {name: train(name) for name in NAMES}


WILD = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(list("ab 019\n\r\t\0\x01\x7f\x85\u0301\u200d\u2028▁▂😀\ufffd#<>'")),
        st.sampled_from([*SPECIALS, "<0x41>", "##a", "▁and", "\r\n", "isn'T", "١٢٣٤", "क्षि"]),
    ),
    max_size=12,
).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=120, deadline=None)
@given(text=WILD)
@example(" lead and trail \n ")
@example("\u0301\u0301 e\u0301")
@example("👩\u200d👩\u200d👧 🏳️\u200d🌈")
@example("".join(map(chr, range(0x20))) + "\x7f\x80\x9f\ufeff\uffff")
@example("<|im_start|></s><s><pad><unk><0xE2><0x96><0x81> ##ing ▁▁ ▂ Ġthe Ċ")
def test_any_text_survives_and_makes_no_special_token(trained, name, text):
    tokenizer = trained[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids.tolist()) & set(tokenizer.specials.values())
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [" " * 20_000 + "x", "a" * 20_000, "\n" * 5_000, "1" * 5_000])
def test_long_runs_survive(trained, name, text):
    assert trained[name].decode(trained[name].encode(text)) == text


@pytest.mark.parametrize("name", NAMES)
def test_special_tokens_are_one_id_each(trained, name):
    tokenizer = trained[name]
    assert set(tokenizer.specials) == {"<s>", "</s>", "<pad>", *SPECIALS}
    named = [tokenizer.specials[token] for token in ("</s>", "<s>", "<pad>")]
    assert named == [tokenizer.eos, tokenizer.bos, tokenizer.pad]
    ids = list(tokenizer.specials.values())
    assert len(set(ids)) == len(ids)
    kinds = [piece.kind for piece in tokenizer.pieces()]
    assert sorted(ids) == [i for i, kind in enumerate(kinds) if kind == "special"]
    assert tokenizer.decode([ids[0], *tokenizer.encode("fox"), ids[-1]]) == "fox"


@pytest.mark.parametrize("name", NAMES)
def test_the_vocabulary_has_the_size_asked_for(trained, name):
    tokenizer = trained[name]
    assert tokenizer.vocab_size == OPTIONS[name]["vocab_size"] == len(tokenizer.pieces())
    for text in TEXTS[:3]:  # and it is learned: bytes alone would be as many as bytes
        assert len(tokenizer.encode(text)) < 0.6 * len(text.encode())


@pytest.mark.parametrize("name", NAMES)
def test_stored_and_loaded_is_the_same(trained, name, tmp_path):
    trained[name].save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded.fingerprint == trained[name].fingerprint
    assert loaded.specials == trained[name].specials
    assert loaded.encode(LINE).tolist() == trained[name].encode(LINE).tolist()


PROGRAM = """
import json, sys
from tests.test_tokenizer_training import NAMES, train
print(json.dumps({name: train(name).fingerprint for name in NAMES}))
"""


@pytest.mark.parametrize("seed, threads, parallel", [("1", "1", "false"), ("2", "5", "true")])
def test_every_process_trains_the_same(trained, seed, threads, parallel):
    more = dict(PYTHONHASHSEED=seed, RAYON_NUM_THREADS=threads, TOKENIZERS_PARALLELISM=parallel)
    child = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **more},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found = json.loads(child.stdout.splitlines()[-1])
    assert found == {name: trained[name].fingerprint for name in NAMES}


def test_a_chosen_end_token_may_be_among_the_specials():
    tokenizer = train("byte_bpe", eos="<|im_end|>", bos="<|im_start|>")
    assert tokenizer.eos == tokenizer.specials["<|im_end|>"]
    assert "<s>" not in tokenizer.specials
    assert tokenizer.vocab_size == 380


@pytest.mark.parametrize("digits, most", [(3, 3), (1, 1), (0, 5)])
def test_digits_stand_together_as_asked(digits, most):
    pieces = train("byte_bpe", digits=digits, vocab_size=600).pieces()
    lengths = [len(piece.text.strip()) for piece in pieces if piece.text.strip().isdigit()]
    assert max(lengths) == most


@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_that_cannot_be_says_which_can(name):
    with pytest.raises(ConfigError, match=r"vocab_size=\d+"):
        train(name, vocab_size=90_000)
    with pytest.raises(ConfigError, match=r"vocab_size=\d+"):
        train(name, vocab_size=100)


def test_a_size_that_an_error_names_works():
    with pytest.raises(ConfigError, match="too large for these texts") as error:
        train("byte_bpe", vocab_size=90_000)
    size = int(str(error.value).rpartition("vocab_size=")[2].rstrip("."))
    assert train("byte_bpe", vocab_size=size).vocab_size == size


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(algorithm="bytebpe"), "Known: byte_bpe, bpe, unigram, wordpiece"),
        (dict(specials=("",)), "no name of a token"),
        (dict(specials=(3,)), "no name of a token"),
        (dict(specials=("a",)), "is a piece of text as well"),
        (dict(specials=("x",), path="tokenizer.json"), "Leave specials out"),
        (dict(digits=-1), "digits=-1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        train("byte_bpe", **options)


@pytest.mark.parametrize("name", NAMES)
def test_no_texts_are_an_error(name):
    with pytest.raises(ConfigError):
        tokenizers.make(OPTIONS[name], lambda: iter([]))


DOCUMENTS = [("ab ba", "en", "one"), ("é", "fr", "two"), ("b  a\n", "en", "three")]


def test_a_report_counts_as_by_hand():
    """The byte tokenizer: a token a byte; é takes two, which are bytes of no whole character."""
    found = report.compare({"byte": tokenizers.make({"kind": "byte"}, None)}, DOCUMENTS)["byte"]
    assert found.languages["en"] == report.Sums(2, 10, 10, 10, 4)
    assert found.languages["fr"] == report.Sums(1, 2, 1, 2, 1)
    assert found.total == report.Sums(3, 12, 11, 12, 5)
    assert found.total.rates["characters_per_token"] == pytest.approx(11 / 12)
    assert found.total.rates["bytes_per_token"] == 1
    assert found.total.rates["fertility"] == pytest.approx(12 / 5)
    assert found.byte == pytest.approx(2 / 12)
    assert found.unknown == 0
    assert found.unused == pytest.approx((256 - 6) / 256)  # a, b, space, newline and é's two
    assert (found.exact, found.failed, found.changed) == (3, 0, [])


def test_a_report_says_what_cannot_be_encoded():
    tokenizer = tokenizers.make({"kind": "char"}, lambda: iter(["ab c\n"]))
    found = report.compare({"char": tokenizer}, DOCUMENTS)["char"]
    assert (found.exact, found.failed, found.changed) == (2, 1, ["two"])
    assert found.total == report.Sums(2, 10, 10, 10, 4)
    assert found.unused == pytest.approx(1 / 5)  # c


def test_a_report_says_what_is_lost():
    class Lossy(type(tokenizers.make({"kind": "byte"}, None))):
        def encode(self, text):
            return super().encode(text.replace("  ", " "))

    found = report.compare({"lossy": Lossy()}, DOCUMENTS)["lossy"]
    assert (found.exact, found.changed) == (2, ["three"])


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_what_ids_decode_to(trained, name):
    tokenizer = trained[name]
    for i, piece in enumerate(tokenizer.pieces()):
        if piece.kind == "text":
            assert tokenizer.decode([i]) == piece.text
        elif piece.kind == "special":
            assert tokenizer.decode([i]) == ""


@pytest.mark.parametrize("name", ["bpe", "sentencepiece"])
def test_bytes_of_rare_characters_are_counted(trained, name):
    found = report.compare({"x": trained[name]}, [("😀fox", "", "one")])["x"]
    assert found.byte == pytest.approx(4 / found.total.tokens)


def test_unknown_tokens_of_a_file_are_counted(tmp_path):
    model = hf_library.models.WordLevel({"<unk>": 0, "a": 1, "c": 2}, unk_token="<unk>")
    library = hf_library.Tokenizer(model)
    library.pre_tokenizer = hf_library.pre_tokenizers.WhitespaceSplit()
    library.add_special_tokens(["<unk>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizers.make({"kind": "hf", "path": str(tmp_path)}, None)
    found = report.compare({"x": tokenizer}, [("a b b", "", "one")])["x"]
    assert found.unknown == pytest.approx(2 / 3)
    assert found.unused == pytest.approx(1 / 3)
    assert found.changed == ["one"]


def test_unigram_has_all_bytes_where_sentencepiece_leaves_some_out(monkeypatch):
    """As it does in long texts, where a share of all but a few rounds to 1."""
    whole = hf_train._train_unigram
    monkeypatch.setattr(
        hf_train,
        "_train_unigram",
        lambda counts, size: [piece for piece in whole(counts, size) if piece[0] not in "xyz"],
    )
    tokenizer = train("unigram")
    assert tokenizer.vocab_size == OPTIONS["unigram"]["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("xyz Zyx")) == "xyz Zyx"


def test_longest_pieces_come_longest_first(trained):
    longest = report.compare({"x": trained["byte_bpe"]}, DOCUMENTS)["x"].longest
    assert len(longest) == report.LONGEST
    assert [len(piece) for piece in longest] == sorted(map(len, longest), reverse=True)
    assert len(longest[0]) == max(
        len(piece.text) for piece in trained["byte_bpe"].pieces() if piece.kind == "text"
    )


@pytest.fixture
def saved(trained, tmp_path):
    for name in ("byte_bpe", "sentencepiece"):
        trained[name].save(tmp_path / name)
    lines = [{"text": text, "lang": language} for text, language, _ in DOCUMENTS]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_saved_tokenizers_stand_side_by_side(saved):
    directories = f"{saved / 'byte_bpe'},{saved / 'sentencepiece'}"
    found = list(tokenizer_page.of_files(str(saved / "a.jsonl")))
    assert [one[:2] for one in found] == [one[:2] for one in DOCUMENTS]
    text = tokenizer_page.compare(directories, found)
    assert "restored exactly" in text
    assert "\n  fr " in text
    data = json.loads(tokenizer_page.compare(directories, found, as_json=True))
    assert [one["exact"] for one in data.values()] == [3, 3]
    assert {one["bytes"] for one in data.values()} == {12}
    assert next(iter(data.values()))["languages"]["en"]["words"] == 4


def test_the_command_compares(saved):
    command = [sys.executable, "-m", "jaxllm.prepare", "--json"]
    command += [f"--compare-tokenizers={saved / 'byte_bpe'}", f"--documents={saved / 'a.jsonl'}"]
    child = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (data,) = json.loads(child.stdout).values()
    assert (data["documents"], data["exact"], data["vocab_size"]) == (3, 3, 380)


def test_a_corpus_is_read_with_its_languages(tmp_path):
    """Its stages are others' to test; here they are the documents that they leave."""
    corpus = unittest.mock.Mock(shards=["a-0", "a-1"], final=tmp_path)
    for i, name in enumerate(corpus.shards):
        notes = {"language": "fr"} if i else {}
        one = documents.Document(f"file:{i}", "a", f"text {i}", notes)
        documents.write(tmp_path / f"{name}.jsonl.zst", [one])
    found = list(tokenizer_page.of_corpus(corpus))
    assert found == [("text 0", "", "file:0"), ("text 1", "fr", "file:1")]


def test_what_cannot_be_compared_is_said(saved):
    with pytest.raises(TokenizerError, match="holds no tokenizer"):
        tokenizer_page.compare(str(saved), iter(()))
    with pytest.raises(ConfigError, match="each once"):
        tokenizer_page.compare(f"{saved},{saved}", iter(()))
    with pytest.raises(DataError, match="matches no files"):
        list(tokenizer_page.of_files(str(saved / "b.jsonl")))
    (saved / "a.jsonl").write_text('{"txt": "a"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: missing field"):
        list(tokenizer_page.of_files(str(saved / "a.jsonl")))


def test_no_documents_make_a_report_of_noughts(trained):
    found = report.compare({"x": trained["bpe"]}, iter(()))
    assert report.as_dict(found["x"])["bytes_per_token"] == 0
    assert "tokens" in report.as_text(found)
    assert np.isclose(found["x"].unused, 1)
