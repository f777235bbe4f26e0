"""The page's JavaScript, run by Node: a list of calls in one process, because starting one takes longer than a call."""

import base64
import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minigpt.model import GPT

Call = tuple[str, dict[str, Any]]
Node = Callable[[Sequence[Call]], list[Any]]


class PageError(Exception):
    """An InputError of the page: its two lines."""


def _encoded(value: object) -> object:
    """A tensor for JSON; tests/page/node.mjs reads it."""
    assert isinstance(value, Tensor), value
    return {"f32": base64.b64encode(value.detach().float().contiguous().numpy().tobytes()).decode("ascii")}


def _decoded(value: dict[str, Any]) -> object:
    if value.keys() == {"f32"}:
        return torch.from_numpy(np.frombuffer(base64.b64decode(value["f32"]), dtype="<f4").copy())
    if value.keys() == {"data", "shape"}:
        return value["data"].view(value["shape"])
    return value


@pytest.fixture(scope="session")
def node() -> Node:
    """Call the page's modules: a list of (name in node.mjs, arguments) -> a value or PageError of each."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node, which runs the page's JavaScript")

    def run(calls: Sequence[Call]) -> list[Any]:
        script = Path(__file__).with_name("node.mjs")
        sent = json.dumps([{"call": call, "args": args} for call, args in calls], default=_encoded)
        done = subprocess.run([program, script], input=sent, capture_output=True, encoding="utf-8", check=False)
        assert not done.returncode, done.stderr
        results = json.loads(done.stdout, object_hook=_decoded)
        return [result["value"] if "value" in result else PageError(result["error"]) for result in results]

    return run


def the_model(name: str, model: GPT) -> Call:
    """The call that builds a model for those that follow."""
    weights = {key: value for key, value in model.state_dict().items() if key != "lm_head.weight" or not _tied(model)}
    return "model", {"name": name, "config": dataclasses.asdict(model.config), "weights": weights}


def _tied(model: GPT) -> bool:
    return model.config.tie_weights
