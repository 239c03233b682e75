"""Evaluates a trained model on a whole split: loss, perplexity, bits per byte; a head's metrics.

    python -m jaxllm.evaluate --workdir=DIR [--step=latest|best|N] [--split=validation|train]

    python -m jaxllm.evaluate --workdir=BASE --adapters=RUN1,RUN2,…

Prints one JSON object; the second one a line for each adapter, each on the data of its own run
unless --config.data.… says others. The base is read once, and must be what each was trained over.
`--config.mesh.fsdp=…` and other settings go over the run's own.
"""

import json
import pathlib

from absl import flags

from jaxllm import cli, data
from jaxllm.config import ConfigError
from jaxllm.evals import tasks
from jaxllm.training import fits, processes, records, reopen
from jaxllm.training.base import reader
from jaxllm.training.validate import validate


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", None, "directory of the run", required=True)
    flags.DEFINE_string("step", "latest", "checkpoint: latest, best (by validation) or a number")
    flags.DEFINE_list("adapters", [], "fine-tuned runs over --workdir: evaluated one by one")
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
    if f.adapters:
        return _adapters(f, overrides)
    trained = reopen.open_trained(f.workdir, overrides, f.step)
    _print({}, trained, f.split, metrics(trained, f.workdir, f.split))
    return 0


def _adapters(f, overrides):
    """Evaluates adapters over one base, which is read once; a line for each."""
    base = pathlib.Path(f.workdir).expanduser().absolute()
    overrides, read = [*overrides, ("init_from", str(base))], reader()
    for workdir in f.adapters:
        trained = reopen.open_trained(workdir, overrides, f.step, "--adapters", read)
        if not trained.refs:
            raise ConfigError(
                f"--adapters={workdir} is no adapter: all of it was trained.\n"
                f"  Try --workdir={workdir}, without --adapters."
            )
        _print({"adapter": workdir}, trained, f.split, metrics(trained, workdir, f.split))
    return 0


def metrics(trained, workdir, split):
    """Runs a model over a split of the data of its config.

    Args:
        trained: `reopen.Trained`.
        workdir: directory of the run, which keeps the data's shards.
        split: "validation" or "train".

    Returns:
        {name: number}, of `validate` and, where there is a head, of `tasks.evaluate`.
    """
    run, place = trained.run, pathlib.Path(workdir) / "data"
    config = run.config
    data.prepare(config.data, run.tokenizer, place)
    source = data.open_split(
        config.data, run.tokenizer, place, split, config.seed, vocab=run.model.config.vocab
    )
    batch = config.validate.batch
    kind, params = config.objective.kind, trained.params
    own, refs = trained.own, trained.refs
    told = dict(of_text=kind == "lm", whole=fits.reads_whole(config))
    found = validate(run.evaluate, source, run.mesh, own, refs, batch=batch, **told)
    if kind in tasks.TASKS:
        more = (source, run.mesh, run.tokenizer, batch)
        found |= tasks.evaluate(kind, run.model, params, *more)
    return found


def _print(named, trained, split, found):
    if processes.is_first():
        print(json.dumps({**named, "step": trained.step, "split": split, **found}), flush=True)


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
