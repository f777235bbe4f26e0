"""One training, from its corpus to the summary at its end: for `minigpt train` and `minigpt quickstart`."""

import dataclasses
import math
import re
import shutil
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from minigpt.cli.streams import print_json
from minigpt.cli.texts import data_of_run
from minigpt.config import RunConfig, updated
from minigpt.data.corpora import Corpus, load_quickstart_corpus, source_name
from minigpt.data.dialogues import NAMES
from minigpt.data.documents import Document, Documents, with_keywords
from minigpt.data.sources import load_data
from minigpt.data.tokens import split_at
from minigpt.errors import ConfigError, counted, quoted
from minigpt.evaluation.loss import perplexity
from minigpt.formats.run_directory import (
    CHECKPOINTS,
    RunDirectory,
    check_new,
    claimed_run,
    read_records,
    unfinished_run,
    unused_run,
)
from minigpt.system.device import choose_device, choose_dtype
from minigpt.system.files import named_path
from minigpt.system.terminal import number
from minigpt.training.distributed import READING, joined
from minigpt.training.log import epochs_of, print_line_for, print_nothing
from minigpt.training.loop import TrainResult, train
from minigpt.training.run import before_weights
from minigpt.training.trackers import tracking_library

_SUGGESTED = 40  # characters, at most, of a text that people are to try


def train_and_say(
    config: RunConfig,
    from_file: Mapping[str, Any],
    out: str | None,
    name: str | None,
    as_json: bool,
    quickstart: bool = False,
    resume: RunDirectory | None = None,
) -> None:
    """Load the corpus, train, print the result and what to type next.

    Without `out`, a new run is called `name`, as its preset, or after its corpus. `quickstart` takes Shakespeare from
    wherever this machine can get it, and says from where.
    """
    with joined() as processes, processes.one_voice(), ExitStack() as leaving:
        print_line = print_line_for(as_json) if processes.first else print_nothing
        run = RunDirectory(named_path(out, "--out")) if out else resume
        if not resume:
            check_new(run or unused_run(CHECKPOINTS, name or "run"))  # before a corpus is downloaded in vain
        choose_dtype(config.dtype, choose_device(config.device))  # also before
        if processes.first:
            tracking_library(config.report_to)
        with processes.first_goes_ahead(READING):  # it may be downloaded, which only one process must do
            data: Corpus | Documents
            if quickstart:
                data, why = load_quickstart_corpus()
            else:
                data = data_of_run(config) if resume else load_data(config)
        read = data.name if isinstance(data, Corpus) else source_name(config.data.source)
        if quickstart:
            print_line(why)
            config = updated(config, {"data": {"source": read}})
        if not run and (left := unfinished_run(CHECKPOINTS, name or read)):
            print_line(f"unfinished {left.path} has steps left, and this is a new run. If that one has stopped:")
            print_line(f"           {program()} train --resume {quoted(left.path)}")
        if not run:
            own = leaving.enter_context(claimed_run(CHECKPOINTS, name or read)).path if processes.first else None
            run = RunDirectory(processes.path_of_first(own))
        promised = from_file.get("model", {}).get("vocab_size")
        if promised is not None:
            check_promise(promised, before_weights(config, data, resume)[0].model.vocab_size)
        result = train(config, data, run.path, print_line, resume=bool(resume))
        lines = summary(result, config, run)
        if run.best_weights.exists() or run.adapter.exists():
            lines += what_to_type(run.path, data, config)
        elif not config.train.lora_rank:  # somebody has removed them; the newest weights can write too
            lines += what_to_type(run.last, data, config)
        for line in lines:
            print_line(line)
        if as_json and processes.first:
            numbers = dataclasses.asdict(result).items()
            print_json({name: None if value != value else value for name, value in numbers})  # a NaN is not known


def summary(result: TrainResult, config: RunConfig, run: RunDirectory) -> list[str]:
    """How a run ended, and what it has left."""
    records = read_records(run.metrics)
    table = epoch_table(records) if config.train.epochs else []
    losses = [record["val_loss"] for record in records if record["step"] and "val_loss" in record]  # not of a base
    best = "best kept" if any(loss < result.best_val_loss for loss in losses) else "best"  # as after a full disk
    marks = {run.best_weights: f" (the {best})", run.adapter: f" (the {best})"}
    recorded = run.metrics.stat().st_mtime if run.metrics.exists() else 0.0
    plots = [path for path in (run.plot, run.perplexity_plot) if path.exists() and path.stat().st_mtime >= recorded]
    paths = (run.best_weights, run.adapter, *plots, run.samples, run.metrics)  # an older plot lacks the last records
    left = [f"{path.name}{marks.get(path, '')}" for path in paths if path.exists()]
    return [
        "",
        f"finished   {counted(result.step, 'step')} in {result.seconds:.0f} s, "
        f"{result.tokens_per_second:,.0f} tokens/s",
        f"loss       {result.val_loss:.4f} on the whole validation split, {best} {result.best_val_loss:.4f}",
        *table,
        f"written    {run.path}",
        f"           {', '.join(left)}",
        "",
    ]


