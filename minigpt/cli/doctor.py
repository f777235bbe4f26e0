"""`minigpt doctor`."""

import dataclasses
import sys

from minigpt.cli.parser import CommandParser, print_json
from minigpt.config import DEFAULT_PRESET, PRESETS, preset, updated

SHAKESPEARE_CHARACTERS = 65


def make_parser() -> CommandParser:
    """The parser of `minigpt doctor`."""
    parser = CommandParser(
        "doctor",
        "Show what this machine has, and measure which dtype is fastest on it, eager and compiled. A setting is safe "
        "if its losses agree with float32's.",
        "  minigpt doctor\n  minigpt doctor --preset shakespeare-char --no-compile",
    )
    parser.add_argument(
        "--preset", metavar="PRESET", default=DEFAULT_PRESET, choices=list(PRESETS),
        help=f"the model and batch to time: {', '.join(PRESETS)}",
    )  # fmt: skip
    parser.add_device()
    parser.add_argument("--no-compile", action="store_true", help="do not time torch.compile, which takes a minute")
    return parser


def run(arguments: list[str]) -> None:
    """Print the facts, the timings and one verdict."""
    values = make_parser().parse(arguments)
    from minigpt.system.device import choose_device
    from minigpt.training.selfcheck import facts, time_settings

    found = facts()
    if not values["json"]:
        for name, fact in found.items():
            print(f"{name:<14}{fact}")
    device = choose_device(values["device"])
    config = preset(values["preset"])
    if config.data.tokenizer == "char":  # whose vocabulary a run takes from its corpus
        config = updated(config, {"model": {"vocab_size": SHAKESPEARE_CHARACTERS}})
    timings = time_settings(config, device, not values["no_compile"], tell=lambda line: print(line, file=sys.stderr))
    safe = [timing for timing in timings if timing.safe]
    best = max(safe, key=lambda timing: timing.tokens_per_second or 0).name if safe else "none of them works here"
    if values["json"]:
        print_json({"facts": found, "timings": [dataclasses.asdict(t) for t in timings], "best": best})
        return
    print(f"\n{values['preset']} on {device.type}, forward, backward and update:")
    print(f"  {'settings':<38}{'tokens/s':>10}  {'from float32':>12}")
    for timing in timings:
        if timing.tokens_per_second is None:
            print(f"  {timing.name:<38}{'-':>10}  {'-':>12}  does not work: {timing.note}")
            continue
        verdict = timing.note if timing.safe else "not safe"
        difference = "unknown" if timing.difference is None else f"{timing.difference:.1e}"
        print(f"  {timing.name:<38}{timing.tokens_per_second:>10,.0f}  {difference:>12}  {verdict}")
    print(f"\nfastest safe: {best}")
