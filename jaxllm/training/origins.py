"""Tells which documents a step of a run was made of, from the run's work directory."""

import pathlib

from jaxllm import data, finetune, tokenizers
from jaxllm.config import ConfigError
from jaxllm.training import setup
from jaxllm.training.records import load_config

EXCERPT_TOKENS = 64
EXCERPT_CHARACTERS = 72


def page(workdir, step):
    """Returns lines on every row of a step: source, epoch, documents, the beginning of each.

    Args:
        workdir: directory of a training run; nothing in it is changed.
        step: number of the update, from 1, as logs have it.

    Raises:
        ConfigError: no run there, or no such step.
        DataError: its token shards are not there.
    """
    config = load_config(workdir)
    if not 1 <= step <= config.steps:
        raise ConfigError(
            f"--step={step}: the steps of {workdir} are 1 to {config.steps}.\n  Try --step=1."
        )
    place = pathlib.Path(workdir)
    tokenizer = tokenizers.load(place / "tokenizer")
    vocab = setup.model_vocab(config, tokenizer)
    source = data.open_split(
        config.data,
        tokenizer,
        place / "data",
        "train",
        config.seed,
        steps=config.steps,
        vocab=vocab,
        lead=finetune.of(config).lead,
    )
    lines = [f"step {step} of {workdir}: {source.batch} rows of {source.length} tokens"]
    for origin in data.explain(source, step - 1):
        walk = "curriculum" if origin.epoch < 0 else f"epoch {origin.epoch}"
        lines.append(f"row {origin.row}: {origin.source}, {walk}")
        for piece in origin.pieces:
            end = piece.offset + piece.tokens
            ids = source.sources[origin.source].ids(piece.start, min(piece.tokens, EXCERPT_TOKENS))
            text = tokenizer.decode(ids)[:EXCERPT_CHARACTERS]
            lines.append(
                f"  document {piece.document}, tokens {piece.offset} to {end - 1}: {text!r}"
            )
    return "\n".join(lines)
