"""Schedules against closed forms, and their errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.optim import SCHEDULES, make_schedule

# kind and options, then {step: fraction of the peak} for 100 steps, by hand from the formulas.
POINTS = [
    (dict(kind="constant"), {0: 1, 50: 1, 100: 1}),
    (dict(kind="constant", warmup_steps=9), {0: 0.1, 4: 0.5, 8: 0.9, 9: 1, 99: 1}),
    (dict(kind="linear"), {0: 1, 25: 0.75, 99: 0.01, 100: 0, 120: 0}),
    (dict(kind="linear", warmup_steps=20, final=0.2), {19: 20 / 21, 20: 1, 60: 0.6, 100: 0.2}),
    (dict(kind="cosine", final=0.0), {0: 1, 25: 0.5 + 0.5 * math.sqrt(0.5), 50: 0.5, 100: 0}),
    (dict(kind="cosine", warmup_steps=20), {20: 1, 60: 0.55, 100: 0.1, 200: 0.1}),
    (dict(kind="step"), {79: 1, 80: 0.316, 89: 0.316, 90: 0.316**2, 100: 0.316**2}),
    (dict(kind="step", warmup_steps=10, at=(0.5,), factor=0.1), {10: 1, 49: 1, 50: 0.1}),
    (dict(kind="inverse_sqrt", warmup_steps=4), {0: 0.2, 4: 1, 16: 0.5, 64: 0.25}),
    (dict(kind="inverse_sqrt", timescale=25), {0: 1, 25: 1, 100: 0.5}),
    (dict(kind="inverse_sqrt", warmup_steps=4, final=0.4), {16: 0.5, 64: 0.4}),
    (dict(kind="wsd", shape="linear"), {0: 1, 80: 1, 90: 0.5, 100: 0}),
    (dict(kind="wsd", warmup_steps=10, final=0.1), {10: 1, 80: 1, 85: 0.55, 100: 0.1}),
    (dict(kind="wsd", decay_fraction=1.0), {0: 1, 25: 0.5, 81: 0.1, 100: 0}),
]


@pytest.mark.parametrize("section, points", POINTS, ids=lambda value: str(value.get("kind", "")))
def test_points_of_the_formula(section, points):
    """Rates are the closed form's, for Python ints, for traced ones, and in float32."""
    schedule = make_schedule({**section, "lr": 0.02}, 100)
    assert schedule.peak == 0.02
    traced = jax.jit(schedule)
    for step, fraction in points.items():
        np.testing.assert_allclose(schedule(step), 0.02 * fraction, rtol=2e-6, atol=1e-9)
        np.testing.assert_allclose(traced(jnp.int32(step)), schedule(step), rtol=2e-6, atol=1e-9)
        assert schedule(step).dtype == traced(step).dtype == jnp.float32


@pytest.mark.parametrize("kind", SCHEDULES)
def test_warmup_rises_to_the_peak_and_never_jumps_over_it(kind):
    """With warm-up, no update is wasted at rate 0 and none exceeds the peak."""
    schedule = make_schedule(dict(kind=kind, lr=1.0, warmup_steps=7), 50)
    rates = np.array([schedule(step) for step in range(50)])
    np.testing.assert_allclose(rates[:8], np.arange(1, 9) / 8, rtol=1e-6)
    assert rates.max() <= 1 and rates.min() > 0
    assert np.all(np.diff(rates[7:]) <= 1e-7)


@pytest.mark.parametrize(
    "section, words",
    [
        (dict(kind="cosin", lr=1.0), ("'cosin'", "'cosine'")),
        (dict(kind="cosine"), ("lr", "--config.schedule.lr=")),
        (dict(kind="cosine", lr=0.0), ("lr=0.0", "positive")),
        (dict(kind="cosine", lr=1.0, finl=0.1), ("finl", "'final'")),
        (dict(kind="linear", lr=1.0, final=1.5), ("final=1.5", "[0, 1]")),
        (dict(kind="constant", lr=1.0, warmup_steps=100), ("warmup_steps=100", "100 steps")),
        (dict(kind="step", lr=1.0, at=(0.9, 0.5)), ("(0.9, 0.5)", "rising")),
        (dict(kind="step", lr=1.0, at=(0.1,), warmup_steps=20), ("step 10", "warmup_steps=20")),
        (dict(kind="step", lr=1.0, factor=2.0), ("factor=2.0", "(0, 1]")),
        (dict(kind="inverse_sqrt", lr=1.0, timescale=3, warmup_steps=5), ("timescale=3", "5")),
        (dict(kind="wsd", lr=1.0, shape="cubic"), ("'cubic'", "'sqrt'")),
        (dict(kind="wsd", lr=1.0, decay_fraction=0.9, warmup_steps=20), ("decay_fraction=0.8",)),
    ],
)
def test_errors_say_what_is_allowed(section, words):
    """A schedule that cannot work stops as ConfigError, with the field, value and range."""
    with pytest.raises(ConfigError) as error:
        make_schedule(section, 100)
    assert all(word in str(error.value) for word in words), error.value


def test_drops_that_a_short_run_rounds_together_all_count():
    """A smoke run of 2 steps ends at the same fraction of the peak as a long one."""
    schedule = make_schedule(dict(kind="step", lr=1.0, at=(0.8, 0.9), factor=0.5), 2)
    np.testing.assert_allclose(schedule(2), 0.25)
