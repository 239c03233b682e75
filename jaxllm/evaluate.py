"""Evaluates a model: on its own text, or on general tasks before and after training.

    python -m jaxllm.evaluate --workdir=DIR [--step=latest|best|N] [--split=validation|train]
    python -m jaxllm.evaluate --workdir=DIR --fisher=1000
    python -m jaxllm.evaluate --workdir=DIR --label=TEXTS.jsonl --to=LABELLED.jsonl

The first: loss, perplexity, bits per byte over a whole split, and a head's metrics. The second: the
Fisher information from so many rows of training data, for --config.regularize.ewc of a run that
starts from DIR. The third writes the texts whose class the model is sure of. Each prints one JSON
object.

    python -m jaxllm.evaluate --workdir=BASE --adapters=RUN1,RUN2,…

A line for each of several fine-tuned runs, each on the data of its own run unless --config.data.…
says others. The base is read once, and must be what each was trained over.

    python -m jaxllm.evaluate --before=DIR --after=DIR,… [--tasks=FILE.json] [--target=NAME,…]
        [--step=latest] [--steps=all|latest|best|N,…] [--examples=N] [--seed=0] [--json]
        [--plot=FILE.png]

What each model of --after kept of the scores of --before (its checkpoint --step), with intervals, a
warning below 80 %, and what it gained on the target against what it lost elsewhere. --steps=all
takes every checkpoint there is. Scores are kept in DIR/forgetting.json and read from there again.

`--config.mesh.fsdp=…` and other settings go over the runs' own.
"""

import json
import pathlib
import sys

import optax
from absl import flags

from jaxllm import cli, data, figures
from jaxllm.config import ConfigError
from jaxllm.evals import forgetting, plot, pseudo, suite, tasks
from jaxllm.training import anchors, fisher, fits, processes, records, reopen, scored
from jaxllm.training.base import reader
from jaxllm.training.validate import validate


def define_flags():
    """Defines the command's flags."""
    flags.DEFINE_string("workdir", "", "directory of the run")
    flags.DEFINE_string("step", "latest", "checkpoint: latest, best (by validation) or a number")
    flags.DEFINE_list("adapters", [], "fine-tuned runs over --workdir: evaluated one by one")
    flags.DEFINE_string("split", "validation", "validation or train")
    flags.DEFINE_string("before", "", "directory of the run before training, to compare with")
    flags.DEFINE_list("after", [], "directories of the runs after it")
    flags.DEFINE_string("steps", "latest", "checkpoints of --after: all, latest, best or numbers")
    flags.DEFINE_string("tasks", "", "JSON file of general tasks; else small ones of our own")
    flags.DEFINE_list("target", [], "tasks that the training was for")
    flags.DEFINE_integer("examples", 0, "of a task, at most; 0: as the file says", lower_bound=0)
    flags.DEFINE_integer("seed", 0, "of the resamples")
    flags.DEFINE_bool("json", False, "print the report as one JSON object")
    flags.DEFINE_string("plot", "", "PNG file to draw")
    flags.DEFINE_integer("fisher", 0, "rows of training data for the Fisher information; 0: none")
    flags.DEFINE_string("label", "", "files of texts to be labelled")
    flags.DEFINE_string("to", "", "JSONL file for those that the model is sure of")
    flags.DEFINE_float("confidence", 0.9, "lowest probability of a class that is written")
    cli.define_process_flags()


def main(file, overrides):
    """Evaluates, in one of the two ways."""
    if file:
        raise ConfigError("The run's own config is used. Leave --config out.")
    return choose(flags.FLAGS, overrides)


def choose(f, overrides):
    """The same, of flags that are read.

    Args:
        f: absl's flags.
        overrides: settings on the command line.

    Raises:
        ConfigError: flags that do not go together, or whatever they name cannot be.
    """
    if bool(f.workdir) == bool(f.before or f.after):
        raise ConfigError(
            "either --workdir=DIR, for a split of its own text, or --before=DIR --after=DIR, for "
            "what training kept, is needed."
        )
    return _split(f, overrides) if f.workdir else _forgetting(f, overrides)


def _split(f, overrides):
    """Restores the model, runs it over the split and prints the metrics."""
    if f.split not in ("validation", "train"):
        raise ConfigError(f"--split={f.split!r} is unknown. Known: validation, train.")
    if bool(f.label) != bool(f.to) or (f.label and f.fisher):
        raise ConfigError("--label goes with --to, and without --fisher. Try --to=labelled.jsonl.")
    config = records.load_config(f.workdir, overrides)
    if f.fisher:
        fisher.check(config)
    if f.label:
        pseudo.check(config, f.confidence)
    cli.start(config)
    processes.join(*cli.process_flags())
    if f.adapters:
        return _adapters(f, overrides)
    trained = reopen.open_trained(f.workdir, overrides, f.step)
    found = {"step": trained.step}
    if f.fisher:
        anchors.check_room(f.workdir, trained.step)
        found |= _fisher(trained, _open(trained, f.workdir, "train"), f.fisher)
    elif f.label:
        classes = data.classes(_open(trained, f.workdir, "train"))
        found |= pseudo.label(trained, classes, f.label, f.to, f.confidence)
    else:
        found |= {"split": f.split, **metrics(trained, f.workdir, f.split)}
    if processes.is_first():
        print(json.dumps(found))
    return 0


