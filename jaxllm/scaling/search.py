"""Which layout is fastest: mesh, micro-batches and remat, by closed form, the best few compiled."""

import math
from typing import Any, NamedTuple

from jaxllm.config import ConfigError

REMATS = ("none", "light", "dots", "full", "offload")
_MOST_TENSOR, _MOST_STAGES = 16, 8
_LONG = 8192  # tokens of a row from which splitting it is tried


class Layout(NamedTuple):
    """A choice of settings and what it takes.

    Attributes:
        settings: [(field, text)] over the config's own.
        found: `estimate.Estimate`.
        compiled: `compiled.Compiled`, or None where it was not compiled.
        needed: bytes a device, by the compiler where it spoke; more than there are does not fit.
    """

    settings: tuple
    found: Any
    compiled: Any
    needed: float

    @property
    def fits(self):
        """Whether a device's memory holds it."""
        return self.needed <= self.found.machine.device.hbm_bytes

    @property
    def seconds(self):
        """Of a step while computing waits for all that is sent."""
        return (self.compiled or self.found.times).exposed

    @property
    def line(self):
        """The settings as they are typed."""
        return " ".join(f"--config.{field}={text}" for field, text in self.settings)


def layouts(plan, found):
    """Returns every `Layout` that divides, the fastest that fits first.

    Args:
        plan: [(field, text)] -> `estimate.Estimate` with these settings over the config's own; may
            raise ConfigError.
        found: `estimate.Estimate` of the config as it is.
    """
    tried = []
    for mesh in meshes(found):
        for remat in REMATS:
            for micro in _micro_batches(found, mesh):
                settings = _settings(found.share.config, mesh, remat, micro)
                try:
                    other = plan(settings)
                except ConfigError:
                    continue
                tried.append(Layout(settings, other, None, other.memory.total))
                if tried[-1].fits:  # more pieces only take longer
                    break
    return sorted(tried, key=lambda one: (not one.fits, one.seconds))


def _settings(config, mesh, remat, micro):
    """What must be set for a layout: axes of 1 need not, where the config says so too."""
    wanted = {f"mesh.{axis}": size for axis, size in mesh.items() if config.mesh[axis] != size}
    wanted |= {"model.remat": remat} | ({"step.micro_batches": micro} if micro > 1 else {})
    return tuple((field, str(value)) for field, value in wanted.items())


def meshes(found):
    """All {axis: size} of a machine that a model may be laid out on.

    Rows go over `slice`, `data` and `fsdp`; heads over `tensor` up to 16 ways; layers over `stage`;
    a row over `seq` where it is long; experts over `expert` where there are any.
    """
    machine, c = found.machine, found.share.c
    slices = machine.slices if machine.platform == "tpu" else 1
    each = machine.count // slices
    long = found.share.config.data.length >= _LONG
    result = []
    for tensor in _divisors(each, min(_MOST_TENSOR, c.heads)):
        for seq in _divisors(each // tensor, each if long else 1):
            for expert in _divisors(each // tensor // seq, c.experts or 1):
                for stage in _divisors(each // tensor // seq // expert, _MOST_STAGES):
                    rest = each // tensor // seq // expert // stage
                    for data in _divisors(rest, rest):
                        sizes = (slices, data, rest // data, stage, expert, seq, tensor)
                        names = ("slice", "data", "fsdp", "stage", "expert", "seq", "tensor")
                        result.append(dict(zip(names, sizes, strict=True)))
    return result


def _divisors(n, most):
    return [k for k in range(1, min(n, most) + 1) if n % k == 0]


def _micro_batches(found, mesh):
    """Numbers of pieces that a batch divides into on a mesh, few first."""
    rows = found.share.config.data.batch // math.prod(
        mesh[axis] for axis in ("slice", "data", "fsdp", "stage", "expert")
    )
    return [n for n in (1, 2, 4, 8, 16) if rows and rows % n == 0]


def compile_best(tried, compile_one, most):
    """Compiles the layouts that are fastest by closed form.

    Args:
        tried: as `layouts` returns.
        compile_one: `Layout` -> (`compiled.Compiled` or None, bytes a device that it needs).
        most: layouts to compile at most.

    Returns:
        [`Layout`], those compiled first, the fastest that fits at their head.
    """
    done = []
    for one in tried[:most]:
        own, needed = compile_one(one)
        done.append(one._replace(compiled=own, needed=needed))
    return sorted(done, key=lambda one: (not one.fits, one.seconds)) + tried[most:]


def pareto(tried):
    """Those that fit and that no other beats in both memory and time, the fastest first."""
    best, least = [], math.inf
    for one in sorted((one for one in tried if one.fits), key=lambda one: one.seconds):
        if one.needed < least:
            best.append(one)
            least = one.needed
    return best
