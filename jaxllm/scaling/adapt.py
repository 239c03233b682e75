"""Ways to adapt a model, side by side: what each trains, holds, takes and costs; a verdict."""

from typing import Any, NamedTuple

from jaxllm.scaling import counts

RANK, PROMPT_TOKENS, BOTTLENECK = 16, 20, 64
MATRICES = ("q", "k", "v", "o", "gate", "up", "down")  # that LoRA goes beside
TRAINED_BYTES = 16  # of a parameter that is trained: itself, its gradient, two moments, in float32
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


WAYS = ("scratch", "full", "lora", "qlora", "prompt", "prefix", "adapter")


def trained(way, share):
    """How many parameters a way trains."""
    c, infos = share.c, share.infos
    return {
        "scratch": lambda: counts.count(infos, c).total,
        "full": lambda: counts.count(infos, c).total,
        "lora": lambda: counts.low_rank(infos, RANK, MATRICES),
        "qlora": lambda: counts.low_rank(infos, RANK, MATRICES),
        "prompt": lambda: counts.prompt(c, PROMPT_TOKENS),
        "prefix": lambda: counts.prefix(c, PROMPT_TOKENS),
        "adapter": lambda: counts.adapters(c, BOTTLENECK),
    }[way]()


def memory_bytes(way, found):
    """Bytes a device: of a frozen model its weights alone, in 16 bit or NF4, and what a step holds.

    Args:
        way: one of WAYS.
        found: `estimate.Estimate` of training all of it.
    """
    share, step = found.share, found.memory.step
    if way in ("scratch", "full"):
        return found.memory.total
    hidden = sum(share.stored(path) for path, info in share.infos.items() if info.inputs)
    rest = sum(map(share.stored, share.infos)) - hidden
    frozen = hidden * (counts.NF4_BITS / 8 if way == "qlora" else 2) + rest * 2
    own = trained(way, share) * TRAINED_BYTES / found.machine.count
    held = sum(size for kind, size in step.items() if kind not in ("copies", "gradients"))
    return frozen + own + held


def seconds(way, found):
    """Seconds of a step: a frozen model has no gradients of its weights to compute and to send."""
    times, products = found.times, found.products
    if way in ("scratch", "full"):
        return times.exposed
    part = 1 - (products.useful / 3 + products.optimizer) / products.counted
    wire = found.wire.by_kind()
    both = sum(wire.values())
    sent = (
        sum(size for kind, size in wire.items() if kind != "reduce-scatter") / both if both else 0
    )
    return times.matrices * part + times.kernels + times.passes + sum(times.wire.values()) * sent


def compare(found, tokens, price, smallest):
    """Returns the `Way`s to adapt a model.

    Args:
        found: `estimate.Estimate` of training all of it on a machine.
        tokens: of the data that there is to adapt it to.
        price: of a device and hour, or None.
        smallest: way -> name of the smallest machine that holds it, or None.
    """
    ways = []
    for way in WAYS:
        memory, step = memory_bytes(way, found), seconds(way, found)
        needed = counts.chinchilla_tokens(found.counts.total) if way == "scratch" else tokens
        hours = needed / found.step_tokens * step / 3600
        cost = None if price is None else price * found.machine.count * hours
        fits = memory <= found.machine.device.hbm_bytes
        number = trained(way, found.share)
        ways.append(Way(way, number, memory, fits, step, needed, hours, cost, smallest(way)))
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
        way = by_name[name]
        return way.fits and (not budget or way.cost is None or way.cost <= budget)

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
