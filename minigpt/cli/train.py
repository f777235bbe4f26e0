"""`minigpt train`."""

import dataclasses
from dataclasses import replace
from pathlib import Path

from minigpt.cli.run_settings import RunSettings, Train, shaped_as_base
from minigpt.cli.streams import print_json, print_note
from minigpt.cli.trainings import train_and_say
from minigpt.config import RunConfig, preset
from minigpt.data.corpora import are_documents
from minigpt.data.documents import load_source
from minigpt.errors import ConfigError
from minigpt.formats.run_directory import existing_run
from minigpt.formats.source import open_source
from minigpt.system.device import choose_device, choose_dtype
from minigpt.tokenizers import check_has_tokenizer
from minigpt.training.divergence import read_report
from minigpt.training.log import print_line_for
from minigpt.training.loop import SAMPLE_TOKENS, replay
from minigpt.training.plan import Workload, plan_run
from minigpt.training.run import in_steps, make_loader, new_tokenizer

COUNTED_BY_EPOCHS = ("max_steps", "warmup_steps", "eval_interval", "save_interval")


def answer(settings: Train) -> None:
    """Train, and say what to type next."""
    check_effect(settings)
    continued = settings.resume or settings.replay
    config = shaped_as_base(settings) if settings.config.init_from and not continued else settings.config
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
    config, from_flags = settings.config, settings.from_flags
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


def plan_and_say(config: RunConfig, as_json: bool) -> None:
    """Predict memory and time of a run, and print them."""
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    t = config.train
    if t.freeze or t.lora_rank or t.gradient_checkpointing:
        raise ConfigError(
            "--plan predicts the training of all weights: nothing frozen, no adapters, nothing computed twice",
            "leave those flags out of the plan: with them, your run takes less memory than it says",
        )
    source = load_source(config)
    if config.init_from:  # whose vocabulary may be larger than its tokenizer's
        tokenizer = check_has_tokenizer(open_source(config.init_from).tokenizer(), config.init_from)
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
    print_line = print_line_for(as_json)
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
