"""From a dataclass to a command line and back: a class of settings defines a command's flags and help.

The settings of a command are a child of `Command`. Each field is a flag: its type says what values the flag takes, its
docstring what it does, and a `Flag` beside the type everything else. Parsing gives only the flags that were typed, so
that a preset and a file can decide the rest.
"""

import argparse
import ast
import inspect
import itertools
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, Generic, Literal, Self, TypeVar, dataclass_transform, get_args, get_origin

from minigpt.cli.streams import print_note
from minigpt.config import is_plain, updated
from minigpt.errors import ALIASES, ConfigError, brief, did_you_mean, nearest, quoted
from minigpt.fields import check_fields, hints
from minigpt.system import WIDTH
from minigpt.system.files import named_path

_METAVARS: dict[Any, str] = {int: "N", float: "X", bool: "{true,false}", Path: "FILE", str: "TEXT"}
# Metavars of what has a name, never "", and may be a path.
_THINGS = ("DIR", "FILE", "FILE.yaml", "MODEL", "REPORT", "RUN", "SOURCE", "SRC", "T")
WEIGHTS = (".safetensors", ".bin", ".pt")  # endings of files that are models
_EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}


# --- how a command describes its settings


@dataclass(frozen=True)
class Flag:
    """How a field is given on the command line, beside its type: `top: Annotated[int, Flag("K")] = 10`.

    Attributes:
        metavar: what the help calls the value.
        name: the flag's name, if it is not made from the field's name.
        hidden: whether the field has no flag.
        positional: whether it is given by its place, without a flag.
        short: a second name, such as -n.
        choices: the possible words, if no `Literal` lists them; the help must name them.
        together: whether one flag takes several values; otherwise the flag may be given several times.
        says: the help, instead of the field's docstring: a text, or a class that has a field of this name.
    """

    metavar: str = ""
    name: str = ""
    hidden: bool = False
    positional: bool = False
    short: str = ""
    choices: tuple[str, ...] = ()
    together: bool = False
    says: str | type = ""


@dataclass(frozen=True)
class Section:
    """A field that is a dataclass itself, whose fields become flags: `--train.max_steps`.

    Attributes:
        inline: whether its flags lack its name in front: `--seed`.
        flags: field -> its `Flag`, for fields of the library's classes, which have none beside their types.
    """

    inline: bool = False
    flags: Mapping[str, Flag] = field(default_factory=dict)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class _Settings:
    """Makes every child a dataclass whose fields have names and stay as they are."""

    def __init_subclass__(cls) -> None:
        dataclass(frozen=True, kw_only=True)(cls)


class Command(_Settings):
    """The settings of a command. The class's docstring is the command's help, those of its fields the flags' help."""

    examples: ClassVar[str] = ""  # command lines
    more: ClassVar[str] = ""  # the end of the help, below the flags
    first: ClassVar[tuple[str, ...]] = ()  # the flags that people want most, if there are many
    no_flags: ClassVar[Mapping[str, str]] = {}  # a word that looks like a flag -> what decides this value instead
    # field -> what it needs to change anything: a flag, or a flag with a value ("--draft", "--mode resample"), or that
    # a flag is not there ("no --norms"). "A or B and C" wants one of A and B, and also C.
    needs: ClassVar[Mapping[str, str]] = {}

    json: bool = False
    """print one JSON object on standard output"""
    debug: bool = False
    """on an error, show where it was raised"""

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Defaults that depend on the flags that were given: field -> value."""
        return {}

    def refuse_needless(self, given: Mapping[str, Any]) -> None:
        """Refuse a given flag that would change nothing, where `needs` cannot say why. Raises ConfigError."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings from the flags that were given: field -> value, for a section such a mapping again."""
        values = cls.defaults(given)
        for name, value in given.items():
            section = isinstance(value, Mapping)
            values[name] = updated(values.get(name) or getattr(cls, name), value) if section else value
        return cls(**values)


# --- from fields to flags


