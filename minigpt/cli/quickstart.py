"""`minigpt quickstart`."""

from dataclasses import replace

from minigpt.cli.run_settings import Quickstart, check_effect
from minigpt.cli.trainings import train_and_say
from minigpt.config import DEFAULT_PRESET, preset, updated


def answer(settings: Quickstart) -> None:
    """Train on the text that --data names, or on the best Shakespeare that this machine can get."""
    config = replace(preset(DEFAULT_PRESET), seed=settings.seed, train=settings.train)
    check_effect(config, settings.from_flags, {})
    if settings.data is None:
        train_and_say(config, {}, settings.out, DEFAULT_PRESET, settings.json, quickstart=True)
    else:
        config = updated(config, {"data": {"source": settings.data}})
        train_and_say(config, {}, settings.out, None, settings.json)
