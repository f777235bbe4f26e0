"""The arguments of the commands that train: a run's settings, in layers: preset, then --config, then flags."""

import os
from collections.abc import Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from minigpt.cli.parser import Command, Flag, Section
from minigpt.cli.streams import print_note
from minigpt.config import (
    DEFAULT_PRESET,
    FINE_TUNING,
    PRESETS,
    DocumentsConfig,
    RunConfig,
    TrainConfig,
    check_has_base,
    preset,
    read_yaml,
    written_in,
)
from minigpt.data.corpora import NAMED_SOURCES, are_documents, check_there
from minigpt.errors import ConfigError, InputError, MissingFileError, quoted
from minigpt.system.files import named_path

RUN_FLAGS = {
    "data.source": Flag("SOURCE", name="--data"),
    "data.tokenizer": Flag(name="--tokenizer"),
    "data.val_fraction": Flag(name="--val-fraction"),
    "data.val_data": Flag("SOURCE", name="--val-data"),
    "data.checksum": Flag(hidden=True),
    "model.vocab_size": Flag(hidden=True),  # it follows from the tokenizer
    "init_from": Flag("MODEL"),
    "train.teachers": Flag("MODEL"),
    "device": Flag("DEVICE"),
}

COUNTED_BY_EPOCHS = ("max_steps", "warmup_steps", "eval_interval", "save_interval")


def _listed(names: Mapping[str, str]) -> str:
    rows = ((f"  {name:<21}" if len(name) < 21 else f"  {name}\n{'':23}", what) for name, what in names.items())
    return "\n".join(name + what for name, what in rows)


SOURCES = f"""\
presets:
{_listed({name: what for name, (what, _) in PRESETS.items()})}
with --init-from and no --preset it is chat, finetune-documents or finetune-text

corpora:
{_listed(NAMED_SOURCES)}"""


class RunSettings(Command):
    """All settings of a run, and where they come from."""

    no_flags: ClassVar[Mapping[str, str]] = {
        "--model.vocab_size": "it follows from the tokenizer, and with characters from the text"
    }
    preset: Annotated[str, Flag("PRESET", choices=tuple(PRESETS))] = DEFAULT_PRESET
    """the settings to start from, listed below"""
    config_file: Annotated[str | None, Flag("FILE.yaml", name="--config")] = None
    """settings to change, as in a run's config.yaml"""
    config: Annotated[RunConfig, Section(inline=True, flags=RUN_FLAGS)] = field(default_factory=RunConfig)
    from_file: Mapping[str, Any] = field(default_factory=dict)
    """the content of the --config file; a vocabulary size in it must be that of the run"""
    from_flags: Mapping[str, Any] = field(default_factory=dict)
    """the run's settings that were given as flags"""

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The preset's settings, changed by the --config file's; and the contents of this file and of the flags."""
        from_file = read_yaml(Path(given["config_file"])) if given.get("config_file") else {}
        from_flags = given.get("config", {})
        file = given.get("config_file", "")
        name = given.get("preset") or _fitting_preset(from_flags, written_in(file, preset(DEFAULT_PRESET), from_file))
        config = written_in(file, cls.start(given, preset(name)), from_file)
        return {"preset": name, "config": config, "from_file": from_file, "from_flags": from_flags}

    @classmethod
    def start(cls, given: Mapping[str, Any], chosen: RunConfig) -> RunConfig:
        """The lowest layer: the preset's settings."""
        return chosen

    def refuse_needless(self, given: Mapping[str, Any]) -> None:
        """As `check_effect`."""
        check_effect(self.config, self.from_flags, self.from_file)


def _fitting_preset(from_flags: Mapping[str, Any], config: RunConfig) -> str:
    """The default preset. The learning rate of the quick one is for a new model, and would spoil a trained one."""
    if not (from_flags.get("init_from") or config.init_from):
        return DEFAULT_PRESET
    from minigpt.data.sources import fitting_kind

    names = ("separate", "text_field", "prompt_field", "completion_field")  # which say what records are
    documents = {name: value for name, value in from_flags.get("documents", {}).items() if name in names}
    kind = fitting_kind(
        DocumentsConfig(**{name: getattr(config.documents, name) for name in names} | documents),
        from_flags.get("data", {}).get("source") or config.data.source,
    )
    return FINE_TUNING[kind]


def is_alone() -> bool:
    """Whether this process is the only one, as when nobody has started several with torchrun."""
    return (os.environ.get("WORLD_SIZE") or "1") == "1"


