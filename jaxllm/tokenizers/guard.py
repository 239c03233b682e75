"""Reading tokenizer files that others made: they may be damaged or hostile.

The libraries behind them are Rust and C++ and may abort the process, eat all memory or hang on
a malformed file, so a file is parsed once in a child process before it is parsed here.
"""

import functools
import os
import pathlib
import subprocess
import sys

from jaxllm.tokenizers.base import TokenizerError

FILE_BYTES = 256 << 20
TIMEOUT_S = 120


def read(path):
    """Returns the bytes of a tokenizer file.

    Raises:
        TokenizerError: no such file, or larger than 256 MiB.
    """
    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise TokenizerError(f"there is no file {str(path)!r} (seen from {pathlib.Path.cwd()}).")
    size = path.stat().st_size
    if size > FILE_BYTES:
        raise TokenizerError(f"{path} has {size:,} bytes; the limit is {FILE_BYTES:,}.")
    return path.read_bytes()


@functools.lru_cache(maxsize=8)
def check(kind, content):
    """Parses a tokenizer file in a child process with limits on memory and time.

    Args:
        kind: "hf" or "sentencepiece".
        content: bytes of the file.

    Raises:
        TokenizerError: it failed there, in whatever way.
    """
    program = pathlib.Path(__file__).with_name("check_file.py")
    command = [sys.executable, "-P", str(program), kind]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    try:
        child = subprocess.run(
            command, input=content, capture_output=True, timeout=TIMEOUT_S, env=environment
        )
    except subprocess.TimeoutExpired:
        raise TokenizerError(f"the {kind} file was not parsed within {TIMEOUT_S} s.") from None
    if child.returncode:
        said = child.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise TokenizerError(
            f"the {kind} file cannot be used; its parser ended with status {child.returncode}: "
            f"{said[-1][:300]}"
        )
