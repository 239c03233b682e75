"""How much memory a train step takes on a device, by kind, in closed form."""

from typing import NamedTuple

from jaxllm.models.splash import LANES
from jaxllm.scaling import work

# What libraries allocate besides, over what a step needs; as measured (benchmarks/plan_here.py).
SCRATCH = {"cpu": 0.1, "gpu": 0.0, "tpu": 0.0}


class Memory(NamedTuple):
    """Bytes on a device.

    Attributes:
        state: {"weights", "frozen", "optimizer", "average"}: what stays between steps.
        step: {kind: bytes} of what a step needs besides, in the phase that needs most.
        phase: which that is: "layers", "head", "table", "update".
        offloaded: bytes for each device in its host's memory, besides.
    """

    state: dict
    step: dict
    phase: str
    offloaded: float

    @property
    def arguments(self):
        """What stays between steps."""
        return sum(self.state.values())

    @property
    def temporaries(self):
        """What a step needs besides."""
        return sum(self.step.values())

    @property
    def total(self):
        """All."""
        return self.arguments + self.temporaries


def of(share):
    """Returns the `Memory` of a `share.Share`."""
    weights = share.size(share.trained)
    state = {"weights": weights, "optimizer": share.opt_bytes}
    if share.frozen:
        state["frozen"] = share.size(share.frozen)
    if share.config.step.ema:
        state["average"] = weights
    found = phases(share)
    phase = max(found, key=lambda name: sum(found[name].values()))
    return Memory(state, found[phase], phase, offloaded_bytes(share))


def phases(share):
    """Returns {phase: {kind: bytes}} of what a step needs besides its state."""
    found = {
        "layers": _in_layers(share),
        "head": _in_head(share),
        "table": _in_table(share),
        "update": _in_update(share),
    }
    for kinds in found.values():
        kinds["scratch"] = SCRATCH[share.platform] * sum(kinds.values())
    return found


def _sums(share):
    """Bytes of gradients that are added up over micro-batches, and of narrow copies of weights."""
    narrow = share.width < 4
    layers = [p for p, info in share.trained.items() if info.is_stacked]
    cast = sum(share.stored(p) for p in layers if share.trained[p].multiplies)
    rest = sum(share.stored(p) for p in layers) - cast
    found = {
        "copies": cast * share.width if narrow else 0,
        "gradients": cast * share.width + rest * 4,
    }
    if share.platform == "tpu":  # whose compiler turns those of heads round, all layers at once
        turned = (p for p, info in share.frozen.items() if info.multiplies and len(info.axes) == 4)
        found["copies"] += share.size(turned)
    if share.micro > 1:
        found["gradients"] += share.size(share.trained)
    return found


def kept_per_token(share, part):
    """Bytes of a layer's activations that wait for the backward pass, a token of this device.

    Args:
        share: `share.Share`.
        part: `shapes.Part` that the layer is of.
    """
    c, b, tensor = part.c, share.width, share.shape["tensor"]
    stream, mlp = c.width / tensor * b, _mlp_width(share) * b
    heads, keys = (_heads(share, n) * b for n in (c.heads, c.kv_heads))
    ups = 2 if c.gated else 1
    inputs = _learns_in_products(share)  # whether the products' inputs are wanted: 1 or 0
    if share.remat == "full":
        return stream
    if share.remat == "light":
        return 2 * stream + (1 + inputs) * heads + 2 * keys + ups * mlp
    if share.remat == "dots":
        turned = heads + keys if work.rotates_by_product(c) else 0
        return 2 * stream + heads + 2 * keys + turned + ups * mlp
    if share.platform == "cpu":
        return _bytes(share, part, _CPU_KEPT[_on_cpu(share)])
    # Norms keep their input and what they made of it in float32, attention written out its weights;
    # an MLP all that its activation and its products' gradients need.
    norms = (
        _score_bytes(share, part, 4) + 2 * (3 if c.norm == "layer" else 2) * c.width / tensor * 4
    )
    mlps = (4 if c.gated else 5) + inputs
    return norms + (3 + 2 * inputs) * stream + (1 + inputs) * heads + 2 * keys + mlps * mlp


