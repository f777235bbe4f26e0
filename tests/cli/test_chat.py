"""`minigpt chat`: through a pseudo-terminal, as a person meets it, and through pipes."""

import fcntl
import io
import json
import os
import pty
import select
import string
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from minigpt import replies
from minigpt.chat import Chat
from minigpt.cli.chat import COMMANDS, _Terminal
from minigpt.cli.main import answer as run
from minigpt.config import GPTConfig
from minigpt.data.dialogues import with_template
from minigpt.formats.pretrained import load_model
from minigpt.formats.run_directory import save_run
from minigpt.tokenizers import CharTokenizer
from tests.conftest import random_model

LETTERS = CharTokenizer("\n :.,?!/" + string.ascii_letters)
# The program, with the pseudo-terminal as the one that sends it signals.
PROGRAM = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from minigpt.cli.main import main
main(sys.argv[1:])
"""
DEADLINE = 120  # seconds, of a test that would otherwise wait for ever


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on dialogues, or says so; it writes words of a few letters."""
    return saved(tmp_path_factory.mktemp("talker"), "abehimnorstu    .!", 251)


def saved(folder: Path, likely: str, block_size: int, template: bool = True) -> Path:
    model = random_model(GPTConfig(LETTERS.vocab_size, block_size, n_layer=1, n_head=1, n_embd=7), 3)
    with torch.no_grad():
        model.wte.weight[:, 0] = -3.0
        model.wte.weight[sorted(set(LETTERS.encode(likely))), 0] = 1.0
        model.ln_f.bias[0] = 6
    save_run(model, with_template(LETTERS) if template else LETTERS, folder / "run")
    return folder / "run"


class Terminal:
    """A person at a terminal, who waits for what the program says."""

    def __init__(self, arguments: list[str], columns: int = 80) -> None:
        self._fd, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"}
        environment.pop("COLUMNS", None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "chat", *arguments],
            stdin=inside, stdout=inside, stderr=inside, start_new_session=True, env=environment,
        )  # fmt: skip
        os.close(inside)
        self.screen = ""
        self._seen = 0

    def until(self, text: str) -> str:
        """Wait for a text behind what was waited for before; gives all that came up to its end."""
        while (at := self.screen.find(text, self._seen)) < 0:
            assert select.select([self._fd], [], [], DEADLINE)[0], f"{text!r} did not come: {self.screen[self._seen :]}"
            try:
                data = os.read(self._fd, 1024)
            except OSError:  # the program has ended
                data = b""
            assert data, f"{text!r} did not come: {self.screen[self._seen :]}"
            self.screen += data.decode("utf-8").replace("\r\n", "\n")
        start, self._seen = self._seen, at + len(text)
        return self.screen[start : self._seen]

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode("utf-8"))

    def ask(self, line: str, answer: str) -> str:
        """Type a line, and wait for its answer and the next prompt."""
        self.type(line + "\n")
        return self.until(answer) + self.until("ANN> ")

    def end(self) -> int:
        """The exit code, when the program has ended by itself."""
        with pytest.raises(AssertionError, match="did not come"):
            self.until("\0")
        os.close(self._fd)
        return self._process.wait(DEADLINE)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_one(model: Path, *arguments: str, columns: int = 80) -> Terminal:
        opened.append(Terminal(["--model", str(model), "--user", "ANN", "--as", "BEN", *arguments], columns))
        opened[-1].until("ANN> ")
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def messages(file: str) -> list[str]:
    return [one["content"] for one in json.loads(Path(file).read_text(encoding="utf-8"))["messages"]]


# --- a person at a terminal


