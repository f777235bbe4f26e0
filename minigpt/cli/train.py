"""`minigpt train`."""

import dataclasses
import shlex
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
    parser.add_argument("--out", metavar="DIR", help="the run directory (default: checkpoints/<preset>, numbered)")
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
    train_and_say(config, content, values["out"], values["preset"], values["json"])


def train_and_say(
    config: RunConfig, content: dict[str, Any], out: str | None, name: str, as_json: bool, quickstart: bool = False
) -> None:
    """Load the corpus, train, print the result and what to type next.

    Args:
        config: the settings.
        content: what the --config file said; a vocabulary size in it is a promise about the corpus.
        out: the run directory, or None for `checkpoints/<name>`, numbered if that is taken.
        name: the preset's.
        as_json: one JSON object on standard output, everything else on standard error.
        quickstart: take Shakespeare from wherever this machine can get it, and say from where.
    """
    from minigpt.data.corpora import load_corpus, load_quickstart_corpus
    from minigpt.training.checkpoint import check_unused, unused_directory
    from minigpt.training.loop import train
    from minigpt.training.run_log import say_to_stderr, say_to_stdout

    say = say_to_stderr if as_json else say_to_stdout
    directory = Path(out) if out else unused_directory(CHECKPOINTS, name)
    check_unused(directory)  # before a corpus is fetched for nothing
    if quickstart:
        corpus, why = load_quickstart_corpus()
        say(why)
        config = updated(config, {"data": {"source": corpus.name}})
    else:
        corpus = load_corpus(config.data.source)
    promised = content.get("model", {}).get("vocab_size")
    found = len(set(corpus.text))
    if promised is not None and config.data.tokenizer == "char" and promised != found:
        raise ConfigError(
            f"the configuration file says vocab_size = {promised}, but {corpus.name} has {found} different characters",
            "leave vocab_size out of the file (it follows from the corpus), or train on the corpus it was made for",
        )
    result = train(config, corpus, directory, say)
    say("")
    say(f"finished   {result.step} steps in {result.seconds:.0f} s, {result.tokens_per_second:,.0f} tokens/s; "
        f"validation loss {result.val_loss:.4f}, best {result.best_val_loss:.4f}")  # fmt: skip
    say(f"written    {directory}: model.safetensors (the best weights), loss.png, samples.txt, ...")
    say("")
    say("next, let it write:")
    for line in next_steps(directory, opening(corpus.text, config.data.val_fraction)):
        say(line)
    if as_json:
        print_json(dataclasses.asdict(result))


def opening(text: str, val_fraction: float) -> str:
    """The first line of the validation text that is long enough to continue: in a play, somebody's name."""
    lines = text[int(len(text) * (1 - val_fraction)) :].split("\n")[1:]  # the first may be cut in the middle
    return next((line.strip()[:40] for line in lines if len(line.strip()) >= 4), text[:10])


def next_steps(directory: Path, prompt: str) -> list[str]:
    """The next command to type, and three lines of Python that do the same."""
    model = shlex.quote(str(directory))
    return [
        f"  minigpt generate --model {model} --prompt {shlex.quote(prompt)} \\",
        "    --max-new-tokens 300 --on-overflow crop",
        "or in Python:",
        "  import minigpt",
        f"  model, tokenizer = minigpt.load_model({str(directory)!r})",
        f"  print(tokenizer.decode(minigpt.generate(model, [tokenizer.encode({prompt!r})],",
        '        max_new_tokens=300, on_overflow="crop").sequences[0]))',
    ]
