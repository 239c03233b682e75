"""Evaluates a trained model on a whole split: loss, perplexity, bits per byte; a head's metrics.

    python -m jaxllm.evaluate --workdir=DIR [--step=latest|best|N] [--split=validation|train]

Prints one JSON object. `--config.mesh.fsdp=…` and other settings go over the run's own.
"""

import json
import pathlib

from absl import flags

from jaxllm import cli, data
from jaxllm.config import ConfigError
from jaxllm.evals import tasks
from jaxllm.training import fits, processes, records, reopen
from jaxllm.training.validate import validate


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "directory of the run", required=True)
    flags.DEFINE_string("step", "latest", "checkpoint: latest, best (by validation) or a number")
    flags.DEFINE_string("split", "validation", "validation or train")
    cli.define_process_flags()


def main(file, overrides):
    """Restores the model, runs it over the split and prints the metrics."""
    if file:
        raise ConfigError("The run's own config is used. Leave --config out.")
    f = flags.FLAGS
    if f.split not in ("validation", "train"):
        raise ConfigError(f"--split={f.split!r} is unknown. Known: validation, train.")
    config = records.load_config(f.workdir, overrides)
    cli.start(config)
    processes.join(*cli.process_flags())
    trained = reopen.open_trained(f.workdir, overrides, f.step)
    place = pathlib.Path(f.workdir) / "data"
    run = trained.run
    vocab, lead = run.model.config.vocab, run.method.lead
    data.prepare(config.data, run.tokenizer, place, lead=lead)
    what = (config.data, run.tokenizer, place, f.split, config.seed)
    source = data.open_split(*what, vocab=vocab, lead=lead)
    batch = config.validate.batch
    kind, params = config.objective.kind, trained.params
    own, refs, told = trained.own, trained.refs, fits.told(config)
    metrics = validate(run.evaluate, source, run.mesh, own, refs, batch=batch, **told)
    if kind in tasks.TASKS:
        more = (source, run.mesh, run.tokenizer, batch)
        metrics |= tasks.evaluate(kind, run.model, params, *more)
    if processes.is_first():
        print(json.dumps({"step": trained.step, "split": f.split, **metrics}))
    return 0


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
