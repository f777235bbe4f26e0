"""The plan of the house, enforced: who may import whom, and what no file may be called."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt

HOUSE = Path(minigpt.__file__).parent

# A room may import only from rows above its own.
ROWS = [
    ["errors", "analysis.checks", "analysis.terminal"],
    ["files", "fields", "prompts", "analysis.diversity", "analysis.references"],
    ["config", "decoding.options", "data.verse", "device", "downloads", "analysis.overlap"],
    [
        "hub",
        "analysis.records",
        "kv_cache",
        "decoding.filters",
        "decoding.constraints",
        "tokenizers",
        "training.trackers",
    ],
    ["analysis.accounting", "analysis.taps", "analysis.positions"],
    ["model", "data.corpora", "tokenizer_files"],
    ["data.tokens", "data.documents", "weights", "parity", "decoding.sampling", "analysis.plots", "analysis.recording"],
    ["decoding.beam_search", "decoding.speculative", "training.distributed", "training.evaluate", "training.packing"],
    ["training.optim"],
    ["analysis.edits", "analysis.lens", "analysis.attribution"],
    ["analysis.tracing", "analysis.embeddings"],
    ["analysis.heads", "analysis.sweeps"],
    ["data.batches", "lora", "gpt2_names"],
    ["data.feeds"],
    ["decoding.generate", "training.checkpoint", "training.selfcheck", "training.signals", "lora_files"],
    ["completion", "training.resume", "training.run_log", "training.plan", "analysis.decoders", "analysis.comparison"],
    ["pretrained"],
    ["training.run"],
    ["training.divergence"],
    ["training.loop", "training.verify"],
]
LEVEL = {room: level for level, row in enumerate(ROWS) for room in row}
ABOVE_ALL = len(ROWS)  # cli, __init__ and __main__ may import everything

# Rooms that must stay free of a subject, whatever their level would allow.
FORBIDDEN = {
    "model": ["tokenizers", "data", "training", "decoding", "pretrained", "weights"],
    "kv_cache": ["model", "tokenizers"],
    "decoding": ["tokenizers", "training", "data"],  # ids in, ids out
}
WITHOUT_TORCH = [
    "errors",
    "files",
    "fields",
    "config",
    "analysis.accounting",
    "decoding.options",
    "data.verse",
    "data.corpora",
    "data.documents",
    "downloads",
    "tokenizers",
    "tokenizer_files",
    "hub",
    "prompts",
    "cli.main",
    "cli.parser",
]


def rooms() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(HOUSE).with_suffix("").parts): path
        for path in sorted(HOUSE.rglob("*.py"))
        if path.name != "__init__.py"
    }


def imports(path: Path) -> set[str]:
    """The modules that a file names in import statements, those inside functions and type checks too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found


def inside(path: Path) -> set[str]:
    return {name.removeprefix("minigpt.") for name in imports(path) if name.startswith("minigpt.")}


def level(room: str) -> int:
    return ABOVE_ALL if room.split(".")[0] in ("cli", "__main__") else LEVEL[room]


def test_every_room_has_its_place():
    known = {room for room in rooms() if not room.startswith(("cli.", "__main__"))}
    assert known == set(LEVEL), "a new room needs a place in ROWS and in README's map"


@pytest.mark.parametrize("room", rooms())
def test_no_import_points_upwards(room):
    for imported in inside(rooms()[room]):
        if level(room) < ABOVE_ALL:
            assert level(imported) < level(room), f"{room} may not import {imported}"


@pytest.mark.parametrize("room", rooms())
def test_subjects_are_kept_apart(room):
    for start, subjects in FORBIDDEN.items():
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
        tree = ast.parse(rooms()[here].read_text(encoding="utf-8"))
        for node in tree.body:  # at import: what functions import when they are called does not count
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert "torch" not in {name.split(".")[0] for name in names}, f"{room} reaches torch through {here}"
            todo += [n.removeprefix("minigpt.") for n in names if n.startswith("minigpt.")]


@pytest.mark.parametrize("room", rooms())
def test_heavy_libraries_come_late(room):
    """matplotlib, tiktoken, yaml and the like are imported by the functions that need them."""
    for node in ast.parse(rooms()[room].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {
                "matplotlib", "tiktoken", "yaml", "transformers", "huggingface_hub",
            }  # fmt: skip


def test_matplotlib_has_one_room():
    users = [room for room, path in rooms().items() if any(n.split(".")[0] == "matplotlib" for n in imports(path))]
    assert users == ["analysis.plots"]


def test_no_file_shadows_the_standard_library():
    """Run a script from a folder that has an inspect.py, and `import torch` dies."""
    stems = {path.stem for path in rooms().values()} - {"__main__"}
    assert not stems & set(sys.stdlib_module_names)


def test_the_model_is_read_in_one_sitting():
    assert len((HOUSE / "model.py").read_text(encoding="utf-8").splitlines()) <= 320


def test_nothing_is_pickled_or_executed():
    for path in rooms().values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert not {"pickle", "shelve", "marshal", "dill"} & {name.split(".")[0] for name in imports(path)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            if isinstance(node, ast.Attribute):
                assert not (node.attr == "load" and ast.unparse(node.value) in ("yaml", "pickle")), path


def test_public_names_are_there():
    for name in minigpt.__all__:
        assert getattr(minigpt, name) is not None
        assert name in dir(minigpt)
    assert {*dir(minigpt)} == {*minigpt.__all__, "__version__"}  # and nothing of how they are found
    with pytest.raises(AttributeError, match="no attribute 'gtp'"):
        minigpt.gtp  # noqa: B018


@pytest.mark.parametrize(
    "attribute", ["analysis.trace", "analysis.ablate", "tokenizers.CharTokenizer", "errors.InputError"]
)
def test_the_rooms_for_everybody_need_no_import_of_their_own(attribute):
    code = f"import minigpt; before = dir(minigpt); minigpt.{attribute}; assert dir(minigpt) == before"
    subprocess.run([sys.executable, "-c", code], check=True)
