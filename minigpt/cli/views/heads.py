"""`minigpt inspect attn` and `heads`: what attention looks at."""

from typing import Any

import torch

from minigpt.analysis import plots
from minigpt.analysis.checks import Check
from minigpt.analysis.heads import HeadScores, attention_checks, head_scores
from minigpt.analysis.results import Numbers, Result
from minigpt.cli.views import settings
from minigpt.cli.views.frame import Answer, Subject, load_subject, subject, traced
from minigpt.errors import InputError
from minigpt.fields import check_place
from minigpt.system import terminal

KINDS = ("induction", "duplicate", "previous", "first", "self", "entropy")
HABITS = {
    "previous": "looks at the token before",
    "induction": "looks at what followed the same token the first time",
    "duplicate": "looks at the same token the first time",
    "self": "looks at the token itself",
    "first": "rests on the first token",
}
CLEAR = 0.25  # from this share of its weight on, what a head looks at counts as its habit

# --- attn


def view_attn(asked: settings.Attn) -> Answer:
    """`minigpt inspect attn`."""
    it = subject(asked, asked.prompt)
    config, layer, head = it.model.config, asked.layer, asked.head
    if layer is not None:
        check_place(layer, config.n_layer, "layer")
    if head is not None:
        check_place(head, config.n_head, "head")
        if layer is None:
            raise InputError(f"--head {head} is in every layer", "say which one: --layer 0")
    layers = list(range(config.n_layer)) if layer is None else [layer]
    heads = list(range(config.n_head)) if head is None else [head]
    points = "*.attn.*" if asked.check else "*.attn.pattern"
    t = traced(it.model, [it.ids], points)
    pattern = torch.stack([t[f"blocks.{number}.attn.pattern"][0] for number in layers]).cpu()[:, heads]  # (L, H, T, T)
    entropy = torch.special.entr(pattern).sum(-1)  # (L, H, T)
    result = it.result(
        "attn",
        {
            "pattern": Numbers(("layer", "head", "query", "key"), pattern),
            "entropy": Numbers(("layer", "head", "query"), entropy),
        },
        labels={"layer": [*map(str, layers)], "head": [*map(str, heads)], "query": it.texts, "key": it.texts},
        settings={"attention": t.attention},
    )

    def checks() -> list[Check]:
        found = [(number, one) for number in layers for one in attention_checks(t, number)]
        return [one._replace(name=f"layer {number}: {one.name}") for number, one in found]

    if head is not None:
        return _one_head(it, result, pattern[0, 0], f"head {layer}.{head}", checks)
    title = it.header("attention")
    lines = [it.header("attn"), *_strongest(it, pattern, layers, entropy)]
    return Answer(result, lines, checks, lambda: plots.attention_grid(pattern, layers, it.texts, title))


def _one_head(it: Subject, result: Result, pattern: torch.Tensor, name: str, checks: Any) -> Answer:
    names = it.names(it.ids)
    lines = [it.header(f"attn, {name},"), "rows look at columns, from the first token on the left"]
    lines += terminal.shaded(pattern, names)
    title = it.header(f"attention of {name}")
    return Answer(result, lines, checks, lambda: plots.attention_head(pattern, it.texts, title))


def _strongest(it: Subject, pattern: torch.Tensor, layers: list[int], entropy: torch.Tensor) -> list[str]:
    """What the last token looks at, one line for each head."""
    rows, looked_at = [], []
    names = it.names(it.ids)
    for number, heads, nats in zip(layers, pattern[:, :, -1], entropy[:, :, -1], strict=True):
        for head, weights in enumerate(heads):
            best = weights.topk(min(4, len(names)))
            keys = [
                f"{terminal.cut(names[key], 8)}@{key} {weight:.2f}"
                for weight, key in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
            rows.append((f"{number}.{head}", f"{nats[head]:.2f}"))
            looked_at.append(keys)
    heading = f"what the last token, {terminal.cut(names[-1], 20)}, looks at"
    return terminal.table(("head", "entropy", heading), rows, left=(0, 2), pieces=looked_at)


# --- heads


def view_heads(asked: settings.Heads) -> Answer:
    """`minigpt inspect heads`."""
    if asked.prompt is None:
        alone = load_subject(asked, asked.bos)
        found = head_scores(alone.model, None, asked.seed, asked.length, alone.start_token_id, alone.vocab_size)
        half = len(found.ids) // 2
        it = alone.of(found.ids)
        head = [it.header("heads"), f"on {half} random tokens, seed {asked.seed}, that come twice"]
    else:
        it = subject(asked, asked.prompt)
        found = head_scores(it.model, it.ids)
        head = [it.header("heads")]
    kinds = [kind for kind in KINDS if kind in found.scores]
    habits = _habits(found)
    kind = asked.by or habits[0][0]
    best = found.sorted(kind)[: asked.top]
    result = it.result(
        "heads",
        {one: Numbers(("layer", "head"), found.scores[one]) for one in kinds}
        | {"best": Numbers(("rank",), [score for _, score in best])},
        labels={"rank": [label for label, _ in best]},
        settings={"period": found.period, "seed": asked.seed if found.period else None, "by": kind},
    )
    rows = []
    for label, _ in best:
        layer, number = map(int, label.split("."))
        rows.append((label, *(f"{float(found.scores[one][layer, number]):.3f}" for one in kinds)))
    marked = [f"{one} *" if one == kind else one for one in kinds]
    shown = [f"{label} {HABITS[one]}, with {score:.2f} of its weight" for one, label, score in habits]
    lines = [*head, *shown, *terminal.table(("head", *marked), rows)]
    title = ", ".join(head)
    scores = {one: found.scores[one] for one in sorted(kinds, key=lambda one: one != kind)}
    return Answer(result, lines, lambda: found.checks, lambda: plots.head_scoreboard(scores, title))


def _habits(found: HeadScores) -> list[tuple[str, str, float]]:
    """The clearest habits, the strongest first: for each kind the head with the highest score, if it is CLEAR."""
    best = [(kind, *found.best(kind, 1)[0]) for kind in HABITS if kind in found.scores]
    best.sort(key=lambda habit: (habit[0] == "first", -habit[2]))  # a head that rests on the first token does nothing
    return [habit for habit in best if habit[2] >= CLEAR] or best[:1]
