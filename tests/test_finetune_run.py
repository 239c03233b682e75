"""Fine-tuning as runs: over a base of another run, stopped and resumed, read again."""

import shutil

import jax
import numpy as np
import pytest

from jaxllm import trees
from jaxllm.config import ConfigError
from jaxllm.training import base, reopen
from jaxllm.training.checkpoint import Checkpoints
from tests import runs

SAVED = {"tokenizer.kind": "saved"}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, compile_cache):
    """The work directory of a base."""
    place = tmp_path_factory.mktemp("base")
    assert runs.train(config(compile_cache), place) == 0
    return place


def config(compile_cache, **fields):
    named = {name.replace("__", "."): value for name, value in fields.items()}
    return runs.config({"runtime.compile_cache": compile_cache, "optim.kind": "adamw", **named})


def tuned(compile_cache, pretrained, **fields):
    own = {"init_from": str(pretrained), "finetune__kind": "lora", "schedule__lr": 0.01}
    return config(compile_cache, **{**own, **fields})


KINDS = [
    {"finetune__kind": "lora", "finetune__dropout": 0.1},
    {"finetune__kind": "qlora", "finetune__start": "pissa"},
    {"finetune__kind": "full", "finetune__freeze": "embed"},
]


@pytest.mark.parametrize("fields", KINDS, ids=lambda f: f["finetune__kind"])
def test_resumed_is_uninterrupted(fields, pretrained, compile_cache, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    settings = tuned(compile_cache, pretrained, **fields, checkpoint__keep_last=9)
    assert runs.train(settings, whole) == 0
    shutil.copytree(whole, cut)
    for step in (9, 12):
        shutil.rmtree(cut / "checkpoints" / f"step_{step:08d}")
    (cut / "summary.json").unlink()
    assert runs.train(settings, cut) == 0
    one, other = (reopen.open_trained(place, step="12").own for place in (whole, cut))
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_checkpoints_hold_only_what_is_trained(pretrained, compile_cache, tmp_path):
    assert runs.train(tuned(compile_cache, pretrained), tmp_path) == 0
    before = trees.flatten(reopen.open_trained(pretrained).params)
    found = reopen.open_trained(tmp_path)
    own = trees.flatten(found.own)
    assert own and all("/lora/" in path for path in own) and not set(own) & set(before)
    for path, x in trees.flatten(found.params).items():
        if path in before:
            np.testing.assert_array_equal(x, before[path])
    with Checkpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        saved = checkpoints._read(checkpoints.latest())["arrays"]
    assert not any(path.split("/")[-1] == "w" for path in saved)


def test_another_base_is_refused(pretrained, compile_cache, tmp_path):
    place, other = tmp_path / "run", tmp_path / "base"
    shutil.copytree(pretrained, other)
    assert runs.train(tuned(compile_cache, other), place) == 0
    assert reopen.open_trained(place)
    shutil.rmtree(other / "checkpoints" / "step_00000012")
    with pytest.raises(ConfigError, match=r"is not what .* was trained over.*have the digest"):
        reopen.open_trained(place)


def test_a_run_over_a_fine_tuned_one_starts_from_what_it_learned(
    pretrained, compile_cache, tmp_path
):
    """As tasks that follow one another need it: adapters are merged before the next."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert runs.train(tuned(compile_cache, pretrained), first) == 0
    assert runs.train(tuned(compile_cache, first), second) == 0
    learned = reopen.open_trained(first)
    want = trees.flatten(base.merged(learned.run, learned.params))
    under = trees.flatten(reopen.open_trained(second).refs["base"])
    before = trees.flatten(reopen.open_trained(pretrained).params)
    path = "layers/attn/q/w"
    np.testing.assert_allclose(under[path], want[path], rtol=1e-6)
    assert np.abs(np.asarray(under[path]) - np.asarray(before[path])).max() > 1e-4
