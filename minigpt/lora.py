"""LoRA: low-rank adaptation of a frozen model (Hu et al., 2021).

Fine-tuning adds some ΔW to a weight matrix W, and a ΔW of low rank is enough, as sections 4.1 and 7.2 of the paper
show. So W stays as it is, and two thin matrices are trained instead::

    x (..., in) --+--> W, bias -----------------------------------------> (+) --> y (..., out)
                  |                                                        |
                  +--> dropout --> A (R, in) --> B (out, R) --> * alpha/R -+

B starts at zero, so the model starts as the base, to the bit. On GPT-2 small, rank 8 on c_attn trains 294,912 numbers
in the place of 124 million, and a file of an adapter holds no others. Several adapters may hang on one base; one or
none is in use. The one in use is trained, all else is frozen.

The model's code knows nothing of this: a `LoRALinear` stands where an nn.Linear stood, around the same weights, which
keep their names.
"""

import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from minigpt.config import LoRAConfig, Seed
from minigpt.dropout import Dropout
from minigpt.errors import ConfigError, did_you_mean, named
from minigpt.fields import checked
from minigpt.model import GPT
from minigpt.parameters import (
    Known,
    as_built,
    came_with,
    check_not_packed,
    empty_model,
    keep_settings,
    original,
    own_tensors,
)
from minigpt.parameters import trainable_parameters as trainable_parameters
from minigpt.system.files import listed

__all__ = ["LoRALinear", "LowRank", "add_lora", "adapters", "merge", "merged", "set_adapter", "unmerge"]

# --- a layer


