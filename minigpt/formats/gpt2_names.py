"""GPT-2's weights under our names and under those of transformers: one table, and views of a model's weights by it."""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from minigpt.model import GPT
from minigpt.parameters import own_tensors


class Name(NamedTuple):
    """The names of a weight; {i} stands for the layer.

    Attributes:
        ours: its name here.
        theirs: its name in transformers.
        conv1d: whether transformers stores it as (in, out), in a module called Conv1D; nn.Linear has (out, in).
    """

    ours: str
    theirs: str
    conv1d: bool = False


NAME_TABLE = (
    Name("wte.weight", "transformer.wte.weight"),
    Name("wpe.weight", "transformer.wpe.weight"),
    Name("h.{i}.ln_1.weight", "transformer.h.{i}.ln_1.weight"),
    Name("h.{i}.ln_1.bias", "transformer.h.{i}.ln_1.bias"),
    Name("h.{i}.attn.c_attn.weight", "transformer.h.{i}.attn.c_attn.weight", conv1d=True),
    Name("h.{i}.attn.c_attn.bias", "transformer.h.{i}.attn.c_attn.bias"),
    Name("h.{i}.attn.c_proj.weight", "transformer.h.{i}.attn.c_proj.weight", conv1d=True),
    Name("h.{i}.attn.c_proj.bias", "transformer.h.{i}.attn.c_proj.bias"),
    Name("h.{i}.ln_2.weight", "transformer.h.{i}.ln_2.weight"),
    Name("h.{i}.ln_2.bias", "transformer.h.{i}.ln_2.bias"),
    Name("h.{i}.mlp.c_fc.weight", "transformer.h.{i}.mlp.c_fc.weight", conv1d=True),
    Name("h.{i}.mlp.c_fc.bias", "transformer.h.{i}.mlp.c_fc.bias"),
    Name("h.{i}.mlp.c_proj.weight", "transformer.h.{i}.mlp.c_proj.weight", conv1d=True),
    Name("h.{i}.mlp.c_proj.bias", "transformer.h.{i}.mlp.c_proj.bias"),
    Name("ln_f.weight", "transformer.ln_f.weight"),
    Name("ln_f.bias", "transformer.ln_f.bias"),
    Name("lm_head.weight", "lm_head.weight"),
)


def names(n_layer: int) -> Iterator[Name]:
    """The rows of `NAME_TABLE` for a model of `n_layer` layers."""
    for name in NAME_TABLE:
        for i in range(n_layer if "{i}" in name.ours else 1):
            yield Name(name.ours.format(i=i), name.theirs.format(i=i), name.conv1d)


def transformers_views(model: GPT, conv1d: bool = True) -> dict[str, Tensor]:
    """The model's weights under transformers' names, a tied head left out.

    They are views in transformers' orientation: writing into them changes the model.

    Args:
        model: the model.
        conv1d: False for the same names in nn.Linear's orientation, as in nanoGPT.
    """
    own = own_tensors(model)
    return {
        name.theirs: own[name.ours].T if conv1d and name.conv1d else own[name.ours]
        for name in names(model.config.n_layer)
        if name.ours in own
    }
