"""An identity that a result satisfies, and how far from it the numbers are."""

from typing import NamedTuple


class Check(NamedTuple):
    """What must be true of a result, as it was observed.

    Attributes:
        name: what must be equal.
        error: the observed distance; 0 where it is to the bit.
        tolerance: the largest distance allowed.
        ok: whether the error is within that; never, if it is not a number.
    """

    name: str
    error: float
    tolerance: float
    ok: bool


def measured(name: str, error: float, tolerance: float) -> Check:
    """An observed distance, judged."""
    return Check(name, error, tolerance, error <= tolerance)
