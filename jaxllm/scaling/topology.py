"""TPU slices that need not be there: devices to compile for, ahead of time, through libtpu."""

import importlib.util
import os
import re

from jax.experimental import topologies

from jaxllm.config import ConfigError

# Slices of whole cubes of this many chips a side have links that wrap around, so rings.
_CUBE = 4
# Generations whose chips have two cores that work as one device, and whose links form a 3-D torus.
_MEGACORE = ("v4", "v5p")


def tpu_devices(name, slices=1):
    """Returns the devices of a TPU slice, without the slice.

    Args:
        name: generation and shape in chips, such as "v4:4x4x4", "v5p:4x4x8", "v5e:16x16".
        slices: how many of them, joined by the data-centre network.

    Raises:
        ConfigError: libtpu is missing, or knows no such slice.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # this machine is no TPU host: do not ask
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nor has it one to quarrel about
    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("libtpu is not installed. Try pip install -r requirements-tpu.txt.")
    generation, _, shape = name.partition(":")
    if not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ConfigError(
            f"topology={name!r} must be a generation and a shape in chips.\n"
            "  Try v4:4x4x4, v5p:4x4x8 or v5e:16x16."
        )
    options = {"num_slices": slices}
    if generation in _MEGACORE:
        sides = [int(side) for side in shape.split("x")]
        options |= dict(
            chip_config_name="megacore",
            chips_per_host_bounds=(2, 2, 1),
            wrap=(all(side % _CUBE == 0 for side in sides),) * len(sides),
        )
    try:
        return topologies.get_topology_desc(name, "tpu", **options).devices
    except Exception as error:
        raise ConfigError(f"topology={name!r} x {slices} is unknown to libtpu: {error}") from None