def check_alone(what: str) -> None:
    """Refuse what one process does by itself, such as "--plan", where several were started."""
    if not is_alone():
        raise InputError(f"{what} is for one process, and several were started", "run it without torchrun")


def check_effect(config: RunConfig, from_flags: Mapping[str, Any], from_file: Mapping[str, Any]) -> None:
    """Refuse a flag that others overrule: who asks for 20 steps is not to wait for three epochs.

    In a --config file, which may be a whole run's, what is overruled is only said.
    """
    separate, own = are_documents(config.documents.separate, config.data.source), bool(config.data.val_data)
    t, d = config.train, config.documents
    if "lora_rank" in from_flags.get("train", {}):
        check_has_base(config)  # before a corpus is asked for
    ratio, lora = t.warmup_ratio, ("lora_alpha", "lora_dropout", "lora_targets")
    documents = [name for name in vars(d) if name != "separate"]
    for section, names, overruled, why, how in (
        ("train", COUNTED_BY_EPOCHS, t.epochs, f"--train.epochs {t.epochs:g} decides it",
         "choose other --train.epochs, or 0 to count in steps"),
        ("train", ["warmup_steps"], ratio, f"--train.warmup_ratio {ratio:g} decides it",
         "leave it out, or choose --train.warmup_ratio 0 to count in steps"),
        ("train", ["muon_learning_rate", "muon_momentum"], t.optimizer != "muon", "it is Muon's",
         "add --train.optimizer muon, or leave it out"),
        ("train", lora, not t.lora_rank, "it is an adapter's", "add --train.lora_rank, or leave it out"),
        ("train", ["teacher_weight"], not t.teachers, "it is the teachers'", "add --train.teachers, or leave it out"),
        ("train", ["parallel"], is_alone(), "there is one process",
         "start several with torchrun (docs/several-processes.md), or leave it out"),
        ("train", ["short_windows"], separate, "documents are no windows", "leave it out"),
        ("documents", documents, d.separate == "off", "--documents.separate is off", "leave one of the two out"),
        ("data", ["tokenizer"], config.init_from, f"{config.init_from} brings its own", "leave it out"),
        ("data", ["val_fraction"], own, "--val-data names what validates", "leave it out"),
        ("data", ["val_fraction"], separate and not own, "documents are held out by their number",
         "use --documents.val_size, or --val-data for a file of their own"),
    ):  # fmt: skip
        chosen = vars(getattr(config, section))
        usual = vars(type(getattr(config, section))())
        for name in names:
            if overruled and name in from_flags.get(section, {}):
                flag = RUN_FLAGS.get(f"{section}.{name}", Flag()).name or f"--{section}.{name}"
                raise ConfigError(f"{flag} {chosen[name]} would change nothing: {why}", how)
        written = [name for name in names if name in from_file.get(section, {})]
        if overruled and names is COUNTED_BY_EPOCHS and written:
            print_note(f"epochs = {t.epochs:g} decides {', '.join(written)}, whatever --config says")
        elif overruled and (unusual := [name for name in written if chosen[name] != usual[name]]):
            print_note(f"{', '.join(unusual)} in --config would change nothing: {why}")


def shaped_as_base(settings: RunSettings) -> RunConfig:
    """The settings with the shape of the model to start from, and with its dropout if the settings give none.

    The context is the preset's if that is shorter.

    Raises:
        ConfigError: if the flags or the --config file want another shape.
    """
    from minigpt.formats.source import open_source

    config = settings.config
    check_there(config.data.source)  # before a model is fetched
    wanted = {**settings.from_file.get("model", {}), **settings.from_flags.get("model", {})}
    asked = {name: getattr(config.model, name) for name in wanted if name != "vocab_size"}
    shape = open_source(config.init_from).shape(rates_may_differ="dropout" in asked)
    for name, value in asked.items():
        if name not in ("block_size", "dropout") and value != getattr(shape, name):
            raise ConfigError(
                f"--model.{name} {value} is not the {getattr(shape, name)} of {config.init_from}",
                "leave it out: only --model.dropout and a shorter --model.block_size can be chosen with --init-from",
            )
    context = {"block_size": min(config.model.block_size, shape.block_size)}
    return replace(config, model=replace(shape, **context | asked))


