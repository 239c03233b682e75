"""Preparing shards: split exactly, written once and whole, checked when opened."""

import json
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from jaxllm import data, tokenizers
from jaxllm.config import ConfigError
from jaxllm.data import DataError, build, shards
from tests.data_helpers import BYTES, data_config, open_source, text_config


def shard_sets(directory):
    return [path for path in directory.iterdir() if not path.name.endswith(".lock")]


def stored(directory, split):
    """All ids of a split of the one shard set in a directory."""
    (path,) = shard_sets(directory)
    manifest = shards.read_manifest(path)
    parts = manifest["splits"][split]["shards"]
    return np.concatenate([np.fromfile(path / part["file"], manifest["dtype"]) for part in parts])


def test_shakespeare_splits_as_nanogpt_splits_it(tmp_path):
    config = data_config(sources={"main": {"kind": "shakespeare"}})
    tokenizer = tokenizers.make({"kind": "char"}, data.texts(config))
    manifest = data.prepare(config, tokenizer, tmp_path)["main"]
    counts = [manifest["splits"][split]["characters"] for split in ("train", "validation")]
    assert counts == [1_003_854, 111_540]  # karpathy/nanoGPT, data/shakespeare_char/readme.md
    text = next(data.texts(config)())
    assert tokenizer.decode(stored(tmp_path, "train")) == text[:1_003_854]
    assert tokenizer.decode(stored(tmp_path, "validation")) == text[1_003_854:]
    assert manifest["dtype"] == "<u2"
    assert manifest["splits"]["train"]["largest_id"] == 64


def test_documents_go_whole_to_one_split_by_their_content(tmp_path):
    config = data_config(sources={"main": {"kind": "synthetic", "documents": 400}})
    documents = list(data.texts(config)())
    manifest = data.prepare(config, BYTES, tmp_path)["main"]
    held = BYTES.decode(stored(tmp_path, "validation")).splitlines(keepends=True)
    assert 20 <= manifest["splits"]["validation"]["documents"] == len(held) <= 60
    assert held == [d for d in documents if d in held]
    # Reversed order and a missing half move no document to the other split.
    half = [data.Document(d, "") for d in reversed(documents[::2])]
    again = {text: split for text, split, _ in build.split_documents(half, 0.1, "auto")}
    for document, split in again.items():
        assert split == ("validation" if document in held else "train")


def test_every_document_ends_with_the_end_token(tmp_path):
    (tmp_path / "a.txt").write_text("first é")
    (tmp_path / "b.txt").write_text("second")
    source = open_source(
        text_config(tmp_path, validation_fraction=0.0, length=4), tmp_path / "shards"
    )
    ids = stored(tmp_path / "shards", "train")
    assert ids.tolist() == [*b"first \xc3\xa9", BYTES.eos, *b"second", BYTES.eos]
    assert source.bytes_per_token == 14 / 16


def test_tail_cuts_each_document(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 10)
    config = text_config(tmp_path, validation_fraction=0.2, length=4)
    config.sources.main.split = "tail"
    data.prepare(config, BYTES, tmp_path / "shards")
    assert BYTES.decode(stored(tmp_path / "shards", "train")) == "a" * 8 + "b" * 8 + "c" * 8
    assert BYTES.decode(stored(tmp_path / "shards", "validation")) == "aabbcc"


def test_an_empty_validation_split_says_what_to_do(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 100)
    config = text_config(tmp_path, validation_fraction=1e-9)
    with pytest.raises(ConfigError, match=r"has\s+0 tokens|0 tokens.*\n.*split=\"tail\""):
        open_source(config, tmp_path / "shards", "validation")


def test_a_long_document_in_pieces_is_the_same_text():
    text = "".join(f"line {i}\n" for i in range(1_000)) + "x" * 500
    cut = list(build.pieces(text, 100))
    assert "".join(cut) == text
    assert max(map(len, cut)) <= 100
    assert all(piece.endswith("\n") for piece in cut[:70])


def test_prepared_once_and_anew_when_anything_changes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text " * 50)
    root = tmp_path / "shards"
    config = text_config(path)
    data.prepare(config, BYTES, root)
    (first,) = shard_sets(root)
    before = (first / "manifest.json").stat().st_mtime_ns
    data.prepare(config, BYTES, root)
    assert (first / "manifest.json").stat().st_mtime_ns == before
    config.validation_fraction = 0.2
    data.prepare(config, BYTES, root)
    path.write_text("other text " * 50)
    with pytest.raises(DataError, match="not prepared"):
        data.open_split(config, BYTES, root, "train", 0)
    data.prepare(config, BYTES, root)
    assert len(shard_sets(root)) == 3


def test_another_tokenizer_is_refused(tmp_path):
    config = data_config()
    data.prepare(config, BYTES, tmp_path)
    other = tokenizers.make({"kind": "char"}, data.texts(config))
    with pytest.raises(DataError, match=r"not prepared .* with this tokenizer"):
        data.open_split(config, other, tmp_path, "train", 0)


def test_a_shard_set_moved_under_another_key_is_refused(tmp_path):
    config = data_config()
    data.prepare(config, BYTES, tmp_path)
    (path,) = shard_sets(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["tokenizer"] = "0" * 64
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="made with another tokenizer"):
        data.open_split(config, BYTES, tmp_path, "train", 0)


