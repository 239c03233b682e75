"""What one device does in a train step: FLOPs of products and kernels, bytes on the wire.

Counted as the program is written, recomputing included, so that a compiled program's own count can
be held against it; `scaling.flops` counts useful work.
"""

import math
from typing import NamedTuple

import jax

from jaxllm import sharding
from jaxllm.models import moe
from jaxllm.models.splash import LANES
from jaxllm.objectives import lm
from jaxllm.scaling import shapes
from jaxllm.scaling.flops import keys_seen, task_flops
from jaxllm.scaling.shapes import attending

WRITTEN_OUT = ("reference", "xla")  # kernels whose scores are ordinary products
OF_HEAD = ("head", "head_bias", "transform", "transform_norm")  # parameters of the vocabulary's
KERNEL_BLOCK = 512  # queries and keys a block of a kernel: it skips masked blocks, not entries


class Products(NamedTuple):
    """FLOPs of one device in a step.

    Attributes:
        useful: of products with weights, forward and backward, without what is recomputed; of
            frozen weights no gradients are computed.
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
    layers, redone = (2.0 * share.micro * n for n in _layer_products(share))
    head = _head_products(share)
    scores, scores_again, kernel = _attention(share)
    turned, turned_again = _rotary(share)
    distances, distances_again = _distances(share)
    below = share.goes_below  # the backward pass
    again = below * (redone + scores_again + turned_again + distances_again)
    attention = (3 if below else 1) * scores + (2 if below else 1) * turned + distances
    idle = share.bubble / (1 - share.bubble)
    in_layers = layers + attention + again
    return Products(
        useful=layers + (1 + below + share.trains_output) * head + _pooled(share),
        again=again,
        attention=attention,
        kernel=kernel / (1 - share.bubble),
        bubble=idle * in_layers,
        optimizer=share.opt_flops,
    )


def logit_pieces(share):
    """Into how many pieces the logits are cut."""
    if not share.row.head:
        return 1
    c, length = share.c, share.row.length // share.shape["seq"]
    vocab = c.vocab // share.shape["tensor"]
    return lm.pieces(share.rows, length, vocab, share.config.objective.get("chunk", 0))


def _head_products(share):
    """Forward FLOPs of what reads the hidden states."""
    c, tensor = share.c, share.shape["tensor"]
    if share.row.head:
        turned = c.width * c.width if c.head_transform else 0
        whole = share.tokens * (c.vocab * c.width + turned)
        return 2.0 * share.micro * whole / tensor
    each = task_flops(c, share.row.length)
    if c.task in ("tag", "span"):
        each /= tensor
    return share.micro * share.rows * share.row.texts * float(each)


def _pooled(share):
    """FLOPs of what has no weights: pooling the tokens of a text, setting texts against others."""
    c, texts = share.c, share.rows * share.row.texts
    if share.row.head or c.task in ("none", "tag", "span"):
        return 0.0
    pooled = 2.0 * share.tokens * c.width / share.shape["tensor"]  # its gradient is no sum
    if share.row.texts > 1:
        every = share.rows * math.prod(share.shape[axis] for axis in sharding.ROW_AXES)
        pooled += 3 * 2.0 * texts * every * c.width
    return share.micro * pooled


def _layer_products(share):
    """Multiplications of this device's tokens by its layers' parameters, forward and backward, and
    those done again."""
    met, again = 0.0, 0.0
    added, below = share.added, share.goes_below
    for path, info in (share.infos | added).items():
        if not info.is_stacked or not shapes.multiplies(path, info):
            continue
        # A stage has some of the layers, and the rows of all stages go through them.
        size = share.used(path) * share.shape["stage"] * _share_of_tokens(share, path)
        size *= share.seen(_part_of(share, path))
        size /= share.shape["tensor"] if "_adapter/" in path else 1  # which stand between its sums
        met += size * (1 + below + (path in share.trained))
        again += size * _recomputed(share, path, added)
    return met, again


def _part_of(share, path):
    """The `shapes.Part` whose tokens meet a parameter of the layers."""
    return share.parts[0 if shapes.is_of_inputs(path) else -1]


def _share_of_tokens(share, path):
    """Tokens that a weight meets over those of this device: of an expert, places that stay empty
    included."""
    c = share.c
    if "/experts/" not in path:
        return 1.0
    if c.capacity:
        length = share.row.length // share.shape["seq"]
        chosen = moe.capacity(c, length) / length
    else:
        chosen = c.experts_per_token / c.experts
    return chosen * share.shape["expert"]  # the rows of all of them


def _recomputed(share, path, added):
    """Whether a layer's product is computed again in the backward pass; added: `share.added`."""
    c, remat, name = share.c, share.remat, path.split("/")[-2]
    if remat in ("light", "full") and path in added:
        if path.endswith("/lora/b"):  # its sum with the weight's product is what is kept
            return _recomputed(share, path.removesuffix("lora/b") + "w", added)
        last = "mlp_adapter/up" if remat == "full" else "_adapter/up"
        return float(last not in path)
    if "/experts/" in path:  # products in batches; the router's gradient needs their results
        return float(remat in ("full", "dots") or (remat == "light" and name == "down"))
    if name in ("input_gate", "rate_gate"):  # a product for each head, of which nothing is kept
        return float(remat != "none")
    if remat in ("none", "dots"):
        return 0.0
    # Whether what a product gives is read before it is added to the stream.
    read_after = c.norm_place in ("around", "post", "out") or any("_adapter/" in p for p in added)
    if remat == "light":
        of_norm = {"q", "k"} if c.qk_norm or c.qk_norm_whole else set()
        of_norm |= {"o", "down"} if read_after else set()
        of_norm |= {"q"} if c.position == "sinusoids" else set()  # kept is what was added to them
        if f"{path.removesuffix('w')}scale_out/w" in added:  # or multiplied with
            return 1.0
        return float(name in of_norm or name == "router")
    # The layer's last products are for the next layer, which has its own copy.
    last = {"down"} | ({"o"} if c.parallel else set())
    return float(name not in last or read_after)


