"""Whether the rows of several sources can stand in one batch."""

from jaxllm.config import ConfigError


def same_arrays(batches, rows):
    """Raises ConfigError unless all sources' rows have the same arrays.

    Plain text and completions do, as a decoder reads both; a class's rows and text do not.

    Args:
        batches: {name of a source: a batch of one row of padding}.
        rows: {name: name of its rows}.
    """
    shapes = {
        name: {key: (x.shape, x.dtype) for key, x in batch.items()}
        for name, batch in batches.items()
    }
    first = next(iter(shapes))
    for name, found in shapes.items():
        if found != shapes[first]:
            raise ConfigError(
                f"config.data.sources: the rows of {name!r} ({rows[name]}: {_told(found)}) cannot "
                f"stand in a batch with those of {first!r} ({rows[first]}: "
                f"{_told(shapes[first])}).\n"
                "  Rows that go together: windows, packed, completion, chat."
            )


def _told(shapes):
    return ", ".join(shapes)
