"""What the tests of the page share: Node for its JavaScript, and a server of a tiny run.

Node gets a list of calls for one process, because starting one takes longer than a call.
"""

import base64
import dataclasses
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minigpt.config import RunConfig
from minigpt.formats.run_directory import RunDirectory, save_run
from minigpt.formats.source import open_source
from minigpt.model import GPT
from minigpt.page.contents import Shown
from minigpt.page.server import PageServer
from minigpt.page.weights import mapped_weights
from minigpt.tokenizers import CharTokenizer

if TYPE_CHECKING:
    from selenium import webdriver

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
DRIVER = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
SWITCHES = (
    "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update "
    "disable-sync"
)
TOKENIZER = CharTokenizer.from_text("\n !',-.:;?ABCDEabcdefgh")
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


def browser(profile: Path) -> "webdriver.Chrome":
    """Chromium without a window and with an empty profile, which keeps a log of its console and its requests."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for switch in SWITCHES.split():
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={profile}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture
def run(tiny_model: GPT, tmp_path: Path) -> RunDirectory:
    """A run of three recorded steps and two samples."""
    folder = tmp_path / "checkpoints" / "tiny"
    save_run(tiny_model, TOKENIZER, folder, trained=RunConfig())
    run = RunDirectory(folder)
    records = [
        {"step": 0, "tokens": 0, "seconds": 0.1, "val_loss": 3.25},
        {"step": 5, "tokens": 65, "seconds": 0.5, "train_loss": 2.5, "tokens_per_second": 130.0},
        {"step": 7, "tokens": 91, "seconds": 0.7, "val_loss": 2.25},
    ]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    run.samples.write_text("--- step 0 ---\n\nhgf\n\n--- step 7 ---\n<b>bad</b>\n\n")
    return run


@pytest.fixture
def shown(run: RunDirectory) -> Shown:
    """The run, as the page shows it."""
    source = open_source(run.path)
    weights = mapped_weights(source)
    assert weights is not None
    return Shown("tiny", source.config, TOKENIZER, weights, source.run)


@pytest.fixture
def server(shown: Shown) -> Iterator[PageServer]:
    """A server of the run at a free port, answering in a thread."""
    with PageServer([shown], 0) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()
