"""Machines by name, and how fast their links gather."""

import math

import pytest

from jaxllm.config import ConfigError
from jaxllm.scaling import links, machines
from jaxllm.sharding import full_shape

GB = 1e9


@pytest.mark.parametrize(
    "name, count, shape",
    [
        ("v4-128", 64, (4, 4, 4)),  # names of v4 and v5p count cores
        ("v5p-256", 128, (4, 4, 8)),
        ("v5e-256", 256, (16, 16)),
        ("v5litepod-16", 16, (4, 4)),
        ("v6e-8", 8, (2, 4)),
        ("v4:2x2x4", 16, (2, 2, 4)),
        ("h100-16", 16, (8,)),
        ("a100-40gb-4", 4, (4,)),
    ],
)
def test_names_of_clouds(name, count, shape):
    machine = machines.find(name)
    assert (machine.count, machine.shape) == (count, shape)


@pytest.mark.parametrize("name", [name for name in machines.names() if name[0] == "v"])
def test_every_listed_name_is_found_again(name):
    machine = machines.find(name)
    assert machines.find(machine.topology).count == machine.count == math.prod(machine.shape)


@pytest.mark.parametrize(
    "name, says",
    [
        ("v4-100", "Try --topology=v4-128"),
        ("v9-64", r"Known:\n.*v4-128.*\n.*v5p-8[\s\S]*h100-N"),
        ("h100-12", "Try --topology=h100-16"),
        ("v5e:4x4x4", "2 sides"),
        ("v4:0x4x4", "3 sides"),
        ("h100-0", "unknown"),
        ("", "unknown"),
    ],
)
def test_unknown_names_say_what_there_is(name, says):
    with pytest.raises(ConfigError, match=says):
        machines.find(name)


def test_slices_multiply_devices():
    assert machines.find("v5e-256", slices=2).count == 512
    with pytest.raises(ConfigError, match="--topology=h100-16"):
        machines.find("h100-8", slices=2)


@pytest.mark.parametrize(
    "name, slices, sizes, axis, speed",
    [
        ("v4-128", 1, dict(fsdp=64), "fsdp", 300 * GB),  # three rings, two links each
        ("v4-128", 1, dict(fsdp=16, tensor=4), "tensor", 100 * GB),
        ("v4-128", 1, dict(fsdp=16, tensor=4), "fsdp", 200 * GB),
        ("v4-16", 1, dict(fsdp=8), "fsdp", 150 * GB),  # 2 x 2 x 2: lines, one link a side
        ("v5e-256", 1, dict(fsdp=256), "fsdp", 200 * GB),
        ("v5e-16", 1, dict(fsdp=16), "fsdp", 100 * GB),  # 4 x 4 does not close
        ("v5e-256", 2, dict(slice=2, fsdp=256), "slice", 3.125 * GB),
        ("h100-8", 1, dict(fsdp=8), "fsdp", 450 * GB),
        ("h100-16", 1, dict(fsdp=16), "fsdp", 400 * GB),  # eight cards a node take part
        ("h100-16", 1, dict(data=2, fsdp=8), "data", 50 * GB),
    ],
)
def test_how_fast_axes_gather(name, slices, sizes, axis, speed):
    found = links.speeds(machines.find(name, slices), full_shape(**sizes))
    assert found[axis] == pytest.approx(speed)


def test_a_sum_over_all_takes_twice_a_gather():
    gather, reduce = (links.seconds(k, 1e9, 8, 1e11) for k in ("all-gather", "all-reduce"))
    assert reduce == 2 * gather == pytest.approx(2 * 7 / 8 * 1e9 / 1e11)
    assert links.seconds("all-gather", 1e9, 1, math.inf) == 0
