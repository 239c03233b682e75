"""Retrieval: all of a document in passages, only what changed embedded, sources that are true."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm import tokenizers
from jaxllm.config import ConfigError
from jaxllm.context import chunks, index, retrieval
from jaxllm.context.index import Passage
from tests.test_context import letters

TEXT = (
    "Apples grow on trees. They are red.\n\nBees make honey! Do they sleep? Yes (mostly.) "
    "A list:\n- one\n- two\n\n\n东京很大。人很多。 End"
)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.make({"kind": "byte"}, lambda: iter([]))


DOCUMENTS = st.lists(
    st.sampled_from(["a", "bee", "x" * 30, ". ", "! ", "\n\n", "\n- ", " ", "。", "東", "😀"]),
    max_size=60,
).map("".join)


@given(DOCUMENTS, st.integers(4, 60), st.integers(0, 30))
@settings(max_examples=150, deadline=None)
def test_passages_hold_all_of_a_text_and_fit(tokenizer, text, size, overlap):
    overlap = min(overlap, size - 1)
    found = chunks.cut(text, tokenizer, size, overlap)
    seen = np.zeros(len(text), bool)
    for chunk in found:
        assert chunk.text == text[chunk.start : chunk.end] == chunk.text.strip() != ""
        assert len(tokenizer.encode(chunk.text)) <= size
        seen[chunk.start : chunk.end] = True
    assert all(seen[i] or text[i].isspace() for i in range(len(text)))
    for one, other in itertools.pairwise(found):
        assert one.start < other.start and one.end < other.end
        shared = text[other.start : one.end]
        assert len(tokenizer.encode(shared)) <= overlap


def test_passages_end_where_sentences_do(tokenizer):
    found = [c.text for c in chunks.cut(TEXT, tokenizer, 40)]
    assert found[:3] == [
        "Apples grow on trees. They are red.",
        "Bees make honey! Do they sleep?",
        "Yes (mostly.) A list:\n- one\n- two",
    ]


def test_passages_overlap_by_whole_sentences(tokenizer):
    found = [c.text for c in chunks.cut("One. Two. Three. Four. Five.", tokenizer, 17, 8)]
    assert found == ["One. Two. Three.", "Three. Four.", "Four. Five."]


def test_a_long_word_is_cut_and_a_small_size_refused(tokenizer):
    assert [c.text for c in chunks.cut("aaaa bbbbbbbbb", tokenizer, 6)] == ["aaaa", "bbbbbb", "bbb"]
    with pytest.raises(ConfigError, match="Try size_tokens=4"):
        chunks.cut("a😀", tokenizer, 2)
    with pytest.raises(ConfigError, match="overlap_tokens=8 must be 0 or more, and below"):
        chunks.cut("a", tokenizer, 8, 8)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "documents"
    (place / "below").mkdir(parents=True)
    (place / "a.txt").write_text("Abba cabbage.\n\nDeed feed heed.\n")
    (place / "below" / "b.md").write_text("# Goop\n\nPoop moon\u2028noon. Jig kill lop.\n")
    (place / "c.py").write_text("ignored = True")
    return place


def refresh(folder, tokenizer, embed=letters, **more):
    settings = {"name": "letters", "size_tokens": 18, "overlap_tokens": 0, **more}
    return index.refresh(folder, folder.parent / "index", embed, tokenizer, **settings)


def test_a_question_finds_its_passage(folder, tokenizer):
    made = refresh(folder, tokenizer).index
    (best, *_) = made.search(letters, "feeding deeds", 2)
    assert (best.source, best.line, best.text) == ("a.txt", 3, "Deed feed heed.")
    text = (folder / best.source).read_text()
    assert text[best.start : best.end] == best.text and 0 < best.score <= 1 + 1e-6


def test_an_index_is_the_same_when_opened_again(folder, tokenizer):
    made = refresh(folder, tokenizer).index
    again = index.load(folder.parent / "index")
    assert again.passages == made.passages
    np.testing.assert_array_equal(again.vectors_ND, made.vectors_ND)


def test_only_what_changed_is_embedded(folder, tokenizer):
    seen = []

    def embed(texts):
        seen.extend(texts)
        return letters(texts)

    first = refresh(folder, tokenizer, embed)
    assert (first.embedded, first.kept, first.removed) == (2, 0, 0)
    seen.clear()
    again = refresh(folder, tokenizer, embed)
    assert (again.embedded, again.kept, again.removed) == (0, 2, 0) and not seen
    (folder / "a.txt").write_text("Changed.")
    (folder / "d.txt").write_text("New.")
    (folder / "below" / "b.md").unlink()
    third = refresh(folder, tokenizer, embed)
    assert (third.embedded, third.kept, third.removed) == (2, 0, 1)
    assert seen == ["Changed.", "New."]

    other = index.refresh(
        folder, folder.parent / "fresh", letters, tokenizer, name="letters",
        size_tokens=18, overlap_tokens=0,
    ).index  # fmt: skip
    assert third.index.passages == other.passages
    np.testing.assert_array_equal(third.index.vectors_ND, other.vectors_ND)


@pytest.mark.parametrize("more", [{"name": "other"}, {"size_tokens": 20}, {"overlap_tokens": 3}])
def test_other_settings_embed_all_anew(folder, tokenizer, more):
    refresh(folder, tokenizer)
    assert refresh(folder, tokenizer, **more).kept == 0


def test_what_cannot_be_read_is_listed(folder, tokenizer):
    (folder / "bad.txt").write_bytes(b"\xff\xfe")
    outside = folder.parent / "secret.txt"
    outside.write_text("secret")
    (folder / "link.txt").symlink_to(outside)
    found = refresh(folder, tokenizer)
    assert [name for name, _ in found.skipped] == ["bad.txt", "link.txt"]
    assert not any("secret" in p.text for p in found.index.passages)


@pytest.mark.parametrize("name", [index.MANIFEST, index.PASSAGES, index.VECTORS])
@pytest.mark.parametrize("damage", ["cut", "change", "remove"])
def test_a_damaged_index_is_refused(folder, tokenizer, name, damage):
    refresh(folder, tokenizer)
    path = folder.parent / "index" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.write_bytes(
            content.replace(b"a", b"b") if name != index.VECTORS else content[:-1] + b"!"
        )
    with pytest.raises(ConfigError, match=r"make\s+the index again"):
        index.load(folder.parent / "index")


def test_an_empty_folder_and_one_that_is_not_there(tmp_path, tokenizer):
    (tmp_path / "documents").mkdir()
    made = refresh(tmp_path / "documents", tokenizer).index
    assert made.search(letters, "a", 3) == [] and index.load(tmp_path / "index").passages == []
    with pytest.raises(ConfigError, match="is no folder"):
        refresh(tmp_path / "nowhere", tokenizer)


def test_an_index_of_another_function_is_told(folder, tokenizer):
    made = refresh(folder, tokenizer).index
    with pytest.raises(ConfigError, match="embeddings of 16 numbers, the query's has 2"):
        made.search(lambda texts: np.ones((len(texts), 2)), "a", 1)


def test_the_graph_finds_what_the_exact_search_does():
    pytest.importorskip("faiss")
    random = np.random.default_rng(0)
    vectors_ND = random.standard_normal((2_000, 8)).astype(np.float32)
    vectors_ND /= np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    passages = [Passage("a", i, i + 1, 1, str(i)) for i in range(2_000)]
    queries = {str(i): random.standard_normal(8) for i in range(20)}

    def embed(texts):
        return np.stack([queries[t] for t in texts])

    exact, graph = (index.Index(passages, vectors_ND, s) for s in index.SEARCHES)
    hits = 0
    for query in queries:
        wanted, found = exact.search(embed, query, 10), graph.search(embed, query, 10)
        hits += len({p.text for p in wanted} & {p.text for p in found})
        assert found[0].score == pytest.approx(wanted[0].score, abs=1e-5)
    assert hits >= 195  # of 200
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        index.Index(passages, vectors_ND, "exakt")


def test_a_prompt_stays_within_the_limit_and_names_its_sources(folder, tokenizer):
    made = refresh(folder, tokenizer).index
    whole = retrieval.ask(made, letters, tokenizer, "feed?", k=3, limit_tokens=2_000)
    assert len(whole.passages) == 3
    assert "[1] a.txt, line 3:\nDeed feed heed.\n\n[2] " in whole.text
    assert whole.text.endswith("Question: feed?\nAnswer:")
    assert whole.tokens == len(tokenizer.encode(whole.text))
    sizes = set()
    for limit in range(170, whole.tokens + 1):
        prompt = retrieval.ask(made, letters, tokenizer, "feed?", k=3, limit_tokens=limit)
        assert prompt.tokens == len(tokenizer.encode(prompt.text)) <= limit
        sizes.add(len(prompt.passages))
    assert sizes == {0, 1, 2, 3}
    with pytest.raises(ConfigError, match="tokens without passages, of 20 allowed"):
        retrieval.ask(made, letters, tokenizer, "feed?", limit_tokens=20)


def test_passages_that_say_the_same_are_in_once(tokenizer):
    passages = [
        Passage("a", 0, 10, 1, "first"),
        Passage("a", 2, 11, 1, "within it"),
        Passage("b", 2, 11, 1, "elsewhere"),
        Passage("a", 9, 30, 1, "next"),
    ]
    prompt = retrieval.assemble(tokenizer, "?", passages, 2_000)
    assert [p.text for p in prompt.passages] == ["first", "elsewhere", "next"]


def test_documents_are_no_templates(tokenizer):
    passage = Passage("a", 0, 1, 1, "{{ 7 * 7 }}")
    assert "{{ 7 * 7 }}" in retrieval.assemble(tokenizer, "{% x %}", [passage], 2_000).text


def test_sources_that_an_answer_names():
    passages = [Passage(name, 0, 1, 1, "") for name in "abc"]
    found, unknown = retrieval.cited("So [2], and [1, 3] and [2] [7] [x].", passages)
    assert ([p.source for p in found], unknown) == (["b", "a", "c"], [7])


def test_a_manifest_names_every_file(folder, tokenizer):
    refresh(folder, tokenizer)
    manifest = json.loads((folder.parent / "index" / index.MANIFEST).read_text())
    assert set(manifest["files"]) == {"a.txt", "below/b.md"}
