"""The errors a user can cause, each in two lines: what is wrong, and how to mend it.

The command line prints those two lines and exits 2; a library user catches `MiniGPTError`, or the built-in class that
each child also is. `assert` is kept for our own invariants: a failed one is our bug, never the user's.
"""

import difflib
import reprlib
from collections.abc import Iterable

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxlong = 40


class MiniGPTError(Exception):
    """A mistake that the user can mend.

    Args:
        what: one line, what is wrong, with the values that show it.
        how: one line, what to do about it.
    """

    def __init__(self, what: str, how: str) -> None:
        super().__init__(what, how)
        self.what = what
        self.how = how

    def __str__(self) -> str:
        return f"{self.what}\n{self.how}"


class ConfigError(MiniGPTError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class InputError(MiniGPTError, ValueError):
    """A prompt, a token id or a decoding option cannot be used."""


class DataError(MiniGPTError, ValueError):
    """A corpus or a token file is unreadable, too small, or of another vocabulary."""


class CheckpointError(MiniGPTError, ValueError):
    """A run directory or a weights file is incomplete, damaged, or of another shape."""


class MissingFileError(MiniGPTError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class DownloadError(MiniGPTError, OSError):
    """A file could not be fetched, or what came is not the file that was asked for."""


class DivergenceError(MiniGPTError, ArithmeticError):
    """Training has lost its numbers: a loss or a gradient is infinite or not a number."""


class PeerError(MiniGPTError, RuntimeError):
    """Another process of the same training has died, or does not answer."""


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop by a signal, and has saved its state. No mistake, so no `MiniGPTError`.

    Args:
        signal: its number.
        what: one line, what was saved.
        how: one line, how to go on.
    """

    def __init__(self, signal: int, what: str, how: str) -> None:
        super().__init__(signal, what, how)
        self.signal = signal
        self.what = what
        self.how = how


class ModelNote(UserWarning):
    """What one should know of a model that was loaded, though nothing is wrong with it."""


def first_line(error: BaseException, width: int = 60) -> str:
    """The beginning of an error of another library, for a line of ours; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:width]


def brief(value: object) -> str:
    """A value as an error shows it: the whole of a short one, the ends of a long one."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # Python spells no whole number of more than some thousand digits
        return f"a {type(value).__name__} of thousands of digits"


def near(name: str, known: Iterable[str], most: int = 1) -> str:
    """The beginning of a second line: the known names that resemble this one, as a question; "" if none does."""
    found = difflib.get_close_matches(name, list(known), n=most)
    return f"did you mean {' or '.join(found)}? " if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A second line: the nearest known name if there is one, and all of them."""
    return f"{near(name, known)}known: {', '.join(known)}"
