"""Memory, time and money of a training run, in closed form: nothing is compiled."""

from typing import Any, NamedTuple

from jaxllm.scaling import counts, flops, links, memory, work
from jaxllm.scaling.share import describe

# What part of its peak a device's matrix unit reaches in a plain product of these sizes, by the
# TPU compiler's own estimate (experiments/LOG.md); what GPUs reach in published runs; what a CPU
# reaches as measured (benchmarks/plan_here.py).
MATRIX_SHARE = {"tpu": 0.92, "gpu": 0.75, "cpu": 0.7}
# What part of it an attention kernel reaches, and of memory's speed a pass over activations.
KERNEL_SHARE, PASS_SHARE = 0.5, 0.5


class Times(NamedTuple):
    """Seconds of a step on each device.

    Attributes:
        matrices: products of weights and activations.
        kernels: attention.
        passes: over activations and the optimizer's state, bound by memory.
        wire: {mesh axes, or "host": seconds}.
    """

    matrices: float
    kernels: float
    passes: float
    wire: dict

    @property
    def computing(self):
        """Without the wire."""
        return self.matrices + self.kernels + self.passes

    @property
    def hidden(self):
        """The step, where all that is sent is hidden behind computing, or the other way round."""
        return max(self.computing, sum(self.wire.values()))

    @property
    def exposed(self):
        """The step, where none of it is."""
        return self.computing + sum(self.wire.values())


class Estimate(NamedTuple):
    """What a run takes on a machine.

    Attributes:
        share: `share.Share`.
        machine: `machines.Machine`.
        counts: `counts.Counts`.
        memory: `memory.Memory`.
        products: `work.Products`.
        wire: `work.Wire`.
        times: `Times`.
    """

    share: Any
    machine: Any
    counts: Any
    memory: Any
    products: Any
    wire: Any
    times: Times

    @property
    def fits(self):
        """Whether a device's memory holds it."""
        return self.memory.total <= self.machine.device.hbm_bytes

    @property
    def step_tokens(self):
        """Tokens of a step, over all devices."""
        data = self.share.config.data
        return data.batch * data.length

    def mfu(self, seconds, convention):
        """Model FLOPs utilisation of a step that takes so long; conventions as `flops`."""
        each = flops.of_run(self.share.config, self.share.c, convention)
        peak = self.machine.device.peak_flops * self.machine.count
        return flops.utilisation(self.step_tokens / seconds, each, peak)

    def hours(self, seconds):
        """Hours of the whole run."""
        return self.share.config.steps * seconds / 3600


def of(config, machine, vocab):
    """Returns the `Estimate` of a completed ConfigDict on a `machines.Machine`.

    Args:
        vocab: size of the tokenizer's vocabulary, where the model does not say.

    Raises:
        ConfigError: settings that contradict each other.
    """
    share = describe(config, machine.count, machine.platform, vocab, machine.family)
    products, wire = work.products(share), work.wire(share)
    return Estimate(
        share,
        machine,
        counts.count(share.infos, share.c),
        memory.of(share),
        products,
        wire,
        _times(share, machine, products, wire),
    )


def _times(share, machine, products, wire):
    device = machine.device
    speeds = links.speeds(machine, share.shape)
    on_wire = {}
    for (axes, kind), size in wire.parts.items():
        seconds = links.time_over(axes.split("+"), kind, size, share.shape, speeds, device)
        on_wire[axes] = on_wire.get(axes, 0.0) + seconds
    if share.offloads:  # there and back
        both = 2 * share.micro * memory.offloaded_bytes(share)
        on_wire["host"] = both / device.host_bytes_per_s
    return Times(
        matrices=products.counted / device.peak_flops / MATRIX_SHARE[share.platform],
        kernels=products.kernel / device.peak_flops / KERNEL_SHARE,
        passes=memory.passes_bytes(share) / device.hbm_bytes_per_s / PASS_SHARE,
        wire=on_wire,
    )
