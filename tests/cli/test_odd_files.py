"""What is no file, or not the file that was meant, wherever a command reads or writes one.

The cases are made: each flag that names a thing meets each odd path; and each file of a run, of an adapter and of a
folder of transformers is replaced by each odd thing. All end in two lines that are true, or in an answer.
"""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import minigpt
from minigpt import GPT
from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer as run
from minigpt.cli.parser import SettingsParser, TypedField
from minigpt.cli.settings import SETTINGS
from minigpt.config import GPTConfig, RunConfig, write_yaml
from minigpt.errors import DataError
from minigpt.formats.lora_files import save_adapter
from minigpt.lora import LoRAConfig, add_lora
from minigpt.tokenizers import CharTokenizer
from tests.conftest import random_model

pytestmark = pytest.mark.filterwarnings("always::minigpt.errors.ModelNote")  # as outside of tests, where notes are said

LETTERS = CharTokenizer("\nabcdefghijklmnopqrstuv")
SHAPE = GPTConfig(vocab_size=23, block_size=13, n_layer=1, n_head=2, n_embd=6)
ODD: dict[str, Callable[[Path], object]] = {
    "empty": Path.touch,
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "list": lambda path: path.write_text("[1]", encoding="utf-8"),
    "pipe": os.mkfifo,
    "circle": lambda path: path.symlink_to(path.name),
    "nowhere": lambda path: path.symlink_to("nothing-is-there"),
    "folder": Path.mkdir,
}
PATHS = ["", "missing", "texts.txt/x", "~nobody-of-this-name/x", "x" * 300, *(f"odd-{name}" for name in ODD)]
# What a command needs beside the flag in question.
LINES = {
    "train": "", "eval": "--model run", "next": "abc --model run", "import": "run new", "export": "run new",
    "compare": "abc --model run --seeds 1 --max-new-tokens 1", "evaluate-text": "texts.txt",
    "generate": "abc --model run --max-new-tokens 1", "explore": "--model run", "evaluate-chat": "--model run",
    "inspect arch": "--model run", "inspect heads": "--model run", "inspect runs": "run",
}  # fmt: skip
PLACES = {"import": ["SRC", "DIR"], "export": ["MODEL", "DIR"], "evaluate-text": ["FILE"], "inspect runs": ["RUN"]}
THINGS = ("DIR", "FILE", "FILE.yaml", "MODEL", "REPORT", "RUN", "SOURCE", "SRC", "T")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run, a folder of transformers, an adapter, and texts."""
    at = tmp_path_factory.mktemp("made")
    model = random_model(SHAPE, seed=3)
    minigpt.save_run(model, LETTERS, at / "run", carried={"config.json": {}, "generation_config.json": {}})
    minigpt.save_hf(model, LETTERS, at / "folder", carried={"generation_config.json": {"top_k": 5}})
    adapted = GPT(SHAPE)
    add_lora(adapted, LoRAConfig(rank=2), 0)
    save_adapter(adapted, at / "adapter")
    minigpt.save_run(model, LETTERS, at / "base")
    shutil.copytree(at / "adapter", at / "tuned" / "adapter")
    config = RunConfig(model=SHAPE, init_from=str(at / "base"))
    write_yaml(minigpt.config.updated(config, {"train": {"lora_rank": 2}}), at / "tuned" / "config.yaml", {})
    LETTERS.save(at / "tuned" / "tokenizer.json")
    (at / "texts.txt").write_text("abc\nbcd\n", encoding="utf-8")
    return at


WRITTEN = {
    "compare a --model {} --seeds 1 --max-new-tokens 1": ["json", "csv", "png", "svg"],
    "inspect attn ab --model {}": ["json", "npz", "png", "svg"],
    "inspect size --model {}": ["json", "npz", "png", "svg"],
    "inspect runs {}": ["json", "npz", "png"],
    "evaluate-chat --model {} --data play.txt --replies 5 --max-new-tokens 1 --candidates 2": ["json", "md", "png"],
}


@pytest.mark.skipif(sys.platform != "linux", reason="needs names of files that are no UTF-8")
@pytest.mark.parametrize(("line", "ending"), [(line, ending) for line, all_ in WRITTEN.items() for ending in all_])
def test_a_model_in_a_folder_that_is_no_utf8_is_named_in_what_is_written(tmp_path, monkeypatch, line, ending):
    """As from an archive of another system; JSON's escape gives the same name again."""
    monkeypatch.chdir(tmp_path)
    name, play = os.fsdecode(b"mod\xe8le"), ""
    for n in range(5):
        play += f"SCENE {n}\n\nANN:\nab{n}\n\nBOB:\nba{n}\n\nANN:\nb{n}a\n\n"
    Path("play.txt").write_text(play)
    tokenizer = CharTokenizer.from_text(play)
    minigpt.save_run(random_model(GPTConfig(tokenizer.vocab_size, 97, 1, 1, 5), seed=3), tokenizer, name)
    Path(name, "metrics.jsonl").write_text('{"step": 1, "tokens": 3, "seconds": 1.0, "train_loss": 2.0}\n')
    words = [name if word == "{}" else word for word in line.split()]
    assert run([*words, "-o", f"x.{ending}"]) == 0
    if ending == "json":
        content = json.loads(Path("x.json").read_text())
        assert name in json.dumps(content, ensure_ascii=False)