@dataclass(frozen=True)
class TypedField:
    """A field that can be typed.

    Attributes:
        path: its place in the settings, such as config.train.max_steps.
        flag: what is typed; for a positional field, its name in the help.
        kind: its type, without None.
        optional: whether it can be None.
        default: its value if it is not given; `MISSING` if it must be given.
        flag_options: how it is given on the command line.
        section: how its flag begins, such as "train.", or "".
        about: the dataclass that has it.
    """

    path: str
    flag: str
    kind: Any
    optional: bool
    default: Any
    flag_options: Flag
    section: str
    about: type

    @property
    def name(self) -> str:
        """The field's name, without the path."""
        return self.path.rpartition(".")[2]

    @property
    def several(self) -> bool:
        """Whether it takes any number of values."""
        return get_origin(self.kind) is tuple

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING

    @property
    def choices(self) -> tuple[str, ...]:
        """The possible words; empty if any word is possible."""
        kind = get_args(self.kind)[0] if self.several else self.kind
        return self.flag_options.choices or (get_args(kind) if get_origin(kind) is Literal else ())

    @property
    def names_a_thing(self) -> bool:
        """Whether each word is the name of something, such as a file or a model."""
        kind, metavar = get_args(self.kind)[0] if self.several else self.kind, self.flag_options.metavar
        may_be_left_out = self.optional and metavar not in ("", "TEXT", "TOKEN")
        return kind is Path or (kind is str and (may_be_left_out or metavar in _THINGS))

    @property
    def help(self) -> str:
        """The help: what the flag does, and its default unless that means "off"."""
        says = self.flag_options.says or self.about
        says = says if isinstance(says, str) else field_docs(says)[self.name]
        if self.several and not (self.flag_options.together or self.flag_options.positional):
            says += "; may be given several times"
        if self.choices and self.flag_options.metavar and not self.flag_options.choices:
            says += f": {', '.join(self.choices)}"
        default = str(self.default).lower() if self.section and isinstance(self.default, bool) else self.default
        off = default is None or default is False or default in ("", MISSING) or isinstance(default, tuple)
        return (says if off else f"{says} (default: {default})").replace("%", "%%")

    def value(self, written: Any) -> Any:
        """The value, from the words after the flag.

        Raises:
            ConfigError: if the field cannot have this value.
        """
        if not self.several:
            return written if isinstance(written, bool) else self._converted(written, self.kind)
        kind = get_args(self.kind)[0]
        return tuple(self._converted(word, kind) for word in written)

    def _converted(self, word: Any, kind: Any) -> Any:
        if isinstance(word, list):  # several words make one value
            return tuple(self._converted(part, own) for part, own in zip(word, get_args(kind), strict=True))
        if not word and self.names_a_thing:  # as a variable of a shell that is not set
            way = f"give {self.flag} a name{'' if self.required else ', or leave it out'}"
            if self.path.startswith("config.") and self.default in ("", ()):  # a setting that a preset may have
                *sections, last = self.path.split(".")[1:]
                none = f"{last}: {'[]' if self.several else repr('')}"
                none = f"{sections[0]}: {{{none}}}" if sections else none
                way += f"; a preset's is taken away by a --config file with the line {none}"
            raise ConfigError(f"{self.flag} is empty, and names nothing", way)
        if self.choices:
            if word not in self.choices:
                raise ConfigError(f"{self.flag} {brief(word)} is not a choice", did_you_mean(word, self.choices))
            return word
        if kind is bool and word in ("true", "false"):
            return word == "true"
        expected = _EXPECTED.get(kind)
        if kind in (int, float) and any(map(str.isdigit, word)):  # "inf" and "nan" have no digit
            if is_plain(word):
                with suppress(ValueError):
                    return kind(word)
            else:
                expected = "a number written as 10, 0.5 or 1e-3"
        if expected:
            raise ConfigError(f"{self.flag} {quoted(word)}: expected {expected}", "")
        if kind is Path:
            return named_path(word, self.flag)
        # A shell puts the home folder in place of ~ at the beginning of a word, and not in --data=~/texts.
        return os.path.expanduser(word) if self.flag_options.metavar in _THINGS else kind(word)