def epoch_table(records: list[dict[str, Any]]) -> list[str]:
    """A table of training loss, validation loss and perplexity by epoch; epoch 0 is the model before training."""
    rows = []
    for epoch, training, validation in epochs_of(records):
        shown = "-" if math.isnan(training) else number(training, ".4f")
        measured = number(validation, ".4f"), number(perplexity(validation), ".2f")
        rows.append(f"{epoch:>8.3g}{shown:>16}{measured[0]:>18}{measured[1]:>13}")
    return ["", f"{'epoch':>8}{'training loss':>16}{'validation loss':>18}{'perplexity':>13}", *rows, ""]


def check_promise(vocab_size: int, found: int) -> None:
    """Raise if a configuration file says another vocabulary size than that of the run's tokenizer or base."""
    if vocab_size != found:
        raise ConfigError(
            f"the configuration file says vocab_size = {vocab_size}, but this run's is {found}",
            "leave vocab_size out of the file (it follows from the tokenizer), or train on what it was made for",
        )


def what_to_type(directory: Path, data: Corpus | Documents, config: RunConfig) -> list[str]:
    """The next command, and the same in Python: to let the model write, or if it learned to reply, to talk with it."""
    if isinstance(data, Documents) and data.items[0].dialogue:
        return first_talk(directory, *usual_exchange(data.items))
    return next_steps(directory, prompt_to_try(data, config))


def usual_exchange(replies: Sequence[Document]) -> tuple[str, str, str]:
    """Who speaks, who replies, and what is said, of the pair that does so most often; "" for a name that nobody has.

    What is said is their shortest line, so the model knows its characters.
    """
    said: dict[tuple[str, str], list[str]] = defaultdict(list)
    for document in replies:
        user, _, text = document.prompt[document.turns[-1] :].partition(":\n")
        said[user, document.prompt.splitlines()[-1][:-1]].append(text.split("\n")[0])
    (user, name), lines = max(said.items(), key=lambda pair: len(pair[1]))
    names = "" if user == NAMES["user"] else user, "" if name == NAMES["assistant"] else name
    return *names, min(lines, key=len)


def prompt_to_try(data: Corpus | Documents, config: RunConfig) -> str:
    """A prompt for the model to continue: a line of its text, or the beginning of one of its documents."""
    if isinstance(data, Corpus):
        return opening(data.text, split_at(data, config.data))
    first, k = data.items[:1], config.documents.keywords
    (document,) = with_keywords(first, k, data.items) if k else first
    # As they are spelled, because a vocabulary of characters need not know other blanks, nor any.
    words = re.search(r"\S+([^\S\r\n]+\S+){0,2}", document.text)
    return document.prompt or (words[0][:_SUGGESTED] if words else "")


def opening(text: str, border: int) -> str:
    """A line soon after `border` that is long enough to continue; in a play, a speaker's name."""
    lines = [line.strip() for line in text[border:].split("\n", 100)[1:-1]]  # the first may be cut in the middle
    lines = [line for line in lines if len(line) >= 4 and line[0].isalpha()]
    names = [line for line in lines if line.endswith(":")]
    return [*names, *lines, text][0][:_SUGGESTED]


def next_steps(directory: Path, prompt: str) -> list[str]:
    """The next command to type, and three lines of Python that do the same."""
    return [
        "next, let it write:",
        f"  {program()} generate --model {quoted(directory)} \\",
        f"    {_given('--prompt', prompt)} \\",
        "    --max-new-tokens 300 --on-overflow crop",
        *in_python(directory),
        "  print(minigpt.complete(",
        f"      model, tokenizer, {prompt!r},",
        '      max_new_tokens=300, on_overflow="crop",',
        "  ))",
    ]


def first_talk(directory: Path, user: str, reply_as: str, said: str) -> list[str]:
    """The command that begins a conversation with the model, and four lines of Python that do the same."""
    flags = [_given(flag, name) for flag, name in (("--user", user), ("--as", reply_as)) if name]
    names = "".join(f", {key}={name!r}" for key, name in (("user", user), ("reply_as", reply_as)) if name)
    return [
        "next, talk with it:",
        f"  {' '.join([program(), 'chat', '--model', quoted(directory), *flags])}",
        *in_python(directory),
        f"  chat = minigpt.Chat(model, tokenizer{names})",
        f"  print(chat.say({said[:_SUGGESTED]!r}))",
    ]


def _given(flag: str, value: str) -> str:
    """A flag with its value, which would be taken for another flag if it began with a dash and stood alone."""
    return f"{flag}{'=' if value.startswith('-') else ' '}{quoted(value)}"


def in_python(directory: Path) -> list[str]:
    """The beginning of what to type in Python: the model of a run."""
    return [
        f"or in Python ({as_typed(sys.executable)}):",
        "  import minigpt",
        f"  model, tokenizer = minigpt.load_model({str(directory)!r})",
    ]


def program() -> str:
    """The words that call this program: its name if the shell finds it, else its path."""
    if Path(sys.argv[0]).stem != "minigpt":
        return f"{as_typed(sys.executable)} -m minigpt"
    found, own = shutil.which("minigpt"), shutil.which(sys.argv[0])  # on Windows, pip's launcher leaves out .exe
    return "minigpt" if found and own and Path(found).samefile(own) else as_typed(sys.argv[0])


def as_typed(path: str) -> str:
    """A path below the working directory as a relative path; any other unchanged."""
    here = Path(path).absolute()
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
