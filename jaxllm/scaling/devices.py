"""What devices can do: peak FLOP/s and memory, by jax's name for the device."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

GB, GIB = 10**9, 2**30


class Device(NamedTuple):
    """One device as jax counts them (a TPU v2 or v3 core is half a chip).

    Attributes:
        peak_flops: dense bfloat16 FLOP/s, without sparsity.
        hbm_bytes: memory of the device.
        source: where both numbers are published.
    """

    peak_flops: float
    hbm_bytes: int
    source: str


_TPU = "Google Cloud TPU documentation, system architecture"
_NVIDIA = "NVIDIA data sheet, dense"

# The longest name that device_kind starts with counts.
DEVICES = {
    "TPU v2": Device(22.5e12, 8 * GIB, f"{_TPU}; half a chip"),
    "TPU v3": Device(61.5e12, 16 * GIB, f"{_TPU}; half a chip"),
    "TPU v4": Device(275e12, 32 * GIB, _TPU),
    "TPU v5 lite": Device(197e12, 16 * GIB, f"{_TPU} (v5e)"),
    "TPU v5e": Device(197e12, 16 * GIB, _TPU),
    "TPU v5": Device(459e12, 95 * GIB, f"{_TPU} (v5p)"),
    "TPU v5p": Device(459e12, 95 * GIB, _TPU),
    "TPU v6 lite": Device(918e12, 32 * GIB, f"{_TPU} (v6e)"),
    "TPU v6e": Device(918e12, 32 * GIB, _TPU),
    "NVIDIA A100-SXM4-40GB": Device(312e12, 40 * GB, _NVIDIA),
    "NVIDIA A100-PCIE-40GB": Device(312e12, 40 * GB, _NVIDIA),
    "NVIDIA A100": Device(312e12, 80 * GB, _NVIDIA),
    "NVIDIA H100": Device(989e12, 80 * GB, f"{_NVIDIA}, SXM"),
    "NVIDIA H100 PCIe": Device(756e12, 80 * GB, _NVIDIA),
    "NVIDIA H100 NVL": Device(835e12, 94 * GB, _NVIDIA),
    "NVIDIA H200": Device(989e12, 141 * GB, f"{_NVIDIA}, SXM"),
    "NVIDIA H200 NVL": Device(835e12, 141 * GB, _NVIDIA),
    "NVIDIA L4": Device(121e12, 24 * GB, _NVIDIA),
    "NVIDIA L40S": Device(362e12, 48 * GB, _NVIDIA),
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


def measure_cpu(device, seconds=0.2, size=1024):
    """FLOP/s of the fastest of several `size` x `size` float32 products within `seconds`."""
    matrix = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(jnp.matmul)
    product(matrix, matrix).block_until_ready()  # compiles
    fastest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product(matrix, matrix).block_until_ready()
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * size**3 / fastest
