"""Signals that end a program: at once, except in the middle of an import."""

import signal
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest

from minigpt.system.signals import interrupt, leave

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")

SWALLOWS = """
import signal
try:
    signal.raise_signal({number})
except BaseException:
    heard = "in the middle"
else:
    heard = ""
"""


@pytest.mark.parametrize(
    ("number", "handler", "error"),
    [(signal.SIGINT, interrupt, KeyboardInterrupt), (signal.SIGTERM, leave, SystemExit)],
    ids=["Ctrl-C", "kill"],
)
def test_they_wait_for_the_end_of_an_import(tmp_path: Path, monkeypatch, number, handler, error):
    """And wake a program that waits by then."""
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(number=int(number)))
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(number, handler)
    try:
        with pytest.raises(error):
            signal.raise_signal(number)
        assert import_module("swallows").heard == ""
        with pytest.raises(error):
            threading.Event().wait(60)
    finally:
        signal.signal(number, before)
        sys.modules.pop("swallows", None)


def test_who_asks_again_by_then_is_asked(tmp_path: Path, monkeypatch):
    """A training, which notes the signal, may have begun in between."""
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(number=int(signal.SIGINT)))
    monkeypatch.syspath_prepend(tmp_path)
    before, heard = signal.signal(signal.SIGINT, interrupt), threading.Event()
    try:
        import_module("swallows")
        signal.signal(signal.SIGINT, lambda number, frame: heard.set())
        assert heard.wait(60)
    finally:
        signal.signal(signal.SIGINT, before)
        sys.modules.pop("swallows", None)
