"""Reading a config file and the settings on the command line that go over it."""

import ast
import difflib
import fnmatch
import importlib.util
import pathlib
import re
import sys

from ml_collections import ConfigDict

from jaxllm.config import NO_DEFAULT, ConfigError, lookup, near, options

# {type: (what it is called, a value)}
EXAMPLES = {
    bool: ("true or false", "true"),
    int: ("a whole number", 1),
    float: ("a number", 0.1),
}


def split_arguments(arguments):
    """Splits command-line arguments into (config file or "", [(field, text)], the others).

    `--config=FILE`, `--config FILE`, `--config.a.b=1` and `--config.a.b 1` are all understood.

    Raises:
        ConfigError: a setting without a value.
    """
    file, overrides, rest = "", [], []
    queue = list(arguments)
    while queue:
        item = queue.pop(0)
        match = re.fullmatch(r"--?config(?:\.([\w.]+))?(?:=(.*))?", item, re.DOTALL)
        if not match:
            rest.append(item)
            continue
        field, text = match.groups()
        if text is None:
            if not queue or queue[0].startswith("--"):
                raise ConfigError(f"{item} needs a value. Try {item}=…")
            text = queue.pop(0)
        if field:
            overrides.append((field, text))
        else:
            file = text
    return file, overrides, rest


def load(file, overrides, tables):
    """Loads `FILE.py:ARG`, completes its sections and applies the command line's settings.

    Args:
        file: path of a Python file with get_config(arg), and after a colon its argument.
        overrides: [(field, text)] as `split_arguments` gives.
        tables: {section, or pattern of sections such as "data.sources.*": (table of factories,
            {other fields of the section: default})}.

    Returns:
        (locked ConfigDict, notes: what a changed `kind` dropped).

    Raises:
        ConfigError: anything in the file or on the command line that cannot be.
    """
    config = _run_file(file)
    kinds = [(field, text) for field, text in overrides if field.split(".")[-1] == "kind"]
    notes = []
    for name, section in list(_sections(config)):
        found = _table(name, tables)
        if found:
            text = dict(kinds).get(f"{name}.kind")
            notes += _complete(name, section, *found, text)
    config.lock()
    for field, text in overrides:
        override(config, field, text)
    return config, notes


