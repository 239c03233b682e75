"""k-fold cross-validation: one run for each part of the data, held back in turn."""

import json
import pathlib
import statistics

from jaxllm.config import ConfigError
from jaxllm.training import processes, run
from jaxllm.whole_files import replacing

FILE = "folds.json"


def check(config, folds):
    """Raises ConfigError for a number of folds, or sources, that cannot be."""
    if folds < 2:
        raise ConfigError(f"--folds={folds} must be at least 2. Try --folds=5.")
    for name, section in config.data.sources.items():
        if section["kind"] == "prepared":
            raise ConfigError(
                f"--folds={folds}: config.data.sources.{name} is a prepared corpus, whose splits "
                "are made. Give its text, such as --config.data.sources.main.kind=jsonl."
            )


def of_fold(config, fold, folds):
    """Returns the config of one fold: validation has its documents, training all others."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.validation_fraction = 1 / folds
        config.data.validation_from = fold / folds
    return config.lock()


def train(config, workdir, folds, notes=(), join=("", 0, -1)):
    """Trains `folds` runs in workdir/fold_0 … one after another, and compares how they ended.

    Which fold a document is in, a hash of its text says: each is validated on once. Folds that have
    ended are not run again. The mean of their final validation metrics and the sample standard
    deviation are printed and written to folds.json.

    Args:
        config, workdir, notes, join: as of `run.train`.
        folds: how many.

    Returns:
        Exit status: that of the first run that did not end by itself, else 0.

    Raises:
        ConfigError: as of `run.train`.
    """
    check(config, folds)
    workdir, found = run.local(workdir), []
    for fold in range(folds):
        place, own = workdir / f"fold_{fold}", of_fold(config, fold, folds)
        if not run.has_ended(own, place):
            told = [f"fold {fold} of {folds}", *notes]
            status = run.train(own, place, told, join)
            join = None  # the processes have met
            if status or not run.has_ended(own, place):
                return status
        found.append(finals(place))
    if processes.is_first():
        result = compare(found)
        with replacing(workdir / FILE) as file:
            file.write(json.dumps({"folds": folds, "metrics": result}, indent=1).encode())
        print(table(result))
    return 0


def finals(place):
    """Returns {metric: number} of the end of a run: its last validation, and its best loss."""
    final = json.loads((pathlib.Path(place) / "summary.json").read_text())["final"]
    kept = {n.removeprefix("validation/"): x for n, x in final.items() if "validation" in n}
    counts = ("tokens", "count")
    return {n: x for n, x in kept.items() if n not in counts and isinstance(x, int | float)}


def compare(found):
    """Returns {metric: {"mean", "std", "values"}} of the metrics that all folds have."""
    names = [name for name in found[0] if all(name in one for one in found)]
    return {
        name: {
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values),
            "values": values,
        }
        for name in names
        for values in [[one[name] for one in found]]
    }


def table(result):
    """Writes what `compare` returned as text."""
    wide = max(map(len, result))
    rows = [
        f"  {name:{wide}}  {x['mean']:10.4f} ± {x['std']:.4f}   "
        + " ".join(f"{value:.4f}" for value in x["values"])
        for name, x in result.items()
    ]
    return "\n".join(["mean ± standard deviation, and each fold:", *rows])
