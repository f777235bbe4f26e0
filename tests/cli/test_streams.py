"""What people are told, through which streams (closed, full, abandoned, a notebook's), and what a terminal is sent."""

import io
import json
import os
import pty
import runpy
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from minigpt.cli.main import COMMANDS, _show_note
from minigpt.cli.main import answer as run
from minigpt.cli.streams import Stream, attached, print_error, print_note, said, write_product
from minigpt.config import GPTConfig
from minigpt.errors import LONGEST
from minigpt.formats.run_directory import save_run
from minigpt.model import GPT
from minigpt.system.signals import interrupt
from minigpt.tokenizers import CharTokenizer

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")

# One process, and for each case a child of it: with streams of its own, and an end of its own, where Python itself
# flushes once more. Helps and mistakes, of a word or two, need no torch and come first, as children that are small and
# end soon; then everything is imported once for all others.
DRIVER = """
import gc, io, json, os, sys
from importlib import import_module
from minigpt.cli.main import COMMANDS, main, parser_of
from minigpt.cli import inspect_model, parser, settings  # what a help is made of

def attach(number, name, kind):
    setattr(sys, name, None)
    os.close(number)
    if kind == "closed":
        return
    if kind == "full":
        opened = os.open("/dev/full", os.O_WRONLY)
    elif kind == "left":
        reading, opened = os.pipe()
        os.close(reading)
    else:
        opened = os.open(name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    if opened != number:
        os.dup2(opened, number)
        os.close(opened)
    # Nobody reads what a pipe without a reader holds back, so each write is tried at once, as under python -u.
    setattr(sys, name, io.TextIOWrapper(os.fdopen(number, "wb", 0), write_through=kind == "left"))

for name in settings.SETTINGS.keys() - {"inspect"}:
    parser_of(name, [])  # its types and docstrings are read once
cases, results = json.loads(sys.stdin.read()), {}
for number in sorted(range(len(cases)), key=lambda number: len(cases[number][2])):
    out, err, arguments = cases[number]
    if len(arguments) > 2 and not gc.get_freeze_count():
        for module, _ in COMMANDS.values():
            import_module(f"minigpt.cli.{module}")
        if arguments[0] == "train":
            import torch._dynamo  # seconds, at the first step of an optimizer
        gc.freeze()  # a child need not look all of this through once more when it ends
    child = os.fork()
    if not child:
        attach(1, "stdout", out)
        attach(2, "stderr", err)
        main(arguments)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = [open(name).read() if kind == "file" else "" for name, kind in (("stdout", out), ("stderr", err))]
    results[number] = [code, *said]
print(json.dumps([results[number] for number in range(len(cases))]))
"""

Case = tuple[str, str, list[str]]


def results_of(cases: list[Case]) -> list[tuple[int, str, str]]:
    """Exit code, standard output and standard error of each."""
    driver = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(cases), capture_output=True, text=True, check=False
    )
    assert driver.returncode == 0, driver.stderr
    return [tuple(result) for result in json.loads(driver.stdout)]


@pytest.fixture
def model() -> str:
    tokenizer = CharTokenizer.from_text("abcdefghijklmnopqrs")
    save_run(GPT(GPTConfig(tokenizer.vocab_size, 13, 1, 1, 3)), tokenizer, Path("tiny"))
    return "tiny"


HELPS = [["--version"], [], ["-h"], ["help"], ["inspect"], *([command, "--help"] for command in COMMANDS)]


@pytest.fixture
def commands(model: str) -> list[list[str]]:
    """Answers of several kinds: help, streamed, JSON, tables, mistakes."""
    generate = ["generate", "--model", model, "--prompt", "a", "--seed", "1", "--device", "cpu"]
    return [
        ["--help"],
        generate,
        [*generate, "--num-return-sequences", "2"],
        ["tokenize", "--model", model, "abc"],
        ["score", "--model", model, "abc", "--json", "--device", "cpu"],
        ["generate", "--model", "nowhere/none"],
        ["trian"],
    ]


def test_every_command_survives_every_stream(commands):
    kinds = ("closed", "full", "left")
    streams = [pair for kind in kinds for pair in ((kind, "file"), ("file", kind), (kind, kind))]
    cases = [(out, err, command) for out, err in streams for command in commands]
    cases += [(out, "file", command) for out in ("full", "left") for command in HELPS]
    everything = [("file", "file", command) for command in [*commands, *HELPS]]
    results = results_of([*everything, *cases])
    usual, results = results[: len(everything)], results[len(everything) :]
    assert all(code in (0, 2) and "Traceback" not in err for code, _, err in usual)
    expected = dict(zip(map(tuple, [*commands, *HELPS]), usual, strict=True))
    for (out, err, command), (code, text, told) in zip(cases, results, strict=True):
        usual_code, usual_text, usual_told = expected[tuple(command)]
        what = (out, err, command, code, told)
        unheard = out == "full" and usual_text
        assert code == (2 if unheard else usual_code), what
        assert not usual_text or out != "file" or text == usual_text, what
        if err == "file" and unheard:
            last = told.splitlines()[-2:]
            assert last[0] == "error: standard output could not be written: No space left on device", what
            assert last[1].startswith("       "), what
        elif err == "file" and "generate" not in command:  # which says on standard error how long it took
            assert told == usual_told, what
        assert "Traceback" not in told, what
        assert "Exception ignored" not in told, what


