"""Tokenizers: lossless where they claim it, never crashing on ids, safe against files."""

import json
import shutil

import numpy as np
import pytest
import tokenizers as hf_library
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm import tokenizers
from jaxllm.config import ConfigError
from jaxllm.tokenizers import TokenizerError

TEXT = "First Citizen:\nBefore we proceed any further, hear me speak.\n\n\tAll:  Speak, speak! "
HARD = [
    "",
    " ",
    "\n\n x  \t",
    "😀 é e\u0301 東京",
    "\0\x01\x7f\u2028",
    "a▁b ▁▁",
    "<s></s><unk><0x41>",
]
KINDS = ["byte", "char", "bpe", "unigram", "hf"]


@pytest.fixture(scope="module")
def hf_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    model = hf_library.Tokenizer(hf_library.models.BPE())
    model.pre_tokenizer = hf_library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = hf_library.decoders.ByteLevel()
    alphabet = hf_library.pre_tokenizers.ByteLevel.alphabet()
    trainer = hf_library.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([TEXT], trainer)
    model.enable_truncation(4)  # as files in the wild have it: a document must not be cut
    model.enable_padding(length=50)
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def made(hf_file):
    def texts():
        return iter([TEXT * 20])

    def spm(algorithm, vocab_size):
        section = {"kind": "sentencepiece", "algorithm": algorithm, "vocab_size": vocab_size}
        return tokenizers.make(section, texts)

    return {
        "byte": tokenizers.make({"kind": "byte"}, texts),
        "char": tokenizers.make({"kind": "char", "eos": True}, lambda: iter([TEXT, *HARD])),
        "bpe": spm("bpe", 310),
        "unigram": spm("unigram", 295),
        "hf": tokenizers.make({"kind": "hf", "path": str(hf_file), "eos": "<end>"}, texts),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [TEXT, *HARD])
def test_what_goes_in_comes_out(made, kind, text):
    ids = made[kind].encode(text)
    assert ids.dtype == np.int32
    assert made[kind].decode(ids) == text


@pytest.mark.parametrize("kind", ["byte", "bpe", "hf"])
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40))
def test_any_text_survives(made, kind, text):
    tokenizer = made[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(ids=st.lists(st.integers(-(2**40), 2**40) | st.integers(0, 320), max_size=20))
def test_ids_of_an_untrained_model_can_be_shown(made, kind, ids):
    made[kind].decode(ids).encode()


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_give_no_text(made, kind):
    tokenizer = made[kind]
    ids = [*tokenizer.encode("Speak"), tokenizer.eos]
    assert tokenizer.eos >= 0
    assert tokenizer.decode(ids) == "Speak"


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_loaded_is_the_same(made, kind, tmp_path):
    made[kind].save(tmp_path)
    loaded = tokenizers.load(tmp_path)
    assert loaded.fingerprint == made[kind].fingerprint
    assert loaded.encode(TEXT).tolist() == made[kind].encode(TEXT).tolist()
    assert (loaded.eos, loaded.vocab_size) == (made[kind].eos, made[kind].vocab_size)


def test_fingerprints_tell_tokenizers_apart(made):
    other = tokenizers.make({"kind": "char"}, lambda: iter([TEXT]))
    assert len({t.fingerprint for t in [*made.values(), other]}) == len(made) + 1


def test_training_again_gives_the_same_tokenizer(made):
    section = {"kind": "sentencepiece", "algorithm": "unigram", "vocab_size": 295}
    again = tokenizers.make(section, lambda: iter([TEXT * 20]))
    assert again.fingerprint == made["unigram"].fingerprint


def test_a_changed_file_is_refused(made, tmp_path):
    made["bpe"].save(tmp_path)
    path = tmp_path / "sentencepiece.model"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="has changed since it was stored"):
        tokenizers.load(tmp_path)


