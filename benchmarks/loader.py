"""Tokens a second that one core reads, of plain windows and of packed documents.

.venv/bin/python benchmarks/loader.py [--tokens=200000000] [--length=2048] [--batch=64]

Rows by random access over a made-up shard set in /tmp, in the page cache; seconds are of CPU time,
so that other programs do not count. At least 100 million tokens/s are wanted of windows and 20
million of packed rows.
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np

from jaxllm import host
from jaxllm.data import ROWS, shards


def make_shards(directory, tokens, mean=600):
    """Writes documents of log-normal lengths and returns the manifest."""
    rng = np.random.default_rng(0)
    count = tokens // mean
    lengths = np.maximum(2, rng.lognormal(np.log(mean) - 0.5, 1.0, count)).astype(np.int64)
    parts = {}
    for split, n in (("train", count), ("validation", 10)):
        writer = shards.SplitWriter(directory, split, 1 << 16, shards.SHARD_TOKENS)
        for length in lengths[:n].tolist():
            writer.start_document()
            writer.write(rng.integers(0, 1 << 16, length, np.uint16), "made up")
        parts[split] = writer.close()
    manifest = {"format": shards.FORMAT, "splits": parts, "dtype": "<u2"}
    return manifest | {"shard_tokens": shards.SHARD_TOKENS, "validation_fraction": 0.1}


def rate(source, seconds=2.0):
    """Returns tokens a second of CPU time over steps in no order, the median of five stretches."""
    steps = np.random.default_rng(0).permutation(source.steps_per_epoch).tolist()
    found, at = [], 0
    for _ in range(5):
        begin, done = time.process_time(), 0
        while time.process_time() - begin < seconds / 5:
            source(steps[at % len(steps)])
            at, done = at + 1, done + 1
        found.append(done * source.batch * source.length / (time.process_time() - begin))
    return statistics.median(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=200_000_000)
    parser.add_argument("--length", type=int, default=2_048)
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    host.keep_freed_memory()  # as the train command does
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        manifest = make_shards(pathlib.Path(folder), arguments.tokens)
        part = manifest["splits"]["train"]
        print(f"{part['tokens']:,} tokens in {part['documents']:,} documents")
        for name, make in ROWS.items():
            begin = time.perf_counter()
            source = make(
                folder, manifest, "train", batch=arguments.batch, length=arguments.length, seed=0,
                name="main",
            )  # fmt: skip
            opened = time.perf_counter() - begin
            speed = rate(source) / 1e6
            print(
                f"{name:8} {speed:6.0f} million tokens/s, rows {source.efficiency:.2%} full, "
                f"opened in {opened:.2f} s"
            )


if __name__ == "__main__":
    main()
