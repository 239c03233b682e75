"""Headers of GGUF files are hostile until checked: a clear error each, in bounded memory."""

import resource
import struct
import subprocess
import sys

import pytest

from jaxllm.models.weights.gguf_header import read_header
from jaxllm.models.weights.tensors import WeightsError
from tests.gguf_helpers import entry, file, key, text

U32, STRING, ARRAY = 4, 8, 9
HUGE = 1 << 60
NAME = key("general.architecture", STRING, text("llama"))


def array(kind, count, content=b""):
    return key("a", ARRAY, struct.pack("<IQ", kind, count) + content)


GOOD = file([NAME], [entry("t", (4, 2))], bytes(32))
MALFORMED = {
    "empty": (b"", "fewer than 24 bytes"),
    "short": (b"GGUF", "fewer than 24 bytes"),
    "magic": (file(magic=b"GGML"), "does not begin with GGUF"),
    "version 1": (file(version=1), "of version 1"),
    "version 4": (file(version=4), "of version 4"),
    "byte order": (file(version=3 << 24), "other byte order"),
    "too many tensors": (file(counts=(HUGE, 0)), "said to hold .* tensors"),
    "too many keys": (file(counts=(0, HUGE)), "said to hold .* keys"),
    "fewer keys than said": (file([NAME], counts=(0, 2)), "a key has no name"),
    "long key": (file([struct.pack("<Q", HUGE) + b"x" * 64]), "a key's name is said to have"),
    "no key name": (file([key("", U32, bytes(4))]), "a key has no name"),
    "key twice": (file([NAME, NAME]), "'general.architecture' twice"),
    "key no UTF-8": (file([key(b"\xff\xfe", U32, bytes(4))]), "no UTF-8"),
    "value type": (file([key("a", 13, bytes(32))]), "of type 13"),
    "long string": (file([key("a", STRING, struct.pack("<Q", HUGE))]), "said to have"),
    "string beyond the end": (file([key("a", STRING, struct.pack("<Q", 999))]), "ends within"),
    "long array": (file([array(U32, HUGE)]), "said to hold .* elements"),
    "many empty strings": (file([array(STRING, 5_000_000, bytes(8))]), "said to hold"),
    "array in an array": (file([array(ARRAY, 1, bytes(64))]), "array of type 9"),
    "half a truth": (file([key("a", 7, b"\2")]), "neither true nor false"),
    "alignment 0": (file([key("general.alignment", U32, bytes(4))]), "no power of two"),
    "alignment 24": (file([key("general.alignment", U32, b"\x18\0\0\0")]), "no power of two"),
    "alignment text": (file([key("general.alignment", STRING, text("32"))]), "no power of two"),
    "no dimensions": (file([], [entry("t", ())], bytes(64)), "0 dimensions"),
    "many dimensions": (file([], [entry("t", (1,) * 9)], bytes(64)), "9 dimensions"),
    "dimension 0": (file([], [entry("t", (4, 0))], bytes(64)), "the shape"),
    "absurd dimension": (file([], [entry("t", (HUGE,))], bytes(64)), "the shape"),
    "overflowing shape": (
        file([], [entry("t", (1 << 31,) * 4)], bytes(64)),
        "ends at byte",
    ),
    "tensor type": (file([], [entry("t", (32,), 99)], bytes(64)), "of type 99"),
    "half a block": (file([], [entry("t", (33,), 8)], bytes(64)), "no multiple of 32"),
    "no tensor name": (file([], [entry("", (4,))], bytes(64)), "tensor ''"),
    "tensor twice": (
        file([], [entry("t", (8,)), entry("t", (8,), 0, 32)], bytes(64)),
        "'t' twice",
    ),
    "tensor beyond the end": (file([], [entry("t", (99,))], bytes(64)), "ends at byte"),
    "place beyond the end": (file([], [entry("t", (4,), 0, 1 << 62)], bytes(64)), "ends at byte"),
    "place off the grid": (file([], [entry("t", (4,), 0, 4)], bytes(64)), "no multiple of 32"),
    "overlapping": (
        file([], [entry("t", (16,)), entry("u", (8,), 0, 32)], bytes(128)),
        "lies over another",
    ),
    "cut short": (GOOD[:-1], "ends at byte"),
}


def test_a_sound_header_is_read(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(GOOD)
    keys, (found,) = read_header(path)
    assert keys == {"general.architecture": "llama"}
    assert (found.name, found.shape, found.kind, found.bytes) == ("t", (2, 4), "F32", 32)
    assert found.start == len(GOOD) - 32


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_header_is_an_error(name, tmp_path):
    content, said = MALFORMED[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read_header(path)


def test_a_header_cut_anywhere_is_an_error(tmp_path):
    path = tmp_path / "a.gguf"
    for end in range(len(GOOD)):
        path.write_bytes(GOOD[:end])
        with pytest.raises(WeightsError):
            read_header(path)


def test_malformed_headers_take_no_memory(tmp_path):
    """All of them in a process that may have 200 MB more than it starts with."""
    for i, (content, _) in enumerate(MALFORMED.values()):
        (tmp_path / f"{i}.gguf").write_bytes(content)
    program = f"""
import pathlib, resource
from jaxllm.models.weights.gguf_header import read_header
from jaxllm.models.weights.tensors import WeightsError
size = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * {resource.getpagesize()}
resource.setrlimit(resource.RLIMIT_AS, (size + 200_000_000,) * 2)
for path in pathlib.Path({str(tmp_path)!r}).glob("*.gguf"):
    try:
        read_header(path)
    except WeightsError:
        continue
    raise SystemExit(f"{{path}} was read")
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
