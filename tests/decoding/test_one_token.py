"""One token of each row: the numbers of the whole forward pass, and that pass wherever a model is not as usual."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from minigpt.config import GPTConfig, LoRAConfig
from minigpt.decoding.generate import generate
from minigpt.decoding.one_token import OneToken
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.lora import add_lora
from minigpt.model import GPT, explicit_attention
from minigpt.packed import pack
from tests.conftest import random_model

PROMPT = [3, 1, 4, 1, 5]


def filled(model: GPT, rows: int, shorter: list[int]) -> KVCache:
    """A cache after the prompt, whose rows are shorter by so many tokens."""
    cache = KVCache(model.config, rows, dtype=model.wte.weight.dtype)
    model.trunk(torch.tensor([PROMPT] * rows), cache)
    cache.rollback(torch.tensor(shorter))
    return cache


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shorter", [[0], [0, 0, 0], [2, 0, 3], [5, 1]], ids=str)
@torch.no_grad()
def test_it_is_the_forward_pass(tiny_config: GPTConfig, bias: bool, tied: bool, shorter: list[int]) -> None:
    """In float64, to the last position of the context, with what the cache then holds."""
    model = random_model(replace(tiny_config, bias=bias, tie_weights=tied), 11).double()
    rows, step = len(shorter), OneToken(model)
    expected, found = filled(model, rows, shorter), filled(model, rows, shorter)
    for number in range(model.config.block_size - expected.longest):
        idx = (torch.arange(rows) * 7 + number) % model.config.vocab_size
        assert step.fits()
        torch.testing.assert_close(step(idx, found), model(idx[:, None], expected)[:, 0], atol=1e-11, rtol=1e-11)
        assert found.length.tolist() == expected.length.tolist()
        torch.testing.assert_close(found.k, expected.k, atol=1e-11, rtol=1e-11)
        torch.testing.assert_close(found.v, expected.v, atol=1e-11, rtol=1e-11)
    with pytest.raises(InputError, match="1 more tokens do not fit"):
        step(idx, found)


def adapted(model: GPT) -> GPT:
    add_lora(model, LoRAConfig(rank=2), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return model.eval()


@pytest.mark.parametrize("change", [adapted, lambda model: pack(model, "float16"), lambda model: pack(model, "int8")])
@torch.no_grad()
def test_linear_layers_may_be_others(tiny_config: GPTConfig, change: Callable[[GPT], GPT]) -> None:
    model = change(random_model(tiny_config, 11))
    step = OneToken(model)
    expected, found = filled(model, 3, [0, 2, 1]), filled(model, 3, [0, 2, 1])
    assert step.fits()
    idx = torch.tensor([2, 13, 5])
    torch.testing.assert_close(step(idx, found), model(idx[:, None], expected)[:, 0], atol=1e-4, rtol=1e-4)


class Own(GPT):
    """A model with a forward pass of its own."""

    def trunk(self, idx: Tensor, cache: KVCache | None = None) -> Tensor:
        return super().trunk(idx, cache) * -1


def own_trunk(model: GPT) -> GPT:
    own = Own(model.config).eval()
    own.load_state_dict(model.state_dict())
    return own


def own_forward(model: GPT) -> GPT:
    mlp = model.h[1].mlp
    forward = mlp.forward
    mlp.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    return model


def hooked(model: GPT) -> GPT:
    model.h[1].attn.c_proj.register_forward_hook(lambda part, given, out: out * 3)
    return model


def other_core(model: GPT) -> GPT:
    model.h[0].attn.core = lambda q, k, v, mask, dropout: explicit_attention(q * 2, k, v, mask, dropout)
    return model


def other_activation(model: GPT) -> GPT:
    model.h[0].mlp.gelu = torch.nn.ReLU()  # type: ignore[assignment]
    return model


CHANGES = [own_trunk, own_forward, hooked, other_core, other_activation]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_is_not_as_usual_is_called(tiny_config: GPTConfig, change: Callable[[GPT], GPT]) -> None:
    options: dict[str, Any] = {"strategy": "greedy", "max_new_tokens": 8}
    usual = generate(random_model(tiny_config, 11), [PROMPT], **options)
    model = change(random_model(tiny_config, 11))
    assert not OneToken(model).fits()
    found = generate(model, [PROMPT], **options)
    assert abs(found.scores[0] - usual.scores[0]) > 0.01, "the change says nothing"
    uncached = generate(model, [PROMPT], use_cache=False, **options)
    assert found.sequences == uncached.sequences
    assert found.scores == pytest.approx(uncached.scores, abs=1e-4)


def test_the_other_form_of_gelu_is_not_as_usual(tiny_config: GPTConfig) -> None:
    """It differs by less than a text shows, and the pass of one token computes the tanh form."""
    model = random_model(tiny_config, 11)
    model.h[1].mlp.gelu = torch.nn.GELU()
    assert not OneToken(model).fits()


@pytest.mark.parametrize("change", [hooked, other_core])
def test_a_change_while_it_writes_is_seen(tiny_config: GPTConfig, change: Callable[[GPT], GPT]) -> None:
    model = random_model(tiny_config, 11)
    step = OneToken(model)
    assert step.fits()
    change(model)
    assert not step.fits()


def test_a_hook_of_all_modules_is_seen(tiny_config: GPTConfig) -> None:
    step = OneToken(random_model(tiny_config, 11))
    with register_module_forward_hook(lambda part, given, out: None):
        assert not step.fits()
    with register_module_forward_pre_hook(lambda part, given: None):
        assert not step.fits()
    assert step.fits()


@torch.no_grad()
def test_it_starts_less_than_half_of_the_operations(tiny_config: GPTConfig) -> None:
    class Count(TorchDispatchMode):
        started = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.started += 1
            return function(*args, **(kwargs or {}))

    model = random_model(replace(tiny_config, bias=False), 11)
    step, cache = OneToken(model), filled(model, 1, [0])
    with Count() as whole:
        model(torch.tensor([[2]]), cache)
    with Count() as one:
        step(torch.tensor([2]), cache)
    assert one.started < whole.started / 2
