"""What can be typed behind each command: its settings, from which its flags and its help are made. No work is here."""

import textwrap
from dataclasses import dataclass
from typing import Annotated, Literal

from minigpt.cli.parser import Command, Flag
from minigpt.cli.run_settings import Quickstart, Train, VerifyResume
from minigpt.cli.streams import WIDTH
from minigpt.config import DEFAULT_PRESET, PRESETS, RunConfig
from minigpt.evaluation.diversity import WORD_MEANING

MODEL = "run directory, transformers folder, weights file, gpt2, ORG/NAME on the hub"
MEMORISED = 50  # words in a row; nobody writes so many of somebody else's by chance
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


@dataclass(frozen=True, kw_only=True)
class Next(Model):
    """Show what the model expects after a text.

    These are the most probable next tokens, with their logits and probabilities. Bars are relative to the first row.
    --steps goes on with the most probable token, and shows the table of every step.
    """

    examples = """
        minigpt next "See you"
        minigpt next --prompt "Once upon a time" --top 5 --steps 5
        minigpt next --model gpt2 --prompt "See you" --json
    """
    text: Annotated[str | None, Flag("TEXT", positional=True)] = None
    """the text to look beyond; "" is the beginning of a text, - reads standard input"""
    prompt: Annotated[str | None, Flag("TEXT")] = None
    """the same, as a flag"""
    top: Annotated[int, Flag("K")] = 10
    """rows of the table"""
    steps: int = 1
    """tables, one token further each"""
    bos: bool | None = None
    """put the token that opens a document in front (default: nothing in front)"""


@dataclass(frozen=True, kw_only=True)
class Score(Model):
    """Measure how probable texts are, each as a whole.

    That is the sum of log p(token | tokens before it) over all tokens but the first, in nats. num_tokens is the number
    of these predicted tokens, and perplexity is exp(-log_prob / num_tokens). With --bos the first token of the text is
    predicted too, with --eos also that the text ends there.
    """

    examples = """
        minigpt score "To be, or not to be" "To be, or not to bee"
        minigpt score "To be, or not to be" --tokens
        minigpt score --model gpt2 "See you later, alligator." --bos --eos --json
    """
    text: Annotated[tuple[str, ...], Flag("TEXT", positional=True)]
    """a text of at most the model's block size; - reads standard input"""
    bos: Annotated[bool | None, Flag(says=Next)] = None
    eos: bool = False
    """put the token that closes a document behind"""
    tokens: bool = False
    """show the log-probability of every token"""


@dataclass(frozen=True, kw_only=True)
class EvaluateText(Computing):
    """Measure written texts.

    Each FILE is a column of the table, so that texts from before and after a fine-tuning stand side by side.
    """

    examples = """
        minigpt generate --prompts-file openings.txt --json > out.json
        minigpt evaluate-text out.json --training-data reviews.jsonl
        minigpt evaluate-text before.json after.json \\
          --model gpt2 --model checkpoints/tuned
        minigpt generate ROMEO: --json | \\
          minigpt evaluate-text - --training-data shakespeare
        minigpt evaluate-text out.json --reference real-endings.jsonl
    """
    more = f"""\
distinct-n        different n-grams of words, as a share of all n-grams of the
                  file. It falls with the amount of text: compare equal amounts.
repeated 4-grams  four words in a row that the same text had before (seq-rep-4).
                  People: below 0.01. Near 0.1 a text turns in circles.
perplexity        under --model, of the texts alone, without their prompts. Near
                  that of real text is good; far below it, the text is dull.
n-grams copied    n-grams that stand in --training-data, word for word.
longest copy      the longest span that stands there. Up to 10 words or so are
                  phrases that people share; {MEMORISED} words have been memorised.
BLEU, chrF        nearness to --reference, 0 to 100.

{textwrap.fill(WORD_MEANING, WIDTH)}"""
    file: Annotated[tuple[str, ...], Flag("FILE", positional=True)]
    """texts: .txt (parts between blank lines, else lines), records such as .jsonl, a folder, what generate --json
    prints, or - for standard input"""
    text_field: Annotated[str | None, Flag("NAME")] = None
    """the field of records that is the text"""
    model: Annotated[tuple[str, ...], Flag("MODEL", says=MODEL)] = ()
    training_data: Annotated[str | None, Flag("SOURCE")] = None
    """what the texts may have been copied from: a file or folder, or a named corpus, as of minigpt train"""
    reference: Annotated[str | None, Flag("FILE")] = None
    """what should have been written: as many texts, in order"""


@dataclass(frozen=True, kw_only=True)
class Import(Command):
    """Turn a model into a run directory of minigpt, which every command takes.

    Of a run, the best weights and the settings are kept, and no checkpoint to resume from. --verify proves before
    anything is written that it computes what the transformers library computes, rounding apart. It holds both models in
    memory.
    """

    examples = """
        minigpt import gpt2 checkpoints/gpt2 --verify
        minigpt import path/to/folder checkpoints/mine --block-size 256
        minigpt import nanogpt/ckpt.pt checkpoints/nano --tokenizer nanogpt/input.txt
    """
    source: Annotated[str, Flag("SRC", positional=True, says=MODEL)]
    out: Annotated[str, Flag("DIR", positional=True)]
    """the run directory; must not exist or be empty"""
    tokenizer: Annotated[str | None, Flag("T", says=Reading)] = None
    block_size: int | None = None
    """a shorter context (default: the model's own)"""
    dropout: Annotated[float | None, Flag("P")] = None
    """for further training (default: the model's own; needed where its three rates differ)"""
    verify: bool = False
    """compare every layer with the transformers library; of what that cannot read, only an export is checked"""


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write a model as a folder that the transformers library loads.

    Its AutoModelForCausalLM and AutoTokenizer find config.json, model.safetensors in its layout, and the files of the
    tokenizer.
    """

    examples = """
        minigpt export checkpoints/shakespeare-quick out/shakespeare
        minigpt export gpt2 out/gpt2
    """
    model: Annotated[str, Flag("MODEL", positional=True, says=MODEL)]
    out: Annotated[str, Flag("DIR", positional=True)]
    """the folder; must not exist or be empty"""
    tokenizer: Annotated[str | None, Flag("T", says=Reading)] = None


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Show what this machine has, and measure which dtype is fastest on it, eager and compiled.

    A setting is safe if its losses agree with float32's.
    """

    examples = """
        minigpt doctor
        minigpt doctor --preset shakespeare-char --no-compile
    """
    preset: Annotated[
        str, Flag("PRESET", choices=tuple(PRESETS), says=f"the model and batch to time: {', '.join(PRESETS)}")
    ] = DEFAULT_PRESET
    device: Annotated[str, Flag("DEVICE", says=RunConfig)] = "auto"
    no_compile: bool = False
    """do not time torch.compile, which takes a minute"""


# command -> its settings
SETTINGS: dict[str, type[Command]] = {
    "quickstart": Quickstart,
    "train": Train,
    "verify-resume": VerifyResume,
    "next": Next,
    "score": Score,
    "eval": Eval,
    "evaluate-text": EvaluateText,
    "tokenize": Tokenize,
    "import": Import,
    "export": Export,
    "doctor": Doctor,
}
