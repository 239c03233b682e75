"""Two processes of one run on this machine, as on two hosts."""

import signal
import socket
import time

import numpy as np
import pytest

from tests import runs


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"localhost:{probe.getsockname()[1]}"


def start_pair(workdir, place, fields, *others):
    """Starts both; `others` are the fields of the second where they differ."""
    address, children = free_address(), []
    for index in (0, 1):
        words = runs.command(
            workdir,
            {**fields, **(others[0] if others and index else {})},
            f"--coordinator={address}",
            "--processes=2",
            f"--process_id={index}",
        )
        children.append(runs.start(words, place / f"out{index}"))
    return children


def finish_pair(children, place, timeout_s=120):
    """Returns (statuses, outputs)."""
    with runs.ending(*children):
        statuses = [child.wait(timeout=timeout_s) for child in children]
    return statuses, [(place / f"out{index}").read_text() for index in (0, 1)]


@pytest.fixture
def fields(compile_cache):
    return {
        "runtime.compile_cache": compile_cache,
        "optim.kind": "adamw",
        "schedule.lr": 0.01,
        "model.dropout": 0.1,
        "sharding": "zero3",
        "mesh.fsdp": 2,
        "mesh.data": 1,
        "step.ema": 0.5,
        "sample.tokens": 4,
        "steps": 12,
        "checkpoint.every": 6,
        "validate.every": 6,
    }


def listening(pid):
    """Addresses, as in /proc/net/tcp, at which a process waits for connections."""
    inodes = set()
    for path in (runs.pathlib.Path("/proc") / str(pid) / "fd").iterdir():
        try:
            target = str(path.readlink())
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = []
    for name in ("tcp", "tcp6"):
        for line in runs.pathlib.Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and words[9] in inodes:
                found.append(words[1].split(":")[0])
    return found


LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def wait_for(path, text, children, place, timeout_s=90):
    end = time.monotonic() + timeout_s
    while text not in path.read_text():
        outs = [(place / f"out{index}").read_text() for index in (0, 1)]
        assert all(child.poll() is None for child in children), outs
        assert time.monotonic() < end, outs
        time.sleep(0.01)


def test_two_processes_train_as_one_and_stop_together(fields, tmp_path):
    one = tmp_path / "one"
    assert runs.train(runs.config(fields), one, devices=2) == 0

    whole = tmp_path / "whole"
    children = start_pair(whole, tmp_path, fields)
    with runs.ending(*children):
        wait_for(tmp_path / "out0", "step  1/12", children, tmp_path)
        addresses = [address for child in children for address in listening(child.pid)]
        assert addresses and set(addresses) <= LOOPBACK, addresses
        statuses, outs = finish_pair(children, tmp_path)
    assert statuses == [0, 0], outs
    assert "2 process(es)" in outs[0] and "step" not in outs[1]  # process 0 alone speaks
    for kind in ("train", "validation"):
        for a, b in zip(runs.lines(one, kind), runs.lines(whole, kind), strict=True):
            assert a["step"] == b["step"]
            np.testing.assert_allclose(a["loss"], b["loss"], 1e-6)

    texts = [(d / "samples" / "00000012_sample.txt").read_text() for d in (one, whole)]
    assert texts[0] == texts[1]

    # SIGTERM to the process that does not write: both stop at one step, saved.
    cut = tmp_path / "cut"
    children = start_pair(cut, tmp_path, fields)
    with runs.ending(*children):
        wait_for(tmp_path / "out0", "step  3/12", children, tmp_path)
        start = time.monotonic()
        children[1].send_signal(signal.SIGTERM)
        statuses, outs = finish_pair(children, tmp_path)
    assert statuses == [0, 0] and time.monotonic() - start < 10, outs
    summary = runs.summary(cut)
    assert summary["status"] == "stopped" and runs.steps(cut)[-1] == summary["step"] < 12

    # One process goes on from what two saved.
    assert runs.train(runs.config(fields), cut, devices=2) == 0
    for a, b in zip(runs.lines(one), runs.lines(cut), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], 1e-6)


def test_another_config_on_one_host_is_refused(fields, tmp_path):
    workdir = tmp_path / "run"
    children = start_pair(workdir, tmp_path, fields, {"schedule.lr": 0.02})
    start = time.monotonic()
    statuses, outs = finish_pair(children, tmp_path)
    assert statuses == [2, 2], outs
    assert all("another config than process" in out for out in outs), outs
    assert time.monotonic() - start < 60
    assert not workdir.exists()


def test_half_an_address_is_refused(fields, tmp_path):
    done = runs.call(runs.command(tmp_path / "run", fields, "--processes=2"))
    assert done.returncode == 2
    assert "--coordinator=localhost:1234 --processes=2 --process_id=0" in done.stderr
    assert not (tmp_path / "run").exists()
