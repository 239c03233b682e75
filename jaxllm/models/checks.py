"""Whether the fields of a model go together."""

import dataclasses
import math

from jaxllm.config import ConfigError

POSITIVE = (
    "layers",
    "width",
    "mlp_width",
    "heads",
    "kv_heads",
    "head_width",
    "vocab",
    "pipeline_rounds",
    "experts_per_token",
    "moe_every",
    "labels",
    "conv_width",
)
NOT_NEGATIVE = (
    "norm_eps",
    "rope_base",
    "rope_local_base",
    "rope_fraction",
    "rope_factor",
    "rope_attention",
    "query_scale",
    "window",
    "window_first",
    "global_every",
    "attention_softcap",
    "logit_softcap",
    "unroll",
    "pipeline_pieces",
    "experts",
    "expert_width",
    "shared_experts",
    "capacity",
    "balance_loss",
    "router_z_loss",
    "encoder_layers",
    "token_types",
    "position_offset",
    "attention_every",
    "recurrent_width",
)


def check(c, values, vocab, length):
    """Raises ConfigError for fields of a ModelConfig that contradict each other.

    Args:
        c: ModelConfig with what was 0 filled in.
        values: {field: value} as given.
        vocab: size of the tokenizer's vocabulary.
        length: tokens in a row of training data.
    """
    _check_ranges(c)
    _check_heads(c, values)
    _check_pattern(c)
    _check_assembly(c)
    _check_data(c, vocab, length)
    _check_rotation(c)
    _check_stretch(c)
    if not 0 <= c.dropout < 1:
        raise ConfigError(
            f"config.model.dropout={c.dropout} must be in [0, 1).\n"
            "  Try --config.model.dropout=0.1."
        )
    if c.norm == "rms" and c.norm_bias:
        raise ConfigError(
            "config.model.norm_bias=True needs norm='layer'.\n  Try --config.model.norm=layer."
        )


def _check_ranges(c):
    """Raises ConfigError for numbers below the least that they may be."""
    default = {field.name: field.default for field in dataclasses.fields(c)}
    for name in POSITIVE:
        if getattr(c, name) < 1:
            good = math.gcd(c.width, default[name]) if name == "heads" else default[name]
            raise ConfigError(
                f"config.model.{name}={getattr(c, name)} must be at least 1.\n"
                f"  Try --config.model.{name}={good}."
            )
    for name in NOT_NEGATIVE:
        if not 0 <= getattr(c, name) < math.inf:
            raise ConfigError(
                f"config.model.{name}={getattr(c, name)} must not be negative.\n"
                f"  Try --config.model.{name}={default[name]}."
            )


def _check_heads(c, values):
    """Raises ConfigError for heads that do not divide what is split over them."""
    if not values.get("head_width") and c.width % c.heads:
        nearest = max(n for n in range(1, c.heads + 1) if c.width % n == 0)
        raise ConfigError(
            f"config.model.width={c.width} does not split evenly over heads={c.heads}.\n"
            f"  Try --config.model.heads={nearest}, or "
            f"--config.model.width={math.ceil(c.width / c.heads) * c.heads}."
        )
    if c.heads % c.kv_heads:
        nearest = max(n for n in range(1, c.kv_heads + 1) if c.heads % n == 0)
        raise ConfigError(
            f"config.model.kv_heads={c.kv_heads} does not divide heads={c.heads}.\n"
            f"  Try --config.model.kv_heads={nearest}."
        )


def _check_data(c, vocab, length):
    """Raises ConfigError for a model with fewer positions or tokens than its data."""
    if length > c.positions:
        raise ConfigError(
            f"config.data.length={length} is longer than config.model.positions={c.positions}.\n"
            f"  Try --config.data.length={c.positions}, or --config.model.positions={length}."
        )
    if vocab > c.vocab:
        raise ConfigError(
            f"config.model.vocab={c.vocab} is smaller than the tokenizer's {vocab}.\n"
            f"  Try --config.model.vocab={math.ceil(vocab / 64) * 64}, or 0 for the tokenizer's."
        )


def _check_rotation(c):
    """Raises ConfigError for a part of a head that cannot be rotated."""
    if c.rope_fraction > 1:
        raise ConfigError(
            f"config.model.rope_fraction={c.rope_fraction} must be at most 1.\n"
            "  Try --config.model.rope_fraction=1.0."
        )
    if c.position == "rope" and int(c.head_width * c.rope_fraction) % 2:
        raise ConfigError(
            f"config.model.head_width={c.head_width} with rope_fraction={c.rope_fraction} rotates "
            f"an odd number of dimensions ({int(c.head_width * c.rope_fraction)}).\n"
            f"  Try --config.model.head_width={c.head_width + 1}."
        )


