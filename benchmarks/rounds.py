"""Two sides of a comparison, each a process of its own that waits while the other runs."""

import ctypes
import gc
import json
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]


def serve(step, tokens, seconds, about, every=4):
    """A worker: for each line on standard input, runs for `seconds` and prints tokens/s.

    Args:
        step: function without arguments that starts one step and returns its loss.
        tokens: of a step.
        seconds: of a round.
        about: {name: number} that is printed once it is warm; "first_loss" is added.
        every: steps between two looks at the clock.
    """
    losses = [float(step()) for _ in range(3)]
    print(json.dumps(about | {"first_loss": losses[0]}), flush=True)
    for _ in sys.stdin:
        before = settle()
        steps, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            for _ in range(every):
                loss = step()
            float(loss)  # waits for the device
            steps += every
        speed = steps * tokens / (time.perf_counter() - begin)
        print(json.dumps([speed, status("VmHWM"), before]), flush=True)


def settle():
    """Gives freed memory back, sets the peak to what is resident now, and returns that: bytes."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name):
    """Bytes that /proc/self/status names: "VmRSS" now, "VmHWM" at most."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class Worker:
    """A process that serves.

    Args:
        arguments: of the command line after the interpreter.

    Attributes:
        about: what it printed once it was warm.
    """

    def __init__(self, *arguments):
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{arguments[0]} ended before it was warm; see above")
        self.about = json.loads(line)

    def round(self):
        """Returns (tokens/s, bytes at most, bytes before) of one round."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self):
        """Ends it."""
        self._process.stdin.close()
        self._process.wait()


def alternate(ours, theirs, rounds):
    """Runs rounds in turn.

    Returns:
        (our speed, theirs, sorted ratios, our and their (lowest, highest) peaks of a round: bytes).
        A step that begins before the last gave its scratch back has a peak higher by that.
    """
    pairs = [(ours.round(), theirs.round()) for _ in range(rounds)]
    for worker in (ours, theirs):
        worker.close()
    mine, other = (statistics.median(one[0] for one in c) for c in zip(*pairs, strict=True))
    bytes_of = [[one[1] for one in column] for column in zip(*pairs, strict=True)]
    peaks = [(min(column), max(column)) for column in bytes_of]
    return mine, other, sorted(a[0] / b[0] for a, b in pairs), peaks