def _attention(share):
    """FLOPs of scores and sums over values: forward, again, and of a kernel in all."""
    scores, kernel = 0.0, 0.0
    for part in share.parts:
        c, length, layers = part.c, part.length, attending(part.c)
        width = c.head_width + (-c.head_width % LANES if c.attention == "splash" else 0)
        # A product, a key of a layer.
        one = 2.0 * share.seen(part) * share.micro * (c.heads // share.shape["tensor"])
        scores += one * c.head_width * c.layers * part.looks_at  # written out, whatever the kernel
        if c.attention in WRITTEN_OUT:
            scores += one * c.head_width * len(layers) * length
            continue
        if c.assembly == "encoder":
            keys = len(layers) * length
        else:
            windows = [c.window if c.is_windowed(i) else 0 for i in layers]
            keys = sum(keys_seen(length, n) + min(KERNEL_BLOCK, length) / 2 for n in windows)
        # Forward 2 products; backward 7, since scores are made for dq and for dk and dv; again 2.
        passes = 9 + (2 if share.remat in ("full", "dots") else 0)
        kernel += passes * one * width * keys
    # What comes out of it is for the gradient of the next weight alone.
    dots = 2 if any("/o/" in path for path in share.trained) else 1
    again = {"full": 2, "dots": dots, "light": 1, "none": 0}[share.remat]
    return 2 * scores, again * scores, kernel


def _distances(share):
    """FLOPs of sinusoids: queries with all distances of a row, and the projection of these, which
    all rows share; forward and backward, and again."""
    if share.c.position != "sinusoids":
        return 0.0, 0.0
    total, again, remat = 0.0, 0.0, share.remat
    for part in share.parts:
        c, apart = part.c, 2 * part.length - 1
        heads = c.heads // share.shape["tensor"] * c.head_width
        layers = len(attending(c)) * share.micro
        scores = 2.0 * share.seen(part) * heads * apart * layers
        made = 2.0 * apart * c.width * heads * layers
        total += 3 * scores + 2 * made  # sinusoids themselves want no gradient
        again += (remat != "none") * scores + (remat in ("full", "light")) * made
    return total, again


def rotates_by_product(c):
    """Whether rotary positions are a product with a matrix; see `layers.rotate_by_product`."""
    return c.position == "rope" and c.products == "direct"


def _rotary(share):
    """FLOPs of rotary positions where they are a product, forward and again."""
    c = share.c
    if not rotates_by_product(c):
        return 0.0, 0.0
    heads = (c.heads + c.kv_heads) // share.shape["tensor"]
    layers = sum(share.seen(part) * len(attending(part.c)) for part in share.parts)
    one = 2.0 * layers * share.micro * heads * c.head_width**2
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
    if share.row.texts > 1 and not share.row.head:  # each is set against those of all devices
        rows = share.rows * math.prod(share.shape[axis] for axis in sharding.ROW_AXES)
        size = 4.0 * share.micro * rows * share.row.texts * share.c.width
        add(sharding.ROW_AXES, "all-gather", size + 4.0 * share.micro * rows)
        add(sharding.ROW_AXES, "reduce-scatter", size / 2)
    return Wire(found)


def _weights(share, add):
    """Gathering weights and scattering their gradients; sums over what they are not split over."""
    passes, below = share.micro if share.shape["stage"] == 1 else 1, share.goes_below
    for path, info in share.held.items():
        split = jax.tree.leaves(tuple(share.specs[path]))  # a part is None, a name, or several
        gathered, learns = share.gathered(path), path in share.trained
        narrow = info.multiplies or info.is_table
        width = share.width if narrow and learns else info.dtype.itemsize
        if gathered:
            size = share.used(path) * width
            again = info.is_stacked and share.shape["stage"] == 1 and below
            if shapes.OF_DISTANCES in path:  # whose gradient goes no further
                again = share.remat in ("full", "light")
            add(gathered, "all-gather", size * (2 if again else 1) * passes)
            if learns:
                scattered = size / 2 * _steps(share, gathered)
                add(gathered, "reduce-scatter", scattered * passes)
        rest = [n for n in share.shape if n not in split]
        # What the loss does not reach has no gradient.
        if learns and (share.row.head or path.split("/")[0] not in OF_HEAD):
            add(rest, "all-reduce", share.stored(path) * 4)


def _steps(share, axes):
    """What a scatter in two steps sends over one in one; see `sharding.by_hand`."""
    n = share.shape[axes[0]]
    halves = share.platform == "tpu" and len(axes) == 1 and n > 2 and n % 2 == 0
    return 1 + 2 / n if halves else 1


def _streams(share, add):
    """Joining and summing up activations over `tensor`, and the vocabulary."""
    c, ends = share.c, 0.0
    for part in share.parts:
        whole = share.seen(part) * share.micro * c.width * share.width
        ends += whole
        branches = 1 if c.parallel else 3 if part.looks_at else 2
        more = 2 * branches - 1
        again = {"full": more, "dots": more}.get(share.remat, branches)
        gathers = 2 * branches + min(again, branches)
        scatters = 2 * branches + max(again - branches, 0)
        layers = part.c.layers / (1 - share.bubble)
        add(("tensor",), "all-gather", whole * gathers * layers)
        add(("tensor",), "reduce-scatter", whole / 2 * scatters * layers)
        if part.looks_at:  # the encoder's hidden states, once, and their gradient
            memory = share.seen(share.parts[0]) * share.micro * c.width * share.width
            add(("tensor",), "all-gather", memory)
            add(("tensor",), "reduce-scatter", memory / 2)
    # Embedding: a sum; head: a join, each with its gradient.
    head = share.tokens * share.micro * c.width * share.width if share.row.head else 0.0
    add(("tensor",), "all-gather", ends + head)
    add(("tensor",), "reduce-scatter", (ends + head) / 2)


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
        length = share.row.length // share.shape["seq"]
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
