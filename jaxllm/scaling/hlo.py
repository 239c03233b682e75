"""Reads a compiled program's text (HLO): bytes on the wire, matrix FLOPs and cycles, loops counted.

`Compiled.cost_analysis()` counts the body of a loop once, and XLA writes most numbers nowhere but
in the text. Only what is written there is used: shapes, opcodes, a loop's bound in its condition,
and the `estimated_cycles` that the TPU compiler notes on each of its fusions.
"""

import math
import re
from typing import NamedTuple

import numpy as np

BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "s16": 2, "u16": 2} | {
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "s8": 1, "u8": 1,
    "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
)
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


class Instruction(NamedTuple):
    """One line of a computation: its result's type, opcode, and what stands after "opcode("."""

    name: str
    type: str
    opcode: str
    rest: str


class Sent(NamedTuple):
    """A kind of collective: its opcode, its groups as the text writes them, whether it goes on
    while the device computes."""

    kind: str
    groups: str
    hidden: bool


class Costs(NamedTuple):
    """What one device does in one call of a program.

    Attributes:
        sent: {Sent: bytes of its result}, loops counted. A reduce-scatter counts its result times
            the devices, halved: half of the all-reduce that it replaces.
        matmul_flops: of dots and convolutions.
        cycles: the compiler's estimated cycles of its fusions; custom kernels have none.
    """

    sent: dict
    matmul_flops: float
    cycles: float

    def plus(self, other, times=1):
        """This and `times` the other."""
        keys = self.sent.keys() | other.sent.keys()
        sent = {key: self.sent.get(key, 0) + times * other.sent.get(key, 0) for key in keys}
        flops = self.matmul_flops + times * other.matmul_flops
        return Costs(sent, flops, self.cycles + times * other.cycles)

    @property
    def wire(self):
        """{collective: bytes}."""
        found = {}
        for key, size in self.sent.items():
            found[key.kind] = found.get(key.kind, 0) + size
        return found


NOTHING = Costs({}, 0.0, 0.0)


def arrays(text):
    """Returns [(dtype, shape)] of every array in a type."""
    found = _ARRAY.findall(text)
    return [(d, tuple(int(n) for n in s.split(",") if n)) for d, s in found if d in BYTES]


def size_bytes(text):
    """Bytes of a type without padding; a tuple's parts together."""
    return sum(BYTES[dtype] * math.prod(shape) for dtype, shape in arrays(text))


def parse(text):
    """Returns ({computation: {name: Instruction}}, name of the entry)."""
    computations, entry, current = {}, None, None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found and current is not None:
            kind, rest = _split_type(line[found.end() :])
            opcode, _, rest = rest.partition("(")
            current[found[1]] = Instruction(found[1], kind, opcode.strip(), rest)
    return computations, entry


def _split_type(text):
    """Splits "type opcode(…": a tuple's type has balanced parentheses, another no space."""
    if not text.startswith("("):
        kind, _, rest = text.partition(" ")
        return kind, rest
    end = 1 + _closing(text[1:])
    return text[: end + 1], text[end + 2 :]


def _closing(text):
    """Index of the parenthesis that closes one opened before `text`."""
    depth = 1
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses: {text[:80]}")


def operands(instruction):
    """Names of an instruction's operands."""
    return re.findall(r"%([\w.\-]+)", instruction.rest[: _closing(instruction.rest)])


def costs(text):
    """Returns the `Costs` of a compiled program's text.

    Raises:
        ValueError: a loop whose bound is not in its condition.
    """
    computations, entry = parse(text)
    known = {}

    def of(name):
        if name not in known:
            total = NOTHING
            for instruction in computations[name].values():
                total = total.plus(_of_instruction(computations, name, instruction, of))
            known[name] = total
        return known[name]

    return of(entry)


def _of_instruction(computations, here, instruction, of):
    opcode, rest = instruction.opcode, instruction.rest
    cycles = re.search(r'"estimated_cycles":"(\d+)"', rest)
    own = NOTHING._replace(cycles=float(cycles[1]) if cycles else 0.0)
    called = _CALLED.findall(rest)
    if opcode == "while":
        condition, body = (
            re.search(rf"{word}=%?([\w.\-]+)", rest)[1] for word in ("condition", "body")
        )
        return own.plus(of(body), trips(computations, condition))
    if opcode in ("fusion", "call", "async-start"):
        inner = of(called[0])
        sent = inner.sent
        if "all-reduce-scatter" in called[0]:  # half of the bytes of the sum that it is written as
            sent = {
                key._replace(kind="reduce-scatter"): size / 2
                for key, size in sent.items()
                if key.kind == "all-reduce"
            }
        if _goes_on(instruction, called[0]):
            sent = {}
        elif instruction.name.startswith("async-collective-start"):
            sent = {key._replace(hidden=True): size for key, size in sent.items()}
        inner = inner._replace(sent=sent)
        return own.plus(inner._replace(cycles=0) if opcode == "fusion" else inner)
    if opcode == "conditional":
        branches = _BRANCHES.search(rest)
        names = re.findall(r"%?([\w.\-]+)", branches[1]) if branches else called
        return max((own.plus(of(name)) for name in names), key=lambda c: (c.cycles, c.matmul_flops))
    kind = opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        size = _result_bytes(instruction)
        if kind == "reduce-scatter":
            taken = operands(instruction)
            size = sum(size_bytes(computations[here][name].type) for name in taken) / 2
        return own._replace(sent={Sent(kind, _groups(rest), opcode.endswith("-start")): size})
    if opcode in ("dot", "convolution"):
        return own._replace(matmul_flops=_product_flops(computations[here], instruction))
    return own


