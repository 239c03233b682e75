"""What a compiled step says of itself: memory, what fills it, FLOPs, the wire, cycles."""

from typing import NamedTuple

from jaxllm.scaling import buffers, flops, hlo, links, memory


class Compiled(NamedTuple):
    """Numbers of a compiled program, on each device.

    Attributes:
        arguments, temporaries, peak: bytes; what is given away is in arguments alone, what
            libraries allocate in the peak.
        flops: of products, loops counted; not of kernels written by hand.
        recomputed: the part of them beyond what forward and backward pass need.
        wire: {(mesh axes, kind, whether it goes on while the device computes): bytes}.
        cycles: that the compiler estimates, without kernels and the wire; 0 where it does not.
        computing: seconds of cycles and, by the closed form, kernels.
        hidden, exposed: seconds of a step where all, and none, of what is sent is hidden.
        buffers: [`buffers.Buffer`], the largest that share no memory.
        seconds: that compiling took.
    """

    arguments: int
    temporaries: int
    peak: int
    flops: float
    recomputed: float
    wire: dict
    cycles: float
    computing: float
    hidden: float
    exposed: float
    buffers: list
    seconds: float


def read(program, found):
    """Returns the `Compiled` of a program.

    Args:
        program: an object with `text`, `assignment`, `memory`, `seconds`.
        found: `estimate.Estimate` of the same step.
    """
    costs, said = hlo.costs(program.text), program.memory
    machine, shape = found.machine, found.share.shape
    wire = {}
    for sent, size in costs.sent.items():
        key = "+".join(hlo.axes_of(sent.groups, shape)), sent.kind, sent.hidden
        wire[key] = wire.get(key, 0) + size
    wire = {key: size for key, size in wire.items() if key[0] and size > 0}
    speeds, on_wire = links.speeds(machine, shape), found.times.wire.get("host", 0.0)
    for (axes, kind, _), size in wire.items():
        on_wire += links.time_over(axes.split("+"), kind, size, shape, speeds, machine.device)
    clock = machine.device.clock_hz
    computing = (
        costs.cycles / clock + found.times.kernels
        if clock and costs.cycles
        else found.times.computing
    )
    useful = found.products.useful + found.products.attention + found.products.optimizer
    arguments, temporaries = said.argument_size_in_bytes, said.temp_size_in_bytes
    scratch = round(memory.SCRATCH[machine.platform] * temporaries)
    return Compiled(
        arguments,
        temporaries,
        arguments + temporaries + scratch + said.output_size_in_bytes - said.alias_size_in_bytes,
        costs.matmul_flops,
        1 - useful / costs.matmul_flops if costs.matmul_flops else 0.0,
        wire,
        costs.cycles,
        computing,
        max(computing, on_wire),
        computing + on_wire,
        buffers.largest(program.assignment, program.text) if program.assignment else [],
        program.seconds,
    )


def as_dict(own):
    """A `Compiled` as plain data."""
    data = own._asdict()
    data["wire"] = [
        dict(axes=axes, kind=kind, asynchronous=hidden, bytes=size)
        for (axes, kind, hidden), size in own.wire.items()
    ]
    return data | {"buffers": [buffer._asdict() for buffer in own.buffers]}


def from_dict(data):
    """The inverse of `as_dict`."""
    wire = {(w["axes"], w["kind"], w["asynchronous"]): w["bytes"] for w in data["wire"]}
    made = [buffers.Buffer(**buffer) for buffer in data["buffers"]]
    return Compiled(**data | {"wire": wire, "buffers": made})


def with_mfu(own, found):
    """A `Compiled` as plain data, with "mfu": {convention: {"hidden", "exposed"}}.

    Args:
        found: `estimate.Estimate` of the same step.
    """
    mfu = {
        name: {how: found.mfu(getattr(own, how), name) for how in ("hidden", "exposed")}
        for name in flops.CONVENTIONS
    }
    return as_dict(own) | {"mfu": mfu}
