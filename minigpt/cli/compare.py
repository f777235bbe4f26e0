"""`minigpt compare`."""

import csv
import io
import itertools
import json
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minigpt.cli.decoders import Setting, parse_settings
from minigpt.cli.models import load, model_source
from minigpt.cli.settings import DEFAULT_LENGTH, DEFAULT_SETTINGS, Compare
from minigpt.cli.streams import print_json, write_files
from minigpt.cli.texts import check_field, check_fits, ids_of, prompt_texts, training_documents
from minigpt.errors import InputError, counted
from minigpt.evaluation.comparison import (
    MEASURES,
    Completion,
    Values,
    by_measure,
    continue_prompts,
    difference_interval,
    mean_interval,
)
from minigpt.evaluation.diversity import WORD_MEANING
from minigpt.formats.hub import HUB_NAMES, WEIGHTS
from minigpt.formats.lora_files import adapter_folder, adapter_settings
from minigpt.formats.source import lasting_model
from minigpt.model import GPT
from minigpt.system import terminal
from minigpt.system.files import check_output, twice, write_text

OUTPUTS = (".json", ".csv", ".png", ".svg")
_MOST_COLUMNS = 3  # texts side by side


@dataclass(frozen=True)
class Row:
    """One model with one setting, and the texts that they wrote.

    Attributes:
        model: as --model gives it, with its --adapter.
        setting: how it was decoded.
        completions: [prompt][draw].
        values: measure -> one number for each prompt.
    """

    model: str
    setting: Setting
    completions: list[list[Completion]]
    values: dict[str, Values]


def answer(settings: Compare) -> None:
    """Let every model write with every setting, then print the measures."""
    _check(settings)
    decoders = parse_settings(settings.setting or DEFAULT_SETTINGS)
    texts = prompt_texts(settings)
    training = training_documents(settings.training_data, settings.text_field) if settings.training_data else None
    specs = _specs(settings)
    models = [load(settings, model, adapter) for model, adapter in specs]
    prompts = [[ids_of(own, *text) for text in texts] for _, own in models]
    length = min(
        _length(settings.max_new_tokens, model, [name for name, _ in texts], own)
        for (model, _), own in zip(models, prompts, strict=True)
    )
    rows = []
    total = len(models) * len(decoders) * len(texts) * settings.seeds
    with tqdm(total=total, unit="text", leave=False, disable=None, delay=1) as bar:
        for spec, (model, tokenizer), own in zip(map(_name, specs), models, prompts, strict=True):
            for setting in decoders:
                completions = continue_prompts(
                    model, tokenizer, own, {**setting.options, "max_new_tokens": length},
                    draws=settings.seeds, seed=settings.seed, batch_size=settings.batch_size, advance=bar.update,
                )  # fmt: skip
                rows.append(Row(spec, setting, completions, by_measure(completions, training)))
    result = _result(rows, [text for _, text in texts], settings.seed)
    if settings.json:
        print_json(result)
    else:
        _show(result)
        _show_texts(rows, [text for _, text in texts][: settings.show])
    write_files(settings.out, lambda file: _write(file, result))


def _specs(settings: Compare) -> list[tuple[str, str | None]]:
    """The (model, adapter) pairs that are compared: models without an adapter, then the one model with each adapter."""
    models, adapters = settings.model or [model_source(None).name], settings.adapter
    return [*((model, None) for model in models), *((models[0], adapter) for adapter in adapters)]


def _name(spec: tuple[str, str | None]) -> str:
    """A name for a model with its adapter."""
    model, adapter = spec
    return f"{model} + {adapter}" if adapter else model


def _place(name: str) -> str:
    """Where a model or an adapter lies: links are followed, and a file that a folder's name means too is the folder.

    One that is not there is its name; of GPT-2's sizes, the newer one.
    """
    path = Path(os.path.realpath(adapter_folder(lasting_model(name))))
    return str(path.parent if path.name == WEIGHTS[0] else path) if path.exists() else HUB_NAMES.get(name, name)


def _check(settings: Compare) -> None:
    """Raise, before a model is loaded, if the settings cannot be compared."""
    if not settings.given and not settings.prompts_file:
        raise InputError("there is no prompt to continue", "give a text, --prompt several times, or --prompts-file")
    if settings.adapter and len(settings.model) > 1:
        raise InputError(
            f"--adapter {settings.adapter[0]} could belong to each of {len(settings.model)} models",
            "give one --model with --adapter; a run directory that holds an adapter is a --model by itself",
        )
    if again := twice([*map(_place, settings.model), *map(_place, settings.adapter)]):
        raise InputError(f"{again[0]} is named twice, and nothing can differ", "leave one of them out")
    for adapter in settings.adapter:
        adapter_settings(adapter_folder(adapter))
    check_field(settings.text_field, [], settings.training_data)
    for file in settings.out:
        check_output(file, OUTPUTS)


