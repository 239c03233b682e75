"""Configurations: errors, arguments, sections with variants.

A section with variants holds `kind` and keyword arguments, and a table maps each kind to a
factory. The factory's positional parameters are what the code passes; its keyword-only
parameters are what the config may set, so a signature is the whole list of settings.
"""

import difflib
import inspect
import json
import pathlib
import re

from ml_collections import ConfigDict

NO_DEFAULT = inspect.Parameter.empty


class ConfigError(ValueError):
    """A setting that cannot work. Says the field, its value, what is allowed and what to type."""


def near(name, known):
    """Returns " Did you mean 'x'?" for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def parse_arg(arg, **defaults):
    """Reads the part of `--config=file.py:ARG` after the colon.

    Args:
        arg: comma-separated `name` or `name=value`, or None. A bare name switches a bool on, or
            names one of the choices of the argument `preset` if the config declares it.
        **defaults: the arguments that the config takes; each default gives its type.

    Returns:
        An object with one attribute an argument.

    Raises:
        ConfigError: unknown argument, or a value of the wrong type.
    """
    values = dict(defaults)
    for item in filter(None, (part.strip() for part in (arg or "").split(","))):
        name, has_value, text = item.partition("=")
        if name not in defaults:
            raise ConfigError(
                f"No config argument {name!r}.{near(name, defaults)} Known: {', '.join(defaults)}."
            )
        values[name] = _parse(f"argument {name!r}", text if has_value else "true", defaults[name])
    return ConfigDict(values)


def model_of(workdir):
    """Returns {field: value} of the model of a work directory, for a config that begins with it.

    Raises:
        ConfigError: there is none.
    """
    path = pathlib.Path(workdir).expanduser() / "config.json"
    try:
        found = dict(json.loads(path.read_text())["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"init={workdir} holds no model: {path} cannot be read ({error}). Give the work "
            "directory of a run, or one that python -m jaxllm.convert import wrote."
        ) from None
    lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
    return {name: value for name, value in (found | lists).items() if value is not None}


# Learning rates that fine-tuning usually begins with, of AdamW.
TUNING_RATES = {"full": 2e-5, "lora": 2e-4, "qlora": 2e-4, "prompt": 1e-2, "prefix": 3e-3,
                "adapter": 5e-4, "ia3": 5e-3}  # fmt: skip


def tune(c, workdir, method="full"):
    """Turns a config into one that fine-tunes the model of a work directory.

    Args:
        c: ConfigDict, as configs/base.py makes it; its steps, data and objective stay.
        workdir: of a run, or what `jaxllm.convert import` wrote.
        method: kind of `config.finetune`.

    Raises:
        ConfigError: no model there, or an unknown method.
    """
    if method not in TUNING_RATES:
        raise ConfigError(
            f"argument 'method': {method!r} is unknown.{near(method, TUNING_RATES)} "
            f"Known: {', '.join(TUNING_RATES)}."
        )
    c.init_from = workdir
    c.model.update(model_of(workdir))
    c.model.remat = "light"  # deep models: on a CPU 1.5 times as fast as with all kept
    c.tokenizer = dict(kind="saved", path=workdir)
    c.finetune = dict(kind=method)
    c.optim = dict(kind="adamw", weight_decay=0.0, groups=dict())
    c.schedule = dict(kind="cosine", lr=TUNING_RATES[method], warmup_steps=c.steps // 20)


def replay(c, path, part):
    """Adds what a model has learned before to what a config trains on, against forgetting.

    Args:
        c: ConfigDict with one source, "main".
        path: JSON lines (by name) or text: a file or folder; beside rows of pairs, pairs with the
            fields of "main". "" adds nothing.
        part: of the rows of every batch, in the mean.

    Raises:
        ConfigError: a part that is none.
    """
    if not path:
        return
    if not 0 < part < 1:
        raise ConfigError(f"argument 'replay_part': {part} must be between 0 and 1. Try 0.1.")
    c.data.sources.main.weight = 1 - part
    if c.data.rows == "pairs":
        old = dict(c.data.sources.main)
    else:
        old = dict(kind="jsonl" if ".jsonl" in path else "text")
        if c.data.rows not in ("windows", "packed"):
            old["rows"] = "packed"
    c.data.sources.old = dict(old, path=path, weight=part, split="train")


def _parse(what, text, default):
    """Parses `text` as the type of `default`."""
    kind = type(default)
    if kind is bool:
        if text.lower() in ("true", "1", "false", "0"):
            return text.lower() in ("true", "1")
        raise ConfigError(f"{what} is on or off, got {text!r}. Try true or false.")
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(
            f"{what} takes {kind.__name__}, got {text!r}. The default is {default!r}."
        ) from None


def options(factory):
    """Returns {name: default} of the keyword-only parameters, which are what a config may set."""
    return {
        name: parameter.default
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }


def lookup(table, kind, field):
    """Returns table[kind].

    Raises:
        ConfigError: no such kind.
    """
    if kind not in table:
        raise ConfigError(
            f"config.{field}.kind={kind!r} is unknown.{near(kind, table)} "
            f"Known: {', '.join(table)}.\n  Try --config.{field}.kind={next(iter(table))}."
        )
    return table[kind]


def arguments(table, section, field, ignore=()):
    """Checks a `kind` section against its factory and returns (factory, keyword arguments).

    Args:
        table: {kind: factory}.
        section: dict or ConfigDict with `kind` and the factory's options.
        field: name of the section in the config, for errors.
        ignore: names in the section that are not for the factory.

    Raises:
        ConfigError: unknown kind, unknown option, missing option or wrong type.
    """
    values = {name: _plain(value) for name, value in section.items() if name not in ignore}
    factory = lookup(table, values.pop("kind", None), field)
    known = options(factory)
    for name, value in values.items():
        if name not in known:
            raise ConfigError(
                f"config.{field}.{name}={value!r}: kind {section['kind']!r} takes no such option."
                f"{near(name, known)} Known: {', '.join(known) or 'none'}."
            )
        default = known[name]
        if default is not NO_DEFAULT:
            values[name] = _coerce(f"config.{field}.{name}", value, default)
    missing = [n for n, default in known.items() if default is NO_DEFAULT and n not in values]
    if missing:
        raise ConfigError(
            f"config.{field} with kind {section['kind']!r} needs {missing[0]!r}.\n"
            f"  Try --config.{field}.{missing[0]}=…"
        )
    return factory, values


def filled(table, section):
    """Returns a `kind` section, as a dict, with every option that its factory takes."""
    return {**options(table[section["kind"]]), **section}


def make(table, section, field, *context, ignore=()):
    """Calls the factory that a `kind` section names: table[kind](*context, **options).

    Raises:
        ConfigError: as `arguments`; a ValueError of the factory is re-raised with the field's name.
    """
    factory, values = arguments(table, section, field, ignore)
    try:
        return factory(*context, **values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"config.{field} (kind {section['kind']!r}): {error}{_edit(str(error), factory, field)}"
        ) from error


def _edit(message, factory, field):
    """Returns "\\n  Try …" for the first option that a message names, by what it says works."""
    for name, default in options(factory).items():
        if re.search(rf"\b{name}=", message):
            such_as = re.search(r"such as ([\w.+-]+?)\.?(\s|$)", message)
            good = such_as[1] if such_as else default
            return "" if good is NO_DEFAULT else f"\n  Try --config.{field}.{name}={good}."
    return ""


def _plain(value):
    """Turns ConfigDicts into dicts and lists into tuples, all the way down."""
    if isinstance(value, ConfigDict):
        value = value.to_dict()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    return value


def _coerce(name, value, default):
    """Returns value as the type of default; an int may stand for a float, nothing else."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = isinstance(value, bool) != isinstance(default, bool)
    if wrong or not isinstance(value, type(default)):
        raise ConfigError(
            f"{name}={value!r} is a {type(value).__name__}; it must be a "
            f"{type(default).__name__}, such as {default!r}."
        )
    return value
