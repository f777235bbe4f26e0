"""Causal attention and the MLP of a training step on a CPU, from `steps.c`, which the machine's compiler makes ready.

Each is what torch computes up to rounding, in both directions, in float32.
"""

import ctypes
import math
from collections.abc import Callable
from functools import cache, partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from minigpt.dropout import draw
from minigpt.errors import InputError, passed
from minigpt.model import explicit_attention
from minigpt.system.compiler import shared_library
from minigpt.system.device import undisturbed


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass that cannot be differentiated itself, and says so."""

    @wraps(backward)
    def first(ctx: Any, dy: Tensor) -> Any:
        if torch.is_grad_enabled():  # as with create_graph=True
            raise InputError(
                "the fast kernels, and those in C, have no second derivatives: their gradients give no graph",
                f"compute with {passed('kernels', 'torch')}, or leave out create_graph=True",
            )
        return backward(ctx, dy)

    return first


class _Strides(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ssize_t) for name in ("rows", "heads", "positions")]


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ssize_t) for name in "BHTD"]


class _Widths(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ssize_t) for name in "NCW"]


class _Dropout(ctypes.Structure):
    _fields_ = [("stays", ctypes.c_void_p), ("more", ctypes.c_float)]


def compiler() -> str:
    """The version of the compiler of `steps.c`, which rounds sums and products in its own way."""
    return (ctypes.c_char_p.in_dll(_library(), "compiler").value or b"").decode()


def _strides(x: Tensor) -> _Strides:
    """Of a tensor (B, H, T, D) whose last dimension is dense."""
    return _Strides(*x.stride()[:3])


def _dropout(stays: Tensor | None, more: float) -> _Dropout:
    """A mask that stays in memory as long as its tensor does."""
    return _Dropout(None if stays is None else stays.data_ptr(), more)


@cache
def _library() -> ctypes.CDLL:
    """`steps.c`, ready to be called.

    Raises:
        RuntimeError: if there is no compiler, or it cannot make it ready.
    """
    library = shared_library(Path(__file__).with_name("steps.c"))
    address, size, number, threads = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float, ctypes.c_int
    given = [*3 * [address], _Strides, _Dropout, number]
    sizes = [_Sizes, threads, address]
    library.mlp_room.argtypes, library.mlp_room.restype = [_Widths, threads], size
    library.mlp.argtypes = [*8 * [address], _Widths, threads, address]
    library.mlp_back.argtypes = [*6 * [address], _Widths, threads, address]
    library.room.argtypes, library.room.restype = [*2 * [size], ctypes.c_int], size
    library.attention.argtypes = [*given, *2 * [address], *sizes]
    library.attention_back.argtypes = [*given, *6 * [address], _Strides, *sizes]
    for function in (library.mlp, library.mlp_back, library.attention, library.attention_back):
        function.restype = None
    return library


@cache  # so the answer must not depend on what its first caller has set
@undisturbed()
def unavailable() -> str:
    """Why these cannot be used here; "" if they can: the compiler made them ready, and they compute what torch does."""
    try:
        _library()
    except RuntimeError as problem:
        return str(problem)
    mask, generator = torch.ones(29, 29, dtype=torch.bool).tril(), torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 29, 5, generator=generator, dtype=torch.float32, requires_grad=True) for _ in range(3))
    sizes = ((23, 5), (23,), (5, 23), (5,))
    weights = [torch.randn(size, generator=generator, dtype=torch.float32, requires_grad=True) for size in sizes]
    ways: list[tuple[Callable[..., Tensor], Callable[..., Tensor], list[Tensor]]] = [
        (mlp, _plain_mlp, [q, *weights]),
        (partial(attention, mask=mask, dropout=0.0), partial(explicit_attention, mask=mask, dropout=0.0), [q, k, v]),
    ]
    for ours, plain, given in ways:
        results = [function(*given) for function in (ours, plain)]
        slopes = [torch.autograd.grad(y, given, torch.linspace(-1, 2, y.numel()).view(y.shape)) for y in results]
        for one, other in zip((results[0], *slopes[0]), (results[1], *slopes[1]), strict=True):
            if not torch.allclose(one, other, rtol=1e-4, atol=1e-4):
                return "the compiler's library computes other numbers than torch"
    return ""


# ---- the MLP


def mlp(x: Tensor, widen: Tensor, widen_bias: Tensor | None, narrow: Tensor, narrow_bias: Tensor | None) -> Tensor:
    """What `model.MLP` computes, without its dropout: (..., C) -> (..., C), by weights (W, C) and (C, W)."""
    y: Tensor = _MLP.apply(x, widen, widen_bias, narrow, narrow_bias)  # type: ignore[no-untyped-call]
    return y


def _plain_mlp(x: Tensor, widen: Tensor, widen_bias: Tensor, narrow: Tensor, narrow_bias: Tensor) -> Tensor:
    """The same, as torch computes it."""
    return F.linear(F.gelu(F.linear(x, widen, widen_bias), approximate="tanh"), narrow, narrow_bias)


class _MLP(torch.autograd.Function):
    """Y = H B' with H = gelu(X A'), so dB = dY' H and dA = dU' X, with dU = (dY B) gelu'(X A'): those torch multiplies.

    GELU's slope is computed in the forward pass, and kept in the place of what it was given.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, widen: Tensor, widen_bias: Tensor | None, narrow: Tensor, narrow_bias: Tensor | None
    ) -> Tensor:
        given = [part if part is None else part.contiguous() for part in (x, widen, widen_bias, narrow, narrow_bias)]
        W, C = widen.shape
        widths, threads = _Widths(x.numel() // C, C, W), torch.get_num_threads()
        wide, slopes = x.new_empty(widths.N, W), x.new_empty(widths.N, W)
        y, room = x.new_empty(x.shape), x.new_empty(_library().mlp_room(widths, threads))
        addresses = (part if part is None else part.data_ptr() for part in (*given, wide, slopes, y))
        _library().mlp(*addresses, widths, threads, room.data_ptr())
        of_widen, of_narrow = ctx.needs_input_grad[1], ctx.needs_input_grad[3]
        kept = given[0] if of_widen else None, wide if of_narrow else None
        ctx.save_for_backward(*kept, slopes, given[1], given[3])
        return y

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, wide, slopes, widen, narrow = ctx.saved_tensors
        dy, (W, C), needed = dy.contiguous(), widen.shape, ctx.needs_input_grad
        widths, threads = _Widths(dy.numel() // C, C, W), torch.get_num_threads()
        d_wide, dx = torch.empty_like(slopes), torch.empty_like(dy) if needed[0] else None
        room = dy.new_empty(_library().mlp_room(widths, threads))
        addresses = (part if part is None else part.data_ptr() for part in (dy, widen, narrow, slopes, d_wide, dx))
        _library().mlp_back(*addresses, widths, threads, room.data_ptr())
        dys = dy.view(-1, C)
        return (
            dx,
            d_wide.t() @ x.view(-1, C) if needed[1] else None,
            d_wide.sum(0) if needed[2] else None,
            dys.t() @ wide if needed[3] else None,
            dys.sum(0) if needed[4] else None,
        )


# ---- causal attention


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """`model.explicit_attention`, with its masks of dropout, where the mask is the plain causal triangle: T = S."""
    y: Tensor = _Attention.apply(q, k, v, dropout)  # type: ignore[no-untyped-call]
    return y


class _Attention(torch.autograd.Function):
    """The pattern (T, T) is never in memory; what makes it of the scores is kept, two numbers for each query."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        B, H, T, D = q.shape
        if not q.stride() == k.stride() == v.stride() or q.stride(3) != 1:
            q, k, v = (part.contiguous() for part in (q, k, v))
        stays, ctx.more = draw((B, H, T, T), dropout) if dropout else (None, 1.0)
        y, softmaxes = q.new_empty(B, T, H, D), q.new_empty(B, H, T, 2)
        library, threads = _library(), torch.get_num_threads()
        room = q.new_empty(threads, library.room(T, D, False))
        library.attention(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), _strides(q), _dropout(stays, ctx.more), 1 / math.sqrt(D),
            y.data_ptr(), softmaxes.data_ptr(), _Sizes(B, H, T, D), threads, room.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(q, k, v, y, softmaxes, stays)
        return y.transpose(1, 2)

    @staticmethod
    @once
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, softmaxes, stays = ctx.saved_tensors
        B, H, T, D = q.shape
        dy = dy.transpose(1, 2).contiguous()  # (B, T, H, D), as it lies already in a model
        dq, dk, dv = (part.transpose(1, 2) for part in q.new_empty(B, T, 3, H, D).unbind(2))  # 3 x (B, H, T, D)
        library, threads = _library(), torch.get_num_threads()
        room = q.new_empty(threads, library.room(T, D, True))
        library.attention_back(
            q.data_ptr(), k.data_ptr(), v.data_ptr(), _strides(q), _dropout(stays, ctx.more), 1 / math.sqrt(D),
            y.data_ptr(), softmaxes.data_ptr(), dy.data_ptr(), dq.data_ptr(), dk.data_ptr(), dv.data_ptr(),
            _strides(dq), _Sizes(B, H, T, D), threads, room.data_ptr(),
        )  # fmt: skip
        return dq, dk, dv, None
