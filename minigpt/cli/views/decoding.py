"""`minigpt inspect next`, `temperature`, `steps` and `beams`: how a continuation is chosen."""

from typing import Any

import torch

from minigpt.analysis import plots
from minigpt.analysis.decoders import CUTS, BeamTree, Cuts, Written, beam_tree, sampling_cuts, write_steps
from minigpt.analysis.results import Numbers, Result
from minigpt.cli.views import settings
from minigpt.cli.views.frame import Answer, Subject, subject
from minigpt.decoding.options import LARGEST, DecodingOptions
from minigpt.decoding.sampling import next_logits
from minigpt.errors import InputError, counted
from minigpt.system import terminal


def _sampling(asked: settings.Sampling) -> dict[str, Any]:
    """The options of a draw that are given, with the temperature that it has unless given; {} if none is."""
    given = {name: value for name in CUTS if (value := getattr(asked, name)) is not None}
    return {"temperature": DecodingOptions().temperature, **given} if given else {}


def _end(it: Subject, asked: settings.Steps | settings.Beams) -> dict[str, Any]:
    """The option for the tokens that end a continuation, as in `minigpt generate`: a list only if there are several."""
    ends = it.tokenizer.end_ids
    return {
        "max_new_tokens": asked.max_new_tokens,
        "eos_token_id": ends if len(ends) > 1 else it.tokenizer.eos_token_id,
    }


# --- next


def view_next(asked: settings.NextView) -> Answer:
    """`minigpt inspect next`."""
    it = subject(asked, asked.prompt)
    logits = next_logits(it.model, it.ids, it.vocab_size).cpu()
    cuts = sampling_cuts(logits, **_sampling(asked))
    best = cuts.top(asked.top)
    result = it.result(
        "next",
        {
            "logit": Numbers(("vocabulary",), logits),
            "probability": Numbers(("stage", "vocabulary"), cuts.probabilities),
            "tokens_left": Numbers(("stage",), cuts.kept),
            "entropy": Numbers(("stage",), cuts.entropy),
            "best": Numbers(("rank",), best),
        },
        labels={"stage": cuts.names, "rank": it.names(best)},
        settings=_sampling(asked),
    )
    drawn = [
        (name, cuts.probabilities[stage, best].tolist(), left)
        for stage, (name, left) in enumerate(zip(cuts.names, cuts.kept, strict=True))
    ]
    title = f"next token of {it.name} after {it.prompt[-60:]!r}"
    return Answer(
        result,
        [it.header("next"), *_next_lines(it, logits, cuts, best)],
        lambda: cuts.checks,
        lambda: plots.cuts_chart(it.names(best), drawn, title),
    )


def _next_lines(it: Subject, logits: torch.Tensor, cuts: Cuts, best: list[int]) -> list[str]:
    shown = cuts.probabilities[:, best].tolist()
    rows = [
        (
            str(token),
            terminal.cut(name, 12),
            f"{logits[token]:.3f}",
            *("cut" if not stage[place] else f"{stage[place]:.4f}" for stage in shown),
        )
        for place, (token, name) in enumerate(zip(best, it.names(best), strict=True))
    ]
    short = [name.replace("temperature", "T") for name in cuts.names]
    stages = [
        (name, f"{left:,}", f"{float(cuts.probabilities[0][row > 0].sum()):.4f}", f"{nats:.3f}")
        for name, left, row, nats in zip(cuts.names, cuts.kept, cuts.probabilities, cuts.entropy, strict=True)
    ]
    heading, *lines = terminal.table(("id", "token", "logit", *short), rows, left=(1,))
    room = min(10, terminal.WIDTH - 2 - terminal.columns(heading))  # for bars, if there is any
    bars = [terminal.bar(share / max(shown[-1]), room) for share in shown[-1]]
    return [
        heading,
        *(f"{line}  {bar}".rstrip() for line, bar in zip(lines, bars, strict=True)),
        "",
        *terminal.table(("stage", "tokens left", "of the model's probability", "entropy in nats"), stages),
    ]


# --- temperature


def view_temperature(asked: settings.Temperature) -> Answer:
    """`minigpt inspect temperature`."""
    if beyond := [logit for logit in asked.logits if abs(logit) > LARGEST]:
        raise InputError(f"LOGIT {beyond[0]:g} is out of range", f"give logits from {-LARGEST:g} to {LARGEST:g}")
    cuts = [sampling_cuts(torch.tensor(asked.logits), temperature=value) for value in asked.temperature]
    probabilities = torch.stack([cut.probabilities[-1] for cut in cuts])  # (temperatures, logits)
    entropy = [cut.entropy[-1] for cut in cuts]
    names, stages = [f"{logit:g}" for logit in asked.logits], [f"T = {value:g}" for value in asked.temperature]
    result = Result(
        view="temperature",
        model="",
        config=None,
        numbers={
            "logit": Numbers(("logit",), asked.logits),
            "probability": Numbers(("temperature", "logit"), probabilities),
            "entropy": Numbers(("temperature",), entropy),
        },
        labels={"temperature": [f"{value:g}" for value in asked.temperature], "logit": names},
    )
    rows = [*probabilities.T.tolist(), entropy]
    lines = [
        "probabilities after division of the logits by the temperature T",
        *terminal.grid(rows, [*names, "entropy in nats"], stages, "{:.4f}", "logit"),
    ]
    checks = [
        check._replace(name=f"{stage}, {check.name}")
        for stage, cut in zip(stages, cuts, strict=True)
        for check in cut.checks
    ]
    panels = [
        (f"{stage}\nentropy {nats:.3f} nats", row.tolist())
        for stage, nats, row in zip(stages, entropy, probabilities, strict=True)
    ]
    title = f"softmax of the logits {', '.join(names)} at several temperatures"
    return Answer(result, lines, lambda: checks, lambda: plots.bars_side_by_side(names, panels, title))


