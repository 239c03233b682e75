"""Names and layouts of other people's tensors against ours: one table a family, read both ways.

A table has entries: their name, with {layer} and {expert} where each has a tensor of its own; our
parameters in it; and how they lie. Ours are stacked by layer (and expert) and keep heads apart:
[L, D, N, H] here is L tensors [N · H, D] there.
"""

import itertools
import math
import re
import string
from typing import NamedTuple

import numpy as np

from jaxllm.config import near
from jaxllm.models.weights.tensors import Tensor, WeightsError, boxes

# How a parameter lies in their tensor: a matrix as (out, in), as torch's Linear has it, or as
# (in, out), as GPT-2's Conv1D and ours; all dimensions in one; that as the only row of a matrix; or
# each as it is.
OUT_IN, IN_OUT, FLAT, ROW, SAME = "out,in", "in,out", "flat", "row", "same"
SHOWN = 5  # names that an error gives
OUTER = ("layers", "expert")  # axes that count tensors of theirs


class Entry(NamedTuple):
    """A tensor of theirs, or one of each layer and expert.

    Attributes:
        theirs: its name, such as "{prefix}layers.{layer}.self_attn.q_proj.weight".
        ours: paths of our parameters, end to end along their output axis (or the first, of what is
            no matrix). Those that a model has not are left out.
        layout: OUT_IN, IN_OUT, FLAT, ROW or SAME.
    """

    theirs: str
    ours: tuple[str, ...]
    layout: str


def linear(theirs, *ours, layout=OUT_IN):
    """Entries of a matrix, or of several in one, and of its bias; those not there are left out."""
    return (
        Entry(f"{theirs}.weight", tuple(f"{path}/w" for path in ours), layout),
        Entry(f"{theirs}.bias", tuple(f"{path}/b" for path in ours), FLAT),
    )


def norm(theirs, ours):
    """Entries of a norm, whose bias some have."""
    return (
        Entry(f"{theirs}.weight", (f"{ours}/scale",), FLAT),
        Entry(f"{theirs}.bias", (f"{ours}/bias",), FLAT),
    )


class Names(NamedTuple):
    """The tensors of a family's files.

    Attributes:
        entries: all that the model is made of.
        prefixes: what {prefix} may stand for, the one that is written first.
        copies: (their name, their name that it must equal) of what a model may do without.
        ignored: regular expressions of names that carry no weight, such as masks.
    """

    entries: tuple[Entry, ...]
    prefixes: tuple[str, ...] = ("",)
    copies: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()


class Piece(NamedTuple):
    """One of our parameters, of one layer and expert, as it lies in one of their tensors.

    Attributes:
        path: ours.
        at: its place in our stacks: (), (layer,) or (layer, expert).
        name: of their tensor.
        first: where it begins along the axis that several are joined along.
        width: length of that axis, all parameters of the tensor together.
        shape: ours, without layers and experts.
        groups: (first, last) dimensions of ours that are one of theirs, in our order.
        joined: which of the groups several are joined along.
        turned: whether their axes are in the opposite order.
    """

    path: str
    at: tuple[int, ...]
    name: str
    first: int
    width: int
    shape: tuple[int, ...]
    groups: tuple[tuple[int, int], ...]
    joined: int
    turned: bool

    def turn(self, axes):
        """Orders one thing an axis as theirs are, or back."""
        return tuple(reversed(axes)) if self.turned else tuple(axes)

    @property
    def their_shape(self):
        """Shape of the whole tensor of theirs."""
        sizes = [math.prod(self.shape[a:b]) for a, b in self.groups]
        sizes[self.joined] = self.width
        return self.turn(sizes)


class Map(NamedTuple):
    """A table filled in for one model.

    Attributes:
        pieces: {our path: {place in our stacks: Piece}}.
        names: {their name: [Piece, …]}, in the order of the table.
        prefix: what {prefix} stands for.
        table: `Names`.
    """

    pieces: dict
    names: dict
    prefix: str
    table: Names