def _learns_in_products(share):
    """Whether gradients of the layers' products, or of what stands beside them, are wanted."""
    trained = share.trained.items()
    return any(i.is_stacked and i.multiplies and "_adapter/" not in p for p, i in trained)


_ON_THEIR_WAY = 3  # layers' inputs that are on the device while they go to the host and back


def kept_bytes(share):
    """Bytes of activations of all layers that wait on this device for the backward pass."""
    kept = 0
    for part in share.parts:
        layers = min(_ON_THEIR_WAY, part.c.layers) if share.offloads else part.c.layers
        kept += share.seen(part) * kept_per_token(share, part) * layers
    return kept / (1 - share.bubble)


def offloaded_bytes(share):
    """Bytes of activations that wait in the host's memory."""
    if not share.offloads:
        return 0
    parts = share.parts
    return sum(share.seen(p) * kept_per_token(share, p) * p.c.layers for p in parts)


def _score_bytes(share, part, each):
    """Bytes of a token's attention scores at so many a score; kernels hold none."""
    keys = part.looks_at + (part.length if part.c.attention in work.WRITTEN_OUT else 0)
    return each * keys * max(part.c.heads // share.shape["tensor"], 1)


def _heads(share, count):
    """Numbers of so many heads for a token of this device; a TPU fills their lanes up to 128."""
    width = share.c.head_width
    room = -width % LANES if share.platform == "tpu" else 0
    return max(count // share.shape["tensor"], 1) * (width + room)


def _mlp_width(share):
    """Numbers of an MLP's inside for each token of this device."""
    c = share.c
    if not c.experts:
        return c.mlp_width // share.shape["tensor"]
    chosen = c.experts_per_token * (c.capacity or 1.0) + c.shared_experts
    return chosen * c.expert_width / share.shape["tensor"]


class _Arrays(NamedTuple):
    """How many arrays there are for each token: as wide as the stream, as all queries, as all keys,
    as the inside of the MLP, and as that again if it is gated; of scores, in float32."""

    stream: float
    heads: float
    keys: float
    mlp: float
    gate: float
    scores: float


def _bytes(share, part, arrays):
    """Bytes of so many arrays, a token of this device."""
    c = part.c
    numbers = arrays.stream * c.width + (arrays.mlp + arrays.gate * c.gated) * _mlp_width(share)
    numbers += arrays.heads * _heads(share, c.heads) + arrays.keys * _heads(share, c.kv_heads)
    return numbers * share.width + _score_bytes(share, part, 4 * arrays.scores)


# Arrays that the backward pass of a layer holds at once, as the TPU compiler schedules it, the
# stream joined over `tensor`; and in a ring over `seq` of queries, in float32.
_IN_USE, _RING_ARRAYS = _Arrays(4, 5.5, 0, 4, 0, 2.5), 10
# A CPU's compiler: by remat, or, where there is none, by whether layers are unrolled; and what it
# then keeps of a layer. Fitted to 180 programs: 2 % off in the median, 17 % at most; scanned
# layers to 50 more of 9 to 24 layers (7 % at most).
_CPU_IN_USE = {
    "scanned": _Arrays(1.2, 0, 0, 10.9, 0.1, 0.9),
    "unrolled": _Arrays(1, 0, 0, 2.1, 0, 0),
    "dots": _Arrays(12.9, 2.9, 0, 1.9, 0.8, 2.1),
    "light": _Arrays(11.1, 3.9, 0, 1.8, 1.4, 2.1),
    "full": _Arrays(12, 4.8, 0, 3.7, 3, 1.5),
}
_CPU_KEPT = {
    "scanned": _Arrays(12, 1.9, 2.9, 5.1, 0, 1.9),
    "unrolled": _Arrays(9.2, 1.9, 2.9, 3, 1.5, 1),
}
# Weights of the largest matrix that are there at once: in use, on their way, their gradients.
_WEIGHTS_AT_ONCE = 4
# The head's: turned round, and its gradient; where it is the table, both gradients of that: on a
# v5e, whose compiler gathers and scatters while it computes, more of them at once.
_HEADS_AT_ONCE, _TABLES_AT_ONCE, _TABLES_ON_V5E = 1.7, 1.9, 3.3
_MADE_DENSE = 10  # bytes through memory of a weight that is kept in few bits, each time it is used
_TILE_ROWS = 16  # rows of a tile of 16-bit numbers; a part that is no multiple takes twice the room


def _in_layers(share):
    """The backward pass through a layer: all layers' kept activations and this one's own."""
    ring = _RING_ARRAYS * _heads(share, share.c.heads) * 4 if share.shape["seq"] > 1 else 0
    gathered = _WEIGHTS_AT_ONCE * _largest(share) * share.width
    if share.shape["stage"] > 1:  # all of a stage's, once; their gradients, of a tick and in all
        layers = [p for p, info in share.infos.items() if info.is_stacked]
        gathered = sum(share.used(p) * (2 * share.width + 4 * (p in share.trained)) for p in layers)
    in_use = _CPU_IN_USE[_on_cpu(share)] if share.platform == "cpu" else _IN_USE
    return _sums(share) | {
        "kept": kept_bytes(share),
        "in use": max(
            share.seen(part) * (_bytes(share, part, in_use) + ring) for part in share.parts
        ),
        "gathered": gathered,
    }


def _on_cpu(share):
    """Remat or, where there is none, how the layers are run."""
    if share.remat != "none":
        return share.remat
    return "unrolled" if share.c.unroll >= share.c.layers else "scanned"


def _largest(share):
    """Numbers of the largest matrix of a layer, with the room that its layout wastes."""

    def of_layer(path):
        return share.used(path) * share.shape["stage"] // share.infos[path].shape[0]

    path = max((p for p, info in share.infos.items() if info.is_stacked), key=of_layer)
    whole = of_layer(path)
    rows = share.c.width * share.stored(path) // share.used(path)
    return whole * (2 if rows % _TILE_ROWS else 1)


def _in_head(share):
    """The loss: logits of a piece, the head and its gradient."""
    c, b = share.c, share.width
    pieces, vocab = work.logit_pieces(share), c.vocab / share.shape["tensor"]
    tables = _TABLES_ON_V5E if share.family == "v5e" else _TABLES_AT_ONCE
    at_once = tables if c.tied else _HEADS_AT_ONCE
    return _sums(share) | {
        "kept": kept_bytes(share),
        "logits": share.tokens / pieces * vocab * 4,
        "gathered": (at_once if share.trains_output else 1) * _head(share) * b,
    }


def _head(share):
    """Numbers of the head, or of the table in its place, once gathered."""
    return share.c.vocab * share.c.width / share.shape["tensor"] if share.row.head else 0


def _in_table(share):
    """The end of the backward pass: the table's gradient, added up row by row in float32."""
    wide = 4 + 2 * share.width if "embed" in share.trained else share.width
    return _sums(share) | {"gathered": share.used("embed") * wide}


def _in_update(share):
    """The optimizer: every gradient in float32."""
    return {"gradients": share.size(share.trained)}


def passes_bytes(share):
    """Bytes that go through memory in a step besides what products stream: activations, state."""
    c, b = share.c, share.width
    t = share.tokens * share.micro
    tensor = share.shape["tensor"]
    again = 1 if share.remat in ("full", "dots", "light") else 0
    stream = c.width / tensor * (18 + 6 * again)
    heads = (c.heads + c.kv_heads) // tensor * c.head_width * (4 + 2 * again)
    mlp = _mlp_width(share) * (8 + 2 * again)
    state = share.size(share.trained) + share.opt_bytes
    few = [path for path in share.infos if f"{path}/codes" in share.frozen]
    passes = (2 + again) * share.micro
    dense = _MADE_DENSE * passes * share.shape["stage"] * sum(map(share.used, few))
    return t * (stream + heads + mlp) * b * c.layers + 2 * state + dense
