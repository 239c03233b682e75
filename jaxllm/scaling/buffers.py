"""What fills the memory of a compiled program: its largest arrays, and the lines that made them.

The TPU compiler writes where each array lies (`*buffer-assignment.txt`) and, in the program's text,
which lines of Python each instruction comes from.
"""

import pathlib
import re
from typing import NamedTuple

_ALLOCATION = re.compile(r"^allocation \d+: size (\d+),(.*)$")
_VALUE = re.compile(r"^ value: <\d+ ([^\s{]+)\S* @\d+> \(size=(\d+),offset=(\d+)\): (\S+)")
_FRAME = re.compile(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)\}$", re.M)
_LOCATION = re.compile(r"^(\d+) \{file_name_id=(\d+) function_name_id=\d+ line=(\d+) ", re.M)
_NAME = re.compile(r'^(\d+) "(.*)"$', re.M)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = .*metadata=\{([^}]*)\}", re.M)

# Lines that all of a model goes through: whoever calls them is named instead.
_HELPERS = ("jaxllm/models/layers.py", "jaxllm/sharding/by_hand.py", "jaxllm/sharding/wire.py")


class Buffer(NamedTuple):
    """An array of a program.

    Attributes:
        size: bytes, as the device lays it out.
        type: dtype and shape, such as "bf16[32,4,2048,4096]".
        operation: jax's name of what made it.
        line: "file:line" of the innermost frame in this project that is no helper, or "".
    """

    size: int
    type: str
    operation: str
    line: str


def largest(assignment, program, count=12):
    """Returns the largest `Buffer`s that share no memory, the largest first.

    Arrays that live at different times lie in the same place; of those the largest is named, so
    that the sizes together are what fills the memory of temporaries.

    Args:
        assignment: text of the compiler's buffer assignment.
        program: text of the compiled program.
        count: how many.
    """
    values, inside = [], False
    for line in assignment.splitlines():
        allocation = _ALLOCATION.match(line)
        if allocation:
            inside = "preallocated-temp" in allocation[2] and "color" not in allocation[2]
            continue
        value = _VALUE.match(line) if inside else None
        if value:
            values.append((int(value[2]), int(value[3]), value[1], value[4]))
    taken, found = [], []
    made_by = _makers(program)
    for size, offset, name, kind in sorted(values, key=lambda v: (-v[0], v[1])):
        if len(found) == count:
            break
        if all(offset + size <= start or offset >= end for start, end in taken):
            taken.append((offset, offset + size))
            found.append(Buffer(size, kind.partition("{")[0], *made_by.get(name, ("", ""))))
    return found


def _makers(program):
    """{instruction: (operation, "file:line")}."""
    files = dict(_NAME.findall(_table(program, "FileNames")))
    locations = {i: (files.get(f, ""), n) for i, f, n in _LOCATION.findall(program)}
    # Frames are numbered from 1, and a parent is written as its number and one: 1 is none.
    frames = {i: (at, str(int(parent) - 1)) for i, at, parent in _FRAME.findall(program)}

    def line(frame):
        helper = ""
        while frame in frames:
            at, parent = frames[frame]
            file, number = locations.get(at, ("", ""))
            file = _within(file)
            if file and not file.startswith(_HELPERS):
                return f"{file}:{number}"
            helper = helper or (file and f"{file}:{number}")
            frame = parent
        return helper

    found = {}
    for name, metadata in _INSTRUCTION.findall(program):
        operation = re.search(r'op_name="([^"]*)"', metadata)
        frame = re.search(r"stack_frame_id=(\d+)", metadata)
        found[name] = (operation[1] if operation else "", line(frame[1]) if frame else "")
    return found


def _within(file):
    """A file's path from jaxllm/ on, or "" where it is not of this project."""
    parts = pathlib.PurePath(file).parts
    if "site-packages" in parts or "jaxllm" not in parts[:-1]:
        return ""
    return "/".join(parts[len(parts) - 1 - parts[::-1].index("jaxllm") :])


def _table(program, name):
    """The lines of a table at the head of a program's text."""
    start = program.find(f"\n{name}\n")
    return "" if start < 0 else program[start : program.find("\n\n", start + 1)]
