"""What a run left in its work directory says of itself: its config, its checkpoints' tokenizer."""

import json
import pathlib

from ml_collections import ConfigDict

from jaxllm import data, settings
from jaxllm.config import ConfigError


def load_config(workdir, overrides=(), given_by="--workdir"):
    """Returns the config of a run, with settings over it.

    Args:
        workdir: directory of the run.
        overrides: [(field, text)] over its config.
        given_by: flag or field that names the directory, for the error.

    Raises:
        ConfigError: no run there, or a setting that cannot be.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.is_file():
        advice = "Give the work directory of a run, or one that python -m jaxllm.convert wrote."
        if given_by == "--workdir":
            advice = (
                "Train one first, with python -m jaxllm.train "
                f"--config=configs/shakespeare_char.py --workdir={workdir}"
            )
        raise ConfigError(f"{given_by}={workdir}: no config.json there, so no run. {advice}")
    config = ConfigDict(json.loads(path.read_text(), object_hook=_tuples))
    if "finetune" not in config:  # a run from before there was another way
        config.finetune = dict(kind="full", freeze="")
    config.lock()
    for field, text in overrides:
        settings.override(config, field, text)
    return config


def config_json(config):
    """The config as JSON text, sorted, so that equal configs give equal text."""
    return json.dumps(config.to_dict(), indent=1, sort_keys=True, default=list)


def _tuples(mapping):
    return {k: tuple(v) if isinstance(v, list) else v for k, v in mapping.items()}


def choose_step(checkpoints, step, workdir):
    """Returns the number of the step that "latest", "best" or a number stands for."""
    if step == "latest":
        chosen = checkpoints.latest()
    elif step == "best":
        chosen = checkpoints.best()
    elif step.isdigit() and int(step) in checkpoints.steps():
        chosen = int(step)
    else:
        chosen = None
    if chosen is None:
        raise ConfigError(
            f"--step={step}: no such checkpoint in {workdir}. There: "
            f"{', '.join(map(str, checkpoints.steps())) or 'none'}. Try --step=latest."
        )
    return chosen


def check_tokenizer(tokenizer, meta, step):
    """Raises ConfigError if a checkpoint was made with another tokenizer."""
    if meta["tokenizer"] != tokenizer.fingerprint:
        raise ConfigError(
            f"Checkpoint {step} was made with tokenizer {meta['tokenizer'][:12]}, this run has "
            f"{tokenizer.fingerprint[:12]}: its tokens would mean other text.\n"
            "  Try another --workdir, or put the run's own tokenizer/ back."
        )


def check_data(run, meta, step):
    """Raises ConfigError if a run's rows would no longer be those that its checkpoint goes on from.

    Args:
        run: `setup.Run`, with data.
        meta: of the checkpoint; one from before this record existed passes.
        step: the checkpoint's.
    """
    lines = data.differences(meta.get("data", {}), run.record)
    if "data" not in meta or not lines or data.get(run.config.data, "on_change") == "accept":
        return
    table = "\n".join(f"    {line}" for line in lines)
    raise ConfigError(
        f"Checkpoint {step} was trained on rows in another order than this config gives:\n{table}\n"
        "  Go back to what was, or to go on from here with other rows try "
        "--config.data.on_change=accept."
    )
