"""`minigpt train`."""

import dataclasses
import math
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minigpt.cli.run_settings import RunSettings, Train, are_documents
from minigpt.cli.streams import print_json, print_note
from minigpt.config import DocumentsConfig, RunConfig, preset, updated
from minigpt.data.corpora import Corpus, load_corpus, load_quickstart_corpus, source_name
from minigpt.data.documents import Documents, read_documents, with_keywords, with_validation
from minigpt.errors import ConfigError, MissingFileError
from minigpt.formats.run_directory import existing_run
from minigpt.system.files import named_path

if TYPE_CHECKING:  # it brings torch along, and --help is to be instant
    from minigpt.training.loop import TrainResult

COUNTED_BY_EPOCHS = ("max_steps", "warmup_steps", "eval_interval", "save_interval")


def run(settings: Train) -> None:
    """Train, and say what to type next."""
    check_effect(settings)
    continued = settings.resume or settings.replay
    config = shaped_as_base(settings) if settings.run.init_from and not continued else settings.run
    if settings.plan:
        plan_and_say(config, settings.json)
        return
    if settings.replay:
        replay_and_say(config, Path(settings.replay), settings.json)
        return
    name = settings.preset if config.data.source == preset(settings.preset).data.source else None
    resume = existing_run(settings.resume) if settings.resume else None
    train_and_say(config, settings.from_file, settings.out, name, settings.json, resume=resume)


def check_effect(settings: RunSettings) -> None:
    """Refuse a flag that others overrule: who asks for 20 steps is not to wait for three epochs.

    In a --config file, which may be a whole run's, what is overruled is only said.
    """
    config, from_flags = settings.run, settings.from_flags
    data = from_flags.get("data", {})
    if config.init_from and "tokenizer" in data:
        raise ConfigError(
            f"--tokenizer {config.data.tokenizer} would change nothing: {config.init_from} brings its own",
            "leave --tokenizer out",
        )
    if "val_fraction" in data and are_documents(config.documents.separate, config.data.source):
        raise ConfigError(
            f"--val-fraction {config.data.val_fraction} would change nothing: documents are held out by their number",
            "use --documents.val_size, or --documents.val_data for a file of their own",
        )
    t, d = config.train, config.documents
    ratio, lora = t.warmup_ratio, ("lora_alpha", "lora_dropout", "lora_targets")
    documents = [name for name in vars(d) if name != "separate"]
    for section, names, overruled, why, how in (
        ("train", COUNTED_BY_EPOCHS, t.epochs, f"--train.epochs {t.epochs:g} decides it",
         "choose other --train.epochs, or 0 to count in steps"),
        ("train", ["warmup_steps"], ratio, f"--train.warmup_ratio {ratio:g} decides it", "give one of the two"),
        ("train", ["muon_learning_rate", "muon_momentum"], t.optimizer != "muon", "it is Muon's",
         "add --train.optimizer muon, or leave it out"),
        ("train", lora, not t.lora_rank, "it is an adapter's", "add --train.lora_rank, or leave it out"),
        ("documents", documents, d.separate == "off", "--documents.separate is off", "leave one of the two out"),
    ):  # fmt: skip
        for name in names:
            if overruled and name in from_flags.get(section, {}):
                value = getattr(getattr(config, section), name)
                raise ConfigError(f"--{section}.{name} {value} would change nothing: {why}", how)
    written = [name for name in COUNTED_BY_EPOCHS if name in settings.from_file.get("train", {})]
    if config.train.epochs and written:
        print_note(f"epochs = {config.train.epochs:g} decides {', '.join(written)}, whatever --config says")


def shaped_as_base(settings: RunSettings) -> RunConfig:
    """The settings with the shape of the model to start from, its dropout too if nothing else was said.

    Its context is the preset's if that is shorter.

    Raises:
        ConfigError: if the flags or the --config file want another shape.
    """
    from minigpt.formats.source import open_source

    config = settings.run
    shape = open_source(config.init_from).config
    wanted = {**settings.from_file.get("model", {}), **settings.from_flags.get("model", {})}
    asked = {name: getattr(config.model, name) for name in wanted if name != "vocab_size"}
    for name, value in asked.items():
        if name not in ("block_size", "dropout") and value != getattr(shape, name):
            raise ConfigError(
                f"--model.{name} {value} is not the {getattr(shape, name)} of {config.init_from}",
                "leave it out: of a model to start from, only --model.dropout and a shorter block_size can be chosen",
            )
    context = {"block_size": min(config.model.block_size, shape.block_size)}
    return replace(config, model=replace(shape, **context | asked))


