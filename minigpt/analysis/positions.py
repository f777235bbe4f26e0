"""Token positions as a caller names them: one, several, a slice or all; negative ones count from the end of a pass."""

import operator
from collections.abc import Iterable, Sequence

from minigpt.config import GPTConfig
from minigpt.errors import InputError, brief
from minigpt.fields import ordered

# Which token positions: one, several, a slice, or None for all; negative ones count from the end of a pass.
At = int | Sequence[int] | slice | None
Places = tuple[int, ...] | slice | None  # `At` after `normal`: a single position and a list are both tuples


def normal(at: object) -> Places:
    """The positions that a caller gave, as `Places`.

    Raises:
        InputError: if `at` names no positions.
    """
    try:
        if at is None or (isinstance(at, slice) and range(0)[at] is not None):
            return at
        places = tuple(map(operator.index, ordered(at) if isinstance(at, Iterable) else [at]))
    except (TypeError, ValueError):
        places = ()
    if not places:
        raise InputError(
            f"{brief(at)} names no positions", "give a number, a list of numbers, a slice, or None for all"
        )
    return places


def check_in_context(at: Places, config: GPTConfig) -> None:
    """Check that each position that is named as a number lies within block_size.

    Raises:
        InputError: if one does not.
    """
    for place in at if isinstance(at, tuple) else ():
        if not -config.block_size <= place < config.block_size:
            raise InputError(
                f"there is no position {place}: the model's block_size is {config.block_size}",
                f"choose one from 0 to {config.block_size - 1}, or from -1 backwards for the end of a pass",
            )


def counts_from_end(at: Places) -> bool:
    """Whether a position counts from the end of a pass."""
    numbers = at if isinstance(at, tuple) else () if at is None else (at.start or 0, at.stop or 0)
    return min(numbers, default=0) < 0


def check_fixed(from_end: bool, continued: bool, what: str) -> None:
    """Check that no position counts from the end of a pass that continues a cache, where that end moves on.

    Raises:
        InputError: if one does; the error says that `what` counts from the end.
    """
    if from_end and continued:
        raise InputError(
            f"{what} counts from the end, and a pass that continues a cache has no end of its own",
            "give the positions themselves, from 0 on, or go without a cache",
        )


def chosen(at: Places, positions: range) -> list[int]:
    """Those of the positions that `at` names; the last of them is the last token so far, from which -1 counts."""
    if at is None:
        return list(positions)
    so_far = range(positions.stop)
    meant = so_far[at] if isinstance(at, slice) else [place if place >= 0 else place + len(so_far) for place in at]
    return [place for place in positions if place in meant]
