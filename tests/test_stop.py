"""A signal ends the run in time in every phase, and a stuck run ends by itself."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxllm.training.stop import INTERRUPTED_STATUS, STUCK_STATUS, Stop, Watchdog
from tests.pair import finish, start_pair

PREAMBLE = """
import os, signal, sys, time
from jaxllm.training.stop import Stop, Watchdog

def say(*words):
    print(*words, flush=True)
"""


class Child:
    """A program in a process of its own that says when it is ready for a signal."""

    def __init__(self, program):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + program],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "XLA_FLAGS": ""},
        )
        self.seen = []

    def wait_for(self, word):
        for line in self.process.stdout:
            self.seen.append(line)
            if word in line:
                return
        raise AssertionError(f"ended without {word!r}: {self.seen}")

    def signal(self, number=signal.SIGTERM):
        self.signalled_s = time.monotonic()
        self.process.send_signal(number)

    def end(self):
        """Returns (status, seconds since the signal, output)."""
        try:
            rest, _ = self.process.communicate(timeout=30)
        finally:
            self.process.kill()
        seconds = time.monotonic() - self.signalled_s
        return self.process.returncode, seconds, "".join(self.seen) + rest


COMPILE = """
import jax, jax.numpy as jnp

def deep(x):
    for n in range(1500):
        x = jnp.sin(x @ x) + n
    return x

lowered = jax.jit(deep).lower(jnp.ones((8, 8)))
with Stop(2.0, 1.0, on_deadline=lambda: say("written"), report=say) as stop:
    with stop.phase("compile", patience_s=%s):
        say("compiling")
        lowered.compile()
    say("compiled")
    time.sleep(20)
"""


@pytest.mark.parametrize("patience_s, at_least_s", [("None", 0.9), ("0", 0.0)])
def test_a_signal_in_the_middle_of_a_long_compilation(patience_s, at_least_s):
    child = Child(COMPILE % patience_s)
    child.wait_for("compiling")
    time.sleep(0.3)
    child.signal()
    status, seconds, output = child.end()
    assert status == 0 and "written" in output and "got SIGTERM" in output, output
    assert "compiled" not in output, "the compilation was over before the deadline"
    assert at_least_s <= seconds < 2, seconds


STEPS = """
with Stop(5.0, 1.0, report=say) as stop:
    for step in range(10_000):
        if stop.agreed(step):
            break
        say("step", step)
        time.sleep(0.02)
    say("saved after", step, stop.reason)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_between_steps_lets_the_loop_save(name):
    child = Child(STEPS)
    child.wait_for("step 3")
    child.signal(getattr(signal, name))
    status, seconds, output = child.end()
    assert status == 0 and seconds < 2, output
    assert f"got {name}" in output.split("saved after")[1], output


def test_the_second_interrupt_leaves_at_once():
    program = """
with Stop(20.0, 1.0, report=say) as stop:
    say("ready")
    time.sleep(30)
"""
    child = Child(program)
    child.wait_for("ready")
    child.signal(signal.SIGINT)
    child.signal(signal.SIGINT)  # the same one, sent on by a launcher
    time.sleep(0.6)
    assert child.process.poll() is None
    child.signal(signal.SIGINT)
    status, seconds, output = child.end()
    assert status == INTERRUPTED_STATUS and seconds < 1, output


@pytest.mark.parametrize(
    "emergency, name, status",
    [
        ("time.sleep(30)", "SIGTERM", 1),
        ("1 / 0", "SIGTERM", 1),
        ("say('written')", "SIGTERM", 0),
        ("say('written')", "SIGINT", INTERRUPTED_STATUS),
    ],
)
def test_a_stuck_main_thread_is_left_behind(emergency, name, status):
    program = f"""
def leave():
    {emergency}
with Stop(1.0, 0.5, on_deadline=leave, report=say) as stop:
    say("ready")
    while True: pass
"""
    child = Child(program)
    child.wait_for("ready")
    child.signal(getattr(signal, name))
    got, seconds, output = child.end()
    assert got == status, output
    assert 0.4 < seconds < 1.6, (seconds, output)


@pytest.mark.parametrize("order", ["before", "after"])
def test_signals_are_heard_whether_jax_distributed_starts_before_or_after(order):
    """Its preemption service would swallow SIGTERM."""
    program = f"""
import socket, jax
def join():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % s.getsockname()[1]
    jax.distributed.initialize(
        address, num_processes=1, process_id=0, coordinator_bind_address=address)
order = {order!r}
if order == "before":
    join()
with Stop(3.0, 1.0, report=say) as stop:
    if order == "after":
        join()
    say("ready")
    while not stop.agreed():
        time.sleep(0.01)
    say("left")
"""
    child = Child(program)
    child.wait_for("ready")
    child.signal()
    status, seconds, output = child.end()
    assert status == 0 and "left" in output and seconds < 2, output


