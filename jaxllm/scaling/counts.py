"""Parameters: how many there are and meet a token; bytes that they take."""

import math
from typing import NamedTuple

from jaxllm.scaling import shapes


class Counts(NamedTuple):
    """Numbers of parameters.

    Attributes:
        total: all.
        without_tables: without those that are looked up (tokens, positions), as scaling laws count
            (Kaplan et al. 2020); a tied table counts as looked up, an output head does not.
        active: that a token meets: without the experts it is not sent to.
    """

    total: int
    without_tables: int
    active: int


def count(infos, c):
    """Returns the `Counts` of a model.

    Args:
        infos: {path: ParamInfo}.
        c: resolved ModelConfig.
    """
    sizes = {path: math.prod(info.shape) for path, info in infos.items()}
    tables = sum(n for path, n in sizes.items() if infos[path].is_table)
    of_experts = sum(n for path, n in sizes.items() if "expert" in infos[path].axes)
    idle = of_experts * (c.experts - c.experts_per_token) // c.experts if c.experts else 0
    total = sum(sizes.values())
    return Counts(total, total - tables, total - idle)


class Sizes(NamedTuple):
    """Bytes of a model that is only used, not trained, as `accelerate` estimates them.

    Attributes:
        largest_layer: of the largest layer, or of the table, in float32: what must fit at once.
        total: in float32; half of it in 16 bit, a quarter in int8, an eighth in int4.
        adam: to train it all in float32: weights, gradients and two moments.
    """

    largest_layer: int
    total: int
    adam: int


def sizes(infos, *, head=True):
    """Returns the `Sizes` of a model, whose GB are 2^30 bytes where accelerate prints them.

    Args:
        infos: {path: ParamInfo}.
        head: whether an untied output head counts; accelerate leaves it out of a bare model.
    """
    kept = {p: math.prod(i.shape) for p, i in infos.items() if head or not p.startswith("head/")}
    outside = [n for path, n in kept.items() if not infos[path].is_stacked]
    largest, total = max(*_largest_layers(infos), *outside), sum(kept.values())
    return Sizes(4 * largest, 4 * total, 16 * total)


def _largest_layers(infos):
    """Parameters of the largest layer of each stack, where layers may differ in their parts."""
    stacks = {}
    for path, info in infos.items():
        if info.is_stacked:
            stack, _, rest = path.partition("layers/")
            parts = stacks.setdefault(stack, {})
            name = rest.split("/")[0]
            parts[name] = parts.get(name, 0) + math.prod(info.shape[1:])
    found = []
    for parts in stacks.values():
        for pair in INSTEAD:  # a layer has one of the two
            if set(pair) <= set(parts):
                del parts[min(pair, key=parts.get)]
        found.append(sum(parts.values()))
    return found


INSTEAD = (("attn", "recurrence"), ("mlp", "moe"))


def zero_bytes(parameters, devices, stage):
    """Bytes a device of weights, gradients and Adam's state in mixed precision.

    Args:
        parameters: how many.
        devices: over which they are split.
        stage: of ZeRO; 0 splits nothing.

    Source: Rajbhandari et al. 2020 (arXiv:1910.02054), figure 1: 2 + 2 + 12 bytes a parameter.
    """
    split = (0, 12, 14, 16)[stage]
    return parameters * (16 - split + split / devices)


def chinchilla_tokens(parameters):
    """Tokens that use a training budget best: about 20 a parameter (Hoffmann et al. 2022,
    arXiv:2203.15556, table 3)."""
    return 20 * parameters


def kv_cache_bytes(c, tokens, bytes_per_number=2, inputs=0):
    """Bytes that decoding keeps of a row.

    Keys and values of `tokens` tokens in all layers that attend, windows no more than themselves;
    of an encoder's `inputs` in all layers; the states of recurrences, in float32, and the tokens
    that their convolutions see.
    """
    layers = shapes.attending(c)
    kept = sum(min(tokens, c.window) if c.is_windowed(i) else tokens for i in layers)
    kept += c.layers * inputs if c.assembly == "encoder_decoder" else 0
    states = (c.layers - len(layers)) * c.recurrent_width
    tails = states * (c.conv_width - 1) * bytes_per_number
    return kept * 2 * c.kv_heads * c.head_width * bytes_per_number + states * 4 + tails
