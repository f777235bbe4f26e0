"""The proof of an exact resume: one run without a break, and one that is killed without warning again and again."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from minigpt.config import RunConfig
from minigpt.errors import CheckpointError, MiniGPTError
from minigpt.formats.lora_files import WEIGHTS as ADAPTER_WEIGHTS
from minigpt.formats.run_directory import RunDirectory, read_records
from minigpt.system.device import choose_device
from minigpt.system.downloads import sha256_of
from minigpt.system.files import read_json, write_text
from minigpt.training.checkpoint import MANIFEST, STATE, WEIGHTS
from minigpt.training.distributed import Processes
from minigpt.training.run import choose_kernels

OUTPUT = "output.txt"  # of the newest training
COMPARED = ("train_loss", "val_loss", "lr", "grad_norm")  # of metrics.jsonl; the rest is time


@dataclass(frozen=True)
class Comparison:
    """A comparison of one file, or one kind of numbers, of two runs.

    Attributes:
        name: what it is.
        straight: its sha256 in the run without a break.
        interrupted: its sha256 in the other run.
    """

    name: str
    straight: str
    interrupted: str

    @property
    def equal(self) -> bool:
        """Whether they are the same, byte for byte."""
        return self.straight == self.interrupted


def shortened(config: RunConfig, steps: int) -> RunConfig:
    """The same run in a few steps, with a checkpoint after each and an evaluation on the way, watched by nobody.

    It computes by the kernels of the whole one, which `auto` chooses by its length.
    """
    t = config.train
    return replace(
        config,
        report_to="none",
        kernels=choose_kernels(config, Processes(), choose_device(config.device)),
        train=replace(
            t,
            epochs=0.0,
            max_steps=steps,
            warmup_steps=min(t.warmup_steps, steps),
            save_interval=1,
            eval_interval=min(t.eval_interval, max(1, steps // 2)),
        ),
    )


def run_straight(config: RunConfig, folder: Path) -> RunDirectory:
    """Train in a process of its own, from beginning to end."""
    run = RunDirectory(folder / "straight")
    with _training(config, folder, "--out", run.path) as process:
        _finish(process, folder)
    return run


def run_interrupted(
    config: RunConfig,
    folder: Path,
    moments: Iterable[Callable[[RunDirectory], bool]],
    print_line: Callable[[str], None],
) -> RunDirectory:
    """Train in the same way, but kill the process (SIGKILL) at each of the moments, with a line, and resume it.

    Moments are functions, called again and again, that say whether theirs has come.

    Raises:
        CheckpointError: if a run cannot be resumed.
    """
    run = RunDirectory(folder / "interrupted")
    arguments = ("--out", run.path)
    for moment in moments:
        with _training(config, folder, *arguments) as process:
            while process.poll() is None and not moment(run):
                time.sleep(0.001)
            if process.poll() is not None:
                print_line("finished   before it could be killed once more")
                _finish(process, folder)
                return run
        print_line(f"killed     at step {step_of(run)}, and resumed")
        arguments = ("--resume", run.path) if run.config.is_file() else ("--out", run.path)
    with _training(config, folder, *arguments) as process:
        _finish(process, folder)
    return run


def at_step(step: int) -> Callable[[RunDirectory], bool]:
    """The moment at which a checkpoint of a step, or of a later one, has appeared."""
    return lambda run: step_of(run) >= step


def step_of(run: RunDirectory) -> int:
    """The step of a run's newest checkpoint; 0 if there is none, or it is being replaced."""
    for folder in (run.last, run.previous):
        try:
            return int(read_json(folder / MANIFEST)["progress"]["step"])
        except (MiniGPTError, OSError):
            continue
    return 0


def compare(straight: RunDirectory, interrupted: RunDirectory) -> list[Comparison]:
    """Weights, the best weights or adapter, all state of the last checkpoint, and the logged losses of two runs."""
    best = straight.adapter / ADAPTER_WEIGHTS if straight.adapter.exists() else straight.best_weights
    files = {
        "last weights": f"last/{WEIGHTS}",
        "optimizer and random states": f"last/{STATE}",
        "best weights": str(best.relative_to(straight.path)),
    }
    found = [
        Comparison(name, *(sha256_of(run.path / path) for run in (straight, interrupted)))
        for name, path in files.items()
    ]
    return [*found, Comparison("logged losses", losses(straight), losses(interrupted))]


def losses(run: RunDirectory) -> str:
    """Every loss that a run has logged, and learning rates and gradient norms, as text."""
    logged = [[record["step"], *(record.get(key) for key in COMPARED)] for record in read_records(run.metrics)]
    return json.dumps([record for record in logged if any(record[1:])])


@contextmanager
def _training(config: RunConfig, folder: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A training in a process of its own, which is killed (SIGKILL) when the `with` ends, however that happens."""
    import yaml

    content = asdict(config)
    del content["model"]["vocab_size"]  # which follows from the corpus
    write_text(folder / "config.yaml", yaml.safe_dump(content))
    # -P: as the command itself, not with the modules of the working folder, such as somebody's random.py.
    program = [sys.executable, "-P", "-m", "minigpt"]
    command = [*program, "train", "--config", str(folder / "config.yaml"), *map(str, arguments)]
    with (folder / OUTPUT).open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _finish(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait():
        said = (folder / OUTPUT).read_text(encoding="utf-8", errors="replace").splitlines()
        if len(said) > 1 and said[-2].startswith("error: "):  # its two lines, which say it better
            raise CheckpointError(said[-2].removeprefix("error: "), said[-1].strip())
        raise CheckpointError(
            f"a training ended with exit code {process.returncode}: {' '.join(said[-2:])}",
            "run it with minigpt train and the same flags, and see",
        )
