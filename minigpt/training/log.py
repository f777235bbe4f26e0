"""The output of a run: lines and a bar on the terminal, `metrics.jsonl`, `samples.txt`, `loss.png`."""

import json
import math
import operator
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from tqdm import tqdm

from minigpt.errors import first_line
from minigpt.formats.run_directory import RunDirectory, read_records
from minigpt.system.figures import save_figure
from minigpt.system.files import open_to_append, writing
from minigpt.training.curves import loss_curve, perplexity_curve
from minigpt.training.trackers import Tracker

SHOWN_LINES = 8  # of a sample, on the terminal; samples.txt has all of it

PrintLine = Callable[[str], None]


def print_to_stdout(line: str) -> None:
    """Print a line above the progress bar, if there is one."""
    tqdm.write(line, file=sys.stdout)
    print(end="", flush=True)  # so that a log has every line, while it is read or when the job is killed


def print_to_stderr(line: str) -> None:
    """Print a line to standard error, when standard output is reserved for one JSON object."""
    tqdm.write(line, file=sys.stderr)


def print_line_for(as_json: bool) -> PrintLine:
    """The function that prints lines for people; with JSON on standard output they go to standard error."""
    return print_to_stderr if as_json else print_to_stdout


def print_nothing(line: str) -> None:
    """Print nothing: for every process of a run except the first."""


