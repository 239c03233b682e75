"""Plans a run before any machine is rented: memory, time and money, in closed form.

    python -m jaxllm.plan --config=configs/NAME.py --topology=v4-128 [--json]

--topology names the machine: v4-128, v5e-256, v4:4x4x4, h100-8, …; --slices how many of them.
Nothing is compiled, no data is read, and a model may be of any size.

Exit status: 0 it fits; 1 it does not; 2 a setting is wrong.
"""

import json

from absl import flags

from jaxllm import cli
from jaxllm.scaling import estimate, machines, page, share
from jaxllm.training import setup


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("topology", None, "the machine, such as v4-128 or h100-8", required=True)
    flags.DEFINE_integer("slices", 1, "TPU slices, joined by the data-centre network")
    flags.DEFINE_bool("json", False, "print one JSON object")


def main(file, overrides):
    """Prints the plan."""
    f = flags.FLAGS
    config, notes = cli.load_config(file, overrides)
    machine = machines.find(f.topology, f.slices)
    setup.check_program(config, machine.count)
    found = estimate.estimate(
        share.describe(config, machine.count, machine.platform, setup.vocabulary(config)), machine
    )
    if f.json:
        print(json.dumps(page.as_dict(found, config.plan), indent=1))
    else:
        print("\n".join([*(f"note: {note}" for note in notes), page.as_text(found, config.plan)]))
    return 0 if found.fits else 1


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