def test_handlers_are_given_back():
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    with Stop(60, 1, report=lambda _: None) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        assert stop.requested and stop.agreed()
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_forked_child_keeps_its_signals_to_itself():
    program = """
with Stop(60, 1, report=say) as stop:
    child = os.fork()
    if child == 0:
        time.sleep(20)
        os._exit(0)
    time.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    time.sleep(0.1)
    say("child", os.WTERMSIG(status), "requested", stop.requested)
"""
    child = Child(program)
    child.wait_for("child 15 requested False")
    child.process.wait(timeout=10)


AGREE = """
import numpy as np, jax.numpy as jnp
from jaxllm.training.stop import Stop
with Stop(20.0, 5.0, report=lambda text: print(text, flush=True)) as stop:
    join()
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.make_array_from_callback((2,), jax.NamedSharding(mesh, jax.P("data")),
        lambda i: np.arange(2, dtype=np.float32)[i])
    step_fn = jax.jit(lambda x: x + jnp.sum(x) * 1e-6)  # a collective: neither runs alone
    for step in range(1, 100_000):
        x = step_fn(x)
        if index == 1:
            time.sleep(0.004)  # the other dispatches ahead
        if step % 50 == 0:
            jax.block_until_ready(x)
            print("step", step, flush=True)
        if stop.agreed(step):
            break
    jax.block_until_ready(x)
    print("STOPPED", step, flush=True)
"""


@pytest.mark.parametrize("asked", [0, 1])
def test_two_processes_stop_at_the_same_step(tmp_path, asked):
    """One gets the signal; the faster one is ahead and may be waiting for the slower."""
    children = start_pair(AGREE, devices=1, place=tmp_path)
    deadline = time.monotonic() + 40
    while "step 50" not in (tmp_path / "out0").read_text():
        assert all(c.poll() is None for c in children) and time.monotonic() < deadline
        time.sleep(0.05)
    children[asked].send_signal(signal.SIGTERM)
    start = time.monotonic()
    statuses, outputs = finish(children, tmp_path, timeout_s=30)
    assert statuses == [0, 0], outputs
    assert time.monotonic() - start < 5, "nobody waited for a deadline"
    steps = [out.split("STOPPED")[1].split()[0] for out in outputs]
    assert steps[0] == steps[1], outputs
    assert "SIGTERM" in outputs[1 - asked]


LAST = """
from jaxllm.training.stop import Stop
with Stop(20.0, 5.0, report=lambda text: print(text, flush=True)) as stop:
    join()
    for step in range(1, 5):
        assert not stop.agreed(step)
    if index == 0:
        while not stop.requested:
            time.sleep(0.01)
        start = time.monotonic()
        time.sleep(0.5)  # the request is out before the last call
    print("last", stop.agreed(5), flush=True)
if index == 0:
    print("waited", time.monotonic() - start, flush=True)
else:
    print("left", flush=True)
"""


def test_a_process_that_has_finished_is_not_waited_for(tmp_path):
    """A signal after the others' last call changes nothing: all finish the same steps."""
    children = start_pair(LAST, devices=1, place=tmp_path)
    deadline = time.monotonic() + 40
    while "left" not in (tmp_path / "out1").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    children[0].send_signal(signal.SIGTERM)
    statuses, outputs = finish(children, tmp_path, timeout_s=30)
    assert statuses == [0, 0], outputs
    assert "last False" in outputs[0] and "last False" in outputs[1], outputs
    assert float(outputs[0].split("waited")[1]) < 3, outputs


def test_the_watchdog_ends_a_run_that_stands_still_and_says_where(tmp_path):
    program = f"""
def stuck_here():
    say("ready")
    time.sleep(30)
with Watchdog(0.8, say, {str(tmp_path / "stacks")!r}) as watchdog:
    with watchdog.paused():
        time.sleep(1.2)
    for _ in range(10):
        watchdog.beat()
        time.sleep(0.15)
    stuck_here()
"""
    child = Child(program)
    child.wait_for("ready")
    child.signalled_s = time.monotonic()
    status, seconds, output = child.end()
    assert status == STUCK_STATUS and 0.4 < seconds < 2.5, (status, seconds, output)
    assert "no step for" in output
    assert "stuck_here" in (tmp_path / "stacks").read_text()


def test_a_watchdog_without_limit_does_nothing():
    with Watchdog(0):
        time.sleep(0.1)


def test_a_reserve_longer_than_the_grace_time_is_refused():
    with pytest.raises(ValueError, match=r"grace_s=1\.0 and reserve_s"):
        Stop(1.0, 3.0)
