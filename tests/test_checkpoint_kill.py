"""SIGKILL at any moment leaves the newest checkpoint or the one before, whole."""

import random
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.training.checkpoint import Checkpoints

# Saves without a pause and says what it knows to be committed.
CHILD = """
import sys
from tests.test_checkpoint_kill import tree_of
from jaxllm.training.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1])
step = checkpoints.latest() or 0
print("start", step, flush=True)
while True:
    step += 1
    checkpoints.save(step, tree_of(step), {"step": step})
    if step % 3:  # else the next save waits for this one
        checkpoints.wait()
        print("committed", step, flush=True)
"""


def tree_of(step):
    return {"a": jnp.arange(40_000.0) + step, "b": {"c": jnp.full((5, 7), step, jnp.int32)}}


def kill_and_check(directory, log, rng):
    with open(log, "w") as file:
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(directory)], stdout=file)
    try:
        deadline = time.monotonic() + 60
        while "committed" not in log.read_text():
            assert child.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        time.sleep(rng.random() * 0.5)
    finally:
        child.kill()
        child.wait()
    whole_lines = log.read_text().split("\n")[:-1]
    committed = max(int(line.split()[1]) for line in whole_lines)
    reports = []
    with Checkpoints(directory, report=reports.append) as checkpoints:
        latest = checkpoints.latest()
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree_of(1)
        )
        restored, meta = checkpoints.restore(latest, target)
    assert committed <= latest <= committed + 2
    assert meta == {"step": latest}
    jax.tree.map(np.testing.assert_array_equal, restored, tree_of(latest))
    assert not (directory / "bad").exists(), reports
    return reports


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_while_saving(tmp_path, kills):
    rng = random.Random(kills)
    interrupted = 0
    for _ in range(kills):
        interrupted += len(kill_and_check(tmp_path / "c", tmp_path / "log", rng))
    assert interrupted, "no kill fell into a write: the test shows nothing"
