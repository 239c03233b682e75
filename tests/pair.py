"""Starts a program as two processes of one run on this machine."""

import socket
import sys

from tests import runs

PREAMBLE = """
import os, sys, time
import jax
index = int(sys.argv[1])

def join():
    jax.distributed.initialize(
        sys.argv[2], num_processes=2, process_id=index, coordinator_bind_address=sys.argv[2],
        heartbeat_timeout_seconds=20, shutdown_timeout_seconds=20,
    )
"""


def start_pair(program, *arguments, devices=4, place):
    """Returns two Popen of PREAMBLE + program; output goes to place/out0 and place/out1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    words = [sys.executable, "-c", PREAMBLE + program]
    return [
        runs.start([*words, str(index), address, *arguments], place / f"out{index}", devices)
        for index in (0, 1)
    ]


def finish(children, place, timeout_s=60):
    """Waits for both and returns their (statuses, outputs); kills what overruns."""
    with runs.ending(*children):
        statuses = [child.wait(timeout=timeout_s) for child in children]
    return statuses, [(place / f"out{i}").read_text() for i in (0, 1)]
