"""The argument parser of all commands: typed flags, help from the settings' docstrings, two-line errors."""

import argparse
import itertools
import re
import shlex
import textwrap
from functools import cache
from importlib import import_module
from typing import Any, NoReturn

import jsonargparse

from minigpt.cli.streams import write_product
from minigpt.config import DEFAULT_PRESET, RunConfig, is_plain, preset
from minigpt.errors import ALIASES, CheckpointError, ConfigError, brief, did_you_mean, nearest

jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)

PARSED_FOR_FLAGS = ("train", "generate")  # the commands that have most of them, asked for what another does not have
KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}  # for errors


class CommandParser(jsonargparse.ArgumentParser):
    """Parses a command's arguments; a mistake becomes a `ConfigError` that names the nearest right flag."""

    def __init__(self, command: str, description: str, examples: str = "") -> None:
        super().__init__(
            prog=f"minigpt {command}",
            usage=f"minigpt {command} [arguments]",
            description=textwrap.fill(description, 80) if "\n" not in description else description,
            epilog=f"examples:\n{examples}" if examples else None,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        # What is a number and no flag, after a flag that wants one: argparse does not know -1e3 and -inf.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf$", re.IGNORECASE)
        self._given: list[str] = []
        self.add_argument("--json", action="store_true", help="print one JSON object on standard output")
        self.add_argument("--debug", action="store_true", help="on an error, show where it was raised")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what is wrong in one line, and how to mend it in another."""
        what, how = " ".join(message.split()), f"see {self.prog} --help"
        flags = {
            action.dest: action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
            for action in self._actions
        }
        if wrong := re.match(r"Parser key \"(.+?)\": Expected a (.+?)\. Got value: (.*)", what):
            flag = flags.get(wrong[1], f"--{wrong[1]}")
            expected = re.sub(r"<class '(\w+)'>", lambda kind: KINDS.get(kind[1], kind[1]), wrong[2])
            expected = re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", expected)
            what = f"{flag} {wrong[3]}: expected {expected}"
        elif unknown := re.match(r"unrecognized arguments: (.*)|Parser key \"(\w+)\": Unable to load config", what):
            words = unknown[1].split() if unknown[1] else [f"--{unknown[2]}"]
            flag = next((word for word in words if word.startswith("-")), words[0]).split("=")[0]
            what = f"unknown argument {flag}"
            how = f"{self._instead(flag) or ''}{how}"
        elif valueless := re.match(r"argument (?:-\w/)?(--\S+): expected (one|at least one) argument", what):
            following = (peek(self._given, valueless[1]) or "") if valueless[1] in self._given else ""
            value = shlex.quote(following) if following.startswith("-") else "..."
            how = f"give a value; one that begins with a dash is written {valueless[1]}={value}"
        elif choice := re.match(r"argument (?:.*/)?(\S+): invalid choice: '(.*)' \(choose from", what):
            known = next(a.choices for a in self._actions if a.choices and flags[a.dest] == choice[1])
            what, how = f"{choice[1]} {brief(choice[2])} is not a choice", did_you_mean(choice[2], known)
        elif missing := re.match(r"the following arguments are required: (.*)", what):
            what = f"missing: {', '.join(flags[name] for name in missing[1].split(', '))}"
            examples = re.sub(r"\s*\\\n\s*", " ", self.epilog or "")  # one of several lines ends them with \
            lines = [line.strip() for line in examples.splitlines()]
            how = next((f"for example: {line}; {how}" for line in lines if line.startswith(self.prog)), how)
        raise ConfigError(what.removeprefix("argument "), how) from ex

    def names(self) -> dict[str, str]:
        """The flags by their last names: learning_rate -> --train.learning_rate."""
        shown = [action for action in self._actions if action.option_strings and action.help != argparse.SUPPRESS]
        return {_last_name(action.option_strings[-1]): action.option_strings[-1] for action in shown}

    def _instead(self, flag: str) -> str | None:
        """What can be typed in the place of a flag that this command does not have: another one, or another command."""
        if not flag.startswith("-"):
            return "a text with spaces is put in quotes; "
        name, ours = _last_name(flag), self.names()
        if found := nearest(name, ours) if name not in ours else [name]:
            return f"did you mean {ours[found[0]]}? "
        theirs = {command: parser_of(command).names() for command in PARSED_FOR_FLAGS}
        for wanted in (name, ALIASES.get(name)):
            for command, flags in theirs.items():
                if wanted in flags:
                    return f"minigpt {command} has {flags[wanted]}; "
        return None

    def add_section(self, name: str, values: object, skip: tuple[str, ...] = ()) -> None:
        """Add a flag `--name.field` for each field of a configuration, whose values are the defaults."""
        self.add_class_arguments(type(values), name, skip=set(skip))
        for action in self._actions:
            if action.option_strings == [f"--{name}"]:
                action.help = argparse.SUPPRESS  # the library's own way to read a section from a file; ours is --config
        self.set_defaults({f"{name}.{key}": value for key, value in vars(values).items() if key not in skip})

    def format_help(self, *arguments: Any, **options: Any) -> str:
        """The help text, with the examples before the flags: they are what most people look for."""
        description, epilog = self.description, self.epilog
        self.description, self.epilog = "\n\n".join(filter(None, (description, epilog))), None
        try:
            text: str = super().format_help(*arguments, **options)
        finally:
            self.description, self.epilog = description, epilog
        return text

    def add_device(self) -> None:
        """Add --device."""
        self.add_argument("--device", default="auto", help=field_help(RunConfig, "device"))

    def parse(self, arguments: list[str]) -> dict[str, Any]:
        """The values of all flags, those of a section as a nested dictionary."""
        self._given = arguments
        parsed = self.parse_args(arguments)
        for action in self._actions:
            for flag in action.option_strings:
                written = peek(arguments, flag)
                if written and type(parsed.get(action.dest)) in (int, float) and not is_plain(written):
                    self.error(f"{flag} {brief(written)}: expected a number written as 10, 0.5 or 1e-3")
        values: dict[str, Any] = parsed.as_dict()
        return values


def parser_of(command: str) -> CommandParser:
    """The parser of a command, with the default settings where it has settings."""
    made: CommandParser = import_module(f"minigpt.cli.{command}").make_parser(
        *([preset(DEFAULT_PRESET)] if command == "train" else [])
    )
    return made


def _last_name(flag: str) -> str:
    return flag.lstrip("-").rsplit(".", 1)[-1].replace("-", "_")


class _HelpFormatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of examples, and says nothing of defaults that are off, or of bounds nobody comes near."""

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r"Annotated\[(\w+), Bounds\(.*?\)\](?=[,)])", r"\1", super()._expand_help(action))

    def _get_help_string(self, action: argparse.Action) -> str:
        off = action.default is None or action.default is False
        return (action.help or "") if off else super()._get_help_string(action)


