"""General tasks as a file of data: which, their examples, what is measured.

    {"tasks": {
      "prose": {"kind": "perplexity", "path": "prose.jsonl"},
      "facts": {"kind": "choice", "path": "facts.jsonl", "shots": 2},
      "words": {"kind": "generate", "path": "words.jsonl", "metric": "chrf", "shots": 4}}}

Paths count from the file's folder.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
import zlib
from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError, near
from jaxllm.context import prompts, records, select

DEFAULT = pathlib.Path(__file__).parent / "general_tasks" / "tasks.json"
SCORING = 1  # counts up when the same task would be scored otherwise


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """How well a model predicts held-out text.

    Of JSON lines each text gives one piece, drawn at random; of a .txt file each piece counts as an
    example.
    """

    path: str  # JSON lines, or a text; packed (.gz, .zst) or not
    field: str = "text"  # of each line
    metric: str = "perplexity"
    characters: int = 1_000  # of a piece, at most
    skip: float = 0.0  # share of a .txt file that is passed over, such as what was trained on
    # Share of each piece that is read and not scored: what an encoder-decoder's encoder has.
    given: float = 0.0
    length: int = 1_024  # tokens a row, at most; what is longer is scored in windows by halves
    examples: int = 200  # at most
    seed: int = 0  # of which examples, and which pieces


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which of several answers a model finds likeliest; {"input", "options", "answer"} a line.

    `answer` is one of the options or its number from 0.
    """

    path: str
    metric: str = "accuracy"
    options: tuple = ()  # of lines that have none of their own
    template: str = "question"  # one of `prompts.TEMPLATES`, or Jinja
    instruction: str = ""
    shots: int = 0  # examples before each question
    shots_path: str = ""  # where these are from; "": the same file
    length: int = 1_024  # tokens of prompt and answer, at most; shots that do not fit are left out
    examples: int = 200
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Generate:
    """What a model writes, the likeliest token each time; {"input", "output"} a line.

    `output` is a text, or several of which the nearest counts.
    """

    path: str
    metric: str
    template: str = "plain"
    instruction: str = ""
    shots: int = 0
    shots_path: str = ""
    tokens: int = 64  # to write, at most
    stop: tuple = ("\n",)  # strings before which the answer ends
    length: int = 1_024  # tokens of prompt and answer, at most
    examples: int = 200
    seed: int = 0


KINDS = {"perplexity": Perplexity, "choice": Choice, "generate": Generate}


class Metric(NamedTuple):
    """How the sums over examples become a score.

    Attributes:
        kind: of the tasks that have it.
        of: ratio of the sums -> score.
        less_is_better: whether it is.
        by_token: whether it hangs on the tokenizer.
    """

    kind: str
    of: object = np.asarray
    less_is_better: bool = False
    by_token: bool = False


METRICS = {
    "perplexity": Metric("perplexity", np.exp, less_is_better=True, by_token=True),
    "nats_per_token": Metric("perplexity", less_is_better=True, by_token=True),
    "bits_per_byte": Metric("perplexity", less_is_better=True),
    "accuracy": Metric("choice"),
    "accuracy_by_bytes": Metric("choice"),
    "rouge_l": Metric("generate"),
    "chrf": Metric("generate"),
    "exact_match": Metric("generate"),
    "word_f1": Metric("generate"),
}


class Task(NamedTuple):
    """A task with its examples.

    Attributes:
        name: in the file.
        how: `Perplexity`, `Choice` or `Generate`.
        examples: [{field: value}].
        shots: for each of these, [{field: value}] that stand before it in the prompt.
        digest: sha256 in hex over all of it: of equals the scores of a model are equal.
    """

    name: str
    how: object
    examples: list
    shots: list
    digest: str