def train_and_say(
    config: RunConfig,
    from_file: Mapping[str, Any],
    out: str | None,
    name: str | None,
    as_json: bool,
    quickstart: bool = False,
    resume: Path | None = None,
) -> None:
    """Load the corpus, train, print the result and what to type next.

    Args:
        config: the settings.
        from_file: what the --config file says; a vocabulary size in it is a promise about the corpus.
        out: the run directory, or None for `checkpoints/<name>`, numbered if that is taken.
        name: the preset's, or None to name the run after its corpus.
        as_json: one JSON object on standard output, everything else on standard error.
        quickstart: take Shakespeare from wherever this machine can get it, and say from where.
        resume: the run directory to go on with, or None for a new one.
    """
    from minigpt.formats.run_directory import (
        CHECKPOINTS,
        RunDirectory,
        check_new,
        run_at,
        unfinished_run,
        unused_directory,
    )
    from minigpt.system.device import choose_device, choose_dtype
    from minigpt.training.distributed import joined
    from minigpt.training.log import print_nothing, print_to_stderr, print_to_stdout
    from minigpt.training.loop import train

    with joined() as processes, processes.one_voice():
        print_line = print_to_stderr if as_json else print_to_stdout
        print_line = print_line if processes.first else print_nothing
        directory = named_path(out, "--out") if out else None
        if directory:
            check_new(RunDirectory(directory))  # before a corpus is fetched for nothing
        choose_dtype(config.dtype, choose_device(config.device))  # likewise
        with processes.first_goes_ahead():  # it may be fetched, and that once
            moved = "--documents.val_data" if resume else ""
            source, why = load_quickstart_corpus() if quickstart else (load_source(config, moved), "")
        read = source.name if isinstance(source, Corpus) else source_name(config.data.source)
        if quickstart:
            print_line(why)
            config = updated(config, {"data": {"source": read}})
        directory = directory or unused_directory(CHECKPOINTS, name or read)
        directory = run_at(resume).path if resume else directory
        if not (out or resume) and (left := unfinished_run(CHECKPOINTS, name or read)):
            print_line(f"unfinished {left} was interrupted, and this is a new run. To go on with that one:")
            print_line(f"           {program()} train --resume {shlex.quote(str(left))}")
        promised = from_file.get("model", {}).get("vocab_size")
        if promised is not None and isinstance(source, Corpus) and config.data.tokenizer == "char":
            check_promise(promised, source)
        result = train(config, source, directory, print_line, resume=bool(resume))
        for line in [*summary(result, config, directory), *next_steps(directory, prompt_to_try(source, config))]:
            print_line(line)
        if as_json and processes.first:
            print_json(dataclasses.asdict(result))


def summary(result: "TrainResult", config: RunConfig, directory: Path) -> list[str]:
    """How the run ended, and what it has left."""
    from minigpt.training.log import read_records

    table = epoch_table(read_records(directory / "metrics.jsonl")) if config.train.epochs else []
    best = "adapter" if config.train.lora_rank else "model.safetensors"
    plots = "loss.png, perplexity.png" if config.train.epochs else "loss.png"
    return [
        "",
        f"finished   {result.step} steps in {result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s",
        f"loss       {result.val_loss:.4f} on the whole validation split, best {result.best_val_loss:.4f}",
        *table,
        f"written    {directory}",
        f"           {best} (the best), {plots}, samples.txt, metrics.jsonl",
        "",
    ]


def epoch_table(records: list[dict[str, Any]]) -> list[str]:
    """Training loss, validation loss and perplexity, an epoch a line. Epoch 0 is the model that training began with."""
    from minigpt.evaluation.loss import perplexity
    from minigpt.system.terminal import number
    from minigpt.training.log import epochs_of

    rows = []
    for epoch, training, validation in epochs_of(records):
        shown = "-" if math.isnan(training) else number(training, ".4f")
        measured = number(validation, ".4f"), number(perplexity(validation), ".2f")
        rows.append(f"{epoch:>8.3g}{shown:>16}{measured[0]:>18}{measured[1]:>13}")
    return ["", f"{'epoch':>8}{'training loss':>16}{'validation loss':>18}{'perplexity':>13}", *rows, ""]


def load_source(config: RunConfig, moved: str = "") -> Corpus | Documents:
    """The text, or the documents, that a configuration names.

    Args:
        config: the settings.
        moved: the flag for `documents.val_data`, if a path that is not there was given when the run was started, and
            not now.
    """
    try:
        return _load_source(config)
    except MissingFileError as error:
        if moved:
            raise MissingFileError(error.what, f"name where it lies now: --data, or {moved}") from None
        raise


def _load_source(config: RunConfig) -> Corpus | Documents:
    d, source = config.documents, config.data.source
    if not are_documents(d.separate, source):
        if d.separate == "auto" and d != DocumentsConfig():
            name = next(name for name, value in vars(d).items() if value != getattr(DocumentsConfig(), name))
            raise ConfigError(
                f"documents.{name} = {getattr(d, name)!r} is for separate documents, and {source} is read as one text",
                f"add --documents.separate on, or leave --documents.{name} out",
            )
        return load_corpus(source)
    read = partial(
        read_documents,
        text_field=d.text_field or None,
        prompt_field=d.prompt_field or None,
        completion_field=d.completion_field or None,
        max_characters=d.max_characters or None,
        drop_longer=d.longer == "drop",
    )
    return with_validation(read(source), read(d.val_data)) if d.val_data else read(source)


