"""A model's tensors, each once; a model that waits for its values; its mode; and which of its ids have text."""

import threading
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules
from torch.overrides import TorchFunctionMode

from minigpt.config import GPTConfig, VocabSize
from minigpt.errors import InputError, brief
from minigpt.fields import checked
from minigpt.model import GPT, explicit_attention, fused_attention

Known = Mapping[type, tuple[type, Container[type]]]
Function = TypeVar("Function", bound=Callable[..., Any])
_CAME_WITH = "_came_with"  # an attribute of a model that was loaded
_IN_WORDS = "_in_words"  # an attribute of a function


def original(model: nn.Module) -> Any:
    """The model itself; of what `torch.compile` made of a model, that model, whose parts have the names of a GPT's."""
    return getattr(model, "_orig_mod", model)


def as_built(model: GPT, known: Known) -> GPT:
    """Check that its weights are enough to rebuild this model, and return it: the original of a compiled one.

    Args:
        model: compared with what `GPT(model.config)` makes: its parts, tensors and settings, which no hook changes.
        known: the replaced parts that are allowed: type -> the type that a GPT has there, and the types of the members
            that it may have besides, as in `lora.KNOWN`.

    Raises:
        InputError: naming the first part that is otherwise.
    """
    model = original(model)
    usual = empty_model(model.config)
    if found := next(chain(hooked(model), _unlike(model, usual, known), _untied(model, usual)), None):
        raise InputError(
            f"{found}: the weights of a GPT do not say this, and would make another model",
            "change it back first, or leave the `with` of the edit; or take its numbers alone, model.state_dict(): "
            "torch.save writes them, and minigpt.GPT(model.config) loads them with load_state_dict",
        )
    return model


def _untied(model: GPT, usual: GPT) -> Iterator[str]:
    """The tensors that are one and should be two, and the head that should be the embedding."""
    own = own_tensors(model)
    yield from (f"{name} is shared with another part" for name in own_tensors(usual) if name not in own)
    if model.config.tie_weights and model.lm_head.weight is not model.wte.weight:
        yield "lm_head.weight is not that of wte, though tie_weights is True"


def in_words(words: str) -> Callable[[Function], Function]:
    """Mark a hook or a method that one part of a model may be given: what it is; "" if all numbers stay the same."""

    def mark(function: Function) -> Function:
        vars(function)[_IN_WORDS] = words
        return function

    return mark


def hooked(model: GPT) -> Iterator[str]:
    """The hooks that may change what the parts of a model compute, or those of all models."""
    for hook in (*modules._global_forward_hooks.values(), *modules._global_forward_pre_hooks.values()):
        if not (getattr(hook, "__module__", None) or "").startswith("torch."):  # such as those that count operations
            yield f"every module of torch has a hook, {hook!r:.60}"
    for path, part in model.named_modules():
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            yield getattr(hook, _IN_WORDS, f"{path or 'the model'} has a hook, {hook!r:.60}")


def _unlike(model: GPT, usual: GPT, known: Known) -> Iterator[str]:
    """The parts, tensors and settings of a model that are not as in the usual one."""
    here, there = dict(_contents(model, known)), dict(_contents(usual, known))
    lacking = "is missing", None
    for name in {**there, **here}:
        ours, theirs = here.get(name, lacking), there.get(name, lacking)
        noted = theirs is lacking and ours[0].startswith("=")  # somebody's own attribute, which no part reads
        if ours != theirs and not noted:
            yield f"{name} {ours[0]} (in a GPT: {theirs[0]})"


def _contents(part: nn.Module, known: Known, path: str = "") -> Iterator[tuple[str, tuple[str, object]]]:
    """A part and all in it: path -> what it is, in words, and what must be equal to be the same."""
    kind, besides = known.get(type(part), (type(part), ()))
    ahead = f"{path}." if path else ""
    yield path or "the model", (f"is a {kind.__name__}", kind)
    for name, parameter in part.named_parameters(recurse=False):
        yield f"{ahead}{name}", (f"has the shape {tuple(parameter.shape)}", None)
    for name, buffer in part.named_buffers(recurse=False):
        if type(buffer) not in besides:
            values = buffer.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            yield f"{ahead}{name}", (f"has the shape {tuple(buffer.shape)} and values of its own", values)
    for name, inner in part.named_children():
        if type(inner) not in besides:
            yield from _contents(inner, known, f"{ahead}{name}")
    for name, value in vars(part).items():
        if callable(getattr(type(part), name, None)):
            if getattr(getattr(value, "func", value), _IN_WORDS, None) != "":
                yield f"{ahead}{name}", ("is a method of this one part", value)
        elif not name.startswith("_") and name != "training":
            same = value is explicit_attention or getattr(value, _IN_WORDS, None) == ""  # the same numbers
            value = fused_attention if same else value
            yield f"{ahead}{name}", (f"= {brief(value)}", value)