def _groups(rest):
    """The text of a collective's groups, or of its pairs."""
    found = re.search(
        r"(?:replica_groups|source_target_pairs)=(.*?), (?:\w+=|to_apply)", rest + ", a="
    )
    return found[1] if found else ""


def axes_of(groups, shape):
    """Names the mesh axes that a collective's groups go over, such as ("fsdp",).

    Args:
        groups: text of replica groups or of source and target pairs; "" for all devices.
        shape: {mesh axis: size}; devices are numbered along it, the last axis first.
    """
    names, sizes = list(shape), list(shape.values())
    members = _members(groups, math.prod(sizes))
    varying = set()
    for group in members:
        places = np.array(np.unravel_index(group, sizes))
        varying |= {name for name, row in zip(names, places, strict=True) if len(set(row)) > 1}
    return tuple(name for name in names if name in varying)


def _members(groups, count):
    """Lists the first of each kind of group: [[device, …], …]."""
    whole = [list(range(count))]
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", groups)
    mesh = re.match(r"mesh\[(.*?)\] \{(.*?)\}", groups)
    if iota:
        shape, dims, turn = ([int(n) for n in (g or "").split(",") if n] for g in iota.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        return (devices.transpose(turn) if turn else devices).reshape(shape).tolist()
    if mesh:
        sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        devices = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        over = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", mesh[2])]
        first = [slice(None) if i in over else 0 for i in range(len(sizes))]
        return [devices[tuple(first)].ravel().tolist()]
    found = [[int(n) for n in part.split(",") if n] for part in re.findall(r"\{([\d,]*)\}", groups)]
    return [group for group in found if group] or whole


def _goes_on(instruction, called):
    """Whether a fusion carries on a collective that another has begun, and counted.

    Where a TPU sends while it computes, the same collective stands in the fusion that starts it, in
    every product that it goes on beside, and in the one that waits for it.
    """
    begun = called.startswith("async_collective_fusion")
    return begun or instruction.name.startswith("async-collective-done")


def _result_bytes(instruction):
    """Bytes of a collective's result; a "-start" gives (operands, results, …)."""
    if not (instruction.opcode.endswith("-start") and instruction.type.startswith("(")):
        return size_bytes(instruction.type)
    parts = arrays(instruction.type)
    count = len(operands(instruction))
    return sum(BYTES[d] * math.prod(s) for d, s in parts[count : 2 * count] or parts)


def trips(computations, condition):
    """How often a loop runs: the largest integer constant that its condition compares with."""
    seen, todo, bounds = set(), [condition], []
    while todo:
        name = todo.pop()
        seen.add(name)
        for instruction in computations[name].values():
            if instruction.opcode == "constant" and instruction.type.startswith("s32[]"):
                bounds.append(int(instruction.rest.partition(")")[0]))
            todo += [called for called in _CALLED.findall(instruction.rest) if called not in seen]
    if not bounds:
        raise ValueError(f"no bound in the condition {condition} of a loop")
    return max(bounds)


def _product_flops(computation, instruction):
    """2 x products of a dot or a convolution; the TPU compiler writes dots as convolutions.

    A window over a batch dimension meets padding everywhere but once for each output, so of a
    window's places only those that meet input count.
    """
    (_, out), *_ = arrays(instruction.type)
    left, right = (computation[name].type for name in operands(instruction)[:2])
    (_, a), *_ = arrays(left)
    (_, b), *_ = arrays(right)
    if instruction.opcode == "dot":
        dims = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.rest)[1]
        return 2.0 * math.prod(out) * math.prod(a[int(d)] for d in dims.split(",") if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.rest)
    inputs = b[labels[2].index("i")]
    spatial = sorted(c for c in labels[2] if c.isdigit())
    places = 1.0
    window = _window(instruction.rest, len(spatial))
    for d, kept in zip(spatial, window, strict=True):
        size_in, size_out = a[labels[1].index(d)], out[labels[3].index(d)]
        places *= _meetings(size_in, size_out, **kept) / size_out
    return 2.0 * math.prod(out) * inputs * places


def _window(text, rank):
    """Returns [{size, stride, low, lhs_dilate, rhs_dilate}] of a convolution's window."""
    found = re.search(r"window=\{([^}]*)\}", text)
    fields = dict(part.split("=") for part in found[1].split()) if found else {}

    def numbers(name, default):
        # Padding is "low_high" for each dimension; what is low places the window.
        parts = fields[name].split("x") if name in fields else [default] * rank
        return [int(part.split("_")[0]) for part in parts]

    defaults = dict(size="1", stride="1", pad="0", lhs_dilate="1", rhs_dilate="1")
    columns = zip(*(numbers(*item) for item in defaults.items()), strict=True)
    names = ("size", "stride", "low", "lhs_dilate", "rhs_dilate")
    return [dict(zip(names, column, strict=True)) for column in columns]


def _meetings(size_in, size_out, *, size, stride, low, lhs_dilate, rhs_dilate):
    """Pairs (output, place in the window) that meet an input, not padding or a hole."""
    count = 0
    for o in range(size_out):
        for k in range(size):
            at = o * stride - low + k * rhs_dilate
            count += at >= 0 and at % lhs_dilate == 0 and at // lhs_dilate < size_in
    return count
