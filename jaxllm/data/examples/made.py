"""Made-up examples with a pattern to learn, for quick runs of every task."""

import random

from jaxllm.data.errors import DataError
from jaxllm.data.examples.records import Example, ExampleSource, Part
from jaxllm.data.examples.store import TASKS
from jaxllm.data.sources import NUMBERS


class CountingSource(ExampleSource):
    """Texts that count; see `counting`."""

    def __init__(self, task, count, seed):
        options = {"task": task, "count": count, "seed": seed}
        classes = {"classify": ("down", "up"), "tag": ("even", "odd")}
        settings = {"overlap": 4} if task == "span" else {}
        super().__init__(
            "counting", [], None, options, fields=(), where="", task=task,
            classes=classes.get(task, ()), settings=settings,
        )  # fmt: skip
        self._count, self._seed = count, seed

    def examples(self, bad=None):
        """Yields the Examples."""
        del bad
        for i in range(self._count):
            draw = random.Random(f"{self._seed}/{i}").random  # stable across Python versions
            start, step, length = int(10 * draw()), 1 if draw() < 0.5 else -1, 3 + int(4 * draw())
            numbers = [(start + step * j) % 10 for j in range(length + 2)]
            yield self._one(numbers, step, f"counting:{i}")

    def _one(self, numbers, step, where):
        names = [NUMBERS[n] for n in numbers]
        read, text = " ".join(names[:-2]), Part(" ".join(names[:-2]), "text")
        if self.task == "pairs":
            target = Part(" ".join(names[-2:]), "target", loss=True)
            return Example((Part(read + " ", "input"), target), where)
        if self.task == "chat":
            return _chat(names, where)
        if self.task == "classify":
            return Example((text,), where, "up" if step > 0 else "down")
        if self.task == "regress":
            return Example((text,), where, float(sum(numbers[:-2])) / len(numbers))
        if self.task == "tag":
            marks, begin = [], 0
            for number, name in zip(numbers[:-2], names, strict=False):
                marks.append((begin, begin + len(name), "odd" if number % 2 else "even"))
                begin += len(name) + 1
            return Example((text._replace(marks=tuple(marks)),), where)
        begin = len(names[0]) + 1
        asked = Part(f"after {names[0]}?", "question")
        return Example((asked, Part(read, "context")), where, (1, begin, begin + len(names[1])))


def _chat(names, where):
    """A chat that asks what comes next, and next."""
    said = [" ".join(names[:-2]), names[-2], "and then?", names[-1]]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(said)
    ]
    parts = tuple(Part(words, ("prompt", "assistant")[i % 2]) for i, words in enumerate(said))
    return Example(parts, where, (messages, None))


def counting(*, task="pairs", count=300, seed=0):
    """Made-up texts that count up or down in words: how they go on, which way, how far.

    Args:
        task: pairs, classify, regress, tag, span or chat.
        count: examples.
        seed: another seed, other examples.

    Raises:
        DataError: no such task, or no examples are asked for.
    """
    if task not in TASKS:
        raise DataError(f"task={task!r} is unknown. Known: {', '.join(TASKS)}.")
    if count < 1:
        raise DataError(f"count={count} must be at least 1.")
    return CountingSource(task, count, seed)
