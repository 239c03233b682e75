"""Plans a run before any machine is rented: memory, time and money.

    python -m jaxllm.plan --config=configs/NAME.py --topology=v4-128 [--compile] [--json]

--topology names the machine: v4-128, v5e-256, v4:4x4x4, h100-8, …; --slices how many of them.
Nothing is read and, without --compile, nothing compiled: closed forms, for a model of any size.
--compile has the TPU's own compiler make the real step (pip install -r requirements-tpu.txt; no
TPU is needed), and says what it says. --dump-hlo=DIR keeps the program.

Exit status: 0 it fits; 1 it does not; 2 a setting is wrong.
"""

import json
import tempfile

from absl import flags

from jaxllm import cli
from jaxllm.config import ConfigError
from jaxllm.scaling import changes, compiled, estimate, machines, page, share, topology
from jaxllm.training import ahead, setup


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("topology", None, "the machine, such as v4-128 or h100-8", required=True)
    flags.DEFINE_integer("slices", 1, "TPU slices, joined by the data-centre network")
    flags.DEFINE_bool("json", False, "print one JSON object")
    flags.DEFINE_bool("compile", False, "compile the step and say what the compiler says")
    flags.DEFINE_string("dump-hlo", "", "directory for the compiled program and its memory report")


def main(file, overrides):
    """Prints the plan."""
    f = flags.FLAGS
    machine = machines.find(f.topology, f.slices)

    def plan(more=()):
        config, notes = cli.load_config(file, [*overrides, *more])
        setup.check_program(config, machine.count)
        vocab = setup.vocabulary(config)
        own = share.describe(config, machine.count, machine.platform, vocab)
        return estimate.estimate(own, machine), notes

    found, notes = plan()
    data, text = page.as_dict(found, found.share.config.plan), page.as_text(found)
    fits, needed = found.fits, found.memory.total
    if f.compile:
        own, fits, needed = _compile(found, f["dump-hlo"].value)
        data["compiled"] = compiled.as_dict(own, found) if fits else {"needed": needed}
        text += "\n\n" + (page.compiled_text(own, found) if fits else page.no_room(needed, found))
    if not fits:
        change = changes.smallest(lambda more: plan(more)[0], found, needed)
        data["smallest_change"] = change
        text += "\n\n" + page.change_text(change)
    print(
        json.dumps(data, indent=1) if f.json else "\n".join([*map("note: {}".format, notes), text])
    )
    return 0 if fits else 1


def _compile(found, folder):
    """Compiles the step; returns (`compiled.Compiled` or None, whether it fits, bytes it needs)."""
    machine, config = found.machine, found.share.config
    if not machine.topology:
        raise ConfigError(
            f"--compile is for TPUs: no compiler is here for {machine.name}.\n"
            "  Leave --compile out, or try --topology=v4-128."
        )
    with tempfile.TemporaryDirectory() as scratch:
        ahead.write_programs(folder or scratch)
        devices = topology.tpu_devices(machine.topology, machine.slices)
        try:
            program = ahead.compile_step(
                config, devices, folder or scratch, setup.vocabulary(config)
            )
        except ahead.DoesNotFitError as error:
            return None, False, error.needed + found.memory.arguments
    own = compiled.read(program, found)
    return own, own.peak <= machine.device.hbm_bytes, own.peak


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
