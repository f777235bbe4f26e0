"""The points of a model that can be read and changed from outside: one table, their names, and where each is taken.

`trace` and `edit` are wired from this table, the documentation's page is printed from it, and the tests walk over it.
Letters as in `model.py`. In every shape, axis -2 is the position, and the last axis holds the values of one position
(in scores and pattern: one for each key).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal

from minigpt.config import GPTConfig
from minigpt.errors import InputError, counted, either, named, near
from minigpt.fields import checked

Where = Literal["output", "input", "heads", "argument", "inside", "scale", "product"]


class PointError(InputError, KeyError):
    """There is no point of that name, or a trace has not recorded it."""


@dataclass(frozen=True)
class Tap:
    """A row of the table: a point, in every layer that has it.

    Attributes:
        name: with {l} in the place of the layer.
        shape: one letter or number a dimension.
        where: how it is taken: the "input" or "output" of the module; "heads": its input, split into heads; "scale":
            worked out from its input; "argument", "inside": in the attention core; "product": worked out when it is
            read.
        module: its path in the model.
        alias: TransformerLens's name for it, which courses use, or "".
        meaning: what it is, in one line.
    """

    name: str
    shape: str
    where: Where
    module: str
    alias: str
    meaning: str

    @property
    def editable(self) -> bool:
        """Whether it lies on the model's way to the logits, and is not worked out beside it."""
        return self.where not in ("scale", "product")


TAPS = (
    Tap("embed", "B T C", "output", "wte", "hook_embed", "the tokens' embeddings"),
    Tap("pos_embed", "T C", "output", "wpe", "hook_pos_embed", "the positions' embeddings, the same for every row"),
    Tap("blocks.{l}.resid_pre", "B T C", "input", "h.{l}", "blocks.{l}.hook_resid_pre",
        "the residual stream before the block"),
    Tap("blocks.{l}.ln_1.scale", "B T 1", "scale", "h.{l}.ln_1", "blocks.{l}.ln1.hook_scale",
        "what the norm divides by: sqrt(variance + 1e-5)"),
    Tap("blocks.{l}.ln_1.out", "B T C", "output", "h.{l}.ln_1", "blocks.{l}.ln1.hook_normalized",
        "the stream normalised, as attention reads it"),
    Tap("blocks.{l}.attn.q", "B H T D", "argument", "h.{l}.attn", "blocks.{l}.attn.hook_q", "queries"),
    Tap("blocks.{l}.attn.k", "B H S D", "argument", "h.{l}.attn", "blocks.{l}.attn.hook_k",
        "keys, those from the cache included"),
    Tap("blocks.{l}.attn.v", "B H S D", "argument", "h.{l}.attn", "blocks.{l}.attn.hook_v",
        "values, those from the cache included"),
    Tap("blocks.{l}.attn.scores", "B H T S", "inside", "h.{l}.attn", "blocks.{l}.attn.hook_attn_scores",
        "q @ k^T / sqrt(D), -inf where the mask hides a key; masked again after an edit"),
    Tap("blocks.{l}.attn.pattern", "B H T S", "inside", "h.{l}.attn", "blocks.{l}.attn.hook_pattern",
        "softmax of the scores: how much each query takes from each key"),
    Tap("blocks.{l}.attn.z", "B H T D", "heads", "h.{l}.attn.c_proj", "blocks.{l}.attn.hook_z",
        "the values that each head has mixed"),
    Tap("blocks.{l}.attn.head_out", "B H T C", "product", "h.{l}.attn.c_proj", "blocks.{l}.attn.hook_result",
        "what each head adds to the stream; attn.out is their sum and the bias"),
    Tap("blocks.{l}.attn.out", "B T C", "output", "h.{l}.attn", "blocks.{l}.hook_attn_out",
        "what attention adds to the stream"),
    Tap("blocks.{l}.resid_mid", "B T C", "input", "h.{l}.ln_2", "blocks.{l}.hook_resid_mid",
        "the residual stream between attention and MLP"),
    Tap("blocks.{l}.ln_2.scale", "B T 1", "scale", "h.{l}.ln_2", "blocks.{l}.ln2.hook_scale",
        "what the norm divides by: sqrt(variance + 1e-5)"),
    Tap("blocks.{l}.ln_2.out", "B T C", "output", "h.{l}.ln_2", "blocks.{l}.ln2.hook_normalized",
        "the stream normalised, as the MLP reads it"),
    Tap("blocks.{l}.mlp.pre", "B T 4C", "output", "h.{l}.mlp.c_fc", "blocks.{l}.mlp.hook_pre",
        "the neurons before the GELU"),
    Tap("blocks.{l}.mlp.post", "B T 4C", "input", "h.{l}.mlp.c_proj", "blocks.{l}.mlp.hook_post",
        "the neurons after the GELU"),
    Tap("blocks.{l}.mlp.out", "B T C", "output", "h.{l}.mlp", "blocks.{l}.hook_mlp_out",
        "what the MLP adds to the stream"),
    Tap("blocks.{l}.resid_post", "B T C", "output", "h.{l}", "blocks.{l}.hook_resid_post",
        "the residual stream after the block"),
    Tap("ln_f.scale", "B T 1", "scale", "ln_f", "ln_final.hook_scale",
        "what the last norm divides by: sqrt(variance + 1e-5)"),
    Tap("ln_f.out", "B T C", "output", "ln_f", "ln_final.hook_normalized",
        "the stream normalised, as the output head reads it"),
    Tap("logits", "B T V", "output", "lm_head", "",
        "scores of the next token, at the positions that the output head computes"),
)  # fmt: skip

