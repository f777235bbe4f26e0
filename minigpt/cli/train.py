"""`minigpt train`."""

import dataclasses
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from minigpt.cli.parser import CommandParser, field_help, peek, print_json
from minigpt.config import DEFAULT_PRESET, PRESETS, DataConfig, RunConfig, preset, read_yaml, updated
from minigpt.data.corpora import NAMED_SOURCES
from minigpt.errors import ConfigError

CHECKPOINTS = Path("checkpoints")


def make_parser(config: RunConfig) -> CommandParser:
    """The parser of `minigpt train`, with a configuration as its defaults."""
    presets = "\n".join(f"  {name:<21}{what}" for name, (what, _) in PRESETS.items())
    corpora = "\n".join(f"  {name:<21}{what}" for name, what in NAMED_SOURCES.items())
    parser = CommandParser(
        "train",
        "Train a GPT. Settings come from the preset, then the --config file, then the\n"
        f"flags.\n\npresets:\n{presets}\n\ncorpora:\n{corpora}",
        "  minigpt train --preset shakespeare-cpu\n"
        "  minigpt train --data my-novel.txt --train.max_steps 2000\n"
        "  minigpt train --data stdlib --model.n_layer 6 --out checkpoints/code",
    )
    parser.add_argument("--preset", default=DEFAULT_PRESET, choices=list(PRESETS), help="the settings to start from")
    parser.add_argument("--config", metavar="FILE.yaml", help="settings to change, as in a run's config.yaml")
    parser.add_argument(
        "--out", metavar="DIR", help="the run directory (default: checkpoints/<preset or corpus>, numbered)"
    )
    parser.add_argument("--data", default=config.data.source, metavar="SOURCE", help=field_help(DataConfig, "source"))
    parser.add_argument(
        "--tokenizer", default=config.data.tokenizer, choices=["char", "gpt2"], help=field_help(DataConfig, "tokenizer")
    )
    parser.add_argument(
        "--val-fraction", type=float, default=config.data.val_fraction, help=field_help(DataConfig, "val_fraction")
    )
    for name, kind in (("seed", int), ("device", str), ("dtype", str), ("compile", str)):
        parser.add_argument(f"--{name}", type=kind, default=getattr(config, name), help=field_help(RunConfig, name))
    parser.add_section("model", config.model, skip=("vocab_size",))
    parser.add_section("train", config.train)
    return parser


def starting_config(arguments: list[str]) -> tuple[RunConfig, dict[str, Any]]:
    """The preset with the --config file on top of it, and that file's content."""
    config = preset(peek(arguments, "--preset") or DEFAULT_PRESET)
    path = peek(arguments, "--config")
    content = read_yaml(Path(path)) if path else {}
    return updated(config, content), content


def run(arguments: list[str]) -> None:
    """Train, and say what to type next."""
    config, content = starting_config(arguments)
    values = make_parser(config).parse(arguments)
    data = {"source": values["data"], "tokenizer": values["tokenizer"], "val_fraction": values["val_fraction"]}
    flags = {name: values[name] for name in ("seed", "device", "dtype", "compile", "model", "train")}
    config = updated(config, {"data": data, **flags})
    name = values["preset"] if config.data.source == preset(values["preset"]).data.source else None
    train_and_say(config, content, values["out"], name, values["json"])


def train_and_say(
    config: RunConfig,
    content: dict[str, Any],
    out: str | None,
    name: str | None,
    as_json: bool,
    quickstart: bool = False,
) -> None:
    """Load the corpus, train, print the result and what to type next.

    Args:
        config: the settings.
        content: what the --config file said; a vocabulary size in it is a promise about the corpus.
        out: the run directory, or None for `checkpoints/<name>`, numbered if that is taken.
        name: the preset's, or None to name the run after its corpus.
        as_json: one JSON object on standard output, everything else on standard error.
        quickstart: take Shakespeare from wherever this machine can get it, and say from where.
    """
    from minigpt.data.corpora import load_corpus, load_quickstart_corpus
    from minigpt.data.tokens import split_at
    from minigpt.training.checkpoint import check_unused, unused_directory
    from minigpt.training.loop import train
    from minigpt.training.run_log import say_to_stderr, say_to_stdout

    say = say_to_stderr if as_json else say_to_stdout
    if out:
        check_unused(Path(out))  # before a corpus is fetched for nothing
    if quickstart:
        corpus, why = load_quickstart_corpus()
        say(why)
        config = updated(config, {"data": {"source": corpus.name}})
    else:
        corpus = load_corpus(config.data.source)
    directory = Path(out) if out else unused_directory(CHECKPOINTS, name or corpus.name)
    promised = content.get("model", {}).get("vocab_size")
    found = len(set(corpus.text))
    if promised is not None and config.data.tokenizer == "char" and promised != found:
        raise ConfigError(
            f"the configuration file says vocab_size = {promised}, but {corpus.name} has {found} different characters",
            "leave vocab_size out of the file (it follows from the corpus), or train on the corpus it was made for",
        )
    result = train(config, corpus, directory, say)
    say("")
    say(f"finished   {result.step} steps in {result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s")
    say(f"loss       {result.val_loss:.4f} on the whole validation split, best {result.best_val_loss:.4f}")
    say(f"written    {directory}")
    say("           model.safetensors (the best), loss.png, samples.txt, metrics.jsonl")
    say("")
    say("next, let it write:")
    for line in next_steps(directory, opening(corpus.text, split_at(corpus, config.data))):
        say(line)
    if as_json:
        print_json(dataclasses.asdict(result))


def opening(text: str, border: int) -> str:
    """A line soon after `border` that is long enough to continue; in a play, somebody's name."""
    lines = [line.strip() for line in text[border:].split("\n", 100)[1:-1]]  # the first may be cut in the middle
    lines = [line for line in lines if len(line) >= 4 and line[0].isalpha()]
    names = [line for line in lines if line.endswith(":")]
    return [*names, *lines, text][0][:40]


def next_steps(directory: Path, prompt: str) -> list[str]:
    """The next command to type, and three lines of Python that do the same."""
    return [
        f"  {program()} generate --model {shlex.quote(str(directory))} \\",
        f"    --prompt {shlex.quote(prompt)} \\",
        "    --max-new-tokens 300 --on-overflow crop",
        f"or in Python ({near(sys.executable)}):",
        "  import minigpt",
        f"  model, tokenizer = minigpt.load_model({str(directory)!r})",
        "  print(tokenizer.decode(minigpt.generate(",
        f"      model, [tokenizer.encode({prompt!r})],",
        '      max_new_tokens=300, on_overflow="crop",',
        "  ).sequences[0]))",
    ]


def program() -> str:
    """How to call this program from here: by its name if that is found, else by its path."""
    if Path(sys.argv[0]).stem != "minigpt":
        return f"{near(sys.executable)} -m minigpt"
    found = shutil.which("minigpt")
    return "minigpt" if found and Path(found).samefile(sys.argv[0]) else near(sys.argv[0])


def near(path: str) -> str:
    """A path as it is typed from the working folder, if it lies below it."""
    here = Path(path).absolute()
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)
