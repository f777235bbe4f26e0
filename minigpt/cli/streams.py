"""Standard input, output and error while a command runs.

Every `print`, progress bar and note goes through here, whatever the streams are: closed, on a full disk, a notebook's,
a pipe whose reader has left. A failure to print never ends the work, except if a reader has left for whom the work is
done. Messages have their control characters escaped and very long lines cut, because they contain names from files that
may come from anybody, and a terminal obeys control characters. The product of a command, a text or JSON, goes to a file
or a pipe unchanged.
"""

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from minigpt.errors import CheckpointError, InputError, cut
from minigpt.system import WIDTH
from minigpt.system.files import plain_text

NARROWEST = 16  # columns; a text in fewer cannot be read
CHECK_PATH = "check the path, its permissions and the free space"  # where the system refuses a file
STDIN = "-"  # instead of a text or a file: read standard input
SEND_UTF8 = "send it UTF-8 text"

# All control characters except tab and line feed; and those that reverse the direction of a line, or end it invisibly.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_BAR = re.compile("\r?(?:\x1b\\[A)*")  # how a progress bar overwrites itself


class Stream:
    """A standard stream that can always be written to.

    Args:
        inner: the stream itself.
        needed: whether work is useless when the reader has left; then a write raises BrokenPipeError.

    Attributes:
        failure: the first error of a write. All other errors are only kept here, so that work goes on.
    """

    def __init__(self, inner: TextIO, needed: bool) -> None:
        self.inner = inner
        self.needed = needed
        self.failure: OSError | ValueError | None = None

    def __getattr__(self, name: str) -> Any:  # isatty, fileno, encoding: progress bars ask for them
        return getattr(self.inner, name)

    def write(self, text: str) -> int:
        """Write a message."""
        bar = _BAR.match(text)
        back = bar[0] if bar and not self.needed else ""  # bars are drawn only on standard error
        self._attempt(self.inner.write, back + self._encodable(said(text[len(back) :])))
        return len(text)

    def write_product(self, text: str) -> None:
        """Write the product of a command; for a terminal, its control characters except line ends are escaped."""
        text = "\r".join(map(escaped, text.split("\r"))) if self.inner.isatty() else text
        self._attempt(self.inner.write, self._encodable(text))

    def flush(self) -> None:
        """Flush the stream."""
        self._attempt(self.inner.flush)

    def end(self) -> None:
        """Flush, and leave nothing unwritten, which Python would try to write at its end, with an error message."""
        with suppress(BrokenPipeError):
            self.flush()
        if self.failure:
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.inner.fileno())
                os.close(nowhere)

    def _encodable(self, text: str) -> str:
        """The text, with escapes for characters that the stream's encoding lacks, such as a byte of a path."""
        encoding = getattr(self.inner, "encoding", None) or "utf-8"
        return text.encode(encoding, errors="backslashreplace").decode(encoding)

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        try:
            action(*arguments)
        except (OSError, ValueError) as error:  # a closed file is a ValueError
            self.failure = self.failure or error
            if self.needed and isinstance(error, BrokenPipeError):
                raise


def _open_closed() -> None:
    """Replace each standard stream that the caller has closed by the null device.

    Otherwise the next file that is opened would get the stream's number, and everything printed would go into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - for the rest of the process


@contextmanager
def attached() -> Iterator[tuple[Stream, Stream]]:
    """A context in which `sys.stdout` and `sys.stderr` are streams of this module."""
    _open_closed()
    before = sys.stdout, sys.stderr
    out, err = Stream(sys.stdout, needed=True), Stream(sys.stderr, needed=False)
    sys.stdout, sys.stderr = cast(TextIO, out), cast(TextIO, err)
    try:
        yield out, err
    finally:
        out.end()
        err.end()
        sys.stdout, sys.stderr = before


def write_product(text: str) -> None:
    """Write the product of a command to standard output."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.write_product(text)
    else:
        sys.stdout.write(text)
    sys.stdout.flush()  # a text appears as it is written


def print_json(content: dict[str, Any]) -> None:
    """One JSON object on standard output.

    Raises:
        CheckpointError: if a number is infinite or not a number, which JSON cannot hold.
    """
    try:
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise CheckpointError(
            "the result has a number that is infinite or not a number, which JSON cannot hold",
            "look at it without --json; the model's values overflow",
        ) from None
    # Half a character, as in a path that is not UTF-8, becomes a JSON escape; so do the control characters that JSON
    # allows but terminals obey.
    text = text.encode("utf-8", errors="backslashreplace").decode("utf-8")
    write_product(re.sub("[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n")


def write_files(files: Sequence[Path], write: Callable[[Path], None]) -> None:
    """Write the files of a result that was printed already. One that cannot be written keeps no other from it.

    Raises:
        OSError: the first that came; a note has each other one.
    """
    failed = []
    for file in files:
        try:
            write(file)
        except OSError as error:
            failed.append(error)
    for other in failed[1:]:
        print_note(f"{other.filename} could not be written: {other.strerror}")
    if failed:
        raise failed[0]


def print_error(what: str, how: str) -> None:
    """Two lines on standard error: what is wrong, and how to mend it."""
    start = "error: "
    print(f"{_wrapped(start, what)}\n{_wrapped(' ' * len(start), how)}", file=sys.stderr)


def print_note(text: str) -> None:
    """One line on standard error: a warning about something that may surprise, though nothing is wrong."""
    print(_wrapped("note: ", text), file=sys.stderr)


def check_stdin_once(words: Sequence[str]) -> None:
    """Raise InputError if "-" is given twice."""
    if words.count(STDIN) > 1:
        raise InputError(f"{STDIN} is given twice, and standard input can be read once", f"give {STDIN} once")


def with_stdin(*texts: str) -> list[str]:
    """Texts of a command line, with the content of standard input, without its last line break, for "-".

    Raises:
        InputError: if two of them are "-".
        DataError: if standard input is not UTF-8 text.
    """
    check_stdin_once(texts)
    return [_standard_input() if text == STDIN else text for text in texts]


def _standard_input() -> str:
    return plain_text(sys.stdin.buffer.read(), "standard input", SEND_UTF8).removesuffix("\n")


def said(text: str) -> str:
    """A text as it is printed: control characters escaped, very long lines without their middle."""
    return "\n".join(map(cut, escaped(text).split("\n")))


def escaped(text: str) -> str:
    """A text with its control characters as escapes."""
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def one_line(text: str) -> str:
    """A text in one line: each line end, and each run of blanks, as one space."""
    return " ".join(text.split())


def _wrapped(start: str, text: str) -> str:
    """A line with its beginning; on a terminal it is wrapped, and continues below the start of its text."""
    line, indent = said(start + one_line(text)), " " * len(start)
    if not sys.stderr.isatty():
        return line
    return textwrap.fill(line, screen_width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def screen_width() -> int:
    """How many columns a text for people may have: those of the terminal, at most `WIDTH`."""
    return max(NARROWEST, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