def typed_fields(
    settings: type, values: Mapping[str, Any], path: str = "", section: str = "", flags: Mapping[str, Flag] = {}
) -> Iterator[TypedField]:
    """The fields of a dataclass, and of the dataclasses in it, that can be typed; its own fields before inherited ones.

    A field whose value cannot be written as words, such as a list of token ids, has no flag.

    Args:
        settings: the dataclass.
        values: field -> default, instead of the field's own.
        path: the dataclass's place in the settings, such as "config.train.".
        section: how its flags begin, such as "train.".
        flags: path of a field -> its `Flag`, if there is none beside its type.
    """
    parents = [{own.name for own in fields(base)} for base in settings.__mro__ if is_dataclass(base)]
    for own in sorted(fields(settings), key=lambda own: sum(own.name in inherited for inherited in parents)):
        hint = hints(settings)[own.name]
        hint, *beside = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        default = values.get(own.name, own.default if own.default_factory is MISSING else own.default_factory())
        where = path + own.name
        if isinstance(hint, type) and is_dataclass(hint):
            found = next((one for one in beside if isinstance(one, Section)), Section())
            inner = {**flags, **{f"{where}.{name}": flag for name, flag in found.flags.items()}}
            ahead = section if found.inline else f"{section}{own.name}."
            inside = {} if default is MISSING else vars(default)
            yield from typed_fields(hint, inside, f"{where}.", ahead, inner)
            continue
        kinds = [one for one in get_args(hint) if one is not NoneType] if NoneType in get_args(hint) else [hint]
        own_flag = flags.get(where) or next((one for one in beside if isinstance(one, Flag)), Flag())
        if own_flag.hidden or len(kinds) > 1 or not _is_spelled(kinds[0]):
            continue
        usual = f"--{section}{own.name}" if section else f"--{own.name.replace('_', '-')}"
        yield TypedField(
            path=where,
            flag=own_flag.metavar if own_flag.positional else own_flag.name or usual,
            kind=kinds[0],
            optional=NoneType in get_args(hint),
            default=default,
            flag_options=own_flag,
            section="" if own_flag.name else section,
            about=settings,
        )


def _is_spelled(kind: Any) -> bool:
    """Whether a word can be a value of this type; or several words, if the type is (T, ...)."""
    if get_origin(kind) is tuple:
        return get_args(kind)[-1] is Ellipsis
    return kind in _METAVARS or get_origin(kind) is Literal


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module, parsed once; `inspect.getsource` of a class would parse its module for every class."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}


@cache
def field_docs(settings: type) -> dict[str, str]:
    """The docstrings of the fields of a dataclass, each in one line; those of its parents too."""
    found: dict[str, str] = {}
    for base in reversed([base for base in settings.__mro__ if is_dataclass(base)]):
        for before, after in itertools.pairwise(_classes(base.__module__)[base.__name__].body):
            if isinstance(before, ast.AnnAssign) and isinstance(after, ast.Expr):
                found[ast.unparse(before.target)] = " ".join(str(ast.literal_eval(after.value)).split())
    return found


# --- from a command line to settings

C = TypeVar("C", bound=Command)


