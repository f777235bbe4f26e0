"""Every flag that takes a number, with numbers that nobody means: an answer, or two lines that name the flag."""

import io
import re

import pytest
import torch

from minigpt.cli.inspect_model import VIEWS
from minigpt.cli.main import answer as run
from minigpt.cli.main import parser_of
from minigpt.cli.parser import SettingsParser
from minigpt.cli.run_settings import Train
from minigpt.cli.settings import SETTINGS
from minigpt.config import GPTConfig
from minigpt.data.dialogues import with_template
from minigpt.errors import ConfigError
from minigpt.formats.run_directory import save_run
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer

CHARACTERS = "\n :abcdefghij"
NUMBERS = {"10**30": str(10**30), "-10**30": str(-(10**30)), "0": "0", "nan": "nan", "inf": "inf", "-inf": "-inf"}
PLACES = ("--layer", "--head", "--position")  # there is no layer 7: the model has 2
# A command line of each command that has numbers and does more than training.
LINES = {
    "next": ["next", "ab"],
    "eval": ["eval", "--data", "text.txt"],
    "import": ["import", "model", "imported"],
    "generate": ["generate", "ab", "--max-new-tokens", "2"],
    "chat": ["chat", "--user", "a", "--as", "b", "--max-new-tokens", "2"],
    "compare": ["compare", "--prompt", "ab", "--max-new-tokens", "2", "--setting", "sample"],
    "evaluate-chat": ["evaluate-chat", "--data", "log.txt", "--unknown", "skip", "--max-new-tokens", "2"],
    "explore": ["explore", "-o", "page.html"],  # without a file it would serve until Ctrl-C
    "size": ["inspect", "size"],
    "embed": ["inspect", "embed", "near", "a"],
    "loss": ["inspect", "loss", "abc"],
    "next view": ["inspect", "next", "abc"],
    "steps": ["inspect", "steps", "abc", "-n", "2"],
    "beams": ["inspect", "beams", "abc", "-n", "2"],
    "attn": ["inspect", "attn", "abc"],
    "heads": ["inspect", "heads", "--length", "5"],
    "lens": ["inspect", "lens", "abc"],
    "why": ["inspect", "why", "abc"],
    "ablate": ["inspect", "ablate", "--repeated", "5", "--rows", "2"],
}


def parser(line):
    """That of the command or of the view."""
    return parser_of(line[0], line[1:])[0]


def kinds(of):
    """What the flags of a parser take."""
    return {one.flag: one.kind for one in of.fields.values() if not one.flag_options.positional}


def numbers(of):
    """The flags of a parser that take a number."""
    return [flag for flag, kind in kinds(of).items() if kind in (int, float)]


CASES = [(name, flag) for name, line in LINES.items() for flag in numbers(parser(line))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of characters and a text for it."""
    torch.manual_seed(5)
    folder = tmp_path_factory.mktemp("numbers")
    tokenizer = with_template(CharTokenizer(CHARACTERS))
    save_run(GPT(GPTConfig(len(CHARACTERS), 19, 2, 3, 15)).eval(), tokenizer, folder / "model")
    (folder / "log.txt").write_text("a: bad\nb: cab\n\nb: fad\na: bed\n")
    (folder / "text.txt").write_text("abc def\n" * 29)
    return folder


def test_every_command_with_numbers_is_here():
    """Those that train check theirs where they are read: see below."""
    views = {name: settings for name, (settings, _, _) in VIEWS.items()}
    typed = {name: SettingsParser("", kind) for name, kind in {**SETTINGS, **views}.items()}
    having = {
        name for name, one in typed.items() if numbers(one) and name not in ("quickstart", "train", "verify-resume")
    }
    assert having <= set(LINES)
    assert {"generate", "compare"} <= set(LINES)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("name", "flag"), CASES)
def test_a_number_that_nobody_means(folder, monkeypatch, tmp_path, capsys, name, flag, number):
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\n")))  # which chat reads
    line = LINES[name]
    model = [] if name == "import" else ["--model", "model"]
    if name == "import":
        line = [*line[:2], str(tmp_path / "imported")]
    line = list(line)
    if flag in line or (flag == "--max-new-tokens" and "-n" in line):
        at = line.index(flag if flag in line else "-n")
        del line[at : at + 2]
    code = run([*line, *model, f"{flag}={NUMBERS[number]}"])
    out, err = capsys.readouterr()
    assert code in (0, 2)
    assert len(out) < 100_000
    if code == 2:
        told = err.rstrip("\n").split("\n")
        assert len(told) == 2, err
        assert max(map(len, told)) < 300
        assert out == ""
        assert flag in err or (flag in PLACES and flag.lstrip("-") in told[0])


ONE = {
    "eval": "eval --model model --data one.jsonl",
    "eval text": "eval --model model --data two.txt",
    "evaluate-chat": "evaluate-chat --model model --data one.txt --max-new-tokens 1 --turns 1 --history 0 1",
    "evaluate-text": "evaluate-text one.jsonl --training-data one.jsonl",
    "compare": "compare --model model a --max-new-tokens 1 --seeds 1 --setting greedy",
    "generate": "generate --model model a --max-new-tokens 1",
    "tokenize": "tokenize --model model a",
    "tokens": "inspect tokens a --model model",
    "size": "inspect size --model model --tokens 1",
    "arch": "inspect arch --model model",
    "next view": "inspect next a --model model",
    "train": "train --data one.txt --documents.separate dialogues --documents.turns 1 --model.n_layer 1 "
    "--model.n_head 1 --model.n_embd 3 --model.block_size 19 --train.max_steps 1 --train.warmup_steps 0 --device cpu "
    "--out {new} --val-data three.txt",
}


@pytest.mark.parametrize("line", ONE.values(), ids=ONE)
def test_one_thing_is_not_said_to_be_several(folder, monkeypatch, tmp_path, capsys, line):
    """Of a model with one layer and one head, from one document, dialogue, text or token."""
    torch.manual_seed(5)
    monkeypatch.chdir(tmp_path)
    tokenizer = with_template(CharTokenizer(CHARACTERS))
    save_run(GPT(GPTConfig(len(CHARACTERS), 19, 1, 1, 3)), tokenizer, "model")
    for name, text in {"one.jsonl": '{"text": "ab"}', "two.txt": "ab", "one.txt": "a: ab\nb: cd"}.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "three.txt").write_text("a: cd\nb: ab\n")
    assert run(line.replace("{new}", "new").split()) == 0, capsys.readouterr().err
    said = "".join(capsys.readouterr())
    assert re.findall(r"(?<![\d.,])1 (?:(?!of )[a-z-]+ ){0,2}[a-z]{2,}s\b(?<!ss)(?<!is)", said) == []


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("flag", numbers(parser(["train"])))
def test_a_number_that_nobody_trains_with(flag, number):
    """What is taken here is within bounds; of the steps of a schedule nobody waits for the last."""
    try:
        SettingsParser("train", Train).parse([f"{flag}={NUMBERS[number]}"])
    except ConfigError as error:
        told = error.renamed(parser(["train"]).flags())
        assert flag in told[0]
        assert max(map(len, told)) < 300
    else:
        assert number in ("0", "10**30")
        assert number == "0" or kinds(parser(["train"]))[flag] is float