def _check_stretch(c):
    """Raises ConfigError for stretched positions that lack what they need."""
    pairs = int(c.head_width * c.rope_fraction) // 2
    for name in ("rope_short", "rope_long") if c.rope_scaling == "longrope" else ():
        factors = getattr(c, name)
        good = [isinstance(f, int | float) and 0 < f < math.inf for f in factors]
        if len(good) != pairs or not all(good):
            raise ConfigError(
                f"config.model.{name} has {len(good)} factors; rope_scaling='longrope' needs "
                f"{pairs}, a positive number for each rotated pair of a head's "
                "dimensions.\n  Try --config.model.rope_scaling=none."
            )
    if c.rope_scaling == "yarn" and not 0 < c.rope_low_factor < c.rope_high_factor:
        raise ConfigError(
            f"config.model.rope_low_factor={c.rope_low_factor} must be above 0 and below "
            f"rope_high_factor={c.rope_high_factor}.\n  Try --config.model.rope_low_factor=1.0 "
            "--config.model.rope_high_factor=32.0."
        )
    if c.qk_norm and c.qk_norm_whole:
        raise ConfigError(
            "config.model.qk_norm and qk_norm_whole are both True: heads are normed one by one or "
            "together.\n  Try --config.model.qk_norm=false."
        )


def _check_pattern(c):
    """Raises ConfigError for windows and experts that do not fit the layers."""
    if c.window_first and not c.window:
        raise ConfigError(
            f"config.model.window_first={c.window_first} needs a window.\n"
            "  Try --config.model.window_first=0."
        )
    if c.experts and c.experts_per_token > c.experts:
        raise ConfigError(
            f"config.model.experts_per_token={c.experts_per_token} is more than the "
            f"experts={c.experts} there are.\n  Try --config.model.experts_per_token={c.experts}."
        )
    if c.experts and c.moe_every > 1 and c.layers % c.period:
        raise ConfigError(
            f"config.model.layers={c.layers} is no multiple of {c.period}, after which the pattern "
            f"of windows and experts repeats.\n"
            f"  Try --config.model.layers={math.ceil(c.layers / c.period) * c.period}."
        )


def _check_assembly(c):
    """Raises ConfigError for fields that only some assemblies have."""
    if c.assembly != "encoder_decoder" and c.encoder_layers:
        raise ConfigError(
            f"config.model.encoder_layers={c.encoder_layers} is for an encoder_decoder; this is a "
            f"{c.assembly!r}.\n  Try --config.model.encoder_layers=0."
        )
    if c.assembly == "encoder_decoder" and (c.two_streams or c.experts or c.task != "none"):
        raise ConfigError(
            "config.model.assembly='encoder_decoder' goes without two_streams, experts and a "
            "task's head.\n  Try --config.model.assembly=decoder."
        )
    if c.window and (c.assembly != "decoder" or c.two_streams):
        raise ConfigError(
            f"config.model.window={c.window} is for decoders, whose tokens look back.\n"
            "  Try --config.model.window=0."
        )
    if c.attention_every and (c.assembly != "decoder" or c.parallel):
        raise ConfigError(
            f"config.model.attention_every={c.attention_every} is for decoders that look back one "
            "layer after another.\n  Try --config.model.attention_every=0."
        )
    if c.attention_every and c.recurrent_width % c.heads:
        good = math.ceil(c.recurrent_width / c.heads) * c.heads
        raise ConfigError(
            f"config.model.recurrent_width={c.recurrent_width} does not split evenly over "
            f"heads={c.heads}.\n"
            f"  Try --config.model.recurrent_width={good}."
        )
    if c.position == "buckets" and not (
        c.distance_buckets >= 4
        and c.distance_buckets % 4 == 0
        and c.distance_max > c.distance_buckets // 2
    ):
        raise ConfigError(
            f"config.model.distance_buckets={c.distance_buckets} must be a multiple of 4 with "
            f"distance_max={c.distance_max} above its half.\n"
            "  Try --config.model.distance_buckets=32 --config.model.distance_max=128."
        )
    if c.position == "sinusoids" and c.width % 2:
        raise ConfigError(
            f"config.model.width={c.width} must be even for sinusoids.\n"
            f"  Try --config.model.width={c.width + 1}."
        )
    if not c.lm_head and c.task == "none" and c.assembly != "encoder":
        raise ConfigError(
            "config.model.lm_head=False leaves the model without an output.\n"
            "  Try --config.model.lm_head=True, or --config.model.task=classify."
        )
