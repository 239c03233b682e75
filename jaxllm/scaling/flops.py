"""Exact FLOPs of a model. A multiply and an add are two FLOPs.

Only matrix products count, as everywhere in the literature: norms, activations, softmax, biases,
convolutions, recurrences and the embedding look-up do not. The backward pass is twice the forward,
and what remat computes again is not counted, so that utilisation means useful work.

Two conventions for attention's products of queries with keys and of weights with values:

- "palm": every query meets all T keys, in every layer, masked or not. Forward and backward are
  then 6N + 12·L·N·H·T a token (heads N of width H), with N the parameters that multiply: hidden
  matrices and output head, tied or not, but no norms, biases, look-up tables or positions.
  Chowdhery et al. 2022 (arXiv:2204.02311), appendix B.
- "causal": only keys that a query may see: in a decoder T / 2 on average, and W - W² / 2T in a
  layer with a window of W < T; in an encoder, and of an encoder's memory, all. What kernels that
  skip the masked half are measured by.

An encoder-decoder reads more tokens than it is trained to predict: what the encoder does with the
inputs counts for the targets.
"""

import math

from jaxllm import finetune, models
from jaxllm.scaling import shapes

CONVENTIONS = ("palm", "causal")


def layer_params(c):
    """Parameters of a stack's layers that multiply each of its tokens; of experts, those chosen.

    Args:
        c: resolved `models.config.ModelConfig`.
    """
    attending = len(shapes.attending(c))
    attention = c.width * c.head_width * (2 * c.heads + 2 * c.kv_heads)
    inside = c.recurrent_width
    recurrence = 3 * c.width * inside + 2 * inside * inside // c.heads
    matrices = 3 if c.gated else 2
    mlp = c.width * c.mlp_width * matrices
    sparse = c.layers // c.moe_every if c.experts else 0
    chosen = c.experts_per_token + c.shared_experts
    experts = c.width * (c.expert_width * matrices * chosen + c.experts)
    mlps = (c.layers - sparse) * mlp + sparse * experts
    looks = 2 * c.layers * c.width * c.head_width * c.heads
    cross = looks if c.assembly == "encoder_decoder" else 0  # queries and outputs
    return attending * attention + (c.layers - attending) * recurrence + mlps + cross


def input_params(c):
    """Parameters that multiply each token of an encoder's inputs: its layers, and what makes the
    keys and values that the decoder looks at. 0 without an encoder."""
    if c.assembly != "encoder_decoder":
        return 0
    return layer_params(c.of_encoder) + 2 * c.layers * c.width * c.head_width * c.kv_heads


def head_params(c):
    """Parameters that multiply a token on its way to the vocabulary."""
    turned = c.width * c.width if c.head_transform else 0
    return c.vocab * c.width + turned if c.lm_head else 0


def matmul_params(c):
    """Parameters that multiply a token: hidden matrices and output head; of experts, those chosen.

    Of an encoder-decoder a token of the targets; see `input_params` for those of the inputs.

    Args:
        c: resolved `models.config.ModelConfig`.
    """
    return layer_params(c) + head_params(c)


def task_flops(c, length):
    """Forward FLOPs of a text's head for a task: of every token, or of the text as a whole."""
    if c.task in ("tag", "span"):
        return 2 * length * c.width * c.labels
    pooled = c.width * c.width if c.pool_layer else 0
    return 0 if c.task in ("none", "embed") else 2 * (pooled + c.width * c.labels)


def keys_seen(length, window=0):
    """Mean number of keys a query may see under a causal mask, in rows of `length` tokens.

    Args:
        length: tokens in a row.
        window: keys a query sees at most; 0 for all.
    """
    window = min(window, length) if window else length
    return window - window * window / (2 * length)


def _keys(c, length, convention):
    """Keys that a query meets in all layers of a stack together."""
    layers = shapes.attending(c)
    if convention == "palm":
        return len(layers) * length
    if convention != "causal":
        raise ValueError(f"convention={convention!r} is unknown. Known: {', '.join(CONVENTIONS)}.")
    if c.assembly == "encoder" and not c.two_streams:
        return len(layers) * length
    windows = [c.window if c.is_windowed(layer) else 0 for layer in layers]
    return sum(keys_seen(length, window) for window in windows)