def check_promise(vocab_size: int, corpus: Corpus) -> None:
    """Refuse a corpus that has not as many characters as a configuration file says."""
    found = len(set(corpus.text))
    if vocab_size != found:
        raise ConfigError(
            f"the configuration file says vocab_size = {vocab_size}, but {corpus.name} has {found} different "
            "characters",
            "leave vocab_size out of the file (it follows from the corpus), or train on the corpus it was made for",
        )


def plan_and_say(config: RunConfig, as_json: bool) -> None:
    """Predict memory and time of a run, and print them."""
    from minigpt.analysis.run_plan import Workload, plan_run
    from minigpt.formats.run_directory import required
    from minigpt.formats.source import open_source
    from minigpt.system.device import choose_device, choose_dtype
    from minigpt.training.loop import SAMPLE_TOKENS
    from minigpt.training.run import in_steps, make_loader, new_tokenizer

    device = choose_device(config.device)
    dtype, _ = choose_dtype(config.dtype, device)
    t = config.train
    if t.freeze or t.lora_rank or t.gradient_checkpointing:
        raise ConfigError(
            "--plan predicts the training of all weights: nothing frozen, no adapters, nothing computed twice",
            "leave those flags out of the plan: with them, your run takes less memory than it says",
        )
    source = load_source(config)
    if config.init_from:  # whose vocabulary may be larger than its tokenizer's
        tokenizer = required(open_source(config.init_from).tokenizer(), config.init_from)
    else:
        tokenizer = new_tokenizer(config, source)
        config = replace(config, model=replace(config.model, vocab_size=tokenizer.vocab_size))
    loader = make_loader(config, source, tokenizer)
    config = replace(config, train=in_steps(t, loader.rows_per_epoch))
    plan = plan_run(config, Workload.of_loader(loader), loader.val.ids, device, dtype, SAMPLE_TOKENS)
    if as_json:
        print_json(plan.to_dict())
    else:
        print(plan.table())


def replay_and_say(config: RunConfig, report: Path, as_json: bool) -> None:
    """Compute a diverged step once more, and say whether it diverges in the same way."""
    from minigpt.training.divergence import read_report
    from minigpt.training.log import print_to_stderr, print_to_stdout
    from minigpt.training.loop import replay

    print_line = print_to_stderr if as_json else print_to_stdout
    before = read_report(report)
    now = replay(config, load_source(config), report, print_line)
    print_line("")
    for name, value in dataclasses.asdict(now).items():
        differs = "" if value == getattr(before, name) else f"   (the report says {getattr(before, name)})"
        print_line(f"{name:<17}{value}{differs}")
    print_line(
        "reproduced       " + ("yes, all of it" if now == before else "no: settings, versions or the machine differ")
    )
    if as_json:
        print_json({**dataclasses.asdict(now), "reproduced": now == before})


def prompt_to_try(source: Corpus | Documents, config: RunConfig) -> str:
    """What the model can be given to go on from: a line of its text, or how a document of its source begins."""
    from minigpt.data.tokens import split_at

    if isinstance(source, Corpus):
        return opening(source.text, split_at(source, config.data))
    first, k = source.items[:1], config.documents.keywords
    (document,) = with_keywords(first, k, source.items) if k else first
    return document.prompt or " ".join(document.text.split()[:3])


def opening(text: str, border: int) -> str:
    """A line soon after `border` that is long enough to continue; in a play, somebody's name."""
    lines = [line.strip() for line in text[border:].split("\n", 100)[1:-1]]  # the first may be cut in the middle
    lines = [line for line in lines if len(line) >= 4 and line[0].isalpha()]
    names = [line for line in lines if line.endswith(":")]
    return [*names, *lines, text][0][:40]


def next_steps(directory: Path, prompt: str) -> list[str]:
    """The next command to type, and three lines of Python that do the same."""
    return [
        "next, let it write:",
        f"  {program()} generate --model {shlex.quote(str(directory))} \\",
        f"    --prompt {shlex.quote(prompt)} \\",
        "    --max-new-tokens 300 --on-overflow crop",
        f"or in Python ({as_typed(sys.executable)}):",
        "  import minigpt",
        f"  model, tokenizer = minigpt.load_model({str(directory)!r})",
        "  print(minigpt.complete(",
        f"      model, tokenizer, {prompt!r},",
        '      max_new_tokens=300, on_overflow="crop",',
        "  ))",
    ]


def program() -> str:
    """How to call this program from here: by its name if that is found, else by its path."""
    if Path(sys.argv[0]).stem != "minigpt":
        return f"{as_typed(sys.executable)} -m minigpt"
    found = shutil.which("minigpt")
    return "minigpt" if found and Path(found).samefile(sys.argv[0]) else as_typed(sys.argv[0])


def as_typed(path: str) -> str:
    """A path as it is typed from the working folder, if it lies below it."""
    here = Path(path).absolute()
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
