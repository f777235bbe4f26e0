"""What a field of a settings class may be is data beside the field: its type and its bounds, and one check reads both.

n_layer: Annotated[int, Bounds(1, 10_000)] = 12
"""

import types
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from minigpt.errors import ConfigError, MiniGPTError, brief


@dataclass(frozen=True)
class Bounds:
    """The numbers that a field may be.

    Attributes:
        low: the smallest.
        high: the largest. Where nothing else ends a field it is more than anybody has, and less than what would
            overflow or never end.
        advice: both in words, behind "must be"; made from the two if it is not given.
        wrong: what is wrong with a smaller number.
    """

    low: float
    high: float
    advice: str = ""
    wrong: str = ""

    def check(self, name: str, value: float, error: type[MiniGPTError]) -> None:
        """Raise `error` if the field `name` cannot be `value`."""
        if self.low <= value <= self.high:
            return
        below = self.wrong or ("is out of range" if self.advice else "is too small" if self.low > 0 else "is negative")
        above = "is out of range" if self.advice else "is too large"
        advice = self.advice or f"at least {self.low:,} and at most {self.high:,}"
        wrong = below if value < self.low else above if value > self.high else "is not a number"
        raise error(f"{name} = {brief(value)} {wrong}", f"{name} must be {advice}")


def check_fields(settings: object, error: type[MiniGPTError] = ConfigError) -> None:
    """See that each field of a dataclass is of its type, and within the bounds beside it.

    Raises:
        MiniGPTError: of the given kind, with the first that is not, its value and what it must be.
    """
    for name, hint in get_type_hints(type(settings), include_extras=True).items():
        check_value(name, getattr(settings, name), hint, error)


def check_value(name: str, value: Any, hint: object, error: type[MiniGPTError]) -> None:
    """Raise `error` if `name` cannot be `value`: not of the type in `hint`, or outside the bounds beside the type."""
    kind, *beside = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if not _matches(value, kind):
        wrong = "not a choice" if get_origin(kind) is Literal else f"of the wrong type ({type(value).__name__})"
        raise error(f"{name} = {brief(value)} is {wrong}", f"{name} must be {_type_name(kind)}")
    for bounds in beside:
        bounds.check(name, value, error)


def _matches(value: object, hint: object) -> bool:
    """Whether `value` is of the annotated type. An int counts as a float, a bool never as a number."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_matches(value, part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_matches(item, get_args(hint)[0]) for item in value)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)  # finite by the bounds beside it
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint) if isinstance(hint, type) else False


def _type_name(hint: object) -> str:
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(hint))
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