def fill_in(table, infos, layers_of, prefix=None):
    """Makes the `Map` of a table for one model.

    Args:
        table: `Names`.
        infos: {path: ParamInfo} of the model.
        layers_of: path -> their numbers of the layers that are stacked in it.
        prefix: what {prefix} stands for; None for the one that is written.

    Raises:
        WeightsError: a parameter of the model stands in no entry.
    """
    prefix = table.prefixes[0] if prefix is None else prefix
    pieces, names = {}, {}
    for entry in table.entries:
        ours = [path for path in entry.ours if path in infos]
        lies = {path: _lie(infos[path], entry.layout) for path in ours}
        sizes = [math.prod(shape[slice(*groups[j])]) for shape, groups, j in lies.values()]
        for path, first in zip(ours, itertools.accumulate([0, *sizes]), strict=False):
            for at, words in _places(path, infos[path], layers_of):
                name = entry.theirs.format(prefix=prefix, **words)
                turned = entry.layout == OUT_IN
                piece = Piece(path, at, name, first, sum(sizes), *lies[path], turned)
                pieces.setdefault(path, {})[at] = piece
                names.setdefault(name, []).append(piece)
    missing = sorted(infos.keys() - pieces.keys())
    if missing:
        raise WeightsError(
            f"{missing[0]} (and {len(missing) - 1} more of this model's parameters) has no "
            "counterpart in the files of its family: such a model cannot be written as one of it."
        )
    return Map(pieces, names, prefix, table)


def _lie(info, layout):
    """Returns (shape without layers and experts, groups, joined) of a parameter."""
    shape = info.shape[sum(axis in OUTER for axis in info.axes) :]
    n = len(shape)
    if layout == FLAT:
        return shape, ((0, n),), 0
    if layout == ROW:
        return shape, ((0, 0), (0, n)), 1
    if layout == SAME:
        return shape, tuple((i, i + 1) for i in range(n)), 0
    inputs = max(len(info.inputs), 1)  # the head's are not told: it is no hidden matrix
    return shape, ((0, inputs), (inputs, n)), 1


def _places(path, info, layers_of):
    """Yields (place in our stacks, words of their name) of each layer and expert of a parameter."""
    outer = [axis for axis in info.axes if axis in OUTER]
    layers = layers_of(path) if "layers" in outer else [None]
    experts = range(info.shape[len(outer) - 1]) if "expert" in outer else [None]
    if "layers" in outer and len(layers) != info.shape[0]:
        raise ValueError(f"{path} stacks {info.shape[0]} layers, not {len(layers)}.")
    for (at, layer), expert in itertools.product(enumerate(layers), experts):
        place = {"layers": at, "expert": expert}
        yield tuple(place[axis] for axis in outer), {"layer": layer, "expert": expert}


def choose_prefix(table, names):
    """Returns the prefix under which most of a table's entries are found among names."""

    def found(prefix):
        patterns = [re.compile(_pattern(entry.theirs, prefix)) for entry in table.entries]
        return sum(any(map(p.fullmatch, names)) for p in patterns)

    return max(table.prefixes, key=found)


def _pattern(template, prefix):
    """A regular expression of the names that a template makes."""
    words = {None: "", "prefix": re.escape(prefix)}
    parts = string.Formatter().parse(template)
    return "".join(re.escape(text) + words.get(field, r"\d+") for text, field, _, _ in parts)


def check(map_, tensors):
    """Compares names and shapes with those of a file, before any tensor is read.

    Args:
        map_: `Map` of the model.
        tensors: {name: Tensor} of the file.

    Returns:
        ({name of a copy: name that it must equal}, [names that are ignored]).

    Raises:
        WeightsError: names that are missing or left over, or of another shape or kind.
    """
    extra = [name for name in tensors if name not in map_.names]
    copies = {
        theirs.format(prefix=map_.prefix): of.format(prefix=map_.prefix)
        for theirs, of in map_.table.copies
    }
    copies = {name: copies[name] for name in extra if name in copies}
    ignored = [n for n in extra if any(re.fullmatch(p, n) for p in map_.table.ignored)]
    extra = set(extra) - set(copies) - set(ignored)
    lines = [
        f"{name}: missing.{near(name, extra)}" for name in map_.names if name not in tensors
    ] + [f"{name}: left over.{near(name, map_.names)}" for name in sorted(extra)]
    wanted = {name: held[0].their_shape for name, held in map_.names.items()}
    wanted |= {name: wanted[of] for name, of in copies.items()}
    for name in wanted.keys() & tensors.keys():
        shape, dtype = tuple(tensors[name].shape), np.dtype(tensors[name].dtype)
        if shape != wanted[name]:
            lines.append(f"{name}: shape {shape}, and the config says {wanted[name]}.")
        elif dtype.kind not in "fV" or dtype.itemsize < 2:  # V: bfloat16
            lines.append(f"{name}: {dtype}; weights are F16, BF16, F32 or F64.")
    if lines:
        more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        raise WeightsError(
            "The tensors are not those that the config describes:\n  "
            + "\n  ".join(lines[:SHOWN] + more)
        )
    return copies, ignored


