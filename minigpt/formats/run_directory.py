"""The run directory: the files of a run, and how a model is read from them.

::

    checkpoints/<run>/
      config.yaml          all settings of model, data and training, with the versions of the software
      tokenizer.json       everything needed to encode and decode
      model.safetensors    the best weights so far, by validation loss
      last/  previous/     the two newest checkpoints, for an exact resume
      metrics.jsonl  loss.png  samples.txt
      reference.json       only for an imported model: the settings of the transformers library that it came with

Every file is written under another name first, and renamed when it is complete.
"""

import dataclasses
import itertools
import json
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minigpt.config import RunConfig, read_yaml, write_yaml, written_in
from minigpt.errors import (
    CheckpointError,
    ConfigError,
    MiniGPTError,
    MissingFileError,
    ShapeError,
    did_you_mean,
    named,
    passed,
    quoted,
)
from minigpt.fields import checked
from minigpt.formats.config_json import CORRECT, check_carried, kept_carried
from minigpt.formats.hub import HUB_NAMES
from minigpt.formats.weights import check_values, save_weights
from minigpt.lora import without_adapters
from minigpt.model import GPT
from minigpt.system import notebook
from minigpt.system.device import processor
from minigpt.system.files import (
    atomic_folder,
    check_unused,
    check_writable,
    leftovers,
    named_path,
    parsed_json,
    read_json,
    write_text,
)
from minigpt.tokenizers import Tokenizer, check_vocabulary

LOCK = ".lock"  # held by the process that trains in a run directory
CHECKPOINTS = Path("checkpoints")  # where runs are written, and searched, by default
_COUNTS = ("step", "tokens", "skipped")  # what a record may hold beside text and settings
_NUMBERS = ("seconds", "train_loss", "val_loss", "epoch", "lr", "grad_norm", "tokens_per_second")
_SAMPLE = re.compile(r"^--- step (\d{1,18}) ---\n", re.MULTILINE)  # how one begins in samples.txt
_MOST_BYTES = 2**20  # of samples that are read, the newest


class RunDirectory:
    """The paths of a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.tokenizer = path / "tokenizer.json"
        self.best_weights = path / "model.safetensors"  # those with the lowest validation loss so far
        self.adapter = path / "adapter"  # the best adapter so far, if the run trains one; then it has no best weights
        self.following_adapter = path / ".adapter"  # a complete adapter, about to become the best
        self.carried = path / "reference.json"  # the settings that the model, or the one to start from, came with
        self.last = path / "last"  # the newest checkpoint
        self.last_weights = self.last / "model.safetensors"
        self.previous = path / "previous"  # the checkpoint before the newest
        self.following = path / ".next"  # a complete checkpoint, about to become the newest
        self.diverged = path / "diverged"  # the state before a step with NaN or infinite numbers, and a report
        self.diverged_settings = self.diverged / "settings.yaml"  # of that step; a resumed run may have others
        self.metrics = path / "metrics.jsonl"  # one record a line
        self.plot = path / "loss.png"
        self.perplexity_plot = path / "perplexity.png"  # by epoch, if the run counts in epochs
        self.samples = path / "samples.txt"  # written at each evaluation
        self.tensorboard, self.wandb = path / "tensorboard", path / "wandb"  # if the run is watched there
        self.wandb_id = path / "wandb-id"  # what W&B knows the run by

    def _repr_html_(self) -> str:
        """What a notebook shows: the losses so far, and the newest sample."""
        records = read_records(self.metrics)
        curves = {name: losses(records, key) for name, key in (("training", "train_loss"), ("validation", "val_loss"))}
        drawn = notebook.curves(curves, "step", "loss") if records else notebook.note("no training is recorded here")
        samples = [
            part
            for step, text in read_samples(self)[-1:]
            for part in (notebook.note(f"what it wrote at step {step}"), notebook.text_block(text))
        ]
        return notebook.shown(f"Run {self.path}", drawn, *samples)


def unused_run(parent: Path, name: str) -> RunDirectory:
    """`parent/name`, or the first of `name-2`, `name-3`, ... that no earlier run has."""
    return next(run for run in _numbered(parent, name) if not run.path.exists())


@contextmanager
def claimed_run(parent: Path, name: str) -> Iterator[RunDirectory]:
    """`unused_run`, whose folder is made at once: of several trainings that begin together, each has a name of its own.

    A folder in which nothing is written in the `with` is removed.
    """
    new_parent = not parent.exists()
    os.makedirs(os.path.realpath(parent), exist_ok=True)  # where it leads, if it is a link
    run = next(run for run in _numbered(parent, name) if _made(run.path))
    try:
        yield run
    finally:
        with suppress(OSError):
            run.path.rmdir()
            if new_parent:
                parent.rmdir()


def _made(folder: Path) -> bool:
    """Make a folder; false if something has its name."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def unfinished_run(parent: Path, name: str) -> RunDirectory | None:
    """The last of the runs `parent/name`, `name-2`, ... that was interrupted before its last step."""
    taken = itertools.takewhile(lambda run: run.path.exists(), _numbered(parent, name))
    return max(filter(_is_unfinished, taken), key=lambda run: _written(run.path), default=None)