class RunLog:
    """The record of one run; a context manager, so that the bar is closed and the plot drawn however the run ends.

    Args:
        run: the run's paths, or None to keep the records only in memory.
        max_steps: steps that the run will take.
        print_line: where lines for people go.
        floor: the entropy of the corpus in nats per token, where it is known; drawn into the plot.
        title: of the plot.
        marks: the lengths of the files, as `marks` gave them at the checkpoint from which the run is resumed. What was
            written after that is cut off, because it will be written again.
        by_epoch: draw the perplexity of the epochs as well.

    Attributes:
        tracker: gets every record and every sample too.
    """

    def __init__(
        self,
        run: RunDirectory | None,
        max_steps: int,
        print_line: PrintLine,
        floor: float | None,
        title: str,
        marks: Mapping[str, int] | None = None,
        by_epoch: bool = False,
    ) -> None:
        self.run = run
        self.by_epoch = by_epoch
        self.tracker: Tracker | None = None
        self.print_line = print_line
        self.floor = floor
        self.title = title
        paths = (run.metrics, run.samples) if run else ()
        with ExitStack() as opening:  # if one cannot be opened, the other is closed
            self._files = {
                path.name: opening.enter_context(
                    _opened(path, 0 if marks is None else marks.get(path.name, -1), print_line)
                )
                for path in paths
            }
            opening.pop_all()
        self.records = read_records(run.metrics) if run else []
        self._drawn = 0  # how many records the plot on disk shows
        self._start = time.perf_counter() - (self.records[-1]["seconds"] if self.records else 0.0)
        first = self.records[-1]["step"] if self.records else 0
        self._bar = tqdm(
            total=max_steps, initial=first, unit="step", file=sys.stderr, dynamic_ncols=True,
            disable=None if run and sys.stderr else True,  # None: where it is no terminal
        )  # fmt: skip

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        if self._drawn < len(self.records) or not self.records:
            self.draw()
        for file in self._files.values():
            with suppress(OSError):  # a line has already said what could not be written
                file.close()
        with self.tracking() as tracker:
            if tracker:
                tracker.close()

    @property
    def seconds(self) -> float:
        """Wall time of the run in seconds, without the pauses before resumes."""
        return time.perf_counter() - self._start

    def marks(self) -> dict[str, int]:
        """The length of each file; everything up to there has reached the disk when this returns.

        Raises:
            OSError: if it cannot be written to the disk.
        """
        for name, file in self._files.items():
            with writing(Path(name)):
                file.flush()
                os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def restore(self) -> None:
        """Make the files again, with every record, if they were removed or replaced by others.

        The samples so far are lost.

        Raises:
            OSError: if they cannot be written.
        """
        for name, file in self._files.items():
            path = self.run.path / name if self.run else Path(name)
            if not _is_at(file, path):
                self._files[name] = open_to_append(path)
                with suppress(OSError):
                    file.close()
                if name == "metrics.jsonl":
                    self._files[name].truncate(0)
                    self._files[name].write("".join(map(_line, self.records)).encode("utf-8"))

    def step(self, step: int) -> None:
        """Move the bar to `step` finished steps."""
        self._bar.update(step - self._bar.n)

    def record(self, step: int, tokens: int, **values: Any) -> None:
        """Append one record to `metrics.jsonl`, and flush it to the system, if there is room."""
        record = {"step": step, "tokens": tokens, "seconds": round(self.seconds, 3), **values}
        self.records.append(record)
        self._append("metrics.jsonl", _line(record))
        if "train_loss" in values:
            loss, speed = values["train_loss"], values["tokens_per_second"]
            self._bar.set_postfix({"loss": f"{loss:.3f}", "tok/s": f"{speed:,.0f}"}, refresh=False)
        with self.tracking() as tracker:
            if tracker:
                tracker.record(step, record)

    def values(self, key: str) -> list[tuple[int, Any]]:
        """The steps at which something was recorded, and its values."""
        return [(record["step"], record[key]) for record in self.records if key in record]

    def sample(self, step: int, text: str) -> None:
        """Keep a sample in `samples.txt` and show its first lines."""
        self._append("samples.txt", f"--- step {step} ---\n{text}\n\n")
        with self.tracking() as tracker:
            if tracker:
                tracker.sample(step, text)
        for line in text.strip("\n").splitlines()[:SHOWN_LINES]:
            self.print_line(f"    {line[:74]}")

    def draw(self) -> None:
        """Draw `loss.png` from the records so far."""
        self._drawn = len(self.records)
        if self.run and not _is_at(self._files["metrics.jsonl"], self.run.metrics):  # it may be another run's folder
            self.print_line(f"{self.run.plot.name} not drawn: {self.run.metrics.name} is another file now")
        elif self.run:
            training, validation, rates = (self.values(key) for key in ("train_loss", "val_loss", "lr"))
            with self.only_shown(f"{self.run.plot.name} not drawn"):
                save_figure(loss_curve(training, validation, rates, self.floor, self.title), self.run.plot)
            if self.by_epoch and (epochs := epochs_of(self.records)):
                with self.only_shown(f"{self.run.perplexity_plot.name} not drawn"):
                    save_figure(perplexity_curve(epochs, self.title), self.run.perplexity_plot)

    @contextmanager
    def forgiving(self, what: str, kind: type[Exception] = OSError) -> Iterator[None]:
        """A `with` in which a failure to write, as on a full disk, only prints a line and does not end the run."""
        try:
            yield
        except kind as error:
            self.print_line(f"{what}: {getattr(error, 'strerror', None) or first_line(error, 100)}")

    def only_shown(self, what: str) -> AbstractContextManager[None]:
        """A `with` for output that people only look at: any failure in it prints a line and does not end the run."""
        return self.forgiving(what, Exception)

    @contextmanager
    def tracking(self) -> Iterator[Tracker | None]:
        """A `with` for what a tracker does: any failure in it prints a line, and no tracker is used after it."""
        try:
            yield self.tracker
        except Exception as error:  # of any kind: these libraries write files, and talk to the network
            self.tracker = None
            self.print_line(f"report_to  failed, and training goes on without it: {first_line(error, 100)}")

    def _append(self, name: str, text: str) -> None:
        if name in self._files:
            with self.only_shown(f"{name} not written"):  # it stays buffered for the next write
                self._files[name].write(text.encode("utf-8"))
                self._files[name].flush()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def epochs_of(records: list[dict[str, Any]]) -> list[tuple[float, float, float]]:
    """For every evaluation: the epoch, the mean training loss since the one before, and the validation loss.

    If no step was recorded in between, as before the first step of a fine-tuning, the training loss is NaN.
    """
    found, losses, since, step = [], [], [], 0
    for record in records:
        if "train_loss" in record:
            losses.append(record["train_loss"])
            since.append(record["step"] - step)
            step = record["step"]
        if {"val_loss", "epoch"} <= record.keys():
            steps = sum(since)
            mean = sum(map(operator.mul, losses, since)) / steps if steps else math.nan
            found.append((record["epoch"], mean, record["val_loss"]))
            losses, since = [], []
    return found


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at this path, as far as the system can tell."""
    with suppress(OSError):
        return not file.closed and os.path.samestat(os.fstat(file.fileno()), os.lstat(path))
    return False


def _opened(path: Path, length: int, print_line: PrintLine) -> IO[bytes]:
    """A file to append to, cut to its first `length` bytes if a record ends there."""
    file = open_to_append(path)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, min(length, size) - 1))
    if length == 0 or (0 < length <= size and file.read(1) == b"\n"):
        file.truncate(length)
    else:  # somebody has edited or removed it since
        print_line(f"{path.name} is not as the checkpoint left it: nothing of it was cut, so steps may occur twice")
    file.seek(0, os.SEEK_END)
    return file
