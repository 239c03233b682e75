"""The prefetch thread: in order, bounded, loud about errors, gone when closed."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxllm.data import Prefetch

ROOT = pathlib.Path(__file__).parents[1]


def threads():
    return [t for t in threading.enumerate() if t.name == "prefetch"]


def test_every_step_comes_once_and_in_order():
    with Prefetch(lambda step: step * step, 3, 50, depth=4) as batches:
        assert list(batches) == [(step, step * step) for step in range(3, 50)]
        assert list(batches) == []
    assert not threads()


def test_it_runs_ahead_but_not_without_bound():
    fetched = []
    with Prefetch(lambda step: fetched.append(step), 0, 1_000, depth=3) as batches:
        next(batches)
        deadline = time.monotonic() + 5
        while len(fetched) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.15)
        assert len(fetched) == 5  # one taken, three ready, one in hand
    assert not threads()


def test_an_error_comes_out_at_its_step():
    def fetch(step):
        if step == 2:
            raise OSError("disk gone")
        return step

    with Prefetch(fetch, 0, 10, depth=5) as batches:
        assert [next(batches), next(batches)] == [(0, 0), (1, 1)]
        with pytest.raises(OSError, match="disk gone") as error:
            next(batches)
        assert error.value.__notes__ == ["While fetching the batch of step 2."]
        assert list(batches) == []
    assert not threads()


def test_closing_early_ends_the_thread():
    batches = Prefetch(lambda step: step, 0, 10**9, depth=2)
    next(batches)
    batches.close()
    batches.close()
    assert not threads()
    assert list(batches) == []


def test_a_handler_may_close_it_while_the_consumer_waits():
    gate = threading.Event()
    batches = Prefetch(lambda step: gate.wait(), 0, 5, depth=1)

    def handler(*_):
        gate.set()
        batches.close()

    old = signal.signal(signal.SIGUSR1, handler)
    try:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        list(batches)
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert not threads()


FOREVER = """
import time
from jaxllm.data.prefetch import Prefetch
batches = Prefetch(lambda step: time.sleep(60), 0, 5, depth=1)
print("ready", flush=True)
{end}
"""


@pytest.mark.parametrize(("end", "code"), [("next(batches)", -signal.SIGTERM), ("", 0)])
def test_no_signal_and_no_exit_waits_for_it(end, code):
    command = [sys.executable, "-c", FOREVER.format(end=end)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    child.stdout.readline()
    if end:
        child.terminate()
    assert child.wait(timeout=10) == code
