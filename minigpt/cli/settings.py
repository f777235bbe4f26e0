"""The arguments of each command: its class of settings, from which its flags and its help are made."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_type_hints

from minigpt.cli.parser import Command, Flag, Section
from minigpt.cli.run_settings import Quickstart, Train, VerifyResume
from minigpt.config import DEFAULT_PRESET, PRESETS, RunConfig, Weights
from minigpt.decoding.options import DecodingOptions
from minigpt.evaluation.diversity import WORD_MEANING
from minigpt.fields import Bounds, Form
from minigpt.system import WIDTH

MODEL = "run directory, transformers folder, weights file, gpt2, ORG/NAME on the hub"
DEFAULT_LENGTH = 200
LENGTH = f"the most tokens to add (default: {DEFAULT_LENGTH}, or what fits the model's context)"
MEMORISED = 50  # words in a row; so long a span is not the same by chance
NEWEST = f"{MODEL} (default: the newest run)"


Rows = Annotated[int, Bounds(1, 1_000_000)]  # computed at once
Shown = Annotated[int, Bounds(1, 1_000_000, below="shows nothing")]
FirstSeed = Annotated[int, Bounds(0, 2**63 - 1, below="is too small")]


class TextSettings(Command):
    """How a text is read."""

    tokenizer: Annotated[str | None, Flag("T")] = None
    """for weights without one: gpt2, a tokenizer.json or its folder, or a text with all of its characters"""
    unknown: Literal["error", "skip"] = "error"
    """what to do with characters that the model does not know"""
    special: bool = False
    """read the name of a special token, such as <|endoftext|>, as that token (default: as text)"""


class Computing(TextSettings):
    """Where a model computes."""

    device: Annotated[str, Flag("DEVICE", says=RunConfig)] = "auto"


class Model(Computing):
    """Which model."""

    model: Annotated[str | None, Flag("MODEL", says=NEWEST)] = None
    adapter: Annotated[str | None, Flag("DIR")] = None
    """a LoRA adapter for --model: a run's adapter folder, or one of PEFT's"""


class Reading(Computing):
    """What only reads a model, and so needs no weights that can be changed or looked at."""

    weights: Weights | None = None
    """lay the weights out for this processor, and write faster: the same numbers within rounding (float32; auto is
    whatever proves fastest of that sort), or fewer bits (docs/decoding-speed.md; default: as they are)"""


class Tokenize(TextSettings):
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


class Eval(Reading, Model):
    """Measure a model on a text: loss, perplexity, bits per character.

    The text is read in windows of block_size tokens, --stride tokens apart. Every token except the first is predicted
    exactly once, by the first window that reaches it: of each window except the first, only the last --stride
    predictions count, and each of them sees at least block_size - stride + 1 tokens before it. Separate documents are
    read each from its beginning: those that the run has held out, or with other data all of them. With --weights,
    the plain model is measured too.
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
    val_data: Annotated[str | None, Flag("FILE")] = None
    """where the run's validation data lie now, if they have a file of their own"""
    split: Literal["val", "train", "all"] | None = None
    """which part of it (default: val of the corpus it was trained on, all of any other)"""
    stride: Annotated[int | None, Bounds(1, 10**9)] = None
    """tokens from the start of one window to the start of the next; fewer than block_size give every token more
    context, and take longer (default: block_size)"""


class Next(Reading, Model):
    """Show what the model expects after a text.

    It prints the most probable next tokens, with their logits and probabilities. Bars are relative to the first row.
    --steps N appends the most probable token and prints a table again, N tables in all.
    """

    examples = """
        minigpt next "See you"
        minigpt next --prompt "Once upon a time" --top 5 --steps 5
        minigpt next --model gpt2 --prompt "See you" --json
    """
    needs: ClassVar[Mapping[str, str]] = {"prompt": "no TEXT"}
    text: Annotated[str | None, Flag("TEXT", positional=True)] = None
    """the text whose next token is shown; "" is the beginning of a text, - reads standard input"""
    prompt: Annotated[str | None, Flag("TEXT")] = None
    """the same, as a flag"""
    top: Annotated[Shown, Flag("K")] = 10
    """rows of the table"""
    steps: Annotated[int, Bounds(1, 10**9)] = 1
    """number of tables, each one token further"""
    bos: bool | None = None
    """put the token that opens a document in front (default: nothing in front)"""


