"""`minigpt inspect ablate` and `patch`: what changes if a part is taken away, or put in from another pass."""

from typing import Any

import torch

from minigpt.analysis import plots
from minigpt.analysis.edits import ablate
from minigpt.analysis.heads import repeated_tokens
from minigpt.analysis.recording import Trace
from minigpt.analysis.records import Numbers
from minigpt.analysis.sweeps import Metric, Sweep, ablation_sweep, logit_difference, loss_of, patching_sweep
from minigpt.analysis.tracing import edit
from minigpt.cli.streams import given
from minigpt.cli.views.frame import (
    Answer,
    Subject,
    load_reader,
    one_token,
    subject,
    traced,
)
from minigpt.data.tokens import IGNORED
from minigpt.decoding.sampling import evaluating, with_text
from minigpt.errors import InputError
from minigpt.system import terminal

# --- ablate

TOTAL = "in all, through later parts too; what a part adds directly: minigpt inspect why"


def _ablate(values: dict[str, Any]) -> Answer:
    it, rows, measure, what = _measured(values)
    reference = _reference(values, it, rows)
    if values["part"] and values["sweep"]:
        raise InputError("--part and --sweep are two questions", "leave one of them out")
    if values["part"]:
        return _without(values, it, rows, measure, what, reference)
    kind = values["sweep"] or "heads"
    sweep = ablation_sweep(it.model, rows, measure, values["mode"], reference, kind, values["seed"])
    record = it.record(
        "ablate",
        {
            "value": Numbers(("layer", kind), sweep.values),
            "effect": Numbers(("layer", kind), sweep.effects),
            "baseline": Numbers((), sweep.baseline),
        },
        labels={"layer": sweep.rows, kind: sweep.columns},
        settings=_settings(values) | {"metric": what, "sweep": kind},
    )
    head = _ablate_header(values, it)
    title = "head" if kind == "heads" else ""  # the other kinds name their columns in words
    largest = [f"{label} {value:+.4f}" for label, value in sweep.top(5)]
    lines = [
        *head,
        f"{what}: {sweep.baseline:.4f} with everything; below, by how much it changes",
        *terminal.grid(sweep.effects, [f"layer {row}" for row in sweep.rows], sweep.columns, "{:+z.3f}", title),
        terminal.joined([f"largest: {largest[0]}", *largest[1:]], terminal.WIDTH),
        TOTAL,
    ]
    title = f"{', '.join(head)}; {what} {sweep.baseline:.4f} with everything"
    return Answer(record, lines, sweep.check, lambda: _sweep_chart(sweep, f"change of the {what}", title))


def _without(
    values: dict[str, Any], it: Subject, rows: list[list[int]], measure: Metric, what: str, reference: Trace | None
) -> Answer:
    """Without some parts at once: the measure, and for a text the next token, before and after."""
    edits = [ablate(part, values["mode"], reference, seed=values["seed"]) for part in values["part"]]
    idx = torch.tensor(rows, device=it.model.wte.weight.device)
    with torch.no_grad(), evaluating(it.model):
        before = with_text(it.model(idx), it.tokenizer.vocab_size)
        with edit(it.model, *edits):
            after = with_text(it.model(idx), it.tokenizer.vocab_size)
    baseline, value = measure(before), measure(after)
    numbers = {"baseline": Numbers((), baseline), "value": Numbers((), value)}
    parts = terminal.cut(", ".join(values["part"]), 30)
    lines = [*_ablate_header(values, it), f"{what}: {baseline:.4f}, without {parts} {value:.4f}"]
    title = "; ".join(lines)
    lines.append(TOTAL)
    best = before[0, -1].topk(8).indices.tolist()
    shares = [logits[0, -1].float().softmax(-1)[best].tolist() for logits in (before, after)]
    if values["repeated"] is None:
        numbers["best"] = Numbers(("rank",), best)
        numbers["probability"] = Numbers(("pass", "rank"), shares)
        table = [(name, *map("{:.4f}".format, pair)) for name, *pair in zip(it.names(best), *shares, strict=True)]
        lines += ["", *terminal.table(("next token", "before", f"without {parts}"), table)]
    record = it.record("ablate", numbers, settings=_settings(values) | {"metric": what, "parts": values["part"]})
    return Answer(
        record, lines,
        lambda: ablation_sweep(it.model, rows, measure, what="mlps").check(),
        lambda: plots.heat_map(
            shares, ["with everything", f"without {parts}"], it.names(best), "probability", title, xlabel="next token",
        ),
    )  # fmt: skip


