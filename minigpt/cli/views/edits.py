"""`minigpt inspect ablate` and `patch`: what changes if a part is removed, or replaced by that of another pass."""

from typing import Any

import torch

from minigpt.analysis import plots
from minigpt.analysis.edits import ablate
from minigpt.analysis.heads import repeated_tokens
from minigpt.analysis.recording import Trace
from minigpt.analysis.results import Numbers
from minigpt.analysis.sweeps import Metric, ablation_sweep, logit_difference, loss_of, patching_sweep
from minigpt.analysis.tracing import edit
from minigpt.cli.streams import check_stdin_once, with_stdin
from minigpt.cli.views import settings
from minigpt.cli.views.frame import Answer, Subject, load_subject, subject, traced
from minigpt.data.tokens import IGNORED
from minigpt.errors import InputError, counted
from minigpt.parameters import evaluating, with_text
from minigpt.system import terminal

# --- ablate

TOTAL = "total effects, through later parts too; for direct ones: minigpt inspect why"


def view_ablate(asked: settings.Ablate) -> Answer:
    """`minigpt inspect ablate`."""
    it, rows, measure, what = _question(asked)
    reference = _reference(asked, it, rows)
    if asked.part:
        return _without(asked, it, rows, measure, what, reference)
    kind = asked.sweep or "heads"
    sweep = ablation_sweep(it.model, rows, measure, asked.mode, reference, kind, asked.seed)
    result = it.result(
        "ablate",
        {
            "value": Numbers(("layer", kind), sweep.values),
            "effect": Numbers(("layer", kind), sweep.effects),
            "baseline": Numbers((), sweep.baseline),
        },
        labels={"layer": sweep.rows, kind: sweep.columns},
        settings=_settings(asked) | {"metric": what, "sweep": kind},
    )
    head = _ablate_header(asked, it)
    title = "head" if kind == "heads" else ""  # the columns of other kinds are words already
    largest = [f"{label} {value:+.4f}" for label, value in sweep.top(5)]
    lines = [
        *head,
        f"{what}: {sweep.baseline:.4f} with everything; below, by how much it changes",
        *terminal.grid(sweep.effects, [f"layer {row}" for row in sweep.rows], sweep.columns, "{:+z.3f}", title),
        terminal.joined([f"largest: {largest[0]}", *largest[1:]], terminal.WIDTH),
        TOTAL,
    ]
    title = f"{', '.join(head)}; {what} {sweep.baseline:.4f} with everything"
    return Answer(
        result, lines, lambda: sweep.checks,
        lambda: plots.heat_map(
            sweep.effects, sweep.rows, sweep.columns, f"change of the {what}", title, signed=True, ylabel="layer",
            xlabel="head" if len(sweep.columns) > 1 else "",
        ),
    )  # fmt: skip


def _without(
    asked: settings.Ablate, it: Subject, rows: list[list[int]], measure: Metric, what: str, reference: Trace | None
) -> Answer:
    """Remove some parts at once: the metric before and after, and for a text also the next token."""
    edits = [ablate(part, asked.mode, reference, seed=asked.seed) for part in asked.part]
    idx = torch.tensor(rows, device=it.model.wte.weight.device)
    with torch.no_grad(), evaluating(it.model):
        before = with_text(it.model(idx), it.vocab_size)
        with edit(it.model, *edits):
            after = with_text(it.model(idx), it.vocab_size)
    baseline, value = measure(before), measure(after)
    numbers = {"baseline": Numbers((), baseline), "value": Numbers((), value)}
    parts = terminal.cut(", ".join(asked.part), 30)
    lines = [*_ablate_header(asked, it), f"{what}: {baseline:.4f}, without {parts} {value:.4f}"]
    title = "; ".join(lines)
    lines.append(TOTAL)
    best = before[0, -1].topk(8).indices.tolist()
    shares = [logits[0, -1].float().softmax(-1)[best].tolist() for logits in (before, after)]
    if asked.repeated is None:
        numbers["best"] = Numbers(("rank",), best)
        numbers["probability"] = Numbers(("pass", "rank"), shares)
        table = [(name, *map("{:.4f}".format, pair)) for name, *pair in zip(it.names(best), *shares, strict=True)]
        lines += ["", *terminal.table(("next token", "before", f"without {parts}"), table)]
    result = it.result("ablate", numbers, settings=_settings(asked) | {"metric": what, "parts": asked.part})
    return Answer(
        result, lines,
        lambda: ablation_sweep(it.model, rows, measure, what="mlps").checks,
        lambda: plots.heat_map(
            shares, ["with everything", f"without {parts}"], it.names(best), "probability", title, xlabel="next token",
        ),
    )  # fmt: skip


