"""Rotary positions in a config.json: `rope_parameters` of transformers 5, and the older names."""

import math

from jaxllm.config import ConfigError

FIELDS = frozenset(
    {
        *("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq"),
        *("partial_rotary_factor", "original_max_position_embeddings"),
    }
)
_KNOWN = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        *("factor", "low_freq_factor", "high_freq_factor"),
        "original_max_position_embeddings",
    ),
    "yarn": (
        *("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
        *("attention_factor", "truncate"),
    ),
    "longrope": (
        *("factor", "original_max_position_embeddings", "short_factor", "long_factor"),
        "attention_factor",
    ),
}
_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def read(kind, data, values):
    """Returns (fields of ModelConfig, [a line for what has no counterpart here]).

    Args:
        kind: model_type.
        data: the config.json's object.
        values: fields that are known already.

    Raises:
        ConfigError: a number that is missing or none.
    """
    if kind == "gpt2":
        return {}, []
    whole, local = _sections(kind, data)
    found = {}
    for ours, theirs in (("rope_base", "rope_theta"), ("rope_fraction", "partial_rotary_factor")):
        value = whole.get(theirs, data.get(theirs))
        if value is not None:
            found[ours] = number(theirs, value)
    base = local.get("rope_theta", data.get("rope_local_base_freq"))
    if base is not None:
        found["rope_local_base"] = number("rope_local_base_freq", base)
    if local.get("rope_type", "default") != "default":
        return found, ["windowed layers have stretched positions: no counterpart here"]
    scaling, left_out = _stretch(kind, data, whole, values)
    return found | scaling, left_out


def _sections(kind, data):
    """Returns (parameters of global layers, of windowed ones where the file has them apart)."""
    found = data.get("rope_parameters") or {}
    old = data.get("rope_scaling") or {}
    for name, section in (("rope_parameters", found), ("rope_scaling", old)):
        if not isinstance(section, dict):
            raise ConfigError(f"config.json: {name}={section!r} must be an object.")
    nested = any(isinstance(value, dict) for value in found.values())
    whole = (found.get("full_attention") or {}) if nested else found
    local = (found.get("sliding_attention") or {}) if nested else {}
    if kind != "gemma3_text" and nested and local and local != whole:
        raise ConfigError("config.json: rope_parameters of each kind of layer are for gemma3.")
    return {**whole, **old}, local if kind == "gemma3_text" else {}


def _stretch(kind, data, section, values):
    """Fields of stretched positions."""
    name = section.get("rope_type", section.get("type", "default"))
    if kind == "phi3" and name in ("su", "yarn"):
        name = "longrope"  # what it was called first
    if name not in _KNOWN:
        return {}, [
            f"rope_scaling of type {name!r} has no counterpart here: positions are not stretched"
        ]
    known = {*_KNOWN[name], *_ALWAYS}
    left_out = [
        f"{field}={value!r} in rope_scaling has no counterpart here"
        for field, value in section.items()
        if field not in known and value is not None
    ]
    if section.get("truncate") is False:
        left_out.append("truncate=False in rope_scaling has no counterpart here")
    if name == "default":
        return {}, left_out
    if name == "longrope":
        return _longrope(data, section, values, left_out)
    found = dict(rope_scaling=name, rope_factor=_get(section, "factor"))
    if name == "llama3":
        found |= dict(
            rope_low_factor=_get(section, "low_freq_factor"),
            rope_high_factor=_get(section, "high_freq_factor"),
            rope_original=int(_get(section, "original_max_position_embeddings")),
        )
    if name == "yarn":
        original = section.get("original_max_position_embeddings")
        # Left out, HF takes the positions that the file says.
        original = original or data.get("max_position_embeddings") or values["positions"]
        usual = 0.1 * math.log(max(found["rope_factor"], 1.0)) + 1  # arXiv:2309.00071, eq. 22
        found |= dict(
            rope_low_factor=float(section.get("beta_slow") or 1),
            rope_high_factor=float(section.get("beta_fast") or 32),
            rope_original=int(original),
            rope_attention=float(section.get("attention_factor") or usual),
        )
    return found, left_out


def _longrope(data, section, values, left_out):
    """Phi-3's factors; the attention's factor follows from how far positions are stretched."""
    short, long = section.get("short_factor"), section.get("long_factor")
    if not isinstance(short, list) or not isinstance(long, list):
        return {}, ["rope_scaling of type 'longrope' without lists of short_factor and long_factor"]
    original = section.get("original_max_position_embeddings")
    original = original or data.get("original_max_position_embeddings") or values["positions"]
    factor = section.get("factor") or values["positions"] / original
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return (
        dict(
            rope_scaling="longrope",
            rope_short=tuple(number("short_factor", x) for x in short),
            rope_long=tuple(number("long_factor", x) for x in long),
            rope_original=int(original),
            rope_attention=float(section.get("attention_factor") or usual),
        ),
        left_out,
    )


def number(name, value):
    """Returns a value as float.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"config.json: {name}={value!r} must be a number.")


def _get(section, name):
    if section.get(name) is None:
        raise ConfigError(f"config.json: rope_scaling has no {name!r}.")
    return number(name, section[name])


def write(kind, c):
    """Returns the fields of a config.json, by the newer name and by the older ones.

    Args:
        kind: model_type.
        c: ModelConfig with rotary positions.
    """
    section = {"rope_type": "default" if c.rope_scaling == "none" else c.rope_scaling}
    if c.rope_scaling == "longrope":
        section |= dict(short_factor=list(c.rope_short), long_factor=list(c.rope_long))
    elif c.rope_scaling != "none":
        section["factor"] = c.rope_factor
    if c.rope_scaling == "llama3":
        section["low_freq_factor"] = c.rope_low_factor
        section["high_freq_factor"] = c.rope_high_factor
    if c.rope_scaling == "yarn":
        section |= dict(beta_slow=c.rope_low_factor, beta_fast=c.rope_high_factor)
    if c.rope_scaling in ("llama3", "yarn", "longrope"):
        section["original_max_position_embeddings"] = c.rope_original
    if c.rope_scaling in ("yarn", "longrope"):
        section["attention_factor"] = c.rope_attention
    found = {"rope_theta": c.rope_base}
    if c.rope_scaling != "none":
        found["rope_scaling"] = dict(section)
    fraction = {"partial_rotary_factor": c.rope_fraction} if kind in ("phi", "phi3") else {}
    new = {**section, "rope_theta": c.rope_base, **fraction}
    if kind == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": c.rope_local_base}
        new = {"full_attention": new, "sliding_attention": local}
        found["rope_local_base_freq"] = c.rope_local_base
    if kind == "phi3":
        found["original_max_position_embeddings"] = (
            c.rope_original if c.rope_scaling == "longrope" else c.positions
        )
    return found | fraction | {"rope_parameters": new}
