"""Two operations of a step on a CPU, faster than torch's own and with the same numbers up to rounding.

linear layers   torch multiplies float32 matrices by MKL, which knows only Intel's processors well: on an AMD one with
                AVX-512, oneDNN, which torch holds too, is twice as fast, in both directions.
tanh-GELU       0.5 x (1 + tanh(u)) = x sigmoid(2 u), and a vector of sigmoids costs a tenth of one of tanhs. The slope
                is computed in the forward pass and kept in the place of x, so the backward pass is one product.

`--kernels fast` asks for both; a run without it computes as before, bit for bit.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from minigpt.system.device import processor

SLOPE, CUBE = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715  # 2 u = SLOPE x + CUBE x^3
AT_ONCE = 2**17  # numbers of a part of GELU: what it computes in between stays in the processor's cache


def kernels(fast: bool) -> AbstractContextManager[object]:
    """A context in which forward passes on a CPU use these operations; backward passes need none."""
    return _Fast() if fast else nullcontext()


def multiplies_by_onednn() -> bool:
    """Whether oneDNN is here, and the processor one on which it was found to be faster than MKL."""
    name = processor()
    return ("AMD " in name or "AuthenticAMD" in name) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Fast(TorchFunctionMode):
    """Takes the calls of `F.linear` and `F.gelu` on plain float32 tensors; all other calls go to torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.onednn = multiplies_by_onednn()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        taken = func is F.gelu or (func is F.linear and self.onednn)
        if taken and args[0].dtype == torch.float32 and torch.is_grad_enabled():
            if func is F.linear and not kwargs:
                return _Linear.apply(*args, *(None,) * (3 - len(args)))  # type: ignore[no-untyped-call]
            if func is F.gelu and kwargs == {"approximate": "tanh"}:
                return _Gelu.apply(*args)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


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
        dx = _product(dy, weight.t()) if ctx.needs_input_grad[0] else None
        rows, drows = x.reshape(-1, x.size(-1)).t(), dy.reshape(-1, dy.size(-1)).t()  # (in, N), (out, N)
        dweight = None
        if ctx.needs_input_grad[1]:  # the wider one is the better right-hand side
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
