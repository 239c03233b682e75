"""Trains a language model.

    python -m jaxllm.train --config=configs/NAME.py --workdir=DIR [--config.section.field=value …]

--look=3 prints the first three rows as text, with what is learned marked, and trains nothing.
The same command goes on from the newest checkpoint in DIR. configs/base.py lists the settings.
On several hosts run it on each: TPU slices, Slurm and Open MPI tell the processes of each other;
elsewhere give --coordinator, --processes and --process_id.

Exit status: 0 done, or stopped by SIGTERM with everything saved; 2 a setting or an input is wrong;
130 Ctrl-C, saved; 75 stuck; 1 anything else.
"""

from absl import flags

from jaxllm import cli
from jaxllm.training import look, run


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "directory of the run; made if absent", required=True)
    flags.DEFINE_integer("look", 0, "print so many of the first rows, train nothing", lower_bound=0)
    cli.define_process_flags()


def main(file, overrides):
    """Loads the config and trains it."""
    config, notes = cli.load_config(file, overrides)
    cli.start(config)
    if flags.FLAGS.look:
        return look.show(config, run.local(flags.FLAGS.workdir), flags.FLAGS.look)
    return run.train(config, flags.FLAGS.workdir, notes, cli.process_flags())


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