def read_slice(map_, tensors, path, index, shape):
    """Reads a slice of one of our parameters from their tensors, and little more than it has to.

    Args:
        map_: `Map`.
        tensors: {name: Tensor}.
        path: our parameter.
        index: tuple of slices of it with step 1, one a dimension.
        shape: of the whole parameter.

    Returns:
        numpy array, in the dtype of the tensors.

    Raises:
        WeightsError: a value is not finite.
    """
    pieces = map_.pieces[path]
    outer = len(next(iter(pieces)))
    ranges = [range(*i.indices(n)) for i, n in zip(index, shape, strict=True)]
    inner = [slice(r.start, r.stop) for r in ranges[outer:]]
    found = [
        _read_piece(tensors[pieces[at].name], pieces[at], inner)
        for at in itertools.product(*ranges[:outer])
    ]
    return np.stack(found).reshape([len(r) for r in ranges]) if outer else found[0]


def _read_piece(tensor, piece, index):
    """Reads the smallest box of their tensor that holds slices of a piece, then takes those."""
    boxes, held, rest = [], [], []
    for number, (a, b) in enumerate(piece.groups):
        if a == b:  # the only row
            boxes.append(slice(0, 1))
            continue
        first, last = index[a].start, index[a].stop
        row = math.prod(piece.shape[a + 1 : b])
        start = piece.first if number == piece.joined else 0
        boxes.append(slice(start + first * row, start + last * row))
        held += [last - first, *piece.shape[a + 1 : b]]
        rest += [slice(None), *index[a + 1 : b]]
    array = tensor.read(piece.turn(boxes))
    array = (array.T if piece.turned else array).reshape(held)[tuple(rest)]
    bad = array.size - np.count_nonzero(np.isfinite(array))
    if bad:
        raise WeightsError(
            f"{piece.name} holds {bad:,} values that are infinite or no number. Such weights give "
            "no sensible text: download the file again, or ask those who made it."
        )
    return array


def check_copies(copies, tensors):
    """Raises WeightsError for a tensor that a model does without and that is not its equal's."""
    for name, of in copies.items():
        for box in boxes(tensors[name].shape):
            if not np.array_equal(tensors[name].read(box), tensors[of].read(box)):
                raise WeightsError(
                    f"{name} differs from {of}, and the config ties them (tie_word_embeddings). "
                    "Set it to false there if the model has a head of its own."
                )


def export(map_, params, dtype_of):
    """Returns {their name: Tensor} of our parameters; each is made when it is read.

    Args:
        map_: `Map`.
        params: {path: array of numpy or jax}.
        dtype_of: their name -> numpy dtype.
    """

    def make(name, held):
        dtype = np.dtype(dtype_of(name))

        def read(index):
            parts = [_their_part(params[piece.path], piece) for piece in held]
            axis = held[0].turn(range(len(held[0].groups))).index(held[0].joined)
            whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=axis)
            return whole[tuple(index)].astype(dtype)

        return Tensor(held[0].their_shape, dtype, read)

    return {name: make(name, held) for name, held in map_.names.items()}


def _their_part(array, piece):
    """One piece of our parameter, as it lies in their tensor."""
    array = np.asarray(array[piece.at] if piece.at else array)
    array = array.reshape([math.prod(piece.shape[a:b]) for a, b in piece.groups])
    return array.T if piece.turned else array
