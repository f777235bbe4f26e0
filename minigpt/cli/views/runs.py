"""`minigpt inspect runs`: several runs side by side."""

import itertools
import math
import os
from typing import Any

from minigpt.analysis.checks import Check, measured
from minigpt.analysis.results import Numbers, Result
from minigpt.cli.streams import print_note
from minigpt.cli.views import settings
from minigpt.cli.views.frame import Answer
from minigpt.errors import InputError, MissingFileError
from minigpt.formats.run_directory import RunDirectory, read_config, read_records, run_at, run_named
from minigpt.system import terminal
from minigpt.system.files import named_path
from minigpt.training.curves import runs_compared

Records = list[dict[str, Any]]


def view_runs(asked: settings.Runs) -> Answer:
    """`minigpt inspect runs`."""
    once: dict[str, str] = {}
    for name in asked.runs:
        once.setdefault(os.path.realpath(_run(name).path), name)  # by whatever name it was given
    records = _read_all([*once.values()])
    curves = {
        f"{name} {what}": [(record["step"], record[what]) for record in run if what in record]
        for name, run in records.items()
        for what in ("train_loss", "val_loss", "lr", "grad_norm")
    }
    result = Result(
        view="runs",
        model=", ".join(records),
        config=None,
        numbers={
            f"{what} {kind}": Numbers((f"{what} record",), [pair[place] for pair in pairs])
            for what, pairs in curves.items()
            for place, kind in enumerate(("step", "value"))
        },
        settings={"runs": [*records]},
    )
    drawn = [(name, curves[f"{name} train_loss"], curves[f"{name} val_loss"]) for name in records]
    lines = [*_table(records), "losses in nats a token; train loss as last recorded"]
    return Answer(result, lines, lambda: _checks(records), lambda: runs_compared(drawn))


def _read_all(names: list[str]) -> dict[str, Records]:
    """The records of runs. Of several, such as checkpoints/* names, what is there and has none is left out, and told.

    Raises:
        MiniGPTError: as `_read`, for a name of nothing, or if no run is left.
    """
    records: dict[str, Records] = {}
    for number, name in enumerate(names, start=1):
        try:
            records[name] = _read(name)
        except (MissingFileError, InputError) as error:
            if not os.path.lexists(run_named(name)) or (number == len(names) and not records):
                raise
            print_note(f"left out: {error.what}")
    return records


def _run(name: str) -> RunDirectory:
    return run_at(named_path(run_named(name), "RUN"))


def _read(name: str) -> Records:
    run = _run(name)
    read_config(run)  # raises an error if the folder is no run
    records = read_records(run.metrics)
    if not records:
        raise InputError(f"{name} has no metrics.jsonl with anything in it", "name a run that was trained here")
    return records


def _table(records: dict[str, Records]) -> list[str]:
    """One line for each run. A name too long for 80 columns loses its beginning, because paths differ at the end."""
    headings = ("steps", "tokens", "seconds", "train loss", "best val", "at step")
    numbers = terminal.table(headings, [_row(run) for run in records.values()], left=())
    room = terminal.WIDTH - 2 - terminal.columns(numbers[0])
    names = ["run", *(name if len(name) <= room else "…" + name[1 - room :] for name in records)]
    width = max(map(terminal.columns, names))
    return [f"{terminal.fitted(name, width)}  {line}" for name, line in zip(names, numbers, strict=True)]


def _row(run: Records) -> tuple[str, ...]:
    train = [record["train_loss"] for record in run if "train_loss" in record]
    validation = [(record["val_loss"], record["step"]) for record in run if "val_loss" in record]
    best = min(validation, default=None)
    return (
        f"{run[-1]['step']:,}",
        f"{run[-1].get('tokens', 0):,}",
        terminal.number(run[-1]["seconds"], ",.0f"),
        terminal.number(train[-1], ".4f") if train else "–",
        terminal.number(best[0], ".4f") if best else "–",
        f"{best[1]:,}" if best else "–",
    )


def _checks(records: dict[str, Records]) -> list[Check]:
    checks = []
    for name, run in records.items():
        back = [max(0, before["step"] - after["step"]) for before, after in itertools.pairwise(run)]
        lost = sum(not math.isfinite(record[key]) for record in run for key in record if key.endswith("loss"))
        checks.append(measured(f"{name}: steps never go back", max([0, *back]), 0))
        checks.append(measured(f"{name}: every loss is a number", lost, 0))
    return checks