def _measured(values: dict[str, Any]) -> tuple[Subject, list[list[int]], Metric, str]:
    """What is read, its rows, what is measured of them, and that in words."""
    if (values["prompt"] is None) == (values["repeated"] is None):
        raise InputError("there must be one text: a TEXT, or --repeated N random tokens", "give one of the two")
    if values["prompt"] is None:
        if values["token"] is not None or values["against"] is not None:
            raise InputError("--repeated measures a loss, and --token and --against a logit", "leave one of them out")
        reader = load_reader(values)
        seeds = range(values["seed"], values["seed"] + values["rows"])
        config, V = reader.model.config, reader.tokenizer.vocab_size
        rows = [repeated_tokens(config, values["repeated"], seed, reader.start_token_id, V) for seed in seeds]
        if not rows:
            raise InputError(f"--rows {values['rows']} leaves nothing to read", "choose at least 1")
        half = len(rows[0]) // 2
        # The first token of the second copy cannot be known: nothing says that a copy begins.
        targets = [[IGNORED] * (half + 2) + row[half + 2 :] for row in rows]
        return reader.reading(rows[0]), rows, loss_of(targets, V), "loss on the second copy"
    it = subject(values)
    if values["token"] is None and values["against"] is None:
        if len(it.ids) < 2:
            raise InputError("1 token has no loss", "give a longer text, or --token and --against")
        return it, [it.ids], loss_of([it.ids], it.tokenizer.vocab_size), "loss"
    measure, what = _difference(values, it)
    return it, [it.ids], measure, what


def _difference(values: dict[str, Any], it: Subject) -> tuple[Metric, str]:
    if values["token"] is None or values["against"] is None:
        raise InputError("a difference of logits needs two tokens", "give both --token and --against")
    target, against = (one_token(it.tokenizer, values[flag], f"--{flag}") for flag in ("token", "against"))
    if target == against:
        raise InputError("--token and --against are one token, and differ by 0 whatever the model", "choose two")
    return logit_difference(target, against), "logit of " + " minus ".join(it.names([target, against]))


def _reference(values: dict[str, Any], it: Subject, rows: list[list[int]]) -> Trace | None:
    """A trace of other texts, or of the rows themselves where there are several."""
    if values["mode"] == "zero":
        if values["reference"] is not None:
            raise InputError("--mode zero needs no --reference", "leave it out, or choose --mode mean or resample")
        return None
    texts = values["reference"]
    others = rows if texts is None else [it.read(text, terminal.cut(f"--reference {text!r}", 40)) for text in texts]
    T = len(rows[0])
    short = next((row for row in others if len(row) < T), None)
    if len(others) < 2 or short is not None:
        found = f"{len(others)} text{'s' * (len(others) != 1)}" if short is None else f"a text of {len(short)} tokens"
        raise InputError(
            f"--mode {values['mode']} has a reference of {found}, and the prompt has {T} tokens",
            "give --reference at least two texts, each with as many tokens as the prompt",
        )
    if values["mode"] == "resample" and texts is not None and len(rows) == 1:
        others = [*rows, *others]  # row 0 draws no row 0: that is the prompt itself, and no text is left out
    return traced(it.model, [row[:T] for row in others], ["*.attn.z", "*.attn.out", "*.mlp.out"])


def _settings(values: dict[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("repeated", "rows", "seed", "mode", "reference", "token", "against")}


def _ablate_header(values: dict[str, Any], it: Subject) -> list[str]:
    if values["repeated"] is None:
        return [it.header("ablate")]
    return [it.header("ablate"), f"{values['rows']} rows of {len(it.ids) // 2} random tokens that come twice"]


def _sweep_chart(sweep: Sweep, what: str, title: str) -> "plots.Figure":
    return plots.heat_map(
        sweep.effects, sweep.rows, sweep.columns, what, title, signed=True, ylabel="layer",
        xlabel="head" if len(sweep.columns) > 1 else "",
    )  # fmt: skip


# --- patch


def _patch(values: dict[str, Any]) -> Answer:
    clean, corrupt = given(values["clean"], values["corrupt"])
    it = subject(values, clean)
    other = it.read(corrupt, "--corrupt")
    measure, what = _difference(values, it)
    sweep = patching_sweep(it.model, [it.ids], [other], measure, values["point"])
    by_head = values["point"] == "attn.z"
    names = [terminal.cut(name, 12) for name in it.names(it.ids)]
    columns = sweep.columns if by_head else [f"{name}@{place}" for place, name in enumerate(names)]
    axis = "head" if by_head else "position"
    record = it.record(
        "patch",
        {
            "value": Numbers(("layer", axis), sweep.values),
            "normalised": Numbers(("layer", axis), sweep.normalised),
            "clean": Numbers((), sweep.clean),
            "corrupt": Numbers((), sweep.baseline),
        },
        labels={"layer": sweep.rows, axis: sweep.columns if by_head else it.texts},
        settings={key: values[key] for key in ("corrupt", "token", "against", "point")},
    )
    lines = [
        it.header("patch"),
        f"{what}: clean {sweep.clean:.4f}, corrupt {sweep.baseline:.4f}",
        f"{values['point']} of the clean pass in the corrupt one: 0 changes nothing, 1 mends all",
        *terminal.grid(
            sweep.normalised,
            [f"layer {row}" for row in sweep.rows],
            columns,
            "{:z.2f}",
        ),
    ]
    title = f"{it.header('patch')}; {values['point']} put into the corrupt pass; {what}"
    return Answer(
        record, lines, sweep.check,
        lambda: plots.heat_map(
            sweep.normalised, sweep.rows, columns, "0: corrupt, 1: clean", title, signed=True, xlabel=axis,
            ylabel="layer",
        ),
    )  # fmt: skip


VIEWS = {"ablate": _ablate, "patch": _patch}
