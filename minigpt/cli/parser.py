"""The argument parser of all commands: typed flags, help from the settings' docstrings, two-line errors."""

import argparse
import ast
import inspect
import itertools
import re
import shlex
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import NoneType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from minigpt.cli.streams import WIDTH, write_product
from minigpt.config import RENAMED, is_plain, updated
from minigpt.errors import ALIASES, CheckpointError, ConfigError, brief, did_you_mean, nearest
from minigpt.fields import check_fields

MOST_FLAGS = ("train", "generate")  # the commands that have most of them, asked for what another does not have
_METAVARS: dict[Any, str] = {int: "N", float: "X", bool: "{true,false}", Path: "FILE"}
_EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


# --- from a dataclass to flags, and from a command line to the dataclass

C = TypeVar("C", bound="Command")


@dataclass(frozen=True)
class Flag:
    """How a field of a command's settings is typed, beside its type: `top: Annotated[int, Flag("K")] = 10`.

    Attributes:
        metavar: what the help calls the value.
        positional: whether it is given by its place, without a flag.
        short: a second name, such as -n.
        choices: the words that it can be, where no `Literal` lists them; its help is to name them.
        together: whether several values stand behind one flag; else the flag may be given several times.
        says: the help in the place of the field's docstring: a text, or a class that has a field of that name.
    """

    metavar: str = ""
    positional: bool = False
    short: str = ""
    choices: tuple[str, ...] = ()
    together: bool = False
    says: str | type = ""


@dataclass(frozen=True)
class Section:
    """A field that is a dataclass itself, whose fields become flags: `--train.max_steps`.

    Attributes:
        inline: whether its flags do without its name in front: `--seed`.
        names: field -> flag, where that is not made of the names, and behind a space what the help calls its value;
            None for a field without a flag.
    """

    inline: bool = False
    names: Mapping[str, str | None] = field(default_factory=dict)


NO_FLAG = object()  # beside a field that is worked out, and not typed


@dataclass(frozen=True, kw_only=True)
class Command:
    """The settings of a command. Its docstring is the command's help, and those of its fields are its flags'."""

    examples: ClassVar[str] = ""  # command lines
    more: ClassVar[str] = ""  # what its help says below the flags
    first: ClassVar[tuple[str, ...]] = ()  # the flags that people want most, where there are many
    no_flags: ClassVar[Mapping[str, str]] = {}  # what looks like one -> what decides it instead

    json: bool = False
    """print one JSON object on standard output"""
    debug: bool = False
    """on an error, show where it was raised"""

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of fields that do not stand beside them, because they follow from what was given."""
        return {}

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings, from what was given: field -> value, and of a section such a mapping again."""
        values = cls.defaults(given)
        for name, value in given.items():
            section = isinstance(value, Mapping)
            values[name] = updated(values.get(name) or getattr(cls, name), value) if section else value
        return cls(**values)


def parse(name: str, kind: type[C], arguments: list[str]) -> C:
    """The settings of one command line. If it asks for --help, that is printed, and the process ends.

    Raises:
        ConfigError: if there is no such flag, a value is missing, is not what its field can be, or out of its bounds.
    """
    parser = SettingsParser(name, kind)
    given = parser.given(arguments)
    if asked := given.pop("help", None):
        SettingsParser(name, kind, kind.defaults(given), everything=asked == "all").print_help()
        sys.exit(0)
    settings = kind.of(given)
    try:
        check_fields(settings)
    except ConfigError as error:
        raise ConfigError(*error.renamed(parser.flags())) from None
    return settings