@pytest.mark.parametrize("name", ["train-00000.bin", "train.offsets.npy", "manifest.json"])
def test_a_shard_cut_short_is_an_error(tmp_path, name):
    config = data_config()
    data.prepare(config, BYTES, tmp_path)
    (path,) = shard_sets(tmp_path)
    os.truncate(path / name, (path / name).stat().st_size - 8)
    with pytest.raises(DataError, match=name):
        data.open_split(config, BYTES, tmp_path, "train", 0)
    with pytest.raises(DataError, match=name):
        data.prepare(config, BYTES, tmp_path)


def test_offsets_of_another_shard_set_are_an_error(tmp_path):
    config = data_config()
    data.prepare(config, BYTES, tmp_path)
    (path,) = shard_sets(tmp_path)
    np.save(path / "train.offsets.npy", np.zeros(3, np.int64))
    with pytest.raises(DataError, match=r"holds \(3,\) offsets"):
        data.open_split(config, BYTES, tmp_path, "train", 0)


def test_a_flipped_bit_is_found_by_verifying(tmp_path):
    config = data_config()
    data.prepare(config, BYTES, tmp_path)
    (path,) = shard_sets(tmp_path)
    data.open_split(config, BYTES, tmp_path, "train", 0, verify=True)
    shard = path / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    with pytest.raises(DataError, match=r"train-00000.bin has changed"):
        data.open_split(config, BYTES, tmp_path, "train", 0, verify=True)


class WrongIds:
    """A tokenizer that breaks its promise."""

    kind, vocab_size, eos, fingerprint = "wrong", 10, -1, "0"

    def __init__(self, largest):
        self._largest = largest

    def encode(self, text):
        del text
        return np.array([0, self._largest], np.int64)


@pytest.mark.parametrize("wrong", [10, -1, 70_000])
def test_ids_outside_the_vocabulary_never_reach_a_shard(tmp_path, wrong):
    with pytest.raises(DataError, match=f"synthetic:0: .* id {wrong}, outside"):
        data.prepare(data_config(), WrongIds(wrong), tmp_path)
    assert shard_sets(tmp_path) == []


def test_an_unknown_character_names_its_document(tmp_path):
    (tmp_path / "a.txt").write_text("ab" * 50 + "\nabc")
    tokenizer = tokenizers.make({"kind": "char"}, lambda: iter(["ab\n"]))
    with pytest.raises(DataError, match=r"a\.txt:1: Character 'c' .* line 2, column 3"):
        data.prepare(text_config(tmp_path, validation_fraction=0.0), tokenizer, tmp_path / "s")


def test_what_was_skipped_is_counted_in_the_manifest(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "good"}\n{"txt": "bad"}\n{"text": 1}\n{"text": 2}\n'
    )
    sources = {"main": {"kind": "jsonl", "path": str(tmp_path)}}
    config = data_config(sources=sources, bad_input="skip")
    manifest = data.prepare(config, BYTES, tmp_path / "shards")["main"]
    assert manifest["skipped"] == {"missing field": 1, "field is not text": 2}
    assert "a.jsonl:2" in manifest["skipped_examples"]["missing field"]


def test_nothing_but_bad_input_is_an_error_even_when_skipping(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"no text at all.*undecodable"):
        data.prepare(text_config(tmp_path / "a.txt", bad_input="skip"), BYTES, tmp_path / "s")


PREPARE = """
import sys
from jaxllm import data
from tests.data_helpers import BYTES, data_config
sources = {"main": {"kind": "synthetic", "documents": 30_000}}
print("ready", flush=True)
data.prepare(data_config(sources=sources), BYTES, sys.argv[1])
"""


def test_a_killed_prepare_leaves_nothing_half(tmp_path):
    command = [sys.executable, "-c", PREPARE, str(tmp_path)]
    root = pathlib.Path(__file__).parents[1]
    for delay_s in (0.05, 0.3, 0.6):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root)
        child.stdout.readline()
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert [p for p in shard_sets(tmp_path) if not p.name.startswith(".")] == []
    config = data_config(sources={"main": {"kind": "synthetic", "documents": 30_000}})
    source = open_source(config, tmp_path)
    assert source.manifest["splits"]["train"]["documents"] > 26_000
    assert len(shard_sets(tmp_path)) == 1  # what the killed ones left is gone


def _prepare(directory, done):
    config = data_config(sources={"main": {"kind": "synthetic", "documents": 2_000}})
    before = time.monotonic()
    data.prepare(config, BYTES, directory)
    (path,) = [p for p in shard_sets(directory) if not p.name.startswith(".")]
    done.put((time.monotonic() - before, (path / "manifest.json").stat().st_ino))


def test_of_several_processes_one_writes(tmp_path):
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    children = [context.Process(target=_prepare, args=(tmp_path, done)) for _ in range(3)]
    for child in children:
        child.start()
    results = [done.get(timeout=60) for _ in children]
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert len({inode for _, inode in results}) == 1
    assert len(shard_sets(tmp_path)) == 1