def _run_file(file):
    """Returns get_config(arg) of `FILE.py:ARG`, with its mistakes told as ConfigErrors."""
    path, _, arg = str(file).partition(":")
    if not path:
        raise ConfigError("No config given. Try --config=configs/shakespeare_char.py.")
    if not pathlib.Path(path).is_file():
        folder = pathlib.Path(path).parent
        known = sorted(str(p) for p in folder.glob("*.py") if p.stem not in ("base", "__init__"))
        raise ConfigError(
            f"--config={path}: no such file.{near(path, known)} In {folder}: "
            f"{', '.join(pathlib.Path(p).name for p in known) or 'no configs'}."
        )
    if "" not in sys.path and str(pathlib.Path.cwd()) not in sys.path:
        sys.path.insert(0, str(pathlib.Path.cwd()))  # `from configs import base`
    spec = importlib.util.spec_from_file_location("jaxllm_config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(arg or None)
    except ConfigError:
        raise
    except (AttributeError, KeyError, TypeError) as error:
        key = re.search(r'Key "(\w+)" does not exist', str(error))
        if key:
            from_base = _known_names()
            raise ConfigError(
                f"{path} sets {key[1]!r}, which is no setting.{near(key[1], from_base)} "
                "All settings are in configs/base.py."
            ) from error
        if "Could not override field" in str(error):
            raise ConfigError(f"{path}: {error}") from error
        raise
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config must return a ConfigDict, got {type(config)}.")
    return config


def _known_names():
    """Names of all fields of configs/base.py, for near misses; none where it cannot be read."""
    base = sys.modules.get("configs.base")
    if base is None:
        return []
    names = []
    for _, section in _sections(base.get_config()):
        names += section.keys()
    return names


def _sections(config, prefix=""):
    """Yields (dotted name, ConfigDict) of a config and all below it, the outermost first."""
    yield prefix, config
    for name in config:
        value = config[name]
        if isinstance(value, ConfigDict):
            yield from _sections(value, f"{prefix}.{name}" if prefix else name)


def _table(name, tables):
    for pattern, found in tables.items():
        if fnmatch.fnmatchcase(name, pattern):
            return found
    return None


def _complete(name, section, table, others, kind_text):
    """Fills a `kind` section with every option its factory takes, so that all can be overridden.

    Where the command line changes the kind, options the new kind does not take are dropped, and
    said so.
    """
    notes, changed = [], kind_text is not None and kind_text != section.get("kind")
    if "kind" not in section:
        raise ConfigError(f"config.{name} has no `kind`. Known: {', '.join(table)}.")
    section.unlock()
    if changed:
        section.kind = kind_text
    factory = lookup(table, section.kind, name)
    known = options(factory)
    for field in list(section):
        if changed and field not in known and field not in others and field != "kind":
            dropped = f"config.{name}.{field}={section[field]!r}"
            notes.append(f"{dropped} is not for kind {kind_text!r}: dropped")
            del section[field]
    for field, default in {**others, **known}.items():
        if field not in section and default is not NO_DEFAULT:
            section[field] = default
    return notes


def override(config, field, text):
    """Sets one dotted field of a ConfigDict from the text on the command line.

    Raises:
        ConfigError: no such field, or text that is not of its type.
    """
    *parents, name = field.split(".")
    section = config
    for depth, parent in enumerate(parents):
        if parent not in section or not isinstance(section[parent], ConfigDict):
            here = ".".join(["config", *parents[:depth]])
            known = [k for k in section if isinstance(section[k], ConfigDict)]
            raise ConfigError(
                f"--config.{field}={text}: {here} has no section {parent!r}."
                f"{near(parent, known)} Known: {', '.join(known) or 'none'}."
            )
        section = section[parent]
    here = ".".join(["config", *parents])
    if name not in section:
        raise ConfigError(
            f"--config.{field}={text}: {here} has no {name!r}.{near(name, list(section))} "
            f"Known: {', '.join(section)}.{_instead(parents, name, section, text)}"
        )
    if isinstance(section[name], ConfigDict):
        fields = {k: v for k, v in section[name].items() if v is not None}
        first, value = next(iter(fields.items()), ("…", "…"))
        raise ConfigError(
            f"--config.{field}={text}: {here}.{name} is a section of {', '.join(section[name])}.\n"
            f"  Try a field of it, such as --config.{field}.{first}={value}."
        )
    section[name] = _parse(f"config.{field}", text, section.get_type(name), section[name])


def _instead(parents, name, section, text):
    """Returns "\\n  Try …" with the name that was probably meant, if one is near."""
    close = difflib.get_close_matches(name, list(section), n=1, cutoff=0.5)
    return f"\n  Try --config.{'.'.join([*parents, close[0]])}={text}." if close else ""


def _parse(name, text, kind, now):
    """Parses text as `kind`, the type of the field; `now` is its value, for the error."""
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (tuple, list):
            value = ast.literal_eval(text)
            return kind(value if isinstance(value, tuple | list) else (value,))
        if kind is int:
            value = float(text.replace("_", ""))
            if value != int(value):
                raise ValueError(text)
            return int(text.replace("_", "")) if "e" not in text.lower() else int(value)
        return kind(text)
    except (ValueError, KeyError, SyntaxError, OverflowError):
        allowed, like = EXAMPLES.get(kind, (f"a {kind.__name__}", now))
        like = like if now is None else now
        raise ConfigError(f"--{name}={text!r} must be {allowed}.\n  Try --{name}={like}.") from None
