"""Every setting of a run: frozen dataclasses, checked where they are made, the presets, and their YAML form.

A field's docstring is the help text of its command-line flag, so what a setting means is written once. Nothing here
imports torch: `minigpt --help` and the checking of a configuration are instant.
"""

import copy
import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from minigpt.errors import ConfigError, MissingFileError, ShapeError, brief, did_you_mean, either, named, refuse_if
from minigpt.fields import ABOVE_0, BELOW_1, Bounds, Form, check_fields, checked, hints
from minigpt.system.files import named_path, read_bytes, write_text

_NO_END = 10**15  # more than any run needs; times the rows of a step, it still fits 64 bits
_LARGEST = 1e100  # too large for float32, so that training notices, and far below the largest double
_LONGEST_YAML = 2**20  # bytes

Layers = Annotated[int, Bounds(1, 10_000)]
Size = Annotated[int, Bounds(1, 2**24)]  # of a model or a batch: its square still fits a 64-bit integer
VocabSize = Annotated[int, Bounds(1, 2**31 - 1)]
Seed = Annotated[int, Bounds(0, 2**63 - 1, "a whole number from 0 to 2**63 - 1")]
Count = Annotated[int, Bounds(1, _NO_END)]
CountOrOff = Annotated[int, Bounds(0, _NO_END)]
NotNegative = Annotated[float, Bounds(0, _LARGEST)]
Rate = Annotated[float, Bounds(ABOVE_0, _LARGEST, "above 0 and at most 1e100", below="would not learn")]
Alpha = Annotated[float, Bounds(ABOVE_0, _LARGEST, "above 0; 1 to 4 times the rank is usual")]
Weights = Literal["float32", "float16", "int8", "auto"]  # how a model for inference keeps its linear layers
Share = Annotated[float, Bounds(0, BELOW_1, "in [0, 1)")]
Part = Annotated[float, Bounds(0, 1, "in [0, 1]")]
Models = Annotated[
    tuple[str, ...], Form("a list of models, such as [checkpoints/a, checkpoints/b]", lambda names: all(names))
]
ValFraction = Annotated[float, Bounds(ABOVE_0, BELOW_1, "between 0 and 1: 0.1 keeps the last tenth for validation")]


