"""`minigpt train`."""

import dataclasses
from pathlib import Path

from minigpt.cli.run_settings import Train, check_alone, shaped_as_base
from minigpt.cli.streams import print_json, print_note
from minigpt.cli.trainings import train_and_say
from minigpt.config import RunConfig, preset
from minigpt.data.documents import data_checksum
from minigpt.data.sources import load_data
from minigpt.formats.run_directory import RunDirectory, existing_run, read_config
from minigpt.system.device import choose_device, choose_dtype
from minigpt.system.files import named_path
from minigpt.training.checkpoint import checkpoint_to_resume, circumstances
from minigpt.training.distributed import Processes
from minigpt.training.divergence import read_report
from minigpt.training.log import print_line_for
from minigpt.training.loop import SAMPLE_TOKENS, lasting_names, replay
from minigpt.training.plan import Workload, plan_run
from minigpt.training.run import before_weights, choose_kernels, read_data, which_kernels
from minigpt.training.teachers import find_teachers


def answer(settings: Train) -> None:
    """Train, and print what to type next."""
    if settings.plan or settings.replay:
        check_alone("--plan" if settings.plan else "--replay")
    continued = settings.resume or settings.replay
    config = shaped_as_base(settings) if settings.config.init_from and not continued else settings.config
    resume = existing_run(settings.resume) if settings.resume else None
    if settings.plan:
        plan_and_say(config, resume, settings.json)
        return
    if settings.replay:
        replay_and_say(config, named_path(settings.replay, "--replay"), settings.json)
        return
    name = settings.preset if config.data.source == preset(settings.preset).data.source else None
    train_and_say(config, settings.from_file, settings.out, name, settings.json, resume=resume)


def plan_and_say(config: RunConfig, resume: RunDirectory | None, as_json: bool) -> None:
    """Predict memory and time of a run, or of what is left of the one to resume, and print them."""
    device = choose_device(config.device)
    dtype = choose_dtype(config.dtype, device)
    config = dataclasses.replace(config, kernels=choose_kernels(config, Processes(), device))  # those of the run
    data = load_data(config)
    checkpoint, tell = None, print_line_for(as_json)
    changes_said: list[str] = []
    if resume:
        config = lasting_names(config, read_config(resume))
        here = circumstances(Processes(), device, which_kernels(config, Processes(), device, dtype)[0])
        checkpoint, _, changes_said = checkpoint_to_resume(resume, config, data_checksum(data), here, tell)
    config, tokenizer = before_weights(config, data, resume if checkpoint else None)
    find_teachers(config, tokenizer, resumed=checkpoint is not None)
    config, loader, _ = read_data(config, data, tokenizer, Processes(), checkpoint)
    for line in changes_said:
        tell(line)
    t, done = config.train, checkpoint.progress.step if checkpoint else 0
    workload = Workload.of_loader(loader)
    plan = plan_run(config, workload, loader.val.ids, device, dtype, SAMPLE_TOKENS, done=done)
    if t.freeze or t.lora_rank or t.gradient_checkpointing:
        print_note("activations are counted as if all weights were trained: your run takes less memory than this")
    if as_json:
        print_json(plan.to_dict())
    else:
        print(plan.table())


def replay_and_say(config: RunConfig, report: Path, as_json: bool) -> None:
    """Compute a diverged step again, and print whether it diverges in the same way."""
    print_line = print_line_for(as_json)
    before = read_report(report)
    now = replay(config, load_data(config), report, print_line)
    print_line("")
    for name, value in dataclasses.asdict(now).items():
        differs = "" if value == getattr(before, name) else f"   (the report says {getattr(before, name)})"
        print_line(f"{name:<17}{value}{differs}")
    print_line(
        "reproduced       " + ("yes, all of it" if now == before else "no: settings, versions or the machine differ")
    )
    if as_json:
        print_json({**dataclasses.asdict(now), "reproduced": now == before})