def _question(asked: settings.Ablate) -> tuple[Subject, list[list[int]], Metric, str]:
    """The prompt, its rows, the metric, and the metric's name."""
    if (asked.prompt is None) == (asked.repeated is None):
        raise InputError("there must be one text: a TEXT, or --repeated N random tokens", "give one of the two")
    if asked.repeated is not None:
        alone = load_subject(asked, asked.bos)
        seeds = range(asked.seed, asked.seed + asked.rows)
        config, V = alone.model.config, alone.vocab_size
        rows = [repeated_tokens(config, asked.repeated, seed, alone.start_token_id, V) for seed in seeds]
        half = len(rows[0]) // 2
        # The first token of the second copy cannot be predicted: nothing shows that a copy begins.
        targets = [[IGNORED] * (half + 2) + row[half + 2 :] for row in rows]
        return alone.of(rows[0]), rows, loss_of(targets, V), "loss on the second copy"
    assert asked.prompt is not None  # one of the two is there
    it = subject(asked, asked.prompt)
    if asked.token is None and asked.against is None:
        if len(it.ids) < 2:
            raise InputError("1 token has no loss", "give a longer text, or --token and --against")
        return it, [it.ids], loss_of([it.ids], it.vocab_size), "loss"
    measure, what = _difference(asked, it)
    return it, [it.ids], measure, what


def _difference(asked: settings.Ablate | settings.Patch, it: Subject) -> tuple[Metric, str]:
    if asked.token is None or asked.against is None:
        raise InputError("a difference of logits needs two tokens", "give both --token and --against")
    target, against = it.one_token(asked.token, "--token"), it.one_token(asked.against, "--against")
    if target == against:
        raise InputError("--token and --against are one token, and differ by 0 whatever the model", "choose two")
    return logit_difference(target, against), "logit of " + " minus ".join(it.names([target, against]))


def _reference(asked: settings.Ablate, it: Subject, rows: list[list[int]]) -> Trace | None:
    """A trace of other texts; or of the rows themselves, if there are several."""
    if asked.mode == "zero":
        return None
    texts = asked.reference
    others = rows if texts is None else [it.read(text, terminal.cut(f"--reference {text!r}", 40)) for text in texts]
    T = len(rows[0])
    short = next((row for row in others if len(row) < T), None)
    if len(others) < 2 or short is not None:
        found = counted(len(others), "text") if short is None else f"a text of {counted(len(short), 'token')}"
        raise InputError(
            f"--mode {asked.mode} has a reference of {found}, and the prompt has {counted(T, 'token')}",
            "give --reference at least two texts, each with as many tokens as the prompt",
        )
    if asked.mode == "resample" and texts is not None and len(rows) == 1:
        others = [*rows, *others]  # row 0, the prompt, never draws row 0: so all texts can be drawn
    swept = ["*.attn.z", "*.attn.out", "*.mlp.out"]
    return traced(it.model, [row[:T] for row in others], [ablate(part).point for part in asked.part] or swept)


def _settings(asked: settings.Ablate) -> dict[str, Any]:
    return {key: getattr(asked, key) for key in ("repeated", "rows", "seed", "mode", "reference", "token", "against")}


def _ablate_header(asked: settings.Ablate, it: Subject) -> list[str]:
    if asked.repeated is None:
        return [it.header("ablate")]
    return [it.header("ablate"), f"{counted(asked.rows, 'row')} of {len(it.ids) // 2} random tokens that come twice"]


# --- patch


def view_patch(asked: settings.Patch) -> Answer:
    """`minigpt inspect patch`."""
    check_stdin_once([asked.clean, asked.corrupt])
    it = subject(asked, asked.clean)
    (corrupt,) = with_stdin(asked.corrupt)
    other = it.read(corrupt, "--corrupt")
    measure, what = _difference(asked, it)
    sweep = patching_sweep(it.model, [it.ids], [other], measure, asked.point)
    by_head = asked.point == "attn.z"
    names = [terminal.cut(name, 12) for name in it.names(it.ids)]
    columns = sweep.columns if by_head else [f"{name}@{place}" for place, name in enumerate(names)]
    axis = "head" if by_head else "position"
    result = it.result(
        "patch",
        {
            "value": Numbers(("layer", axis), sweep.values),
            "normalised": Numbers(("layer", axis), sweep.normalised),
            "clean": Numbers((), sweep.clean),
            "corrupt": Numbers((), sweep.baseline),
        },
        labels={"layer": sweep.rows, axis: sweep.columns if by_head else it.texts},
        settings={key: getattr(asked, key) for key in ("corrupt", "token", "against", "point")},
    )
    lines = [
        it.header("patch"),
        f"{what}: clean {sweep.clean:.4f}, corrupt {sweep.baseline:.4f}",
        f"{asked.point} of the clean pass in the corrupt one: 0 changes nothing, 1 mends all",
        *terminal.grid(sweep.normalised, [f"layer {row}" for row in sweep.rows], columns, "{:z.2f}"),
    ]
    title = f"{it.header('patch')}; {asked.point} put into the corrupt pass; {what}"
    return Answer(
        result, lines, lambda: sweep.checks,
        lambda: plots.heat_map(
            sweep.normalised, sweep.rows, columns, "0: corrupt, 1: clean", title, signed=True, xlabel=axis,
            ylabel="layer",
        ),
    )  # fmt: skip
