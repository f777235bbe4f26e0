"""Fill in the tables and the pictures of docs/choosing-a-decoder.md.

    python scripts/decoder_study.py --model checkpoints/shakespeare-quick

What is between two marks on the page, <!-- NAME --> and <!-- end -->, is replaced. The same model gives the same page.
"""

import argparse
import re
from pathlib import Path
from typing import Any

import torch

import minigpt
from minigpt import MiniGPTError
from minigpt.decoding.filters import temperature as tempered
from minigpt.evaluation.diversity import distinct_n, repeated_n
from minigpt.system.figures import BLUE, new_figure, save_figure
from minigpt.system.files import write_text

DOCS = Path(__file__).parent.parent / "docs"
PAGE, PICTURE = DOCS / "choosing-a-decoder.md", DOCS / "images" / "temperature.png"

LOGITS = (3.0, 1.5, 0.8, 0.3, -0.5)
TEMPERATURES = (0.1, 0.5, 1.0, 1.5, 2.0)

SPEAKERS = (
    "ROMEO",
    "JULIET",
    "KING RICHARD III",
    "QUEEN MARGARET",
    "First Citizen",
    "DUKE OF YORK",
    "Nurse",
    "PETRUCHIO",
)
NEW_TOKENS = 100
ROWS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("greedy", {"strategy": "greedy"}),
    ("temperature 0.3", {"temperature": 0.3}),
    ("temperature 0.8", {"temperature": 0.8}),
    ("temperature 1.5", {"temperature": 1.5}),
    ("temperature 1, top-k 5", {"temperature": 1.0, "top_k": 5}),
    ("temperature 1, top-p 0.9", {"temperature": 1.0, "top_p": 0.9}),
    ("beam search, 5 beams", {"strategy": "beam", "num_beams": 5}),
)


def temperature_table() -> str:
    """What temperature does to five logits, as a table; its picture is written beside the page."""
    panels = []
    for value in TEMPERATURES:
        probabilities = tempered(torch.tensor(LOGITS), value).softmax(-1).tolist()
        panels.append((f"T = {value:g}", probabilities))
    draw(panels)
    lines = ["| temperature | " + " | ".join(f"logit {logit:g}" for logit in LOGITS) + " |", "|---" * 6 + "|"]
    for value, (_, probabilities) in zip(TEMPERATURES, panels, strict=True):
        lines.append(f"| {value:g} | " + " | ".join(f"{p:.4f}" for p in probabilities) + " |")
    return "\n".join(lines)


def draw(panels: list[tuple[str, list[float]]]) -> None:
    """The same logits under several temperatures, (name, probabilities), side by side on one scale."""
    figure = new_figure(1.9 * len(panels), 2.8)
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, probabilities) in zip(row, panels, strict=True):
        bars = axes.bar([f"{x:g}" for x in LOGITS], probabilities, color=BLUE)
        axes.bar_label(bars, [f"{value:.2f}" if value >= 0.005 else "~0" for value in probabilities], fontsize=7)
        axes.set_title(name, fontsize=10)
        axes.set_ylim(0, 1.1)
        axes.tick_params(labelsize=8)
    row[0].set_ylabel("probability")
    figure.supxlabel("logit", fontsize=9)
    figure.suptitle("softmax(logits / T)", fontsize=10)
    save_figure(figure, PICTURE)


def study(spec: str) -> tuple[str, str]:
    """The table of decoders on a model, and what each wrote to the first prompt."""
    model, tokenizer = minigpt.load_model(spec)
    prompts = [tokenizer.encode(f"{speaker}:\n") for speaker in SPEAKERS]
    table = [
        "| decoder | distinct-1 | distinct-2 | distinct-3 | repeated 3-grams | log-probability per character |",
        "|---|---|---|---|---|---|",
    ]
    samples = []
    for name, options in ROWS:
        out = minigpt.generate(model, prompts, tokenizer=tokenizer, max_new_tokens=NEW_TOKENS, **options)
        texts = [tokenizer.decode(ids[len(prompt) :]) for ids, prompt in zip(out.sequences, prompts, strict=True)]
        words = [text.split() for text in texts]
        log_probs = [minigpt.token_log_probs(model, ids, tokenizer.vocab_size) for ids in out.sequences]
        new = [own[len(prompt) - 1 :] for own, prompt in zip(log_probs, prompts, strict=True)]
        mean = sum(map(sum, new)) / sum(map(len, new))
        numbers = [f"{distinct_n(words, n):.2f}" for n in (1, 2, 3)]
        table.append(f"| {name} | {' | '.join(numbers)} | {repeated_n(words, 3):.2f} | {mean:.2f} |")
        samples.append(f"{name}:\n\n```text\n{SPEAKERS[0]}:\n{texts[0].rstrip()}\n```")
    return "\n".join(table), "\n\n".join(samples)


def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run of minigpt quickstart")
    try:
        table, samples = study(parser.parse_args().model)
    except MiniGPTError as error:
        parser.error(str(error))
    page = PAGE.read_text(encoding="utf-8")
    for name, content in (("temperatures", temperature_table()), ("decoders", table), ("samples", samples)):
        new = f"<!-- {name} -->\n\n{content}\n\n<!-- end -->"
        page, count = re.subn(rf"<!-- {name} -->.*?<!-- end -->", lambda _, new=new: new, page, flags=re.DOTALL)
        assert count == 1, f"{PAGE} has {count} places for {name}"
    write_text(PAGE, page)


if __name__ == "__main__":
    main()
