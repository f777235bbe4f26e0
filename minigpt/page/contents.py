"""What the page is told: model.json, of a model that it computes with, and run.json, of the training that made it."""

import dataclasses
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt.config import GPTConfig
from minigpt.errors import MiniGPTError
from minigpt.formats.run_directory import RunDirectory, read_config
from minigpt.page.weights import PageWeights
from minigpt.tokenizers import Tokenizer
from minigpt.training.log import read_records

_MOST_POINTS = 2000  # of a curve: more than a screen has columns
_MOST_BYTES = 2**20  # of samples, the newest
_SAMPLE = re.compile(r"^--- step (\d+) ---\n", re.MULTILINE)


@dataclass(frozen=True)
class Shown:
    """A model that the page shows.

    Attributes:
        name: what it is called.
        config: its shape.
        tokenizer: the model's.
        weights: the model's.
        run: the run that trained it, or None.
        about: what else the page says of it, such as what fewer bits cost.
    """

    name: str
    config: GPTConfig
    tokenizer: Tokenizer
    weights: PageWeights
    run: RunDirectory | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def model_json(self) -> dict[str, Any]:
        """The shape, the tokenizer, and where each tensor lies in the weights."""
        return {
            "config": dataclasses.asdict(self.config),
            "tokenizer": self.tokenizer.described(),
            "tensors": self.weights.table,
            "bytes": self.weights.size,
            "about": {
                "name": self.name,
                "kind": "run" if self.run else "model",
                "parameters": sum(math.prod(entry["shape"]) for entry in self.weights.table),
                "precision": self.weights.precision,
                **self.about,
            },
        }

    def run_json(self) -> dict[str, Any] | None:
        """The losses and samples of its run so far, read anew; None if there are none, as of an imported model."""
        return run_json(self.run) if self.run and self.run.metrics.exists() else None


def run_json(run: RunDirectory) -> dict[str, Any]:
    """The losses and samples of a run so far: [step, loss] of training batches, and of the validation split."""
    records = read_records(run.metrics)
    steps = None
    with suppress(MiniGPTError):  # a file that is just being replaced, or is damaged: the curve can do without it
        steps = read_config(run).train.max_steps
    return {
        "name": run.path.name,
        "step": records[-1]["step"] if records else 0,
        "max_steps": steps,
        "train": _points(records, "train_loss"),
        "validation": _points(records, "val_loss"),
        "samples": _samples(run.samples),
    }


def _points(records: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) where one was recorded; of a long run every n-th of them, and the last."""
    found = [(record["step"], record[key]) for record in records if key in record]
    stride = -(-len(found) // _MOST_POINTS) or 1
    return found[::stride] + (found[-1:] if (len(found) - 1) % stride else [])


def _samples(path: Path) -> list[dict[str, Any]]:
    """The step and the text of the newest samples; a text may come from anybody, and is only ever shown as text."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MOST_BYTES))
        text = file.read().decode("utf-8", errors="replace")
    _, *parts = _SAMPLE.split(text)
    return [{"step": int(step), "text": body[:-2]} for step, body in zip(parts[::2], parts[1::2], strict=True)]
