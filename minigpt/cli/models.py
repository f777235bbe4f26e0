"""`--model` and what belongs to it, the same for every command that needs a trained model."""

import copy
import sys

from minigpt.cli.settings import Computing, TextSettings
from minigpt.errors import InputError
from minigpt.formats.config_json import not_kept
from minigpt.formats.hub import CONFIG
from minigpt.formats.lora_files import load_adapter
from minigpt.formats.run_directory import CHECKPOINTS, newer_unfinished, newest_run
from minigpt.formats.source import Source, open_source
from minigpt.lora import merged
from minigpt.model import GPT
from minigpt.system.device import choose_device
from minigpt.system.files import listed
from minigpt.tokenizers import CharTokenizer, Tokenizer


def model_source(spec: str | None) -> Source:
    """The model meant by --model; says so on standard error where it had to choose.

    Raises:
        MissingFileError: if there is no such model, or nothing was named and there is no run.
    """
    if spec is not None:
        return open_source(spec)
    path = newest_run(CHECKPOINTS)
    print(f"model      {path}, the newest run (--model: others)", file=sys.stderr)
    if newer := newer_unfinished(path):
        print(f"unfinished {newer} is newer (train --resume goes on)", file=sys.stderr)
    return open_source(path)


def load(settings: Computing, name: str | None = None, adapter: str | None = None) -> tuple[GPT, Tokenizer]:
    """A model on the --device, and its tokenizer, reading as --unknown and --special say.

    Args:
        settings: how to read, and where to compute.
        name: the model's; the newest run's if it is None.
        adapter: of LoRA, to be merged into it.

    Raises:
        MiniGPTError: whatever `Source.load_for_text` and `choose_device` raise.
    """
    device = choose_device(settings.device)  # before the work of loading
    model, tokenizer = model_source(name).load_for_text(tokenizer=settings.tokenizer)
    if adapter:
        load_adapter(model, adapter)
        model = merged(model)
    return model.to(device), configured(tokenizer, settings)


def configured(tokenizer: Tokenizer, settings: TextSettings) -> Tokenizer:
    """The tokenizer, reading a text as --unknown and --special say.

    Raises:
        InputError: if --special is given, and the tokenizer has no special token.
    """
    if settings.special and not tokenizer.special_tokens:
        raise InputError("--special asks for tokens that this model's tokenizer does not have", "leave --special out")
    tokenizer = copy.copy(tokenizer)
    tokenizer.allow_special = settings.special
    if isinstance(tokenizer, CharTokenizer):
        tokenizer.unknown = settings.unknown
    return tokenizer


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
    """What one token is called: its text, or the name of a special token; nothing for an id without text."""
    return tokenizer.decode([token_id], skip_special=False) if token_id < tokenizer.vocab_size else ""


def in_tokens(tokens: int) -> str:
    """So many tokens, in words."""
    return "1 token" if tokens == 1 else f"{tokens} tokens"


def check_fits(num_tokens: int, block_size: int, what: str, how: str = "") -> None:
    """Refuse more tokens than the model can read.

    Raises:
        InputError: saying `how` to mend it, if not by making the text shorter.
    """
    if num_tokens > block_size:
        raise InputError(
            f"{what} is {in_tokens(num_tokens)}, more than block_size = {block_size}",
            how or f"shorten it to at most {in_tokens(block_size)}",
        )


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` columns of a table."""
    return text if len(text) <= width else text[: width - 1] + "…"


def note_what_is_not_kept(source: Source, model: GPT, tokenizer: Tokenizer | None) -> None:
    """Say on standard error what the source's own settings hold that no export repeats."""
    if lost := not_kept(source.carried.get(CONFIG, {}), model.config, tokenizer):
        print(f"note: not kept of {source.name}'s {CONFIG}: {listed(lost, '; ')}", file=sys.stderr)