def test_a_training_goes_on_when_nobody_can_read_what_it_says():
    """Its log is on a full disk: all of it is done and saved, and the end says what is missing."""
    Path("t.txt").write_text("to be or not to be, that is the question\n" * 30)
    flags = "--data t.txt --model.block_size 5 --model.n_layer 1 --model.n_head 1 --model.n_embd 3 " \
            "--train.max_steps 3 --train.warmup_steps 1 --train.batch_size 2 --train.eval_interval 2 " \
            "--device cpu --compile off --dtype float32".split()  # fmt: skip
    kinds = [("full", "file"), ("full", "full"), ("closed", "closed"), ("file", "full"), ("left", "file")]
    results = results_of([(out, err, ["train", *flags, "--out", f"{out}-{err}"]) for out, err in kinds])
    assert [code for code, _, _ in results] == [2, 2, 0, 0, 141]
    for out, err in kinds[:-1]:
        assert Path(f"{out}-{err}", "model.safetensors").is_file()
        assert json.loads(Path(f"{out}-{err}", "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
    assert "could not be written" in results[0][2]


def test_a_notebook_has_streams_of_its_own(monkeypatch, model):
    """They are no files: no reconfigure, no number, no bytes below them."""

    class Cell(io.TextIOBase):
        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

    from minigpt.cli.main import main

    out, err = Cell(), Cell()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    for arguments, code in ((["--version"], 0), (["tokenize", "--model", model, "ab", "--json"], 0), (["trian"], 2)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == code
    assert out.text.startswith("minigpt ")
    assert json.loads(out.text.splitlines()[-1])["tokens"][1]["text"] == "b"
    assert err.text.startswith("error: there is no command 'trian'\n       did you mean train?")
    assert (sys.stdout, sys.stderr) == (out, err)


# --- what is said

ATTACKS = ["\x1b]0;title\x07", "\x9b2J", "\x00", "\x08\x08", "\x7f", "\u202egnp.exe", "\u2066", "\u2028error: none"]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_that_is_said_moves_the_terminal(capsys, attack):
    with attached():
        print(f"table {attack}")
        print(f"note: {attack}", file=sys.stderr)
        print_error(f"no such file: {attack}", f"rename {attack}")
    out, err = capsys.readouterr()
    for text in (out, err):
        assert not set(text) & {"\x1b", *"\x07\x9b\x00\x08\x7f\u202e\u2066\u2028"}
        assert f"\\{'u' if ord(attack[0]) > 255 else 'x'}{ord(attack[0]):02x}" in text


@pytest.mark.parametrize("arguments", [
    ["{}"], ["generate", "--model", "{}"], ["generate", "--prompt", "a", "--{}"], ["generate", "--top-k", "{}"],
    ["train", "--data", "{}"], ["train", "--preset", "{}"], ["train", "--train.max_steps", "{}"],
    ["train", "--config", "{}"], ["train", "--resume", "{}"], ["inspect", "{}"], ["import", "{}", "out"],
    ["tokenize", "--tokenizer", "{}", "a"], ["eval", "--model", "m", "--data", "{}"],
])  # fmt: skip
def test_a_name_is_neither_obeyed_nor_echoed_whole(capsys, arguments):
    """Whatever is wrong with it, in two lines."""
    name = "x\x1b[31mred\x9bm" + "y" * 100_000
    assert run([word.format(name) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 2
    assert len(err) < 3 * LONGEST
    assert not set(err) & {"\x1b", "\x9b"}


def test_the_beginning_and_the_end_of_a_long_line_are_said():
    line = said("what " + "y" * 100_000 + " is no number")
    assert line.startswith("what yyy")
    assert line.endswith("yyy is no number")
    assert len(line) < LONGEST
    shown, hidden = line.count("y"), int(line.split(" ... ")[1].split()[0].replace(",", ""))
    assert shown + hidden == 100_000
    assert said("tabs\tand\nlines, and characters such as é 字 👩‍💻 stay") == (
        "tabs\tand\nlines, and characters such as é 字 👩‍💻 stay"
    )


def test_a_text_that_was_asked_for_is_written_as_it_is_but_not_to_a_terminal():
    """As `ls` shows names: what goes on to a file or a program is the bytes themselves."""
    text = "red \x1b[31m\r\n" + "y" * 2 * LONGEST

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for kind, expected in ((io.StringIO, text), (Terminal, text.replace("\x1b", "\\x1b"))):
        stream = kind(newline="")
        Stream(stream, needed=True).write_product(text)
        assert stream.getvalue() == expected


def test_json_has_no_control_characters_and_stays_json(capsys):
    from minigpt.cli.streams import print_json

    content = {"text": "".join(map(chr, range(0xA0))), "path": "half \udc80"}
    print_json(content)
    out = capsys.readouterr().out
    assert not set(out.rstrip("\n")) & set(map(chr, [*range(0x20), *range(0x7F, 0xA0)]))
    assert json.loads(out) == content


def test_a_progress_bar_is_drawn_in_its_place():
    from tqdm import tqdm

    seen = io.StringIO(newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", seen)
        with attached(), tqdm(total=3, file=sys.stderr, mininterval=0, desc="\x1b[31m") as bar:
            bar.update()
    assert seen.getvalue().count("\r") >= 2
    assert "\\r" not in seen.getvalue()
    assert "\x1b[31m" not in seen.getvalue()
    assert "33%" in seen.getvalue()


def on_a_terminal(say: Callable[[], None]) -> list[str]:
    """The lines that standard error shows, where it is a terminal."""
    parent, child = pty.openpty()
    with os.fdopen(child, "w") as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with attached():
            say()
    lines = os.read(parent, 9999).decode().replace("\r\n", "\n").rstrip("\n").split("\n")
    os.close(parent)
    return lines


def test_errors_are_wrapped_where_people_read_them():
    lines = on_a_terminal(lambda: print_error("what " * 30, "how " * 30 + "/a/path/" + "that-is-long" * 9))
    assert lines[0].startswith("error: what")
    assert all(line.startswith("       ") for line in lines[1:])
    assert all(len(line) <= 80 for line in lines[:-1])
    assert lines[-1].endswith("/a/path/" + "that-is-long" * 9)  # whole, to be copied


@pytest.mark.parametrize("say", [
    lambda: _show_note(UserWarning("word " * 40)), lambda: print_note("word " * 40),
])  # fmt: skip
def test_notes_are_wrapped_as_errors_are(say, capsys):
    lines = on_a_terminal(say)
    assert lines[0].startswith("note: word")
    assert all(line.startswith("      word") for line in lines[1:])
    assert len(lines) > 2
    assert max(map(len, lines)) <= 80
    say()
    assert capsys.readouterr().err.count("\n") == 1  # where a program reads them, a line is a line


@pytest.mark.parametrize("arguments", [["--help"], ["generate"], ["train", "--data", "t.txt"], ["doctor", "--help"]])
def test_a_working_folder_that_is_gone(arguments):
    """One of torch's libraries ends the whole process where there is none."""
    Path("gone").mkdir()
    script = f"import os, sys; os.rmdir(os.getcwd()); from minigpt.cli.main import main; main({arguments})"
    done = subprocess.run([sys.executable, "-c", script], cwd="gone", capture_output=True, text=True, check=False)
    if arguments == ["--help"]:
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 2
        assert done.stderr == "error: the working folder is not there any more\n       go to one that is: cd\n"


@pytest.mark.parametrize("moment", ["import torch", "the work", "the telling"])
def test_ctrl_c_is_two_lines(moment, monkeypatch, capsys):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    where = {
        "import torch": "minigpt.cli.main.import_module",
        "the work": "minigpt.cli.models.model_source",
        "the telling": "minigpt.cli.main.usage",
    }[moment]
    monkeypatch.setattr(where, interrupted)
    Path("run").mkdir()
    Path("run/config.yaml").touch()
    assert run(["--help"] if moment == "the telling" else ["tokenize", "--model", "run", "a"]) == 130
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 2)
    assert err.startswith("error: interrupted\n       ")


@pytest.mark.parametrize("listening", [True, False], ids=["", "ignored"])
def test_ctrl_c_during_an_import_is_not_lost(listening, tmp_path, monkeypatch, capsys):
    """A library can swallow the exception, as this one does. It comes behind the import, if anybody listens."""
    (tmp_path / "swallows.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = types.ModuleType("command")

    def answer(_: object) -> None:
        import_module("swallows")
        print("went on")
        threading.Event().wait(60 if listening else 0)

    vars(command)["answer"] = answer
    monkeypatch.setattr("minigpt.cli.main.import_module", lambda _: command)
    handler = signal.default_int_handler if listening else signal.SIG_IGN
    before = signal.signal(signal.SIGINT, handler)
    try:
        assert run(["tokenize", "a"]) == (130 if listening else 0)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
        sys.modules.pop("swallows", None)
    out, err = capsys.readouterr()
    assert (out, err[:18]) == ("went on\n", "error: interrupted" if listening else "")


def test_ctrl_c_waits_for_the_import_of_the_command_line_itself(monkeypatch):
    seen, room = [], types.ModuleType("minigpt.cli.main")

    def look(name: str) -> Callable[[], None]:
        if name != "main":
            raise AttributeError(name)
        seen.append(signal.getsignal(signal.SIGINT))
        return lambda: None

    vars(room)["__getattr__"] = look
    monkeypatch.setitem(sys.modules, "minigpt.cli.main", room)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        runpy.run_module("minigpt", run_name="__main__")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [interrupt]


def test_write_product_outside_of_a_command(capsys):
    write_product("text\x1b")
    assert capsys.readouterr().out == "text\x1b"
