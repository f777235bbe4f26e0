"""`minigpt verify-resume`."""

import tempfile
from pathlib import Path

from minigpt.cli.parser import CommandParser, print_json
from minigpt.cli.train import add_settings, settings, shaped_as_base, starting_config
from minigpt.config import RunConfig, updated
from minigpt.errors import ConfigError


def make_parser(config: RunConfig) -> CommandParser:
    """The parser of `minigpt verify-resume`, with a configuration as its defaults."""
    parser = CommandParser(
        "verify-resume",
        "Prove on this machine, with your settings, that a killed training loses nothing: train a few steps straight "
        "through; train them again, killed without warning on the way and resumed; compare every byte.",
        "  minigpt verify-resume\n"
        "  minigpt verify-resume --preset shakespeare-cpu --model.dropout 0.1\n"
        "  minigpt verify-resume --data my-novel.txt --steps 50 --kills 5",
    )
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of each run")
    parser.add_argument("--kills", type=int, default=2, help="how often the second run is killed")
    add_settings(parser, config)
    return parser


def run(arguments: list[str]) -> None:
    """Train both runs and print what is equal; exit code 1 if anything is not."""
    import sys

    from minigpt.training.log import say_to_stderr, say_to_stdout
    from minigpt.training.verify import at_step, compare, run_interrupted, run_straight, shortened

    config, content = starting_config(arguments)
    if "source" not in content.get("data", {}):
        # What is proved is true of any text, and this one is on every machine.
        config = updated(config, {"data": {"source": "verse"}})
    values = make_parser(config).parse(arguments)
    steps, kills = values["steps"], values["kills"]
    if not 0 < kills < steps:
        raise ConfigError(f"{kills} kills in {steps} steps are not possible", "choose 1 <= --kills < --steps")
    config = settings(config, values)
    if config.init_from:
        config = shaped_as_base(config, arguments, content)
    config = shortened(config, steps)
    say = say_to_stderr if values["json"] else say_to_stdout
    moments = [at_step(steps * (number + 1) // (kills + 1)) for number in range(kills)]
    with tempfile.TemporaryDirectory(prefix="minigpt-") as name:
        folder = Path(name)
        say(f"straight   {steps} steps without a break ...")
        straight = run_straight(config, folder)
        say(f"broken     the same {steps} steps, killed {kills} times ...")
        found = compare(straight, run_interrupted(config, folder, moments, say))
    for comparison in found:
        say(f"{'equal' if comparison.equal else 'DIFFERENT':<11}{comparison.name}")
    equal = all(comparison.equal for comparison in found)
    say("")
    say("An interrupted run goes on here as if nothing had happened, byte for byte." if equal else
        "Resume is not exact here: some operation gives other bits at another time.")  # fmt: skip
    if values["json"]:
        print_json({"steps": steps, "kills": kills, "equal": {c.name: c.equal for c in found}})
    if not equal:
        sys.exit(1)