class Score(Reading, Model):
    """Measure how probable texts are, each as a whole.

    log_prob is the sum of log p(token | tokens before it) over all tokens except the first, in nats. num_tokens is the
    number of these predicted tokens, and perplexity is exp(-log_prob / num_tokens). With --bos the first token of the
    text is predicted too, with --eos also the end of the text.
    """

    examples = """
        minigpt score "To be, or not to be" "To be, or not to bee"
        minigpt score "To be, or not to be" --tokens
        minigpt score --model gpt2 "See you later, alligator." --bos --eos --json
    """
    text: Annotated[tuple[str, ...], Flag("TEXT", positional=True)]
    """a text of at most the model's block_size in tokens; - reads standard input"""
    bos: Annotated[bool | None, Flag(says=Next)] = None
    eos: bool = False
    """put the token that closes a document at the end"""
    tokens: bool = False
    """show the log-probability of every token, which --json has in any case"""


class EvaluateText(Reading):
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
repeated 4-grams  share of four words in a row that occurred earlier in the same
                  text (seq-rep-4). People: below 0.01. Near 0.1 a text goes
                  round in circles.
perplexity        under --model, of the texts without their prompts. It is good
                  if it is near that of real text; far below, a text is dull.
n-grams copied    n-grams that stand in --training-data, word for word.
longest copy      the longest span that stands there. Up to about 10 words are
                  common phrases; {MEMORISED} words have been memorised.
BLEU, chrF        closeness to --reference, 0 to 100.