def _numbered(parent: Path, name: str) -> Iterator[RunDirectory]:
    yield RunDirectory(parent / name)
    yield from (RunDirectory(parent / f"{name}-{number}") for number in itertools.count(2))


def newest_run(parent: Path) -> RunDirectory:
    """The run below `parent` whose best weights, or whose best adapter, were written last.

    Raises:
        MissingFileError: if there is none; the error names the newest run without best weights.
    """
    runs = [RunDirectory(path) for path in parent.glob("*")]
    best = [path for run in runs for path in (run.best_weights, run.adapter) if path.exists()]
    if best:
        return RunDirectory(max(best, key=_written).parent)
    begun = [run for run in runs if run.config.is_file()]
    what, how = f"there is no trained run in {parent.absolute()}", "train one first: minigpt quickstart"
    if begun:
        run = max(begun, key=lambda run: _written(run.config))
        what += f"; {run.path} was interrupted before its first evaluation, which makes its best weights"
        newest = f", or name its newest weights: --model {quoted(run.last)}" if run.last_weights.exists() else ""
        how = f"go on with it: minigpt train --resume {quoted(run.path)}{newest}"
    raise MissingFileError(what, how)


def newer_unfinished(chosen: RunDirectory) -> RunDirectory | None:
    """The newest interrupted run beside this one that was begun after this one's best weights were written."""
    border = max(_written(best) for best in (chosen.best_weights, chosen.adapter) if best.exists())
    others = [run for run in map(RunDirectory, chosen.path.parent.glob("*")) if run.path != chosen.path]
    begun = [run for run in others if run.config.is_file() and _written(run.config) > border]
    newer = sorted(begun, key=lambda run: -_written(run.config))
    return next(filter(_is_unfinished, newer), None)


def _is_unfinished(run: RunDirectory) -> bool:
    """Whether this is a run with steps left, which has not stopped early by its patience; not if it is damaged."""
    if not run.config.is_file() or (run.best_weights.exists() and not run.last.exists()):  # the latter was imported
        return False
    progress: Any = {}
    with suppress(MiniGPTError):  # a checkpoint that is not there, or that only --resume can judge
        progress = read_json(run.last / "manifest.json").get("progress")
    counts = progress if isinstance(progress, dict) else {}
    found = counts.get("step"), counts.get("evaluations_since_best")
    step, since_best = (count if isinstance(count, int) else 0 for count in found)
    try:
        settings = read_config(run).train
    except MiniGPTError:  # also of another version: the damage of another run does not matter here
        return False
    return step < settings.max_steps and not 0 < settings.patience <= since_best


def _written(path: Path) -> float:
    return path.stat().st_mtime


def check_new(run: RunDirectory) -> None:
    """Raise if a folder cannot take a new run, because it is not empty, or cannot be written.

    The files of a run that ended before it had learned anything, for example for lack of memory, may be overwritten.

    Raises:
        CheckpointError: if the folder holds more than these, or the path is a file.
        InputError: if nothing can be written there.
    """
    check_writable(run.path, f"name a folder elsewhere as {named('out')}, or mend its permissions")
    begun = {run.config, run.tokenizer, run.metrics, run.samples, run.plot, run.perplexity_plot, run.path / LOCK}
    begun.update((run.carried, run.tensorboard, run.wandb, run.wandb_id, *leftovers(run.path)))
    found = set(run.path.iterdir()) if run.path.is_dir() else set()
    nothing_learned = run.path / LOCK in found and found <= begun
    if not nothing_learned or (run.samples.exists() and run.samples.stat().st_size):
        check_unused(run.path)


