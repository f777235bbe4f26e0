"""What the tests of commands share: how a mistake is told, and a folder that the reference library wrote."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt.cli.main import answer as run
from minigpt.tokenizers import GPT2Tokenizer
from minigpt.training import loop
from minigpt.training.log import RunLog

Failing = Callable[[list[str]], str]
MERGES = ["t h", "th e", "Ġ the", "e r", "l a", "la t", "lat er", "Ġ s", "o u", "y ou"]
BLOCK_SIZE = 29


@dataclass(frozen=True)
class Reference:
    """A random GPT-2 of the reference library, the folder it was saved in, and its tokenizer."""

    folder: Path
    theirs: Any
    tokenizer: GPT2Tokenizer

    def log_probs(self, ids: list[int]) -> list[float]:
        """log p of every id but the first, by the reference's own logits, in float64."""
        with torch.no_grad():
            logits = self.theirs(torch.tensor([ids[:-1]])).logits[0].double()  # (T - 1, V)
        return [(row[token] - row.exp().sum().log()).item() for row, token in zip(logits, ids[1:], strict=True)]


@pytest.fixture(scope="module", autouse=True)
def cheap_trainings() -> Iterator[None]:
    """Drawing the curve of a loss takes ten times as long as the training here; `tests/training` looks at it.

    And a sample of 200 tokens takes twice as long as all the rest.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "draw", lambda log: None)
        patch.setattr(loop, "SAMPLE_TOKENS", 5)
        yield


@pytest.fixture
def failing(capsys: pytest.CaptureFixture[str]) -> Failing:
    """The two lines of a refused command; nothing on standard output, no traceback, nothing new on disk."""

    def lines_of(arguments: list[str]) -> str:
        before = sorted(Path().rglob("*"))
        capsys.readouterr()
        assert run(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        lines = err.rstrip("\n").split("\n")
        assert len(lines) == 2, err
        assert lines[0].startswith("error: ")
        assert lines[1].startswith("       ")
        assert "Traceback" not in err
        assert sorted(Path().rglob("*")) == before
        return err

    return lines_of


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Random weights far from their first values, and a small vocabulary of GPT-2's kind: 267 tokens."""
    transformers = pytest.importorskip("transformers")
    tokenizer = GPT2Tokenizer(MERGES)
    folder = tmp_path_factory.mktemp("reference")
    torch.manual_seed(5)
    config = transformers.GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=BLOCK_SIZE, n_layer=3, n_head=5, n_embd=35,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    theirs.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", encoding="utf-8")
    return Reference(folder, theirs, tokenizer)
