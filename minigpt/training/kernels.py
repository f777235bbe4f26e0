"""The layers of a step on a CPU, faster than torch's own and with the same numbers up to rounding.

linear layers   torch multiplies float32 matrices by MKL, which knows only Intel's processors well. On an AMD one with
                AVX-512, oneDNN, which torch holds too, is twice as fast, in both directions; with AVX2 alone it is
                faster by a tenth, except for the gradients of weights, whose operands it has to turn.
tanh-GELU       0.5 x (1 + tanh(u)) = x sigmoid(2 u), and a vector of sigmoids costs a tenth of one of tanhs. The slope
                is computed in the forward pass and kept in the place of x, so the backward pass is one product.

`--kernels fast` asks for both, `--kernels torch` for neither. `--kernels c`, where there is a compiler, takes attention
and the MLP from `steps.c`; but linear layers from oneDNN, where that is much faster, and then GELU as `fast` has it.
`--kernels auto` decides by what the machine is and by the length of the run, and never by a clock: the same seed has to
give the same bytes tomorrow, when the machine is busy.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from minigpt.lora import LoRALinear
from minigpt.model import MLP, AttentionCore, CausalSelfAttention, fused_attention
from minigpt.parameters import in_words
from minigpt.system.device import processor, undisturbed
from minigpt.training import steps
from minigpt.training.steps import once

Kernels: TypeAlias = Literal["torch", "fast", "c"]

SLOPE, CUBE = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715  # of GELU: 2 u = SLOPE x + CUBE x^3
AT_ONCE = 2**17  # numbers of a part of GELU: what it computes in between stays in the processor's cache
_HOOKS = ("forward", "forward_pre", "backward", "backward_pre")
WORTH_COMPILING = 3e12  # operations of a run: half a minute, of which the compiler takes about one second


@contextmanager
def kernels(model: nn.Module, which: Kernels) -> Iterator[None]:
    """Within the `with`, the model's layers compute by these kernels.

    The backward pass belongs inside the `with` too: with gradient checkpointing it computes layers anew. The layers
    themselves are exchanged, because a mode that watches every call of torch takes 6 % of a small step.
    """
    exchanged = [
        (part, name, vars(part).get(name), function)
        for part in (model.modules() if which != "torch" else ())
        for name, function in _exchange(part, which)
    ]
    for part, name, _, function in exchanged:
        vars(part)[name] = function
    try:
        yield
    finally:
        for part, name, former, _ in exchanged:
            if former is None:
                del vars(part)[name]
            else:
                vars(part)[name] = former


def _exchange(part: nn.Module, which: Kernels) -> Iterator[tuple[str, Callable[..., Tensor]]]:
    """The members of a layer that compute by these kernels, and by what."""
    in_c = which == "c"
    by_onednn = multiplies_by_onednn() and (not in_c or turns_by_onednn())
    if isinstance(part, nn.Linear) and by_onednn:
        yield "plain" if isinstance(part, LoRALinear) else "forward", partial(_linear, part)
    elif isinstance(part, nn.GELU) and part.approximate == "tanh":
        yield "forward", _gelu
    elif in_c and isinstance(part, MLP) and not by_onednn and _is_plain(part):
        yield "forward", partial(_mlp, part)
    elif in_c and isinstance(part, CausalSelfAttention) and part.core is fused_attention:
        yield "core", _attention


@cache
def multiplies_by_onednn() -> bool:
    """Whether the processor is one on which oneDNN was found to be faster than MKL, and multiplies right here.

    It is asked at each step, and to read a processor's name takes the longer, the more cores it has.
    """
    name = processor()
    return ("AMD " in name or "AuthenticAMD" in name) and _multiplies_right()


@cache
def turns_by_onednn() -> bool:
    """Whether oneDNN also multiplies faster where it has to turn both sides first."""
    return processor().endswith("AVX512")


def best_here(operations: float) -> Kernels:
    """What `--kernels auto` takes: where they were measured to win, on AMD processors with AVX2 or AVX-512.

    Args:
        operations: of the whole run. With AVX2 alone, a long one is worth a compiler's second.
    """
    if not processor().endswith(("AVX2", "AVX512")) or not multiplies_by_onednn():
        return "torch"
    long = operations >= WORTH_COMPILING and not turns_by_onednn()
    return "c" if long and not steps.unavailable() else "fast"


@undisturbed()
def _multiplies_right() -> bool:
    """Whether oneDNN's product is here and right: torch's name for it is not documented."""
    x, weight, bias = (torch.arange(n, dtype=torch.float32) for n in (7 * 13, 5 * 13, 5))
    x, weight = x.view(7, 13), weight.view(5, 13)
    try:
        return _product(x, weight, bias).equal(x @ weight.T + bias)  # whole numbers: no sum is rounded
    except (AttributeError, RuntimeError):
        return False


def _computes(x: Tensor) -> bool:
    """Whether these kernels compute with x: else torch's do."""
    return x.dtype == torch.float32 and torch.is_grad_enabled()


