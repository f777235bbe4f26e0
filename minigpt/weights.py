"""Weights to and from a `.safetensors` file: no pickle, a tied tensor stored once, every mismatch named at once."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from minigpt.errors import CheckpointError, MissingFileError
from minigpt.files import atomic_write
from minigpt.model import GPT


def state_to_save(model: GPT) -> dict[str, Tensor]:
    """The model's weights by name, on the CPU, a tied head left out: it is `wte.weight`."""
    return {name: tensor.cpu().contiguous() for name, tensor in _own_tensors(model).items()}


def save_weights(model: GPT, path: Path) -> None:
    """Write the model's weights, whole or not at all."""
    with atomic_write(path) as file:
        file.write(safetensors.torch.save(state_to_save(model), metadata={"format": "pt"}))


def load_weights(model: GPT, path: Path) -> None:
    """Read weights that `save_weights` wrote into a model of the same shape.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if the file is damaged, or its names or shapes are not the model's; all differences are
            named, and the model is as it was.
    """
    if not path.is_file():
        raise MissingFileError(f"no weights at {path}", "a finished run has a model.safetensors: check the path")
    try:
        state = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} ({size:,} bytes) is damaged or no safetensors file: {error}",
            "take the copy in the run's last/ folder, or train again",
        ) from None
    problems = mismatches({name: tensor.shape for name, tensor in state.items()}, model)
    if problems:
        raise CheckpointError(
            f"{path} does not hold this model's weights: {'; '.join(problems)}",
            "use the config.yaml that lies beside these weights",
        )
    with torch.no_grad():
        targets = dict(model.state_dict())
        for name, tensor in state.items():
            targets[name].copy_(tensor)  # in place: tied parameters stay tied


def mismatches(found: Mapping[str, torch.Size], model: GPT) -> list[str]:
    """What keeps tensors of these names and shapes from being this model's weights; empty if nothing does."""
    expected = {name: tensor.shape for name, tensor in _own_tensors(model).items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [f"{name} is not part of the model" for name in found if name not in expected]
    for name, shape in expected.items():
        if name in found and found[name] != shape:
            problems.append(f"{name} has shape {tuple(found[name])}, expected {tuple(shape)}")
    return problems


def _own_tensors(model: GPT) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = model.state_dict()
    if model.config.tie_weights:
        del tensors["lm_head.weight"]
    return tensors