def attention_flops_per_token(c, length, convention="palm"):
    """Forward FLOPs a token of a stack's own attention, over all its layers: of queries with keys,
    weights with values and, where positions are sinusoids, queries with distances.

    Args:
        c: resolved ModelConfig of the stack.
        length: tokens in a row.
        convention: "palm" or "causal".

    Raises:
        ValueError: unknown convention.
    """
    products = 3 if c.position == "sinusoids" else 2
    return 2 * products * c.heads * c.head_width * _keys(c, length, convention)


def forward_flops_per_row(c, shape, convention="palm"):
    """FLOPs of the forward pass of a row.

    Args:
        c: resolved ModelConfig.
        shape: `shapes.Shape` of the row.
        convention: as of `attention_flops_per_token`.

    Raises:
        ValueError: unknown convention.
    """
    length, inputs = shape.length, shape.inputs
    seen = shape.streams * length  # by the layers
    flops = 2 * seen * layer_params(c)
    flops += seen * attention_flops_per_token(c, length, convention)
    if shape.streams > 1:  # nothing looks at the second stream's keys and values
        flops -= 2 * length * c.layers * 2 * c.width * c.head_width * c.kv_heads
    if inputs:
        flops += 2 * inputs * input_params(c)
        flops += inputs * attention_flops_per_token(c.of_encoder, inputs, convention)
        flops += length * 4 * c.heads * c.head_width * c.layers * inputs
    flops += 2 * length * head_params(c) if shape.head else task_flops(c, length)
    return shape.texts * flops


def forward_flops_per_token(c, length, convention="palm"):
    """FLOPs of the forward pass a token of plain text; an encoder's inputs are as long.

    Arguments and errors as of `attention_flops_per_token`.
    """
    return forward_flops_per_row(c, shapes.plain(c, length), convention) / length


def train_flops_per_token(c, length, convention="palm"):
    """FLOPs of forward and backward a token; arguments and errors as for the forward pass."""
    return 3 * forward_flops_per_token(c, length, convention)


def of_run(config, c, convention="palm"):
    """FLOPs of forward and backward a token of `config.data.length`, of the rows that a run trains
    on; frozen weights have no gradients, what a fine-tuning method adds has.

    Args:
        config: completed ConfigDict.
        c: its resolved ModelConfig.
        convention: as of `attention_flops_per_token`.
    """
    shape, length = shapes.of(config), config.data.length
    row = forward_flops_per_row(c, shape, convention)
    trained, frozen = finetune.infos(finetune.of(config), c, config.init_fresh)
    if not frozen:
        return 3 * row / length
    plain, below = models.abstract_params(c), shapes.goes_below(c, trained)
    rest = row - sum(weight_flops_per_row(c, plain, shape).values())
    whole = weight_flops_per_row(c, plain | trained, shape)
    weights = sum(size * (1 + below + (path in trained)) for path, size in whole.items())
    return ((3 if below else 1) * rest + weights) / length


def weight_flops_per_row(c, infos, shape):
    """Returns {path: forward FLOPs of a row} of the products with each parameter.

    Args:
        c: resolved ModelConfig.
        infos: {path: ParamInfo}.
        shape: `shapes.Shape` of the row.
    """
    found = {}
    for path, info in infos.items():
        top = path.split("/")[0]
        tied = path == "embed" and c.tied and c.lm_head
        if not (shapes.multiplies(path, info) or tied) or top == "prefix_source":
            continue
        if top in ("embed", "head", "transform"):
            tokens = shape.length if shape.head else 0
        elif top in ("task", "pool"):
            each = c.task in ("tag", "span")
            tokens = 0 if shape.head or c.task == "none" else shape.length if each else 1
        else:
            tokens = shapes.seen(path, shape)
        part = c.experts_per_token / c.experts if "/experts/" in path else 1
        found[path] = 2 * shape.texts * tokens * part * math.prod(info.shape)
    return found


def utilisation(tokens_per_s, flops_per_token, peak_flops_per_s):
    """Model FLOPs utilisation, from 0 to 1, of devices with `peak_flops_per_s` together."""
    return tokens_per_s * flops_per_token / peak_flops_per_s
