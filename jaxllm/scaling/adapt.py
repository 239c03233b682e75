"""Ways to adapt a model, side by side: what each trains, holds, takes and costs; a verdict."""

from typing import Any, NamedTuple

from jaxllm import finetune
from jaxllm.scaling import counts

# Tokens of data below which a prompt does as well, and from which all parameters should move.
FEW_TOKENS, MANY_TOKENS = 100_000, 1_000_000_000


class Way(NamedTuple):
    """One way to adapt a model on a machine.

    Attributes:
        name: such as "qlora".
        trained: parameters that are trained.
        memory: bytes a device.
        fits: whether a device holds them.
        seconds: a step, while computing waits for the wire.
        tokens: that it is trained on.
        hours: of all of them.
        cost: in the currency of the prices, or None.
        machine: name of the smallest machine that holds it, or None.
    """

    name: str
    trained: int
    memory: float
    fits: bool
    seconds: float
    tokens: float
    hours: float
    cost: Any
    machine: Any


# {way: kind of `config.finetune` of the run that takes it}.
WAYS = {"scratch": "full"} | {kind: kind for kind in finetune.METHODS}


def compare(found, tokens, price, smallest):
    """Returns the `Way`s to adapt a model.

    Args:
        found: {way: `estimate.Estimate` of the run that takes it}.
        tokens: of the data that there is to adapt it to.
        price: of a device and hour, or None.
        smallest: {way: name of the smallest machine that holds it, or None}.
    """
    ways = []
    for way, one in found.items():
        step = one.times.exposed
        needed = counts.chinchilla_tokens(one.counts.total) if way == "scratch" else tokens
        hours = needed / one.step_tokens * step / 3600
        cost = None if price is None else price * one.machine.count * hours
        number, memory = one.share.trained_count, one.memory.total
        ways.append(Way(way, number, memory, one.fits, step, needed, hours, cost, smallest[way]))
    return ways


def verdict(ways, tokens, budget):
    """Returns (name of the way to take, the rule with its source).

    Args:
        ways: as `compare` returns.
        tokens: of the data.
        budget: money there is, or 0 for any.
    """
    by_name = {way.name: way for way in ways}

    def affordable(name):
        way = by_name.get(name)
        return bool(way) and way.fits and (not budget or way.cost is None or way.cost <= budget)

    if tokens >= by_name["scratch"].tokens and affordable("scratch"):
        return "scratch", (
            "the data are as many tokens as the model's own training wants, 20 a parameter "
            "(Hoffmann et al. 2022, arXiv:2203.15556)"
        )
    if tokens < FEW_TOKENS:
        return "in context", (
            f"under {FEW_TOKENS:,} tokens, a few hundred examples, a prompt to the model as it is "
            "is worth as much as training (Brown et al. 2020, arXiv:2005.14165; Le Scao and Rush "
            "2021, arXiv:2103.08493)"
        )
    if tokens >= MANY_TOKENS and affordable("full"):
        return "full", (
            f"from {MANY_TOKENS:,} tokens on, low-rank updates learn less than all parameters do "
            "(Biderman et al. 2024, arXiv:2405.09673)"
        )
    if affordable("lora"):
        return "lora", (
            "low-rank updates learn as much from so little data, and forget less (Hu et al. 2021, "
            "arXiv:2106.09685; Biderman et al. 2024, arXiv:2405.09673)"
        )
    if affordable("qlora"):
        return "qlora", (
            "frozen weights in 4 bits lose nothing that 16 bits reach (Dettmers et al. 2023, "
            "arXiv:2305.14314), and nothing larger fits or can be paid"
        )
    return "none", "nothing fits this machine and budget: take another machine, or a smaller model"
