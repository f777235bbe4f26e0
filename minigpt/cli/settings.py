"""What can be typed behind each command: its settings, from which its flags and its help are made. No work is here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from minigpt.cli.parser import Command, Flag
from minigpt.cli.run_settings import Quickstart, Train, VerifyResume
from minigpt.config import RunConfig

MODEL = "run directory, transformers folder, weights file, gpt2, ORG/NAME on the hub"
NEWEST = f"{MODEL} (default: the newest run)"


@dataclass(frozen=True, kw_only=True)
class Reading(Command):
    """How a text is read."""

    tokenizer: Annotated[str | None, Flag("T")] = None
    """for weights without one: gpt2, a tokenizer.json or its folder, or a text with all of its characters"""
    unknown: Literal["error", "skip"] = "error"
    """what to do with characters that the model does not know"""
    special: bool = False
    """read the name of a special token, such as <|endoftext|>, as that token (default: as text)"""


@dataclass(frozen=True, kw_only=True)
class Computing(Reading):
    """Where a model computes."""

    device: Annotated[str, Flag("DEVICE", says=RunConfig)] = "auto"


@dataclass(frozen=True, kw_only=True)
class Model(Computing):
    """Which model."""

    model: Annotated[str | None, Flag("MODEL", says=NEWEST)] = None
    adapter: Annotated[str | None, Flag("DIR")] = None
    """a LoRA adapter for --model: a run's adapter folder, or one of PEFT's"""


@dataclass(frozen=True, kw_only=True)
class Tokenize(Reading):
    """Show how a text is cut into tokens: each token's id, its text, and its bytes.

    A token of GPT-2 may be a part of a character; its text is then shown as U+FFFD, and the bytes say what it is.
    """

    examples = """
        minigpt tokenize "To be, or not to be"
        minigpt tokenize --model gpt2 "See you later, alligator."
        minigpt tokenize --model checkpoints/shakespeare-quick "Wherefore?"
    """
    text: Annotated[str, Flag("TEXT", positional=True)]
    """the text; - reads standard input"""
    model: Annotated[str | None, Flag("MODEL", says=NEWEST)] = None


@dataclass(frozen=True, kw_only=True)
class Eval(Model):
    """Measure a model on a text: loss, perplexity, bits per character.

    The text is read in windows of block_size tokens, --stride tokens apart. Every token but the first is scored exactly
    once, by the first window that reaches it: of all windows but the first, only the last --stride predictions count,
    and each of them sees at least block_size - stride + 1 tokens before it. Of separate documents, each is read from
    its beginning: those that a run has held out, or all of others.
    """

    examples = """
        minigpt eval
        minigpt eval --stride 32
        minigpt eval --model gpt2 --data my-novel.txt --stride 512
    """
    data: Annotated[str | None, Flag("SOURCE")] = None
    """a corpus, file, folder or records (default: what a run was trained on)"""
    text_field: Annotated[str | None, Flag("NAME")] = None
    """the field of its records that is the text"""
    split: Literal["val", "train", "all"] | None = None
    """which part of it (default: val of the corpus it was trained on, all of any other)"""
    stride: int | None = None
    """tokens from one window to the next; fewer than the block size give every token more context, and take longer
    (default: the block size)"""


# command -> its settings
SETTINGS: dict[str, type[Command]] = {
    "quickstart": Quickstart,
    "train": Train,
    "verify-resume": VerifyResume,
    "eval": Eval,
    "tokenize": Tokenize,
}
