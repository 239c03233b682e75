"""Scores of checkpoints on general tasks, kept in work directories.

workdir/forgetting.json   {"scores": {checkpoint: {"workdir", "step", "tasks": {task's digest:
                          scores}}}, "report": the last one}
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from typing import NamedTuple

import numpy as np

from jaxllm import data, models, sharding, tokenizers
from jaxllm.config import ConfigError
from jaxllm.evals import general
from jaxllm.evals.scorer import Scorer
from jaxllm.training import records, reopen
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.whole_files import replacing

FILE = "forgetting.json"


class Subject(NamedTuple):
    """A checkpoint to be scored.

    Attributes:
        workdir, step: where it is.
        identity: what no other model has: of its parameters, sizes, tokenizer and prompts.
        tokenizer: its tokenizer's fingerprint.
    """

    workdir: str
    step: int
    identity: str
    tokenizer: str


def find(workdir, steps, overrides=(), given_by="--workdir"):
    """Returns the `Subject`s of a run, in the order of their steps.

    Args:
        workdir: of the run.
        steps: "all", or what `records.choose_step` knows, several with commas.
        overrides: [(field, text)] over the run's config.
        given_by: flag that names the directory, for the error.

    Raises:
        ConfigError: no run, or no such checkpoint there.
    """
    config = records.load_config(workdir, overrides, given_by)
    tokenizer = tokenizers.load(pathlib.Path(workdir) / "tokenizer").fingerprint
    with Checkpoints(pathlib.Path(workdir) / "checkpoints", read_only=True) as checkpoints:
        if steps == "all":
            chosen = checkpoints.steps() or [records.choose_step(checkpoints, "latest", workdir)]
        else:
            words = [word.strip() for word in steps.split(",")]
            chosen = sorted({records.choose_step(checkpoints, word, workdir) for word in words})
        marks = [checkpoints.identity(step) for step in chosen]
    # Rows of models without a length of their own are as long as those of the data.
    rows = [data.get(config.data, "begin"), data.get(config.data, "start"), config.data.length]
    parts = [config.model.to_dict(), config.finetune.to_dict(), config.step.ema, rows, tokenizer]
    more = json.dumps(parts, default=list)
    return [
        Subject(str(workdir), step, _digest(f"{mark} {more}"), tokenizer)
        for step, mark in zip(chosen, marks, strict=True)
    ]


def _digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


class Models:
    """Opens checkpoints one after another; of one kind of model they share what is compiled.

    Args:
        overrides: [(field, text)] over the runs' configs.
    """

    def __init__(self, overrides=()):
        self._overrides, self._kind, self._scorer = overrides, None, None

    def open(self, subject):
        """Returns the `Scorer` of a `Subject`; the one before is of no more use."""
        if self._scorer is not None:
            self._scorer.take(None)  # there may be no room for two
        step = str(subject.step)
        trained = reopen.open_trained(subject.workdir, self._overrides, step)
        run, settings = trained.run, trained.run.config.data
        begin, start = data.get(settings, "begin"), data.get(settings, "start")
        c, tokenizer, rewrite = run.model.config, run.tokenizer, run.method.rewrite
        kind = (c, run.mesh, tokenizer.fingerprint, rewrite, begin, start)
        if kind == self._kind:
            self._scorer.take(trained.params)
            return self._scorer
        try:
            # The kernel of a run's rows may not take rows of other lengths.
            exact = dataclasses.replace(c, attention="reference")
            self._scorer = Scorer(
                run.model, trained.params, tokenizer, begin=begin, start=start,
                scored=models.make(exact, sharding.make_shard(run.mesh), rewrite=rewrite),
            )  # fmt: skip
        except ConfigError as error:
            raise ConfigError(f"{subject.workdir}: {error}") from None
        self._kind = kind
        return self._scorer


def measure(subject, tasks, known, opened, workdir, report=print):
    """Returns {task: `general.Scores`} of a checkpoint, opening it only for what is not known.

    What is found is written task by task: who stops it loses one.

    Args:
        subject: `Subject`.
        tasks: [`suite.Task`].
        known: what `read` returned; what is new is added.
        opened: `Models`.
        workdir: directory that the scores are written to.
        report: called with a line for each task that was run.

    Raises:
        ConfigError: a task and the model do not go together.
    """
    place = known.setdefault(
        subject.identity, {"workdir": subject.workdir, "step": subject.step, "tasks": {}}
    )["tasks"]
    missing = [task for task in tasks if task.digest not in place]
    if missing:
        scorer = opened.open(subject)
        for task in missing:
            begin = time.monotonic()
            found = general.measure(task, scorer)
            place[task.digest] = _plain(found)
            write(workdir, [subject.identity], known, None)
            left_out = f", {found.dropped} examples did not fit" if found.dropped else ""
            took = time.monotonic() - begin
            report(
                f"{subject.workdir} step {subject.step}: {task.name} {found.metric} "
                f"{found.score:.4g} of {len(found.over)}{left_out}, {took:.1f} s"
            )
    return {task.name: _scores(place[task.digest]) for task in tasks}


def _plain(scores):
    found = scores._asdict()
    return {**found, "over": scores.over.tolist(), "under": scores.under.tolist()}


def _scores(found):
    arrays = {name: np.array(found[name], np.float64) for name in ("over", "under")}
    return general.Scores(**{**found, **arrays})


def read(workdirs):
    """Returns {identity: {"workdir", "step", "tasks"}} of all that work directories keep.

    Raises:
        ConfigError: a file of another make, or a damaged one.
    """
    known = {}
    for workdir in workdirs:
        path = pathlib.Path(workdir) / FILE
        if not path.is_file():
            continue
        try:
            for identity, one in json.loads(path.read_text())["scores"].items():
                mine = known.setdefault(identity, {**one, "tasks": {}})
                mine["tasks"].update(one["tasks"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path} is damaged: {error!r}. Remove it.") from None
    return known


def write(workdir, identities, known, report):
    """Writes the scores of some checkpoints, and a report, into a work directory.

    Args:
        workdir: whose file it is; what is there of other checkpoints stays.
        identities: of `Subject`s whose scores go there.
        known: as `measure` filled it.
        report: what JSON can hold, or None: as it was.
    """
    path = pathlib.Path(workdir) / FILE
    found = {"scores": {}}
    if path.is_file():
        found = json.loads(path.read_text())
    found["scores"].update({i: known[i] for i in identities if i in known})
    if report is not None:
        found["report"] = report
    with replacing(path) as file:
        file.write(json.dumps(found).encode())