_refuse = partial(refuse_if, ConfigError)


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    The defaults of the class are GPT-2 small's.

    Raises:
        ConfigError: if a value is out of range; ShapeError if `n_embd` cannot be split into `n_head` heads.
    """

    vocab_size: VocabSize = 50257
    """tokens in the vocabulary; training takes it from the tokenizer"""
    block_size: Size = 1024
    """the longest context in tokens: attention's memory grows with its square"""
    n_layer: Layers = 12
    """number of blocks"""
    n_head: Size = 12
    """attention heads per block; must divide n_embd"""
    n_embd: Size = 768
    """width of the residual stream; parameters grow with its square"""
    dropout: Share = 0.0
    """share of activations zeroed in training, after the embedding, in attention and at each block's two outputs; on a
    CPU in steps of 1/256"""
    bias: bool = True
    """biases in the linear layers and layer norms, as GPT-2 has them"""
    tie_weights: bool = True
    """use the token embedding as the output head too (Press and Wolf, 2017)"""

    def __post_init__(self) -> None:
        check_fields(self)
        refuse_if(
            ShapeError,
            self.n_embd % self.n_head != 0,
            f"{named('n_embd', self.n_embd)} cannot be split into {named('n_head', self.n_head)} equal heads",
            f"choose {named('n_embd')} as a multiple of {named('n_head')}, for example "
            f"{self.n_head * max(1, self.n_embd // self.n_head)}",
        )


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Raises:
        ConfigError: if a value is out of range.
    """

    source: str = "shakespeare"
    """a named corpus, a text file, a folder of them, or records: .jsonl, .ndjson, .csv, .tsv, .json"""
    tokenizer: Literal["char", "gpt2"] = "char"
    """one token a character of the corpus, or GPT-2's 50,257 byte-pair tokens"""
    val_fraction: ValFraction = 0.1
    """the last part of the corpus, kept out of training and used to measure the validation loss"""
    val_data: str = ""
    """what validates instead: a text or records of their own, read as the source is"""
    checksum: str = ""
    """sha256 of what was read of the source, wherever it lies; training fills it in"""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class DocumentsConfig:
    """Fine-tuning on documents: how a source is cut into them, and they into batches.

    Raises:
        ConfigError: if a value is out of range.
    """

    separate: Literal["auto", "on", "off", "dialogues"] = "auto"
    """read separate documents, each with an end to learn, and not one text; auto does so with records; dialogues: a
    reply and the turns before it are one, and only the reply is learned"""
    turns: Count = 4
    """of dialogues: the most turns before a reply; fewer where they are longer than max_length"""
    learned: Literal["reply", "replies"] = "reply"
    """of dialogues: the last reply alone, or also the replies before it, with which a new model learns sooner"""
    text_field: str = ""
    """the field of a record that is the text; if empty, `text`, or the only one that holds text"""
    prompt_field: str = ""
    """for pairs, such as a question and its answer: the field that is given and not learned"""
    completion_field: str = ""
    """for pairs: the field that is learned; the loss counts nothing else"""
    max_characters: CountOrOff = 0
    """longer documents are cut to this many characters, or dropped; 0 for no limit"""
    longer: Literal["cut", "drop"] = "cut"
    """what becomes of a document that is longer than max_characters"""
    max_length: CountOrOff = 0
    """longer documents are cut to this many tokens, and what is cut has no end to learn; 0 for block_size"""
    train_size: CountOrOff = 0
    """documents, or dialogues, to train on, chosen by the seed; 0 for all that do not validate"""
    val_size: CountOrOff = 0
    """documents, or dialogues, to hold out and validate on, chosen by the seed; 0 for a tenth, or all of --val-data"""
    batching: Literal["padded", "packed", "packed-masked"] = "padded"
    """padded: one document a row; packed: back to back, no room wasted; packed-masked: so too, and none sees another"""
    keywords: CountOrOff = 0
    """open each document with a line of this many of its most telling words, which a prompt can then ask for"""

    def __post_init__(self) -> None:
        check_fields(self)
        _refuse(
            self.longer != "cut" and self.max_characters == 0,
            f"{named('longer', self.longer)} drops nothing: {named('max_characters')} sets no limit",
            f"give {named('max_characters')} too, the most characters of a document",
        )
        _refuse(
            bool(self.prompt_field) != bool(self.completion_field),
            f"{named('prompt_field', self.prompt_field)} and {named('completion_field', self.completion_field)} are no "
            "pair",
            f"name both, or {named('text_field')} alone",
        )
        _refuse(
            bool(self.text_field and self.completion_field),
            f"{named('text_field', self.text_field)} contradicts {named('completion_field', self.completion_field)}",
            f"name {named('text_field')} for whole texts, or the other two for pairs",
        )


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Raises:
        ConfigError: if a value is out of range or contradicts another.
    """

    max_steps: Count = 5000
    """number of optimizer steps"""
    epochs: Annotated[float, Bounds(0, 1e9)] = 0.0
    """how often all data are read; above 0 it decides max_steps; each epoch ends with an evaluation and a save, and no
    step reaches into the next one"""
    batch_size: Size = 64
    """rows in one micro-batch"""
    short_windows: Share = 0.0
    """share of the steps, the first ones, that read each window as two of half its length: attention learns sooner from
    short windows, and they cost less"""
    accumulation_steps: Size = 1
    """micro-batches whose gradients are averaged for one step: a larger batch in the same memory"""
    learning_rate: Rate = 1e-3
    """AdamW's peak learning rate, reached after warm-up"""
    min_learning_rate: NotNegative = 1e-4
    """the learning rate at the end of the schedule; the Muon rate falls by the same factor"""
    schedule: Literal["cosine", "linear"] = "cosine"
    """how the learning rate falls after warm-up"""
    warmup_steps: CountOrOff = 100
    """steps over which the learning rate rises linearly from near zero"""
    warmup_ratio: Share = 0.0
    """share of all steps; above 0 it decides warmup_steps"""
    weight_decay: NotNegative = 0.1
    """decoupled decay of the matrices; biases, layer norms and (under Muon) embeddings are never decayed"""
    beta1: Share = 0.9
    """AdamW's decay rate of the mean of the gradient"""
    beta2: Share = 0.99
    """AdamW's decay rate of the mean of its square"""
    grad_clip: NotNegative = 1.0
    """largest norm of the whole gradient; 0 turns clipping off"""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon: Muon on the matrices of the blocks and AdamW on all the rest"""
    muon_learning_rate: Rate = 0.02
    """Muon's peak learning rate, with --train.optimizer muon"""
    muon_momentum: Share = 0.95
    """Muon's decay rate of the mean of the gradient; short runs like it smaller"""
    eval_interval: Count = 250
    """steps between evaluations over the whole validation split"""
    save_interval: Count = 250
    """steps between checkpoints; there is always one at the end"""
    patience: CountOrOff = 0
    """evaluations without a better validation loss after which training stops; 0 for never"""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """what to do when a loss or a gradient is infinite or not a number: stop with a report, or leave the step out"""
    lora_rank: CountOrOff = 0
    """above 0, train adapters of this rank beside the frozen model (LoRA) and save nothing else"""
    lora_alpha: Alpha = 16.0
    """an adapter's output is scaled by lora_alpha / lora_rank"""
    lora_dropout: Share = 0.0
    """share of an adapter's inputs zeroed in training"""
    lora_targets: str = "attn.c_attn"
    """the layers with adapters: ends of their names, or globs, with commas between them"""
    freeze: str = ""
    """parameters that stay as they are: names or globs with commas between them, such as wte.*,wpe.*,h.[0-5].*"""
    teachers: Models = ()
    """a trained model to learn from beside the text, named as for --init-from; of several, the mean of their
    probabilities is learned: one model that knows what an ensemble knows (Hinton et al., 2015)"""
    teacher_weight: Part = 0.5
    """share of the teachers in what is learned: 0, the text alone, to 1, their probabilities alone"""
    gradient_checkpointing: bool = False
    """compute the blocks' activations again in the backward pass: a third more time, far less memory"""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """under torchrun: ddp, the whole model in each process, or fsdp, a part of every tensor in each"""

    def __post_init__(self) -> None:
        check_fields(self)
        _refuse(
            self.lora_rank > 0 and self.optimizer == "muon",
            f"{named('optimizer', self.optimizer)} is not for adapters: it moves so thin a matrix equally far in "
            "each of its few directions, also where the gradient hardly asks for it",
            f"use {named('optimizer', 'adamw')} with {named('lora_rank')}",
        )
        _refuse(
            self.min_learning_rate > self.learning_rate,
            f"{named('min_learning_rate', self.min_learning_rate)} is above "
            f"{named('learning_rate', self.learning_rate)}",
            f"the schedule falls: choose {named('min_learning_rate')} <= {named('learning_rate')}, for example a tenth "
            "of it",
        )
        _refuse(
            self.warmup_steps > self.max_steps and self.epochs == self.warmup_ratio == 0,  # which would decide them
            f"{named('warmup_steps', self.warmup_steps)} is more than {named('max_steps', self.max_steps)}",
            f"lower {named('warmup_steps')} too, or give {named('warmup_ratio')}, which is a share of all steps",
        )

    @property
    def asked(self) -> Models:
        """The teachers that change what is learned: none of them where their share is 0."""
        return self.teachers if self.teacher_weight else ()


