"""Machines by the names that clouds rent them under: "v4-128", "v5e-256", "h100-8"."""

import math
import re
from typing import NamedTuple

from jaxllm.config import ConfigError, near
from jaxllm.scaling import devices
from jaxllm.scaling.devices import DEVICES, GB, GIB, Device

# Shapes of the slices that can be had, by their number of chips.
_CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16", 4096: "16x16x16",
}  # fmt: skip
_SQUARES = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip


class _Tpu(NamedTuple):
    """A generation: jax's name, what its names count (cores: 2 a chip), shapes, chips a host."""

    kind: str
    counts: int
    shapes: dict
    chips_per_host: int


TPUS = {
    "v4": _Tpu("TPU v4", 2, _CUBES, 4),
    "v5p": _Tpu("TPU v5p", 2, _CUBES | {6144: "16x16x24"}, 4),
    "v5e": _Tpu("TPU v5e", 1, _SQUARES, 8),
    "v6e": _Tpu("TPU v6e", 1, _SQUARES, 8),
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "trillium": "v6e"}

GPUS = {
    "a100-40gb": "NVIDIA A100-SXM4-40GB",
    "a100": "NVIDIA A100",
    "h100": "NVIDIA H100",
    "h100-nvl": "NVIDIA H100 NVL",
    "h200": "NVIDIA H200",
    "l4": "NVIDIA L4",
    "l40s": "NVIDIA L40S",
}
GPUS_PER_NODE = 8


class Machine(NamedTuple):
    """Devices that can be rented together.

    Attributes:
        name: as it was asked for.
        family: what prices go by, such as "v5e" or "h100".
        device: `devices.Device`.
        count: devices, over all slices.
        shape: chips along each side of a slice's torus; of GPUs (devices a node,).
        slices: how many slices or nodes are joined by the data-centre network.
        platform: jax's name of it: "tpu", "gpu" or "cpu".
        topology: what `topology.tpu_devices` takes; "" where it is no TPU slice to be rented.
    """

    name: str
    family: str
    device: Device
    count: int
    shape: tuple
    slices: int
    platform: str
    topology: str

    @property
    def wraps(self):
        """Whether each side of the torus closes to a ring."""
        if self.device.torus == 3:  # slices of whole cubes
            return tuple(side % 4 == 0 for side in self.shape)
        return tuple(side == 16 for side in self.shape)


def find(name, slices=1):
    """Returns the `Machine` of a name.

    Args:
        name: a TPU slice as its cloud names it ("v4-128": 128 cores, two a chip, so 64 chips;
            "v5e-256" and "v6e-256": chips) or by its shape ("v4:4x4x4"), or GPUs ("h100-8").
        slices: how many slices, joined by the data-centre network.

    Raises:
        ConfigError: there is none such; it lists those there are.
    """
    if slices < 1:
        raise ConfigError(f"slices={slices} must be at least 1.\n  Try --slices=1.")
    shape = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if shape and ALIASES.get(shape[1], shape[1]) in TPUS:
        return _tpu(name, ALIASES.get(shape[1], shape[1]), shape[2], slices)
    family, _, number = name.rpartition("-")
    family = ALIASES.get(family.lower(), family.lower())
    if family in TPUS and number.isdigit():
        tpu = TPUS[family]
        known = {chips * tpu.counts: found for chips, found in tpu.shapes.items()}
        if int(number) in known:
            return _tpu(name, family, known[int(number)], slices)
        closest = min(known, key=lambda n: abs(math.log(n / max(int(number), 1))))
        raise ConfigError(
            f"topology={name!r} is not a slice that can be had. {family}: "
            f"{', '.join(f'{family}-{n}' for n in known)}.\n  Try --topology={family}-{closest}."
        )
    if family in GPUS and number.isdigit() and int(number) > 0:
        return _gpus(name, family, int(number), slices)
    raise ConfigError(
        f"topology={name!r} is unknown.{near(name, names())} Known:\n{_listing()}\n"
        "  Try --topology=v4-128."
    )