def test_a_changed_setting_is_refused(made, tmp_path):
    made["char"].save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"eos": true', '"eos": false'))
    with pytest.raises(TokenizerError, match="has changed since it was stored"):
        tokenizers.load(tmp_path)


def test_no_tokenizer_is_said(tmp_path):
    with pytest.raises(TokenizerError, match="No tokenizer in"):
        tokenizers.load(tmp_path)


def test_an_unknown_character_is_named_with_its_place():
    tokenizer = tokenizers.make({"kind": "char"}, lambda: iter(["abc\n"]))
    with pytest.raises(TokenizerError, match=r"U\+00E9\) at line 2, column 3"):
        tokenizer.encode("abc\nabé")


@pytest.mark.parametrize("kind", KINDS)
def test_half_a_character_is_refused(made, kind):
    with pytest.raises(TokenizerError):
        made[kind].encode("a\ud800")


def test_special_tokens_in_documents_are_plain_text(made):
    tokenizer = made["hf"]
    assert tokenizer.eos not in tokenizer.encode("a <end> b")
    assert tokenizer.decode(tokenizer.encode("a <end> b")) == "a <end> b"


def test_special_tokens_are_found_beside_the_file(hf_file, tmp_path):
    shutil.copy(hf_file, tmp_path)
    record = {"eos_token": {"content": "<end>"}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(record))
    tokenizer = tokenizers.make({"kind": "hf", "path": str(tmp_path)}, None)
    assert (tokenizer.eos, tokenizer.bos, tokenizer.pad) == (0, -1, -1)


def test_a_special_token_that_is_not_there_is_refused(hf_file):
    with pytest.raises(ConfigError, match="Did you mean '<end>'"):
        tokenizers.make({"kind": "hf", "path": str(hf_file), "eos": "<ende>"}, None)


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": 3}', b"\xff\xfe", b"[" * 100_000])
@pytest.mark.parametrize("kind", ["hf", "sentencepiece"])
def test_a_hostile_file_is_an_error_and_no_crash(kind, content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be used|not parsed"):
        tokenizers.make({"kind": kind, "path": str(path)}, None)


def test_a_vocabulary_too_large_says_how_large_it_may_be():
    section = {"kind": "sentencepiece", "vocab_size": 50_000}
    with pytest.raises(ConfigError, match=r"vocab_size=50000.*<= \d+"):
        tokenizers.make(section, lambda: iter([TEXT]))


def test_a_wrong_option_names_the_near_one():
    with pytest.raises(ConfigError, match="Did you mean 'vocab_size'"):
        tokenizers.make({"kind": "sentencepiece", "vocabsize": 5}, lambda: iter([TEXT]))


LOCATED = "Größe 日本 naïve  two spaces\nline 😀 end"


@pytest.mark.parametrize(
    "section",
    [{"kind": "byte"}, {"kind": "char"}, {"kind": "sentencepiece", "vocab_size": 300},
     {"kind": "hf", "vocab_size": 275}],
)  # fmt: skip
def test_a_token_is_located_where_its_text_is(section):
    text = LOCATED if section["kind"] == "hf" else LOCATED + " \N{LOWER ONE EIGHTH BLOCK} x"
    # A character that was not seen is of several tokens where it can be.
    seen = text if section["kind"] == "char" else text.replace("😀", "")
    tokenizer = tokenizers.make(section, lambda: iter([seen] * 20))
    ids, places = tokenizer.locate(text)
    assert np.array_equal(ids, tokenizer.encode(text)) and places.shape == (len(ids), 2)
    covered = np.zeros(len(text), int)
    for i, (first, last) in zip(ids, places, strict=True):
        assert 0 <= first < last <= len(text)
        covered[first:last] += 1
        if "�" not in tokenizer.decode([i]):
            assert tokenizer.decode([i]).strip() == text[first:last].strip()
    assert covered.all()
    empty_ids, none = tokenizer.locate("")
    assert len(empty_ids) == 0 and none.shape == (0, 2)
