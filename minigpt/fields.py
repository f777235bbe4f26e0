"""The check of settings: what a field may be is written beside it, as a type and a rule, and `check_fields` reads both.

    n_layer: Annotated[int, Bounds(1, 10_000)] = 12

The parameters of a public function are such fields too, if it is `checked`.
"""

import inspect
import math
import operator
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, fields
from functools import cache, wraps
from typing import (
    Annotated,
    Any,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from minigpt.errors import ConfigError, InputError, MiniGPTError, UnknownOptionError, brief, named, named_ids

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_UNIONS = Union, types.UnionType  # Optional[X] and X | None
BELOW_1, ABOVE_0 = math.nextafter(1, 0), math.nextafter(0, 1)
_MOST_ITEMS = 2**20  # of a range, which alone can name more than anybody has


@dataclass(frozen=True)
class Bounds:
    """The numbers that a field may be.

    Attributes:
        low: the smallest.
        high: the largest. A field without a natural limit gets a number larger than any sensible value, at which
            nothing overflows yet.
        advice: both in words, behind "must be"; made from the two if it is not given.
        below: what is wrong with a smaller number, if more can be said than that it is out of range.
    """

    low: float
    high: float
    advice: str = ""
    below: str = ""

    def fault(self, value: float) -> str:
        """What is wrong with a number, or "" if nothing is."""
        if self.low <= value <= self.high:
            return ""
        return (self.below if value < self.low else "") or "is out of range"


@dataclass(frozen=True)
class Form:
    """What a field may be, where two numbers cannot say it.

    Attributes:
        advice: what it is, in words, behind "must be".
        allows: whether a value of the right type is one.
        wrong: what is wrong with any other value.
    """

    advice: str
    allows: Callable[[Any], object] = lambda _: True
    wrong: str = "cannot be used"

    def fault(self, value: object) -> str:
        """What is wrong with a value of the right type, or "" if nothing is."""
        return "" if self.allows(value) else self.wrong


@cache
def hints(settings: type) -> dict[str, Any]:
    """The fields of a dataclass with their types, and what stands beside these."""
    return get_type_hints(settings, include_extras=True)


def check_fields(settings: object, error: type[MiniGPTError] = ConfigError) -> None:
    """See that each field of a dataclass is of its type, and follows the rule beside it, as the defaults do.

    Raises:
        MiniGPTError: of the given kind, with the first that does not, its value and what it must be.
    """
    known = hints(type(settings))  # type: ignore[arg-type] # a class has a hash
    for field in fields(settings):  # type: ignore[arg-type] # they are a dataclass
        value, default = getattr(settings, field.name), field.default
        # Read from a file, the default is another object. Parts of a tuple could be equal, but of another type.
        same = type(value) is type(default) and isinstance(value, str | int | float) and value == default
        if not (same or value is default):
            check_value(field.name, value, known[field.name], error)


def check_value(name: str, value: Any, hint: object, error: type[MiniGPTError]) -> None:
    """Raise `error` if `name` cannot be `value`: not of the type in `hint`, or against the rule beside the type.

    Of several values, the one that is wrong is named: the whole could be too long to be read.
    """
    kind, rule = _parts(hint)
    # X | None: a value that is not None is checked as X.
    others = [part for part in get_args(kind) if part is not types.NoneType] if get_origin(kind) in _UNIONS else []
    if value is not None and len(others) == 1:
        kind, inner = _parts(others[0])
        rule = rule or inner
    # X | Sequence[X]: each is checked as an X, so of ["a", 3] the error names the 3.
    if (one := _one_of_several(kind)) and value is not None:
        for item in value if matches(value, Sequence) else [value]:
            check_value(name, item, one, error)
        return
    # Items with a rule: "suppress_tokens holds -1", "each in suppress_tokens must be ...".
    for what, item, inner, place in _inside(name, value, kind):
        if not matches(item, inner):
            raise error(f"{what} {brief(item)}", f"{place} must be {_advice(inner)}")
    # The value itself: its type, as in "top_k = 1.5 is of the wrong type (float)", then its rule.
    if not matches(value, kind):
        usual = "is not a choice" if get_origin(kind) is Literal else f"is of the wrong type ({type(value).__name__})"
        wrong = rule.wrong if isinstance(rule, Form) else usual
        raise error(f"{named(name, value)} {wrong}", f"{named(name)} must be {_advice(hint)}")
    off = value is None and types.NoneType in get_args(kind)
    if rule and not off and (fault := rule.fault(value)):
        both = f"at least {rule.low:,} and at most {rule.high:,}" if isinstance(rule, Bounds) else ""
        raise error(f"{named(name, value)} {fault}", f"{named(name)} must be {rule.advice or both}")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function that sees, before it begins, that each argument is what its annotation says, with two exceptions.

    Token ids are left out, because they may also be arrays or tensors, and so are messages, whose errors give a number:
    the function checks them itself, and what no annotation tells. A whole number of numpy's or torch's arrives as
    Python's own.

    Raises:
        InputError: by the call, naming the first argument that is something else, and what it must be.
        UnknownOptionError: by the call, of a name that is neither an argument's nor in the TypedDict of its `**`.
    """
    parameters = inspect.signature(function).parameters.values()
    places = [one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    further = next((one.name for one in parameters if one.kind is one.VAR_KEYWORD), "")

    @cache  # at the first call: an annotation may name what is defined further down
    def rules() -> dict[str, Any]:
        found = get_type_hints(function, include_extras=True)
        return {name: found[name] for name in places if name in found and not _left_to_it(found[name])}

    @cache
    def options() -> set[str]:
        return {*places, *get_args(get_type_hints(function)[further])[0].__annotations__}

    def seen(name: str, value: Any) -> Any:
        if (hint := rules().get(name)) is None:
            return value
        value = _own_number(value, hint)
        check_value(name, value, hint, InputError)
        return value

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in kwargs.keys() - options() if further else ():
            where = f"{function.__module__}.{function.__qualname__}".removesuffix(".__init__")
            raise UnknownOptionError(name, options(), where)
        first = [seen(name, value) for name, value in zip(places, args, strict=False)]
        rest = {name: seen(name, value) for name, value in kwargs.items()}
        return function(*first, *args[len(first) :], **rest)  # type: ignore[arg-type] # the same, seen

    return call


def _left_to_it(hint: Any) -> bool:
    """Whether token ids in a list, or messages, are among what may be given: the function checks these itself."""
    return hint in (Sequence[int], Iterable[int]) or is_typeddict(hint) or any(map(_left_to_it, get_args(hint)))


def _own_number(value: Any, hint: Any) -> Any:
    """A whole number, where one is asked for, as Python's own; anything else as it is."""
    kinds = get_args(kind := _parts(hint)[0]) or (kind,)
    if isinstance(value, int) or not any(_parts(one)[0] is int for one in kinds):
        return value
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return value


def check_ids(
    ids: Iterable[int], vocab_size: int, whose: str = "", error: type[MiniGPTError] = InputError, how: str = ""
) -> None:
    """See that ids lie in the vocabulary.

    Args:
        ids: whole numbers.
        vocab_size: one more than the largest that may be.
        whose: what holds the ids, for the error.
        error: of which kind it is.
        how: how to mend it; by default, which ids there are.

    Raises:
        MiniGPTError: of the given kind, with the first id that does not, and its position.
    """
    for position, token_id in enumerate(ids):
        if not 0 <= token_id < vocab_size:
            what = f"id {brief(token_id)} at position {position} is outside the vocabulary of {vocab_size}"
            advice = f"use ids from 0 to {vocab_size - 1}, made by the tokenizer that belongs to this model"
            raise error(f"{whose}: {what}" if whose else what, how or advice)


def whole_ids(ids: Iterable[int]) -> list[int]:
    """Ids as Python's integers, from numpy's and torch's too.

    Raises:
        TypeError: if they are no list, or one is no whole number; true and false are none.
    """
    found = list(ordered(ids.tolist() if hasattr(ids, "tolist") else ids))
    if bool in map(type, found):
        raise TypeError("true and false are no ids")
    return list(map(operator.index, found))


def ordered(items: Iterable[T]) -> Iterable[T]:
    """The items, if they have an order and an end.

    Raises:
        TypeError: if they are a mapping, a set, bytes or an endless range.
    """
    if isinstance(items, Mapping | Set | bytes) or _endless(items):
        raise TypeError(f"a {type(items).__name__} is no list")
    return items


def check_place(place: int, count: int, what: str, whose: str = "the model has") -> None:
    """Refuse a number of something, counted from 0, of which there are `count`.

    Raises:
        InputError: with how many there are.
    """
    if not 0 <= place < count:
        known = f"one from 0 to {count - 1}" if count > 1 else "0"
        raise InputError(f"there is no {what} {brief(place)}: {whose} {count}", f"choose {known}")


def check_most(k: int, most: int, what: str) -> None:
    """Refuse to show k of something of which there are fewer, or none.

    Raises:
        InputError: with how many there are.
    """
    if not 1 <= k <= most:
        raise InputError(f"{brief(k)} {what} cannot be shown", f"choose from 1 to {most}")


def _inside(name: str, value: Any, kind: object) -> Iterator[tuple[str, object, Any, str]]:
    """The items of a list or a mapping with a rule: how an error begins, the item, its type, and what must be so."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin not in (Sequence, Mapping) or not matches(value, origin) or not _parts(parts[0])[1]:
        return
    yield from ((f"{named(name)} holds", item, parts[0], f"each in {named(name)}") for item in value)
    if origin is Mapping:
        yield from (
            (f"{named(name)} of {named_ids(key)} is", item, parts[1], "each number") for key, item in value.items()
        )


def _parts(hint: object) -> tuple[Any, Bounds | Form | None]:
    """A type, and the rule beside it."""
    kind, *beside = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    kind = getattr(get_origin(kind), "__value__", kind)  # of a `type` statement, such as numpy's NDArray from 2.5 on
    return kind, next((rule for rule in beside if isinstance(rule, Bounds | Form)), None)


def _one_of_several(kind: object) -> Any:
    """X, where a type is X | Sequence[X], or None."""
    parts = get_args(kind) if get_origin(kind) in _UNIONS else ()
    return next((part for part in parts if Sequence[part] in parts), None)  # type: ignore[valid-type]


def matches(value: object, hint: object) -> bool:
    """Whether `value` is of the annotated type. An int counts as a float, a bool never as a number."""
    hint, rule = _parts(hint)
    origin, parts = get_origin(hint) or hint, get_args(hint)
    if rule and not (matches(value, hint) and not rule.fault(value)):  # type: ignore[arg-type]
        return False
    if origin is Literal:
        return any(value is part or (isinstance(value, str) and value == part) for part in parts)
    if origin in _UNIONS:
        return any(matches(value, part) for part in parts)
    if origin is tuple and Ellipsis not in parts:
        return isinstance(value, tuple | list) and len(value) == len(parts) and all(map(matches, value, parts))
    if origin in (Sequence, tuple):
        ours = isinstance(value, origin) and not isinstance(value, str | bytes) and not _endless(value)
        # A shortcut for long lists: if all items have exactly the wanted type, no item is checked one by one.
        return (
            ours
            and (
                set(map(type, value)) <= {*parts[:1]}  # type: ignore[call-overload]
                or all(matches(item, part) for part in parts[:1] for item in value)  # type: ignore[attr-defined]
            )
        )
    if origin is Iterable:  # a tensor without dimensions looks like one
        return isinstance(value, origin) and getattr(value, "ndim", 1) > 0
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)  # finite by the bounds beside it
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is Any or not isinstance(origin, type):
        return origin is Any or value is hint
    if getattr(origin, "_is_protocol", False) and not getattr(origin, "_is_runtime_protocol", False):
        return True
    # Of a compiled model, the original tells what it is.
    return isinstance(value, origin) or isinstance(getattr(value, "_orig_mod", value), origin)


def _endless(value: object) -> bool:
    """Whether a range names more numbers than anybody could want."""
    return isinstance(value, range) and bool(value[_MOST_ITEMS:])


def _advice(hint: object) -> str:
    """What a value of the annotated type must be."""
    kind, rule = _parts(hint)
    if rule and rule.advice:
        return rule.advice
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) in _UNIONS:
        return " or ".join(map(_advice, get_args(kind)))
    if get_origin(kind) is Sequence or Ellipsis in get_args(kind):
        return f"a {'tuple' if get_origin(kind) is tuple else 'list'}, each {_advice(get_args(kind)[0])}"
    if get_origin(kind) in (Callable, Mapping):
        return _HOW_TO_GET[get_origin(kind).__name__]
    name = kind.__name__ if isinstance(kind, type) and get_origin(kind) is None else str(kind)
    return _HOW_TO_GET.get(name, name)


# How to come by what is asked for, where its name does not say it.
_HOW_TO_GET = {
    "Cache": "a cache: KVCache(model.config, batch_size=len(idx))",
    "Callable": "a function",
    "Edit": "an edit, which ablate, patch and knockout make",
    "GPT": 'a GPT: model, tokenizer = minigpt.load_model("gpt2")',
    "GPTConfig": "a GPTConfig: model.config",
    "LoRAConfig": "a LoRAConfig: LoRAConfig(rank=8)",
    "Mapping": "a dict",
    "Module": 'a GPT: model, tokenizer = minigpt.load_model("gpt2")',
    "NoneType": "None",
    "Tensor": "a tensor",
    "TokenBytes": "the model's tokenizer",
    "Tokenizer": "a tokenizer: the model's; if load_model returned None, name one: load_model(..., tokenizer=...)",
    "Trace": "a trace: with minigpt.analysis.trace(model) as t",
    "bool": "true or false",
    "dtype": "a dtype: torch.float32",
    "float": "a number",
    "int": "a whole number",
    "str": 'a text: "..."',
}
