"""What is saved comes back bit for bit, on any mesh; the right checkpoints are kept."""

import functools
import json
import resource
import shutil
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.training import manifest, ranking
from jaxllm.training.checkpoint import CheckpointError, Checkpoints


class State(NamedTuple):
    step: Any
    params: Any
    opt: Any


def state_of(step=0, width=16):
    w_DF = jnp.arange(width * width, dtype=jnp.float32).reshape(width, width) + step
    return State(
        step=jnp.int32(step),
        params={"mlp": {"up/w": w_DF, "b": jnp.full((width,), step, jnp.bfloat16)}},
        opt=(None, {"m": w_DF * 0.1}, [jax.random.key(step)], jnp.zeros((0, 3))),
    )


def abstract(tree, sharding=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree
    )


def bits(tree):
    def one(x):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        return (x.shape, str(x.dtype), np.array(x).tobytes())

    return jax.tree.map(one, tree)


@pytest.fixture
def reports():
    return []


@pytest.fixture
def opened(tmp_path, reports):
    with Checkpoints(tmp_path / "c", report=reports.append) as checkpoints:
        yield checkpoints


def test_what_is_saved_comes_back_bit_for_bit(opened):
    state, meta = state_of(3), {"best": 1.5, "name": "run"}
    opened.save(3, state, meta)
    opened.wait()
    restored, restored_meta = opened.restore(3, abstract(state))
    assert bits(restored) == bits(state)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert restored_meta == meta