def field_help(config: type, name: str) -> str:
    """A setting's docstring, for a flag that has another name than the field."""
    parsed = (_docstring(base) for base in config.__mro__ if base is not object)
    return next(" ".join(str(p.description).split()) for doc in parsed for p in doc.params if p.arg_name == name)


@cache
def _docstring(config: type) -> Any:
    from docstring_parser import parse_from_object

    return parse_from_object(config)


def peek(arguments: list[str], flag: str) -> str | None:
    """The value of one flag before the rest is parsed: a preset decides the defaults that --help shows."""
    value = None
    for argument, following in itertools.pairwise([*arguments, ""]):
        if argument == flag:
            value = following
        elif argument.startswith(flag + "="):
            value = argument.split("=", 1)[1]
    return value  # the last one, as in the parser


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output.

    Raises:
        CheckpointError: if a number is infinite or not a number, which JSON cannot hold.
    """
    import json

    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise CheckpointError(
            "the result has a number that is infinite or not a number, which JSON cannot hold",
            "look at it without --json; the model's values overflow",
        ) from None
    # Half a character, as in a path that is not UTF-8, becomes an escape that JSON has too; so do the control
    # characters that JSON allows and terminals obey.
    text = text.encode("utf-8", errors="backslashreplace").decode("utf-8")
    write_product(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")
