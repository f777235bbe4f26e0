"""The plan of the house, enforced: who may import whom, and what no file may be called."""

import ast
import itertools
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import minigpt
from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import COMMANDS

HOUSE = Path(minigpt.__file__).parent

# A file or folder imports only from rows above its own, and a file from those that its folder's docstring names before.
ORDER = [
    "errors", "system", "fields", "config", "kv_cache", "dropout", "model", "parameters", "tokenizers", "lora",
    "packed", "data", "decoding", "completion", "replies", "chat", "evaluation", "formats", "analysis", "training",
    "page", "cli",
]  # fmt: skip
ABOVE_ALL = {"__main__", "tokenizer_files", "lora_files"}  # the last two are older names of files in formats

# Rooms that must stay free of a subject, whatever their level would allow.
FORBIDDEN = {
    "model": ["tokenizers", "data", "training", "decoding", "formats"],
    "kv_cache": ["model", "tokenizers"],
    "decoding": ["tokenizers", "training", "data"],  # ids in, ids out
}
WITHOUT_TORCH = [
    "errors",
    "system.files",
    "system.downloads",
    "system.notebook",
    "fields",
    "config",
    "tokenizers",
    "data.verse",
    "data.corpora",
    "data.documents",
    "data.dialogues",
    "data.prompts",
    "decoding.options",
    "evaluation.failures",
    "replies",
    "formats.hub",
    "formats.tokenizer_files",
    "analysis.accounting",
    "page.bundle",
    "cli.main",
    "cli.parser",
    "cli.run_settings",
    "cli.settings",
    "cli.views.settings",
]


@cache
def rooms() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(HOUSE).with_suffix("").parts): path
        for path in sorted(HOUSE.rglob("*.py"))
        if path.name != "__init__.py"
    }


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All parts of a file."""
    return list(ast.walk(tree(path)))


@cache
def imports(path: Path) -> set[str]:
    """The modules that a file names in import statements, those inside functions and type checks too."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def inside(path: Path) -> set[str]:
    return {name.removeprefix("minigpt.") for name in imports(path) if name.startswith("minigpt.")}


@cache
def files_of(folder: Path) -> list[str]:
    """The files and folders that the docstring of a folder names, in its order; the house itself has `ORDER`."""
    if folder == HOUSE:
        return ORDER
    text = ast.get_docstring(tree(folder / "__init__.py"), clean=False) or ""
    return re.findall(r"^    (\w+) {2,}\S", text, re.MULTILINE)


def level(room: str) -> list[int]:
    """The place of a room in its folder, behind those of the folder."""
    parts = room.split(".")
    return [files_of(HOUSE.joinpath(*parts[:depth])).index(part) for depth, part in enumerate(parts)]


def lies_above_all(room: str) -> bool:
    return room.split(".")[0] in ABOVE_ALL


