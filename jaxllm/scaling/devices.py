"""What devices can do: FLOP/s, memory, links, by jax's name for the device."""

import functools
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm import host

GB, GIB = 10**9, 2**30


class Device(NamedTuple):
    """One device as jax counts them (a TPU v2 or v3 core is half a chip).

    Attributes:
        peak_flops: dense bfloat16 FLOP/s, without sparsity.
        hbm_bytes: memory of the device.
        hbm_bytes_per_s: how fast it is read or written.
        link_bytes_per_s: one way; of a link between neighbours where `torus`, else of a device to
            all others of its node together.
        torus: dimensions of the grid that the links make; 0 where a switch joins a node's devices.
        network_bytes_per_s: one way, of a device: between slices, or between nodes.
        host_bytes_per_s: one way; between a device and its host's memory.
        clock_hz: cycles a second, where a compiler counts in cycles; 0 where it does not.
        source: where the numbers are published.
    """

    peak_flops: float
    hbm_bytes: int
    hbm_bytes_per_s: float
    link_bytes_per_s: float
    torus: int
    network_bytes_per_s: float
    host_bytes_per_s: float
    clock_hz: float
    source: str


# Memory and FLOP/s: the vendors pages. A TPU link: the published bandwidth of all its links,
# halved for one way; a little less is reached (Austin et al. 2025, How to Scale Your Model, whose
# number is also that of PCIe to the host). A GPU's PCIe: four fifths of 16 lanes.
# Its clock: peak FLOP/s over what its matrix units do a cycle (2 x 128 x 128 each; v6e 256 x 256).
_TPU = "Google Cloud TPU documentation, system architecture"
_NVIDIA = "NVIDIA data sheet, dense"


def _tpu(peak_flops, gib, hbm_gb_per_s, link_gb_per_s, torus, network_gb_per_s, clock_ghz, more=""):
    speeds = (hbm_gb_per_s * 1e9, link_gb_per_s * 1e9, torus, network_gb_per_s * 1e9, 15e9)
    return Device(peak_flops, gib * GIB, *speeds, clock_ghz * 1e9, _TPU + more)


def _gpu(peak_flops, gb, hbm_gb_per_s, link_gb_per_s, network_gb_per_s, more="", *, pcie=4):
    host = {4: 25e9, 5: 50e9}[pcie]
    speeds = (hbm_gb_per_s * 1e9, link_gb_per_s * 1e9, 0, network_gb_per_s * 1e9, host)
    return Device(peak_flops, gb * GB, *speeds, 0.0, _NVIDIA + more)


_V5E = _tpu(197e12, 16, 819, 50, 2, 3.125, 1.5)
_V5P = _tpu(459e12, 95, 2765, 100, 3, 6.25, 1.75)
_V6E = _tpu(918e12, 32, 1638, 100, 2, 12.5, 1.75)

# The longest name that device_kind starts with counts.
DEVICES = {
    "TPU v2": _tpu(22.5e12, 8, 350, 31, 2, 1.5, 0.7, "; half a chip"),
    "TPU v3": _tpu(61.5e12, 16, 450, 41, 2, 1.5, 0.94, "; half a chip"),
    "TPU v4": _tpu(275e12, 32, 1228, 50, 3, 6.25, 1.05),
    "TPU v5 lite": _V5E,
    "TPU v5e": _V5E,
    "TPU v5": _V5P,
    "TPU v5p": _V5P,
    "TPU v6 lite": _V6E,
    "TPU v6e": _V6E,
    "NVIDIA A100-SXM4-40GB": _gpu(312e12, 40, 1555, 300, 25),
    "NVIDIA A100-PCIE-40GB": _gpu(312e12, 40, 1555, 32, 12.5),
    "NVIDIA A100": _gpu(312e12, 80, 2039, 300, 25),
    "NVIDIA H100": _gpu(989e12, 80, 3350, 450, 50, ", SXM", pcie=5),
    "NVIDIA H100 PCIe": _gpu(756e12, 80, 2000, 64, 25, pcie=5),
    "NVIDIA H100 NVL": _gpu(835e12, 94, 3900, 64, 25, pcie=5),
    "NVIDIA H200": _gpu(989e12, 141, 4800, 450, 50, ", SXM", pcie=5),
    "NVIDIA H200 NVL": _gpu(835e12, 141, 4800, 64, 25, pcie=5),
    "NVIDIA L4": _gpu(121e12, 24, 300, 32, 12.5),
    "NVIDIA L40S": _gpu(362e12, 48, 864, 32, 25),
}


def find(device_kind):
    """Returns the `Device` that jax's `device_kind` names, or None.

    A name must end where the table's does or go on with a space or a hyphen, so that an L40 is
    not taken for an L4; a slice of a card ("MIG") is none of them. A TPU's next word counts: a
    "TPU v4 lite" is not a "TPU v4".
    """
    if " MIG" in device_kind:
        return None
    if device_kind.startswith("TPU"):
        return DEVICES.get(device_kind)
    known = [n for n in DEVICES if device_kind == n or device_kind.startswith((f"{n} ", f"{n}-"))]
    return DEVICES[max(known, key=len)] if known else None


def peak_flops(device):
    """What a device could compute at best.

    Args:
        device: as in jax.devices().

    Returns:
        (FLOP/s, how it is known). A CPU's is measured in about 0.3 s, in float32, and is that of
        the whole machine: "how" then starts with "measured". Unknown devices give (None, why).
    """
    if device.platform == "cpu":
        return measure_cpu(device), "measured float32 matrix product of the whole machine"
    found = find(device.device_kind)
    if found is None:
        return None, f"{device.device_kind!r} is not in jaxllm.scaling.devices.DEVICES"
    return found.peak_flops, f"bfloat16 peak of {device.device_kind}, {found.source}"


@functools.cache
def cpu(count):
    """The `Device` that each of `count` is that a CPU's cores are presented as; speeds measured."""
    device = jax.local_devices(backend="cpu")[0]
    speed = measure_memory(device) / count
    return Device(
        peak_flops=measure_cpu(device) / count,
        hbm_bytes=host.memory_bytes() // count,
        hbm_bytes_per_s=speed,
        link_bytes_per_s=speed / 2,
        torus=0,
        network_bytes_per_s=speed / 2,
        host_bytes_per_s=speed / 2,
        clock_hz=0.0,
        source="measured here, in float32",
    )


@functools.cache  # a run asks for its peak and for its plan
def measure_cpu(device, seconds=0.2, size=1024):
    """FLOP/s of the fastest of several `size` x `size` float32 products within `seconds`."""
    matrix = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    return 2 * size**3 / _fastest(jax.jit(jnp.matmul), (matrix, matrix), seconds)


def measure_memory(device, seconds=0.2, size=2**26):
    """Bytes a second that a device reads and writes while it negates `size` bytes of float32."""
    array = jax.device_put(jnp.ones(size // 4, jnp.float32), device)
    return 2 * size / _fastest(jax.jit(jnp.negative), (array,), seconds)


def _fastest(function, arguments, seconds):
    """Seconds of the fastest of several calls within so many."""
    function(*arguments).block_until_ready()  # compiles
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function(*arguments).block_until_ready()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
