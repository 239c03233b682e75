"""Which parameters are matrices, and what of a stack of layers belongs to one layer.

Everything here reads `ParamInfo`, never the number of dimensions: a stacked norm scale [L, D] has
two and is no matrix, a query projection [L, D, N, H] has four and is a stack of L of them.
"""

import math
from typing import NamedTuple

import jax
import optax

from jaxllm.config import near
from jaxllm.trees import map_with_path

# Leading axes that stack independent copies of a parameter.
STACKS = ("layers", "expert")

# Axes whose entries are looked up by an index (tokens, positions), as in embedding tables.
LOOKUPS = ("vocab", "positions")


class Split(NamedTuple):
    """Dimensions of a parameter by role, as tuples of indices.

    Attributes:
        stack: leading dimensions that number independent copies.
        inputs: dimensions that the layer contracts over; empty unless it is a hidden matrix.
        outputs: all others.
    """

    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def split(info):
    """Returns the `Split` of a ParamInfo.

    Raises:
        ValueError: an input is not among the parameter's axes, or nothing but inputs is left.
    """
    depth = 0
    while depth < len(info.axes) and info.axes[depth] in STACKS and depth < len(info.shape) - 1:
        depth += 1
    rest, inputs = list(range(depth, len(info.axes))), []
    for name in info.inputs:
        # Of two axes with one name, such as a square [D, D], the first is the input.
        found = [i for i in rest if info.axes[i] == name]
        if not found:
            raise ValueError(f"Input axis {name!r} is not in {info.axes}. Check ParamInfo.inputs.")
        inputs.append(found[0])
        rest.remove(found[0])
    if inputs and not rest:
        raise ValueError(f"All axes of {info.axes} are inputs {info.inputs}; a matrix has outputs.")
    return Split(tuple(range(depth)), tuple(inputs), tuple(rest))


def size(info, dimensions):
    """Number of elements along some dimensions of a ParamInfo."""
    return math.prod(info.shape[i] for i in dimensions)


def sides(info):
    """Cuts a parameter in two: (row dimensions, column dimensions), without stacks.

    A hidden matrix has inputs and outputs, any other table its first dimension and the rest.
    """
    _, inputs, outputs = split(info)
    return (inputs, outputs) if inputs else (outputs[:1], outputs[1:])


def is_hidden_matrix(info):
    """Whether a parameter maps hidden states to hidden states."""
    return bool(info.inputs)


def is_lookup(info):
    """Whether a parameter is an embedding table or an output head; a head's bias is neither."""
    axes = [axis for axis in info.axes if axis not in STACKS]
    return len(axes) > 1 and any(axis in LOOKUPS for axis in axes)


def info_of(infos, path):
    """Returns infos[path].

    Raises:
        ValueError: the tree has a parameter that the model did not declare.
    """
    if path not in infos:
        raise ValueError(
            f"The optimizer got a parameter {path!r} that has no ParamInfo.{near(path, infos)} "
            f"It was made for {len(infos)} parameters, such as {next(iter(infos), 'none')!r}."
        )
    return infos[path]


def per_layer(transform, infos):
    """Makes a stateless transformation act on each layer's arrays by themselves.

    Norms over a whole stack would couple layers: stacked parameters then train unlike separate
    ones. Works for any transformation without state that takes arrays one by one.
    """

    def one(path, update, param):
        def apply(u, p):
            return transform.update(u, transform.init(p), p)[0]

        for _ in split(info_of(infos, path)).stack:
            apply = jax.vmap(apply)
        return apply(update, param)

    return optax.stateless(lambda updates, params: map_with_path(one, updates, params))