def test_every_command(talker: Path, terminal: Callable[..., Terminal]):
    pytest.importorskip("readline")  # which this Python may lack, and then no line is edited
    t = terminal(talker, "--max-new-tokens", "9", "--tries", "1")
    assert "BEN replies. /help shows what you can type" in t.screen
    t.ask("the house", "BEN> ")
    assert "[saved: talk.json]" in t.ask("/save talk.json", "saved")
    first = messages("talk.json")
    assert first[0] == "the house"
    assert f"BEN> {first[1]}" in t.screen
    t.ask("/again", "BEN> ")
    t.type("/save talk.json\n")
    t.until("talk.json is there already; write over it? [y/N] ")
    t.ask("", "[not saved]")
    t.type("/save talk.json\n")
    t.until("[y/N] ")
    t.type("\x04")
    t.until("[not saved]")
    t.until("ANN> ")
    assert messages("talk.json") == first
    t.type("/save talk.json\n")
    t.until("[y/N] ")
    t.ask("y", "[saved: talk.json]")
    second = messages("talk.json")
    assert second[0] == first[0]
    assert second[1] != first[1]
    assert "[taken back: the house]" in t.ask("/undo", "taken")
    t.ask("/undo", "error: nothing was said yet")
    t.ask("/load talk.json", f"[loaded: talk.json, 2 messages]\nANN> the house\nBEN> {second[1]}\n\n")
    Path("newer.json").write_text(json.dumps({"version": 2, "messages": []}), encoding="utf-8")
    assert "       name a file that was saved by" in t.ask("/load newer.json", "error: newer.json is of version 2\n")
    t.ask("/edit a mouse", "BEN> ")
    t.type("/edit\n")
    t.until("ANN> a mouse")  # the line to be edited
    t.ask(" house\x01so ", "BEN> ")  # at its end, and at its beginning
    t.ask("//the bee", "BEN> ")
    t.ask("/save new.json", "[saved")
    assert messages("new.json")[::2] == ["so a mouse house", "/the bee"]
    t.type("/edit\n")
    t.until("ANN> /the bee")
    t.type("\x15\x04")  # empties the line, and ends it
    t.until("error: there is nothing to say instead")
    t.until("ANN> ")
    t.ask("/save .", "error: . is a folder\n       name a file in it")
    t.ask("/save a/b/new.json", "[saved: a/b/new.json; the folder a/b is new]")
    t.ask("/save a/b/newer.json", "[saved: a/b/newer.json]")
    assert "temperature 0.7" in t.ask("/set temperature 0.7", "[turns 4")
    assert "temperature 0.8" in t.ask("/set temperature default", "[turns 4")
    assert "system A house" in t.ask("/set system A house", "[turns 4")
    t.ask("/set temperature hot", "error: temperature hot: expected a number")
    t.ask("/set temperature -1", "error: temperature = -1.0 is out of range")
    t.ask("/set temprature 1", "did you mean temperature?")
    t.ask("/set top_k", "error: /set top_k lacks a value")
    assert "known: /again, /edit, /help, /load, /quit, /save, /set, /undo" in t.ask("/sing", "no command /sing")
    t.ask("/save", "error: /save lacks a FILE")
    t.ask("/undo it", "error: /undo takes nothing behind it")
    told = t.ask("/help", "/again")
    assert all(f"/{name}" in told for name in COMMANDS)
    assert "nothing is kept on disk" in " ".join(told.split())
    t.ask("i" * 251, "error: the message has 2")
    t.type("/se\ttemp\t")
    t.until("/set temperature ")
    t.ask("0.6", "temperature 0.6")
    t.type("/quit\n")
    assert t.end() == 0
    assert "Traceback" not in t.screen


def test_ctrl_c_stops_the_reply_and_ctrl_d_the_program(terminal: Callable[..., Terminal], tmp_path: Path):
    """There are so many tries, all too long, that the program would still write when everybody has gone home."""
    long = saved(tmp_path, "abehimnorstu  ", 1009)
    t = terminal(long, "--max-new-tokens", "1000", "--max-characters", "1", "--tries", "1000")
    t.type("a\n")
    t.until("BEN> ")
    for _ in range(9):
        t.until(" ")
    t.type("\x03")
    t.until("[stopped; what was said counts]")
    t.until("ANN> ")
    t.type("half a line")
    t.until("half a line")
    t.type("\x03\n")  # readline looks for a signal when it waits for a key, or at the end of the line
    t.until("ANN> ")
    t.ask("/save talk.json", "[saved")
    said, reply = messages("talk.json")
    assert said == "a"
    assert "".join(reply.split())[:9] in "".join(t.screen.split())  # which breaks lines elsewhere
    t.type("\x04")
    assert t.end() == 0
    assert "Traceback" not in t.screen


def test_where_every_try_is_empty_none_is_shown_as_the_best(terminal: Callable[..., Terminal], tmp_path: Path):
    t = terminal(saved(tmp_path, "\n", 61), "--tries", "2", "--max-new-tokens", "3", "--temperature", "0.1")
    told = t.ask("the house", "[it is empty; drawn again]")
    assert "[it is empty; try 2 of 2]" in told


def test_a_window_of_40_columns(talker: Path, terminal: Callable[..., Terminal]):
    t = terminal(talker, "--max-new-tokens", "120", "--max-characters", "3", "--tries", "2", columns=40)
    told = t.ask("the house", "BEN> ")
    assert "drawn again]" in " ".join(told.split())
    assert "more than 3; none of 2 passed, the best was]" in " ".join(told.split())
    for line in ("/help", "/sing", "/set"):
        t.ask(line, "set")
    t.ask("/save talk.json", "[saved")
    t.type("/save talk.json\n")
    t.until("talk.json is there already; write over\nit? [y/N] ")
    t.ask("y", "[saved")
    assert max(map(len, t.screen.split("\n"))) <= 40
    shown = told[told.rindex("BEN>") : told.rindex("[cut off after 120 tokens")]
    assert shown.count("\n") > 3
    assert "".join(shown.split()) == "BEN>" + "".join(messages("talk.json")[1].split())
    t.type("\x04")
    assert t.end() == 0


