"""Learning-rate schedules: a linear warm-up to the peak, then a curve.

Every factory takes `steps`, the length of the run, and returns a `Schedule`. The rate at step s is
the one that update s uses, so a decay that ends at `steps` is one step short of its last value in
the last update.
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import optax


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A learning rate by step: `peak` times `curve(step)`; an `optax.Schedule`.

    Attributes:
        peak: highest learning rate.
        curve: step -> fraction of the peak. Kept apart so that parameters with another peak can
            follow the same curve.
    """

    peak: float
    curve: Callable

    def __call__(self, step):
        """Returns float32[]: the rate of update `step`, an int or a traced int."""
        return jnp.asarray(self.peak * self.curve(step), jnp.float32)


def constant(steps, *, lr, warmup_steps=0):
    """Makes the schedule that stays at the peak.

    Args:
        steps: updates of the whole run.
        lr: peak learning rate, > 0.
        warmup_steps: updates before the peak; update s has lr * (s + 1) / (warmup_steps + 1), so
            that the first one already moves.

    Raises:
        ValueError: lr is not positive, or the warm-up does not fit the run.
    """
    _check_run(steps, lr, warmup_steps)
    return _warm(lr, warmup_steps, optax.constant_schedule(1.0))


def linear(steps, *, lr, warmup_steps=0, final=0.0):
    """Makes a straight decay from the peak to `final` times the peak, reached at `steps`.

    Args and errors as `constant`; `final` is a fraction in [0, 1].
    """
    _check_run(steps, lr, warmup_steps)
    _check_fraction("final", final)
    return _warm(lr, warmup_steps, optax.linear_schedule(1.0, final, steps - warmup_steps))


def cosine(steps, *, lr, warmup_steps=0, final=0.1):
    """Makes half a cosine from the peak to `final` times the peak, reached at `steps`.

    Args and errors as `constant`; `final` is a fraction in [0, 1]. A tenth is the habit of GPT-3
    (Brown et al. 2020, arXiv:2005.14165, appendix B).

    Source:
        Loshchilov and Hutter (2017), arXiv:1608.03983, equation 5, without restarts.
    """
    _check_run(steps, lr, warmup_steps)
    _check_fraction("final", final)
    curve = optax.cosine_decay_schedule(1.0, steps - warmup_steps, alpha=final)
    return _warm(lr, warmup_steps, curve)


def step(steps, *, lr, warmup_steps=0, at=(0.8, 0.9), factor=0.316):
    """Makes a piecewise constant decay: times `factor` at each fraction `at` of the run.

    Args and errors as `constant`, and:
        at: rising fractions of `steps` in (0, 1), after the warm-up.
        factor: what each of them multiplies the rate by, in (0, 1].

    Source:
        The defaults are DeepSeek LLM's (2024), arXiv:2401.02954, section 2.3.
    """
    _check_run(steps, lr, warmup_steps)
    rising = all(0 < a < 1 for a in at) and list(at) == sorted(set(at))
    if not (at and rising):
        raise ValueError(f"at={at} must be rising fractions of the run in (0, 1), such as (0.8,).")
    if not 0 < factor <= 1:
        raise ValueError(f"factor={factor} must be in (0, 1], such as 0.1.")
    drops = [round(fraction * steps) for fraction in at]
    if drops[0] < warmup_steps:
        raise ValueError(
            f"at={at} drops at step {drops[0]}, inside warmup_steps={warmup_steps}. "
            f"Shorten the warm-up or start at {warmup_steps / steps:.3g} or later."
        )
    # Fractions that a short run rounds to one step all count there.
    scales = {}
    for drop in drops:
        scales[drop - warmup_steps] = scales.get(drop - warmup_steps, 1.0) * factor
    return _warm(lr, warmup_steps, optax.piecewise_constant_schedule(1.0, scales))


def inverse_sqrt(steps, *, lr, warmup_steps=0, timescale=0, final=0.0):
    """Makes the decay with one over the root of the step: lr * sqrt(timescale / step).

    Args and errors as `constant`, and:
        timescale: the rate is flat up to this step; 0 means the warm-up (at least 1).
        final: fraction of the peak, in [0, 1], below which the rate does not fall.

    Source:
        Vaswani et al. (2017), arXiv:1706.03762, equation 3; Raffel et al. (2020),
        arXiv:1910.10683, section 3.1.2 (timescale 10,000).
    """
    _check_run(steps, lr, warmup_steps)
    _check_fraction("final", final)
    if timescale < 0 or 0 < timescale < warmup_steps:
        raise ValueError(
            f"timescale={timescale} must be 0 (the warm-up) or at least "
            f"warmup_steps={warmup_steps}, where the peak is reached."
        )
    flat = max(timescale or warmup_steps, 1)

    def curve(after):
        now = jnp.maximum(jnp.asarray(after + warmup_steps, jnp.float32), flat)
        return jnp.maximum(jnp.sqrt(flat / now), final)

    return _warm(lr, warmup_steps, curve)


def wsd(steps, *, lr, warmup_steps=0, decay_fraction=0.2, shape="sqrt", final=0.0):
    """Makes warm-up, a stable peak, and a decay over the last part of the run.

    Args and errors as `constant`, and:
        decay_fraction: part of `steps` that decays, in (0, 1].
        shape: "sqrt" falls as 1 - sqrt(t) for t from 0 to 1, steep at first; "linear" as 1 - t.
        final: fraction of the peak, in [0, 1], reached at `steps`.

    Source:
        Hu et al. (2024), arXiv:2404.06395, section 4; Hägele et al. (2024), arXiv:2405.18392,
        equation 1 and section 3 (the "sqrt" shape, and a fifth of the run).
    """
    _check_run(steps, lr, warmup_steps)
    _check_fraction("final", final)
    if shape not in ("linear", "sqrt"):
        raise ValueError(f"shape={shape!r} is unknown. Known: 'linear', 'sqrt'.")
    if not 0 < decay_fraction <= 1:
        raise ValueError(f"decay_fraction={decay_fraction} must be in (0, 1], such as 0.2.")
    decay_steps = max(1, round(decay_fraction * steps))
    stable_steps = steps - warmup_steps - decay_steps
    if stable_steps < 0:
        raise ValueError(
            f"warmup_steps={warmup_steps} and decay_fraction={decay_fraction} ({decay_steps} steps)"
            f" do not fit into {steps} steps. "
            f"Try decay_fraction={(steps - warmup_steps) / steps:.3g} or less."
        )
    progress = optax.linear_schedule(0.0, 1.0, decay_steps)

    def curve(after):
        t = progress(jnp.maximum(after - stable_steps, 0))
        return final + (1.0 - final) * (1.0 - (jnp.sqrt(t) if shape == "sqrt" else t))

    return _warm(lr, warmup_steps, curve)


def _warm(lr, warmup_steps, curve):
    """Returns a Schedule that rises to its peak and then follows curve(steps since then)."""
    if not warmup_steps:
        return Schedule(lr, curve)
    rise = optax.linear_schedule(1.0 / (warmup_steps + 1), 1.0, warmup_steps)
    return Schedule(lr, optax.join_schedules([rise, curve], [warmup_steps]))


def _check_run(steps, lr, warmup_steps):
    """Raises ValueError unless the run has steps, a rate, and room after the warm-up."""
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1.")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr={lr} must be positive and finite, such as 3e-4.")
    if not 0 <= warmup_steps < steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must be at least 0 and less than the run's {steps} steps,"
            f" such as {steps // 10}."
        )


def _check_fraction(name, value):
    """Raises ValueError unless value is in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} is a fraction of the peak; it must be in [0, 1].")
