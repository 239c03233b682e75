"""What every file of weights becomes: a description, named tensors that are read when asked."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxllm.config import ConfigError


class WeightsError(ConfigError):
    """A file of weights that cannot be used. Says the file, what is wrong and what to do."""


class Tensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: size of each dimension.
        dtype: numpy dtype of what `read` returns (ml_dtypes for bfloat16).
        read: tuple of slices with step 1, one a dimension -> numpy array; reads no more than it
            has to.
    """

    shape: tuple[int, ...]
    dtype: Any
    read: Callable


def boxes(shape, numbers=2**24):
    """Yields tuples of slices that cut a tensor along its first axis, for `Tensor.read`.

    Args:
        shape: of the tensor; () gives one empty tuple.
        numbers: how many a piece holds, at most, but for a row that holds more.
    """
    if not shape:
        yield ()
        return
    rows = max(1, numbers // max(math.prod(shape[1:]), 1))
    for first in range(0, shape[0], rows):
        yield (slice(first, min(first + rows, shape[0])), *map(slice, shape[1:]))


class View(NamedTuple):
    """A model as Hugging Face's folders describe one, whatever it is stored in.

    Attributes:
        config: the object of a config.json.
        tensors: {name as in Hugging Face's files: Tensor}.
        files: {name: bytes} of what belongs to it besides: tokenizer.json, tokenizer.model,
            tokenizer_config.json, chat_template.jinja, generation_config.json.
        origin: path it was read from.
    """

    config: dict
    tensors: dict
    files: dict
    origin: str
