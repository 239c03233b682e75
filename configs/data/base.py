"""Every setting of jaxllm.prepare, with its unit; a corpus changes a few."""

from ml_collections import ConfigDict


def get_config(arg=None):
    """A corpus of all text there is, cleaned with care for nothing but its form."""
    del arg
    c = ConfigDict()
    c.workers = 2  # processes, or tasks at once on a cluster
    c.executor = dict(kind="local")  # local, ray, slurm: jaxllm.corpus.executors
    c.shard_mb = 8.0  # millions of characters that a task works on; the corpus is the same
    c.bad_input = "skip"  # error, or skip: what cannot be read is counted and left out
    # {name: source}; jaxllm.data.SOURCES has the kinds.
    c.sources = ConfigDict()

    # form: NFC, NFKC, …, "" for as it is; runs: spaces in a row within a line become one.
    c.standardise = dict(form="NFC", mojibake=True, spaces=True, runs=False)
    # keep: ISO 639 codes, () for all; threshold: least score; thresholds: {language: its own}.
    c.language = dict(on=True, keep=("en",), threshold=0.5, thresholds=dict())
    # {name: rule}; jaxllm.corpus.quality.RULES has the kinds; on: whether it is applied.
    c.quality = ConfigDict()
    c.quality.gopher = dict(kind="gopher_quality")
    c.quality.repetition = dict(kind="gopher_repetition")
    # near: by MinHash of `ngram` words, bands x rows; similarity: least part of them in common.
    c.duplicates = dict(exact=True, near=True, ngram=5, bands=16, rows=7, similarity=0.65)
    # Pieces that are in more documents than this are taken out of all; 0: off.
    c.boilerplate = dict(lines=0, paragraphs=0)
    # Evaluation sets; a document with more than `most` of their n-grams of words is dropped.
    c.decontaminate = dict(sources=dict(), ngram=13, most=0)
    # off, mask or drop, where personal data is found; sources: {source: its own policy}.
    # entities: names by a model as well, such as ("PERSON", "LOCATION"); slow.
    c.privacy = dict(policy="mask", sources=dict(), entities=(), model="en_core_web_sm")
    c.tokenizer = dict(kind="sentencepiece", vocab_size=32_000)  # jaxllm.tokenizers
    # Of the data card; licence is that of the text.
    c.card = dict(title="", licence="", notes="")
    c.splits = dict(validation=0.01, test=0.01)  # part of the documents, by a hash of their text
    return c
