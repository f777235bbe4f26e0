"""Ctrl-C, `kill`, and a closed terminal: noted once, obeyed the second time, and nothing left behind."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minigpt.cli.main import answer as command
from minigpt.formats.run_directory import RunDirectory
from minigpt.training import loop
from minigpt.training.checkpoint import clean, open_checkpoint
from minigpt.training.signals import StopRequest
from minigpt.training.verify import at_step, compare

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def handlers():
    """As in a terminal, even if nohup or a shell in the background started the tests; pytest has its own afterwards."""
    numbers = [*BOTH, signal.SIGHUP]
    before = [signal.getsignal(number) for number in numbers]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_is_noted_and_the_second_is_the_callers(number, capfd):
    heard = []
    for other in BOTH:
        signal.signal(other, lambda number, frame: heard.append(number))
    with StopRequest() as stop:
        os.kill(os.getpid(), number)
        assert (stop.signal, heard) == (number, [])
        assert "stopping after this step" in capfd.readouterr().err
        for other in BOTH:
            os.kill(os.getpid(), other)
        assert (stop.signal, heard) == (number, BOTH)


@pytest.mark.parametrize("number", BOTH)
def test_two_that_come_together_are_two(number, monkeypatch):
    """The second may run its handler inside the first one's, wherever that is."""
    heard, real = [], signal.signal
    for other in BOTH:
        real(other, lambda number, frame: heard.append(number))

    def meanwhile(other, handler):
        if due:
            os.kill(os.getpid(), due.pop())
        return real(other, handler)

    for calls in range(2):  # both before a handler has changed, or only the other one's has
        heard.clear()
        with StopRequest() as stop, monkeypatch.context() as patch:
            due = [number]
            patch.setattr(signal, "signal", meanwhile)
            os.kill(os.getpid(), BOTH[calls])
            assert (stop.signal, heard) == (number, [number])


def test_handlers_come_back_after_an_error():
    before = [signal.getsignal(number) for number in BOTH]

    def fails():
        with StopRequest():
            assert [signal.getsignal(number) for number in BOTH] != before
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fails()
    assert [signal.getsignal(number) for number in BOTH] == before


def test_a_job_in_the_background_hears_it_too():
    """A shell without job control starts such a job with SIGINT ignored; `kill -INT` is still meant."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_nobody_needs_to_listen(monkeypatch):
    """Standard error may be a pipe whose reader has gone; an error in a handler would end the step half-way."""

    def gone(descriptor, data):
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", gone)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal == signal.SIGINT


def test_a_closed_terminal_is_noted_however_often(monkeypatch):
    """The kernel tells it, and the shell once more; neither is a wish to leave at once, and a Ctrl-C before was one."""
    heard, silenced = [], []
    signal.signal(signal.SIGHUP, lambda number, frame: heard.append(number))
    monkeypatch.setattr(os, "dup2", lambda source, target: silenced.append(target))
    monkeypatch.setattr("stat.S_ISCHR", lambda mode: True)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        assert (stop.signal, heard, silenced) == (signal.SIGHUP, [], [1, 2, 1, 2])
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGHUP)
        assert (stop.signal, heard) == (signal.SIGTERM, [])
    os.kill(os.getpid(), signal.SIGHUP)
    assert heard == [signal.SIGHUP]


def test_nohup_is_meant():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal is None
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_file_is_no_terminal(capfd):
    """What the run says after its terminal was closed still goes there, if it goes to a file."""
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop.signal == signal.SIGHUP
        os.write(1, b"still here")
    assert capfd.readouterr().out == "still here"


def test_another_thread_catches_nothing():
    before, found = signal.getsignal(signal.SIGINT), []

    def enter():
        with StopRequest() as stop:
            found.append((stop.signal, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(None, before)]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_the_shells(corpus, flags, monkeypatch, capsys, number, code):
    Path("play.txt").write_text(corpus.text)
    real = loop.gradients

    def gradients(run, taken, first, processes):
        if first == 4 * run.rows_per_step:
            os.kill(os.getpid(), number)
        return real(run, taken, first, processes)

    monkeypatch.setattr(loop, "gradients", gradients)
    assert command(["train", *flags, "--out", "run"]) == code
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "stopped at step 5 of 12, and saved",
        "go on with: minigpt train --resume run",
    ]
    assert open_checkpoint(Path("run/last")).progress.step == 5


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", ["gradients", "replace_last", "evaluate_and_keep"])
def test_the_last_step_hears_it_too(corpus, flags, monkeypatch, capsys, number, code, moment):
    """In it, in its save, and in its evaluation. What was left undone is done by a resume, and the run is the same."""
    Path("play.txt").write_text(corpus.text)
    assert command(["train", *flags, "--out", "straight"]) == 0
    real, calls = getattr(loop, moment), []
    last = {"gradients": 12, "replace_last": 6, "evaluate_and_keep": 2}[moment]

    def tells(*arguments):
        calls.append(1)
        if len(calls) == last:
            os.kill(os.getpid(), number)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, moment, tells)
        assert command(["train", *flags, "--out", "run"]) == code
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "stopped at step 12 of 12, and saved",
        "go on with: minigpt train --resume run",
    ]
    assert command(["train", "--resume", "run"]) == 0
    assert all(c.equal for c in compare(RunDirectory(Path("straight")), RunDirectory(Path("run"))))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("times", [1, 2])
def test_a_real_process(corpus, flags, number, code, times):
    """One signal: saved, and 130 or 143. Two: gone at once, by the signal itself, perhaps between the two renames of a
    save; what a resume does first makes `last/` whole then. Or it had ended before the second came."""
    Path("play.txt").write_text(corpus.text)
    arguments = [*flags, "--train.max_steps", "99999", "--train.eval_interval", "99999", "--out", "run"]
    process = subprocess.Popen(
        [sys.executable, "-m", "minigpt", "train", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    run, started = RunDirectory(Path("run")), at_step(5)
    while process.poll() is None and not started(run):
        time.sleep(0.01)
    for _ in range(times):
        process.send_signal(number)
        time.sleep(0.1)
    _, err = process.communicate()
    assert process.returncode in ((code,) if times == 1 else (code, -number)), err.decode()
    assert b"Traceback" not in err
    if times == 1:
        assert b"and saved" in err
    else:
        clean(run, print)
    assert open_checkpoint(run.last).progress.step >= 5


@pytest.mark.slow
def test_a_terminal_that_is_closed(corpus, flags):
    """Its kernel says so, writing to it fails from then on, and the run is saved all the same."""
    Path("play.txt").write_text(corpus.text)
    arguments = [*flags, "--train.max_steps", "99999", "--train.eval_interval", "50", "--train.save_interval", "1000"]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "minigpt", "train", *arguments, "--out", "run"])
    run, said = RunDirectory(Path("run")), b""
    while b"step 50 " not in said:
        said += os.read(terminal, 4096)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    assert open_checkpoint(run.last).progress.step > 50
