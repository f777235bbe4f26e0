"""Whether it is a model; its tensors, each once; and a model whose tensors wait for their values."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from minigpt.config import GPTConfig
from minigpt.errors import InputError, brief
from minigpt.model import GPT


def check_model(model: object) -> None:
    """See that it is a model; one that torch.compile has wrapped is.

    Raises:
        InputError: if it is something else, such as the name of a model.
    """
    if not isinstance(getattr(model, "config", None), GPTConfig):
        raise InputError(f"model = {brief(model)} is none", 'give a GPT: model, tokenizer = minigpt.load_model("gpt2")')


def own_tensors(model: GPT) -> dict[str, Tensor]:
    """The model's weights by name, a tied head left out: it is `wte.weight`. What is written there is in the model."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def empty_model(config: GPTConfig) -> GPT:
    """A GPT on the CPU, to be filled: no time was spent on its initial weights, and no random number drawn."""
    with _WithoutRandomValues():
        return GPT(config)


class _WithoutRandomValues(TorchFunctionMode):
    """Skips what fills tensors at random. The meta device would do as well, but its import alone takes a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return None  # they work in place, and nobody asks for what they return
        return func(*args, **(kwargs or {}))
