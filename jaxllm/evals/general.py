"""Runs a model over the examples of general tasks: what each example adds to the score."""

import math
from typing import NamedTuple

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.context.prompts import PromptTemplate
from jaxllm.evals import metrics
from jaxllm.evals.suite import METRICS, Choice, Perplexity

# {metric: (text written, text wanted) -> from 0 to 1}.
OF_TEXT = {
    "rouge_l": metrics.rouge_l,
    "chrf": metrics.chrf,
    "exact_match": metrics.exact_match,
    "word_f1": metrics.word_f1,
}


class Scores(NamedTuple):
    """What a model has of a task.

    Attributes:
        metric: the task's, one of `METRICS`.
        over, under: float64[examples]; the score is a function of the ratio of their sums.
        chance: score of guessing, or None where there is no such thing.
        also: {other metric of the kind: score over all examples}, None where none was asked for.
        dropped: examples that were left out of prompts, since they did not fit.
        samples: [{"prompt", "written", "wanted"}], the first few of what was written.
    """

    metric: str
    over: np.ndarray
    under: np.ndarray
    chance: float | None = None
    also: dict | None = None
    dropped: int = 0
    samples: tuple = ()

    @property
    def score(self):
        """The score over all examples."""
        return float(METRICS[self.metric].of(self.over.sum() / self.under.sum()))


def measure(task, scorer):
    """Returns the `Scores` of a model on a task.

    Args:
        task: `suite.Task`.
        scorer: `scorer.Scorer` of the model.

    Raises:
        ConfigError: the task and the model do not go together, or a prompt has no room.
    """
    if isinstance(task.how, Perplexity):
        found = _perplexity(task, scorer)
    elif isinstance(task.how, Choice):
        found = _choice(task, scorer)
    else:
        found = _generate(task, scorer)
    sums = {name: (np.asarray(a, np.float64), np.asarray(b, np.float64)) for name, (a, b) in
            found.pop("sums").items()}  # fmt: skip
    own = Scores(task.how.metric, *sums.pop(task.how.metric), **found)
    return own._replace(also={name: Scores(name, *both).score for name, both in sums.items()})


def _perplexity(task, scorer):
    how, pairs, owner, size, sizes = task.how, [], [], scorer.room(task.how.length), []
    if scorer.reads and not how.given:
        raise ConfigError(
            f"task {task.name!r}: this model's encoder has to read something before its decoder is "
            'scored. Try "given": 0.5, the share of each text that is read; a decoder then reads '
            "as much."
        )
    for number, example in enumerate(task.examples):
        before, text = part(example["text"], how.given)
        given, ids = scorer.split(before, text)
        windows = _windows(given, ids, size, scorer.reads)
        pairs += windows
        owner += [number] * len(windows)
        sizes.append(len(text.encode()))
    nats, tokens = np.zeros(len(sizes)), np.zeros(len(sizes))
    for number, found in zip(owner, scorer.nats(pairs), strict=True):
        nats[number] += found.sum()
        tokens[number] += len(found)
    return {
        "sums": {
            "perplexity": (nats, tokens),
            "nats_per_token": (nats, tokens),
            "bits_per_byte": (nats / math.log(2), sizes),
        }
    }


def part(text, share):
    """Returns (what is given, what is scored) of a text, cut before a space where there is one."""
    if not share:
        return "", text
    at = min(max(int(len(text) * share), 1), len(text) - 1)
    space = next((i for i in range(at, len(text)) if text[i].isspace()), at)
    return text[:space], text[space:]


def _windows(given, ids, size, reads):
    """Cuts a continuation into rows of at most `size` tokens, all of it scored once.

    What does not fit in one row is scored behind the half of a row that comes before it.
    """
    if reads:
        return [(given[:size], ids[i : i + size]) for i in range(0, len(ids), size)]
    half, found = size // 2, []
    before = given[-half:]
    while ids:
        here = size - len(before)
        found.append((before, ids[:here]))
        before, ids = [*before, *ids[:here]][-half:], ids[here:]
    return found


def _prompts(task, scorer, new):
    """Returns ([prompt], examples left out of them); `new` tokens must fit behind each."""
    template = PromptTemplate(task.how.template)
    length, found, dropped = scorer.room(task.how.length), [], 0
    room = length - (0 if scorer.reads else new) - 2  # with a beginning or an end token
    if room < 1:
        raise ConfigError(
            f"task {task.name!r}: rows of {length} tokens have no room for a prompt beside {new} "
            'of an answer. Try a smaller "tokens", or a model of longer rows.'
        )
    for example, shots in zip(task.examples, task.shots, strict=True):
        answer = ("output", "outputs", "answer")
        query = {name: value for name, value in example.items() if name not in answer}
        try:
            text, count = template.fit(scorer.tokenizer, room, query, shots, task.how.instruction)
        except ConfigError as error:
            raise ConfigError(f"task {task.name!r}: {error}") from None
        found.append(text)
        dropped += len(shots) - count
    return found, dropped


def _choice(task, scorer):
    longest = max(
        len(scorer.tokenizer.encode(" " + option)) + 1
        for example in task.examples
        for option in example["options"]
    )
    prompts, dropped = _prompts(task, scorer, longest)
    groups = []
    for prompt, example in zip(prompts, task.examples, strict=True):
        space = "" if scorer.reads or prompt[-1:].isspace() or not prompt else " "
        groups.append([scorer.split(prompt, space + option) for option in example["options"]])
    right, right_by_bytes = [], []
    for found, example in zip(scorer.nats_of_options(groups), task.examples, strict=True):
        nats = np.array([each.sum() for each in found])
        sizes = [len(option.encode()) for option in example["options"]]
        right.append(np.argmin(nats) == example["answer"])
        right_by_bytes.append(np.argmin(nats / sizes) == example["answer"])
    one = np.ones(len(right))
    return {
        "sums": {"accuracy": (right, one), "accuracy_by_bytes": (right_by_bytes, one)},
        "chance": float(np.mean([1 / len(example["options"]) for example in task.examples])),
        "dropped": dropped,
    }


def _generate(task, scorer):
    how = task.how
    prompts, dropped = _prompts(task, scorer, how.tokens)
    written = [text.strip() for text in scorer.write(prompts, how.tokens, how.stop)]
    one, sums = np.ones(len(written)), {}
    for name, metric in OF_TEXT.items():
        scores = [
            max(metric(text, gold.strip()) for gold in example["outputs"])
            for text, example in zip(written, task.examples, strict=True)
        ]
        sums[name] = (scores, one)
    samples = [
        {"prompt": prompt, "written": text, "wanted": example["outputs"][0]}
        for prompt, text, example in zip(prompts[:3], written, task.examples, strict=False)
    ]
    return {"sums": sums, "dropped": dropped, "samples": samples}
