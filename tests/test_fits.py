"""Rows, objectives and models that are not made for one another are refused, with what to type."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm import data, models
from jaxllm.config import ConfigError
from jaxllm.models.attention import ATTENTION
from jaxllm.models.families import model_config
from jaxllm.training import fits, setup
from tests import runs
from tests.conftest import ragged_batch, random_params

ENCODER = "configs/encoder.py:objective={},smoke"
CLASSIFY = "configs/classify.py:smoke"


def load(file, fields=()):
    """The completed config of a file, without the settings of other tests."""
    return runs.settings.load(
        file, [(name, str(value)) for name, value in dict(fields).items()], setup.KINDS
    )[0]


# (config, settings over it, what the error names, whether what it says to type mends it).
WRONG = [
    (ENCODER.format("bert"), {"model.family": "llama"}, "bert", True),
    (ENCODER.format("bert"), {"model.family": "t5"}, "bert", True),
    (ENCODER.format("xlnet"), {"model.family": "bert"}, "two_streams", True),
    (ENCODER.format("spans"), {"model.family": "bert"}, "encoder_decoder|decoder", True),
    (ENCODER.format("infill"), {"model.family": "llama"}, "bart|t5", True),
    (ENCODER.format("infill"), {"model.positions": 32}, "model.positions", True),
    (ENCODER.format("prefix"), {"model.family": "xlnet"}, "decoder", True),
    (ENCODER.format("prefix"), {"model.window": 4}, "model.window", True),
    (ENCODER.format("prefix"), {"model.attention": "lsh"}, "model.attention", True),
    (ENCODER.format("prefix"), {"mesh.seq": 2}, "mesh.seq", True),
    (ENCODER.format("prefix"), {"model.attention_every": 2}, "attention_every", True),
    (ENCODER.format("spans"), {"mesh.tensor": 2, "data.length": 30}, "data.length", True),
    (ENCODER.format("bert"), {"sample.tokens": 4}, "sample.tokens", True),
    (ENCODER.format("prefix"), {"model.lm_head": "false"}, "lm_head", False),
    (runs.FILE, {"model.family": "bert"}, "sees what it would predict", False),
    (runs.FILE, {"model.family": "t5"}, "no inputs", False),
    (CLASSIFY, {"objective.kind": "lm", "model.lm_head": "true"}, "objective.kind", True),
    (CLASSIFY, {"objective.kind": "tag"}, "objective.kind", True),
    (CLASSIFY, {"objective.kind": "contrast"}, "data.rows", False),
    (CLASSIFY, {"model.task": "tag"}, "model.task", True),
    (CLASSIFY, {"model.family": "llama", "model.pool": "first"}, "model.pool", True),
    ("configs/seq2seq.py:smoke", {"data.rows": "pairs"}, "data.rows", True),
]  # fmt: skip


@pytest.mark.parametrize(("file", "fields", "says", "mends"), WRONG)
def test_what_does_not_fit_is_refused_and_what_to_type_mends_it(file, fields, says, mends):
    config = load(file, fields)
    with pytest.raises(ConfigError, match=says) as error:
        setup.check(config, 8)
    assert "\n  Try --config." in str(error.value)
    if mends:
        edit = dict(runs.edits(str(error.value))[:1])
        setup.check(load(file, {**fields, **edit}), 8)


@pytest.mark.parametrize("objective", ["bert", "xlnet", "spans", "infill", "prefix"])
def test_each_way_to_hide_text_has_its_model(objective):
    setup.check(load(ENCODER.format(objective)), 8)


def test_the_classes_of_the_data_are_the_outputs_of_the_head(tmp_path):
    config = load(CLASSIFY, {"model.labels": 5})
    with pytest.raises(ConfigError, match="2 classes") as error:
        setup.assemble(config, tmp_path, jax.devices()[:1])
    assert runs.edits(str(error.value)) == [("model.labels", "2")]


def test_rows_with_a_prefix_get_a_kernel_that_knows_it():
    """A TPU's own kernel looks back only, and is not chosen for them."""
    for objective, kernel in [("prefix", "reference"), ("bert", "auto")]:
        config = load(ENCODER.format(objective))
        c = model_config(config.model, vocab=259, length=256)
        assert fits.for_rows(config, c).attention == kernel


@pytest.mark.parametrize("kernel", sorted(ATTENTION))
def test_kernels_that_are_let_through_know_a_prefix(kernel):
    """What a kernel's rows show of a prefix is what the reference shows, or it is refused."""
    config = load(ENCODER.format("prefix"), {"model.attention": kernel})
    if kernel in ("splash", "lsh"):
        with pytest.raises(ConfigError, match=kernel):
            setup.check(config, 1)
        return
    if kernel == "cudnn":
        pytest.skip("runs on a GPU alone; it is given the reference's own mask")
    c = model_config(config.model, vocab=259, length=32)
    found = {}
    for name in (kernel, "reference"):
        model = models.make(models.for_platform(dataclasses.replace(c, attention=name), "cpu", 32))
        batch = ragged_batch(4, 32, 259)
        batch["prefix"] = (batch["position"] < 5) & (batch["segment"] > 0)
        batch["prefix"] = batch["prefix"].astype(np.int32)
        found[name] = np.asarray(jax.jit(model.apply)(random_params(model), batch))
    real = batch["segment"] > 0
    np.testing.assert_allclose(found[kernel][real], found["reference"][real], 1e-4, 1e-5)


def test_lengths_that_do_not_divide_are_told_with_one_that_does():
    config = load(ENCODER.format("spans"), {"data.length": 30})
    shape = runs.sharding.full_shape(tensor=2)
    with pytest.raises(ConfigError, match="tensor") as error:
        fits.check_lengths(config, shape)
    good = dict(runs.edits(str(error.value)))["data.length"]
    row = data.empty(load(ENCODER.format("spans"), {"data.length": good}).data, 1)
    assert row["tokens"].shape[1] % 2 == row["inputs"].shape[1] % 2 == 0