class Train(RunSettings):
    """Train a GPT. Settings come from the preset, then the --config file, then the flags."""

    examples = """
        minigpt train --data my-novel.txt --train.max_steps 2000
        minigpt train --data stdlib --model.n_layer 6 --out checkpoints/code
        minigpt train --preset gpt2-124m --data stdlib --plan
        minigpt train --resume checkpoints/code --train.max_steps 9000
    """
    first = ("--data", "--preset", "--init-from", "--out", "--resume", "--plan")
    more = SOURCES
    needs: ClassVar[Mapping[str, str]] = {"resume": "no --replay", "plan": "no --replay"}
    resume: Annotated[str | None, Flag("RUN")] = None
    """continue this run; other flags change its settings"""
    out: Annotated[str | None, Flag("DIR")] = None
    """the run directory (default: in checkpoints, numbered)"""
    plan: bool = False
    """print what memory and time the run will need, and do not train"""
    replay: Annotated[str | None, Flag("REPORT")] = None
    """compute the step of a diverged/report.json again"""

    @classmethod
    def start(cls, given: Mapping[str, Any], chosen: RunConfig) -> RunConfig:
        """The preset's settings, or those of the run to resume."""
        resume, replay = given.get("resume"), given.get("replay")
        if not resume and not replay:
            return chosen
        if replay and not os.path.lexists(named_path(replay, "--replay")):
            raise MissingFileError(f"there is no file {replay}", "name a run's diverged/report.json")
        from minigpt.formats.run_directory import check_resumable, existing_run, read_config, read_settings, run_at

        run = existing_run(resume) if resume else run_at(named_path(replay, "--replay").absolute().parent.parent)
        settings = run.diverged_settings
        config = read_settings(settings) if replay and os.path.lexists(settings) else read_config(run)
        if resume:
            check_resumable(run)  # before its data are asked for
        for name in ("preset", "out"):
            if given.get(name):
                raise ConfigError(
                    f"--{name} has no place here: {run.path} has its own settings and stays where it is",
                    f"leave --{name} out, or start a new run without --resume",
                )
        rank = given.get("config", {}).get("train", {}).get("lora_rank")
        if rank and not config.train.lora_rank:  # before the settings of an adapter meet those of the run
            raise ConfigError(
                f"--train.lora_rank {rank}: {run.path} trains no adapter, and none can begin in the middle of a run",
                f"leave it out, or start a new run with --init-from {quoted(run.path)}",
            )
        return config


class VerifyResume(RunSettings):
    """Prove on this machine, with your settings, that a killed training loses nothing.

    It trains a few steps without a break; then trains the same steps again, but kills this run several times and
    resumes it; then compares every byte.
    """

    examples = """
        minigpt verify-resume
        minigpt verify-resume --preset shakespeare-cpu --model.dropout 0.1
        minigpt verify-resume --data my-novel.txt --steps 50 --kills 5
    """
    first = ("--steps", "--kills", "--data", "--preset")
    more = SOURCES
    steps: int = 20
    """optimizer steps of each run, with a checkpoint after each, whatever --train.* says of these"""
    kills: int = 2
    """how often the second run is killed"""

    @classmethod
    def start(cls, given: Mapping[str, Any], chosen: RunConfig) -> RunConfig:
        """The preset's settings, on a text that every machine has: the proof does not depend on the text."""
        return replace(chosen, data=replace(chosen.data, source="verse"))


class Quickstart(Command):
    """Train the quick preset on Shakespeare: a minute or two on an ordinary CPU.

    The text comes from the data folder, the network, or the package index; if none of them has it, minigpt writes a
    text itself. --data trains on a text of your own.
    """

    examples = """
        minigpt quickstart
        minigpt quickstart --data my-novel.txt
        minigpt quickstart --train.max_steps 100
    """
    data: Annotated[str | None, Flag("SOURCE")] = None
    """a corpus, file or folder, as for minigpt train, instead of Shakespeare"""
    out: Annotated[str | None, Flag("DIR", says=Train)] = None
    seed: int = preset(DEFAULT_PRESET).seed
    """on the same machine and number of threads, the same seed gives the same weights"""
    train: TrainConfig = preset(DEFAULT_PRESET).train

    def run_config(self) -> RunConfig:
        """The settings of the run, before it is known which text this machine can get."""
        return replace(preset(DEFAULT_PRESET), seed=self.seed, train=self.train)

    def refuse_needless(self, given: Mapping[str, Any]) -> None:
        """As `check_effect`."""
        check_effect(self.run_config(), {"train": given.get("train", {})}, {})