def load(file="", examples=0):
    """Reads the tasks of a file.

    Args:
        file: a JSON file; "" for the small ones that come with this package.
        examples: of a task, at most, in the place of what the file says; 0: as it says.

    Returns:
        [`Task`].

    Raises:
        ConfigError: whatever is wrong with the file or its data; names both.
    """
    path = pathlib.Path(file).expanduser() if file else DEFAULT
    try:
        found = json.loads(records.read_text(path, "--tasks"))
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"--tasks={path}: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("tasks"), dict):
        raise ConfigError(
            f'--tasks={path} needs {{"tasks": {{"NAME": {{"kind": "perplexity", "path": …}}}}}}.'
        )
    for name in found:
        if name not in ("about", "tasks"):
            raise ConfigError(
                f"--tasks={path}: {name!r} is no field.{near(name, ['about', 'tasks'])}"
                " Known: about, tasks."
            )
    if not found["tasks"]:
        raise ConfigError(f'--tasks={path} has no task. Add one to its "tasks".')
    return [_load(path, name, section, examples) for name, section in found["tasks"].items()]


def _load(file, name, section, most):
    where = f"--tasks={file}: task {name!r}"
    how = _read(where, section)
    if most:
        how = dataclasses.replace(how, examples=most)
    random = np.random.default_rng([how.seed, zlib.crc32(name.encode())])
    found = _lines(file, how, how.path, where) if how.path else []
    if isinstance(how, Perplexity):
        rows = _texts(found, how, random, where)
        chosen = _draw(len(rows), how.examples, random)
        shots = [[] for _ in chosen]
    else:
        rows = [_answered(how, row, line, where) for line, row in found]
        chosen = _draw(len(rows), how.examples, random)
        shots = _shots(file, how, rows, chosen, where)
    rows = [rows[i] for i in chosen]
    said = {**dataclasses.asdict(how), "path": "", "shots_path": "", "examples": 0}
    content = json.dumps([SCORING, type(how).__name__, said, rows, shots], sort_keys=True)
    return Task(name, how, rows, shots, hashlib.sha256(content.encode()).hexdigest())


def _read(where, section):
    """Returns the `Perplexity`, `Choice` or `Generate` of a section of the file."""
    kind = section.get("kind") if isinstance(section, dict) else None
    if kind not in KINDS:
        raise ConfigError(
            f"{where}: kind={kind!r} is unknown.{near(kind, KINDS)} Known: {', '.join(KINDS)}."
        )
    fields = {field.name: field for field in dataclasses.fields(KINDS[kind])}
    values = {name: value for name, value in section.items() if name != "kind"}
    for name, value in values.items():
        if name not in fields:
            raise ConfigError(
                f"{where}: a task of kind {kind!r} has no {name!r}.{near(name, fields)} Known: "
                f"{', '.join(fields)}."
            )
        values[name] = _typed(f"{where}: {name}", value, fields[name].type)
    for name in fields:
        if fields[name].default is dataclasses.MISSING and not values.get(name):
            of_kind = [m for m, metric in METRICS.items() if metric.kind == kind]
            more = f" One of {', '.join(of_kind)}." if name == "metric" else ""
            raise ConfigError(f"{where} needs {name!r}.{more}")
    how = KINDS[kind](**values)
    _check(where, kind, how)
    return how


