"""The parameters that a new run starts from: those of another work directory."""

import pathlib

from jaxllm import tokenizers
from jaxllm.config import ConfigError
from jaxllm.models.config import differences
from jaxllm.models.families import model_config
from jaxllm.training import reopen
from jaxllm.training.checkpoint import Checkpoints


def check(run):
    """Raises ConfigError unless `config.init_from` holds the same model and tokenizer.

    Args:
        run: `setup.Run`.
    """
    place = pathlib.Path(run.config.init_from)
    config = _config(place)
    tokenizer = tokenizers.load(place / "tokenizer")
    length = config.data.length
    theirs = model_config(config.model, vocab=tokenizer.vocab_size, length=length)
    found = differences(run.model.config, theirs)
    if found:
        rows = [("field", "this run", "init_from"), *(tuple(map(_short, row)) for row in found)]
        wide = [max(len(row[i]) for row in rows) for i in range(2)]
        table = "\n".join(f"    {a:{wide[0]}}  {b:{wide[1]}}  {c}" for a, b, c in rows)
        edits = " ".join(f"--config.model.{name}={b}" for name, _, b in found if b != "-")
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


def load(run, step="latest"):
    """Restores the parameters of `config.init_from` onto the run's mesh.

    Args:
        run: `setup.Run`, which `check` has passed.
        step: "latest", "best" or a number.

    Returns:
        Tree of jax.Array; the average where that run kept one.

    Raises:
        ConfigError: no checkpoint there.
    """
    place = pathlib.Path(run.config.init_from)
    part = "ema" if _config(place).step.ema else "params"
    with Checkpoints(place / "checkpoints", read_only=True) as checkpoints:
        chosen = reopen.choose_step(checkpoints, step, place)
        tree, _ = checkpoints.restore(chosen, {part: run.abstract.params}, partial=True)
    return tree[part]


def _config(place):
    if not (place / "config.json").is_file():
        raise ConfigError(
            f"config.init_from={place}: no config.json there, so no model. Give the work directory "
            "of a run, or one that python -m jaxllm.convert import wrote."
        )
    return reopen.load_config(place)


def _short(value):
    text = str(value)
    return text if len(text) <= 40 else text[:37] + "…"
