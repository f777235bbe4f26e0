"""The layers of a step on a CPU, faster than torch's own and with the same numbers up to rounding.

linear layers   torch multiplies float32 matrices by MKL, which knows only Intel's processors well. On an AMD one with
                AVX-512, oneDNN, which torch holds too, is twice as fast, in both directions; with AVX2 alone it is
                faster by a tenth, except for the gradients of weights, whose operands it has to turn.
tanh-GELU       0.5 x (1 + tanh(u)) = x sigmoid(2 u), and a vector of sigmoids costs a tenth of one of tanhs. The slope
                is computed in the forward pass and kept in the place of x, so the backward pass is one product.

`--kernels fast` asks for both, `--kernels torch` for neither. `--kernels c`, where there is a compiler, takes GELU and
attention from `steps.c`, and linear layers from oneDNN where that is much faster. `--kernels auto` decides by what the
machine is and by the length of the run, and never by a clock: the same seed has to give the same bytes tomorrow, when
the machine is busy.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from minigpt.lora import LoRALinear
from minigpt.model import AttentionCore, CausalSelfAttention, fused_attention
from minigpt.parameters import in_words
from minigpt.system.device import processor, undisturbed
from minigpt.training import steps
from minigpt.training.steps import once

Kernels: TypeAlias = Literal["torch", "fast", "c"]

SLOPE, CUBE = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715  # of GELU: 2 u = SLOPE x + CUBE x^3
AT_ONCE = 2**17  # numbers of a part of GELU: what it computes in between stays in the processor's cache
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
    if isinstance(part, nn.Linear) and multiplies_by_onednn() and (not in_c or turns_by_onednn()):
        yield "plain" if isinstance(part, LoRALinear) else "forward", partial(_linear, part)
    elif isinstance(part, nn.GELU) and part.approximate == "tanh":
        yield "forward", partial(_gelu, steps.gelu if in_c else partial(steps.gelu, write=_by_sigmoid))
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
def _gelu(compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """tanh-GELU: (...) -> (...)."""
    return compute(x) if _computes(x) else nn.functional.gelu(x, approximate="tanh")


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


def _by_sigmoid(x: Tensor, y: Tensor, slope: Tensor) -> None:
    """With s = sigmoid(2 u) and w = x (2 u)': y = x s, and its slope is s (1 + w (1 - s))."""
    line = x.new_tensor(SLOPE)
    parts = (whole.view(-1).split(AT_ONCE) for whole in (x, y, slope))
    for part, of_y, of_slope in zip(*parts, strict=True):
        s = torch.addcmul(line, part, part, value=CUBE).mul_(part).sigmoid_()
        torch.mul(part, s, out=of_y)
        w = torch.addcmul(line, part, part, value=3 * CUBE, out=of_slope).mul_(part)
        w.addcmul_(w, s, value=-1).add_(1).mul_(s)
