"""How fast the axes of a mesh talk: which links of a torus, or which network, each one gets."""

import math

NETWORK_AXES = ("slice", "data")  # that may cross the network between slices


def speeds(machine, shape):
    """Returns {mesh axis: bytes a second that a device takes in while it gathers over the axis}.

    On a torus an axis gets whole sides, or a part of one; a side that closes to a ring is gathered
    from both ends. Between slices, and between nodes of GPUs, it is the network.

    Args:
        machine: `machines.Machine`.
        shape: {mesh axis: size}.

    Source: the costs of collectives in Austin et al. 2025, How to Scale Your Model, part 3.
    """
    if machine.platform == "tpu":
        return _on_torus(machine, shape)
    return _on_nodes(machine, shape)


def _on_torus(machine, shape):
    device, left = machine.device, machine.slices
    found = {}
    for axis in NETWORK_AXES:
        crosses = math.gcd(left, shape[axis])
        left //= crosses
        if crosses > 1:
            found[axis] = device.network_bytes_per_s
    sides = list(zip(machine.shape, machine.wraps, strict=True))
    for axis in reversed(shape):  # the last axes get the closest neighbours
        if axis in found or shape[axis] == 1:
            continue
        links, sides = _take(sides, shape[axis])
        found[axis] = links * device.link_bytes_per_s
    return {axis: found.get(axis, math.inf) for axis in shape}


def _take(sides, n):
    """Takes sides of n chips together; returns (links a chip gathers over, sides that are left)."""
    for wanted in (1, 2, 3):
        for some in _choices(sides, wanted):
            if math.prod(size for size, _ in some) == n:
                rest = list(sides)
                for side in some:
                    rest.remove(side)
                return sum(_links(size, wraps) for size, wraps in some), rest
    links, rest = 0, []
    for size, wraps in sorted(sides, reverse=True):  # whole sides, then a part of one
        part = math.gcd(size, n)
        n //= part
        links += _links(part, wraps and part == size)
        rest += [(size // part, False)] if size > part else []
    return max(links, 1), rest


def _choices(sides, count):
    """All ways to choose `count` of some sides."""
    if count == 0:
        return [()]
    return [
        (side, *more)
        for i, side in enumerate(sides)
        for more in _choices(sides[i + 1 :], count - 1)
    ]


def _links(size, wraps):
    """Links over which a chip gathers along a side: two of a ring, one at the end of a line."""
    return 0 if size == 1 else 2 if wraps and size > 2 else 1


def _on_nodes(machine, shape):
    """Within a node the switch; beyond it the network, of all devices in a node that share."""
    device, found = machine.device, {}
    here = machine.shape[0]  # devices of a node that axes further out still have
    for axis in reversed(shape):
        inside = math.gcd(here, shape[axis])
        here //= inside
        outside = shape[axis] // inside
        network = device.network_bytes_per_s * inside
        found[axis] = device.link_bytes_per_s if outside == 1 else network
    return {axis: min(found[axis], device.link_bytes_per_s) for axis in shape}


def seconds(kind, size, devices, speed):
    """Time of a collective, without latency.

    Args:
        kind: as `work.wire` names it.
        size: bytes, counted as there.
        devices: how many take part.
        speed: bytes a second that a device gathers over the axis.
    """
    if devices == 1 or not size:
        return 0.0
    rest = (devices - 1) / devices
    factors = {
        "all-gather": rest,
        "reduce-scatter": 2 * rest,  # half of what goes in was counted
        "all-reduce": 2 * rest,
        "all-to-all": max(devices / 4, 1),
        "collective-permute": 2.0,  # one link of two
    }
    return factors[kind] * size / speed


def time_over(names, kind, size, shape, speeds, device):
    """Time of a collective over several mesh axes.

    Args:
        names: of the axes.
        kind, size: as for `seconds`.
        shape: {mesh axis: size}.
        speeds: as `speeds` returns.
        device: `devices.Device`.

    Several axes together use the links of all; a network among them is what limits.
    """
    devices = math.prod(shape[name] for name in names)
    slow = [speeds[name] for name in names if speeds[name] <= device.network_bytes_per_s]
    return seconds(kind, size, devices, min(slow) if slow else sum(speeds[n] for n in names))
