"""`--setting`: how to decode, in the words of one flag."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from minigpt.cli.settings import DEFAULT_SETTINGS, EARLY_STOPPING, OPTIONS
from minigpt.decoding.options import DecodingOptions
from minigpt.errors import InputError, did_you_mean, named, passed

STRATEGIES = get_args(get_type_hints(DecodingOptions)["strategy"])
# The options whose values are words -> what each stands for. A strategy may also be given without its name.
_WORDS = {"strategy": {word: word for word in STRATEGIES}, "early_stopping": EARLY_STOPPING}


@dataclass(frozen=True)
class Setting:
    """How to decode.

    Attributes:
        name: as --setting gives it.
        options: fields of `DecodingOptions`.
    """

    name: str
    options: dict[str, Any]


def parse_settings(texts: Sequence[str]) -> list[Setting]:
    """The settings that every --setting names, to be compared: no two of them are the same.

    Raises:
        InputError: if two are, or as `parse_setting`.
    """
    found = [setting for text in texts for setting in parse_setting(text)]
    for one, other in itertools.combinations(found, 2):
        if DecodingOptions.before_model(**one.options).effect == DecodingOptions.before_model(**other.options).effect:
            raise InputError(
                f"--setting {one.name!r} and {other.name!r} are the same, and nothing can differ",
                "leave one of them out, or change it",
            )
    return found


def parse_setting(text: str) -> list[Setting]:
    """The settings that one --setting names: one for each combination of the values in its lists.

    Raises:
        InputError: if it names none, or an option is unknown, is given twice, has an impossible value, or contradicts
            another.
    """
    if not text.strip():
        raise InputError(
            f"--setting {text!r} names no setting", f"write --setting {DEFAULT_SETTINGS[1]!r}, for example"
        )
    strategies = [word for word in text.split() if "=" not in word]
    if len(strategies) > 1 or not set(strategies) <= set(STRATEGIES):
        wrong = next((word for word in strategies if word not in STRATEGIES), strategies[-1])
        raise InputError(
            f"--setting {text!r}: {wrong!r} is neither the one strategy nor an option with a value",
            did_you_mean(wrong, [*STRATEGIES, *(f"{name}=" for name in OPTIONS)]),
        )
    choices: dict[str, list[Any]] = {"strategy": strategies} if strategies else {}
    for name, _, listed in (word.partition("=") for word in text.split() if "=" in word):
        if name in choices:
            raise InputError(f"--setting {text!r} gives {name} twice", f"write {name}=A,B to compare two values")
        choices[name] = [_value(text, name, value) for value in listed.split(",")]
    choices.setdefault("strategy", ["sample"])
    combinations = [dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())]
    return [_checked(text, options) for options in combinations]


def _value(text: str, name: str, value: str) -> Any:
    """The value of an option, parsed from the word after its name."""
    if words := _WORDS.get(name):
        if value not in words:
            raise InputError(f"--setting {text!r}: {name}={value}", f"choose {', '.join(words)}")
        return words[value]
    if name not in OPTIONS:
        raise InputError(f"--setting {text!r}: there is no option {name!r}", did_you_mean(name, {**OPTIONS, **_WORDS}))
    try:
        return OPTIONS[name](value)
    except ValueError:
        kind = "whole number" if OPTIONS[name] is int else "number"
        raise InputError(f"--setting {text!r}: {name}={value} is no {kind}", f"give {name} a {kind}") from None


def _checked(text: str, options: dict[str, Any]) -> Setting:
    """A setting, after checking that its options agree with each other."""
    try:
        DecodingOptions.before_model(**options)
    except InputError as error:
        told = {form("strategy", strategy): strategy for strategy in STRATEGIES for form in (named, passed)}
        what, how = error.renamed(told)  # a strategy is a word here
        raise InputError(f"--setting {text!r}: {what}", how) from error
    words = [options["strategy"], *(f"{name}={value}" for name, value in options.items() if name != "strategy")]
    return Setting(" ".join(words), options)