class SettingsParser(argparse.ArgumentParser, Generic[C]):
    """Parses the settings of a command. A mistake becomes a `ConfigError` that names the right flag.

    Args:
        name: of the command.
        settings: its class of settings.
        defaults: the defaults that its help shows, instead of the fields' own.
        everything: whether its help shows the flags of sections too.
        others: other commands, to name the one that has a flag which this command lacks.

    Attributes:
        fields: what can be typed, by their paths.
        debug: whether the command line has --debug, so that an error shows where it was raised.
    """

    def __init__(
        self,
        name: str,
        settings: type[C],
        defaults: Mapping[str, Any] | None = None,
        everything: bool = False,
        others: Mapping[str, type[Command]] = {},
    ) -> None:
        self.settings = settings
        self.others = others
        self.debug = False
        self.fields = {one.path: one for one in typed_fields(settings, defaults or {})}
        parts = inspect.cleandoc(settings.__doc__ or "").split("\n\n")
        about = [textwrap.fill(part, WIDTH, break_on_hyphens=False) for part in parts]
        about.append("examples:\n" + textwrap.indent(inspect.cleandoc(settings.examples), "  "))
        super().__init__(
            prog=f"minigpt {name}",
            usage=" ".join([f"minigpt {name}", *filter(None, map(_place, self.fields.values())), "[flags]"]),
            description="\n\n".join(about),
            epilog=settings.more,
            formatter_class=partial(_WholeWords, width=WIDTH),
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,  # so that the result holds only the flags that were given
            exit_on_error=False,
        )
        self.overruled: list[str] = []
        # These words are numbers, not flags: argparse by itself does not recognise -1e3 and -inf as numbers.
        self._negative_number_matcher = re.compile(r"-(\d+\.?\d*|\.\d+)(e[-+]?\d+)?$|-inf$", re.IGNORECASE)
        self._add_flags(everything)

    def _add_flags(self, everything: bool) -> None:
        """Add all flags, in the help's groups: positional ones, what most people want, all others, and the sections."""
        first = self.settings.first
        places, wanted = self.add_argument_group("arguments"), self.add_argument_group("what most people want")
        others = self.add_argument_group("further flags" if first else "flags")
        sections: dict[str, Any] = {}
        for one in sorted(self.fields.values(), key=lambda one: [*first, one.flag].index(one.flag)):
            group = places if one.flag_options.positional else wanted if one.flag in first else others
            if one.section:
                if one.section not in sections:
                    title = (one.about.__doc__ or "").splitlines()[0].rstrip(".").partition(":")[0]
                    title = f"--{one.section}*, {title[:1].lower() + title[1:]}"
                    sections[one.section] = self.add_argument_group(title)
                group = wanted if group is wanted else sections[one.section]
            options = _options(one)
            if one.section and group is not wanted and not everything:
                options["help"] = argparse.SUPPRESS
            if one.flag_options.positional:
                group.add_argument(one.path, **options).required = False  # `given` names what is missing
            else:
                group.add_argument(*filter(None, (one.flag_options.short, one.flag)), dest=one.path, **options)
        asked: dict[str, Any] = {"dest": "help", "action": "store_const"}
        if sections:
            says = f"show {', '.join(f'--{section}*' for section in sections)} too"
            (wanted if first else others).add_argument("--help-all", const="all", **asked, help=says)
        others.add_argument("-h", "--help", const="some", **asked, help="show this help")

    def parse(self, arguments: list[str]) -> C:
        """The settings of one command line. With --help, the help is printed and the process ends.

        Raises:
            ConfigError: if a flag is unknown, or a value is missing or impossible for its field.
        """
        given = self.given(arguments)
        if asked := given.pop("help", None):
            name = self.prog.removeprefix("minigpt ")
            defaults = self.settings.defaults(given)
            SettingsParser(name, self.settings, defaults, everything=asked == "all").print_help()
            sys.exit(0)
        settings = self.settings.of(given)
        try:
            check_fields(settings)
        except ConfigError as error:
            raise ConfigError(*error.renamed(self.flags())) from None
        for name, needed in ((name, one) for name, all_of in settings.needs.items() for one in all_of.split(" and ")):
            if name in given and not any(self._is_met(need, settings) for need in needed.split(" or ")):
                flag, beside = self.fields[name].flag, needed.removeprefix("no ")
                way = f"add {needed}, or leave {flag} out" if beside == needed else "leave one of the two out"
                raise self._wrong(f"{flag} would change nothing with{'out' * (beside == needed)} {beside}", way)
        settings.refuse_needless(given)
        for line in self.overruled:
            print_note(line)
        self._check_kept(settings)
        self._note_things(settings)
        return settings

    def _is_met(self, need: str, settings: C) -> bool:
        """Whether settings have what one of their `needs` names."""
        flag, _, value = need.removeprefix("no ").partition(" ")
        one = next(one for one in self.fields.values() if one.flag == flag)
        found = attrgetter(one.path)(settings)
        return (found == one.value(value) if value else found != one.default) != need.startswith("no ")

    def given(self, arguments: list[str]) -> dict[str, Any]:
        """The flags that were given: field -> value, for a section such a dictionary again; and "help" for --help.

        Raises:
            ConfigError: where `parse` raises one.
        """
        try:
            found, unknown = self.parse_known_args(arguments)
        except argparse.ArgumentError as error:
            raise self._valueless(error, arguments) from None
        written = vars(found)
        self.debug = written.get("debug", False)
        asked = written.pop("help", None)
        given: dict[str, Any] = {"help": asked} if asked else {}
        for path, words in written.items():
            *sections, name = path.split(".")
            place = given
            for section in sections:
                place = place.setdefault(section, {})
            try:
                place[name] = self.fields[path].value(words)
            except ConfigError as error:
                raise self._wrong(error.what, error.how) from None
        if asked:
            return given
        wrong = next((word for word in unknown if word.startswith("-")), "")  # which may be why something is missing
        missing = [one.flag for one in self.fields.values() if one.required and one.path not in written]
        if missing and not wrong:
            lines = textwrap.dedent(self.settings.examples).replace("\\\n", "").splitlines()
            example = next(" ".join(line.split()) for line in lines if line.startswith(self.prog))
            raise self._wrong(f"missing: {', '.join(missing)}", f"for example: {example}; see {self.prog} --help")
        if unknown:
            flag = wrong.split("=")[0] or unknown[0]
            raise self._wrong(f"unknown argument {flag}", f"{self._instead(flag)}see {self.prog} --help")
        return given

    def flags(self) -> dict[str, str]:
        """Field -> the flag that sets it: learning_rate -> --train.learning_rate, banned_sequences -> --ban."""
        return {one.name: one.flag for one in self.fields.values() if not one.flag_options.positional}

    def names(self) -> dict[str, str]:
        """The last part of a flag's name -> the flag: learning_rate -> --train.learning_rate, ban -> --ban."""
        return {_last_name(flag): flag for flag in self.flags().values()}

    def _wrong(self, what: str, how: str = "") -> ConfigError:
        return ConfigError(what, how or f"see {self.prog} --help")

    def _valueless(self, error: argparse.ArgumentError, arguments: list[str]) -> ConfigError:
        """The error for a flag that lacks its values, or has one that it does not take."""
        flag = (error.argument_name or "").split("/")[-1]
        words = arguments[arguments.index(flag) + 1 :] if flag in arguments else []
        value = quoted(words[0]) if words and words[0].startswith("-") else "..."
        takes = any(one.flag == flag and one.kind is not bool for one in self.fields.values())
        way = f"give a value; one that begins with a dash is written {flag}={value}"
        return self._wrong(f"{error.argument_name}: {error.message}", way if takes else "")

    def _instead(self, flag: str) -> str:
        """Advice for a flag that this command does not have: another flag, or another command that has it."""
        if not flag.startswith("-"):
            taking = self._taking(flag)
            spaces = "a text with spaces is put in quotes; " * any(one.flag == "TEXT" for one in self.fields.values())
            return f"did you mean {' or '.join(taking)}? " if taking else spaces
        if flag in self.settings.no_flags:
            return f"{self.settings.no_flags[flag]}; "
        placed = [one for one in self.fields.values() if one.flag_options.positional]
        places = {word: one.flag for one in placed for word in (one.name, one.flag.lower())}
        places |= {ALIASES[word]: flag for word, flag in places.items() if word in ALIASES}
        name, ours = _last_name(flag), self.names()
        known = places | ours
        if found := nearest(name, known) if name not in known else [name]:
            own = ours.get(found[0])
            return f"did you mean {own}? " if own else f"{places[found[0]]} is given without a flag: {self.usage}; "
        theirs = {command: SettingsParser(command, other).names() for command, other in self.others.items()}
        for wanted in (name, ALIASES.get(name)):
            for command, flags in theirs.items():
                if wanted in flags:
                    return f"minigpt {command} has {flags[wanted]}; "
        return ""

    def _taking(self, word: str) -> list[str]:
        """The flags that take the model, corpus or file of this name, each with it; none if there is no such thing.

        If the help has some flags that people want most, the others are not meant.
        """
        from minigpt.data.corpora import NAMED_SOURCES
        from minigpt.formats.hub import OTHER_NAME
        from minigpt.formats.run_directory import run_named, run_of

        path = Path(os.path.expanduser(run_named(word) if word else "."))
        if run_of(path):
            metavars = {"MODEL", "RUN"}
        elif word in OTHER_NAME or path.suffix in WEIGHTS or os.path.isfile(path / "config.json"):
            metavars = {"MODEL"}
        else:
            metavars = {"SOURCE", "FILE"} if word in NAMED_SOURCES or os.path.exists(path) else set()
        flags = [one.flag for one in self.fields.values() if one.flag_options.metavar in metavars]
        first = self.settings.first
        return [f"{flag} {quoted(word)}" for flag in flags if "out" not in flag and (flag in first or not first)]

    def _check_kept(self, settings: C) -> None:
        """Raise ConfigError if a result would be written over a file that the command reads, or that is a model's."""
        found = [(one, attrgetter(one.path)(settings)) for one in self.fields.values() if one.names_a_thing]
        words = [(one, word) for one, value in found for word in (value if isinstance(value, tuple) else [value])]
        paths = [(one, os.path.expanduser(word)) for one, word in words if word]
        for out, result in paths:
            if "out" in out.flag and metavar(out) == "FILE" and os.path.isfile(result):  # no folder is written over
                from minigpt.data.corpora import texts_below
                from minigpt.formats.source import is_of_model

                read = [(one, Path(path)) for one, path in paths if "out" not in one.flag]
                files = [(one, path) for one, path in read if path.is_file()]
                files += [(one, file) for one, path in read if metavar(one) == "SOURCE" for file in texts_below(path)]
                over = [f"what is read as {one.flag}" for one, file in files if os.path.samefile(result, file)]
                over += [f"a file of the model in {quoted(Path(result).parent)}"] * is_of_model(Path(result))
                if over:
                    what = f"{out.flag} {quoted(result)} would be written over {over[0]}"
                    raise self._wrong(what, "give the result another name")

    def _note_things(self, settings: C) -> None:
        """Say where a text that was given by its place is the name of a model or a file: it may have been meant."""
        for one in self.fields.values():
            found = attrgetter(one.path)(settings) if one.flag == "TEXT" else None
            for word in found if isinstance(found, tuple) else [found]:
                if word and len(word) < 256 and os.path.exists(word):
                    meant = [flag for flag in self._taking(word) if flag.startswith("--model")]
                    meant += [f"{self.prog} - < {quoted(word)}"] * os.path.isfile(word)
                    if meant:
                        print_note(f"{word} is taken as a text, and there is such a file; did you mean {meant[0]}?")


