"""An identity that a result satisfies, and how far from it the numbers are."""

from typing import NamedTuple


class Check(NamedTuple):
    """What must be true of a result, as it was observed.

    Attributes:
        name: what must be equal.
        error: the observed distance; 0 if both sides are equal to the bit.
        tolerance: the largest distance allowed.
        ok: whether the error is at most the tolerance; False if it is NaN.
    """

    name: str
    error: float
    tolerance: float
    ok: bool


def measured(name: str, error: float, tolerance: float) -> Check:
    """The check of an observed distance."""
    return Check(name, error, tolerance, error <= tolerance)
