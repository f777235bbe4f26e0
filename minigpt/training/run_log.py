"""What a run says while it runs: a line and a bar on the terminal, `metrics.jsonl`, `samples.txt`, `loss.png`."""

import json
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from tqdm import tqdm

from minigpt.analysis.plots import loss_curve, save_figure
from minigpt.files import write_text
from minigpt.training.checkpoint import RunDirectory

SHOWN_LINES = 8  # of a sample, on the terminal; samples.txt has all of it

Say = Callable[[str], None]


def say_to_stdout(line: str) -> None:
    """Print a line above the progress bar, if there is one."""
    tqdm.write(line, file=sys.stdout)
    sys.stdout.flush()  # a log that is followed, or whose job is killed, has every line


def say_to_stderr(line: str) -> None:
    """The same to standard error, where standard output is kept for one JSON object."""
    tqdm.write(line, file=sys.stderr)


class RunLog:
    """The record of one run; a context manager, so that the bar is closed and the plot drawn however the run ends.

    Args:
        run: the run's paths.
        max_steps: steps that the run will take.
        say: where lines for people go.
        floor: the entropy of the corpus in nats per token, where it is known; drawn into the plot.
        title: of the plot.
    """

    def __init__(self, run: RunDirectory, max_steps: int, say: Say, floor: float | None, title: str) -> None:
        self.run = run
        self.say = say
        self.floor = floor
        self.title = title
        self.records: list[dict[str, Any]] = []
        self._samples: list[str] = []
        self._drawn = 0  # how many records the plot on disk shows
        self._start = time.perf_counter()
        self._file = run.metrics.open("a", encoding="utf-8", newline="\n")
        self._bar = tqdm(total=max_steps, unit="step", file=sys.stderr, dynamic_ncols=True, disable=None)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
        self._file.close()
        if self._drawn < len(self.records) or not self.records:
            self.draw()

    @property
    def seconds(self) -> float:
        """Wall time since the log was opened."""
        return time.perf_counter() - self._start

    def step(self, step: int) -> None:
        """Move the bar to `step` finished steps."""
        self._bar.update(step - self._bar.n)

    def record(self, step: int, tokens: int, **values: float) -> None:
        """Append one record to `metrics.jsonl`; it is on its way to the disk when this returns."""
        record = {"step": step, "tokens": tokens, "seconds": round(self.seconds, 3), **values}
        self.records.append(record)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        if "train_loss" in values:
            loss, speed = values["train_loss"], values["tokens_per_second"]
            self._bar.set_postfix({"loss": f"{loss:.3f}", "tok/s": f"{speed:,.0f}"}, refresh=False)

    def sample(self, step: int, text: str) -> None:
        """Keep a sample in `samples.txt` and show its first lines."""
        self._samples.append(f"--- step {step} ---\n{text}\n")
        write_text(self.run.samples, "\n".join(self._samples))
        for line in text.strip("\n").splitlines()[:SHOWN_LINES]:
            self.say(f"    {line[:74]}")

    def draw(self) -> None:
        """Draw `loss.png` from the records so far."""

        def series(key: str) -> list[tuple[int, float]]:
            return [(record["step"], record[key]) for record in self.records if key in record]

        self._drawn = len(self.records)
        figure = loss_curve(series("train_loss"), series("val_loss"), series("lr"), self.floor, self.title)
        save_figure(figure, self.run.plot)
