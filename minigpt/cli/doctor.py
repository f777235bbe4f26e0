"""`minigpt doctor`."""

import dataclasses
import sys
from collections.abc import Sequence

from minigpt.cli.settings import Doctor
from minigpt.cli.streams import print_json
from minigpt.config import preset, updated
from minigpt.packed import SHOWN_ROWS, LayerTimes, layer_times
from minigpt.system.device import choose_device
from minigpt.training.selfcheck import facts, time_settings

SHAKESPEARE_CHARACTERS = 65


def answer(settings: Doctor) -> None:
    """Print the facts, the timings and one verdict."""
    found = facts()
    if not settings.json:
        for name, fact in found.items():
            print(f"{name:<14}{fact}")
    device = choose_device(settings.device)
    config = preset(settings.preset)
    if config.data.tokenizer == "char":  # a run takes the vocabulary from its corpus
        config = updated(config, {"model": {"vocab_size": SHAKESPEARE_CHARACTERS}})
    timings = time_settings(config, device, not settings.no_compile, tell=lambda line: print(line, file=sys.stderr))
    safe = [timing for timing in timings if timing.safe]
    best = max(safe, key=lambda timing: timing.tokens_per_second or 0).name if safe else "none of them works here"
    print("measuring packed weights ...", file=sys.stderr)
    layers = layer_times(config.model)
    if settings.json:
        timed = {"timings": [dataclasses.asdict(t) for t in timings], "best": best}
        weights = {"rows": SHOWN_ROWS, "layers": [dataclasses.asdict(layer) for layer in layers]}
        print_json({"facts": found, **timed, "weights": weights})
        return
    print(f"\n{settings.preset} on {device.type}, forward, backward and update:")
    print(f"  {'settings':<46}{'tokens/s':>10}  {'from float32':>12}")
    for timing in timings:
        if timing.tokens_per_second is None:
            print(f"  {timing.name:<46}{'-':>10}  {'-':>12}  does not work: {timing.note}")
            continue
        verdict = timing.note if timing.safe else "not safe"
        difference = "unknown" if timing.difference is None else f"{timing.difference:.1e}"
        print(f"  {timing.name:<46}{timing.tokens_per_second:>10,.0f}  {difference:>12}  {verdict}")
    print(f"\nfastest safe: {best}")
    _show_layers(settings.preset, layers)


def _show_layers(preset: str, layers: Sequence[LayerTimes]) -> None:
    print(f"\nlinear layers of {preset}, microseconds a product by rows; --weights:")
    print(f"  {'layer, out x in':<24}{'kind':<12}" + "".join(f"{rows:>10}" for rows in SHOWN_ROWS))
    for layer in layers:
        label = f"{layer.name}, {layer.num_out} x {layer.num_in}"
        for kind, seconds in layer.seconds.items():
            times = "".join(f"{second * 1e6:>10,.1f}" for second in seconds)
            print(f"  {label:<24}{kind:<12}{times}{'  auto' if kind == layer.fastest else ''}")
            label = ""
    for layer in layers:
        for kind, reason in layer.left_out.items():
            print(f"  left out: {kind} of {layer.name}: {reason}")
