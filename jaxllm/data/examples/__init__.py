"""Examples with structure: pairs, classes, tags, answers, numbers; how they are stored and read."""

from jaxllm.config import ConfigError
from jaxllm.data.errors import DataError
from jaxllm.data.examples import chats, kinds, labelled, made, rows, written
from jaxllm.data.examples.kinds import unlabelled
from jaxllm.data.examples.labelled import Unlabelled
from jaxllm.data.examples.rows import ChatOptions, Options

SOURCES = {
    "pairs": kinds.pairs,
    "labelled": kinds.labelled,
    "scored": kinds.scored,
    "tagged": kinds.tagged,
    "answers": kinds.answers,
    "chats": chats.chats,
    "counting": made.counting,
}
# What the examples of a kind are for: `store.TASKS`.
TASK_OF = {
    "pairs": "pairs",
    "labelled": "classify",
    "scored": "regress",
    "tagged": "tag",
    "answers": "span",
    "chats": "chat",
}
ROWS = {
    "pairs": written.Pairs,
    "completion": written.Completion,
    "together": labelled.Together,
    "examples": labelled.Labelled,
    "chat": written.Chats,
}
# Rows and the tasks that they are for, the usual one first.
FOR = {
    "pairs": ("pairs",),
    "completion": ("pairs",),
    "together": ("pairs",),
    "chat": ("chat",),
    "examples": ("classify", "regress", "tag", "span"),
}
# Transforms that may change rows of examples: those that read nothing but `tokens`.
TRANSFORMS = ("noise", "word_dropout")

__all__ = [
    "ROWS",
    "SOURCES",
    "ChatOptions",
    "Options",
    "Unlabelled",
    "check",
    "empty",
    "same_classes",
    "task_of",
    "unlabelled",
]


def task_of(sources):
    """Returns what the sources of a config are for, or None where all are of documents.

    Args:
        sources: `config.data.sources`.

    Raises:
        ConfigError: not all that are of examples are for the same.
    """
    found = {name: {"kind": None, **section}["kind"] for name, section in sources.items()}
    tasks = {task_of_source(section) for section in sources.values()} - {None}
    if len(tasks) > 1:
        told = ", ".join(f"{name}: {kind}" for name, kind in found.items())
        raise ConfigError(
            f"config.data.sources are not all for the same task ({told}). Train on one kind at a "
            "time."
        )
    return next(iter(tasks), None)


def task_of_source(section):
    """Returns what the examples of a source are for, or None where it is of documents."""
    kind = {"kind": None, **section}["kind"]
    if kind == "counting":
        return {"task": "pairs", **section}["task"]
    return TASK_OF.get(kind)


def check(config, name, rows_name, options):
    """Raises ConfigError where rows and a source do not go together, or an option cannot be.

    Args:
        config: `config.data`.
        name: of the source.
        rows_name: of its rows.
        options: of the class of these rows, its `OPTIONS`.
    """
    section, task = config.sources[name], task_of_source(config.sources[name])
    task_of(config.sources)
    own = {"rows": "", **section}["rows"] or len(config.sources) > 1
    field = f"data.sources.{name}.rows" if own else "data.rows"
    if (task is None) == (rows_name in ROWS):
        kind = section["kind"]
        good = [name for name, tasks in FOR.items() if task in tasks] or ["windows", "packed"]
        raise ConfigError(
            f"config.{field}={rows_name!r} does not go with a source of kind {kind!r}.\n"
            f"  Try --config.{field}={' or '.join(good)}."
        )
    if task and task not in FOR[rows_name]:
        good = next(name for name, tasks in FOR.items() if task in tasks)
        raise ConfigError(
            f"config.{field}={rows_name!r} is not for {task}.\n  Try --config.{field}={good}."
        )
    if isinstance(options, ChatOptions):
        chats.check(config, options)
        return
    if options.input_length < 0 or options.start < -1:
        name, least = ("input_length", 0) if options.input_length < 0 else ("start", -1)
        raise ConfigError(
            f"config.data.{name}={getattr(options, name)} must be at least {least}.\n"
            f"  Try --config.data.{name}={least}."
        )


def empty(config, name, rows_name, options, count):
    """Returns `count` rows of padding of a source, without reading anything.

    Args:
        config: `config.data`.
        name: of the source.
        rows_name: of its rows, one of `ROWS`.
        options: of the class of these rows, its `OPTIONS`.
    """
    task = task_of_source(config.sources[name])
    shapes = ROWS[rows_name].shapes(task, config.length, options)
    return rows.empty(shapes, count)


def same_classes(manifests):
    """Returns the names of the classes, which all sources must have alike.

    Args:
        manifests: {source: manifest}.

    Raises:
        DataError: they have not.
    """
    found = {name: tuple(manifest["classes"]) for name, manifest in manifests.items()}
    first = next(iter(found.values()), ())
    for name, classes in found.items():
        if classes != first:
            known = sorted({*first, *classes})
            raise DataError(
                f"Source {name!r} has the classes {', '.join(classes)}, another {', '.join(first)}."
                f"\n  Give all of them the same, in order: classes={tuple(known)!r}."
            )
    return first
