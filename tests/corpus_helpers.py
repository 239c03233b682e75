"""Made-up corpora for tests."""

import json
import random

from jaxllm import settings
from jaxllm.corpus import passes
from jaxllm.prepare import KINDS

WORDS = [a + b + c for a in ("ba", "ke", "lo", "mi") for b in ("ra", "tu", "ne") for c in "lmnst"]


def text(draw, words=80):
    """A document of made-up words, some of them English ones that the filters ask for."""
    picked = [draw.choice([*WORDS, "the", "and", "of"]) for _ in range(words)]
    picked[:3] = ["the", "end", "of"]
    for i in range(9, words, 10):
        picked[i] += "."
    return " ".join(picked)


def near(draw, document, every=50):
    """A copy with one word in so many changed."""
    words = document.split(" ")
    for i in draw.sample(range(len(words)), max(1, round(len(words) / every))):
        words[i] = f"zq{draw.randrange(10**6)}"
    return " ".join(words)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def config(path, **fields):
    """A config of configs/data/text.py; "__" stands for dots."""
    given = {
        "sources.main.path": path,
        "workers": 1,
        "language.on": "false",
        "standardise.mojibake": "false",
        "tokenizer.kind": "byte",
        "splits.validation": 0.1,
        "splits.test": 0.1,
    }
    given |= {name.replace("__", "."): value for name, value in fields.items()}
    pairs = [(name, str(value)) for name, value in given.items()]
    return settings.load("configs/data/text.py", pairs, KINDS)[0]


def make(tmp_path, texts, name="corpus", **fields):
    """(Corpus that has run, its manifest)."""
    source = write(tmp_path / "texts.jsonl", texts) if texts else tmp_path / "texts.jsonl"
    corpus = passes.Corpus(config(source, **fields), tmp_path / name)
    return corpus, corpus.run()


def documents(count=60, seed=0):
    draw = random.Random(seed)
    return [text(draw) for _ in range(count)]
