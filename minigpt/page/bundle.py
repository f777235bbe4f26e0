"""One script of several modules: a page that was opened from a disk may read no other file.

Each module becomes a function that returns what it exports, and runs before those that import from it:

    import { a, b as c } from "./other.js";    ->    const { a, b: c } = $other;
    export function f() {}                     ->    function f() {}          and at the end: return { f };

The page is written in these forms alone, so that lines can be read and no program: an import stands at the beginning of
a line and ends with a semicolon, and only a function, a class or a constant is exported, where it is declared.
"""

import posixpath
import re
from pathlib import Path
from typing import NamedTuple

_IMPORT = re.compile(r'^import\s*\{([^{}]*)\}\s*from\s*"(\.{1,2}/[\w./-]+\.js)";', re.MULTILINE)
_NAME = re.compile(r"(\w+)(?:\s+as\s+(\w+))?")
_EXPORT = re.compile(r"^export ((?:async )?function\*? ?|class |const )(\w+)", re.MULTILINE)
_OTHER_FORM = re.compile(r"^(?:import|export)\b.*|^.*\bimport\(.*", re.MULTILINE)
_ENDS_A_SCRIPT = re.compile(r"<!--|</?(?:script|style)", re.IGNORECASE)


def bundle(entry: str, folder: Path) -> str:
    """The module `entry` of a folder and all that it imports, as the text of one module that imports nothing.

    Raises:
        ValueError: if a module has a form that is not understood here, text that would end the script that it stands
            in, or imports from itself by way of others.
    """
    done: dict[str, _Module] = {}
    _add(entry, folder, done, ())
    return "\n".join(module.text for module in done.values())


class _Module(NamedTuple):
    """A module as a part of the bundle: its text, and the names that it exports."""

    text: str
    exports: list[str]


def _add(name: str, folder: Path, done: dict[str, _Module], above: tuple[str, ...]) -> None:
    """Put a module behind those that it imports from, unless it is there."""
    if name in above:
        raise ValueError(f"{' imports '.join((*above, name))}: a circle")
    if name in done:
        return
    text = (folder / name).read_text(encoding="utf-8")
    check_inline(text, name)

    def imported(found: re.Match[str]) -> str:
        other = posixpath.normpath(posixpath.join(posixpath.dirname(name), found[2]))
        _add(other, folder, done, (*above, name))
        names = []
        for part in filter(None, map(str.strip, found[1].split(","))):
            pair = _NAME.fullmatch(part)
            if not pair or pair[1] not in done[other].exports:
                raise ValueError(f"{name}: {other} exports no {part!r}")
            names.append(f"{pair[1]}: {pair[2]}" if pair[2] else pair[1])
        lines = "\n" * found[0].count("\n")  # so that a line keeps its number within its module
        return f"const {{ {', '.join(names)} }} = {_variable(other)};{lines}"

    text = _IMPORT.sub(imported, text)
    exports = [found[2] for found in _EXPORT.finditer(text)]
    text = _EXPORT.sub(r"\1\2", text)
    if other := _OTHER_FORM.search(text):
        raise ValueError(f"{name}: {other[0]!r} is a form of import or export that is not understood here")
    if above:  # the entry itself is no function, so that it may await
        text = f"const {_variable(name)} = (() => {{\n{text}\nreturn {{ {', '.join(exports)} }};\n}})();"
    done[name] = _Module(f"// {name}\n{text}", exports)


def check_inline(text: str, name: str) -> None:
    """Raise ValueError if a text cannot stand inside a script or a style element of HTML."""
    if found := _ENDS_A_SCRIPT.search(text):
        raise ValueError(f"{name} has {found[0]!r}, which HTML reads inside a script too: write it in two parts")


def _variable(name: str) -> str:
    return "$" + re.sub(r"\W", "_", name)
