"""`minigpt quickstart`."""

from minigpt.cli.run_settings import Quickstart
from minigpt.cli.trainings import train_and_say
from minigpt.config import DEFAULT_PRESET, updated


def answer(settings: Quickstart) -> None:
    """Train on the text that --data names, or on the best Shakespeare that this machine can get."""
    config = settings.run_config()
    if settings.data is None:
        train_and_say(config, {}, settings.out, DEFAULT_PRESET, settings.json, quickstart=True)
    else:
        config = updated(config, {"data": {"source": settings.data}})
        train_and_say(config, {}, settings.out, None, settings.json)
