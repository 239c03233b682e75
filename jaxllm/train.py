"""Trains a language model.

    python -m jaxllm.train --config=configs/NAME.py --workdir=DIR [--config.section.field=value …]
    python -m jaxllm.train --config=configs/NAME.py --workdir=DIR --folds=5

The second trains on four fifths of the documents and validates on the last, five times over, and
prints the mean of the final metrics and their deviation.

--look=3 prints the first three rows as text, with what is learned marked, and trains nothing.
The same command goes on from the newest checkpoint in DIR. configs/base.py lists the settings.
On several hosts run it on each: TPU slices, Slurm and Open MPI tell the processes of each other;
elsewhere give --coordinator, --processes and --process_id.

Exit status: 0 done, or stopped by SIGTERM with everything saved; 2 a setting or an input is wrong;
130 Ctrl-C, saved; 75 stuck; 1 anything else.
"""

from absl import flags

from jaxllm import cli
from jaxllm.training import folds, look, run


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "directory of the run; made if absent", required=True)
    flags.DEFINE_integer("look", 0, "print so many of the first rows, train nothing", lower_bound=0)
    flags.DEFINE_integer("folds", 0, "cross-validation: runs, each with another part; 0: one run")
    cli.define_process_flags()


def main(file, overrides):
    """Loads the config and trains it."""
    config, notes = cli.load_config(file, overrides)
    cli.start(config)
    f, join = flags.FLAGS, cli.process_flags()
    if f.look:
        return look.show(config, run.local(f.workdir), f.look)
    if f.folds:
        return folds.train(config, f.workdir, f.folds, notes, join)
    return run.train(config, f.workdir, notes, join)


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
