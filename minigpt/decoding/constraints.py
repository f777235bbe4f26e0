"""Words that must appear: how far a sequence has come with them, and who gets a place among the beams.

Dynamic beam allocation (Post and Vilar, 2018). By probability alone, beams that begin a required sequence would lose
against those that do not, until it is too late. So each step also considers, for every beam, its own best token and
those that bring it on, and the places are given in turn: to the best of those who have most required tokens in place,
to the best of those who have one less, and so on, and then to the second best of each.

As long as nothing forbids the next required token, the front moves on by one at every step: what is required is written
after as many steps as it has tokens, or before.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from minigpt.decoding.options import contains

_T = TypeVar("_T")


def num_required(required: Sequence[Sequence[int]]) -> int:
    """How many tokens there are in all required sequences."""
    return sum(map(len, required))


def progress(new: Sequence[int], required: Sequence[Sequence[int]]) -> int:
    """How many required tokens are in place.

    All tokens of the sequences that `new` contains; of the others only the one that has come furthest counts: how many
    of its first tokens `new` ends with.
    """
    whole, begun = 0, 0
    for ids in required:
        if contains(new, ids):
            whole += len(ids)
        else:
            begun = max(begun, _begun(new, ids))
    return whole + begun


def next_tokens(new: Sequence[int], required: Sequence[Sequence[int]]) -> set[int]:
    """The tokens that bring `new` on with one of the sequences that it does not contain."""
    return {ids[_begun(new, ids)] for ids in required if not contains(new, ids)}


def in_turn(best_first: Iterable[_T], bank: Callable[[_T], int]) -> list[_T]:
    """The best of the highest bank, of the next one, and so on; then the second best of each, and so on.

    Args:
        best_first: the items.
        bank: how many required tokens an item has in place: all that have equally many are one bank.
    """
    seen: Counter[int] = Counter()
    claims = []
    for item in best_first:
        number = bank(item)
        claims.append((seen[number], -number, item))
        seen[number] += 1
    return [item for *_, item in sorted(claims, key=lambda claim: claim[:2])]


def _begun(new: Sequence[int], ids: Sequence[int]) -> int:
    """The length of the longest beginning of `ids`, but not all of it, that `new` ends with."""
    lengths = range(min(len(new), len(ids) - 1), 0, -1)
    return next((n for n in lengths if list(new[-n:]) == list(ids[:n])), 0)