def check_resumable(run: RunDirectory) -> None:
    """Raise MissingFileError if there are weights and no checkpoint: begun again at step 0, a run would replace them.

    A checkpoint that waits for its name is one.
    """
    best = [path for path in (run.best_weights, run.adapter) if path.exists()]
    if best and not any(path.exists() for path in (run.last, run.previous, run.following)):
        raise MissingFileError(
            f"{run.path} has weights, but no checkpoint to go on from: neither last/ nor previous/",
            f"start a new run from them, with {passed('init_from', str(run.path))}",
        )


def start_run(
    run: RunDirectory, config: RunConfig, tokenizer: Tokenizer, carried: Mapping[str, Any] | None = None
) -> None:
    """Create the folder, and write the files that are known before the first step; `carried` is as in `save_run`."""
    run.path.mkdir(parents=True, exist_ok=True)
    write_yaml(config, run.config, versions())
    if carried:
        write_text(run.carried, json.dumps(carried, indent=1))
    tokenizer.save(run.tokenizer)


def versions() -> dict[str, str]:
    """The versions of software, and the processor, on which the numbers of a run depend."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "threads": str(torch.get_num_threads()),
        "processor": processor(),
    }


@checked
def save_run(
    model: GPT,
    tokenizer: Tokenizer,
    folder: Path | str,
    trained: RunConfig | None = None,
    carried: Mapping[str, Any] | None = None,
) -> None:
    """Write a model as a run directory without checkpoints; its files appear when all of them are complete.

    An active adapter is merged into the written weights, but not into `model`. Every command reads and writes text with
    a run, so a run has a tokenizer, and a model without one cannot be written as a run.

    Args:
        model: the model.
        tokenizer: the model's.
        folder: must not exist yet, or be empty.
        trained: the settings of the run that the model comes from, with which it is evaluated; None if it comes from no
            run. The folder has no checkpoint, so the run cannot be resumed, and no adapter is left to be merged.
        carried: settings of transformers, to be kept for an export: see `config_json.carried_from`. By default those of
            the folder that `load_model` read the model from, as in `save_hf`.

    Raises:
        InputError: if `tokenizer` is None, `folder` is no path, `carried` has another form, or a weight is not finite.
        CheckpointError: if `folder` is not empty, or is a file, or the tokenizer has more ids than the model.
        OSError: if the folder cannot be written.

    Warns:
        ModelNote: of settings that the model came with, by default, and that are not written.
    """
    import yaml

    folder = named_path(folder, "folder")
    check_vocabulary(tokenizer, model.config.vocab_size, folder)
    check_unused(folder)
    if carried is None:
        carried = kept_carried(model, tokenizer)
    check_carried(carried)
    with atomic_folder(folder) as part:
        run = RunDirectory(part)
        if trained is None:  # no data or training settings: they are not known
            write_text(run.config, yaml.safe_dump({"model": dataclasses.asdict(model.config)}, sort_keys=False))
        else:
            whole = dataclasses.replace(trained.train, lora_rank=0)
            write_yaml(dataclasses.replace(trained, model=model.config, train=whole), run.config, versions={})
        if carried:
            write_text(run.carried, json.dumps(carried, indent=1))
        tokenizer.save(run.tokenizer)
        save_weights(without_adapters(model), run.best_weights)


def run_at(path: Path) -> RunDirectory:
    """The run that a run directory, or the folder of one of its checkpoints, `last` or `previous`, belongs to."""
    inside = path.name in ("last", "previous") and RunDirectory(path.parent).config.is_file()
    return RunDirectory(path.parent if inside else path)


def run_of(path: Path) -> RunDirectory | None:
    """The run of a path that is its folder, a checkpoint's, or the weights in one of them; None for any other path."""
    folder = path if path.is_dir() else path.parent
    run = run_at(folder)
    meant = path in (folder, folder / run.best_weights.name)
    return run if meant and os.path.lexists(run.config) else None


def run_of_adapter(folder: Path) -> RunDirectory | None:
    """The run whose best adapter a folder is, by its own path or where a link leads; None of any other adapter."""
    runs = ((run_of(place.parent), place) for place in (folder.absolute(), Path(os.path.realpath(folder))))
    return next((run for run, place in runs if run and run.adapter == place), None)


def run_named(spec: str) -> str:
    """The path of a run that was given by its name alone; anything else unchanged."""
    named_path(spec, "model")
    run = CHECKPOINTS / spec
    alone = spec not in ("", ".", "..") and Path(spec).name == spec and spec not in HUB_NAMES
    return str(run) if alone and not os.path.lexists(spec) and run_of(run) else spec