{textwrap.fill(WORD_MEANING, WIDTH)}"""
    needs: ClassVar[Mapping[str, str]] = dict.fromkeys({*vars(Reading())} - {*vars(Command())}, "--model")
    file: Annotated[tuple[str, ...], Flag("FILE", positional=True)]
    """texts: .txt (parts between blank lines, else lines), records such as .jsonl, a folder, what generate --json
    prints, or - for standard input"""
    text_field: Annotated[str | None, Flag("NAME")] = None
    """the field of records that is the text"""
    model: Annotated[tuple[str, ...], Flag("MODEL", says=MODEL)] = ()
    training_data: Annotated[str | None, Flag("SOURCE")] = None
    """what the texts may have been copied from: a file, a folder with its texts and records, or a named corpus, as for
    minigpt train"""
    reference: Annotated[str | None, Flag("FILE")] = None
    """the texts that should have been written: as many, in the same order"""


class Import(Command):
    """Write a model as a run directory of minigpt, which every command can read.

    If the model comes from a run, its best weights and settings are kept, but no checkpoint to resume from. --verify
    checks, before anything is written, that the model computes the same as in the transformers library, up to rounding;
    this needs memory for both models.
    """

    examples = """
        minigpt import gpt2 checkpoints/gpt2 --verify
        minigpt import path/to/folder checkpoints/mine --block-size 256
        minigpt import nanogpt/ckpt.pt checkpoints/nano --tokenizer nanogpt/input.txt
    """
    model: Annotated[str, Flag("SRC", positional=True, says=MODEL)]
    out: Annotated[str, Flag("DIR", positional=True)]
    """the run directory; must not exist or be empty"""
    tokenizer: Annotated[str | None, Flag("T", says=TextSettings)] = None
    block_size: int | None = None
    """a shorter context (default: the model's own)"""
    dropout: Annotated[float | None, Flag("P")] = None
    """for further training (default: the model's own; needed if its three rates differ)"""
    verify: bool = False
    """compare every layer with the transformers library; of what that cannot read, only an export is checked"""


class Export(Command):
    """Write a model as a folder that the transformers library loads.

    The folder has config.json, model.safetensors and the files of the tokenizer, for AutoModelForCausalLM and
    AutoTokenizer.
    """

    examples = """
        minigpt export checkpoints/shakespeare-quick out/shakespeare
        minigpt export gpt2 out/gpt2
    """
    model: Annotated[str, Flag("MODEL", positional=True, says=MODEL)]
    out: Annotated[str, Flag("DIR", positional=True)]
    """the folder; must not exist or be empty"""
    tokenizer: Annotated[str | None, Flag("T", says=TextSettings)] = None


class Doctor(Command):
    """Show what this machine has, and measure which dtype is fastest on it, eager and compiled.

    A setting is safe if its losses agree with float32's. A second table has the times of a linear layer with each kind
    of --weights, and says which kinds give other products than the plain layer and are left out.
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


SIDE_BY_SIDE = """the most sequences that are written side by side, and each beam is one; the others wait, and take the
places of those that are done (default: those of 8 prompts; with --ablate of 1, because all must have one length)"""


class Prompts(Command):
    """The prompts to continue."""

    text: Annotated[str | None, Flag("TEXT", positional=True)] = None
    """the text to continue, as with --prompt; - reads standard input"""
    prompt: Annotated[tuple[str, ...], Flag("TEXT")] = ()
    """the text to continue"""
    prompts_file: Annotated[str | None, Flag("FILE")] = None
    """a text file with one prompt a line; empty ones are left out"""

    @property
    def given(self) -> list[str]:
        """TEXT, and every --prompt, as they were typed."""
        return [text for text in (self.text, *self.prompt) if text is not None]


EARLY_STOPPING: dict[str, bool | str] = {"no": False, "yes": True, "never": "never"}


class Generate(Prompts, Reading, Model):
    """Continue a text. It is printed token by token.

    With --examples, the text is a query: the prompt shows pairs of inputs and outputs first, and the model writes the
    output of the query, up to an empty line. Only large models, such as gpt2-xl, answer well.
    """

    examples = """
        minigpt generate "ROMEO:"
        minigpt generate --prompt "ROMEO:" --max-new-tokens 500 --on-overflow crop
        minigpt generate "To be" --top-p 0.9 --num-return-sequences 3
        minigpt generate --prompt "To be" --strategy beam --num-beams 5 --json
        minigpt generate "My lord" --strategy beam --num-beams 8 --require "crown"
        minigpt generate --prompt "ROMEO:" --ablate 0.1
        minigpt generate --prompts-file openings.txt --batch-size 16 --json > out.json
        minigpt generate --examples french.tsv "bread" \\
          --input-label English: --output-label French:
    """
    first = (
        "--prompt", "--model", "--max-new-tokens", "--strategy", "--temperature", "--top-k", "--top-p", "--num-beams",
        "--num-return-sequences",
    )  # fmt: skip
    needs: ClassVar[Mapping[str, str]] = {
        "draft_tokens": "--draft", "seed": "--strategy sample and no --temperature 0", "instruction": "--examples",
        "input_label": "--examples", "output_label": "--examples",
    }  # fmt: skip
    max_new_tokens: Annotated[int | None, Flag("N", says=LENGTH)] = None
    options: Annotated[
        DecodingOptions,
        Section(
            inline=True,
            flags={
                **dict.fromkeys(("max_new_tokens", "use_cache", "force_eos"), Flag(hidden=True)),
                "batch_size": Flag("N", says=SIDE_BY_SIDE),
            },
        ),
    ]
    early_stopping: Literal["no", "yes", "never"] = "no"
    """end a beam search as soon as num_beams sequences are finished (yes); if also the best unfinished one scores no
    better now (no); or only if it can never score better (never)"""
    ban: Annotated[tuple[str, ...], Flag("TEXT")] = ()
    """a text that must not be written, as the model's tokenizer spells it"""
    bias: Annotated[tuple[tuple[str, str], ...], Flag("TEXT NUMBER")] = ()
    """add a number to the score of a text's last token whenever its other tokens have just been written"""
    require: Annotated[tuple[str, ...], Flag("TEXT")] = ()
    """a text that beam search must write somewhere"""
    stop: Annotated[tuple[str, ...], Flag("STR", says=DecodingOptions)] = ()
    examples_file: Annotated[str | None, Flag("FILE", name="--examples")] = None
    """show these pairs before the text, which is then a query; one a line: .jsonl with input and output, or .tsv"""
    instruction: str = ""
    """what stands above the pairs"""
    input_label: str = "Input:"
    """what stands before each input"""
    output_label: str = "Output:"
    """what stands before each output"""
    draft: Annotated[str | None, Flag("MODEL")] = None
    """what guesses the next tokens, so that --model verifies several at once: the same text, faster. A smaller model
    with the same vocabulary; or lookup, which copies from the text so far"""
    draft_tokens: Annotated[int | None, Bounds(1, 10**9, below="guesses nothing"), Flag("N")] = None
    """the most tokens to guess at once"""
    seed: int = 0
    """of the draws: on the same machine and number of threads, the same seed gives the same text, except with --weights
    auto; each further prompt has a seed one higher"""
    show_special: bool = False
    """show special tokens, such as the one that ends a document, by their names (default: leave them out)"""
    ablate: Annotated[tuple[str, ...], Flag("L.X")] = ()
    """write without this part: 1.0 a head, 1.attn, 1.mlp"""
    no_cache: bool = False
    """compute everything anew for each token, as a check"""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings; length and end of a text are decided when the model is loaded."""
        options = DecodingOptions.before_model(**given.get("options", {}))
        return cls(**{**given, "options": options})


_OF_CHAT = (  # options that a chat decides itself, or that concern several texts
    "max_new_tokens", "use_cache", "force_eos", "batch_size", "num_beams", "num_return_sequences", "length_penalty",
    "on_overflow",
)  # fmt: skip


class Chat(Reading, Model):
    """Talk with a model, line by line.

    It reads the last turns that fit its context, whole ones, in the form of a play. A model that was trained on
    dialogues replies (minigpt train --preset chat-shakespeare, or --preset chat --data talks.jsonl); any other goes on
    with the text as best it can.

    In a terminal, /help shows what can be typed, Ctrl-C stops a reply, and Ctrl-D ends. From a pipe, each line is
    answered by a reply, with an empty line between two replies. Nothing is kept on disk but what /save writes.

    A reply that is empty, echoes what it replies to, repeats the reply before it or goes round in circles is drawn
    again, and so is one that a flag below refuses. If all --tries fail, the best is shown, with what is wrong with it.
    """

    examples = """
        minigpt chat
        minigpt chat --model checkpoints/chat-shakespeare --user ROMEO --as JULIET
        minigpt chat --system "Verona. A street." --temperature 0.6
        minigpt chat --blocklist words.txt --max-characters 200
        echo "Is it day?" | minigpt chat --json
    """
    first = ("--model", "--as", "--user", "--system", "--turns", "--max-new-tokens", "--temperature")
    needs: ClassVar[Mapping[str, str]] = dict.fromkeys(("seed", "tries"), "--strategy sample and no --temperature 0")
    json: bool = False
    """print a JSON object for each reply, with what the model read, the tries, and what was wrong with those"""
    turns: Annotated[int, Bounds(1, 1_000_000, below="leaves nothing to reply to"), Flag("N")] = 4
    """the most turns that the model reads before a reply, yours included"""
    system: Annotated[str, Flag("TEXT")] = ""
    """what stands above the conversation, however long this becomes"""
    reply_as: Annotated[str, Flag("NAME", name="--as")] = ""
    """the name of who replies (default: ASSISTANT)"""
    user: Annotated[str, Flag("NAME")] = ""
    """your name (default: USER)"""
    max_new_tokens: Annotated[int | None, Bounds(1, 10**9, below="leaves no room for a reply"), Flag("N")] = None
    """the most tokens of a reply (default: 200); older turns leave room for these, or for a third of the context"""
    options: Annotated[
        DecodingOptions,
        Section(
            inline=True,
            flags={
                **dict.fromkeys(_OF_CHAT, Flag(hidden=True)),
                "strategy": Flag(
                    choices=("sample", "greedy"), says="draw each token, or take the best: sample, greedy"
                ),
            },
        ),
    ]
    stop: Annotated[tuple[str, ...], Flag("STR", says=DecodingOptions)] = ()
    tries: Annotated[int, Bounds(1, 1000, below="draws no reply"), Flag("N")] = 3
    """how often a reply is drawn until one passes"""
    min_characters: Annotated[int | None, Bounds(1, 10**9), Flag("N")] = None
    """draw again what is shorter"""
    max_characters: Annotated[int | None, Bounds(1, 10**9), Flag("N")] = None
    """draw again what is longer"""
    blocklist: Annotated[tuple[str, ...], Flag("FILE")] = ()
    """draw again what has a word of this file: one a line, whole words. better-profanity is the list of the package of
    that name, if it is installed"""
    seed: int = 0
    """of the first reply; each further one, and each try, has a seed one higher"""
    no_cache: bool = False
    """read the whole conversation anew for each reply, as a check"""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The settings; the length and the end of a reply are decided when the model is loaded."""
        options = DecodingOptions.before_model(**given.get("options", {}))
        return cls(**{**given, "options": options})


DEFAULT_SETTINGS = ("greedy", "sample temperature=0.8", "sample temperature=1 top_p=0.9", "beam num_beams=5")
OPTIONS: dict[str, type] = {  # the options of a setting that are one number -> its type
    # All settings have the same length, and --seeds gives the number of texts.
    **{
        name: kind
        for name, hint in get_type_hints(DecodingOptions).items()
        for kind in (int, float)
        if hint in (kind, kind | None) and name not in ("max_new_tokens", "num_return_sequences", "batch_size")
    },
    "early_stopping": str,
}
SETTING = f"how to decode (default: {', '.join(DEFAULT_SETTINGS)}). Options: {', '.join(OPTIONS)}"


class Compare(Prompts, Reading):
    """Compare decoders, or models, on the same prompts with the same seeds.

    Every setting writes --seeds texts for each prompt. A measure is averaged over the texts of a prompt, then over the
    prompts. The mean is printed with its 95 % interval, by Efron's percentile bootstrap: 2,000 times, as many prompts
    are drawn from the prompts with replacement. A star marks a line that differs from the first one by more than
    chance: the interval of the differences, prompt by prompt, excludes 0. If nothing differs, one line in twenty still
    gets a star by chance; with fewer than ten prompts, more. Greedy and beam search do not sample: their one text
    counts for each seed, so that distinct-n shows that they never vary.

    A setting is a strategy (sample, greedy, beam) and options, as in "sample temperature=0.8 top_k=50". Several values,
    as in temperature=0.5,0.8, make several settings; two such lists make all their combinations.
    """

    examples = r"""
        minigpt compare --prompts-file openings.txt \
          --setting greedy --setting "beam num_beams=5"
        minigpt compare --prompts-file openings.txt \
          --setting "sample temperature=0.5,0.8,1.1" --seeds 5
        minigpt compare --prompts-file openings.txt \
          --training-data reviews.jsonl -o out.json -o out.png
        minigpt compare --model gpt2 --model checkpoints/tuned \
          --prompt "The film" --prompt "The plot"
        minigpt compare --model gpt2 --prompt "The film" \
          --adapter reviews/adapter --adapter news/adapter
    """
    first = ("--prompt", "--prompts-file", "--setting", "--model", "--adapter", "--training-data", "--out")
    needs: ClassVar[Mapping[str, str]] = {"text_field": "--training-data"}
    model: Annotated[
        tuple[str, ...], Flag("MODEL", says=f"{NEWEST}; several are compared, and their texts shown side by side")
    ] = ()
    adapter: Annotated[tuple[str, ...], Flag("DIR")] = ()
    """a LoRA adapter, to compare the one --model with and without it; several are compared with each other too"""
    setting: Annotated[tuple[str, ...], Flag("SETTING", says=SETTING)] = ()
    seeds: Rows = 3
    """texts of each prompt"""
    seed: FirstSeed = 0
    """the first seed of the texts, and the seed of the bootstrap"""
    max_new_tokens: Annotated[
        int | None, Bounds(1, 10**9, below="writes nothing to compare"), Flag("N", says=LENGTH)
    ] = None
    batch_size: Rows = 8
    """texts that are written at once"""
    training_data: Annotated[str | None, Flag("SOURCE")] = None
    """measure how much is copied from this file, folder or corpus"""
    text_field: Annotated[str | None, Flag("NAME")] = None
    """the field of its records that is the text"""
    show: Annotated[int, Bounds(0, 1_000_000, below="is too small")] = 2
    """prompts whose texts are printed side by side; --json has those of all"""
    out: Annotated[tuple[Path, ...], Flag("FILE", short="-o")] = ()
    """write texts and numbers (.json), texts (.csv) or a picture (.png, .svg)"""


class Explore(Command):
    """See inside a model, in a page that runs it in your browser.

    The page computes every number itself: what comes next and why, attention, the lens, beams, the loss of a text, and
    the curve of a run. It is served to this machine alone until Ctrl-C, and nothing is written. With -o, page,
    tokenizer and weights become one file, which works from a double click, without a network.
    """

    examples = """
        minigpt explore
        minigpt explore -o my-model.html
        minigpt explore --model gpt2 --prompt "See you"
        minigpt explore --model checkpoints/first --model checkpoints/second
    """
    needs: ClassVar[Mapping[str, str]] = {"weights": "--out", "port": "no --out", "no_browser": "no --out"}
    model: Annotated[tuple[str, ...], Flag("MODEL", says=f"{NEWEST}; two are shown side by side")] = ()
    adapter: Annotated[str | None, Flag("DIR")] = None
    """a LoRA adapter to merge into the one --model: a run's adapter folder, or one of PEFT's"""
    tokenizer: Annotated[str | None, Flag("T", says=TextSettings)] = None
    prompt: Annotated[str | None, Flag("TEXT")] = None
    """the text that the page begins with; - reads standard input"""
    port: Annotated[int, Bounds(1, 2**16 - 1)] = 8765
    """of the page's address; where it is taken, the next free one"""
    no_browser: bool = False
    """only print the address, and open no browser"""
    out: Annotated[str | None, Flag("FILE", short="-o")] = None
    """write one file (.html) instead of serving"""
    weights: Annotated[Literal["float32", "float16", "int8"] | None, Flag("KIND")] = None
    """how the file keeps them: exactly, or in half or a quarter of the bytes (default: by size). What that costs in
    loss is measured on the run's own validation text"""


CHAT_SETTINGS = ("sample temperature=0.8", "greedy")


class EvaluateChat(Reading, Model):
    """Measure how well a model replies in dialogues that it has not seen, and count what goes wrong.

    1. How probable the true replies are, and what the history does to that. 2. What the model replies with each
    --setting, at the same places with the same seeds: how near that is to the true replies, and which settings differ
    by more than chance. 3. Failures, found by rules, which read the true replies too.

    Dialogues are those that the run held out; with --data of another source all of it, or what the source itself sets
    apart to validate. A model need not have been trained on dialogues. The units of chance are dialogues, because the
    replies of one are alike.
    """

    examples = r"""
        minigpt evaluate-chat
        minigpt evaluate-chat -o report.md -o report.png
        minigpt evaluate-chat --setting "sample temperature=0.5,0.8,1.1" --seeds 3
        minigpt evaluate-chat --model gpt2 --data convai2.json --turns 3 --replies 30
    """
    more = """\
gain          by how much the history makes the true reply likelier than no
              history, in nats a token
drop          by how much less likely it is after another dialogue's history. 0:
              what was said before means nothing to the model
first of n    how often, of n replies of n dialogues, the history raises the
              true one most. A guess is right once in n
whole         replies whose turns all fit into the context
BLEU, chrF, METEOR  closeness to the true reply, 0 to 100. Low in any dialogue,
              where much can be replied; compare settings, not sorts of data
overlap       the reply's rarer words that the history has
p             of a paired permutation test: how often chance alone would make
              two settings differ as much. Of twenty lines without any
              difference, one is below 0.05
*             differs from the first setting: p is below 0.05"""
    first = ("--model", "--data", "--setting", "--replies", "--out")
    data: Annotated[str | None, Flag("SOURCE")] = None
    """dialogues: a file, a folder or a named source, as for minigpt train (default: what a run was trained on)"""
    val_data: Annotated[str | None, Flag("FILE")] = None
    """where the dialogues that validated in the run lie now, if they have a file of their own"""
    turns: Annotated[int | None, Bounds(1, 1_000_000, below="leaves nothing to reply to")] = None
    """the most turns before a reply, where replies are written (default: as in training)"""
    setting: Annotated[
        tuple[str, ...], Flag("SETTING", says=SETTING.replace(", ".join(DEFAULT_SETTINGS), ", ".join(CHAT_SETTINGS)))
    ] = ()
    replies: Rows = 100
    """the most true replies that are measured, from as many dialogues as possible"""
    seeds: Rows = 1
    """replies that are written at each place"""
    seed: FirstSeed = 0
    """of the choice of places, and the first of the replies"""
    max_new_tokens: Annotated[int | None, Bounds(1, 10**9, below="writes nothing"), Flag("N")] = None
    """the most tokens of a reply (default: 200, or a third of the context)"""
    history: Annotated[
        tuple[int, ...],
        Form("numbers from 0 to 999,999,999", lambda turns: all(0 <= one < 10**9 for one in turns)),
        Flag("TURNS", together=True),
    ] = (0, 1, 3, 5)
    """turns of the histories that are compared (default: 0 1 3 5)"""
    candidates: Annotated[int | None, Bounds(2, 1_000_000, below="ranks nothing"), Flag("N")] = None
    """how many replies are ranked (default: 10, or as many as there are dialogues)"""
    batch_size: Rows = 8
    """rows that are computed at once"""
    show: Annotated[int, Bounds(0, 1_000_000, below="is too small")] = 1
    """examples of each failure that are printed; --json has all"""
    out: Annotated[tuple[Path, ...], Flag("FILE", short="-o")] = ()
    """write a report (.md), all texts and numbers (.json) or a picture (.png, .svg); a report shows a picture that is
    written beside it"""


# command -> its settings
SETTINGS: dict[str, type[Command]] = {
    "quickstart": Quickstart,
    "train": Train,
    "verify-resume": VerifyResume,
    "next": Next,
    "score": Score,
    "generate": Generate,
    "chat": Chat,
    "compare": Compare,
    "eval": Eval,
    "evaluate-text": EvaluateText,
    "evaluate-chat": EvaluateChat,
    "explore": Explore,
    "tokenize": Tokenize,
    "import": Import,
    "export": Export,
    "doctor": Doctor,
}
