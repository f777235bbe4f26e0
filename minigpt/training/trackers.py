"""Watching a run in TensorBoard or Weights & Biases: everything in the run log goes there too.

Both are extras, imported only when a run asks for one. Neither can harm a training: see `RunLog.tracking`.
`metrics.jsonl` has everything in any case.
"""

import html
import secrets
from collections.abc import Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from minigpt.config import RunConfig
from minigpt.errors import ConfigError, first_line, named, passed
from minigpt.formats.run_directory import RunDirectory
from minigpt.system.files import read_text, write_text

PROJECT = "minigpt"  # under which W&B lists the runs; its own variable WANDB_PROJECT takes precedence
_LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class Tracker(Protocol):
    """What the run log sends to a tracker."""

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """One record of `metrics.jsonl`."""

    def sample(self, step: int, text: str) -> None:
        """Text that the model wrote at an evaluation."""

    def close(self) -> None:
        """Nothing follows."""


def tracking_library(name: str) -> Any:
    """The module that a run's `report_to` needs, or None for "none".

    Raises:
        ConfigError: if it is not installed.
    """
    if name == "none":
        return None
    try:
        return import_module(_LIBRARIES[name])
    except ImportError as error:
        raise ConfigError(
            f"{named('report_to', name)} needs a package that cannot be imported: {first_line(error, 100)}",
            f'pip install "minigpt-torch[{name}]", or choose {passed("report_to", "none")}: metrics.jsonl has the same '
            "numbers",
        ) from None


def open_tracker(library: Any, out: Path, config: RunConfig, step: int) -> Tracker:
    """Begin to track a run, or continue where it was tracked before.

    Args:
        library: as `tracking_library` gave it.
        out: the run directory, where the tracker keeps what it needs.
        config: the run's settings.
        step: steps taken so far; the records that a killed run has sent of later steps are sent again.
    """
    kind = TensorBoard if config.report_to == "tensorboard" else WandB
    return kind(library, out, config, step)


class TensorBoard:
    """Event files in the run directory. The arguments are those of `open_tracker`."""

    def __init__(self, library: Any, out: Path, config: RunConfig, step: int) -> None:
        # From `purge_step` on, TensorBoard drops what a killed run had written.
        self._writer = library.SummaryWriter(RunDirectory(out).tensorboard, purge_step=step + 1)

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Each number becomes a point in the chart of its name."""
        for name, value in _numbers(values).items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()  # so that a kill loses nothing that a checkpoint has

    def sample(self, step: int, text: str) -> None:
        """A text, with its line ends."""
        self._writer.add_text("sample", f"```text\n{text}\n```", step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """A run of W&B, whose id lies in the run directory. The arguments are those of `open_tracker`.

    Its own environment variables apply: WANDB_MODE=offline sends nothing. A step that was sent before is not replaced,
    which does not matter, because a resumed run repeats it bit for bit.
    """

    def __init__(self, library: Any, out: Path, config: RunConfig, step: int) -> None:
        identity = RunDirectory(out).wandb_id
        if not identity.is_file():
            write_text(identity, secrets.token_hex(4))
        self._library = library
        self._run = library.init(
            project=PROJECT, name=out.name, id=read_text(identity), resume="allow", dir=str(out),
            config=asdict(config), settings={"console": "off"},
        )  # fmt: skip

    def record(self, step: int, values: Mapping[str, Any]) -> None:
        """Each number becomes a point in the chart of its name."""
        self._run.log(_numbers(values), step=step)

    def sample(self, step: int, text: str) -> None:
        """A text, with its line ends."""
        self._run.log({"sample": self._library.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self) -> None:
        """Send what has not been sent."""
        self._run.finish()


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
