"""Opening what a run left in its work directory, for reading."""

import pathlib
from typing import Any, NamedTuple

import jax

from jaxllm import finetune, tokenizers
from jaxllm.training import base, setup
from jaxllm.training.checkpoint import Checkpoints
from jaxllm.training.records import check_tokenizer, choose_step, load_config


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        run: `setup.Run` with the run's tokenizer and no data.
        params: all parameters; those that were trained from the checkpoint, or their average
            where the run kept one, the others from what the run started from.
        step: updates done.
        own: those that were trained, as `run.evaluate` takes them.
        refs: the frozen ones, as it takes them.
        digest: `base.frozen_digest` of what it was trained over, "" where all was trained.
    """

    run: Any
    params: Any
    step: int
    own: Any
    refs: Any
    digest: str = ""

    def with_own(self, own):
        """Returns the same with other trained parameters."""
        params = finetune.join(own, self.refs.get("base"))
        return self._replace(own=own, params=params)


def open_trained(workdir, overrides=(), step="latest", given_by="--workdir", read=None):
    """Restores the model of a run onto this machine's devices.

    Args:
        workdir: directory of the run; nothing in it is changed.
        overrides: [(field, text)] over the run's config, for instance another mesh.
        step: "latest", "best" (by validation loss) or a number.
        given_by: as `load_config` has it.
        read: as `base.load` has it.

    Raises:
        ConfigError: no run or no such checkpoint there; or what it started from is gone, or not
            what it was.
    """
    config = load_config(workdir, overrides, given_by)
    tokenizer = tokenizers.load(pathlib.Path(workdir) / "tokenizer")
    run = setup.assemble_program(config, tokenizer.vocab_size, jax.devices())
    with Checkpoints(pathlib.Path(workdir) / "checkpoints", read_only=True) as checkpoints:
        chosen = choose_step(checkpoints, step, workdir)
        part = "ema" if config.step.ema else "params"
        wanted = {part: run.abstract.params}
        tree, meta = checkpoints.restore(chosen, wanted, partial=True)
    check_tokenizer(tokenizer, meta, chosen)
    run = run._replace(tokenizer=tokenizer)
    under = base.again(run, workdir, meta.get("base"), read)
    return Trained(run, None, chosen, None, *under).with_own(tree[part])