def _adapters(f, overrides):
    """Evaluates adapters over one base, which is read once; a line for each."""
    base = pathlib.Path(f.workdir).expanduser().absolute()
    overrides, read = [*overrides, ("init_from", str(base))], reader()
    for workdir in f.adapters:
        trained = reopen.open_trained(workdir, overrides, f.step, "--adapters", read)
        if "base" not in trained.refs:
            raise ConfigError(
                f"--adapters={workdir} is no adapter: all of it was trained.\n"
                f"  Try --workdir={workdir}, without --adapters."
            )
        found = metrics(trained, workdir, f.split)
        if processes.is_first():
            named = {"adapter": workdir, "step": trained.step, "split": f.split}
            print(json.dumps({**named, **found}), flush=True)
    return 0


def _open(trained, workdir, split):
    """Rows of a split of the data of the run in a work directory."""
    run, config = trained.run, trained.run.config
    place = pathlib.Path(workdir) / "data"
    vocab, lead = run.model.config.vocab, run.method.lead
    data.prepare(config.data, run.tokenizer, place, lead=lead)
    what = (config.data, run.tokenizer, place, split, config.seed)
    return data.open_split(*what, vocab=vocab, lead=lead)


def metrics(trained, workdir, split):
    """Runs a model over a split of the data of its config.

    Args:
        trained: `reopen.Trained`.
        workdir: directory of the run, which keeps the data's shards.
        split: "validation" or "train".

    Returns:
        {name: number}, of `validate` and, where there is a head, of `tasks.evaluate`.
    """
    run, config, source = trained.run, trained.run.config, _open(trained, workdir, split)
    kind, batch = config.objective.kind, config.validate.batch
    own, refs, told = trained.own, trained.refs, fits.told(config)
    found = validate(run.evaluate, source, run.mesh, own, refs, batch=batch, **told)
    if kind in tasks.TASKS:
        more = (source, run.mesh, run.tokenizer, batch)
        found |= tasks.evaluate(kind, run.model, trained.params, *more)
    return found


def _fisher(trained, source, rows):
    """Estimates and writes the Fisher information; returns what is told of it."""
    found, rows, count = fisher.estimate(trained, source, rows)
    told = {"rows": rows, "count": count, "trace": float(optax.tree.sum(found))}
    place = anchors.save_fisher(flags.FLAGS.workdir, trained.step, found, trained.params, told)
    return {"fisher": str(place), **told}


def _forgetting(f, overrides):
    """Scores the models that are not scored yet, and prints the report."""
    for flag, value in (("before", f.before), ("after", f.after)):
        if not value:
            raise ConfigError(f"--{flag}=DIR is needed besides, the directory of a run.")
    if f.coordinator or f.processes > 1:
        raise ConfigError("--before and --after run in one process. Leave --processes out.")
    if f.plot:
        figures.check()
    wanted = suite.load(f.tasks, f.examples)
    forgetting.check_targets(wanted, f.target)
    cli.start(records.load_config(f.before, overrides, "--before"))
    first = scored.find(f.before, f.step, overrides, "--before")[0]
    runs = [scored.find(workdir, f.steps, overrides, "--after") for workdir in f.after]
    places = [(one[0].workdir, one[0].tokenizer) for one in ([first], *runs)]
    forgetting.check_tokenizers(wanted, places, f.tasks or suite.DEFAULT)
    known, opened = scored.read([f.before, *f.after]), scored.Models(overrides)

    def measured(subject, keep):
        scores = scored.measure(subject, wanted, known, opened, keep, _say)
        return forgetting.Measured(subject.workdir, subject.step, subject.tokenizer, scores)

    before, compared = measured(first, runs[0][0].workdir), []
    for subjects in runs:
        own = [
            forgetting.compare(before, measured(subject, subject.workdir), f.target, f.seed)
            for subject in subjects
        ]
        report = forgetting.as_dict(before, own, f.seed)
        kept = [first.identity, *(subject.identity for subject in subjects)]
        scored.write(subjects[0].workdir, kept, known, report)
        compared += own
    if f.plot:
        plot.draw(compared, f.plot)
    if f.json:
        print(json.dumps(forgetting.as_dict(before, compared, f.seed)))
    else:
        print(forgetting.as_text(before, compared))
    return 0


def _say(words):
    print(words, file=sys.stderr, flush=True)


if __name__ == "__main__":
    cli.run(__doc__, define_flags, main)
