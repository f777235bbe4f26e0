"""What the signals that end a program do here: never in the middle of an import, and never while an error is told."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # which Windows does not have
_IMPORT = "<frozen importlib._bootstrap>"  # the file that Python names in a frame of its import system
_PAUSE = 0.05  # seconds until a signal that came during an import is tried again


def interrupt(number: int, frame: FrameType | None) -> None:
    """Python's own handler of Ctrl-C, except that it waits for the end of an import.

    There an exception may be lost, become another one ("initialization failed"), or end the process in an error of C++.
    """
    if _importing(frame):
        _try_later(number)
    else:
        signal.default_int_handler(number, frame)


def leave(number: int, frame: FrameType | None) -> None:
    """A handler that ends the process and tidies up, but not while an error is being printed."""
    if _importing(frame):
        _try_later(number)
    elif sys.exception() is None:
        raise SystemExit(128 + number)


def _importing(frame: FrameType | None) -> bool:
    while frame and frame.f_code.co_filename != _IMPORT:
        frame = frame.f_back
    return frame is not None


def _try_later(number: int) -> None:
    """Send the signal again, to whichever handler it has by then."""

    def send() -> None:
        if hasattr(signal, "pthread_kill"):  # to the main thread, which may be waiting for input by then
            signal.pthread_kill(main, number)
        else:
            signal.raise_signal(number)

    main = threading.get_ident()  # Python's handlers run there
    timer = threading.Timer(_PAUSE, send)
    timer.daemon = True
    timer.start()


@contextmanager
def interruptible() -> Iterator[None]:
    """A block in which Ctrl-C waits for the end of an import; unless somebody else listens to it, or nobody is to."""
    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def tidy() -> Iterator[None]:
    """A block that SIGTERM and SIGHUP end as Ctrl-C does, so that nothing is left behind; unless they are ignored."""
    endings = [number for number in (signal.SIGTERM, HANGUP) if number and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in endings}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
