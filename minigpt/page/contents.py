"""What the page is told: model.json, of a model that it computes with, and run.json, of the training that made it."""

import dataclasses
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from minigpt.config import GPTConfig
from minigpt.errors import MiniGPTError
from minigpt.formats.run_directory import RunDirectory, losses, read_config, read_records, read_samples
from minigpt.page.weights import PageWeights
from minigpt.tokenizers import Tokenizer


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
        """The shape, the tokenizer, the ids at which a text ends, and where each tensor lies in the weights."""
        return {
            "config": dataclasses.asdict(self.config),
            "tokenizer": self.tokenizer.described(),
            "ends": self.tokenizer.end_ids,
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
        """The samples of its run so far, and [step, loss] of training batches and of the validation split, read anew.

        None if there are none, as of an imported model.
        """
        if not self.run or not self.run.metrics.exists():
            return None
        records, steps = read_records(self.run.metrics), None
        with suppress(MiniGPTError):  # a file that is just being replaced, or is damaged: the curve can do without it
            steps = read_config(self.run).train.max_steps
        return {
            "name": self.run.path.absolute().name,
            "step": records[-1]["step"] if records else 0,
            "max_steps": steps,
            "train": losses(records, "train_loss"),
            "validation": losses(records, "val_loss"),
            "samples": [{"step": step, "text": text} for step, text in read_samples(self.run)],
        }
