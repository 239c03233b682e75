"""No damage to any file of a checkpoint is ever restored in silence."""

import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.training import manifest
from jaxllm.training.checkpoint import CheckpointError, Checkpoints


def tree_of(step):
    return {"a": jnp.arange(3000.0) * step, "b": {"c": jnp.full((5, 7), step, jnp.bfloat16)}}


TARGET = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree_of(1)
)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pristine")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, tree_of(step), {"step": step})
    return directory


def damage(rng, path):
    """Flips a bit, cuts the file, or adds a byte."""
    data = bytearray(path.read_bytes())
    kind = rng.choice(("flip", "flip", "cut", "grow")) if data else "grow"
    if kind == "flip":
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    else:
        data.append(rng.randrange(256))
    path.write_bytes(bytes(data))
    return kind


def check_falls_back(directory, what):
    reports = []
    with Checkpoints(directory, report=reports.append) as checkpoints:
        assert checkpoints.latest() == 1, what
        restored, meta = checkpoints.restore(1, TARGET)
        assert meta == {"step": 1}
        np.testing.assert_array_equal(restored["a"], tree_of(1)["a"])
        assert checkpoints.steps() == [1]
    assert len(reports) == 1 and "step_00000002_1: damaged" in reports[0], (what, reports)
    assert (directory / "bad" / "step_00000002_1" / "arrays").is_dir()


def trial(pristine, place, seed):
    rng = random.Random(seed)
    directory = place / str(seed)
    shutil.copytree(pristine, directory)
    newest = directory / "step_00000002"
    paths = sorted(p for p in newest.rglob("*") if p.is_file())
    path = paths[seed % len(paths)]
    kind = damage(rng, path)
    # The whole checkpoint is refused when asked for by name, too.
    with (
        Checkpoints(directory, read_only=True) as reader,
        pytest.raises(CheckpointError, match="step_00000002"),
    ):
        reader.restore(2, TARGET)
    check_falls_back(directory, (path.name, kind, seed))
    shutil.rmtree(directory)


def test_random_damage_falls_back(pristine, tmp_path):
    for seed in range(20):
        trial(pristine, tmp_path, seed)


@pytest.mark.slow
def test_random_damage_falls_back_100_times(pristine, tmp_path):
    for seed in range(100, 200):
        trial(pristine, tmp_path, seed)


@pytest.mark.parametrize("change", ["missing", "extra", "renamed", "swapped"])
def test_files_that_are_missing_extra_or_of_another_step_fall_back(pristine, tmp_path, change):
    directory = tmp_path / "c"
    shutil.copytree(pristine, directory)
    newest = directory / "step_00000002"
    data = max((p for p in newest.rglob("d/*")), key=lambda p: p.stat().st_size)
    if change == "missing":
        data.unlink()
    elif change == "extra":
        (data.parent / "more").write_bytes(b"x")
    elif change == "renamed":  # a whole checkpoint under another step's name
        shutil.rmtree(newest)
        shutil.copytree(directory / "step_00000001", newest)
    else:  # the manifest and the marker of another step
        for name in (manifest.NAME, manifest.MARKER):
            shutil.copy(directory / "step_00000001" / name, newest / name)
    check_falls_back(directory, change)


def test_damage_to_all_leaves_none(pristine, tmp_path):
    directory = tmp_path / "c"
    shutil.copytree(pristine, directory)
    for path in directory.rglob("manifest.ocdbt"):
        path.write_bytes(b"")
    reports = []
    assert Checkpoints(directory, report=reports.append).latest() is None
    assert len(reports) == 2
    assert len(list((directory / "bad").iterdir())) == 2
