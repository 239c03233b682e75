"""Whether rows, objective and model are made for one another; told before a file is read."""

import copy
import dataclasses

from jaxllm import data, sharding
from jaxllm.config import ConfigError
from jaxllm.data import examples

# The head that each objective trains, and how many outputs it has, where that does not depend on
# the data.
HEADS = {
    "classify": "classify",
    "tag": "tag",
    "span": "span",
    "regress": "regress",
    "contrast": "embed",
}
OUTPUTS = {"regress": 1, "span": 2}
WORDS = {"decoder": "a decoder", "encoder": "an encoder", "encoder_decoder": "an encoder_decoder"}
# What a model must be for rows that need it: (what it is for, a family that is).
NEEDED = {
    "encoder": ("are predicted from both sides, which an encoder sees", "bert"),
    "encoder_decoder": ("are read by an encoder and written by a decoder", "t5"),
    "order": ("are predicted in any order, which takes model.two_streams=True", "xlnet"),
    "prefix": ("are seen whole at first and written then, by a decoder", "llama"),
}
LONGEST_TRIED = 64  # lengths of rows that an error looks through for one that divides


def check(config, c):
    """Raises ConfigError unless the model can be trained on such rows by such an objective.

    Args:
        config: the ConfigDict, whose sections are known to be good by themselves.
        c: resolved ModelConfig.
    """
    if config.objective.kind == "lm":
        _check_text(config, c)
    else:
        _check_head(config, c)
    _check_positions(config, c)
    if config.sample.tokens and (c.assembly == "encoder" or not c.lm_head):
        raise ConfigError(
            f"config.sample.tokens={config.sample.tokens}: this model writes no text (assembly="
            f"{c.assembly!r}, lm_head={c.lm_head}).\n  Try --config.sample.tokens=0."
        )


def _check_text(config, c):
    """Raises ConfigError for rows whose tokens this assembly cannot predict."""
    if not c.lm_head:
        raise ConfigError(
            "config.model.lm_head=False, and objective.kind='lm' predicts tokens.\n"
            "  Try --config.model.lm_head=True."
        )
    rows = data.get(config.data, "rows")
    if rows in ("examples", "together"):
        kind = "contrast" if rows == "together" else examples.task_of(config.data.sources)
        raise ConfigError(
            f"config.objective.kind='lm' predicts tokens, and data.rows={rows!r} have none to "
            f"predict.\n  Try --config.objective.kind={kind}."
        )
    needs = data.needs(config.data)
    if not needs and c.assembly == "decoder" and not c.two_streams:
        return
    has = {"encoder": c.assembly == "encoder", "order": c.two_streams}
    has["encoder_decoder"] = c.assembly == "encoder_decoder"
    has["prefix"] = c.assembly == "decoder" and not c.two_streams
    for field, need in needs.items():
        if not has[need]:
            why, family = NEEDED[need]
            raise ConfigError(
                f"config.{field}={_value(config, field)!r}: its tokens {why}, and "
                f"config.model.family={config.model.family!r} is {WORDS[c.assembly]}.\n"
                f"  Try --config.model.family={family}, or {_other_rows(config, c, field)}."
            )
    if not needs:
        raise ConfigError(
            f"config.data.rows={rows!r} are for a decoder, which predicts each token from those "
            f"before it; config.model.family={config.model.family!r} is {WORDS[c.assembly]}, "
            + (
                "which has no inputs to read there.\n  Try --config.data.rows=pairs"
                if c.assembly == "encoder_decoder"
                else "which sees what it would predict.\n  Try --config.model.assembly=decoder"
            )
            + f", or --config=configs/encoder.py:objective={_usual(c)}."
        )
    if "prefix" in needs.values():
        check_prefix(config, c)


def _value(config, field):
    """The value of a dotted field of a config."""
    for name in field.split("."):
        config = config[name]
    return config


def _usual(c):
    """The transform that makes rows for a model."""
    if c.two_streams:
        return "xlnet"
    return {"encoder": "bert", "encoder_decoder": "spans", "decoder": "prefix"}[c.assembly]


def _other_rows(config, c, field):
    """What else to type for rows that the model can be trained on."""
    if field == "data.rows":
        return "--config.data.rows=completion" if c.assembly == "decoder" else "a decoder"
    return f"--config.{field}={_usual(c)}"


def check_prefix(config, c):
    """Raises ConfigError for a model, or a mesh, that cannot see a prefix from all of it."""
    seq = config.mesh.seq
    for name, value, good in (
        ("model.attention", c.attention in ("splash", "lsh") and c.attention, "auto"),
        ("model.window", c.window, "0"),
        ("model.attention_every", c.attention_every, "0"),
        ("mesh.seq", seq if seq not in (0, 1) else 0, "1"),
    ):
        if value:
            raise ConfigError(
                f"config.{name}={value!r} looks back only, and in rows of data.transforms of kind "
                f"'prefix' a first part is seen from all of it.\n  Try --config.{name}={good}."
            )


