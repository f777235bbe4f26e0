"""Ctrl-C, `kill` and a closed terminal: the first signal stops training after its step, a second ends it at once."""

import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

_HEARD = (signal.SIGINT, signal.SIGTERM)
_HANGUP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # which Windows does not have
_ANSWER = b"\nstopping after this step, and saving; once more leaves at once\n"


def leave(number: int, frame: FrameType | None) -> None:
    """A handler that ends the process and tidies up, but not while an error is being printed."""
    if sys.exception() is None:
        raise SystemExit(128 + number)


@contextmanager
def tidy() -> Iterator[None]:
    """A block that SIGTERM and SIGHUP end as Ctrl-C does, so that nothing is left behind; unless they are ignored."""
    endings = [number for number in (signal.SIGTERM, _HANGUP) if number and signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in endings}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    """Inside its `with`, records the first SIGINT or SIGTERM; a second one acts as it would without this class.

    A handler may run between any two lines, in the middle of a step or a write. So it only records the signal, and the
    loop looks at it when the state is complete. Python handles signals only in the main thread: in any other, nothing
    is caught.

    SIGHUP, which a closed terminal sends, is recorded too, unless it is ignored, as under `nohup`. The kernel and the
    shell may both send it, so a second one does not end the run.

    Attributes:
        signal: the number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _HEARD}
            if _HANGUP and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
                self._before[_HANGUP] = signal.signal(_HANGUP, self._hang_up)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore(tuple(self._before))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore(_HEARD)
        with suppress(OSError):  # nobody may be listening any more
            os.write(2, _ANSWER)  # print is not safe here: the signal may have come in the middle of another print

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        for output in (1, 2):  # to write to a terminal that has gone is an error
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(output).st_mode):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), output)

    def _restore(self, numbers: tuple[signal.Signals, ...]) -> None:
        for number in numbers:
            signal.signal(number, self._before.pop(number))
