"""Seconds from the command to the first step, with an empty and with a filled compilation cache.

.venv/bin/python benchmarks/startup.py [--rounds=3] [--config=configs/shakespeare_char.py]
"""

import argparse
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]


def first_step(config, workdir, cache):
    """Returns seconds until the line of the first step is printed; then kills the run."""
    command = [sys.executable, "-m", "jaxllm.train", f"--config={config}", f"--workdir={workdir}"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [*command, f"--config.runtime.compile_cache={cache}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step"):
            seconds = time.perf_counter() - begin
            process.kill()
            process.wait()
            return seconds
    raise SystemExit(f"the run ended with status {process.wait()} before its first step")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", default="configs/shakespeare_char.py")
    arguments = parser.parse_args()
    seconds = {"cold": [], "warm": []}
    for _ in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name in seconds:
                workdir = pathlib.Path(folder) / name
                seconds[name].append(first_step(arguments.config, workdir, f"{folder}/cache"))
    for name, values in seconds.items():
        listed = ", ".join(f"{value:.1f}" for value in values)
        print(f"{name}: first step after {statistics.median(values):.1f} s (of {listed})")


if __name__ == "__main__":
    main()