def check_not_packed(model: GPT, what: str) -> None:
    """Refuse a model that is packed, or was emptied by that: nobody can read or change its weights.

    Args:
        model: any model.
        what: it was to do, in words, such as "an adapter".

    Raises:
        InputError: if its layers are no linear layers of torch.
    """
    if type(model.lm_head) is not nn.Linear:
        raise InputError(
            f"{what} needs plain weights, and this model's were packed",
            "load it again; or take the model that pack was given: with keep=True it stays as it was",
        )


def own_tensors(model: GPT) -> dict[str, Tensor]:
    """The model's weights by name, a tied head left out: it is `wte.weight`. Writing into them changes the model.

    Raises:
        InputError: if the model is packed, and has only some of them.
    """
    check_not_packed(model, "a file of weights")
    return {name: parameter.detach() for name, parameter in original(model).named_parameters()}


def came_with(model: GPT) -> Any:
    """What `keep_settings` left on a model; None if nothing."""
    return vars(original(model)).get(_CAME_WITH)


def keep_settings(model: GPT, found: object) -> None:
    """Leave with a model what its folder said beside the shape. Nothing computes with it: it is there to be written."""
    vars(model)[_CAME_WITH] = found


def trainable_parameters(model: GPT) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def empty_model(config: GPTConfig) -> GPT:
    """A GPT on the CPU, to be filled: no time was spent on its initial weights, and no random number drawn."""
    with without_random_values():
        return GPT(config)


class without_random_values(TorchFunctionMode):  # noqa: N801 (used as a context)
    """Skips what fills tensors at random. The meta device would do as well, but its import alone takes a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_"):
            return None  # they work in place, and nobody asks for what they return
        return func(*args, **(kwargs or {}))


class shapes_alone(TorchFunctionMode):  # noqa: N801 (used as a context)
    """New tensors have a shape but almost no memory: all elements are the same number in memory.

    So nothing may be written into them, and what would fill them does nothing here.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.empty:
            return torch.empty((), **(kwargs or {})).expand(*args)
        if func.__name__ in ("normal_", "uniform_", "kaiming_uniform_", "zero_", "fill_"):
            return None
        return func(*args, **(kwargs or {}))


def with_text(logits: Tensor, vocab_size: VocabSize | None) -> Tensor:
    """The logits of the ids that have text: (..., V) -> (..., vocab_size).

    A model may have more ids than its tokenizer, so that V is a round number, or for special tokens that were added.
    Text never gives these ids, so wherever the tokenizer is known, they are never drawn, and no part of a probability.

    Args:
        logits: of all ids of the model. They come back as they are, and no copy, if all of them have text.
        vocab_size: the tokenizer's; None if there is no tokenizer, and every id counts.
    """
    return logits if vocab_size is None or vocab_size >= logits.size(-1) else logits[..., :vocab_size]


@checked
def num_with_text(model: GPT, vocab_size: VocabSize | None) -> int:
    """How many of a model's ids `with_text` leaves: 0 to that number - 1; InputError if it is no model."""
    config = model.config
    return config.vocab_size if vocab_size is None else min(vocab_size, config.vocab_size)


# model -> how many are inside `evaluating` with it, and which of its modules were in training mode before the first
_EVALUATED: dict[GPT, tuple[int, list[nn.Module]]] = {}
_ENTERING = threading.RLock()  # held while one enters or leaves


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Dropout off inside, and every module back in its own mode outside, whatever happens.

    Two streams of one model may overlap, in several threads too: its modes come back when the last of those inside
    leaves.
    """
    with _ENTERING:
        in_training = [module for module in model.modules() if module.training]
        users, training = _EVALUATED.get(model, (0, in_training))
        _EVALUATED[model] = users + 1, training
        if in_training:
            model.eval()
    try:
        yield
    finally:
        with _ENTERING:
            users, training = _EVALUATED.pop(model)
            if users > 1:
                _EVALUATED[model] = users - 1, training
            else:
                for module in training:
                    module.training = True
