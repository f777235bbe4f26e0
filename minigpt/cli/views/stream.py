"""`minigpt inspect lens` and `why`: the residual stream, read early, and split into parts."""

import re

from torch import Tensor

from minigpt.analysis import plots
from minigpt.analysis.attribution import Attribution, attribute
from minigpt.analysis.embeddings import residual_norms
from minigpt.analysis.lens import Lens, logit_lens
from minigpt.analysis.results import Numbers
from minigpt.analysis.sweeps import total_effects
from minigpt.cli.views import settings
from minigpt.cli.views.frame import Answer, Subject, subject, traced
from minigpt.errors import InputError, counted
from minigpt.parameters import with_text
from minigpt.system import terminal

STREAM = ["embed", "pos_embed", "*.resid_*", "*.attn.out", "*.mlp.out"]


def _check_position(position: int, it: Subject) -> int:
    """The absolute position."""
    T = len(it.ids)
    if not -T <= position < T:
        raise InputError(f"there is no position {position}: the prompt has {T}", f"choose one from 0 to {T - 1}, or -1")
    return position % T


# --- lens


def view_lens(asked: settings.Lens) -> Answer:
    """`minigpt inspect lens`."""
    it = subject(asked, asked.prompt)
    place = _check_position(asked.position, it)
    if asked.norms:
        return _norms(it, place)
    t = traced(it.model, [it.ids], [*(asked.points or STREAM), "logits"])
    lens = logit_lens(t, asked.points, it.vocab_size)
    best = int(lens.final[0, place].argmax())
    token = best if asked.rank_of is None else it.one_token(asked.rank_of, "--rank-of")
    ids, probs = lens.top(asked.top)
    ranks, divergence = lens.rank_of(token) + 1, lens.kl_to_final()
    result = it.result(
        "lens",
        {
            "top_id": Numbers(("point", "position", "rank"), ids[:, 0].cpu()),
            "top_probability": Numbers(("point", "position", "rank"), probs[:, 0].cpu()),
            "rank_of_token": Numbers(("point", "position"), ranks[:, 0].cpu()),
            "kl_to_final": Numbers(("point", "position"), divergence[:, 0].cpu()),
        },
        labels={"point": lens.points, "position": it.texts},
        settings={"rank_of": it.shown(token), "position": place},
    )
    rows = [
        (point, f"{divergence[n, 0, place]:.3f}", f"{int(ranks[n, 0, place]):,}") for n, point in enumerate(lens.points)
    ]
    likeliest = [it.likely(ids[n, 0, place].tolist(), probs[n, 0, place].tolist()) for n in range(len(lens.points))]
    shown = terminal.cut(it.shown(token), 10)
    lines = [
        it.header("lens"),
        f"after position {place}, {it.shown(it.ids[place])}",
        *terminal.table(("read at", "KL", f"rank of {shown}", "likeliest tokens"), rows, (0, 3), likeliest),
        "KL in nats, from the model's own distribution",
    ]
    return Answer(result, lines, lambda: lens.checks, lambda: _lens_chart(it, lens))


def _lens_chart(it: Subject, lens: Lens) -> "plots.Figure":
    ids, probs = lens.top(1)
    texts = [it.names(row) for row in ids[:, 0, :, 0].tolist()]
    return plots.heat_map(
        probs[:, 0, :, 0].cpu(), lens.points, it.names(it.ids), "probability of the likeliest token", it.header("lens"),
        texts=texts, xlabel="after this token", ylabel="read at",
    )  # fmt: skip