@dataclass(frozen=True)
class _Typed:
    """A field, as it is typed: where it stands in the settings, its flag, its type without None, and its help."""

    path: str
    flag: str
    kind: Any
    typed: Flag
    section: str  # what its flag begins with, such as "train."; else nothing
    about: type  # the dataclass that has it
    default: Any
    optional: bool  # whether it can be None

    @property
    def several(self) -> bool:
        return get_origin(self.kind) is tuple

    @property
    def required(self) -> bool:
        return self.default is MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        kind = get_args(self.kind)[0] if self.several else self.kind
        return self.typed.choices or tuple(map(str, get_args(kind) if get_origin(kind) is Literal else ()))

    @property
    def help(self) -> str:
        says = self.typed.says or self.about
        says = says if isinstance(says, str) else field_docs(says)[self.path.rpartition(".")[2]]
        if self.several and not (self.typed.together or self.typed.positional):
            says += "; may be given several times"
        if self.choices and self.typed.metavar and not self.typed.choices:
            says += f": {', '.join(self.choices)}"
        default = str(self.default).lower() if self.section and isinstance(self.default, bool) else self.default
        off = default is None or default is False or default in ("", MISSING) or isinstance(default, tuple)
        return (says if off else f"{says} (default: {default})").replace("%", "%%")


def _typed_fields(
    kind: type, values: Mapping[str, Any], path: str = "", section: str = "", names: Mapping[str, str | None] = {}
) -> Iterator[_Typed]:
    """The fields of a dataclass and of those in it, its own before those that it inherits.

    Args:
        kind: the dataclass.
        values: field -> default, in the place of the field's own.
        path: where it stands in the settings, such as "run.train.".
        section: what its flags begin with, such as "train.".
        names: path of a field -> its flag, where that is not made of the names; None if it has none.
    """
    hints = get_type_hints(kind, include_extras=True)
    parents = [{own.name for own in fields(base)} for base in kind.__mro__ if is_dataclass(base)]
    for own in sorted(fields(kind), key=lambda own: sum(own.name in inherited for inherited in parents)):
        hint, *beside = get_args(hints[own.name]) if get_origin(hints[own.name]) is Annotated else (hints[own.name],)
        if NO_FLAG in beside:
            continue
        default = values.get(own.name, own.default if own.default_factory is MISSING else own.default_factory())
        where = path + own.name
        if is_dataclass(hint):
            found = next((one for one in beside if isinstance(one, Section)), Section())
            inner = {**names, **{f"{where}.{name}": flag for name, flag in found.names.items()}}
            ahead = section if found.inline else f"{section}{own.name}."
            yield from _typed_fields(cast(type, hint), vars(default), f"{where}.", ahead, inner)
            continue
        typed = next((one for one in beside if isinstance(one, Flag)), Flag())
        usual = f"--{section}{own.name}" if section else f"--{own.name.replace('_', '-')}"
        usual = typed.metavar if typed.positional else usual
        if named := names.get(where, usual):
            flag, _, metavar = named.partition(" ")
            typed = replace(typed, metavar=metavar) if metavar else typed
            kinds = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
            yield _Typed(
                where,
                flag,
                kinds[0],
                typed,
                section if flag == usual else "",
                kind,
                default,
                NoneType in get_args(hint),
            )


