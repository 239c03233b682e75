"""Runs that start from another and are kept near it: by distance, by Fisher information."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import trees
from jaxllm.config import ConfigError
from jaxllm.training import anchors, fisher, reopen, setup
from tests import runs

FIELDS = {"steps": 4, "validate.every": 0, "checkpoint.every": 2}


@pytest.fixture(scope="module")
def old(tmp_path_factory, compile_cache):
    """The work directory of a run to start from, with Fisher information beside it."""
    place = tmp_path_factory.mktemp("old")
    config = runs.config({**FIELDS, "runtime.compile_cache": compile_cache})
    assert runs.train(config, place) == 0
    words = runs.command(place, {}, "--fisher=6", module="evaluate")
    done = runs.call(words)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["rows"] == 6 and 180 < told["count"] <= 6 * 32 and told["trace"] > 0
    return place


def after(old, compile_cache, **more):
    """The config of a run that starts from it."""
    fields = {**FIELDS, "runtime.compile_cache": compile_cache, "init_from": str(old)}
    fields |= {"tokenizer.kind": "saved", "seed": 5}
    fields |= {name.replace("__", "."): value for name, value in more.items()}
    return runs.settings.load(
        runs.FILE, [*runs.overrides(fields), ("tokenizer.path", str(old))], setup.KINDS
    )[0]


def moved(old, place, weights=None):
    """Sum of squared distances of a run's parameters from those that it started from."""
    start, end = (trees.flatten(reopen.open_trained(p).params) for p in (old, place))
    weights = weights or dict.fromkeys(start, 1.0)
    return sum(float(jnp.sum(weights[p] * (end[p] - start[p]) ** 2)) for p in start)


def test_a_run_stays_near_its_start_and_resumes_as_if_never_stopped(old, compile_cache, tmp_path):
    """The penalty is told apart; the start is read again; the same bits as in one go."""
    for name, value in (("free", 0.0), ("held", 5.0)):
        config = after(old, compile_cache, regularize__l2_start=value, log__every=1)
        assert runs.train(config, tmp_path / name) == 0
    assert moved(old, tmp_path / "held") < 0.9 * moved(old, tmp_path / "free")
    told = runs.lines(tmp_path / "held")
    assert told[0]["l2_start"] == 0 and told[-1]["l2_start"] > 0
    assert "l2_start" not in runs.lines(tmp_path / "free")[-1]
    short = after(old, compile_cache, regularize__l2_start=5.0, log__every=1)
    shutil.copytree(tmp_path / "held", tmp_path / "again")
    shutil.rmtree(tmp_path / "again/checkpoints/step_00000004")
    (tmp_path / "again/summary.json").unlink()
    assert runs.train(short, tmp_path / "again") == 0
    assert runs.metrics(tmp_path / "again") == runs.metrics(tmp_path / "held")


def test_another_start_is_refused_and_a_reader_needs_none(old, compile_cache, tmp_path):
    start = tmp_path / "start"
    shutil.copytree(old, start)
    config = after(start, compile_cache, regularize__l2_start=1.0, steps=2)
    assert runs.train(config, tmp_path / "run") == 0
    other = runs.config({**FIELDS, "runtime.compile_cache": compile_cache, "seed": 9})
    shutil.rmtree(start)
    assert runs.train(other, start) == 0
    more = after(start, compile_cache, regularize__l2_start=1.0, steps=4)
    with pytest.raises(ConfigError, match=f"init_from={start} is not what"):
        runs.train(more, tmp_path / "run")
    shutil.rmtree(start)
    assert reopen.open_trained(tmp_path / "run").step == 2


def test_fisher_information_says_what_to_keep(old, compile_cache, tmp_path):
    """Weighted by it a run moves less than one without; without it there is no such run."""
    for name, value in (("free", 0.0), ("held", 300.0)):
        config = after(old, compile_cache, regularize__ewc=value, log__every=1)
        assert runs.train(config, tmp_path / name) == 0
    assert runs.lines(tmp_path / "held")[-1]["ewc"] > 0
    run = setup.assemble(after(old, compile_cache, regularize__ewc=1), tmp_path / "x")
    base = trees.flatten(reopen.open_trained(old).params)
    weights = anchors.read_fisher(run, base, trees.flatten(run.refs["fisher"]))
    free, held = (moved(old, tmp_path / name, weights) for name in ("free", "held"))
    assert held < 0.9 * free
    with pytest.raises(ConfigError, match="of other parameters"):
        changed = base | {"embed": base["embed"] + 1e-3}
        anchors.read_fisher(run, changed, trees.flatten(run.refs["fisher"]))
    bare = tmp_path / "bare"
    shutil.copytree(old, bare, ignore=shutil.ignore_patterns(anchors.FISHER))
    with pytest.raises(ConfigError, match=r"(?s)no Fisher information .*--workdir=.*--fisher=1000"):
        runs.train(after(bare, compile_cache, regularize__ewc=1), tmp_path / "none")


def on_one_device(trained):
    """The same model where one row is taken at a time."""
    here = jax.devices()[:1]
    run = setup.assemble_program(trained.run.config, 259, here)
    return trained._replace(run=run, params=jax.device_put(trained.params, here[0]))


@pytest.mark.slow
def test_the_estimate_is_the_expectation_over_what_the_model_predicts(old):
    """Of one row of one target: the sum over all tokens of their chance, times slopes squared."""
    trained = on_one_device(reopen.open_trained(old))
    model, params = trained.run.model, trained.params
    batch = {
        "tokens": np.full((1, 32), 5, np.int32),
        "targets": np.zeros((1, 32), np.int32),
        "position": np.arange(32, dtype=np.int32)[None],
        "segment": np.ones((1, 32), np.int32),
        "weight": np.eye(32, dtype=np.float32)[3:4],
    }

    class Same:
        def take(self, n):
            return {k: np.repeat(x, len(n), 0) for k, x in batch.items()}

    found, rows, count = fisher.estimate(trained, Same(), 1500)
    assert rows == count == 1500

    def log_p(params):
        return jax.nn.log_softmax(model.apply(params, batch)[0, 3])

    def slope_of(token):
        return jax.grad(lambda params: log_p(params)[token])(params)

    slopes = jax.jit(lambda: jax.lax.map(slope_of, jnp.arange(259)))()
    p = jnp.exp(jax.jit(log_p)(params))
    exact = jax.tree.map(lambda g: jnp.tensordot(p, g**2, 1), slopes)
    exact, found = (np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (exact, found))
    np.testing.assert_allclose(found.sum(), exact.sum(), rtol=0.05)
    large = exact > np.quantile(exact, 0.9)
    assert np.corrcoef(found[large], exact[large])[0, 1] > 0.97
