"""Which settings to change, where a step does not fit."""

from jaxllm.config import ConfigError

# From what costs least time to what costs most.
_REMAT = ("none", "light", "full", "offload")
_MICRO = (1, 2, 4, 8, 16)


def smallest(plan, found, needed):
    """Returns the fewest changes, and of those the fastest, that make a step fit.

    Args:
        plan: [(field, text)] -> `estimate.Estimate` with these settings over the config's own; may
            raise ConfigError.
        found: `estimate.Estimate` that does not fit.
        needed: bytes that it needs, by closed form or by the compiler; the closed forms of others
            are scaled by how far the two are apart.

    Returns:
        {"settings": [[field, text]], "memory": bytes, "step_s": seconds}, or None.
    """
    scale = needed / found.memory.total
    fitting = []
    for changes in _choices(found):
        try:
            other = plan(changes)
        except ConfigError:
            continue
        size = other.memory.total * scale
        if size <= other.machine.device.hbm_bytes:
            fitting.append((len(changes), other.times.exposed, changes, size))
    if not fitting:
        return None
    _, seconds, changes, size = min(fitting, key=lambda one: one[:2])
    return dict(settings=[list(pair) for pair in changes], memory=size, step_s=seconds)


def _choices(found):
    """All lists of up to three changes: remat, micro-batches, what is split."""
    c, config, shape = found.share.c, found.share.config, found.share.shape
    later = (
        _REMAT[_REMAT.index(c.remat) + 1 :] if c.remat in _REMAT else ("light", "full", "offload")
    )
    remats = [()] + [(("model.remat", name),) for name in later]
    micro = config.step.micro_batches
    pieces = [()] + [(("step.micro_batches", str(n)),) for n in _MICRO if n > micro]
    whole = [()]
    if config.sharding != "zero3":
        whole.append((("sharding", "zero3"),))
    if shape["data"] > 1:
        every = str(shape["data"] * shape["fsdp"])
        whole.append((("mesh.data", "1"), ("mesh.fsdp", every)))
    found = [(*a, *b, *d) for a in whole for b in remats for d in pieces]
    return [choice for choice in found if choice]
