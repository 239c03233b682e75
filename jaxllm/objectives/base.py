"""What every objective returns."""

from typing import Any, NamedTuple


class Loss(NamedTuple):
    """Sums over a piece of a batch; the step adds pieces up and divides once.

    Attributes:
        total: what the gradient is taken of, summed over the piece, in nats.
        count: what it is counted in (tokens, pairs), float32.
        sums: {metric: sum over the piece}; "loss" is reported where it is present.
    """

    total: Any
    count: Any
    sums: dict
