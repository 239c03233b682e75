"""A new head over the parameters of another run: drawn, told, all below it as it was."""

import jax
import numpy as np
import pytest

from jaxllm import trees
from jaxllm.config import ConfigError
from jaxllm.training import base, initial, reopen, setup
from jaxllm.training.state import place_key
from tests import runs

ENCODER = "configs/encoder.py:objective=bert,smoke"
SMALL = {"steps": 2, "validate.batches": 1}
BELOW = {"model.width": 32, "model.layers": 2}  # sizes of both


def load(file, place, fields):
    """The completed config of a file with settings over it."""
    fields = {**SMALL, **fields, "runtime.compile_cache": place}
    pairs = [(name, str(value)) for name, value in fields.items()]
    return runs.settings.load(file, pairs, setup.KINDS)[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, compile_cache):
    """The work directory of a masked language model."""
    place = tmp_path_factory.mktemp("encoder")
    assert runs.train(load(ENCODER, compile_cache, BELOW), place) == 0
    return place


def classifier(trained, compile_cache, **fields):
    """The config of a classifier that starts from it."""
    fields = {
        **{"tokenizer.kind": "saved", "model.vocab": 384, "model.positions": 32},
        **{"init_from": str(trained), "init_fresh": "task/", **fields},
    }
    path = {"tokenizer.path": str(trained)} if fields["tokenizer.kind"] == "saved" else {}
    return load("configs/classify.py:smoke", compile_cache, {**fields, **path})


def test_a_new_head_is_drawn_and_all_below_is_read(trained, compile_cache, tmp_path):
    config = classifier(trained, compile_cache)
    run = setup.assemble(config, tmp_path, jax.devices()[:1])
    notes = "\n".join(initial.check(run))
    assert "task/b, task/w drawn" in notes
    assert "transform" in notes and "left out" in notes
    found = trees.flatten(base.load(run))
    before = trees.flatten(reopen.open_trained(trained).params)
    shared = [path for path in found if path in before]
    assert len(shared) > 10 and set(found) - set(shared) == {"task/w", "task/b"}
    assert all(np.array_equal(found[path], before[path]) for path in shared)
    drawn = trees.flatten(run.create(place_key(run.mesh, config.seed)).params)
    np.testing.assert_allclose(found["task/w"], drawn["task/w"], rtol=1e-6)
    assert np.abs(found["task/w"]).max() > 0
    assert found.keys() == trees.flatten(run.abstract.params).keys()


def test_such_a_run_trains_and_says_what_is_new(trained, compile_cache, tmp_path, capsys):
    assert runs.train(classifier(trained, compile_cache), tmp_path) == 0
    assert "task/b, task/w drawn, not read (init_fresh)" in capsys.readouterr().out


@pytest.mark.parametrize(("fields", "says", "edit"), [
    ({"init_fresh": ""}, "task", "init_fresh"),
    ({"init_fresh": "pool/"}, "beginning of no parameter", "init_fresh"),
    ({"init_fresh": "final"}, "beginning of no parameter", "init_fresh"),
    ({"init_fresh": "embed_norm"}, "has no task", "init_fresh"),
    ({"init_fresh": "task("}, "no regular expression", "init_fresh"),
    ({"init_fresh": "task(", "finetune.kind": "lora"}, "no regular expression", "init_fresh"),
    ({"model.mlp_width": 48}, "mlp_width|layers/mlp", None),
    ({"model.norm_eps": 0.5}, "norm_eps", "model.norm_eps"),
])  # fmt: skip
def test_what_cannot_be_is_told_with_what_can(fields, says, edit, trained, compile_cache, tmp_path):
    config = classifier(trained, compile_cache, **fields)
    with pytest.raises(ConfigError, match=says) as error:
        initial.check(setup.assemble(config, tmp_path, jax.devices()[:1]))
    assert edit is None or edit in dict(runs.edits(str(error.value)))
