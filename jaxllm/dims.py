"""The letters of array dimensions and the logical axes of parameters.

| Letter | Meaning                | Logical axis           |
|--------|------------------------|------------------------|
| B      | examples               | batch                  |
| T, S   | query, key positions   | length                 |
| D, F, V| width, MLP width, vocabulary | embed, mlp, vocab |
| N, K, G, H | query heads, key heads, N / K, head width | heads, kv_heads, -, head |
| L      | layers                 | layers                 |
| E, C   | experts, places at an expert | expert, -        |
| W      | a second model width   | -                      |
| Y      | outputs of a task's head | -                    |
| R      | rank of an adapter     | -                      |

Local arrays end in their letters (`x_BTD`); einsum strings use the same capitals.
"""

from typing import Any, NamedTuple

AXIS_OF_LETTER = {
    "B": "batch",
    "T": "length",
    "S": "length",
    "D": "embed",
    "F": "mlp",
    "V": "vocab",
    "N": "heads",
    "K": "kv_heads",
    "H": "head",
    "L": "layers",
    "P": "positions",
    "E": "expert",
    "C": "places",
    "W": "width",
    "Y": "labels",
    "R": "rank",
}

# The router of a mixture scores all experts on every device: its axis is not that of experts.
LOGICAL_AXES = frozenset(AXIS_OF_LETTER.values()) | {
    *("router", "types", "buckets", "taps"),
    *("prompt", "codes", "groups"),  # of adapters and of quantized weights
}


class ParamInfo(NamedTuple):
    """What is known of a parameter without allocating it.

    Attributes:
        shape: size of each dimension.
        dtype: numpy dtype it is stored in.
        axes: logical axis of each dimension; the first is "layers" where layers are stacked.
        inputs: logical axes that a hidden matrix contracts over, such as ("embed",) for a query
            projection; empty for norms, biases, embeddings and the output head.
    """

    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    @property
    def is_stacked(self):
        """Whether it holds one of each of several layers, along its first dimension."""
        return self.axes[:1] == ("layers",)

    @property
    def multiplies(self):
        """Whether it is a matrix that activations are multiplied by: hidden, or the head."""
        return bool(self.inputs) or (len(self.axes) == 2 and self.axes[1] == "vocab")

    @property
    def is_table(self):
        """Whether its rows are looked up by an index: tokens, positions, types, a prompt's."""
        return len(self.axes) == 2 and self.axes[0] in ("vocab", "positions", "types", "prompt")