def _length(wanted: int | None, model: GPT, names: Sequence[str], prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens are written after every prompt; all prompts must have room for as many, for a fair comparison."""
    block_size = model.config.block_size
    longest, name = max((len(prompt), name) for prompt, name in zip(prompts, names, strict=True))
    room = block_size - longest
    lower = f"lower --max-new-tokens to {room}, or " if room > 0 else ""
    check_fits(longest, block_size, name, f"{lower}shorten the longest prompts", more=wanted or 1)
    return wanted or min(DEFAULT_LENGTH, room)


def _result(rows: Sequence[Row], prompts: Sequence[str], seed: int) -> dict[str, Any]:
    """The whole result, as one JSON object."""
    return {
        "num_prompts": len(prompts),
        "rows": [
            {
                "model": row.model,
                "setting": row.setting.name,
                "measures": {name: _measure(row, rows[0], name, seed) for name in row.values},
            }
            for row in rows
        ],
        "completions": [
            {"model": row.model, "setting": row.setting.name, "prompt_index": place, "prompt": prompts[place]}
            | {"seed": one.seed, "completion": one.text, "num_tokens": one.num_tokens, "log_prob": one.log_prob}
            for row in rows
            for place, completions in enumerate(row.completions)
            for one in completions
        ],
        "word": WORD_MEANING,
    }


def _measure(row: Row, first: Row, name: str, seed: int) -> dict[str, Any]:
    difference = difference_interval(row.values[name], first.values[name], seed)
    return {
        **mean_interval(row.values[name], seed).to_dict(),
        "difference_to_first": difference.to_dict(),
        "differs": difference.excludes_zero,
    }


def _labels(result: dict[str, Any]) -> list[str]:
    """Names of the rows: their settings, preceded by the numbers of their models if there are several."""
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    which = {model: f"{number}: " if len(models) > 1 else "" for number, model in enumerate(models, 1)}
    return [which[row["model"]] + row["setting"] for row in result["rows"]]


def _write(path: Path, result: dict[str, Any]) -> None:
    match path.suffix.lower():
        case ".json":
            write_text(path, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        case ".csv":
            table = io.StringIO()
            writer = csv.DictWriter(table, list(result["completions"][0]))
            writer.writeheader()
            writer.writerows(result["completions"])
            write_text(path, table.getvalue())
        case _:
            from minigpt.analysis.plots import interval_dots
            from minigpt.system.figures import save_figure

            rows = [row["measures"] for row in result["rows"]]
            panels = [(name, [_triple(measures[name]) for measures in rows]) for name in rows[0]]
            title = f"mean and 95 % interval over {counted(result['num_prompts'], 'prompt')}"
            save_figure(interval_dots(panels, _labels(result), title), path)


def _triple(measure: dict[str, Any]) -> tuple[float, float, float]:
    mean, low, high = (math.nan if measure[name] is None else measure[name] for name in ("mean", "low", "high"))
    return mean, low, high


def _show(result: dict[str, Any]) -> None:
    """Print one table for each measure, with one line for each row."""
    rows = result["rows"]
    for number, model in enumerate(dict.fromkeys(row["model"] for row in rows), 1):
        print(f"model {number}    {model}")
    texts = len(result["completions"]) // len(rows)
    prompts = counted(result["num_prompts"], "prompt")
    print(f"{counted(texts, 'text')} a line, from {prompts}; mean and 95 % interval over prompts")
    for name in rows[0]["measures"]:
        print(f"\n{name}: {MEASURES[name]}")
        for label, row in zip(_labels(result), rows, strict=True):
            measure = row["measures"][name]
            mark = "*" if measure["differs"] else " "
            mean = terminal.decimals(measure["mean"], 3)
            interval = "" if measure["low"] is None else f"{measure['low']:.3f} to {measure['high']:.3f}"
            print(f"{mark} {terminal.fitted(label, 44)}{mean:>10}  {interval}".rstrip())
    print("\n* differs from the first line by more than chance (paired bootstrap, 95 %)")
    if result["num_prompts"] < 10:
        print(f"  of {prompts} little can be said: the intervals are too narrow, or missing")
    print(textwrap.fill(result["word"], terminal.WIDTH))


def _show_texts(rows: Sequence[Row], prompts: Sequence[str]) -> None:
    """Print the first text of each prompt side by side: from each model, or if there is only one, from each setting."""
    several = len({row.model for row in rows}) > 1
    chosen = [row for row in rows if not several or row.setting == rows[0].setting][:_MOST_COLUMNS]
    width = (terminal.WIDTH + 2) // len(chosen) - 2
    for place, prompt in enumerate(prompts):
        print(f"\n--- {terminal.cut(repr(prompt), terminal.WIDTH - 8)} ---")
        _print_columns([row.model if several else row.setting.name for row in chosen], width)
        _print_columns(["-" * width] * len(chosen), width)
        _print_columns([row.completions[place][0].text for row in chosen], width)


def _print_columns(texts: Sequence[str], width: int) -> None:
    columns = [[part for line in text.split("\n") for part in textwrap.wrap(line, width) or [""]] for text in texts]
    for parts in itertools.zip_longest(*columns, fillvalue=""):
        print("  ".join(f"{part:<{width}}" for part in parts).rstrip())
