"""A run of a second or less: everything is in it, and nothing is large."""

import pytest

from minigpt.config import GPTConfig, RunConfig, TrainConfig
from minigpt.data.corpora import Corpus
from minigpt.training import loop
from minigpt.training.log import RunLog

COUNTING = "".join(f"{word} {number}\n" for number, word in enumerate(["to", "be", "or", "not"] * 50))


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They, and long samples, take longer than the training here."""
    monkeypatch.setattr(RunLog, "draw", lambda log: None)
    monkeypatch.setattr(loop, "SAMPLE_TOKENS", 5)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus("counting", COUNTING, "made up for tests")


@pytest.fixture(scope="session")
def config() -> RunConfig:
    return RunConfig(
        model=GPTConfig(block_size=7, n_layer=2, n_head=1, n_embd=6, dropout=0.1),
        train=TrainConfig(max_steps=20, batch_size=4, warmup_steps=2, eval_interval=5, save_interval=3),
        device="cpu",
        dtype="float32",
    )


@pytest.fixture(scope="session")
def flags() -> list[str]:
    """A smaller run for the command line; the text has to be put into `play.txt`."""
    return (
        "--data play.txt --model.block_size 7 --model.n_layer 1 --model.n_head 1 --model.n_embd 6 "
        "--train.max_steps 12 --train.warmup_steps 1 --train.batch_size 3 --train.eval_interval 6 "
        "--train.save_interval 2 --device cpu --dtype float32 --compile off"
    ).split()
