"""What a row of training data is made of, as the model sees it."""

from typing import Any, NamedTuple

from jaxllm import data


class Shape(NamedTuple):
    """Sizes of a row, known from the config without reading anything.

    Attributes:
        texts: that a row holds side by side; 2 where texts are set against one another.
        length: tokens of each, as the last stack and the head see them.
        inputs: tokens that an encoder reads besides; 0 where there is none.
        streams: how often the layers see each token: 2 where the second stream of XLNet knows
            their place alone.
        head: whether the output over the vocabulary is computed; else the task's.
    """

    texts: int
    length: int
    inputs: int
    streams: int
    head: bool


def of(config):
    """Returns the `Shape` of a completed ConfigDict's rows: that of the batches it trains on."""
    batch = data.empty(config.data, 1)
    shape = batch["tokens"].shape
    return Shape(
        texts=shape[1] if len(shape) == 3 else 1,
        length=shape[-1],
        inputs=batch["inputs"].shape[1] if "inputs" in batch else 0,
        streams=2 if "order" in batch else 1,
        head=config.objective.kind == "lm",
    )


def plain(c, length):
    """Returns the `Shape` of rows of text alone; an encoder reads as many tokens.

    Args:
        c: resolved ModelConfig.
        length: tokens in a row.
    """
    inputs = length if c.assembly == "encoder_decoder" else 0
    return Shape(1, length, inputs, 1, c.lm_head)


class Part(NamedTuple):
    """A stack of layers and the tokens that go through it.

    Attributes:
        prefix: what the paths of its parameters begin with: "encoder/", or "".
        c: ModelConfig of the stack.
        length: queries, and keys, of a row.
        looks_at: keys of a row that its cross attention sees; 0 without.
    """

    prefix: str
    c: Any
    length: int
    looks_at: int


def parts(c, shape):
    """Returns the `Part`s of a model, the encoder of an encoder-decoder first.

    Args:
        c: resolved ModelConfig.
        shape: `Shape`.
    """
    last = Part("", c, shape.length * shape.streams, shape.inputs)
    if c.assembly != "encoder_decoder":
        return (last,)
    return Part("encoder/", c.of_encoder, shape.inputs, 0), last


def attending(c):
    """Returns the layers of a stack that have attention; the others recur."""
    return [layer for layer in range(c.layers) if c.has_attention(layer)]
