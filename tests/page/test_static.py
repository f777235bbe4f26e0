"""The house rules of the page's JavaScript, as far as a reader of its text can see them."""

import re
from collections import Counter
from pathlib import Path

import pytest

import minigpt.page

STATIC = Path(minigpt.page.__file__).parent / "static"
MODULES = {path.relative_to(STATIC).as_posix(): path for path in sorted(STATIC.rglob("*.js"))}
ENGINE = {
    "errors.js", "numbers.js", "taps.js", "edits.js", "tracing.js", "engine.js", "options.js", "filters.js",
    "sampling.js", "generate.js", "beams.js", "tokenizer.js", "analysis.js", "weights.js",
}  # fmt: skip


def code(name: str) -> str:
    """A module without its comments."""
    text = MODULES[name].read_text(encoding="utf-8")
    return re.sub(r"/\*.*?\*/|(?<![:'\"`])//[^\n]*", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_no_text_becomes_html_or_a_program(name: str):
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function\b|javascript:"
    assert not re.search(banned, code(name))


@pytest.mark.parametrize("name", MODULES)
def test_only_the_source_asks_for_files(name: str):
    if name != "source.js":
        assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|EventSource|sendBeacon|importScripts", code(name))
    assert not re.search(r"https?://(?!www\.w3\.org/)", code(name))  # that one names the language of SVG


@pytest.mark.parametrize("name", MODULES)
def test_modules_import_names_from_their_neighbours(name: str):
    """One form of import, which a reader of single lines understands."""
    for line in re.findall(r"^import\b.*?;", code(name), re.MULTILINE | re.DOTALL):
        found = re.fullmatch(r'import \{ ?[\w,\s]+?,? ?\} from "(\.{1,2}/[\w./-]+\.js)";', line)
        assert found, line
        assert (MODULES[name].parent / found[1]).is_file(), line
    assert "export default" not in code(name)
    assert not re.search(r"^export \{|\bimport\(", code(name), re.MULTILINE)


@pytest.mark.parametrize("name", sorted(ENGINE))
def test_the_engine_knows_no_page(name: str):
    assert not re.search(r"\b(document|window|self|localStorage|navigator|process)\.|\brequire\(", code(name))


def test_names_at_the_top_are_said_once():
    """So that the modules can stand in one file."""
    found = Counter(
        match
        for name in ENGINE
        for match in re.findall(r"^(?:export )?(?:const|let|function\*?|class) (\w+)", code(name), re.MULTILINE)
    )
    assert not [name for name, count in found.items() if count > 1]


@pytest.mark.parametrize("name", sorted(ENGINE))
def test_lines_are_as_long_as_in_python(name: str):
    assert max(map(len, MODULES[name].read_text("utf-8").splitlines())) <= 120
