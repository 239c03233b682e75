"""Whether a new run may start from the parameters of another work directory.

Heads may be others: what `config.init_fresh` names is drawn, and what this run's model has not is
left there. All below the heads is the same model, or the run does not start.
"""

import pathlib

from jaxllm import finetune, models, tokenizers
from jaxllm.config import ConfigError
from jaxllm.models.config import differences
from jaxllm.models.families import model_config
from jaxllm.training import records

# Fields of a model that only what reads the final hidden states depends on.
HEADS = (
    *("task", "labels", "pool", "pool_layer", "tied"),
    *("lm_head", "head_bias", "head_transform", "head_scale", "logit_softcap"),
)
SHOWN = 6  # paths in a line


def check(run):
    """Raises ConfigError unless `config.init_from` holds the same model, but for heads that differ.

    Args:
        run: `setup.Run`.

    Returns:
        Lines for the start page: what is drawn, what is left out, what else differs.
    """
    place = pathlib.Path(run.config.init_from)
    config = records.load_config(place, given_by="config.init_from")
    tokenizer = tokenizers.load(place / "tokenizer")
    length = config.data.length
    theirs = model_config(config.model, vocab=tokenizer.vocab_size, length=length)
    fresh, notes = _heads(run, theirs, place)
    heads = HEADS if run.config.init_fresh else ()
    found = differences(run.model.config, theirs)
    notes += [f"init_from has model.{n}={b!r}, here {a!r}" for n, a, b in found if n in heads]
    found = [row for row in found if row[0] not in heads]
    if found:
        rows = [("field", "this run", "init_from"), *(tuple(map(_short, row)) for row in found)]
        wide = [max(len(row[i]) for row in rows) for i in range(2)]
        table = "\n".join(f"    {a:{wide[0]}}  {b:{wide[1]}}  {c}" for a, b, c in rows)
        edits = " ".join(f"--config.model.{name}={b}" for name, _, b in found if b != "-")
        if fresh and all(name in HEADS for name, _, _ in found):
            edits += f", or another head: --config.init_fresh='{_pattern(fresh)}'"
        raise ConfigError(
            f"config.init_from={place} holds another model than this run makes:\n{table}\n"
            f"  Try {edits or '--config.init_from= for parameters drawn at random'}."
        )
    if tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise ConfigError(
            f"config.init_from={place} has tokenizer {tokenizer.fingerprint[:12]} "
            f"({tokenizer.vocab_size:,} ids), and this run {run.tokenizer.fingerprint[:12]} "
            f"({run.tokenizer.vocab_size:,} ids): its embeddings would stand for other text.\n"
            f"  Try --config.tokenizer.kind=saved --config.tokenizer.path={place}, in a new "
            "--workdir."
        )
    return notes


def _heads(run, theirs, place):
    """Returns (paths of parameters that `theirs` has not, lines about heads).

    Raises:
        ConfigError: `config.init_fresh` names not all of them, or nothing at all.
    """
    pattern, infos = run.config.init_fresh, models.abstract_params(theirs)
    here = models.abstract_params(run.model.config)
    named = finetune.drawn(pattern, here)
    there = {path for path, info in here.items() if path in infos and _same(info, infos[path])}
    missing = [path for path in here if path not in there]
    if not pattern:
        return missing, []
    if not named:
        tops = ", ".join(sorted({path.split("/")[0] for path in here}))
        raise ConfigError(
            f"config.init_fresh={pattern!r} is the beginning of no parameter's path. There are: "
            f"{tops}.\n  Try --config.init_fresh={_quoted(missing)}."
        )
    if left := [path for path in missing if path not in named]:
        raise ConfigError(
            f"config.init_from={place} has no {_listed(left)} as this run's model has.\n"
            f"  Try --config.init_fresh={_quoted([*named, *left])}."
        )
    out = [path for path in infos if path not in here]
    notes = [f"init_from: {_listed(named)} drawn, not read (init_fresh)"]
    return missing, notes + ([f"init_from: {_listed(out)} left out"] if out else [])


def _same(a, b):
    return a.shape == b.shape


def _pattern(paths):
    """A regular expression of the beginnings of paths."""
    tops = dict.fromkeys(path.split("/")[0] + ("/" if "/" in path else "$") for path in paths)
    return "|".join(tops)


def _quoted(paths):
    return f"'{_pattern(paths)}'" if paths else "''"


def _listed(paths):
    return ", ".join(paths[:SHOWN]) + (f" and {len(paths) - SHOWN} more" * (len(paths) > SHOWN))


def _short(value):
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"