def test_donating_right_after_save_changes_nothing_that_is_written(opened):
    """The next step overwrites the buffers while the background still writes."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train(tree):
        return jax.tree.map(lambda x: x * 1.5 + 1, tree)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = NamedSharding(mesh, P("data"))
    tree = {
        "whole": jnp.arange(1 << 20, dtype=jnp.float32),
        "spread": jax.device_put(jnp.arange(1 << 20, dtype=jnp.float32), spread),
        "copied": jax.device_put(jnp.ones((64, 64)), NamedSharding(mesh, P())),
    }
    for step in range(1, 4):
        want = bits(tree)
        before = tree
        opened.save(step, tree, {})
        for _ in range(5):
            tree = train(tree)
        jax.block_until_ready(tree)
        assert all(x.is_deleted() for x in jax.tree.leaves(before)), "the buffers were donated"
        opened.wait()
        assert bits(opened.restore(step, abstract(tree))[0]) == want


def test_training_goes_on_from_restored_arrays_as_from_the_saved_ones(opened):
    @functools.partial(jax.jit, donate_argnums=0)
    def train(tree):
        return jax.tree.map(lambda x: x * 1.01 + 1, tree)

    tree = {"w": jnp.linspace(0, 1, 4096)}
    opened.save(1, tree, {})
    opened.wait()
    restored, _ = opened.restore(1, abstract(tree))
    for _ in range(10):
        tree, restored = train(tree), train(restored)
    assert bits(tree) == bits(restored)


def test_restores_onto_another_mesh(opened):
    auto = jax.sharding.AxisType.Auto
    one = jax.make_mesh((8,), ("data",), axis_types=(auto,))
    other = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(auto, auto))
    w = jnp.arange(64 * 32, dtype=jnp.float32).reshape(64, 32)
    tree = {"w": jax.device_put(w, NamedSharding(one, P("data"))), "s": jnp.float32(2)}
    opened.save(1, tree, {})
    opened.wait()
    want = NamedSharding(other, P("fsdp", "tensor"))
    target = abstract(tree, NamedSharding(other, P()))
    target["w"] = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=want)
    restored, _ = opened.restore(1, target)
    assert restored["w"].sharding == want
    assert bits(restored) == bits(tree)


def test_another_model_is_refused_by_the_names_of_its_leaves(opened):
    opened.save(1, {"a": jnp.ones((2, 3)), "b": jnp.ones(4), "c": jnp.ones(1)}, {})
    opened.wait()
    target = abstract({"a": jnp.ones((3, 2)), "b": jnp.ones(4, jnp.int32), "d": jnp.ones(1)})
    with pytest.raises(CheckpointError) as error:
        opened.restore(1, target)
    text = str(error.value)
    assert "a: float32[2,3] in the checkpoint, float32[3,2] wanted" in text
    assert "b: float32[4] in the checkpoint, int32[4] wanted" in text
    assert "c: only in the checkpoint" in text and "d: not in the checkpoint" in text


def test_a_part_can_be_restored_alone(opened):
    state = state_of(4)
    opened.save(4, state, {})
    opened.wait()
    part = {"params": state.params}
    restored, _ = opened.restore(4, abstract(part), partial=True)
    assert bits(restored) == bits(part)
    with pytest.raises(CheckpointError, match="only in the checkpoint"):
        opened.restore(4, abstract(part))
    with pytest.raises(CheckpointError, match="ema/w: not in the checkpoint"):
        opened.restore(4, abstract({"ema": {"w": jnp.ones(2)}}), partial=True)


def test_what_is_no_array_is_refused(opened):
    with pytest.raises(TypeError, match="leaf a is a float"):
        opened.save(1, {"a": 1.0}, {})
    with pytest.raises(TypeError, match="not JSON"):
        opened.save(1, {"a": jnp.ones(1)}, {"x": object()})
    assert opened.steps() == []


def test_keeps_the_newest_and_the_best(tmp_path):
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as checkpoints:
        losses = [3.0, 1.0, 2.0, float("nan"), 2.5, 1.5]
        for step, loss in enumerate(losses, 1):
            checkpoints.save(step, {"w": jnp.full(3, step)}, {})
            checkpoints.score(step, loss)  # before the write is committed
            checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best() == 2
        restored, _ = checkpoints.restore(2, abstract({"w": jnp.full(3, 2)}))
        assert restored["w"].tolist() == [2, 2, 2]


def test_a_later_attempt_at_a_step_does_not_inherit_the_score(tmp_path):
    with Checkpoints(tmp_path, report=lambda _: None) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": jnp.ones(3)}, {})
            checkpoints.wait()
            checkpoints.score(step, 5.0 - step)
    (tmp_path / "step_00000002" / manifest.NAME).write_text("{}")
    with Checkpoints(tmp_path, report=lambda _: None) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, {"w": jnp.ones(3)}, {})
        checkpoints.wait()
        assert checkpoints.best() == 1


def test_keeping_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last=0"):
        Checkpoints(tmp_path, keep_last=0)


def test_saving_a_restored_step_again_does_nothing(opened):
    state = state_of(1)
    opened.save(1, state, {})
    opened.save(1, state, {})
    opened.wait()
    before = (opened.directory / "step_00000001" / manifest.MARKER).read_text()
    with Checkpoints(opened.directory) as again:
        again.restore(again.latest(), abstract(state))
        again.save(1, state, {})
        again.wait()
    assert (opened.directory / "step_00000001" / manifest.MARKER).read_text() == before


def test_a_step_of_another_attempt_is_not_overwritten(opened):
    opened.save(1, {"w": jnp.ones(2)}, {})
    opened.wait()
    with Checkpoints(opened.directory) as again, pytest.raises(CheckpointError, match="another"):
        again.save(1, {"w": jnp.zeros(2)}, {})
    assert opened.restore(1, abstract({"w": jnp.ones(2)}))[0]["w"].tolist() == [1, 1]


def test_an_empty_directory_named_as_a_later_step_is_ignored(tmp_path, reports):
    with Checkpoints(tmp_path, report=reports.append) as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)}, {})
        checkpoints.wait()
        (tmp_path / "step_00000003").mkdir()
        assert checkpoints.steps() == [1]
        assert checkpoints.latest() == 1
        assert not reports
        checkpoints.save(3, {"w": jnp.ones(2)}, {})
        checkpoints.wait()
        assert checkpoints.latest() == 3


def test_an_unfinished_copy_from_elsewhere_is_never_deleted(tmp_path, reports):
    with Checkpoints(tmp_path / "a") as checkpoints:
        checkpoints.save(1, {"w": jnp.ones(2)}, {})
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for run in "ab":
        (tmp_path / run / "step_00000001" / manifest.MARKER).unlink()
        Checkpoints(tmp_path / run, report=reports.append)
    assert not (tmp_path / "a" / "step_00000001").exists()
    assert (tmp_path / "b" / "step_00000001" / "arrays").exists()
    assert "removed" in reports[0] and "left alone" in reports[1]


def test_a_reader_changes_nothing(tmp_path, reports):
    with Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"w": jnp.ones(2)}, {})
    (tmp_path / "step_00000002" / manifest.NAME).write_text("{}")
    (tmp_path / "step_00000009").mkdir()
    before = sorted(tmp_path.rglob("*"))
    reader = Checkpoints(tmp_path, read_only=True, report=reports.append)
    assert reader.latest() == 1
    reader.score(1, 1.0)
    with pytest.raises(CheckpointError, match="read-only"):
        reader.save(5, {"w": jnp.ones(2)}, {})
    assert sorted(tmp_path.rglob("*")) == before
    assert "skipped" in reports[0]


def test_a_step_that_is_not_there_is_named(opened):
    with pytest.raises(CheckpointError, match=r"step_00000007 is no finished.*Steps in"):
        opened.restore(7, abstract({"w": jnp.ones(2)}))


def test_an_error_of_the_background_write_is_raised_by_check_and_leaves_the_one_before(
    opened, monkeypatch
):
    opened.save(1, {"w": jnp.ones(2)}, {})
    opened.wait()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(manifest, "commit", full)
        opened.save(2, {"w": jnp.ones(2)}, {})
        with pytest.raises(CheckpointError, match=r"step 2.*No space left.*untouched"):
            for _ in range(500):
                opened.check()
                time.sleep(0.01)
    assert opened.latest() == 1
    opened.save(2, {"w": jnp.ones(2)}, {})
    opened.wait()
    assert opened.latest() == 2


def test_the_next_save_waits_for_the_one_before_and_raises_its_error(opened, monkeypatch):
    def slow_and_full(*_):
        time.sleep(0.3)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "commit", slow_and_full)
    opened.save(2, {"w": jnp.ones(2)}, {})
    with pytest.raises(CheckpointError, match=r"step 2.*No space left"):
        opened.save(3, {"w": jnp.ones(2)}, {})


def test_a_disk_that_refuses_the_arrays_costs_only_that_step(opened):
    """The error comes out of Orbax's own threads; files may not grow beyond the limit here."""
    opened.save(1, {"w": jnp.ones(2)}, {})
    opened.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"step 2.*too large.*untouched: \[1\]"):
            opened.save(2, {"w": jnp.ones(1 << 18)}, {})
            opened.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert opened.latest() == 1
    opened.save(2, {"w": jnp.ones(1 << 18)}, {})
    opened.wait()
    assert opened.latest() == 2


def test_damaged_scores_are_reported_and_forgotten(opened, reports):
    opened.save(1, {"w": jnp.ones(2)}, {})
    opened.wait()
    opened.score(1, 1.0)
    (opened.directory / ranking.NAME).write_text('{"1": 1.')
    assert opened.best() is None
    assert "scores.json is damaged" in reports[0]


def test_the_manifest_lists_every_file_with_its_sha256(opened):
    opened.save(1, {"w": jnp.ones(2)}, {"k": 1})
    opened.wait()
    path = opened.directory / "step_00000001"
    body = json.loads((path / manifest.NAME).read_text())
    assert set(body["files"]) == set(manifest.files(path))
    assert body["arrays"] == {"w": [[2], "float32"]} and body["meta"] == {"k": 1}