def for_rows(config, c):
    """Returns a ModelConfig with a kernel for its rows, where it is left open."""
    if c.attention == "auto" and "prefix" in data.needs(config.data).values():
        return dataclasses.replace(c, attention="reference")
    return c


def _check_head(config, c):
    """Raises ConfigError unless the model has the objective's head, and the rows its targets."""
    kind, rows = config.objective.kind, data.get(config.data, "rows")
    wanted = "together" if kind == "contrast" else "examples"
    task = examples.task_of(config.data.sources)
    if rows != wanted:
        raise ConfigError(
            f"config.data.rows={rows!r} are not for objective.kind={kind!r}.\n"
            f"  Try --config.data.rows={wanted}, with a source of such examples."
        )
    if kind not in ("contrast", task):
        raise ConfigError(
            f"config.objective.kind={kind!r}, and the sources' examples are for {task}.\n"
            f"  Try --config.objective.kind={task}."
        )
    if c.task != HEADS[kind]:
        raise ConfigError(
            f"config.model.task={c.task!r} is not what objective.kind={kind!r} trains.\n"
            f"  Try --config.model.task={HEADS[kind]}."
        )
    if c.labels != OUTPUTS.get(kind, c.labels):
        raise ConfigError(
            f"config.model.labels={c.labels}: objective.kind={kind!r} takes {OUTPUTS[kind]}.\n"
            f"  Try --config.model.labels={OUTPUTS[kind]}."
        )
    reads_one = kind in ("classify", "regress", "contrast")
    if c.assembly == "decoder" and c.pool == "first" and reads_one:
        raise ConfigError(
            "config.model.pool='first': the first token of a decoder sees nothing but itself.\n"
            "  Try --config.model.pool=last."
        )


def told(config):
    """Returns what `validate` is to know of a loss: is it of text, of all text, counted in what."""
    if config.objective.kind != "lm":
        return dict(of_text=False, whole=False)
    # Runs from before there was a choice have none.
    by_example = {"per": "token", **config.objective}["per"] == "example"
    kinds = data.rows_of(config.data).values()
    plain = all(rows in data.ROWS for rows in kinds) and not data.needs(config.data)
    unit = "examples" if by_example else "tokens"
    return dict(of_text=True, whole=plain and not by_example, unit=unit)


def check_classes(c, source):
    """Raises ConfigError unless the model's head has an output for each class of the data.

    Args:
        c: resolved ModelConfig.
        source: as `data.open_split` returns.
    """
    names = data.classes(source)
    if names and c.task in ("classify", "tag") and len(names) != c.labels:
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise ConfigError(
            f"config.model.labels={c.labels}, and the data have {len(names)} classes ({shown}).\n"
            f"  Try --config.model.labels={len(names)}."
        )


def lengths(settings, length):
    """Returns {"tokens" or "inputs": how many} of a row.

    Args:
        settings: `config.data`.
        length: tokens of text that it is made of, in the place of `settings.length`.
    """
    settings = copy.deepcopy(settings)
    with settings.unlocked():
        settings.length = length
    row = data.empty(settings, 1)
    return {name: row[name].shape[-1] for name in ("tokens", "inputs") if name in row}


def _check_positions(config, c):
    """Raises ConfigError for rows that are longer than the table of positions."""
    longest = max(lengths(config.data, config.data.length).values())
    if c.position == "learned" and longest > c.positions:
        raise ConfigError(
            f"config.model.positions={c.positions}, and rows of data.length={config.data.length} "
            f"have up to {longest} tokens.\n  Try --config.model.positions={longest}."
        )


def check_lengths(config, shape):
    """Raises ConfigError unless both sides of rows divide over the mesh axes of the length.

    Args:
        config: the ConfigDict.
        shape: {mesh axis: devices}.
    """
    length = config.data.length
    ways = 1
    for axis in sharding.LENGTH_AXES:
        ways *= shape[axis]

    def odd(length):
        return {n: size for n, size in lengths(config.data, length).items() if size % ways}

    if ways == 1 or not odd(length) or set(odd(length).values()) == {length}:
        return  # where rows are as long as the text, `setup` has looked
    name, size = next(iter(odd(length).items()))
    axis = next(axis for axis in sharding.LENGTH_AXES if shape[axis] > 1)
    near = (length - i for i in range(1, min(LONGEST_TRIED, length)) if not odd(length - i))
    good = next(near, None)
    raise ConfigError(
        f"config.data.length={length} makes rows of {size} {name}, which do not split evenly over "
        f"mesh axes {' x '.join(sharding.LENGTH_AXES)} ({ways} ways).\n"
        f"  Try {f'--config.data.length={good}, or ' if good else ''}--config.mesh.{axis}=1."
    )
