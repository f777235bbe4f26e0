"""`--model` and what belongs to it, the same for every command that needs a trained model."""

import copy
import sys
from contextlib import suppress

from minigpt.cli.settings import Computing, Reading, TextSettings
from minigpt.cli.streams import print_note
from minigpt.config import RunConfig
from minigpt.errors import InputError, MiniGPTError
from minigpt.formats.config_json import not_kept
from minigpt.formats.hub import CONFIG
from minigpt.formats.lora_files import adapter_folder
from minigpt.formats.run_directory import CHECKPOINTS, newer_unfinished, newest_run, run_of_adapter
from minigpt.formats.source import Source, open_source
from minigpt.formats.tokenizer_files import named_tokenizer
from minigpt.model import GPT
from minigpt.system.device import choose_device
from minigpt.system.files import listed
from minigpt.tokenizers import CharTokenizer, Tokenizer, check_has_tokenizer, read


def model_source(spec: str | None) -> Source:
    """The model that --model names, or the newest run, which is then named on standard error.

    Raises:
        MissingFileError: if there is no such model, or --model is not given and there is no run.
    """
    if spec is not None:
        return open_source(spec)
    run = newest_run(CHECKPOINTS)
    print(f"model      {run.path}, the newest run (--model: others)", file=sys.stderr)
    if newer := newer_unfinished(run):
        print(f"unfinished {newer.path} is newer (train --resume goes on)", file=sys.stderr)
    return open_source(run.path)


def trained_source(source: Source, adapter: str | None) -> Source:
    """What says on which data a model was trained: itself, or the run whose adapter it takes."""
    run = run_of_adapter(adapter_folder(adapter)) if adapter is not None else None
    return open_source(run.path) if run else source


def learned_before(source: Source) -> list[Source]:
    """The models that a run began with or learned from, those that are still there and were trained here."""
    config, found = source.trained or RunConfig(), []
    for spec in filter(None, (config.init_from, *config.train.teachers)):
        with suppress(MiniGPTError):
            if (one := open_source(spec)).trained:
                found.append(one)
    return found


def without_data(source: Source, what: str, how: str) -> InputError:
    """The error for a model that has no data of its own, while none were named.

    Raises:
        MiniGPTError: if no model lies there: data would not help.
    """
    if source.local:  # no download for the sake of an error
        source.shape(rates_may_differ=True)
    return InputError(f"{source.name} {what}", how)


def load(settings: Computing, name: str | None = None, adapter: str | None = None) -> tuple[GPT, Tokenizer]:
    """`load_any` for what reads or writes text: without a tokenizer, an InputError before any weights are read."""
    model, tokenizer = load_any(settings, name, adapter, needs_text=True)
    return model, check_has_tokenizer(tokenizer, name or "")


def load_any(
    settings: Computing, name: str | None = None, adapter: str | None = None, needs_text: bool = False
) -> tuple[GPT, Tokenizer | None]:
    """A model on the --device, with its --weights, and its tokenizer, which reads text as --unknown and --special say.

    Args:
        settings: how to read, and where to compute.
        name: the model's; None for the newest run.
        adapter: a LoRA adapter to merge into it.
        needs_text: whether there must be a tokenizer.

    Raises:
        InputError: if --weights are for another device.
        MiniGPTError: the errors of `Source.load` and `choose_device`.
    """
    weights = settings.weights if isinstance(settings, Reading) else None
    device = choose_device("cpu" if weights and settings.device == "auto" else settings.device)
    if weights and device.type != "cpu":
        raise InputError(f"--weights {weights} is for a CPU, and --device is {device}", "leave one of them out")
    source = model_source(name)
    model, tokenizer = source.load(
        tokenizer=settings.tokenizer, weights=weights, adapter=adapter, needs_text=needs_text
    )
    return model.to(device), configured(tokenizer, settings) if tokenizer else None


def configured(tokenizer: Tokenizer, settings: TextSettings) -> Tokenizer:
    """The tokenizer, set to read text as --unknown and --special say.

    Raises:
        InputError: if --special is given, and the tokenizer has no special token.
    """
    if settings.special:
        check_special(tokenizer, "--special")
    tokenizer = copy.copy(tokenizer)
    tokenizer.allow_special = settings.special
    if isinstance(tokenizer, CharTokenizer):
        tokenizer.unknown = settings.unknown
    return tokenizer


def check_special(tokenizer: Tokenizer, flag: str) -> None:
    """Refuse a flag that concerns special tokens, where there are none. Raises InputError."""
    if not tokenizer.special_tokens:
        raise InputError(f"{flag} asks for tokens that this model's tokenizer does not have", f"leave {flag} out")


def tokenized(settings: TextSettings, model: str | None, text: str) -> tuple[str, Tokenizer, list[int]]:
    """The name and the tokenizer of --model, or of --tokenizer alone, for which no model is needed; a text's ids."""
    chosen = settings.tokenizer
    if chosen is not None and model is None:
        name, tokenizer = chosen, named_tokenizer(chosen)
    else:
        source = model_source(model)
        name, tokenizer = source.name, check_has_tokenizer(source.tokenizer(chosen, needs_text=True), source.name)
    tokenizer = configured(tokenizer, settings)
    return name, tokenizer, read(tokenizer, text)


def note_what_is_not_kept(source: Source, model: GPT, tokenizer: Tokenizer | None) -> None:
    """Print on standard error which of the source's own settings an export will not contain."""
    if lost := not_kept(source.carried.get(CONFIG, {}), model.config, tokenizer):
        print_note(f"not kept of {source.name}'s {CONFIG}: {listed(lost, '; ')}")