def existing_run(spec: str) -> RunDirectory:
    """The run to continue, which was given by its folder, by the `last` inside it, or by its name alone.

    Raises:
        MissingFileError: if there is no such folder; the error names the runs that exist.
        CheckpointError: if it is the `previous` inside it, from which a run with a `last` does not go on.
    """
    path = named_path(run_named(spec), "resume")
    if not os.path.lexists(path):
        runs = sorted(config.parent.name for config in CHECKPOINTS.glob("*/config.yaml"))
        how = did_you_mean(path.name, runs) if runs else f"there is no run in {CHECKPOINTS.absolute()}: minigpt train"
        raise MissingFileError(f"there is no folder {spec}, nor a run of that name", how)
    run = run_at(path)
    if path == run.previous and os.path.lexists(run.last):
        what = f"{path} is the checkpoint before the last one, from which {run.path} would go on"
        raise CheckpointError(what, f"name {run.path}; to go on from {path}, move {run.last} away first")
    return run


def run_weights(run: RunDirectory, folder: Path) -> Path:
    """The file of a run's best weights; or of a checkpoint's, if `folder` is its `last` or `previous`.

    Raises:
        MissingFileError: if it does not exist.
        CheckpointError: if it is damaged. Whether it fits the settings is not checked here.
    """
    weights = folder / run.best_weights.name
    begun = os.path.lexists(run.path / LOCK) or run.last_weights.exists()  # here, and not imported
    if weights == run.best_weights and not os.path.lexists(weights) and begun:
        newest = f", or name its newest weights: {run.last}" if run.last_weights.exists() else ""
        raise MissingFileError(
            f"{run.path} has no {weights.name}: its evaluations make it",
            f"go on with minigpt train --resume {quoted(run.path)}{newest}",
        )
    check_values(weights)
    return weights


def read_config(run: RunDirectory) -> RunConfig:
    """The settings of a run.

    Raises:
        MissingFileError: if the folder is no run directory.
        CheckpointError: if its settings cannot be read, or are in no regular file.
    """
    if not os.path.lexists(run.config):
        raise MissingFileError(f"{run.path} is not a run directory: it has no config.yaml", "train one: minigpt train")
    return read_settings(run.config)


def read_settings(file: Path) -> RunConfig:
    """The settings that a run has written into a file.

    Raises:
        CheckpointError: if they cannot be read, or are in no regular file.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is no regular file", "put the run's settings in its place")
    try:
        before_kernels = RunConfig(kernels="torch")  # as runs computed whose files do not name it
        return written_in(file, before_kernels, read_yaml(file))
    except ConfigError as error:  # another shape would not be that of the weights
        raise CheckpointError(error.what, CORRECT if isinstance(error, ShapeError) else error.how) from None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl`.

    Lines that are no records are left out, such as a half-written last line after a crash, or one with a wrong type in
    the place of a number, so that code that reads records can compute with them.
    """
    records = []
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        with suppress(ValueError, RecursionError):
            record = parsed_json(line)
            if isinstance(record, dict) and _is_record(record):
                records.append(record)
    return records


def _is_record(record: dict[str, Any]) -> bool:
    counts = {name: record[name] for name in _COUNTS if name in record}
    numbers = [record[name] for name in _NUMBERS if name in record]
    return (
        {"step", "seconds"} <= record.keys()
        and all(type(count) is int and 0 <= count < 2**63 for count in counts.values())
        and all(type(number) in (int, float) and abs(number) <= sys.float_info.max for number in numbers)
    )


def losses(records: Sequence[Mapping[str, Any]], key: str, most: int = 2000) -> list[tuple[int, float]]:
    """(step, value) where records have one, "train_loss" or "val_loss"; of very many every n-th, and the last."""
    found = [(record["step"], record[key]) for record in records if key in record]
    stride = -(-len(found) // most) or 1
    return found[::stride] + (found[-1:] if (len(found) - 1) % stride else [])


def read_samples(run: RunDirectory) -> list[tuple[int, str]]:
    """The step and the text of the newest samples, the newest last."""
    if not run.samples.is_file():
        return []
    with run.samples.open("rb") as file:
        file.seek(max(0, run.samples.stat().st_size - _MOST_BYTES))
        _, *parts = _SAMPLE.split(file.read().decode("utf-8", errors="replace"))
    return [(int(step), text.removesuffix("\n\n")) for step, text in zip(parts[::2], parts[1::2], strict=True)]