def check_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command: an answer, or two lines that are not the system's alone. Returns the first of them."""
    capsys.readouterr()
    code = run(words)
    err = capsys.readouterr().err
    lines = err.rstrip("\n").split("\n")
    if code == 0:
        return ""
    assert code == 2, words
    assert [line.startswith("error: ") for line in lines[-2:]] == [True, False], (words, err)
    assert "Traceback" not in err, words
    assert "--debug shows" not in err, (words, err)
    return lines[-2]


def begin(*_: object, **__: object) -> None:
    """In the place of a training."""
    raise DataError("a training would begin here", "none is wanted")


def flags() -> Iterator[tuple[str, TypedField]]:
    """Of each flag that names a thing the first command that has it."""
    views = {f"inspect {name}": view for name, (view, _, _) in VIEWS.items()}
    seen = set()
    for command in LINES:
        for one in SettingsParser(command, {**SETTINGS, **views}[command]).fields.values():
            if (one.flag_options.metavar in THINGS or one.kind is Path) and (
                one.flag in PLACES.get(command, ()) or one.flag not in seen
            ):
                seen.add(one.flag)
                yield command, one


@pytest.mark.parametrize(("command", "one"), [pytest.param(*pair, id=f"{pair[0]} {pair[1].flag}") for pair in flags()])
def test_a_flag_that_names_a_thing_meets_what_is_none(command, one, made, capsys, monkeypatch, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name, make in ODD.items():
        make(tmp_path / f"odd-{name}")
    monkeypatch.setattr("minigpt.cli.trainings.train", begin)
    for path in PATHS:
        words = [*command.split(), *LINES[command].split()]
        if one.flag_options.positional:
            words[len(command.split()) + PLACES[command].index(one.flag)] = path
        else:
            words.append(f"{one.flag}={path}")
        told = check_told(words, capsys)
        shutil.rmtree("new", ignore_errors=True)
        if not path:
            assert f"{one.flag} is empty, and names nothing" in told, words
        elif path.startswith("odd-") and path not in ("odd-circle", "odd-nowhere"):
            assert not re.search(r"does not exist|there is no (file|folder|model|tokenizer|corpus)", told), (
                words,
                told,
            )


RUN = ["next abc --model at", "train --init-from at --data texts.txt --out new", "inspect size --model at",
       "export at new", "tokenize abc --model at", "inspect runs at", "train --resume at"]  # fmt: skip
FOLDER = ["next abc --model at", "import at new", "next abc --model base --tokenizer at"]
ADAPTER = ["next abc --model run --adapter at", "import at new"]
FILES = {
    "run": (["config.yaml", "tokenizer.json", "model.safetensors", "reference.json", "last", "metrics.jsonl"], RUN),
    "tuned": (["config.yaml", "tokenizer.json", "adapter", "adapter/adapter_config.json"], RUN),
    "folder": (["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                "generation_config.json", "special_tokens_map.json"], FOLDER),
    "adapter": (["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"], ADAPTER),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "file"), [(kind, file) for kind, (files, _) in FILES.items() for file in files])
def test_a_file_is_replaced_by_what_is_none(kind, file, made, capsys, monkeypatch, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("minigpt.cli.trainings.train", begin)
    for name, make in {"missing": lambda path: None, **ODD}.items():
        shutil.rmtree("at", ignore_errors=True)
        shutil.copytree(kind, "at")
        path = tmp_path / "at" / file
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        make(path)
        for line in FILES[kind][1]:
            told = check_told(line.split(), capsys)
            shutil.rmtree("new", ignore_errors=True)
            if name != "missing":
                absent = rf"(there is no \w+ '?at/{file}|at/{file} does not exist|at has no {file})(?!/| with)"
                assert not re.search(absent, told), (name, line, told)


@pytest.mark.parametrize("model", ["adapter", "tuned/adapter", "texts.txt", "odd-folder"])
@pytest.mark.parametrize("command", ["eval", "evaluate-chat"])
def test_what_holds_no_model_is_not_asked_for_data(command, model, made, capsys, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    Path("odd-folder").mkdir()
    told = check_told([command, "--model", model], capsys)
    assert told
    assert told == check_told(["next", "abc", "--model", model], capsys)


@pytest.mark.parametrize("command", ["eval", "evaluate-chat"])
def test_a_model_that_no_run_has_made_is_asked_for_data(command, made, capsys, tmp_path):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    assert "folder is no run that was trained" in check_told([command, "--model", "folder"], capsys)
