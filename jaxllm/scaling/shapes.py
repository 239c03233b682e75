"""What a row of training data is made of, as the model sees it."""

from typing import Any, NamedTuple

from jaxllm import data, models


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


OF_DISTANCES = "/distance/project/"  # in paths of what makes vectors of distances, not of tokens


def multiplies(path, info):
    """Whether tokens are multiplied by a parameter: a matrix, a router's or a recurrence's gate."""
    gate = path.endswith(("/router/w", "/input_gate/w", "/rate_gate/w"))
    return (info.multiplies or gate) and OF_DISTANCES not in path


def seen(path, shape):
    """Returns how many tokens of a row a parameter of the layers meets.

    Args:
        path: of the parameter.
        shape: `Shape`.
    """
    if is_of_inputs(path):
        return shape.inputs
    # Nothing looks at the keys and values of a second stream.
    once = path.startswith(("layers/attn/k/", "layers/attn/v/"))
    return shape.length * (1 if once else shape.streams)


def is_of_inputs(path):
    """Whether a parameter meets the tokens that an encoder reads for a decoder."""
    return path.startswith(("layers/cross/k/", "layers/cross/v/", "encoder/"))


def goes_below(c, trained):
    """Whether the backward pass goes through the layers: not where the output alone is trained.

    Args:
        c: resolved ModelConfig.
        trained: paths of what is.
    """
    return any(map(any, models.below_output(c, trained).values()))


def attending(c):
    """Returns the layers of a stack that have attention; the others recur."""
    return [layer for layer in range(c.layers) if c.has_attention(layer)]
