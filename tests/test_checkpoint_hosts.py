"""Several processes write one checkpoint and agree on what is there."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.training.checkpoint import Checkpoints
from tests.pair import finish, start_pair

CHILD = """
import functools
import jax.experimental.multihost_utils
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxllm.training.checkpoint import Checkpoints
join()
directory = sys.argv[3]
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
spread = NamedSharding(mesh, P("data"))
make = lambda n: jax.make_array_from_callback((64, 4), spread, lambda i: (
    np.arange(256, dtype=np.float32).reshape(64, 4) + n)[i])
whole = lambda n: jax.device_put(np.float32(n), NamedSharding(mesh, P()))
@functools.partial(jax.jit, donate_argnums=0)
def train(x):
    return x * 2 + 1
with Checkpoints(directory, keep_last=2, report=print, timeout_s=30) as checkpoints:
    for step in range(1, 5):
        x = make(step)
        checkpoints.save(step, {"x": x, "whole": whole(step)}, {"n": step})
        x = train(x)
        checkpoints.check()
        checkpoints.score(step, float(step))
    checkpoints.wait()
    print("steps", checkpoints.steps(), "best", checkpoints.best())
    jax.experimental.multihost_utils.sync_global_devices("both have listed the steps")
    if index == 0:  # only this process sees the damage before the others ask
        open(directory + "/step_00000004/manifest.json", "a").write(" ")
    print("latest", checkpoints.latest())
    want = {"x": make(3), "whole": whole(3)}
    target = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), want)
    for _ in range(2):
        got, meta = checkpoints.restore(3, target)
    shards = zip(got["x"].addressable_shards, want["x"].addressable_shards)
    same = all(np.array_equal(a.data, b.data) for a, b in shards)
    print("same", same, meta)
    try:
        checkpoints.restore(9, target)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_two_processes_write_one_checkpoint_and_one_process_reads_it(tmp_path):
    directory = tmp_path / "c"
    children = start_pair(CHILD, str(directory), place=tmp_path)
    statuses, outputs = finish(children, tmp_path)
    assert statuses == [0, 0], outputs
    for out in outputs:
        assert "steps [1, 3, 4] best 1" in out, out
        assert "latest 3" in out and "same True {'n': 3}" in out, out
        assert "step_00000009 is no finished checkpoint" in out, out
    assert "is moved to" in outputs[0] and "is moved to" not in outputs[1]
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    target = {
        "x": jax.ShapeDtypeStruct((64, 4), jnp.float32, sharding=NamedSharding(mesh, P("a", "b"))),
        "whole": jax.ShapeDtypeStruct((), jnp.float32, sharding=NamedSharding(mesh, P())),
    }
    with Checkpoints(directory) as checkpoints:
        restored, _ = checkpoints.restore(checkpoints.latest(), target)
    want = np.arange(256, dtype=np.float32).reshape(64, 4) + 3
    np.testing.assert_array_equal(restored["x"], want)


ONE_FAILS = """
import numpy as np
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.training import manifest
join()
mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
x = jax.device_put(np.float32(1), jax.NamedSharding(mesh, jax.P()))
def full(*_):
    raise OSError(28, "No space left on device")
if index == 0:
    manifest.commit = full
checkpoints = Checkpoints(sys.argv[3], timeout_s=30)
checkpoints.save(1, {"x": x}, {})
try:
    checkpoints.wait()
except Exception as error:
    print(type(error).__name__, error)
"""


def test_an_error_of_process_0_reaches_the_others(tmp_path):
    statuses, outputs = finish(
        start_pair(ONE_FAILS, str(tmp_path / "c"), devices=1, place=tmp_path), tmp_path
    )
    assert statuses == [0, 0], outputs
    for out in outputs:
        assert "CheckpointError" in out and "No space left on device" in out, out
