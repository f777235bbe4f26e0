"""`minigpt quickstart`."""

from collections.abc import Iterator
from contextlib import contextmanager

from minigpt.cli.parser import SettingsParser
from minigpt.cli.run_settings import Quickstart, Train
from minigpt.cli.trainings import train_and_say
from minigpt.config import DEFAULT_PRESET, updated
from minigpt.errors import MiniGPTError


def answer(settings: Quickstart) -> None:
    """Train on the text that --data names, or on the best Shakespeare that this machine can get."""
    config = settings.run_config()
    if settings.data is None:
        train_and_say(config, {}, settings.out, DEFAULT_PRESET, settings.json, quickstart=True)
    else:
        config = updated(config, {"data": {"source": settings.data}})
        with flags_of_train():
            train_and_say(config, {}, settings.out, None, settings.json)


@contextmanager
def flags_of_train() -> Iterator[None]:
    """A block whose errors may name settings for which only `minigpt train` has flags."""
    try:
        yield
    except MiniGPTError as error:
        ours = SettingsParser("quickstart", Quickstart).flags()
        theirs = {name: flag for name, flag in SettingsParser("train", Train).flags().items() if name not in ours}
        (what, how), (_, renamed) = error.renamed({}), error.renamed(theirs)
        raise type(error)(what, renamed if renamed == how else f"{renamed} (flags of minigpt train)") from None