# --- steps


def view_steps(asked: settings.Steps) -> Answer:
    """`minigpt inspect steps`."""
    it = subject(asked, asked.prompt)
    options = _sampling(asked) | {"seed": asked.seed, **_end(it, asked)}
    if not _sampling(asked):
        options["strategy"] = "greedy"
    found = write_steps(it.model, it.ids, it.tokenizer, asked.top, **options)
    seen = [choice.candidates for choice in found.choices]
    result = it.result(
        "steps",
        {
            "chosen": Numbers(("step",), [choice.id for choice in found.choices]),
            "log_probability": Numbers(("step",), [choice.log_prob for choice in found.choices]),
            "candidate_id": Numbers(("step", "candidate"), [[c.id for c in row] for row in seen]),
            "candidate_log_probability": Numbers(("step", "candidate"), [[c.log_prob for c in row] for row in seen]),
            "candidate_probability": Numbers(("step", "candidate"), [[c.probability for c in row] for row in seen]),
            "score": Numbers((), found.score),
        },
        labels={"step": it.names([choice.id for choice in found.choices])},
        settings=options,
    )
    return Answer(result, _steps_lines(it, found), lambda: found.checks, lambda: _steps_chart(it, found))


def _steps_lines(it: Subject, found: Written) -> list[str]:
    rows = [
        (str(number), terminal.cut(it.shown(choice.id), 10), f"{choice.log_prob:.3f}")
        for number, choice in enumerate(found.choices, start=1)
    ]
    candidates = [
        [f"{terminal.fitted(it.shown(c.id), 5)} {c.probability:.3f}" for c in choice.candidates]
        for choice in found.choices
    ]
    return [
        it.header("steps"),
        *terminal.table(("step", "token", "log p", "candidates and their probabilities"), rows, (1, 3), candidates),
        f"log-probability {found.score:.4f} in all, by the model alone",
        terminal.cut(repr(it.tokenizer.decode(found.ids[len(it.ids) :])), terminal.WIDTH),
    ]


def _steps_chart(it: Subject, found: Written) -> "plots.Figure":
    seen = [choice.candidates for choice in found.choices]
    ranks = [str(rank) for rank in range(1, len(seen[0]) + 1)]
    return plots.heat_map(
        [[row[rank].probability for row in seen] for rank in range(len(ranks))],
        ranks,
        it.names([choice.id for choice in found.choices]),
        "probability of the draw",
        f"steps of {it.name} after {it.prompt[-60:]!r}",
        texts=[it.names([row[rank].id for row in seen]) for rank in range(len(ranks))],
        xlabel="chosen, step by step",
        ylabel="the model's ranks",
    )


# --- beams


def view_beams(asked: settings.Beams) -> Answer:
    """`minigpt inspect beams`."""
    it = subject(asked, asked.prompt)
    options = {"num_beams": asked.beams, **_end(it, asked)}
    tree = beam_tree(it.model, it.ids, it.tokenizer, **options, length_penalty=asked.length_penalty)
    candidates = [node.candidate for node in tree.nodes]
    result = it.result(
        "beams",
        {
            "step": Numbers(("node",), [node.step for node in tree.nodes]),
            "parent": Numbers(("node",), [-1 if node.parent is None else node.parent for node in tree.nodes]),
            "id": Numbers(("node",), [candidate.id for candidate in candidates]),
            "total": Numbers(("node",), [candidate.total for candidate in candidates]),
            "kept": Numbers(("node",), [candidate.kept for candidate in candidates]),
            "best": Numbers(("node",), [node.best for node in tree.nodes]),
            "score": Numbers((), tree.score),
        },
        labels={"node": it.names([candidate.id for candidate in candidates])},
        settings=options | {"length_penalty": asked.length_penalty},
    )
    branches = [
        plots.Branch(node.parent, it.shown(node.candidate.id), node.candidate.total, node.candidate.kept, node.best)
        for node in tree.nodes
    ]
    title = f"{counted(asked.beams, 'beam')} of {it.name}, score {tree.score:.4f}"
    root = terminal.visible(it.prompt)
    return Answer(result, _beams_lines(it, tree), lambda: tree.checks, lambda: plots.beam_tree(branches, root, title))


def _beams_lines(it: Subject, tree: BeamTree) -> list[str]:
    lines = [it.header("beams"), "step      total  what was kept, * the result; in brackets how many were dropped"]
    for step in range(tree.nodes[-1].step + 1):
        numbers = [number for number, node in enumerate(tree.nodes) if node.step == step]
        kept = [number for number in numbers if tree.nodes[number].candidate.kept]
        for number in kept:
            node = tree.nodes[number]
            text = terminal.visible(it.tokenizer.decode(tree.path(number)))
            tail = f"  ends: {node.candidate.finish_reason}" if node.candidate.finish_reason else ""
            mark = "*" if node.best else " "
            shown = terminal.fitted(text[-44:], 44)
            lines.append(f"{step + 1:>4} {node.candidate.total:>10.4f} {mark} {shown}{tail}".rstrip())
        lines.append(f"{'':>16} ({len(numbers) - len(kept)})")
    return [*lines, f"score {tree.score:.4f}"]
