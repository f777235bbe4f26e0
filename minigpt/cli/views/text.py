"""`minigpt inspect tokens` and `loss`: a text, token by token."""

from minigpt.analysis import plots
from minigpt.analysis.checks import measured
from minigpt.analysis.lens import token_losses
from minigpt.analysis.results import Numbers, Result
from minigpt.cli.models import tokenized
from minigpt.cli.streams import with_stdin
from minigpt.cli.texts import token_text
from minigpt.cli.views import settings
from minigpt.cli.views.frame import Answer, subject
from minigpt.errors import InputError, counted
from minigpt.system import terminal

# --- tokens


def view_tokens(asked: settings.Tokens) -> Answer:
    """`minigpt inspect tokens`."""
    (text,) = with_stdin(asked.prompt)
    name, tokenizer, ids = tokenized(asked, asked.model, text)
    if not ids:
        raise InputError("the text is empty: it has no tokens", "give some text")
    texts = [token_text(tokenizer, token_id, "backslashreplace") for token_id in ids]
    spelled = [tokenizer.token_bytes(token_id) for token_id in ids]
    lengths = list(map(len, spelled))
    result = Result(
        view="tokens",
        model=name,
        config=None,
        numbers={"bytes": Numbers(("token",), lengths)},
        prompt=text,
        bos=False,
        tokens=list(zip(ids, texts, strict=True)),
        settings={"vocab_size": tokenizer.vocab_size},
    )
    rows = [
        (str(place), str(token_id), terminal.cut(terminal.visible(token), 20), terminal.cut(own.hex(" "), 36))
        for place, (token_id, token, own) in enumerate(zip(ids, texts, spelled, strict=True))
    ]
    lines = [
        f"{terminal.cut(name, 30)}: {counted(len(ids), 'token')}, {counted(sum(lengths), 'byte')}, BOS in front: no",
        *terminal.table(("position", "id", "token", "bytes"), rows, left=(2, 3)),
    ]
    different = float(tokenizer.decode(ids, skip_special=False) != text)
    return Answer(result, lines, lambda: [measured("decode(encode(text)) = text", different, 0.0)], None)


# --- loss


def view_loss(asked: settings.Loss) -> Answer:
    """`minigpt inspect loss`."""
    it = subject(asked, asked.prompt)
    found = token_losses(it.model, it.ids, it.vocab_size)
    losses = found.losses.tolist()
    ids, probs = (x.tolist() for x in found.top(asked.top))
    order = sorted(range(len(losses)), key=lambda place: -losses[place])[: asked.worst]
    of_text = [token_id for token_id in it.ids[1:] if token_id not in it.tokenizer.special_ids]
    num_bytes = sum(len(it.tokenizer.token_bytes(token_id)) for token_id in of_text)
    bits = found.bits_per_byte(num_bytes) if num_bytes else None
    result = it.result(
        "loss",
        {
            "loss": Numbers(("predicted",), found.losses),
            "entropy": Numbers(("predicted",), found.entropy),
            "cumulative": Numbers(("predicted",), found.cumulative),
            "costliest": Numbers(("rank",), [place + 1 for place in order]),
            "alternative_id": Numbers(("predicted", "alternative"), ids),
            "alternative_probability": Numbers(("predicted", "alternative"), probs),
            "mean": Numbers((), found.mean),
            "perplexity": Numbers((), found.perplexity),
            **({} if bits is None else {"bits_per_byte": Numbers((), bits)}),
        },
        labels={"predicted": it.texts[1:]},
    )
    names = it.names(it.ids)
    rows = [(str(place + 1), terminal.cut(names[place + 1], 12), f"{losses[place]:.3f}") for place in order]
    expected = [it.likely(ids[place], probs[place], 12, 3) for place in order]
    lines = [
        it.header("loss"),
        f"mean {found.mean:.4f} nats a token, perplexity {found.perplexity:.4g}, "
        f"{terminal.decimals(bits, 3)} bits a byte",
        "",
        *_strip(names, losses),
        "",
        "the costliest:",
        *terminal.table(("position", "token", "loss", "the model expected"), rows, left=(1, 3), pieces=expected),
    ]
    title = f"{it.header('loss')}, mean {found.mean:.3f} nats"
    return Answer(result, lines, lambda: found.checks, lambda: plots.loss_strip(it.texts, losses, title))


def _strip(names: list[str], losses: list[float]) -> list[str]:
    """The text, with a shade below each token for its loss."""
    lines, text, marks = [], "", ""
    top = max(losses)
    for name, loss in zip(names, [0.0, *losses], strict=True):
        name = terminal.cut(name, 20)
        width = terminal.columns(name)
        if terminal.columns(text) + width > terminal.WIDTH:
            lines += [text, marks]
            text, marks = "", ""
        text, marks = text + name, marks + terminal.shade(loss, top) * width
    return [*lines, text, marks, terminal.legend(top, "nats")]
