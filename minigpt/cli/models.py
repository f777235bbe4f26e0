"""`--model` and `--unknown`, the same for every command that needs a trained model."""

import sys
from pathlib import Path
from typing import Literal

from minigpt.cli.parser import CommandParser
from minigpt.model import GPT
from minigpt.pretrained import load_model
from minigpt.tokenizers import CharTokenizer, Tokenizer
from minigpt.training.checkpoint import newest_run


def add_model_argument(parser: CommandParser) -> None:
    """Add --model, whose default is the run that was trained last."""
    parser.add_argument("--model", metavar="DIR", help="a run directory (default: the newest one in checkpoints/)")


def model_path(spec: str | None) -> Path:
    """The run directory meant by --model; says so on standard error where it had to choose.

    Raises:
        MissingFileError: if nothing was named and there is no run.
    """
    if spec is not None:
        return Path(spec)
    path = newest_run(Path("checkpoints"))
    print(f"model      {path}, the newest run (--model chooses another)", file=sys.stderr)
    return path


def load(spec: str | None) -> tuple[GPT, Tokenizer]:
    """The model and tokenizer of --model."""
    return load_model(model_path(spec))


def add_unknown_argument(parser: CommandParser) -> None:
    """Add --unknown, for texts with characters that a character model has never seen."""
    parser.add_argument(
        "--unknown",
        choices=["error", "skip"],
        default="error",
        help="what to do with characters that the model does not know",
    )


def reading(tokenizer: Tokenizer, unknown: Literal["error", "skip"]) -> Tokenizer:
    """The tokenizer, reading unknown characters as --unknown says."""
    return CharTokenizer(tokenizer.characters, unknown) if isinstance(tokenizer, CharTokenizer) else tokenizer