@in_words("")
def _linear(part: nn.Linear, x: Tensor) -> Tensor:
    """What a linear layer computes: (..., in) -> (..., out)."""
    if not _computes(x):
        return nn.functional.linear(x, part.weight, part.bias)
    y: Tensor = _Linear.apply(x, part.weight, part.bias)  # type: ignore[no-untyped-call]
    return y


@in_words("")
def _gelu(x: Tensor) -> Tensor:
    """tanh-GELU: (...) -> (...)."""
    if not _computes(x):
        return nn.functional.gelu(x, approximate="tanh")
    y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
    return y


def _is_plain(part: MLP) -> bool:
    """Whether an MLP computes as model.py has it, of float32 weights that fit each other, and nobody looks into it."""
    if type(part).forward is not MLP.forward:
        return False
    layers = [part.c_fc, part.gelu, part.c_proj]
    if [type(layer) for layer in layers] != [nn.Linear, nn.GELU, nn.Linear] or part.gelu.approximate != "tanh":
        return False
    W, C = part.c_fc.weight.shape
    fit = {"c_fc.weight": (W, C), "c_fc.bias": (W,), "c_proj.weight": (C, W), "c_proj.bias": (C,)}
    hooks = [getattr(layer, f"_{kind}_hooks") for layer in layers for kind in _HOOKS]
    hooks += [getattr(modules, f"_global_{kind}_hooks") for kind in _HOOKS]
    return (
        W > 0
        and all(own.dtype == torch.float32 and own.shape == fit.get(name) for name, own in part.named_parameters())
        and not any(hooks)
        and not any("forward" in vars(layer) for layer in (part, *layers))
    )


@in_words("")
def _mlp(part: MLP, x: Tensor) -> Tensor:
    """What an MLP computes: (..., C) -> (..., C)."""
    widen, narrow = part.c_fc, part.c_proj
    if not _computes(x) or x.size(-1) != widen.weight.size(1):
        return type(part).forward(part, x)
    return part.dropout(steps.mlp(x, widen.weight, widen.bias, narrow.weight, narrow.bias))


@in_words("")
def _attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Attention without a past, of rows that all begin at position 0. Shapes as in `model.explicit_attention`."""
    plain = _computes(q) and mask.dim() == 2 and q.size(2) == k.size(2)
    core: AttentionCore = steps.attention if plain else fused_attention
    return core(q, k, v, mask, dropout)


def _product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """(..., K), (M, K) -> (..., M): a b' + bias by oneDNN."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(a, b, bias, "none", [], "")
    return y


class _Linear(torch.autograd.Function):
    """Y = X W' + b, so dX = dY W and dW = dY' X."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy = dy.contiguous()  # it may be a view of one number, of which oneDNN's product takes thirty times as long
        dx = _product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        rows, drows = x.reshape(-1, x.size(-1)).t(), dy.reshape(-1, dy.size(-1)).t()  # (in, N), (out, N)
        dweight = None
        if ctx.needs_input_grad[1] and not turns_by_onednn():
            dweight = drows @ rows.t()
        elif ctx.needs_input_grad[1]:  # the wider one is the better right-hand side
            dweight = _product(drows, rows) if len(drows) <= len(rows) else _product(rows, drows).t()
        return dx, dweight, drows.sum(1) if ctx.needs_input_grad[2] else None


class _Gelu(torch.autograd.Function):
    """Its slope is computed in the forward pass, and kept in the place of x.

    With s = sigmoid(2 u) and w = x (2 u)': y = x s, and its slope is s (1 + w (1 - s)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y, slope = torch.empty_like(x), torch.empty_like(x)
        line = x.new_tensor(SLOPE)
        parts = (whole.view(-1).split(AT_ONCE) for whole in (x, y, slope))
        for part, of_y, of_slope in zip(*parts, strict=True):
            s = torch.addcmul(line, part, part, value=CUBE).mul_(part).sigmoid_()
            torch.mul(part, s, out=of_y)
            w = torch.addcmul(line, part, part, value=3 * CUBE, out=of_slope).mul_(part)
            w.addcmul_(w, s, value=-1).add_(1).mul_(s)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        slope: Tensor
        (slope,) = ctx.saved_tensors
        return dy * slope
