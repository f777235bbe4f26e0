"""`minigpt COMMAND ...`: find the command's module, run it, turn errors into two lines and an exit code."""

import os
import sys
import traceback
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from minigpt.cli.streams import CHECK_PATH, Stream, attached, one_line, print_error, print_note
from minigpt.errors import ConfigError, Interrupted, MiniGPTError, did_you_mean
from minigpt.system.signals import interruptible

if TYPE_CHECKING:
    from minigpt.cli.parser import SettingsParser

# command -> (its module in this folder, what it does). A module is imported only to answer.
COMMANDS = {
    "quickstart": ("quickstart", "train the quick preset on Shakespeare, and let it write"),
    "train": ("train", "train a GPT on a corpus, a file or a folder"),
    "verify-resume": ("verify_resume", "prove here that a killed training loses nothing"),
    "generate": ("generate", "continue a text with a trained model"),
    "chat": ("chat", "talk with a model, line by line"),
    "next": ("next_token", "the most probable next tokens after a text"),
    "score": ("score", "how probable whole texts are"),
    "eval": ("evaluate", "loss, perplexity and bits per character on a text"),
    "evaluate-text": ("evaluate_text", "how varied texts are, and how much of them is copied"),
    "evaluate-chat": ("evaluate_chat", "how well a model replies, and what goes wrong"),
    "compare": ("compare", "several decoders or models on the same prompts"),
    "inspect": ("inspect_model", "every number inside a model: attention, lens, attribution, ..."),
    "explore": ("explore", "a page that runs your model, and shows every number in it"),
    "tokenize": ("tokens", "show how a text is cut into tokens"),
    "import": ("import_model", "turn any model into a run directory, proved equal if asked"),
    "export": ("export_model", "write a model in the layout of the transformers library"),
    "doctor": ("doctor", "what this machine has, and which settings are fastest on it"),
}
TRAINING = (["quickstart"], ["train"])
MOST_FLAGS = ("train", "generate")  # the commands that have most of them


def usage() -> str:
    """The text of `minigpt --help`."""
    lines = "\n".join(f"  {name:<15}{what}" for name, (_, what) in COMMANDS.items())
    return f"""usage: minigpt COMMAND [--help] [arguments]

A small GPT, written to be read: train it, or take GPT-2's weights, and decode.

commands:
{lines}

start here:
  minigpt quickstart
  minigpt generate "ROMEO:"
  minigpt chat

Every command has --help, answers --json with one JSON object, and exits
0 (done), 2 (a mistake in what was asked, or an answer that could not be
written), 1 (a mistake of ours, or a check that found a difference) or 128 + a
signal's number (stopped by it)."""


def main(arguments: list[str] | None = None) -> None:
    """Answer one command line and exit. Its words, those after `minigpt`, are by default the process's own."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # UTF-8 whatever the locale says; notebooks' streams lack this
            stream.reconfigure(encoding="utf-8")
    try:
        code = answer(sys.argv[1:] if arguments is None else arguments)
    except Exception:
        with attached():
            traceback.print_exc()
        code = 1
    sys.exit(code)


def answer(arguments: list[str]) -> int:
    """Answer one command line; returns the exit code.

    Raises:
        SystemExit: with the exit code, if a command ends the process itself, as --help does.
    """
    with attached() as (out, _), interruptible():
        ended = False
        try:
            code = _dispatch(arguments, out)
        except SystemExit as end:
            ended, code = True, int(end.code or 0)
        except KeyboardInterrupt:
            print_error(
                "interrupted", "nothing is half-written: what had been saved is whole, and the rest is not there"
            )
            code = 130
        out.end()
        if isinstance(out.failure, BrokenPipeError):  # `minigpt ... | head`: the reader has seen enough
            code = 141 if arguments[:1] in TRAINING and not ended else code  # but this has cut off a training
        elif out.failure:
            why = getattr(out.failure, "strerror", None) or out.failure
            print_error(f"standard output could not be written: {why}", "free some space, or send it somewhere else")
            code = code or 2
    if ended:
        sys.exit(code)
    return code


def _dispatch(arguments: list[str], out: Stream) -> int:
    """Run a command line, and print an error in two lines if it fails; returns the exit code."""
    command, *rest = arguments or ["help"]
    if command in ("--help", "-h", "help"):
        command, rest = rest[0] if rest else "help", [*rest[1:], "--help"]
    parser = None
    try:
        if command == "help":
            print(usage())
            return 0
        if command == "inspect" and rest[:1] in ([], ["--help"], ["-h"]):
            from minigpt.cli.inspect_model import usage as views

            print(views())
            if rest:
                sys.exit(0)  # as a parser does after its help
            return 0
        if command == "--version":
            from minigpt import __version__

            print(f"minigpt {__version__}")
            return 0
        if command not in COMMANDS:
            raise ConfigError(f"there is no command {command!r}", did_you_mean(command, COMMANDS))
        os.getcwd()  # an error if it was removed; without this check, one of torch's libraries would end the process
        with warnings.catch_warnings():
            warnings.showwarning = _show_note
            parser, rest = parser_of(command, rest)
            given = parser.parse(rest)
            module = import_module(f"minigpt.cli.{COMMANDS[command][0]}")
            module.answer(given)
    except (MiniGPTError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and out.failure:  # the reader has left: this is no error
            return 0
        lines = _two_lines(error, parser.flags() if parser else {})
        if lines is None or (parser and parser.debug):
            raise
        print_error(*lines)
        return 2
    except Interrupted as stop:
        print(f"\n{one_line(stop.what)}\n{one_line(stop.how)}", file=sys.stderr)
        return 128 + stop.signal  # as a shell counts: 130 after SIGINT, 143 after SIGTERM
    return 0


def parser_of(command: str, rest: list[str]) -> tuple["SettingsParser[Any]", list[str]]:
    """The parser of a command, and the words after its name; with `inspect`, the view belongs to the name.

    Raises:
        ConfigError: if `inspect` has no such view.
    """
    from minigpt.cli.parser import SettingsParser
    from minigpt.cli.settings import SETTINGS

    others = {name: SETTINGS[name] for name in MOST_FLAGS}
    if command != "inspect":
        return SettingsParser(command, SETTINGS[command], others=others), rest
    from minigpt.cli.inspect_model import settings_of

    view, *rest = rest
    return SettingsParser(f"inspect {view}", settings_of(view), others=others), rest


def _two_lines(error: Exception, flags: Mapping[str, str]) -> tuple[str, str] | None:
    """What is wrong and how to mend it, in words of the command line; None for a mistake in minigpt itself."""
    if isinstance(error, MiniGPTError):
        told = MiniGPTError(*error.renamed(flags, all_of_them=True))
        return told.what, told.how
    if isinstance(error, OSError):
        try:
            os.getcwd()
        except OSError:
            return "the working folder is not there any more", "go to one that is: cd"
        if error.strerror and error.strerror.startswith("No usable temporary directory"):  # which has no name yet
            return error.strerror, "name a folder that can be written to, with free space, in the environment's TMPDIR"
        return (
            f"{error.strerror or error}: {error.filename or 'while writing'}",
            f"{CHECK_PATH}; --debug shows where it happened",
        )
    said = str(error).lower()  # the errors of GPUs and CPUs have no common class
    if isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said:
        return (
            "there is not enough memory for this",
            "ask for less at once: fewer sequences or beams, a smaller batch or model; --debug shows where",
        )
    return None


def _show_note(message: Warning | str, *_where: Any, **_and_more: Any) -> None:
    """Print a warning as one line on standard error, without its place in the code, which is of no use here."""
    print_note(str(message))
