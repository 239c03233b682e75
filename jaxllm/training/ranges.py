"""Which values the plain settings may have; those of a `kind` are checked by its factory."""

import math

from jaxllm.config import ConfigError
from jaxllm.training.stop import RESERVE_S

# {field: (least, a value that works)}
AT_LEAST = {
    "steps": (1, 1_000),
    "data.batch": (1, 8),
    "data.length": (1, 128),
    "data.prefetch": (1, 2),
    "step.micro_batches": (1, 1),
    "step.clip": (0, 1.0),
    "step.skip_limit": (1, 4),
    "validate.every": (0, 0),
    "validate.batch": (1, 8),
    "validate.batches": (0, 0),
    "validate.patience": (0, 0),
    "validate.min_gain": (0, 0.0),
    "checkpoint.every": (0, 0),
    "checkpoint.keep_last": (1, 2),
    "checkpoint.keep_best": (0, 1),
    "log.every": (1, 20),
    "sample.every": (0, 0),
    "sample.tokens": (0, 200),
    "sample.temperature": (0, 0.8),
    "sample.top_k": (0, 0),
    "profile.first": (0, 0),
    "profile.steps": (0, 0),
    "runtime.watchdog_s": (0, 0.0),
    "runtime.cpu_devices": (0, 0),
}
CHOICES = {"data.bad_input": ("error", "skip")}


def check(config):
    """Raises ConfigError for a plain setting that is out of its range.

    Args:
        config: the whole ConfigDict.
    """
    for field, (least, good) in AT_LEAST.items():
        value = get(config, field)
        _require(least <= value < math.inf, field, value, f"at least {least}", good)
    ema, top_p, grace_s = config.step.ema, config.sample.top_p, config.runtime.grace_s
    _require(0 <= ema < 1, "step.ema", ema, "at least 0 and below 1", 0.999)
    _require(0 < top_p <= 1, "sample.top_p", top_p, "above 0 and at most 1", 0.95)
    allowed = f"above {RESERVE_S}, which the last writes may take"
    _require(RESERVE_S < grace_s < math.inf, "runtime.grace_s", grace_s, allowed, 9.0)
    for field, known in CHOICES.items():
        value = get(config, field)
        _require(value in known, field, value, f"one of {', '.join(known)}", known[0])


def get(config, field):
    """Returns the value of a dotted field."""
    for name in field.split("."):
        config = config[name]
    return config


def _require(holds, field, value, allowed, good):
    if not holds:
        raise ConfigError(
            f"config.{field}={value!r} must be {allowed}.\n  Try --config.{field}={good}."
        )
