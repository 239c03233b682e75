"""Averages of models: checkpoints of one run, or several runs (Wortsman et al. 2022)."""

import json
import pathlib
from typing import Any, NamedTuple

import jax

from jaxllm import data, tokenizers
from jaxllm.config import ConfigError
from jaxllm.models.config import differences
from jaxllm.training import imported
from jaxllm.training.validate import validate


class Soup(NamedTuple):
    """An average of models.

    Attributes:
        first: `reopen.Trained` of the first part, whose config and tokenizer it has.
        source: work directory of the first part.
        params: the average.
        kept: [(work directory, step)] that are in it.
        lines: what was tried and with what loss, as text.
    """

    first: Any
    source: str
    params: Any
    kept: list
    lines: list


def soup(parts, overrides=(), *, greedy=False):
    """Averages models (arXiv:2203.05482); the parts are read one after another.

    Args:
        parts: [(work directory, step: a number, "latest" or "best")], at least two.
        overrides: [(field, text)] over the first run's config, and the others'.
        greedy: whether models are tried from the best one down, by validation loss, and kept only
            where the average gets no worse (algorithm 1 there); else all are (equation 1).

    Returns:
        `Soup`.

    Raises:
        ConfigError: fewer than two, or models that are not the same function of their parameters.
    """
    if len(parts) < 2:
        raise ConfigError("An average is of at least two. Try --steps=100,200 or --from=RUN1,RUN2.")
    first = imported.open_run(parts[0][0], overrides, parts[0][1])
    if not greedy:
        params = first.own
        for number, part in enumerate(parts[1:], 2):
            params = _mean(params, _open_like(first, parts[0], part, overrides), 1 / number)
        return Soup(first, parts[0][0], params, list(parts), [])
    loss = _loss_on_validation(first, parts[0][0])
    losses = {part: loss(_open_like(first, parts[0], part, overrides)) for part in parts}
    order = sorted(parts, key=losses.get)
    best, kept = losses[order[0]], [order[0]]
    params = _open_like(first, parts[0], order[0], overrides)
    lines = [f"{_name(order[0])}: loss {best:.4f}, the best"]
    for part in order[1:]:
        one = _open_like(first, parts[0], part, overrides)
        tried = _mean(params, one, 1 / (len(kept) + 1))
        found = loss(tried)
        verdict = "kept" if found <= best else "left out"
        lines.append(f"{_name(part)}: loss {losses[part]:.4f}, with it {found:.4f}: {verdict}")
        if found <= best:
            best, params = found, tried
            kept.append(part)
    return Soup(first, parts[0][0], params, kept, lines)


def _name(part):
    return f"{part[0]} at step {part[1]}"


@jax.jit
def _mean(params, more, share):
    """Moves a running mean towards one more model by its share, in float32."""
    return jax.tree.map(lambda a, b: a + (b - a) * share, params, more)


def _open_like(first, whose, part, overrides):
    """Restores the parameters of a part, which must be of the same model and tokenizer."""
    one = imported.open_run(part[0], overrides, part[1])
    found = differences(first.run.model.config, one.run.model.config)
    if found:
        name, a, b = found[0]
        raise ConfigError(
            f"{part[0]} has config.model.{name}={b!r}, and {whose[0]} has {a!r}: their parameters "
            "mean different things. Average runs of one model."
        )
    if one.run.tokenizer.fingerprint != first.run.tokenizer.fingerprint:
        raise ConfigError(f"{part[0]} and {whose[0]} have different tokenizers.")
    return one.own


def _loss_on_validation(first, workdir):
    """Returns params -> validation loss in nats a token, on the data of the first run."""
    run, config, place = first.run, first.run.config, pathlib.Path(workdir) / "data"
    lead = run.method.lead
    data.prepare(config.data, run.tokenizer, place, lead=lead)
    what = (config.data, run.tokenizer, place, "validation", config.seed)
    source = data.open_split(*what, lead=lead)

    def loss(params):
        options = dict(batch=config.validate.batch, batches=config.validate.batches)
        return validate(run.evaluate, source, run.mesh, params, first.refs, **options)["loss"]

    return loss


def write(workdir, found):
    """Writes a `Soup` as a work directory, with soup.json of what is in it."""
    workdir = pathlib.Path(workdir)
    run = found.first.run
    tokenizers.save(workdir / "tokenizer", run.tokenizer)
    imported.copy_record(found.source, workdir)
    record = {"kept": [list(part) for part in found.kept], "tried": found.lines}
    (workdir / "soup.json").write_text(json.dumps(record, indent=1))
    with run.config.unlocked():
        run.config.step.ema = 0.0  # what is written is whole, and no average beside it
    imported.save(workdir, run, found.params, run.tokenizer, {"average": record["kept"]})