def _norms(it: Subject, place: int) -> Answer:
    found = residual_norms(traced(it.model, [it.ids], STREAM))
    norms, cosines, shares = (x[:, 0].cpu() for x in (found.norms, found.cosine_to_final, found.shares))  # (P, T)
    dimensions, sizes = (x[:, 0].cpu() for x in found.largest(3))  # (P, T, 3)
    result = it.result(
        "lens",
        {
            "norm": Numbers(("point", "position"), norms),
            "cosine_to_final": Numbers(("point", "position"), cosines),
            "share": Numbers(("point", "position"), shares),
            "largest_dimension": Numbers(("point", "position", "rank"), dimensions),
            "largest_value": Numbers(("point", "position", "rank"), sizes),
        },
        labels={"point": found.points, "position": it.texts},
        settings={"norms": True, "position": place},
    )
    rows = [
        (point, f"{norms[n, place]:.2f}", f"{cosines[n, place]:+.3f}", f"{shares[n, place]:+.3f}")
        for n, point in enumerate(found.points)
    ]
    largest = [
        [f"{d}: {x:+.1f}" for d, x in zip(dimensions[n, place], sizes[n, place], strict=True)] for n in range(len(rows))
    ]
    lines = [
        it.header("norms"),
        f"at position {place}, {it.shown(it.ids[place])}",
        *terminal.table(("point", "norm", "cosine", "share", "largest dimensions"), rows, left=(0, 4), pieces=largest),
        "cosine: to the final stream; share: of it, by what was written last",
    ]
    title = it.header("norms of the stream")
    return Answer(
        result, lines, lambda: found.checks,
        lambda: plots.heat_map(norms, found.points, it.names(it.ids), "norm", title, xlabel="position"),
    )  # fmt: skip


# --- why


def view_why(asked: settings.Why) -> Answer:
    """`minigpt inspect why`."""
    it = subject(asked, asked.prompt)
    place = _check_position(asked.position, it)
    t = traced(it.model, [it.ids], [*STREAM, "*.attn.z", "*.mlp.post", "ln_f.scale", "logits"])
    best = int(with_text(t["logits"][0, place], it.vocab_size).argmax())
    target = best if asked.token is None else it.one_token(asked.token, "--token")
    against = None if asked.against is None else it.one_token(asked.against, "--against")
    found = attribute(t, target, against, by=asked.by, position=place)
    what = "logit of " + " minus ".join(it.names([target] if against is None else [target, against]))
    parts = _parts(found, asked.top)
    in_all = _in_all(it, found, [name for name, _ in parts])
    result = it.result(
        "why",
        {
            "value": Numbers(("part",), found.values),
            "constant": Numbers(("bias",), [*found.constants.values()]),
            "total": Numbers((), found.total),
            "logit": Numbers((), found.logit),
            "remainder": Numbers((), found.remainder),
            "in_all": Numbers(("shown",), [*in_all.values()]),
        },
        labels={"part": found.labels, "bias": [*found.constants], "shown": [*in_all]},
        settings={"token": target, "against": against, "by": asked.by, "position": place},
    )
    largest = max(abs(value) for _, value in parts) or 1.0
    columns = [
        ["part", *(name for name, _ in parts), "together"],
        ["adds", *(f"{value:+.4f}" for _, value in parts), f"{found.total:+.4f}"],
        ["in all", *(f"{in_all[name]:+.4f}" if name in in_all else "" for name, _ in parts), ""],
        ["", *(terminal.bar(abs(value) / largest) for _, value in parts), ""],
    ]
    if not in_all:
        del columns[2]
    headings, *rows = zip(*columns, strict=True)
    lines = [
        it.header("why"),
        f"{what}, after position {place}, {it.shown(it.ids[place])}",
        *terminal.table(headings, rows, left=(0, len(columns) - 1)),
        *["adds: directly; in all: what is lost without it, through later parts too"] * bool(in_all),
        f"the model says {found.logit:.4f}; the remainder is {found.remainder:.1e}",
    ]
    title = f"{it.header('why')}; {lines[1]}"
    return Answer(result, lines, lambda: found.checks, lambda: plots.waterfall(parts, found.total, what, title))


def _in_all(it: Subject, found: Attribution, parts: list[str]) -> dict[str, float]:
    """The total effects of the parts that can be removed."""

    def logit(logits: Tensor) -> float:
        row = logits[0, found.position].double()
        return float(row[found.target] - (0 if found.against is None else row[found.against]))

    whole = [name for name in parts if re.fullmatch(r"\d+\.(\d+|attn|mlp)", name)]
    return total_effects(it.model, [it.ids], logit, whole)


def _parts(found: Attribution, top: int) -> list[tuple[str, float]]:
    """The largest parts, the sum of all others, and the sum of the biases."""
    shown = found.top(top)
    rest = float(found.values.sum()) - sum(value for _, value in shown)
    others = len(found.labels) - len(shown)
    parts = [*shown, (counted(others, "other part"), rest)] if others else shown
    return [*parts, ("biases", sum(found.constants.values()))] if found.constants else parts
