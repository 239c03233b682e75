"""What one device does in a train step: FLOPs of products and kernels, bytes on the wire.

Counted as the program is written, recomputing included, so that a compiled program's own count can
be held against it; `scaling.flops` counts useful work.
"""

from typing import NamedTuple

import jax

from jaxllm.models import moe
from jaxllm.models.splash import LANES
from jaxllm.objectives import lm
from jaxllm.scaling.flops import keys_seen

KERNEL_BLOCK = 512  # queries and keys a block of a kernel: it skips masked blocks, not entries


class Products(NamedTuple):
    """FLOPs of one device in a step.

    Attributes:
        useful: of products with weights, forward and backward, without what is recomputed.
        again: of those, and of attention's, that the backward pass computes again.
        attention: of queries with keys and weights with values, and of rotary positions.
        kernel: of attention where a hand-written kernel computes it, its recomputing included; a
            compiler counts none of it.
        bubble: what a pipeline computes while it has nothing to do.
        optimizer: of the optimizer's own products, such as Muon's.
    """

    useful: float
    again: float
    attention: float
    kernel: float
    bubble: float
    optimizer: float

    @property
    def counted(self):
        """What a compiler counts."""
        return self.useful + self.again + self.attention + self.bubble + self.optimizer

    @property
    def total(self):
        """All."""
        return self.counted + self.kernel


def products(share):
    """Returns the `Products` of a `Share`."""
    c, t = share.c, share.tokens * share.micro
    forward, again = _layer_products(share)
    layer = 2.0 * t * forward
    redone = 2.0 * t * again
    head = 2.0 * t * c.vocab * c.width / share.shape["tensor"]
    redone_head = head if logit_pieces(share) > 1 else 0.0
    scores, scores_again, kernel = _attention(share)
    turned, turned_again = _rotary(share)
    again = redone + scores_again + turned_again
    idle = share.bubble / (1 - share.bubble)
    in_layers = 3 * (layer + scores) + 2 * turned + again
    return Products(
        useful=3 * (layer + head),
        again=again + redone_head,
        attention=3 * scores + 2 * turned,
        kernel=kernel / (1 - share.bubble),
        bubble=idle * in_layers,
        optimizer=share.opt_flops,
    )


def logit_pieces(share):
    """Into how many pieces the logits are cut; more than one are computed twice."""
    c, length = share.c, share.config.data.length // share.shape["seq"]
    vocab = c.vocab // share.shape["tensor"]
    return lm.pieces(share.rows, length, vocab, share.config.objective.get("chunk", 0))


def _layer_products(share):
    """Parameters of this device's layers that meet a token, and those that do so again."""
    c, remat = share.c, share.remat
    met, again = 0.0, 0.0
    for path, info in share.infos.items():
        if not info.inputs or not path.startswith("layers/"):
            continue
        # A stage has some of the layers, and the rows of all stages go through them.
        size = share.used(path) * share.shape["stage"] * _share_of_tokens(share, path)
        met += size
        again += size * _recomputed(c, remat, path)
    return met, again


def _share_of_tokens(share, path):
    """Tokens that a weight meets over those of this device: of an expert, places that stay empty
    included."""
    c = share.c
    if "/experts/" not in path:
        return 1.0
    if c.capacity:
        length = share.config.data.length // share.shape["seq"]
        chosen = moe.capacity(c, length) / length
    else:
        chosen = c.experts_per_token / c.experts
    return chosen * share.shape["expert"]  # the rows of all of them


def _recomputed(c, remat, path):
    """Whether a layer's product is computed again in the backward pass."""
    name = path.split("/")[-2]
    if "/experts/" in path:  # products in batches; the router's gradient needs their results
        return float(remat in ("full", "dots") or (remat == "light" and name == "down"))
    if remat in ("none", "dots"):
        return 0.0
    normed_after = c.norm_place in ("around", "post", "out")
    if remat == "light":
        of_norm = {"q", "k"} if c.qk_norm or c.qk_norm_whole else set()
        of_norm |= {"o", "down"} if c.norm_place in ("around", "out") else set()
        return float(name in of_norm or name == "router")
    # The layer's last products are for the next layer, which has its own copy.
    last = {"down"} | ({"o"} if c.parallel else set())
    return float(name not in last or normed_after)


def _attention(share):
    """FLOPs of scores and sums over values: forward, again, and of a kernel in all."""
    c, length = share.c, share.config.data.length
    kernel = c.attention not in ("reference", "xla")
    width = c.head_width + (-c.head_width % LANES if c.attention == "splash" else 0)
    heads = c.heads // share.shape["tensor"] * width
    one = 2.0 * share.tokens * share.micro * heads * c.layers  # a product, a key
    if not kernel:
        again = {"full": 2, "dots": 2, "light": 1, "none": 0}[share.remat]
        return 2 * one * length, again * one * length, 0.0
    keys = (
        sum(keys_seen(length, c.window if c.is_windowed(i) else 0) for i in range(c.layers))
        / c.layers
        + min(KERNEL_BLOCK, length) / 2
    )
    # Forward 2 products; backward 7, since scores are made for dq and for dk and dv; again 2.
    passes = 9 + (2 if share.remat in ("full", "dots") else 0)
    return 0.0, 0.0, passes * one * keys