class LowRank(nn.Module):
    """What an adapter adds to one layer: x -> alpha / R * B A dropout(x).

    Args:
        config: its shape.
        layer: the layer, whose dtype, device and mode it takes.

    Attributes:
        A: (R, in), zero until `draw` or a file fills it.
        B: (out, R), likewise zero.
    """

    def __init__(self, config: LoRAConfig, layer: nn.Linear) -> None:
        super().__init__()
        self.config = config
        self.scale = config.alpha / config.rank
        self.dropout = Dropout(config.dropout)
        self.A = nn.Parameter(layer.weight.new_zeros(config.rank, layer.in_features))
        self.B = nn.Parameter(layer.weight.new_zeros(layer.out_features, config.rank))
        self.train(layer.training)

    @torch.no_grad()
    def draw(self, generator: torch.Generator) -> None:
        """Fill A as the paper's own code does: kaiming_uniform_ with a = sqrt(5), which is within 1 / sqrt(in)."""
        bound = 1 / math.sqrt(self.A.size(1))
        # Drawn on the CPU in float32, so that a seed means the same adapter on every device and in every dtype.
        self.A.copy_(torch.empty(self.A.shape).uniform_(-bound, bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.dropout(x) @ self.A.T @ self.B.T * self.scale  # (..., in) -> (..., R) -> (..., out)

    def delta(self) -> Tensor:
        """ΔW (out, in), which adds the same outside training; in float64, on the CPU."""
        return self.B.cpu().double() @ self.A.cpu().double() * self.scale


class LoRALinear(nn.Linear):
    """A linear layer with adapters, each a submodule `lora_NAME`.

    Args:
        base: the layer in whose place this one comes. Weight and bias are shared with it.

    Attributes:
        active: the name of the adapter in use, which need not adapt this layer; None for the base.
        unmerged: while an adapter is merged into `weight`, what `weight` was; no part of the state dict.
    """

    unmerged: Tensor | None

    def __init__(self, base: nn.Linear) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would draw weights that are then replaced
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.active: str | None = None
        self.register_buffer("unmerged", None, persistent=False)
        self.train(base.training)

    def adapters(self) -> dict[str, LowRank]:
        """Those of this layer, by name."""
        return {name.removeprefix("lora_"): part for name, part in self.named_children() if isinstance(part, LowRank)}

    def in_use(self) -> LowRank | None:
        """The adapter that computes beside `weight`."""
        if self.active is None or self.unmerged is not None:
            return None
        return getattr(self, f"lora_{self.active}", None)

    def plain(self, x: Tensor) -> Tensor:
        """What the layer computes without an adapter: (..., in) -> (..., out)."""
        return super().forward(x)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y, part = self.plain(x), self.in_use()
        return y if part is None else y + part(x)

    def merged_weight(self) -> Tensor:
        """The weight (out, in) of a plain layer that computes the same.

        It is rounded once, from float64, so that it does not depend on the processor: another adapter may have it as
        its base, and know that by a checksum.
        """
        part = self.in_use()
        return self.weight if part is None else (self.weight.cpu().double() + part.delta()).to(self.weight)


KNOWN: Known = {LoRALinear: (nn.Linear, (LowRank, Tensor))}  # what adapters change in a GPT; the Tensor is `unmerged`

# --- a model


@checked
def add_lora(model: GPT, config: LoRAConfig, seed: Seed, name: str = "default") -> list[str]:
    """Put a new adapter on a model, take it into use, and freeze all else. The logits stay the same, to the bit.

    Args:
        model: changed in place; its weights keep their values and their names.
        config: which layers, and how.
        seed: of the first values.
        name: what to call the adapter: letters, digits, - and _.

    Returns:
        The names of the layers that it adapts.

    Raises:
        ConfigError: if a target matches no linear layer of the blocks, the rank is above that of a layer, the name is
            taken or unusable, or an adapter is merged.
    """
    known = list(adaptable(model))
    for target in config.targets:
        if not matching(known, [target]):
            kinds = [layer.removeprefix("h.0.") for layer in known if layer.startswith("h.0.")]
            raise ConfigError(
                f"the target {target!r} matches no linear layer of the blocks h.0 to h.{model.config.n_layer - 1}",
                did_you_mean(target, kinds),
            )
    adapter = new_adapter(model, config, matching(known, config.targets), name)
    generator = torch.Generator().manual_seed(seed)
    for part in adapter.values():
        part.draw(generator)
    attach(model, adapter, name)
    return list(adapter)


def lora_layers(model: GPT) -> dict[str, LoRALinear]:
    """The layers with adapters, by their names in the model."""
    return {name: module for name, module in original(model).named_modules() if isinstance(module, LoRALinear)}


@checked
def adapters(model: GPT) -> dict[str, LoRAConfig]:
    """The adapters of a model, by name."""
    return {name: part.config for layer in lora_layers(model).values() for name, part in layer.adapters().items()}


@checked
def set_adapter(model: GPT, name: str | None) -> None:
    """Take an adapter into use, to generate with or to train; None is the base.

    Raises:
        ConfigError: if there is no such adapter, or one is merged.
    """
    check_unmerged(model)
    if name is not None:
        check_known(model, name)
    for layer in lora_layers(model).values():
        layer.active = name
        for other, part in layer.adapters().items():
            part.requires_grad_(other == name)


@checked
@torch.no_grad()
def merge(model: GPT) -> None:
    """Make W + ΔW the weights, so that the adapter in use costs no time. Nothing can be trained until `unmerge`.

    Raises:
        ConfigError: if no adapter is in use, or one is merged already.
    """
    check_unmerged(model)
    layers = [layer for layer in lora_layers(model).values() if layer.in_use() is not None]
    if not layers:
        raise ConfigError("no adapter is in use, so there is none to merge", _choices(model))
    for layer in layers:
        merged_weight = layer.merged_weight()
        layer.unmerged = layer.weight.clone()  # W + ΔW - ΔW would not be W, to the bit
        layer.weight.copy_(merged_weight)


@checked
@torch.no_grad()
def unmerge(model: GPT) -> None:
    """Put the weights back to what they were before `merge`, to the bit; the adapter computes beside them again.

    Raises:
        ConfigError: if no adapter is merged.
    """
    if not _is_merged(model):
        raise ConfigError("no adapter is merged into the weights of this model", "leave it as it is")
    for layer in lora_layers(model).values():
        if layer.unmerged is not None:
            layer.weight.copy_(layer.unmerged)
            layer.unmerged = None


@checked
@torch.no_grad()
def merged(model: GPT) -> GPT:
    """A plain GPT with weights of its own that computes the same, in evaluation mode.

    Raises:
        InputError: if the model has other parts than a GPT and adapters: see `parameters.as_built`.
    """
    model = as_built(model, KNOWN)
    weights = own_tensors(model)
    weights |= {f"{name}.weight": layer.merged_weight() for name, layer in lora_layers(model).items()}
    plain = empty_model(model.config).to(model.wte.weight)
    for name, target in own_tensors(plain).items():
        target.copy_(weights[name])
    keep_settings(plain, came_with(model))
    return plain.eval()


def without_adapters(model: GPT) -> GPT:
    """What to write as a model: the model itself, or if it has adapters, `merged` of it. Raises as `merged`."""
    check_not_packed(model, "a file of weights")
    return merged(model) if lora_layers(model) else as_built(model, KNOWN)


def adaptable(model: GPT) -> dict[str, nn.Linear]:
    """The linear layers of the blocks. Not the head: it is the token embedding too, and an adapter would untie them."""
    check_not_packed(model, "an adapter")
    layers = original(model).named_modules()
    return {path: layer for path, layer in layers if path.startswith("h.") and isinstance(layer, nn.Linear)}


def matching(layers: Sequence[str], targets: Sequence[str]) -> list[str]:
    """The layers whose name, or its end behind a dot, matches one of the globs."""
    globs = [glob for target in targets for glob in (target, f"*.{target}")]
    return [layer for layer in layers if any(fnmatchcase(layer, glob) for glob in globs)]


def new_adapter(model: GPT, config: LoRAConfig, layers: Sequence[str], name: str) -> dict[str, LowRank]:
    """An adapter that is no part of the model yet, layer by layer."""
    check_unmerged(model)
    if not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(f"an adapter cannot be called {name!r}", "use letters, digits, - and _")
    if name in adapters(model):
        raise ConfigError(f"the model has an adapter {name!r} already", "choose another name")
    full_rank = model.config.n_embd  # the smaller side of every layer is n_embd
    if config.rank > full_rank:  # which also keeps a file from asking for any amount of memory
        raise ConfigError(
            f"{named('rank', config.rank)} is more than a layer's own, {full_rank}", "choose a smaller one"
        )
    by_name = adaptable(model)
    return {path: LowRank(config, by_name[path]) for path in layers}


def attach(model: GPT, adapter: Mapping[str, LowRank], name: str) -> None:
    """Make an adapter a part of the model, freeze all else, and take it into use."""
    model.requires_grad_(False)
    by_name = adaptable(model)
    for path, part in adapter.items():
        layer = by_name[path]
        if not isinstance(layer, LoRALinear):
            layer = LoRALinear(layer)
            original(model).set_submodule(path, layer)
        layer.add_module(f"lora_{name}", part)
    set_adapter(model, name)


def _is_merged(model: GPT) -> bool:
    return any(layer.unmerged is not None for layer in lora_layers(model).values())


def check_unmerged(model: GPT) -> None:
    """Raise ConfigError if an adapter is merged."""
    if _is_merged(model):
        raise ConfigError("an adapter is merged into the weights of this model", "unmerge it first")


def check_known(model: GPT, name: str) -> None:
    """Raise ConfigError if the model has no adapter of this name."""
    if name not in adapters(model):
        raise ConfigError(f"the model has no adapter {name!r}", _choices(model))


def _choices(model: GPT) -> str:
    known = list(adapters(model))
    return f"choose one that it has: {listed(known)}" if known else "add or load one first"
