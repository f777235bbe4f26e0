"""Two layers of a step on a CPU, faster than torch's own and with the same numbers up to rounding.

linear layers   torch multiplies float32 matrices by MKL, which knows only Intel's processors well. On an AMD one with
                AVX-512, oneDNN, which torch holds too, is twice as fast, in both directions; with AVX2 alone it is
                faster by a tenth, except for the gradients of weights, whose operands it has to turn.
tanh-GELU       0.5 x (1 + tanh(u)) = x sigmoid(2 u), and a vector of sigmoids costs a tenth of one of tanhs. The slope
                is computed in the forward pass and kept in the place of x, so the backward pass is one product.

`--kernels fast` asks for both, `--kernels torch` for neither. `--kernels auto` decides by what the machine is, and
never by a clock: the same seed has to give the same bytes tomorrow, when the machine is busy.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minigpt.lora import LoRALinear
from minigpt.parameters import in_words
from minigpt.system.device import processor

SLOPE, CUBE = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715  # 2 u = SLOPE x + CUBE x^3
AT_ONCE = 2**17  # numbers of a part of GELU: what it computes in between stays in the processor's cache


@contextmanager
def kernels(model: nn.Module, fast: bool) -> Iterator[None]:
    """Within the `with`, the model's linear layers and GELU compute by these kernels, if `fast`.

    The backward pass belongs inside the `with` too: with gradient checkpointing it computes layers anew. The layers
    themselves are exchanged, because a mode that watches every call of torch takes 6 % of a small step.
    """
    exchanged: list[tuple[nn.Module, str]] = []
    onednn = fast and multiplies_by_onednn()
    for part in model.modules() if fast else ():
        name = "plain" if isinstance(part, LoRALinear) else "forward"
        if isinstance(part, nn.Linear) and onednn:
            vars(part)[name] = partial(_linear, part)
        elif isinstance(part, nn.GELU) and part.approximate == "tanh":
            vars(part)[name] = _gelu
        else:
            continue
        exchanged.append((part, name))
    try:
        yield
    finally:
        for part, name in exchanged:
            del vars(part)[name]


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


def faster_here() -> bool:
    """Whether `--kernels auto` takes these: where they were measured to win, AMD processors with AVX2 or AVX-512."""
    return processor().endswith(("AVX2", "AVX512")) and multiplies_by_onednn()


def _multiplies_right() -> bool:
    """Whether oneDNN's product is here and right: torch's name for it is not documented."""
    x, weight = torch.arange(7 * 13.0).view(7, 13), torch.arange(5 * 13.0).view(5, 13)
    try:
        return _product(x, weight, torch.ones(5)).equal(x @ weight.T + 1)  # whole numbers: no sum is rounded
    except (AttributeError, RuntimeError):
        return False


@in_words("")
def _linear(part: nn.Linear, x: Tensor) -> Tensor:
    """What a linear layer computes: (..., in) -> (..., out)."""
    if x.dtype != torch.float32 or not torch.is_grad_enabled():
        return nn.functional.linear(x, part.weight, part.bias)
    y: Tensor = _Linear.apply(x, part.weight, part.bias)  # type: ignore[no-untyped-call]
    return y


@in_words("")
def _gelu(x: Tensor) -> Tensor:
    """tanh-GELU: (...) -> (...)."""
    if x.dtype != torch.float32 or not torch.is_grad_enabled():
        return nn.functional.gelu(x, approximate="tanh")
    y: Tensor = _Gelu.apply(x)  # type: ignore[no-untyped-call]
    return y


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
    @once_differentiable
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
    """With s = sigmoid(2 u) and w = x (2 u)': y = x s, and its slope is s (1 + w (1 - s))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        y, slope, line = torch.empty_like(x), torch.empty_like(x), x.new_tensor(SLOPE)
        parts = (whole.view(-1).split(AT_ONCE) for whole in (x, y, slope))
        for part, of_y, of_slope in zip(*parts, strict=True):
            s = torch.addcmul(line, part, part, value=CUBE).mul_(part).sigmoid_()
            torch.mul(part, s, out=of_y)
            w = torch.addcmul(line, part, part, value=3 * CUBE, out=of_slope).mul_(part)
            w.addcmul_(w, s, value=-1).add_(1).mul_(s)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        slope: Tensor
        (slope,) = ctx.saved_tensors
        return dy * slope