def rotates_by_product(c):
    """Whether rotary positions are a product with a matrix; see `layers.rotate_by_product`."""
    return c.position == "rope" and c.products == "direct"


def _rotary(share):
    """FLOPs of rotary positions where they are a product, forward and again."""
    c = share.c
    if not rotates_by_product(c):
        return 0.0, 0.0
    heads = (c.heads + c.kv_heads) // share.shape["tensor"]
    one = 2.0 * share.tokens * share.micro * heads * c.head_width**2 * c.layers
    return one, one if share.remat == "full" else 0.0


class Wire(NamedTuple):
    """Bytes that a device receives in a step, by mesh axes and kind.

    Attributes:
        parts: {(mesh axes, kind): bytes}; the axes joined by "+". Of an all-gather and an
            all-reduce the bytes of the result; of a reduce-scatter half of what goes in: what the
            all-reduce that it replaces would count, halved.
    """

    parts: dict

    def by_kind(self):
        """{kind: bytes}."""
        found = {}
        for (_, kind), size in self.parts.items():
            found[kind] = found.get(kind, 0) + size
        return found


def wire(share):
    """Returns the `Wire` of a `Share`."""
    found = {}

    def add(axes, kind, size):
        axes = tuple(a for a in axes if share.shape[a] > 1)
        if axes and size:
            key = "+".join(axes), kind
            found[key] = found.get(key, 0) + size

    _weights(share, add)
    _streams(share, add)
    _rings(share, add)
    _experts(share, add)
    _stages(share, add)
    return Wire(found)


def _weights(share, add):
    """Gathering weights and scattering their gradients; sums over what they are not split over."""
    passes = share.micro if share.shape["stage"] == 1 else 1
    for path, info in share.infos.items():
        split = jax.tree.leaves(tuple(share.specs[path]))  # a part is None, a name, or several
        gathered = share.gathered(path)
        narrow = info.multiplies or info.is_table
        width = share.width if narrow else 4
        if gathered:
            size = share.used(path) * width
            in_layers = path.startswith("layers/")
            again = in_layers and share.shape["stage"] == 1
            add(gathered, "all-gather", size * (2 if again else 1) * passes)
            add(gathered, "reduce-scatter", size / 2 * _steps(share, gathered) * passes)
        rest = [n for n in share.shape if n not in split]
        add(rest, "all-reduce", share.stored(path) * 4)


def _steps(share, axes):
    """What a scatter in two steps sends over one in one; see `sharding.by_hand`."""
    n = share.shape[axes[0]]
    halves = share.platform == "tpu" and len(axes) == 1 and n > 2 and n % 2 == 0
    return 1 + 2 / n if halves else 1


def _streams(share, add):
    """Joining and summing up activations over `tensor`, and the vocabulary."""
    c, t = share.c, share.tokens * share.micro
    whole = t * c.width * share.width
    branches = 1 if c.parallel else 2
    more = 2 * branches - 1
    again = {"full": more, "dots": more}.get(share.remat, branches)
    gathers = 2 * branches + min(again, branches)
    scatters = 2 * branches + max(again - branches, 0)
    layers = c.layers / (1 - share.bubble)
    add(("tensor",), "all-gather", whole * gathers * layers)
    add(("tensor",), "reduce-scatter", whole / 2 * scatters * layers)
    # Embedding: a sum; head: a join, each with its gradient.
    add(("tensor",), "all-gather", 2 * whole)
    add(("tensor",), "reduce-scatter", whole)


def _rings(share, add):
    """Keys and values round `seq`: in the backward pass with their gradients, in float32."""
    c, n = share.c, share.shape["seq"]
    if n == 1:
        return
    heads = max(c.kv_heads // share.shape["tensor"], 1) * c.head_width
    size = 2 * share.tokens * share.micro * heads  # numbers
    forward = size * share.width * (n - 1)
    again = forward if share.remat in ("full", "dots") else 0
    backward = size * (share.width + 4) * n
    layers = c.layers / (1 - share.bubble)
    add(("seq",), "collective-permute", (forward + again + backward) * layers)


def _experts(share, add):
    """Tokens to their experts and back."""
    c, n = share.c, share.shape["expert"]
    if n == 1 or not c.experts:
        return
    sparse = sum(c.has_experts(i) for i in range(c.layers))
    t, redone = share.tokens * share.micro, share.remat == "full"
    if c.capacity:
        length = share.config.data.length // share.shape["seq"]
        places = moe.capacity(c, length) * c.experts / length
        times = 4 + (2 if redone else 0)
        add(("expert",), "all-to-all", times * sparse * t * places * c.width * share.width)
        return
    whole = n * t * c.width * share.width * sparse
    add(("expert",), "all-gather", whole * (2 + (1 if redone else 0)))
    add(("expert",), "reduce-scatter", whole / 2 * 2)


def _stages(share, add):
    """Pieces of rows from stage to stage."""
    c, n = share.c, share.shape["stage"]
    if n == 1:
        return
    pieces = c.pipeline_pieces or share.rows
    ticks = n * pieces * c.pipeline_rounds + n - 1
    piece = share.stream // pieces * c.width * share.width
    add(("stage",), "collective-permute", 2 * share.micro * ticks * piece)
