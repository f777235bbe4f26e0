"""The results of `minigpt inspect` for other programs: the schema `minigpt-trace/1`, in JSON or as arrays.

docs/trace-schema.md explains every field. Programs may rely on this: within a version fields are only added; removing
one, or changing its meaning, needs a new version.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from minigpt.analysis.checks import Check
from minigpt.config import GPTConfig
from minigpt.system import notebook
from minigpt.system.files import atomic_write, named_path, write_text

SCHEMA = "minigpt-trace/1"


class Numbers(NamedTuple):
    """Named axes, and the numbers.

    Attributes:
        axes: one name a dimension; none for a single number.
        values: an array of that many dimensions, or what numpy makes one of.
    """

    axes: tuple[str, ...]
    values: npt.ArrayLike


@dataclass(frozen=True)
class Result:
    """One view of one model.

    Attributes:
        view: its name on the command line.
        model: the name under which the model was asked for.
        config: its shape; None for a view that needs none.
        numbers: every quantity by name.
        prompt: the text that was read; None for a view of the model alone.
        bos: whether the token that opens a document was put in front; None without a prompt.
        tokens: (id, text) of each token of the prompt.
        labels: axis -> the names of its entries.
        settings: the other settings of the view.
        checks: the identities that were checked; None without --check.
    """

    view: str
    model: str
    config: GPTConfig | None
    numbers: Mapping[str, Numbers]
    prompt: str | None = None
    bos: bool | None = None
    tokens: Sequence[tuple[int, str]] = ()
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[Check] | None = None

    def about(self) -> dict[str, Any]:
        """Everything except the numbers."""
        about: dict[str, Any] = {
            "schema": SCHEMA,
            "view": self.view,
            "model": {"name": self.model} | (dataclasses.asdict(self.config) if self.config else {}),
            "prompt": self.prompt,
            "bos": self.bos,
            "tokens": [{"id": token_id, "text": text} for token_id, text in self.tokens],
            "labels": {axis: list(names) for axis, names in self.labels.items()},
            "settings": dict(self.settings),
        }
        if self.checks is not None:
            about["checks"] = [{**check._asdict(), "error": _json_values(check.error)} for check in self.checks]
        return about

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it, with null for a number that is infinite or NaN."""
        return self.about() | {
            "numbers": {
                name: {"axes": list(axes), "shape": list(np.shape(values)), "values": _json_values(values)}
                for name, (axes, values) in self.numbers.items()
            }
        }

    def _repr_html_(self) -> str:
        """Every quantity of up to two axes; of one with more, the last two axes at the first place of the others."""
        parts = []
        if self.tokens:
            parts.append(notebook.table(["id", "token"], self.tokens, "the prompt"))
        for name, (axes, numbers) in self.numbers.items():
            values = np.asarray(numbers)
            above = "".join(f", {axis} 0 of {size}" for axis, size in zip(axes[:-2], values.shape[:-2], strict=True))
            values = values[(0,) * max(0, values.ndim - 2)] if values.size else values.reshape(0)
            names = [self._names(axis, size) for axis, size in zip(axes[-values.ndim :], values.shape, strict=False)]
            if values.dtype.kind not in "iufb" or values.size == 0 or values.ndim == 0:
                parts.append(notebook.note(f"{name}: {values.tolist()!s:.200}"))
            elif values.ndim == 1:
                parts.append(notebook.bars(names[0], values.astype(float).tolist(), what=name))
            else:
                parts.append(notebook.heat_map(names[0], names[1], values, f"{name}{above}"))
        if self.checks is not None:
            checks = [(check.name, "yes" if check.ok else "NO", check.error) for check in self.checks]
            parts.append(notebook.table(["check", "true", "error"], checks))
        return notebook.shown(f"{self.view}, {self.model}", *parts)

    def _names(self, axis: str, size: int) -> list[str]:
        """The names of an axis's entries, or their numbers."""
        names = list(self.labels.get(axis, ()))
        return [f"{n}: {name}" for n, name in enumerate(names)] if len(names) == size else [str(n) for n in range(size)]

    def save(self, path: str | Path) -> None:
        """Write a .json file, or an .npz file whose array `about` holds everything except the numbers, as JSON text.

        Raises:
            OSError: if the file cannot be written.
        """
        path = named_path(path, "path")
        if path.suffix.lower() == ".json":
            write_text(path, json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False) + "\n")
            return
        # The names of arrays, of which a run's may be a part, are names of files too.
        own = {name.encode("utf-8", "backslashreplace").decode(): numbers for name, numbers in self.numbers.items()}
        axes = {"axes": {name: list(numbers.axes) for name, numbers in own.items()}}
        about = np.array(json.dumps(self.about() | axes, ensure_ascii=False, allow_nan=False))
        arrays = {name: np.asarray(numbers.values) for name, numbers in own.items()}
        with atomic_write(path) as file:
            np.savez(file, allow_pickle=False, about=about, **arrays)


def _json_values(values: npt.ArrayLike) -> Any:
    """Nested lists, each number with as many digits as its type has: 0.1 in float32 is 0.1, not 0.10000000149."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    spelled = zip(array.astype(str).ravel().tolist(), np.isfinite(array).ravel(), strict=True)
    flat = [float(text) if finite else None for text, finite in spelled]
    return np.array(flat, dtype=object).reshape(array.shape).tolist()