def test_a_line_that_is_not_utf8_ends_no_talk(talker: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setitem(sys.modules, "readline", None)  # which would drop such a byte
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the h\xe9\n/set\n"), "utf-8"))
    _Terminal(Chat(*load_model(talker))).run()
    err = capsys.readouterr().err
    assert err.startswith("error: the line is not UTF-8 text\n")
    assert "[turns 4" in err


# --- pipes


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def answered(lines: str | bytes, *arguments: str) -> tuple[int, str, str]:
        data = lines if isinstance(lines, bytes) else lines.encode("utf-8")
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        capsys.readouterr()
        return run(["chat", *arguments]), *capsys.readouterr()

    return answered


def test_a_line_in_and_a_reply_out(talker: Path, piped):
    code, out, err = piped("the house\n\n  a mouse\nbee", "--model", str(talker), "--max-new-tokens", "9")
    assert (code, err) == (0, "")
    shown = out.removesuffix("\n").split("\n\n")
    assert len(shown) == 3
    code, again, _ = piped("the house\na mouse\nbee\n", "--model", str(talker), "--max-new-tokens", "9", "--no-cache")
    assert (code, again) == (0, out)


def test_a_byte_order_mark_before_the_first_line_is_not_said(talker: Path, piped):
    code, out, _ = piped("\ufeffa house\r\n", "--model", str(talker), "--json")
    assert code == 0
    assert json.loads(out)["messages"] == [{"role": "user", "content": "a house"}]


def test_json_has_an_object_for_each_reply(talker: Path, piped):
    flags = ["--model", str(talker), "--max-new-tokens", "9", "--system", "A house.", "--turns", "2", "--json"]
    code, out, err = piped("the house\n/again\n/undo\nbee\n", *flags, "--max-characters", "4", "--tries", "2")
    found = [json.loads(line) for line in out.splitlines()]
    assert (code, len(found)) == (0, 3)
    assert err == "[taken back: the house]\n"
    keys = {"messages", "reply", "faults", "ended", "seconds", "tokens", "tries", "seed", "failed"}
    assert all(one.keys() == keys for one in found)
    system = {"role": "system", "content": "A house."}
    assert found[0]["messages"] == found[1]["messages"] == [system, {"role": "user", "content": "the house"}]
    assert found[2]["messages"] == [system, {"role": "user", "content": "bee"}]
    for one in found:
        assert one["tries"] == 2
        assert len(one["failed"]) == 2
        assert all(len(failed["reply"]) > 4 for failed in one["failed"])
        assert f"has {len(one['reply'])} characters, more than 4" in one["faults"]
        assert one["tokens"] == 18
    assert [failed["seed"] for one in found for failed in one["failed"]] == [0, 1, 2, 3, 4, 5]


def test_a_line_that_cannot_be_answered_is_told_and_the_others_are_answered(talker: Path, piped):
    lines = b"a\n" + b"i" * 251 + b"\n\xff\n/sing\nbee\n/quit\nnever\n"
    code, out, err = piped(lines, "--model", str(talker), "--max-new-tokens", "9")
    assert (code, len(out.removesuffix("\n").split("\n\n"))) == (2, 2)
    for text in (
        "the message has 2",
        "the line is not UTF-8 text",
        "no command /sing",
        "3 of 6 lines could not be answered",
    ):
        assert text in err
    code, out, err = piped(lines, "--model", str(talker), "--max-new-tokens", "9", "--json")
    kinds = ["error" if "error" in json.loads(line) else "reply" for line in out.splitlines()]
    assert (code, kinds) == (2, ["reply", "error", "error", "error", "reply"])


def test_what_a_pipe_is_told_of_commands_fits_a_screen(talker: Path, piped, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = piped("/help\n/quit\n", "--model", str(talker))
    assert (code, out) == (0, "")
    assert "nothing is kept on disk" in " ".join(err.split())
    assert max(map(len, err.splitlines())) <= 80


@pytest.mark.parametrize(
    ("name", "value"), [("seed", "N"), ("temperature", "X"), ("as", "NAME"), ("strategy", "{sample,greedy}")]
)
def test_a_setting_without_a_value_shows_what_to_type(talker: Path, piped, name: str, value: str):
    err = piped(f"/set {name}\n", "--model", str(talker))[2]
    assert f"type: /set {name} {value}, or /set {name} default. {value}: " in " ".join(err.split())


def test_a_wrong_number_shows_what_to_type(talker: Path, piped):
    err = piped("/set temperature hot\n", "--model", str(talker))[2]
    assert "type: /set temperature X, or" in " ".join(err.split())


def test_what_contradicts_a_setting_shows_what_takes_it_back(talker: Path, piped):
    code, _, err = piped(
        "/set temperature 0.7\n/set strategy greedy\n/set temperature default\n/set strategy greedy\n/set top_k 3\n"
        "/set as \N{SNOWMAN}\n",
        "--model", str(talker),
    )  # fmt: skip
    told = [line for line in " ".join(err.split()).split("error: ") if line]
    assert (code, len(told)) == (2, 5)
    assert "draws nothing type: /set temperature default, or /set strategy sample [" in told[1]
    assert "draws nothing type: /set top_k default, or /set strategy sample" in told[2]
    assert told[3].startswith("as: ")


def test_where_no_token_ends_a_document_none_can_be_kept_back(talker: Path, piped, failing):
    told = failing(["chat", "--model", str(talker), "--min-new-tokens", "20"])
    for text in (told, piped("/set min_new_tokens 20\n", "--model", str(talker))[2]):
        assert "a blank line ends its replies" in " ".join(text.split())
        assert "a least number of characters" in " ".join(text.split())
        assert "eos_token_id" not in text


def test_a_file_is_never_written_over_from_a_pipe(talker: Path, piped):
    Path("talk.json").write_text("mine", encoding="utf-8")
    code, _, err = piped(
        "a\n/save talk.json\n/save talk.json/in.json\n/save other.json\n",
        "--model",
        str(talker),
        "--max-new-tokens",
        "9",
    )
    assert code == 2
    assert "talk.json is there already" in err
    assert "       check the path, its permissions and the free space\n" in err  # there is no folder of that name
    assert Path("talk.json").read_text(encoding="utf-8") == "mine"
    assert len(messages("other.json")) == 2


def test_a_reader_that_leaves_is_no_error(talker: Path):
    with subprocess.Popen(
        [sys.executable, "-m", "minigpt", "chat", "--model", str(talker), "--max-new-tokens", "9"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        process.stdin.write(b"the house\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.stdout.close()
        process.stdin.write(b"a\nbee\n")
        process.stdin.close()
        err = process.stderr.read()
        assert (process.wait(DEADLINE), err) == (0, b"")


def test_words_of_a_list_are_refused(talker: Path, piped, failing):
    letters = "\n".join(string.ascii_letters)
    Path("words.txt").write_text(f"# all there are\n{letters}\n", encoding="utf-8")
    flags = ["--model", str(talker), "--max-new-tokens", "1", "--blocklist", "words.txt", "--tries", "1"]
    code, _, err = piped("the house\n" * 9, *flags)
    assert (code, "blocklist" in err) == (0, True)
    assert "no file missing.txt" in failing(["chat", "--model", str(talker), "--blocklist", "missing.txt"])


def test_a_package_has_a_list_of_words(talker: Path, piped):
    pytest.importorskip("better_profanity")
    code, _, err = piped("a\n", "--model", str(talker), "--max-new-tokens", "5", "--blocklist", replies.PACKAGE)
    assert (code, err) == (0, "")


@pytest.mark.filterwarnings("default::minigpt.errors.ModelNote")  # as outside of tests, where notes are said
def test_a_model_that_was_never_trained_to_reply_says_so_once(tmp_path: Path, piped):
    plain = saved(tmp_path, "abehimnorstu .!", 127, template=False)
    code, _, err = piped("a\nb\n", "--model", str(plain), "--max-new-tokens", "9")
    assert code == 0
    assert err.count("was not trained on dialogues") == 1


def test_a_template_of_somebody_else_is_refused_by_name(tmp_path: Path, failing):
    model = random_model(GPTConfig(LETTERS.vocab_size, 31, n_layer=1, n_head=1, n_embd=7), 3)
    save_run(model, LETTERS.with_added((), {"chat_template": "{{ theirs }}"}), tmp_path / "theirs")
    said = failing(["chat", "--model", "theirs"])
    assert "theirs has a chat template of its own, '{{ theirs }}'" in said


def test_what_contradicts_itself_is_refused(talker: Path, failing):
    line = ["chat", "--model", str(talker)]
    assert "--strategy" in failing([*line, "--strategy", "beam"])
    assert "--seed would change nothing" in failing([*line, "--seed", "3", "--strategy", "greedy"])
    assert "--min-characters 9 is more than --max-characters 3" in failing(
        [*line, "--min-characters", "9", "--max-characters", "3"]
    )