@dataclass(frozen=True)
class LoRAConfig:
    """What an adapter looks like.

    Raises:
        ConfigError: if a value cannot be used.
    """

    rank: Size = 8
    """inner size of an adapter's pairs of matrices: its parameters grow with it"""
    alpha: Alpha = 16.0
    """an adapter's output is scaled by alpha / rank"""
    dropout: Share = 0.0
    """share of an adapter's inputs zeroed in training"""
    targets: tuple[str, ...] = ("attn.c_attn",)
    """linear layers of the blocks: ends of their names, as globs, such as attn.c_attn, c_proj or h.0.*"""

    def __post_init__(self) -> None:
        check_fields(self)
        _refuse(
            not are_texts(self.targets),
            f"{named('targets', self.targets)} cannot be used",
            f"{named('targets')} must be at least one name, such as attn.c_attn",
        )


def are_texts(values: list[object] | tuple[object, ...]) -> bool:
    """Whether there is something, and all of it is text."""
    return bool(values) and all(isinstance(value, str) and value for value in values)


@dataclass(frozen=True)
class RunConfig:
    """One training run, complete: `config.yaml` in a run directory is this object.

    Raises:
        ConfigError: if a value is out of range.
    """

    model: GPTConfig = field(default_factory=GPTConfig)
    data: DataConfig = field(default_factory=DataConfig)
    documents: DocumentsConfig = field(default_factory=DocumentsConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    init_from: str = ""
    """the model to start from: a run, a transformers folder, weights, gpt2, ORG/NAME; in YAML, '' for a new one"""
    seed: Seed = 0
    """fixes the initial weights, the batches and dropout: on the same machine and number of threads, the same
    seed gives the same weights, byte for byte"""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """of the matrix products in training; auto is bfloat16 where the hardware multiplies it, else float32"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto is on for CUDA and off elsewhere"""
    kernels: Literal["auto", "torch", "fast", "c"] = "auto"
    """who computes the layers of a float32 step on a CPU, all with the same numbers up to rounding: torch; fast, other
    products and GELU; c, attention and (not with AVX-512) the MLP in C, where there is a compiler; auto is what was
    measured to win: fast on AMD processors, c for long runs on those with AVX2 alone, torch elsewhere; a run records
    which"""
    report_to: Literal["none", "tensorboard", "wandb"] = "none"
    """where to watch the run besides its own files: none, tensorboard or wandb; both need the extra of their name"""

    def __post_init__(self) -> None:
        check_fields(self)
        _refuse(
            self.train.short_windows > 0 and self.model.block_size % 2 == 1,
            f"{named('block_size', self.model.block_size)} cannot be halved, as {named('short_windows')} asks",
            f"choose an even {named('block_size')}, or {named('short_windows', 0)}",
        )


# What each preset is for, and its settings. The Shakespeare runs for a CPU share one recipe: a small model without
# dropout or biases, a few thousand tokens a step, and Muon's large steps, so that the run is short. The trials behind
# it are in docs/training-speed.md. The one that replies has a longer context, for the turns before, and as many fewer
# steps. The best one learns from an ensemble beside the text: from three runs of shakespeare-cpu, made before it.
PRESETS: dict[str, tuple[str, RunConfig]] = {
    "shakespeare-quick": (
        "0.35 M parameters, an ordinary CPU, one to three minutes",
        RunConfig(
            model=GPTConfig(block_size=128, n_layer=3, n_head=3, n_embd=96, bias=False),
            train=TrainConfig(
                max_steps=1150, batch_size=24, optimizer="muon", muon_learning_rate=0.05, muon_momentum=0.9,
                learning_rate=0.01, min_learning_rate=0.0, warmup_steps=30, eval_interval=230, save_interval=230,
            ),
        ),
    ),
    "shakespeare-cpu": (
        "1.3 M parameters, an ordinary CPU, some ten minutes",
        RunConfig(
            model=GPTConfig(block_size=256, n_layer=4, n_head=5, n_embd=160, bias=False),
            train=TrainConfig(
                max_steps=2000, batch_size=16, short_windows=0.2, optimizer="muon", muon_learning_rate=0.035,
                learning_rate=0.005, min_learning_rate=0.0, warmup_steps=50, weight_decay=0.2, eval_interval=500,
                save_interval=500,
            ),
        ),
    ),
    "shakespeare-best": (
        "1.8 M parameters that learn from three shakespeare-cpu",
        RunConfig(
            model=GPTConfig(block_size=128, n_layer=4, n_head=6, n_embd=192, bias=False),
            train=TrainConfig(
                max_steps=2500, batch_size=32, optimizer="muon", muon_learning_rate=0.03, learning_rate=0.004,
                min_learning_rate=0.0, warmup_steps=50, weight_decay=0.2, eval_interval=500, save_interval=500,
                teachers=tuple(f"checkpoints/shakespeare-cpu-{seed}" for seed in range(3)), teacher_weight=0.7,
            ),
        ),
    ),
    "shakespeare-char": (
        "10.7 M parameters, a GPU: nanoGPT's baby GPT",
        RunConfig(
            model=GPTConfig(block_size=256, n_layer=6, n_head=6, n_embd=384, dropout=0.2, bias=False),
            train=TrainConfig(max_steps=5000, batch_size=64, learning_rate=1e-3, min_learning_rate=1e-4),
        ),
    ),
    "finetune-documents": (
        "GPT-2 goes on with your documents: --data reviews.jsonl",
        RunConfig(
            init_from="gpt2",
            documents=DocumentsConfig(separate="on", max_length=128, train_size=3000, val_size=500),
            train=TrainConfig(
                epochs=3, batch_size=4, learning_rate=2e-5, min_learning_rate=0.0, schedule="linear", warmup_ratio=0.1,
                weight_decay=0.01, beta2=0.999,
            ),
        ),
    ),
    "chat": (
        "GPT-2 learns to reply: --data talks.jsonl",
        RunConfig(
            model=GPTConfig(block_size=256),
            init_from="gpt2",
            documents=DocumentsConfig(separate="dialogues"),
            train=TrainConfig(
                epochs=3, batch_size=8, accumulation_steps=4, learning_rate=5e-5, min_learning_rate=0.0,
                schedule="linear", warmup_ratio=0.1, weight_decay=0.01, beta2=0.999,
            ),
        ),
    ),
    "chat-shakespeare": (
        "0.8 M parameters, six to ten minutes: a character replies",
        RunConfig(
            model=GPTConfig(block_size=384, n_layer=4, n_head=4, n_embd=128, bias=False),
            data=DataConfig(source="shakespeare-dialogues"),
            documents=DocumentsConfig(separate="dialogues", learned="replies"),
            train=TrainConfig(
                max_steps=1300, batch_size=16, optimizer="muon", muon_learning_rate=0.04, learning_rate=0.006,
                min_learning_rate=0.0, warmup_steps=50, weight_decay=0.2, eval_interval=325, save_interval=325,
            ),
        ),
    ),
    "finetune-text": (
        "GPT-2 goes on with one text: --data my-novel.txt",
        RunConfig(
            model=GPTConfig(block_size=256),
            init_from="gpt2",
            train=TrainConfig(
                max_steps=200, batch_size=8, accumulation_steps=4, learning_rate=3e-5, min_learning_rate=3e-6,
                warmup_steps=10, eval_interval=50, save_interval=50,
            ),
        ),
    ),
    "gpt2-124m": (
        "124 M parameters, a large GPU: GPT-2 small's shape",
        RunConfig(
            model=GPTConfig(),
            data=DataConfig(tokenizer="gpt2"),
            train=TrainConfig(
                max_steps=5000, batch_size=16, accumulation_steps=30, learning_rate=6e-4, min_learning_rate=6e-5,
                warmup_steps=200, beta2=0.95, eval_interval=250, save_interval=250,
            ),
        ),
    ),
}  # fmt: skip
DEFAULT_PRESET = "shakespeare-quick"
FINE_TUNING = {"documents": "finetune-documents", "dialogues": "chat", "text": "finetune-text"}  # by what is read


def check_has_base(config: RunConfig) -> None:
    """Refuse an adapter without a model to adapt. Raises ConfigError."""
    if config.train.lora_rank and not config.init_from:
        raise ConfigError(
            f"{named('lora_rank', config.train.lora_rank)} adapts a trained model, and there is none to start from",
            either(f"name it with {named('init_from')}", f"leave {named('lora_rank')} out to train a new one"),
        )


@checked
def preset(name: str) -> RunConfig:
    """The settings of a named preset.

    Raises:
        ConfigError: if there is no preset of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no preset {brief(name)}", did_you_mean(name, PRESETS))
    return PRESETS[name][1]


_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)(e[-+]?[0-9]+)?|[-+]?\.?(inf|nan)", re.IGNORECASE)


def is_plain(text: str) -> bool:
    """Whether a text is a number that flags and YAML read alike. They differ on 010, 1:30 and 1_0."""
    return _NUMBER.fullmatch(text) is not None


def _number(text: str) -> float | str:
    """The float that a text spells, or the text: YAML 1.1 takes 1e-3 for a string, and people write it for a number."""
    try:
        return float(text) if is_plain(text) else text
    except ValueError:  # .inf, which only YAML reads
        return text


_SETTINGS = Form("settings, such as minigpt.config.RunConfig()", lambda one: hasattr(type(one), "__dataclass_fields__"))


@checked
def updated(config: Annotated[Any, _SETTINGS], values: Mapping[str, Any], where: str = "") -> Any:
    """A copy of a configuration with some values replaced, sections merged key by key.

    Raises:
        ConfigError: if a key is unknown (with the nearest one), or a value is not allowed there.
    """
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    kinds = hints(type(config))  # type: ignore[arg-type] # a class has a hash
    changes = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"unknown setting {brief(where + str(key))}", did_you_mean(str(key), known))
        if dataclasses.is_dataclass(known[key]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{where}{key} = {brief(value)} is not a section", f"put the keys of {key} below it")
            value = updated(known[key], value, f"{where}{key}.")
        elif isinstance(known[key], float) and isinstance(value, str):
            value = _number(value)
        elif isinstance(known[key], tuple) and isinstance(value, list):
            value = tuple(value)  # YAML has no tuples
        elif isinstance(value, bool) and "on" in get_args(kinds[key]):
            value = "on" if value else "off"  # which YAML 1.1 reads as true and false
        elif kinds[key] is str and not isinstance(value, str | list | Mapping):
            raise ConfigError(
                f"{where}{key} = {brief(value)} is no text",
                "put quotes around it: without them YAML does not take yes, on, null, numbers and dates for text",
            )
        changes[key] = value
    return dataclasses.replace(config, **changes)


def written_in(file: Path | str, config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """`updated` by the content of a file: its ConfigError names the file, and no flag, because none was given."""
    try:
        changed: RunConfig = updated(config, values)
    except ConfigError as error:
        raise type(error)(f"{file}: {error.what}", error.how) from None
    return changed


def read_yaml(path: Path | str) -> dict[str, Any]:
    """The settings of a YAML file as nested dictionaries, without the versions that a run notes there.

    Raises:
        MissingFileError: if there is no such file.
        ConfigError: if it is not YAML, or holds no mapping.
    """
    path = named_path(path, "config")
    try:
        values = copy.deepcopy(_parsed(read_bytes(path, _LONGEST_YAML).decode("utf-8")))
    except FileNotFoundError:
        raise MissingFileError(f"no configuration file {path}", "check the path") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}", "name a file of settings") from None
    except Exception as error:  # the loader raises whatever a conversion to a number, a date or a set may raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        how = "mend the line it names" if "line " in reason else "name a file of settings"
        raise ConfigError(f"{path} is not readable YAML: {reason}", how) from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings", "write sections such as 'train:' with keys below them")
    if not isinstance(values.pop("versions", {}), dict):
        raise ConfigError(f"{path}: versions is not a section", "leave it out: a run notes there what ran it")
    return _as_named_now(values)


def _as_named_now(values: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names they have today: a model that was trained before a name changed can still be read."""
    documents, data = values.get("documents"), values.get("data", {})
    if isinstance(documents, dict) and isinstance(data, dict):
        if documents.get("batching") == "confined":
            documents["batching"] = "packed-masked"
        if "val_data" in documents and "val_data" not in data:
            values["data"] = {**data, "val_data": documents.pop("val_data")}
    return values


@lru_cache(maxsize=8)  # a command asks for a run's settings up to seven times, 10 ms each
def _parsed(text: str) -> Any:
    """What YAML says. Unlike the library, it names the line of what cannot be read, and a key that is there twice.

    Whoever changes it changes a copy.

    Raises:
        Exception: of any kind, if it is no YAML.
    """
    import yaml

    def refusal(what: str, node: Any) -> Exception:
        return yaml.constructor.ConstructorError(None, None, what, node.start_mark)

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):  # a few of them in a few lines make gigabytes
                raise refusal("a YAML alias (*name) cannot be used: write the value out here", self.current_event)
            return super().compose_node(parent, index)

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                value = super().construct_object(node, deep)
            except (yaml.YAMLError, RecursionError):
                raise
            except Exception:
                raise refusal(f"{brief(node.value)} is no {node.tag.rpartition(':')[2]}", node) from None
            if type(value) in (int, float) and not is_plain(node.value):
                raise refusal(f"{brief(node.value)} would be read as {brief(value)}: write 10, 0.5 or 1e-3", node)
            return value

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            lines: dict[Any, int] = {}
            for key_node, _ in node.value:
                key, line = self.construct_object(key_node, deep=True), key_node.start_mark.line + 1
                if key in lines:
                    raise refusal(f"{brief(key)} is there twice, in lines {lines[key]} and {line}", key_node)
                lines[key] = line
            return super().construct_mapping(node, deep)

    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


@checked
def write_yaml(config: RunConfig, path: Path | str, versions: Mapping[str, str]) -> None:
    """Write a complete configuration, and the versions that it ran with, as YAML that `read_yaml` accepts."""
    import yaml

    content = {**dataclasses.asdict(config), "versions": dict(versions)}
    write_text(named_path(path, "path"), yaml.safe_dump(content, sort_keys=False))