class _WholeWords(argparse.RawDescriptionHelpFormatter):
    """A help formatter that never breaks a line inside a flag, at its hyphen."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


def _place(one: TypedField) -> str:
    """A positional field as the usage line shows it; "" for a flag."""
    if not one.flag_options.positional:
        return ""
    return f"{one.flag}{' ...' * one.several}" if one.required else f"[{one.flag}]"


def metavar(one: TypedField) -> str:
    """What the help calls the value of a field."""
    listed = f"{{{','.join(one.choices)}}}" if one.choices else ""
    return one.flag_options.metavar or listed or _METAVARS.get(one.kind, "TEXT")


def _options(one: TypedField) -> dict[str, Any]:
    """The arguments for argparse's `add_argument` of a field."""
    options: dict[str, Any] = {"help": one.help}
    if one.kind is bool and not one.section:
        return options | {"action": argparse.BooleanOptionalAction if one.optional else "store_true"}
    options |= {"metavar": metavar(one), "action": _Last}
    if one.several and (one.flag_options.together or one.flag_options.positional):
        options |= {"nargs": "+", "action": "extend"}
    elif one.several:
        options["action"] = "append"
        if len(pair := one.flag_options.metavar.split()) > 1:
            options |= {"metavar": tuple(pair), "nargs": len(pair)}
    if one.flag_options.positional and not one.required:
        options["nargs"] = "?"
    return options


class _Last(argparse.Action):
    """Store the last value of a flag that takes one, as is usual, and remember which value it overrules."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Store a value in the namespace; if there was another, `parser.overruled` gets a line about it."""
        former = getattr(namespace, self.dest, values)
        if former != values:
            parser.overruled.append(f"{option_string} is given more than once: {values} counts, {former} does not")
        setattr(namespace, self.dest, values)


def _last_name(flag: str) -> str:
    return flag.lstrip("-").rsplit(".", 1)[-1].replace("-", "_")
