"""Ctrl-C, `kill` and a closed terminal: the first signal stops training after its step, a second ends it at once."""

import os
import signal
import stat
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from minigpt.system.signals import HANGUP, interrupt

_HEARD = (signal.SIGINT, signal.SIGTERM)
_ANSWER = b"\nstopping after this step, and saving; once more leaves at once\n"


class StopRequest:
    """Inside its `with`, records the first SIGINT or SIGTERM; a second one acts as it would without this class.

    (Except on the command line, where a second Ctrl-C ends the process as SIGTERM does, up to its end.)

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
            handlers = dict.fromkeys(_HEARD, self._note)
            if HANGUP and signal.getsignal(HANGUP) is not signal.SIG_IGN:
                handlers[HANGUP] = self._hang_up
            self._before = {number: signal.getsignal(number) for number in handlers}
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._before:
            signal.signal(number, self._handler_before(number))

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.signal = self.signal in _HEARD, number
        for other in _HEARD:
            signal.signal(other, self._handler_before(other))
        if again:  # it came before the handlers had changed
            signal.raise_signal(number)
        with suppress(OSError):  # nobody may be listening any more
            os.write(2, _ANSWER)  # print is not safe here: the signal may have come in the middle of another print

    def _handler_before(self, number: signal.Signals) -> Any:
        # From the command line a second Ctrl-C is the system's, as a second SIGTERM is: an exception could arise inside
        # of a library that is no Python, and nothing is left to tidy up that a resume does not.
        ours = self.signal in _HEARD and self._before[number] is interrupt
        return signal.SIG_DFL if ours else self._before[number]

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        for output in (1, 2):  # to write to a terminal that has gone is an error
            with suppress(OSError):
                if stat.S_ISCHR(os.fstat(output).st_mode):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
