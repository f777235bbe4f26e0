"""Kill a training at random moments, a hundred times, and look at what each kill left behind.

    python scripts/kill_training.py

A tiny model saves at every step, so that most kills (SIGKILL) meet a process that is writing. After each, `last/` and
`previous/` are read byte for byte, and the run is resumed. In the end it must equal a run that nobody killed. Most of
the time goes into starting Python: expect ten minutes on an idle machine.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from minigpt.config import DataConfig, GPTConfig, RunConfig, TrainConfig
from minigpt.errors import MiniGPTError
from minigpt.formats.run_directory import RunDirectory
from minigpt.training.checkpoint import open_checkpoint
from minigpt.training.verify import compare, run_interrupted, run_straight, step_of

MOST_STEPS = 20  # between two kills
STARTING = 6.0  # seconds: the latest moment of a kill that need not wait for a step
SAVING = 0.03  # seconds after a checkpoint: the next one or two are being written


def tiny_run(steps: int, corpus: Path) -> RunConfig:
    """Everything that a resume could get wrong: dropout, accumulation, two optimizers, evaluations, a save a step."""
    corpus.write_text("".join(f"{number} times {number} is {number**2}\n" for number in range(200)), encoding="utf-8")
    return RunConfig(
        model=GPTConfig(block_size=13, n_layer=2, n_head=2, n_embd=14, dropout=0.1),
        data=DataConfig(source=str(corpus)),
        train=TrainConfig(
            max_steps=steps, batch_size=3, accumulation_steps=2, warmup_steps=10, optimizer="muon", eval_interval=100,
            save_interval=1,
        ),
        device="cpu",
        dtype="float32",
    )  # fmt: skip


def random_moment(draw: random.Random) -> Callable[[RunDirectory], bool]:
    """Some steps after the training was started or resumed, and a little later; now and then before any step."""
    steps = draw.choice([0, *range(1, MOST_STEPS)])
    delay = draw.uniform(0, SAVING if steps else STARTING)
    first: int | None = None
    due: float | None = None

    def has_come(run: RunDirectory) -> bool:
        nonlocal first, due
        step = step_of(run)
        first = step if first is None else first
        if due is None and step >= first + steps:
            due = time.monotonic() + delay
        return due is not None and time.monotonic() >= due

    return has_come


def state_of(folder: Path) -> str:
    """What a reader finds at a checkpoint's name."""
    if not folder.exists():
        return "absent"
    try:
        return f"whole at step {open_checkpoint(folder).progress.step}"
    except MiniGPTError as error:
        return f"UNREADABLE: {error.what}"


def main() -> None:
    """Train straight, train again with kills, compare; exit code 1 if anything is damaged or differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error(f"--kills {arguments.kills} proves nothing: give at least 1")
    draw, found = random.Random(arguments.seed), []

    def after_kill(line: str) -> None:
        states = {folder.name: state_of(folder) for folder in (run.last, run.previous)}
        found.append(states)
        left = len(list(run.path.glob(".minigpt-*"))) + run.following.exists()
        print(f"{len(found):>4} {line}: " + ", ".join(f"{name} {state}" for name, state in states.items())
              + (", in the middle of a save" if left else ""), flush=True)  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="minigpt-") as name:
        folder = Path(name)
        run = RunDirectory(folder / "interrupted")
        config = tiny_run(arguments.kills * MOST_STEPS, folder / "corpus.txt")
        moments = [random_moment(draw) for _ in range(arguments.kills)]
        straight = run_straight(config, folder)
        comparisons = compare(straight, run_interrupted(config, folder, moments, after_kill))
    unreadable = sum(state.startswith("UNREADABLE") for states in found for state in states.values())
    safe = [any(state.startswith("whole") for state in states.values()) for states in found]
    lost = safe[safe.index(True) :].count(False)  # once there is a checkpoint, there is always one
    different = [c.name for c in comparisons if not c.equal]
    print(f"{len(found)} kills: {unreadable} unreadable checkpoints, {len(different)} differing results")
    if unreadable or lost or different:
        sys.exit(f"after {lost} kills there was no whole checkpoint; different: {different}")


if __name__ == "__main__":
    main()
