"""`--model` and what belongs to it, the same for every command that needs a trained model."""

import sys
from typing import Any, Literal

from minigpt.cli.parser import CommandParser
from minigpt.device import choose_device
from minigpt.errors import InputError
from minigpt.lora import merged
from minigpt.lora_files import load_adapter
from minigpt.model import GPT
from minigpt.pretrained import load_for_text, run_named
from minigpt.tokenizers import CharTokenizer, Tokenizer
from minigpt.training.checkpoint import CHECKPOINTS, newest_run

MODEL_HELP = "run directory, transformers folder, weights file, gpt2, ORG/NAME on the hub"


def add_model_argument(parser: CommandParser, weights: bool = True) -> None:
    """Add --model, whose default is the run that was trained last, --tokenizer, and if `weights` count, --adapter."""
    parser.add_argument("--model", metavar="MODEL", help=f"{MODEL_HELP} (default: the newest run)")
    if weights:
        parser.add_argument(
            "--adapter", metavar="DIR", help="a LoRA adapter for --model: a run's adapter folder, or one of PEFT's"
        )
    add_tokenizer_argument(parser)


def add_tokenizer_argument(parser: CommandParser) -> None:
    """Add --tokenizer, for weights that come without one."""
    parser.add_argument(
        "--tokenizer",
        metavar="T",
        help="for weights without one: gpt2, a tokenizer.json or its folder, or a text with all of its characters",
    )


def model_spec(spec: str | None) -> str:
    """The model meant by --model; says so on standard error where it had to choose.

    Raises:
        MissingFileError: if nothing was named and there is no run.
    """
    if spec is not None:
        return run_named(spec)
    path = newest_run(CHECKPOINTS)
    print(f"model      {path}, the newest run (--model chooses another)", file=sys.stderr)
    return str(path)


def load(values: dict[str, Any]) -> tuple[GPT, Tokenizer]:
    """The model of --model on the --device, and its tokenizer, reading as --unknown says.

    Raises:
        MiniGPTError: whatever `load_for_text` and `choose_device` raise.
    """
    device = choose_device(values["device"])  # before the work of loading
    model, tokenizer = load_for_text(model_spec(values["model"]), tokenizer=values["tokenizer"])
    if values.get("adapter"):  # which commands without --adapter do not have
        load_adapter(model, values["adapter"])
        model = merged(model)
    return model.to(device), reading(tokenizer, values["unknown"])


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
    if not isinstance(tokenizer, CharTokenizer):
        return tokenizer
    return CharTokenizer(tokenizer.characters, unknown).with_added(tokenizer.added, tokenizer.settings)


def framed(ids: list[int], tokenizer: Tokenizer, bos: bool, eos: bool = False) -> list[int]:
    """`ids` after the token that opens a document and before the one that closes it, where these are asked for.

    Raises:
        InputError: if the tokenizer has no such token.
    """
    front = [_border(tokenizer.bos_token_id, "--bos")] if bos else []
    return front + ids + ([_border(tokenizer.eos_token_id, "--eos")] if eos else [])


def _border(token_id: int | None, flag: str) -> int:
    if token_id is None:
        raise InputError(
            f"{flag} asks for a token that this model's tokenizer does not have",
            f"leave {flag} out; for a model of characters, a line break in the text is the nearest thing",
        )
    return token_id


def piece(tokenizer: Tokenizer, token_id: int) -> str:
    """The text of one token; nothing for an id that only pads the model's vocabulary."""
    return tokenizer.decode([token_id]) if token_id < tokenizer.vocab_size else ""


def counted(tokens: int) -> str:
    """So many tokens, in words."""
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` columns of a table."""
    return text if len(text) <= width else text[: width - 1] + "…"
