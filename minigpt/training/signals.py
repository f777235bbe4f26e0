"""Ctrl-C and `kill`, heard between two steps: the first asks training to stop, the second ends it."""

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

_HEARD = (signal.SIGINT, signal.SIGTERM)
_ANSWER = b"\nstopping after this step, and saving; once more leaves at once\n"


class StopRequest:
    """Notes the first SIGINT or SIGTERM while it is entered; a second one does what it would have done without.

    A handler runs between any two lines, half-way through a step or a write. So it only takes a note, and whoever
    asks does so where the state is whole. Python lets the main thread alone handle signals: in another, nothing is
    caught.

    Attributes:
        signal: the number of the signal that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in _HEARD}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        with suppress(OSError):  # nobody may be listening any more
            os.write(2, _ANSWER)  # print is not safe here: the signal may have come in the middle of another print

    def _restore(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())
