"""What every file of weights becomes: a description, named tensors that are read when asked."""

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