class _WholeWords(argparse.RawDescriptionHelpFormatter):
    """Breaks no flag at a hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class SettingsParser(argparse.ArgumentParser):
    """Finds out what was given of a command's settings. A mistake becomes a `ConfigError` that names the right flag.

    Args:
        name: of the command.
        kind: its settings.
        defaults: what its help shows in the place of the fields' own.
        everything: whether its help shows the flags of sections too.
    """

    def __init__(
        self, name: str, kind: type[Command], defaults: Mapping[str, Any] | None = None, everything: bool = False
    ) -> None:
        self._examples, self._no_flags = kind.examples, kind.no_flags
        parts = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
        about = [textwrap.fill(part, WIDTH, break_on_hyphens=False) for part in parts]
        if kind.examples:
            about.append("examples:\n" + textwrap.indent(inspect.cleandoc(kind.examples), "  "))
        super().__init__(
            prog=f"minigpt {name}",
            usage=f"minigpt {name} [arguments]",
            description="\n\n".join(about),
            epilog=kind.more,
            formatter_class=partial(_WholeWords, width=WIDTH),
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,  # so that what comes out is what was given
            exit_on_error=False,
        )
        # What is a number and no flag, after a flag that wants one: argparse does not know -1e3 and -inf.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf$", re.IGNORECASE)
        self.fields = {one.path: one for one in _typed_fields(kind, defaults or {})}
        places, wanted = self.add_argument_group("arguments"), self.add_argument_group("what most people want")
        others = self.add_argument_group("further flags" if kind.first else "flags")
        asked: dict[str, Any] = {"dest": "help", "action": "store_const"}
        sections: dict[str, Any] = {}
        for one in sorted(self.fields.values(), key=lambda one: [*kind.first, one.flag].index(one.flag)):
            group = places if one.typed.positional else wanted if one.flag in kind.first else others
            if one.section:
                if one.section not in sections:
                    title = (one.about.__doc__ or "").splitlines()[0].rstrip(".").partition(":")[0]
                    sections[one.section] = self.add_argument_group(
                        f"--{one.section}*, {title[:1].lower() + title[1:]}"
                    )
                group = wanted if group is wanted else sections[one.section]
            shown = everything or not one.section or group is wanted
            self._add(group, one, shown)
        if sections:
            listed = ", ".join(f"--{section}*" for section in sections)
            (wanted if kind.first else others).add_argument(
                "--help-all", const="all", **asked, help=f"show {listed} too"
            )
        others.add_argument("-h", "--help", const="some", **asked, help="show this help")

    def _add(self, group: Any, one: _Typed, shown: bool) -> None:
        typed = one.typed
        options: dict[str, Any] = {"help": one.help if shown else argparse.SUPPRESS}
        listed = f"{{{','.join(one.choices)}}}" if one.choices else ""
        if one.kind is bool and not one.section:
            options["action"] = argparse.BooleanOptionalAction if one.optional else "store_true"
        else:
            options["metavar"] = typed.metavar or listed or _METAVARS.get(one.kind, "TEXT")
        if one.several:
            options |= (
                {"nargs": "+", "action": "extend"} if typed.together or typed.positional else {"action": "append"}
            )
            if len(pair := typed.metavar.split()) > 1:
                options |= {"metavar": tuple(pair), "nargs": len(pair)}
        if typed.positional:
            if not one.required:
                options["nargs"] = "?"
            group.add_argument(one.path, **options).required = False  # `given` names what is missing
        else:
            group.add_argument(*filter(None, (typed.short, one.flag)), dest=one.path, **options)

    def given(self, arguments: list[str]) -> dict[str, Any]:
        """What was given: field -> value, of a section such a dictionary again; and "help", if that was asked for.

        Raises:
            ConfigError: if there is no such flag, a value is missing, or is not what its field can be.
        """
        try:
            found, unknown = self.parse_known_args(arguments)
        except argparse.ArgumentError as error:
            flag = (error.argument_name or "").split("/")[-1]
            words = arguments[arguments.index(flag) + 1 :] if flag in arguments else []
            value = shlex.quote(words[0]) if words and words[0].startswith("-") else "..."
            way = f"give a value; one that begins with a dash is written {flag}={value}"
            takes = any(one.flag == flag and one.kind is not bool for one in self.fields.values())
            raise self._wrong(f"{error.argument_name}: {error.message}", way if takes else "") from None
        asked = vars(found).pop("help", None)
        given: dict[str, Any] = {"help": asked} if asked else {}
        for path, written in vars(found).items():
            *sections, name = path.split(".")
            place = given
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = self._value(self.fields[path], written)
        if asked:
            return given
        if missing := [one.flag for one in self.fields.values() if one.required and not hasattr(found, one.path)]:
            lines = textwrap.dedent(self._examples).replace("\\\n", "").splitlines()
            example = next(" ".join(line.split()) for line in lines if line.startswith(self.prog))
            raise self._wrong(f"missing: {', '.join(missing)}", f"for example: {example}; see {self.prog} --help")
        if unknown:
            flag = next((word for word in unknown if word.startswith("-")), unknown[0]).split("=")[0]
            raise self._wrong(f"unknown argument {flag}", f"{self._instead(flag)}see {self.prog} --help")
        return given

    def _value(self, one: _Typed, written: Any) -> Any:
        """The value of a field, from the words behind its flag."""
        if not one.several:
            return written if isinstance(written, bool) else self._converted(one, written, one.kind)
        kind = get_args(one.kind)[0]
        return tuple(self._converted(one, word, kind) for word in written)

    def _converted(self, one: _Typed, word: Any, kind: Any) -> Any:
        if isinstance(word, list):  # several words make one value
            return tuple(self._converted(one, part, own) for part, own in zip(word, get_args(kind), strict=True))
        typed = f"{one.flag} {shlex.quote(word)}"
        if one.choices:
            word = RENAMED.get(word, word)
            if word not in one.choices:
                raise ConfigError(f"{one.flag} {brief(word)} is not a choice", did_you_mean(word, one.choices))
            return word
        if kind is bool and word in ("true", "false"):
            return word == "true"
        if kind in (int, float) and any(map(str.isdigit, word)):  # which inf and nan have not
            if not is_plain(word):
                raise self._wrong(f"{typed}: expected a number written as 10, 0.5 or 1e-3")
            with suppress(ValueError):
                return kind(word)
        if kind in _EXPECTED:
            raise self._wrong(f"{typed}: expected {_EXPECTED[kind]}")
        return kind(word)

    def _wrong(self, what: str, how: str = "") -> ConfigError:
        return ConfigError(what, how or f"see {self.prog} --help")

    def names(self) -> dict[str, str]:
        """The flags by their last names: learning_rate -> --train.learning_rate."""
        return {_last_name(one.flag): one.flag for one in self.fields.values() if not one.typed.positional}

    def flags(self) -> dict[str, str]:
        """The flags by the fields that they set: learning_rate -> --train.learning_rate, banned_sequences -> --ban."""
        typed = (one for one in self.fields.values() if not one.typed.positional)
        return {one.path.rpartition(".")[2]: one.flag for one in typed}

    def _instead(self, flag: str) -> str:
        """What can be typed in the place of a flag that this command does not have: another one, or another command."""
        if not flag.startswith("-"):
            return "a text with spaces is put in quotes; "
        if flag in self._no_flags:
            return f"{self._no_flags[flag]}; "
        name, ours = _last_name(flag), self.names()
        if found := nearest(name, ours) if name not in ours else [name]:
            return f"did you mean {ours[found[0]]}? "
        theirs = {command: parser_of(command).names() for command in MOST_FLAGS}
        for wanted in (name, ALIASES.get(name)):
            for command, flags in theirs.items():
                if wanted in flags:
                    return f"minigpt {command} has {flags[wanted]}; "
        return ""


@cache
def field_docs(kind: type) -> dict[str, str]:
    """The docstrings of the fields of a dataclass, each in one line; those of its parents too."""
    found: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if is_dataclass(base)]):
        (node,) = ast.parse(inspect.getsource(cast(type, base))).body
        for before, after in itertools.pairwise(cast(ast.ClassDef, node).body):
            if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(before.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


def parser_of(command: str) -> SettingsParser:
    """The parser of a command."""
    from minigpt.cli.settings import SETTINGS

    return SettingsParser(command, SETTINGS[command])


def flags_of(command: str, rest: Sequence[str] = ()) -> dict[str, str]:
    """The flags of a command by the fields that they set: the one place where a field's name becomes a flag's.

    Args:
        command: its name.
        rest: what was typed behind it; of inspect, a view comes first.
    """
    from minigpt.cli.settings import SETTINGS

    if command == "inspect":
        from minigpt.cli.views.settings import SETTINGS as VIEWS

        return SettingsParser(rest[0], VIEWS[rest[0]]).flags() if rest and rest[0] in VIEWS else {}
    return parser_of(command).flags() if command in SETTINGS else {}


def _last_name(flag: str) -> str:
    return flag.lstrip("-").rsplit(".", 1)[-1].replace("-", "_")


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
