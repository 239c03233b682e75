"""Models of every family: the same logits here and in transformers, and the same bytes again."""

import numpy as np
import pytest

from jaxllm.models.families import FAMILIES, hf, hf_write, model_config
from jaxllm.models.weights import load, safetensors
from tests import weights_helpers as helpers

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
# The third of each, in half precision, is slow's.
CASES = [
    pytest.param(kind, number, marks=[pytest.mark.slow] * (number == 2))
    for kind in helpers.CASES
    for number in range(3)
]


@pytest.mark.parametrize("kind, number", CASES)
def test_a_model_comes_in_and_goes_out_as_it_was(kind, number, tmp_path):
    dtype = helpers.DTYPES[number]
    theirs = helpers.make_theirs(kind, number, dtype)
    helpers.save_theirs(theirs, tmp_path / "in", dtype)
    view = safetensors.open_folder(tmp_path / "in")
    c, family, params = helpers.open_ours(view)
    tokens = helpers.tokens_of(c.vocab)
    wanted = helpers.their_logits(theirs, tokens)
    found = helpers.our_logits(c, params, tokens)
    assert np.abs(wanted).max() > 0.3  # logits of a model that is not all zeros
    assert helpers.largest_difference(found, wanted) <= 1e-4 * max(np.abs(wanted).max(), 1)

    helpers.export_the_same(view, c, family, params, tmp_path / "out")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="float32", experts_implementation="eager"
    )
    difference = np.abs(helpers.their_logits(loaded.eval(), tokens) - wanted)
    assert difference.max() <= 1e-6 * max(np.abs(wanted).max(), 1)


def test_every_family_with_files_is_tried():
    kinds = {kind for kind, (family, _) in hf.TYPES.items() if FAMILIES[family].names}
    assert kinds == set(helpers.CASES) == set(hf_write.ARCHITECTURES)


def test_every_published_size_can_be_said_in_a_config_json():
    for name, family in FAMILIES.items():
        for size in family.sizes if family.names else ():
            c = model_config({"family": name, "size": size}, vocab=1, length=1)
            transformers.AutoConfig.for_model(**hf_write.to_hf(c, name))  # reads it back itself


def test_the_older_names_of_rotary_positions_say_the_same():
    c = model_config({"family": "llama", "size": "3.2-1b"}, vocab=1, length=1)
    new = hf_write.to_hf(c, "llama")
    old = {name: value for name, value in new.items() if name != "rope_parameters"}
    only_new = {n: v for n, v in new.items() if n not in ("rope_scaling", "rope_theta")}
    assert hf.from_hf(old, strict=True) == hf.from_hf(only_new, strict=True)
    assert hf.from_hf(old, strict=True)[0]["rope_scaling"] == "llama3"


def test_a_long_row_takes_the_long_factors():
    """The case with 16 original positions differs from the one that never gets there."""
    (short, _, a), (long, _, b) = (
        helpers.open_ours(load.export(*_drawn(original), "phi3")) for original in (40, 16)
    )
    tokens = helpers.tokens_of(short.vocab)
    assert helpers.largest_difference(
        helpers.our_logits(short, a, tokens), helpers.our_logits(long, b, tokens)
    ) > 1e-3  # fmt: skip


def _drawn(original):
    """(params, ModelConfig) of a Phi-3 whose positions were stretched from `original`."""
    from jaxllm import models
    from tests.conftest import random_params, tiny_config

    c = tiny_config(
        length=64, rope_scaling="longrope", rope_short=(1.0, 1.1, 1.2, 1.3),
        rope_long=(1.0, 3.0, 5.0, 7.0), rope_original=original, rope_attention=1.0, norm_eps=1e-5,
    )  # fmt: skip
    return random_params(models.make(c), scale=0.5), c
