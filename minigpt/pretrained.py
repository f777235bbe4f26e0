"""A model by name: `load_model(spec)` turns what a user types into a model and its tokenizer."""

from pathlib import Path

from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer
from minigpt.training.checkpoint import load_run


def load_model(spec: str | Path) -> tuple[GPT, Tokenizer]:
    """Load a trained model and its tokenizer; the model on the CPU, in evaluation mode.

    Args:
        spec: a run directory (its best weights), or the `last` folder inside one (its newest).

    Raises:
        MissingFileError: if there is nothing at that path.
        CheckpointError: if what is there is damaged.
    """
    model, tokenizer, _ = load_run(Path(spec))
    return model, tokenizer
