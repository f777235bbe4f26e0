"""The proof that our model computes what transformers' model computes: both read the same ids, and layers are compared.

transformers is imported only when a comparison is made.
"""

import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.errors import CheckpointError, ConfigError, first_line
from minigpt.model import GPT
from minigpt.system.files import listed

BOUND = 1e-3  # the largest difference that rounding may make in values of up to 100, such as GPT-2's logits
RELATIVE_BOUND = 1e-5  # the same for larger values, relative to them: GPT-2's residual stream has values in thousands


@dataclass(frozen=True)
class LayerParity:
    """The comparison at one place in the model.

    Attributes:
        name: embedding, block 0, ..., final norm, logits.
        difference: the largest absolute difference from transformers.
        size: the largest absolute value that transformers has there.
    """

    name: str
    difference: float
    size: float

    @property
    def bound(self) -> float:
        """The largest difference that rounding can make."""
        return max(BOUND, RELATIVE_BOUND * self.size)

    @property
    def agrees(self) -> bool:
        """Whether the difference is at most `bound`; False if it is NaN."""
        return self.difference <= self.bound


@dataclass(frozen=True)
class ParityReport:
    """A comparison of two models on the same ids.

    Attributes:
        layers: the comparisons, from the embedding to the logits.
        tokens: number of positions that were compared.
        same_argmax: number of positions at which both models find the same token most probable.
    """

    layers: tuple[LayerParity, ...]
    tokens: int
    same_argmax: int

    @property
    def first_difference(self) -> LayerParity | None:
        """The first layer that differs, which makes later ones differ too; None if all agree."""
        return next((layer for layer in self.layers if not layer.agrees), None)


def require_transformers() -> None:
    """Check that transformers is installed.

    Raises:
        ConfigError: if transformers is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ConfigError(
            "a comparison with transformers needs the transformers library, which is not installed",
            "install it: pip install 'transformers>=5'",
        )


def compare_with_transformers(model: GPT, folder: Path, ids: Tensor) -> ParityReport:
    """Run the same ids through `model` and the model that transformers loads from `folder`, in float32 on the CPU.

    Args:
        model: ours, on the CPU, in evaluation mode.
        folder: in transformers' layout. Nothing is downloaded.
        ids: int64 (B, T), T at most the block_size of either model.

    Raises:
        ConfigError: if transformers is not installed.
        CheckpointError: if transformers cannot read the folder.
    """
    theirs = _load_theirs(folder)
    places = {"embedding": "drop"}
    places |= {f"block {layer}": f"h.{layer}" for layer in range(model.config.n_layer)}
    places |= {"final norm": "ln_f"}  # the names of these modules are the same in both
    trunk = theirs.get_submodule("transformer")
    with torch.no_grad(), _outputs(model, places.values()) as ours_at, _outputs(trunk, places.values()) as theirs_at:
        logits, their_logits = model(ids), theirs(ids, use_cache=False).logits  # (B, T, V)
    layers = [_compared(name, ours_at[path], theirs_at[path]) for name, path in places.items()]
    layers.append(_compared("logits", logits, their_logits))
    same_argmax = int((logits.argmax(-1) == their_logits.argmax(-1)).sum())
    return ParityReport(tuple(layers), ids.numel(), same_argmax)


def _compared(name: str, ours: Tensor, theirs: Tensor) -> LayerParity:
    return LayerParity(name, (ours - theirs).abs().max().item(), theirs.abs().max().item())


@contextmanager
def _outputs(root: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the submodules at these paths, recorded inside the `with`; their hooks are removed at its end."""
    seen: dict[str, Tensor] = {}

    def keep(path: str, _module: nn.Module, _args: object, output: Tensor) -> None:
        seen[path] = output

    with ExitStack() as hooks:
        for path in paths:
            hooks.enter_context(root.get_submodule(path).register_forward_hook(partial(keep, path)))
        yield seen


def _load_theirs(folder: Path) -> nn.Module:
    """The model that transformers loads, without its log messages and progress bars."""
    require_transformers()
    import transformers

    log: Any = transformers.utils.logging  # has no types
    kind: Any = transformers.GPT2LMHeadModel  # its types do not know the second value that from_pretrained returns
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        theirs, said = kind.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the transformers library cannot read {folder}: {first_line(error, 200)}",
            "compare with a folder that it wrote itself, or with one from minigpt export",
        ) from error
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
    unread = [*said["missing_keys"], *said["unexpected_keys"]]
    if unread:  # the library would use random values for the weights that it has not found
        raise CheckpointError(
            f"the transformers library cannot read the names in {folder}: {listed(sorted(unread))}",
            "compare with an export instead: minigpt export, and then the comparison with its folder",
        )
    model: nn.Module = theirs.eval()
    return model
