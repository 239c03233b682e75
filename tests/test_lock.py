"""One writer a work directory; a dead one does not stand in the way."""

import json
import os
import subprocess
import sys
import time

import pytest

from jaxllm.training import lock
from jaxllm.training.lock import LockError, RunLock

HOLD = """
import os, sys, time
from jaxllm.training.lock import RunLock
with RunLock(sys.argv[1]):
    if "fork" in sys.argv and os.fork() == 0:
        time.sleep(5)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(workdir, *arguments):
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(workdir), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "held\n"
    return child


def other_machine(workdir, beat=None):
    """What a holder on another machine leaves in the file."""
    owner = {"host": "elsewhere", "machine": "m2", "pid": 7, "started": "2026-01-01 00:00:00"}
    owner |= {"token": "t", "beat": time.time() if beat is None else beat}
    workdir.mkdir(exist_ok=True)
    (workdir / lock.NAME).write_text(json.dumps(owner))


@pytest.mark.parametrize("how", ["plain", "fork"])
def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path, how):
    """A forked child that outlives the holder does not keep the lock."""
    child = hold(tmp_path, how)
    try:
        with pytest.raises(LockError, match=f"(?s)process {child.pid} on host .*--workdir"):
            RunLock(tmp_path).__enter__()
    finally:
        child.kill()
        child.wait()
    start = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - start < 1
        with pytest.raises(LockError, match=f"process {os.getpid()}"):
            RunLock(tmp_path).__enter__()
    with RunLock(tmp_path):
        pass


def test_a_live_holder_on_another_machine_is_refused(tmp_path):
    """As where flock does not reach: it is free here, but the file keeps changing."""
    other_machine(tmp_path)
    beat = "for i in range(50):\n time.sleep(.1)\n f.write_text(f.read_text() + ' ')\n"
    code = f"import pathlib,sys,time\nf=pathlib.Path(sys.argv[1])\n{beat}"
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / lock.NAME)])
    try:
        with pytest.raises(LockError, match="process 7 on host elsewhere"):
            RunLock(tmp_path, heartbeat_s=0.4, report=lambda _: None).__enter__()
    finally:
        child.kill()
        child.wait()


def test_a_dead_holder_on_another_machine_is_outwaited(tmp_path):
    other_machine(tmp_path)
    reports = []
    start = time.monotonic()
    with RunLock(tmp_path, heartbeat_s=0.1, report=reports.append):
        assert time.monotonic() - start > 1
    assert "watching" in reports[0] and "elsewhere" in reports[0]


def test_a_holder_silent_for_days_is_not_waited_for(tmp_path):
    other_machine(tmp_path, beat=time.time() - 3 * 24 * 3600)
    start = time.monotonic()
    with RunLock(tmp_path):
        assert time.monotonic() - start < 1


def test_a_lock_taken_by_another_machine_is_noticed(tmp_path):
    reports = []
    with RunLock(tmp_path, heartbeat_s=0.05, report=reports.append) as held:
        held.check()
        other_machine(tmp_path)
        for _ in range(100):
            time.sleep(0.02)
            if reports:
                break
        with pytest.raises(LockError, match="elsewhere"):
            held.check()
    assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == 7


def test_given_back_it_names_nobody(tmp_path):
    with RunLock(tmp_path):
        assert json.loads((tmp_path / lock.NAME).read_text())["pid"] == os.getpid()
    assert not (tmp_path / lock.NAME).read_text().strip()
