"""`minigpt verify-resume`."""

import sys
import tempfile
from pathlib import Path

from minigpt.cli.run_settings import VerifyResume, check_alone, shaped_as_base
from minigpt.cli.streams import print_json
from minigpt.errors import ConfigError, counted
from minigpt.system.signals import tidy
from minigpt.training import verify
from minigpt.training.log import print_line_for


def answer(settings: VerifyResume) -> None:
    """Train both runs and print what is equal; exit code 1 if anything differs."""
    check_alone("verify-resume")
    steps, kills = settings.steps, settings.kills
    if not 0 < kills < steps:
        raise ConfigError(
            f"{counted(kills, 'kill')} in {counted(steps, 'step')}: that cannot be", "choose 1 <= --kills < --steps"
        )
    config = verify.shortened(shaped_as_base(settings) if settings.config.init_from else settings.config, steps)
    print_line = print_line_for(settings.json)
    moments = [verify.at_step(steps * (number + 1) // (kills + 1)) for number in range(kills)]
    with tidy(), tempfile.TemporaryDirectory(prefix="minigpt-") as name:  # no training is left behind either
        folder = Path(name)
        print_line(f"straight   {counted(steps, 'step')} without a break ...")
        straight = verify.run_straight(config, folder)
        print_line(f"broken     the same {counted(steps, 'step')}, killed {counted(kills, 'time')} ...")
        found = verify.compare(straight, verify.run_interrupted(config, folder, moments, print_line))
    for comparison in found:
        print_line(f"{'equal' if comparison.equal else 'DIFFERENT':<11}{comparison.name}")
    equal = all(comparison.equal for comparison in found)
    print_line("")
    print_line("An interrupted run goes on here as if nothing had happened, byte for byte." if equal else
        "Resume is not exact here: some operation gives other bits at another time.")  # fmt: skip
    if settings.json:
        print_json({"steps": steps, "kills": kills, "equal": {c.name: c.equal for c in found}})
    if not equal:
        sys.exit(1)