_ROWS = {tap.name: tap for tap in TAPS}


@checked
def points(config: GPTConfig) -> list[str]:
    """The names of all points of a model, in the order of the forward pass."""
    return list(dict.fromkeys(_names(config.n_layer).values()))


def resolve(patterns: str | Sequence[str], config: GPTConfig) -> list[str]:
    """The points that names or globs stand for, each once, in the order of the forward pass.

    Args:
        patterns: one or several; `*`, `?` and `[...]` as in file names, where `*` also runs over dots. The names of
            TransformerLens are accepted too.
        config: the model's shape.

    Raises:
        PointError: if one of them matches nothing; the error names the most similar points.
    """
    names, wanted = _names(config.n_layer), set()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        found = {name for known, name in names.items() if fnmatchcase(known, pattern)}
        if not found:
            raise _unknown(pattern, config)
        wanted |= found
    return [name for name in points(config) if name in wanted]


def find(name: str, config: GPTConfig) -> str:
    """The point of exactly this name, ours or TransformerLens's.

    Raises:
        PointError: if there is none; the error names the most similar points.
    """
    try:
        return _names(config.n_layer)[name]
    except KeyError:
        raise _unknown(name, config) from None


def tap(name: str) -> Tap:
    """The row of the table that a point of `points` belongs to."""
    return _ROWS[re.sub(r"^blocks\.\d+\.", "blocks.{l}.", name)]


def exists(name: object) -> bool:
    """Whether a model of enough layers has a point of this name, ours or TransformerLens's."""
    return isinstance(name, str) and re.sub(r"^blocks\.\d+\.", "blocks.0.", name) in _names(1)


def module_path(name: str) -> str:
    """The path of the module at which a point is taken."""
    return tap(name).module.replace("{l}", name.split(".")[1] if name.startswith("blocks.") else "")


def shape(name: str, config: GPTConfig, B: int, T: int, S: int) -> tuple[int, ...]:
    """The shape of a point of `points`, for B rows, T tokens and S keys."""
    sizes = {"1": 1, "B": B, "T": T, "S": S, "C": config.n_embd, "4C": 4 * config.n_embd, "H": config.n_head}
    sizes |= {"D": config.n_embd // config.n_head, "V": config.vocab_size}
    return tuple(sizes[letter] for letter in tap(name).shape.split())


@cache
def _names(n_layer: int) -> Mapping[str, str]:
    """Every name, ours first, and the point it stands for."""
    blocks = [tap for tap in TAPS if "{l}" in tap.name]
    first, last = TAPS.index(blocks[0]), TAPS.index(blocks[-1]) + 1
    rows = [(tap, "") for tap in TAPS[:first]]
    rows += [(tap, str(layer)) for layer in range(n_layer) for tap in blocks]
    rows += [(tap, "") for tap in TAPS[last:]]
    own = {tap.name.replace("{l}", layer): tap.name.replace("{l}", layer) for tap, layer in rows}
    theirs = {tap.alias.replace("{l}", layer): tap.name.replace("{l}", layer) for tap, layer in rows if tap.alias}
    return own | theirs


def what_there_is(config: GPTConfig) -> str:
    """The numbers of a model's blocks and heads, for the second line of an error."""
    heads = "head 0" if config.n_head == 1 else f"heads 0 to {config.n_head - 1}"
    if config.n_layer == 1:
        return f"there is block 0, {heads} in it"
    return f"there are blocks 0 to {config.n_layer - 1}, {heads} in each"


def _unknown(pattern: str, config: GPTConfig) -> PointError:
    layer = re.match(r"blocks\.(\d+)\.", pattern)
    if layer and int(layer[1]) >= config.n_layer:
        return PointError(
            f"{pattern!r} asks for layer {layer[1]}, and the model has {counted(config.n_layer, 'layer')}",
            what_there_is(config),
        )
    return PointError(
        f"there is no point {pattern!r}",
        either(
            near(pattern, _names(config.n_layer), most=3) + "docs/internals.md lists them all",
            named("minigpt.analysis.points(model.config)"),
        ),
    )
