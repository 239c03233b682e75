"""Examples in files: a JSON object a line, plain or packed (.gz, .zst, …)."""

import json
import pathlib

from jaxllm.config import ConfigError
from jaxllm.data import files

MOST_BYTES = 256 << 20  # of a file of examples


def read(file, named):
    """Returns [(line, {field: value})] of a file of JSON lines.

    Args:
        file: its path.
        named: what gave it, such as a flag; for errors.

    Raises:
        ConfigError: a file that cannot be read, or a line that is no JSON object.
    """
    text = read_text(file, named)
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            example = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{named}={file}, line {number}: {error}") from None
        if not isinstance(example, dict):
            raise ConfigError(
                f'{named}={file}, line {number}: it needs an object such as {{"input": "2 + 2", '
                '"output": "4"}.'
            )
        found.append((number, example))
    if not found:
        raise ConfigError(f"{named}={file} holds no example.")
    return found


def read_text(file, named):
    """Returns the text of a file, plain or packed.

    Raises:
        ConfigError: it cannot be read, is too long or no UTF-8.
    """
    try:
        return files.whole(pathlib.Path(file).expanduser(), MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError, files.CorruptError, files.TooLongError) as error:
        raise ConfigError(f"{named}={file}: {error}") from None