def _typed(what, value, kind):
    """Returns a value of JSON as one of a type."""
    if kind is tuple and isinstance(value, list) and all(isinstance(x, str) for x in value):
        return tuple(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {tuple: "a list of texts", str: "a text", int: "a whole number", float: "a number"}
        raise ConfigError(f"{what}={value!r} must be {names[kind]}.")
    return value


def _check(where, kind, how):
    """Raises ConfigError for a value out of its range."""
    of_kind = [name for name, metric in METRICS.items() if metric.kind == kind]
    if how.metric not in of_kind:
        raise ConfigError(
            f"{where}: metric={how.metric!r} is not one of {kind!r}.{near(how.metric, of_kind)} "
            f"Known: {', '.join(of_kind)}."
        )
    least = dict(examples=1, length=16, seed=0, shots=0, tokens=1, characters=16)
    for name, low in least.items():
        if getattr(how, name, low) < low:
            raise ConfigError(f"{where}: {name}={getattr(how, name)} must be at least {low}.")
    for name in ("skip", "given"):
        if not 0 <= getattr(how, name, 0) < 1:
            raise ConfigError(f"{where}: {name}={getattr(how, name)} must be from 0 to below 1.")
    if hasattr(how, "tokens") and how.tokens >= how.length:
        raise ConfigError(
            f"{where}: tokens={how.tokens} leaves no room for a prompt in length={how.length}. "
            f'Try "length": {2 * how.tokens}.'
        )
    if hasattr(how, "template"):
        try:
            prompts.PromptTemplate(how.template)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None


def _lines(file, how, path, where):
    """Returns [(line, {field: value})] of a file of a task; of a text, one whose field it is."""
    place = pathlib.Path(file).parent / pathlib.Path(path).expanduser()
    if isinstance(how, Perplexity) and ".txt" in place.suffixes:
        return [(0, {how.field: records.read_text(place, f"{where}: path")})]
    return records.read(place, f"{where}: path")


def _draw(count, most, random):
    """Numbers of at most so many of `count` examples, at random, in order."""
    return sorted(random.permutation(count)[:most].tolist())


def cut(text, characters):
    """Cuts a text into pieces of at most so many characters, at spaces where there are any."""
    found = []
    while text := text.strip():
        end = len(text)
        if end > characters:
            spaces = [m.start() for m in re.finditer(r"\s", text[: characters + 1])]
            end = max(spaces, default=characters)
        found.append(text[:end])
        text = text[end:]
    return found


def _texts(found, how, random, where):
    """Returns [{"text"}], a piece of each text, or all of the only text of a .txt file."""
    rows = []
    for line, row in found:
        text = row.get(how.field)
        if not isinstance(text, str):
            raise ConfigError(f"{where}: line {line} of {how.path} has no text {how.field!r}.")
        pieces = cut(text[int(len(text) * how.skip) if not line else 0 :], how.characters)
        if line and pieces:
            pieces = [pieces[random.integers(len(pieces))]]
        rows += [{"text": piece} for piece in pieces if len(piece) > 1]
    if not rows:
        raise ConfigError(f"{where}: {how.path} holds no text.")
    return rows


def _answered(how, row, line, where):
    """Checks a line of a task, and returns what it stands for.

    Returns:
        The fields, with "output" as the right answer; of a choice with "options" and "answer" as
        its number.
    """
    place = f"{where}: line {line} of {how.path}"
    if not isinstance(row.get("input"), str):
        raise ConfigError(f'{place} has no text "input".')
    if isinstance(how, Choice):
        options = row.get("options", list(how.options))
        texts = isinstance(options, list) and all(isinstance(x, str) and x for x in options)
        if not texts or len(set(options)) < max(len(options), 2):
            raise ConfigError(f'{place} needs "options": two different texts or more.')
        answer = row.get("answer")
        if answer in options:
            answer = options.index(answer)
        if type(answer) is not int or not 0 <= answer < len(options):
            raise ConfigError(f'{place}: "answer" is {answer!r}, none of {options}.')
        return {**row, "options": options, "answer": answer, "output": options[answer]}
    golds = row.get("output")
    golds = [golds] if isinstance(golds, str) else golds
    if not isinstance(golds, list) or not golds or not all(isinstance(x, str) for x in golds):
        raise ConfigError(f'{place} needs "output": a text, or a list of texts.')
    return {**row, "output": golds[0], "outputs": golds}


def _shots(file, how, rows, chosen, where):
    """Returns for each of the chosen rows those that stand before it, never itself."""
    if not how.shots:
        return [[] for _ in chosen]
    pool = rows
    if how.shots_path:
        lines = _lines(file, how, how.shots_path, where)
        pool = [_answered(how, row, line, where) for line, row in lines]
    free = len(pool) - (not how.shots_path)
    if how.shots > free:
        raise ConfigError(
            f"{where}: shots={how.shots}, and there are {free} examples for it. Try "
            f'"shots": {free}.'
        )
    found = []
    for i in chosen:
        own = () if how.shots_path else (i,)
        found.append([pool[j] for j in select.at_random(len(pool), how.shots, how.seed, i, own)])
    return found
