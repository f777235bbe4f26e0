"""`minigpt inspect size`, `arch` and `embed`: what a model is, without a prompt."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from minigpt.analysis import plots
from minigpt.analysis.accounting import ModelSize, human, model_size
from minigpt.analysis.embeddings import neighbours, pca, position_similarity
from minigpt.analysis.results import Numbers, Result
from minigpt.cli.models import model_source
from minigpt.cli.views import settings
from minigpt.cli.views.frame import Answer, load_subject
from minigpt.config import PRESETS, GPTConfig, preset, updated
from minigpt.errors import ConfigError, InputError, counted
from minigpt.formats.source import open_source
from minigpt.system import terminal
from minigpt.tokenizers import read

COUNTED = {
    "parameters": "parameters",
    "forward_flops": "forward pass",
    "activation_bytes": "kept for backward",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "kv_cache_bytes": "KV-cache",
}


# --- size


def view_size(asked: settings.Size) -> Answer:
    """`minigpt inspect size`."""
    name, config = _shape(asked)
    size = model_size(
        config,
        batch_size=asked.batch_size,
        tokens=asked.tokens,
        bytes_per_value=2 if asked.dtype == "bfloat16" else 4,
        optimizer=asked.optimizer,
        attention=asked.attention,
    )
    chosen = {key: getattr(asked, key) for key in ("batch_size", "dtype", "optimizer", "attention")}
    result = Result(
        view="size",
        model=name,
        config=config,
        numbers={what: Numbers(("module",), [getattr(row, what) for row in size.rows]) for what in COUNTED}
        | {"training_flops": Numbers((), size.training_flops)},
        labels={"module": [row.name for row in size.rows]},
        settings=chosen | {"tokens": size.tokens},
    )
    head = f"size of {terminal.cut(name, 40)}: {size.batch_size} x {counted(size.tokens, 'token')}, {asked.dtype}"
    held = size.parameter_bytes + size.gradient_bytes + size.optimizer_bytes + size.activation_bytes
    sums = (
        f"{size.parameters:,} parameters; a step of training is {human(size.training_flops)}FLOPs",
        f"at least {human(held)}B to train, {human(size.parameter_bytes + size.kv_cache_bytes)}B to "
        "decode with a full cache",
    )
    return Answer(
        result, [head, *sums, "", *size.table().splitlines()], lambda: size.checks, lambda: _size_chart(size, head)
    )


def _size_chart(size: ModelSize, title: str) -> "plots.Figure":
    kinds = ("wte", "wpe", "attn", "mlp", "ln_", "lm_head", "loss")
    rows = {kind: [row for row in size.rows if kind in row.name] for kind in kinds}
    quantities = {what: [sum(getattr(row, what) for row in rows[kind]) for kind in kinds] for what in COUNTED}
    names = ["wte", "wpe", "attention", "MLPs", "norms", "lm_head", "loss"]
    units = {"parameters": "", "forward_flops": "FLOPs"}  # all others are bytes
    named = {
        f"{COUNTED[what]}: {human(sum(numbers), units.get(what, 'B'))}": numbers for what, numbers in quantities.items()
    }
    return plots.size_chart(names, named, title)


# --- arch


def view_arch(asked: settings.Arch) -> Answer:
    """`minigpt inspect arch`."""
    name, config = _shape(asked)
    size = model_size(config)
    stages = _stages(config)
    parameters = [sum(row.parameters for row in size.rows if row.name.startswith(prefix)) for prefix, _, _, _ in stages]
    result = Result(
        view="arch",
        model=name,
        config=config,
        numbers={"parameters": Numbers(("stage",), parameters)},
        labels={"stage": [stage for _, stage, _, _ in stages], "shape": [shape for _, _, shape, _ in stages]},
        settings={"diff": asked.diff},
    )
    rows = [
        ("    " * aside + stage, shape, f"{number:,}" if number else "")
        for (_, stage, shape, aside), number in zip(stages, parameters, strict=True)
    ]
    lines = [
        f"arch of {name}: {size.parameters:,} parameters",
        *terminal.table(("", "shape", "parameters"), rows, left=(0, 1)),
    ]
    if asked.diff:
        lines += ["", *_differences(config, _config_of(asked.diff), asked.diff)]
    drawn = [(stage, shape, aside) for _, stage, shape, aside in stages]
    return Answer(result, lines, lambda: size.checks, lambda: plots.block_diagram(drawn, lines[0]))


def _stages(config: GPTConfig) -> list[tuple[str, str, str, bool]]:
    """(prefix of the modules that are counted, description, shape of the output, whether beside the stream)."""
    c = config
    width = f"(B, T, {c.n_embd})"
    head = " tied to wte" if c.tie_weights else ""
    blocks: list[tuple[str, str, str, bool]] = []
    for name in ["h.0", f"h.{c.n_layer - 1}"][: c.n_layer]:
        blocks += [
            (f"{name}.ln_1", f"{name}.ln_1", width, True),
            (f"{name}.attn", f"{name}.attn, {counted(c.n_head, 'head')} of {c.n_embd // c.n_head}", width, True),
            ("-", "+", width, False),
            (f"{name}.ln_2", f"{name}.ln_2", width, True),
            (f"{name}.mlp", f"{name}.mlp, {4 * c.n_embd:,} neurons", width, True),
            ("-", "+", width, False),
        ]
    if c.n_layer > 2:
        between = f"h.1 ... h.{c.n_layer - 2}" if c.n_layer > 3 else "h.1"
        blocks.insert(6, ("-", f"{between}, alike", width, False))
    return [
        ("-", "idx", "(B, T)", False),
        ("wte", f"wte of {c.vocab_size:,} tokens", width, False),
        ("wpe", f"+ wpe of {c.block_size:,} positions", width, False),
        *blocks,
        ("ln_f", "ln_f", width, False),
        ("lm_head", f"lm_head{head}", f"(B, T, {c.vocab_size})", False),
    ]


def _differences(one: GPTConfig, other: GPTConfig, name: str) -> list[str]:
    ours, theirs = dataclasses.asdict(one), dataclasses.asdict(other)
    rows = [(key, str(ours[key]), str(theirs[key])) for key in ours if ours[key] != theirs[key]]
    if not rows:
        return [f"the same shape as {name}"]
    counts = [f"{model_size(config).parameters:,}" for config in (one, other)]
    return terminal.table(("setting", "this", terminal.cut(name, 40)), [*rows, ("parameters", *counts)])


# --- embed


def view_embed(asked: settings.Embed) -> Answer:
    """`minigpt inspect embed`."""
    return {"near": _near, "pca": _pca, "positions": _positions}[asked.what](asked)


def _near(asked: settings.Embed) -> Answer:
    it = load_subject(asked, needs_text=True)
    if asked.text is None:
        raise InputError("near whom? No token is named", 'give its text: minigpt inspect embed near " king"')
    token = it.one_token(asked.text, "TEXT")
    found = neighbours(it.model, token, asked.top, asked.kind, vocab_size=it.vocab_size)
    texts = it.names(found.ids)
    result = it.result(
        "embed",
        {"id": Numbers(("neighbour",), found.ids), "similarity": Numbers(("neighbour",), found.similarities)},
        labels={"neighbour": it.texts_of(found.ids)},
        settings={"what": "near", "token": asked.text, "kind": asked.kind},
    )
    top = max(map(abs, found.similarities)) or 1.0  # a row of zeros is near to nobody
    rows = [
        (str(token_id), terminal.cut(text, 16), f"{x:+.4f}", terminal.bar(abs(x) / top))
        for token_id, text, x in zip(found.ids, texts, found.similarities, strict=True)
    ]
    label = terminal.visible(asked.text)
    head = f"near {asked.text!r} in wte of {it.name}, by {asked.kind}"
    lines = [terminal.cut(head, terminal.WIDTH), *terminal.table(("id", "token", "similarity", ""), rows, left=(1, 3))]
    return Answer(
        result, lines, lambda: found.checks,
        lambda: plots.heat_map(
            [found.similarities], [label], texts, asked.kind, head, xlabel="neighbours",
        ),
    )  # fmt: skip


def _pca(asked: settings.Embed) -> Answer:
    it = load_subject(asked, needs_text=asked.text is not None)
    ids = range(it.vocab_size) if asked.text is None else sorted(set(read(it.tokenizer, asked.text)))
    if len(ids) < 3:
        raise InputError(f"{len(ids)} different tokens make no plane", "give a text of at least 3, or none for all")
    found = pca(it.model.wte.weight.detach().cpu()[list(ids)], 2)
    texts = it.texts_of(ids)
    result = it.result(
        "embed",
        {
            "id": Numbers(("token",), list(ids)),
            "projected": Numbers(("token", "component"), found.projected),
            "explained": Numbers(("component",), found.explained),
        },
        labels={"token": texts},
        settings={"what": "pca"},
    )
    shares: Sequence[float] = found.explained.tolist()
    lines = [
        f"{len(ids):,} rows of wte of {terminal.cut(it.name, 40)}",
        f"component 1 has {shares[0]:.1%} of the variance, component 2 {shares[1]:.1%}",
        *_ends(texts, found.projected[:, 0].tolist(), "component 1"),
        *_ends(texts, found.projected[:, 1].tolist(), "component 2"),
    ]
    return Answer(result, lines, lambda: found.checks, lambda: plots.scatter(found.projected, texts, shares, lines[0]))


def _ends(texts: Sequence[str], values: Sequence[float], what: str) -> list[str]:
    """The tokens at both ends of an axis."""
    order = sorted(range(len(texts)), key=lambda place: values[place])
    names = [terminal.visible(texts[place]) for place in order]
    ends = " ".join(names[:12]), " ".join(names[-12:])
    return [terminal.cut(line, terminal.WIDTH) for line in (f"{what} from {ends[0]}", f"    to {ends[1]}")]


def _positions(asked: settings.Embed) -> Answer:
    it = load_subject(asked)
    found = position_similarity(it.model)
    cosines = found.cosines.cpu()
    places = [str(place) for place in range(len(cosines))]
    result = it.result(
        "embed",
        {"cosine": Numbers(("position", "other position"), cosines)},
        settings={"what": "positions"},
    )
    head = f"cosine between positions, wpe of {terminal.cut(it.name, 40)}"
    lines = [head, *terminal.shaded(cosines.clamp(min=0), places)]
    return Answer(
        result, lines, lambda: found.checks,
        lambda: plots.heat_map(cosines, places, places, "cosine", head, signed=True),
    )  # fmt: skip


# --- shapes


def _shape(asked: settings.Shape) -> tuple[str, GPTConfig]:
    """The shape that --preset or --model names, and its name."""
    name = asked.preset or model_source(asked.model).name
    config = _config_of(name)
    changes = dict(_change(text) for text in asked.what_if)
    changed = updated(config, changes) if changes else config
    return " ".join([name, *asked.what_if]), changed


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    try:
        return name, {"true": True, "false": False}[value] if value in ("true", "false") else int(value)
    except ValueError:
        raise ConfigError(
            f"--what-if {text} is no change" + ("" if equals else ": it has no ="),
            "write NAME=VALUE with a whole number, true or false: n_layer=24",
        ) from None


def _config_of(spec: str) -> GPTConfig:
    """The shape of a preset or a model; weights are read only if nothing else shows it."""
    return preset(spec).model if spec in PRESETS else open_source(spec).shape(rates_may_differ=True)
