"""A tiny model of distinct prime sizes, so that no two dimensions can be mistaken for each other."""

import gc
import itertools
import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

gc.disable()  # until all is imported and collected, see pytest_collection

# Tiny tensors on spinning threads: where another program wants a core too, the tests would take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if "PYTEST_XDIST_WORKER" in os.environ:  # one of several processes, each with a core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell without job control starts what it runs with &
    signal.signal(signal.SIGINT, signal.default_int_handler)  # for the tests of Ctrl-C, and the processes they start

import pytest
import torch
from hypothesis import settings

from minigpt.config import GPTConfig
from minigpt.errors import MiniGPTError
from minigpt.formats.pretrained import load_model
from minigpt.model import GPT
from minigpt.tokenizers import GPT2Tokenizer

settings.register_profile("minigpt", deadline=None)  # no test is a timing test
settings.load_profile("minigpt")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported and collected stays to the end, and the collector need not look through it again and again."""
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


_NUMBERS = itertools.count()
TINY = GPTConfig(vocab_size=23, block_size=13, n_layer=2, n_head=3, n_embd=3 * 5)


@pytest.fixture
def tiny_config() -> GPTConfig:
    return TINY


def random_model(config: GPTConfig, seed: int) -> GPT:
    """Random weights, larger than the initial ones, so that attention is far from uniform; evaluation mode."""
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture
def tiny_model() -> GPT:
    return random_model(TINY, 7)


@pytest.fixture(scope="session")
def gpt2() -> tuple[GPT, GPT2Tokenizer]:
    """The published model, from the cache or the hub. No test may change it."""
    try:
        model, tokenizer = load_model("gpt2")
    except MiniGPTError as error:
        pytest.skip(f"needs the weights of GPT-2: {error.what}")
    assert isinstance(tokenizer, GPT2Tokenizer)
    return model.eval(), tokenizer


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As pytest's own, which looks through the folders of all tests before for every one that it makes."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    path = tmp_path_factory.getbasetemp() / f"{name}{next(_NUMBERS)}"
    path.mkdir()
    return path


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs in a folder of its own, with an empty corpus cache, whatever the caller's variables say.

    And nobody waits for the disk there: no test can cut the power.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", os.fstat)
    monkeypatch.delenv("MINIGPT_CACHE", raising=False)


@pytest.fixture
def accept() -> Callable[[str], None]:
    """Parses a `minigpt ...` of a document by the real parser, which raises if it is none; nothing is run."""

    def accepted(command: str) -> None:
        from minigpt.cli.main import parser_of

        _, name, *arguments = shlex.split(command)
        parser, arguments = parser_of(name, arguments)
        if name == "inspect":
            parser.parse(arguments)
            return
        given = parser.given(arguments)
        given.pop("replay", None)  # of a run that has diverged
        parser.settings.of(given)

    return accepted


@pytest.fixture
def shared_cache(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The caller's corpus cache, for tests on the real Shakespeare."""
    folder = _ORIGINAL_CACHE
    if not folder or not (Path(folder) / "shakespeare" / "input.txt").is_file():
        pytest.skip("needs MINIGPT_CACHE to name a folder that holds shakespeare/input.txt")
    monkeypatch.setenv("MINIGPT_CACHE", str(Path(folder).resolve()))
    return Path(folder)


_ORIGINAL_CACHE = os.environ.get("MINIGPT_CACHE") and str(Path(os.environ["MINIGPT_CACHE"]).resolve())
