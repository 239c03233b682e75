"""The self-check holds for every config, and notices what it is for."""

import pathlib

import jax
import pytest

from jaxllm import settings
from jaxllm.training import equalities
from jaxllm.training.setup import KINDS

CONFIGS = sorted(p.stem for p in pathlib.Path("configs").glob("[!_b]*.py"))


def check(name, tmp_path, overrides=()):
    config, _ = settings.load(f"configs/{name}.py:smoke", list(overrides), KINDS)
    return {result.name: result for result in equalities.check(config, tmp_path)}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_passes(name, tmp_path):
    results = check(name, tmp_path)
    assert len(results) == len(equalities.CHECKS)
    assert all(result.holds for result in results.values()), results


def test_a_model_that_leaks_across_documents_fails(tmp_path, monkeypatch):
    """Attention that ignores segments must not pass as packed equals unpacked."""
    from jaxllm.models import attention

    real = attention.visible

    def leaky(rows, window, *_):
        return real(rows._replace(query_segment_BT=rows.key_segment_BS * 0 + 1,
                                  key_segment_BS=rows.key_segment_BS * 0 + 1), window)  # fmt: skip

    monkeypatch.setattr(attention, "visible", leaky)
    monkeypatch.setattr(equalities, "CHECKS", (equalities.packed_equals_unpacked,))
    (result,) = check("shakespeare_char", tmp_path).values()
    assert not result.holds


def test_not_a_number_does_not_hold():
    nan = equalities.largest({"a": jax.numpy.ones(2)}, {"a": jax.numpy.full(2, jax.numpy.nan)})
    assert not equalities.Result("", "", nan, 1.0, 0.0).holds
