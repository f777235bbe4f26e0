"""`minigpt COMMAND ...`: find the command's module, run it, turn errors into two lines and an exit code."""

import os
import sys
import warnings
from importlib import import_module
from typing import Any

from minigpt.errors import ConfigError, Interrupted, MiniGPTError, did_you_mean

# command -> (its module in this folder, what it does). A module is imported only when its command runs.
COMMANDS = {
    "quickstart": ("quickstart", "train the quick preset on Shakespeare, and let it write"),
    "train": ("train", "train a GPT on a corpus, a file or a folder"),
    "verify-resume": ("verify_resume", "prove here that a killed training loses nothing"),
    "generate": ("generate", "continue a text with a trained model"),
    "next": ("next_token", "the most probable next tokens after a text"),
    "score": ("score", "how probable whole texts are"),
    "eval": ("evaluate", "loss, perplexity and bits per character on a text"),
    "evaluate-text": ("evaluate_text", "how varied texts are, and what of them is copied"),
    "compare": ("compare", "several decoders or models on the same prompts"),
    "inspect": ("inspect_model", "every number inside a model: attention, lens, attribution, ..."),
    "tokenize": ("tokens", "show how a text is cut into tokens"),
    "import": ("import_model", "turn any model into a run directory, proved equal if asked"),
    "export": ("export_model", "write a model in the layout of the transformers library"),
    "doctor": ("doctor", "what this machine has, and which settings are fastest on it"),
}


def usage() -> str:
    """The text of `minigpt --help`."""
    lines = "\n".join(f"  {name:<15}{what}" for name, (_, what) in COMMANDS.items())
    return f"""usage: minigpt COMMAND [--help] [arguments]

A small GPT, written to be read: train it, or take GPT-2's weights, and decode.

commands:
{lines}

start here:
  minigpt quickstart
  minigpt generate --prompt "ROMEO:"

Every command has --help, answers --json with one JSON object, and exits
0 (done), 2 (a mistake in what was asked), 1 (a mistake of ours, or a check
that found a difference) or 128 + a signal's number (stopped by it)."""


def main(arguments: list[str] | None = None) -> None:
    """Run one command line and exit.

    Args:
        arguments: the words after `minigpt`; those of the process by default.
    """
    for stream in (sys.stdout, sys.stderr):
        # Whatever the locale says; and a path need not be UTF-8, but must be shown.
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        from minigpt import __version__

        print(f"minigpt {__version__}")
        return 0
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in COMMANDS:
            raise ConfigError(f"there is no command {command!r}", did_you_mean(command, COMMANDS))
        with warnings.catch_warnings():
            warnings.showwarning = _show_note
            import_module(f"minigpt.cli.{COMMANDS[command][0]}").run(rest)
        sys.stdout.flush()  # here, where a reader that has left can still be met with grace
    except MiniGPTError as error:
        if "--debug" in rest:
            raise
        print(f"error: {_one_line(error.what)}\n       {_one_line(error.how)}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `minigpt ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # and Python must not complain when it flushes
        return 141 if command in ("train", "quickstart") else 0  # but a training that it ended is not done
    except (MemoryError, RuntimeError) as error:
        if "--debug" in rest or not _lacks_memory(error):
            raise
        print("error: there is not enough memory for this", file=sys.stderr)
        print(
            "       ask for less at once: fewer sequences or beams, a smaller batch or model; --debug shows where",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if "--debug" in rest:
            raise
        print(f"error: {error.strerror or error}: {error.filename or 'while writing'}", file=sys.stderr)
        print(
            "       check the path, its permissions and the free space; --debug shows where it happened",
            file=sys.stderr,
        )
        return 2
    except Interrupted as stop:
        print(f"\n{_one_line(stop.what)}\n{_one_line(stop.how)}", file=sys.stderr)
        return 128 + stop.signal  # as a shell counts: 130 after SIGINT, 143 after SIGTERM
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _lacks_memory(error: MemoryError | RuntimeError) -> bool:
    """Whether this is Python's or torch's way to say so; the errors of a GPU and of a CPU have no class in common."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in said or "can't allocate memory" in said


def _show_note(message: Warning | str, *_where: Any, **_and_more: Any) -> None:
    """A warning as one line on standard error; the place in the code that it comes from helps nobody here."""
    print(f"note: {_one_line(str(message))}", file=sys.stderr)


def _one_line(text: str) -> str:
    return " ".join(text.split())