def test_every_room_has_its_place():
    top = {path.stem for path in HOUSE.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert top - {"__init__"} == {*ORDER, *ABOVE_ALL}
    for folder in [path.parent for path in HOUSE.rglob("__init__.py") if path.parent != HOUSE]:
        found = {path.stem for path in folder.glob("[!_]*") if path.suffix == ".py" or path.is_dir()}
        assert sorted(files_of(folder)) == sorted(found), folder


def test_the_readme_draws_this_house():
    readme = HOUSE.parent / "README.md"
    if not readme.is_file():
        pytest.skip("needs the checkout that minigpt was installed from")
    found = re.search(r"^minigpt/\n(.*?)^tests/", readme.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert re.findall(r"^  (\w+)(?:\.py|/) ", found[1], re.MULTILINE) == ORDER


@pytest.mark.parametrize("room", [room for room in rooms() if not lies_above_all(room)])
def test_no_import_points_upwards(room):
    for imported in inside(rooms()[room]) - {room.split(".")[0]}:
        assert not lies_above_all(imported), f"{room} may not import {imported}"
        assert level(imported) < level(room), f"{room} may not import {imported}"


@pytest.mark.parametrize("room", [room for room in rooms() if not lies_above_all(room) and not room.startswith("cli.")])
def test_no_text_is_the_name_of_a_room_above(room):
    """Who asks whether a `__module__` begins with it knows the room, and no import says so."""
    for node in nodes(rooms()[room]):
        if isinstance(node, ast.Constant) and re.fullmatch(r"minigpt\.[\w.]+", str(node.value)):
            assert level(node.value.split(".")[1]) <= level(room), f"{room} may not know {node.value}"


def test_no_command_imports_another():
    commands = {f"cli.{module}" for module, _ in COMMANDS.values()}
    commands |= {f"cli.views.{module}" for _, module, _ in VIEWS.values()}
    found = {room: inside(rooms()[room]) & commands for room in commands}
    assert not {room: imported for room, imported in found.items() if imported}


def test_subjects_are_kept_apart():
    for room, (start, subjects) in itertools.product(rooms(), FORBIDDEN.items()):
        if room == start or room.startswith(start + "."):
            for imported in inside(rooms()[room]):
                own = room.split(".")[0]
                banned = [s for s in subjects if s != own and (imported == s or imported.startswith(s + "."))]
                assert not banned, f"{room} knows nothing of {imported}"


def test_nobody_but_the_command_line_imports_the_loop():
    users = [room for room, path in rooms().items() if "training.loop" in inside(path)]
    assert users
    assert all(room.startswith("cli.") for room in users)


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_these_rooms_do_without_torch(room):
    seen, todo = set(), [room]
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        path = rooms().get(here) or HOUSE.joinpath(*here.split("."), "__init__.py")
        for node in tree(path).body:  # at import: what functions import when they are called does not count
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "torch" not in {name.split(".")[0] for name in names}, f"{room} reaches torch through {here}"
            todo += [n.removeprefix("minigpt.") for n in names if n.startswith("minigpt.")]


def test_heavy_libraries_come_late():
    """matplotlib, tiktoken, yaml and the like are imported by the functions that need them."""
    heavy = {"matplotlib", "tiktoken", "yaml", "transformers", "huggingface_hub"}
    for room, path in rooms().items():
        for node in tree(path).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not {name.split(".")[0] for name in names} & heavy, f"{room}: {names}"


def test_matplotlib_has_one_room():
    users = [room for room, path in rooms().items() if any(n.split(".")[0] == "matplotlib" for n in imports(path))]
    assert set(users) == {"analysis.plots", "system.figures"}


def test_no_file_shadows_the_standard_library():
    """Run a script from a folder that has an inspect.py, and `import torch` dies."""
    stems = {path.stem for path in rooms().values()} - {"__main__"}
    assert not stems & set(sys.stdlib_module_names)


def test_the_model_is_read_in_one_sitting():
    assert len((HOUSE / "model.py").read_text(encoding="utf-8").splitlines()) <= 320


def test_nothing_is_pickled_or_executed():
    for path in rooms().values():
        assert not {"pickle", "shelve", "marshal", "dill"} & {name.split(".")[0] for name in imports(path)}
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            if isinstance(node, ast.Attribute):
                assert not (node.attr == "load" and ast.unparse(node.value) in ("yaml", "pickle")), path


def test_a_home_is_found_by_what_takes_every_name():
    """`Path.expanduser` raises RuntimeError where `~nobody` has no home; `os.path.expanduser` leaves it as it is."""
    for path in rooms().values():
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and node.attr == "expanduser":
                assert ast.unparse(node.value) == "os.path", path


def test_an_error_of_the_library_names_no_flag_that_python_has_not():
    """A flag stands in a whole command, or beside its name in Python; `errors.named` makes one of a field."""
    for room, path in rooms().items():
        for node in nodes(path):
            if isinstance(node, ast.Raise) and node.exc and not room.startswith("cli."):
                said = "".join(
                    n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant) and type(n.value) is str
                )
                has_flag = re.search(r"(?<![\w-])--[a-z]", said)
                assert not has_flag or re.search("minigpt [a-z-]+[^;:.]* --|in Python", said), said


def test_public_names_are_there():
    for name in minigpt.__all__:
        assert getattr(minigpt, name) is not None
        assert name in dir(minigpt)
    assert {*dir(minigpt)} == {*minigpt.__all__, "__version__"}  # and nothing of how they are found
    with pytest.raises(AttributeError, match="no attribute 'gtp'"):
        minigpt.gtp  # noqa: B018


@pytest.mark.parametrize(
    "attribute", ["analysis.trace", "analysis.ablate", "replies.USUAL", "tokenizers.CharTokenizer", "errors.InputError"]
)
def test_the_rooms_for_everybody_need_no_import_of_their_own(attribute):
    code = f"import minigpt; before = dir(minigpt); minigpt.{attribute}; assert dir(minigpt) == before"
    subprocess.run([sys.executable, "-c", code], check=True)


def glossary() -> list[tuple[str, str]]:
    page = HOUSE.parent / "docs" / "glossary.md"
    if not page.is_file():
        pytest.skip("needs the checkout that minigpt was installed from")
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [row for row in rows if row[0] != "word"]


def names_of_the_house() -> set[str]:
    """All that the package's code calls something, and the texts in it."""
    names = set(re.findall(r"^    ([A-Z])  \w", HOUSE.joinpath("model.py").read_text(encoding="utf-8"), re.MULTILINE))
    for path in HOUSE.rglob("*.py"):
        names |= {path.stem, path.parent.name}
        for node in nodes(path):
            names |= {getattr(node, field) for field in ("id", "attr", "arg", "name") if hasattr(node, field)}
            names |= {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()
    return names


def test_every_name_of_the_glossary_exists():
    names = names_of_the_house()
    starts = {f"{name.split('_')[0]}_" for name in names if name and "_" in name}
    for name in re.findall(r"`([^`]+)`", " ".join(map(" ".join, glossary()))):
        assert name in names | starts, f"docs/glossary.md: nothing is called {name}"


def test_every_name_in_the_docs_and_docstrings_exists():
    pages = {str(page): page.read_text(encoding="utf-8") for page in HOUSE.parent.glob("docs/*.md")}
    for path in HOUSE.rglob("*.py"):
        parts = nodes(path)
        documented = [part for part in parts if isinstance(part, ast.Module | ast.ClassDef | ast.FunctionDef)]
        pages[str(path)] = "\n".join(ast.get_docstring(part) or "" for part in documented)
    names = names_of_the_house()
    files_and_others = {"py", "md", "json", "jsonl", "txt", "yaml", "png"}
    files_and_others |= {"min_length", "hook_scale", "hook_normalized", "multinomial", "AutoTokenizer", "lora_NAME"}
    files_and_others |= {"apply_chat_template"}
    for page, text in pages.items():
        for name in re.findall(r"`((?:[a-z_]\w*\.)*[a-z_]\w*)(?:\([^`]*)?`", text, re.IGNORECASE):
            last = name.split(".")[-1]
            is_code = ("." in name or "_" in name.rstrip("_")) and not re.match(r"test_|[A-Z_]+$", last)
            if is_code and last not in files_and_others:
                assert {name, last} & names, f"{page}: nothing is called {name}"


def test_a_word_of_the_glossary_has_one_line():
    words = [word.strip("` ") for row in glossary() for word in re.split(r", | (?=`)", row[0])]
    assert len(words) > 50
    assert sorted(words) == sorted(set(words))