def _tpu(name, family, shape, slices):
    sides = tuple(int(side) for side in shape.split("x"))
    device = DEVICES[TPUS[family].kind]
    if len(sides) != device.torus or 0 in sides:
        raise ConfigError(
            f"topology={name!r}: a {family} slice has {device.torus} sides.\n"
            f"  Try --topology={family}:{next(iter(TPUS[family].shapes.values()))}."
        )
    count = math.prod(sides) * slices
    return Machine(name, family, device, count, sides, slices, "tpu", f"{family}:{shape}")


def _gpus(name, family, number, slices):
    if slices > 1:
        raise ConfigError(f"slices={slices} is for TPUs.\n  Try --topology={family}-{8 * slices}.")
    nodes = -(-number // GPUS_PER_NODE)
    if number > GPUS_PER_NODE and number % GPUS_PER_NODE:
        raise ConfigError(
            f"topology={name!r}: nodes have {GPUS_PER_NODE} GPUs.\n"
            f"  Try --topology={family}-{nodes * GPUS_PER_NODE}."
        )
    shape = (min(number, GPUS_PER_NODE),)
    return Machine(name, family, DEVICES[GPUS[family]], number, shape, nodes, "gpu", "")


def here(found, slices=1):
    """The `Machine` of devices that are there, or None where what they can do is not known.

    Args:
        found: all of them, as in jax.devices().
        slices: that they are in.
    """
    platform, count = found[0].platform, len(found)
    if platform == "cpu":
        return Machine("here", "cpu", devices.cpu(count), count, (count,), 1, "cpu", "")
    device = devices.find(found[0].device_kind)
    if device is None:
        return None
    if platform == "gpu":
        shape, nodes = (min(count, GPUS_PER_NODE),), -(-count // GPUS_PER_NODE)
        return Machine("here", _family(device), device, count, shape, nodes, platform, "")
    shapes = _CUBES if device.torus == 3 else _SQUARES
    each = count // slices
    shape = tuple(int(side) for side in shapes.get(each, f"{each}x1").split("x"))
    return Machine("here", _family(device), device, count, shape, slices, platform, "")


def _family(device):
    """The name that a device is rented by, or "" where it is not among ours."""
    kinds = {family: tpu.kind for family, tpu in TPUS.items()} | GPUS
    return next((family for family, kind in kinds.items() if DEVICES[kind] == device), "")


def names():
    """All names of slices, and GPUs as single nodes."""
    tpus = [f"{f}-{chips * tpu.counts}" for f, tpu in TPUS.items() for chips in tpu.shapes]
    return [*tpus, *(f"{family}-{GPUS_PER_NODE}" for family in GPUS)]


def sizes_of(family):
    """Names of the machines of a family, from few devices to many."""
    if family in TPUS:
        return [f"{family}-{chips * TPUS[family].counts}" for chips in TPUS[family].shapes]
    return [f"{family}-{count}" for count in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)]


def singles():
    """Names of machines from the least memory to the most, one GPU to eight and TPU slices."""
    gpus = [f"{family}-{count}" for family in GPUS for count in (1, 2, 4, 8)]
    tpus = [name for name in names() if name.partition("-")[0] in TPUS]

    def size(name):
        machine = find(name)
        return machine.count * machine.device.hbm_bytes

    return sorted([*gpus, *tpus], key=size)


def _listing():
    """The known names, a family a line."""
    lines = []
    for family, tpu in TPUS.items():
        known = ", ".join(f"{family}-{chips * tpu.counts}" for chips in tpu.shapes)
        counts = "chips" if tpu.counts == 1 else "cores, two a chip"
        lines.append(f"  {known} ({counts}), or {family}:{next(iter(tpu.shapes.values()))}, …")
    lines.append("  " + ", ".join(f"{family}-N" for family in GPUS) + " (N GPUs)")
    return "\n".join(lines)


def memory_words(size):
    """Writes bytes as the vendors do: GiB where it is whole, else GB."""
    return f"{size / GIB:.0f} GiB" if size % GIB == 0 else f"{size / GB:.0f} GB"
