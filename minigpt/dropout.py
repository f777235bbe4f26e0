"""Dropout (Srivastava et al., 2014), drawn eight numbers at a time, and attention that drops without losing its speed.

torch draws one Bernoulli number for each value, and on a CPU that takes longer than most of what a model computes with
them. Here a random word of 64 bits makes eight bytes, and a value stays where its byte reaches a threshold:

    word        0x8b 07 f2 3c 19 e0 55 a4      threshold of a share of 0.2: 51 of 256
    stays          1  0  1  1  0  1  1  1

The words come from torch's global random state, so that a seed, a resume and a step computed anew give the same masks.
On a GPU, and in a compiled model, torch's own dropout is as fast, and is used.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

LEVELS = 256  # of a random byte
QUERIES = 64  # of a tile, which computes all keys up to its last query: a smaller one wastes less on hidden keys
WEIGHTS = 2**16  # of a tile of attention, in all its rows and heads: what fits a core's cache


def threshold(p: float) -> int:
    """The bytes below it are dropped: p in steps of 1/256, never none of them, and never all."""
    return min(max(round(p * LEVELS), 1), LEVELS - 1)


def draw(shape: torch.Size | tuple[int, ...], p: float) -> tuple[Tensor, float]:
    """What stays under a dropout of p: 1 or 0, uint8 of that shape on the CPU, and by what to scale the values there.

    The scale belongs to the share that is really dropped, so that a value's mean does not change.
    """
    count, limit = math.prod(shape), threshold(p)
    words = torch.empty(-(-count // 8), dtype=torch.int64).random_(-(2**63), None)  # None: all 64 bits
    return words.view(torch.uint8)[:count].ge_(limit).view(shape), LEVELS / (LEVELS - limit)


def draws_words(x: Tensor) -> bool:
    """Whether the masks for x come from random words: on a CPU, if nothing is compiled."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def drop(x: Tensor, p: float) -> Tensor:
    """`F.dropout` in training: zero a share p of x, (...) -> (...), and scale the rest by 1 / (1 - that share).

    From random words, p counts in steps of 1/256; see `threshold`.
    """
    if p == 0:
        return x
    if not draws_words(x):
        return F.dropout(x, p)
    stays, scale = draw(x.shape, p)
    return x * stays * scale


class Dropout(nn.Dropout):
    """`nn.Dropout` whose masks cost less on a CPU; there p counts in steps of 1/256."""

    def forward(self, x: Tensor) -> Tensor:
        """(...) -> (...); outside training, x itself."""
        return drop(x, self.p if self.training else 0.0)


def tiled_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """The numbers of `model.explicit_attention` on a CPU, with the same masks from the same random state.

    torch's fused kernel cannot drop on a CPU, and falls back to whole (T, T) matrices, each of which goes through
    memory many times. Here a tile of them is computed at a time, and stays in the processor's cache. Shapes and
    arguments are those of `model.explicit_attention`, with as many keys as queries, of which none may look ahead, and a
    dropout above 0. Of bfloat16, the scores and their softmax are computed in float32, and the other products as they
    are: with hardware for it, those take a quarter of the time.
    """
    with torch.autocast("cpu", enabled=False):  # as in a backward pass, which stands outside an autocast
        y: Tensor = _TiledAttention.apply(q, k, v, mask, dropout)  # type: ignore[no-untyped-call]
        return y


def _tiles(B: int, H: int, T: int) -> list[tuple[slice, slice, slice]]:
    """Rows, queries and keys of each tile: the keys up to the last of the queries."""
    tiles = []
    for start in range(0, T, QUERIES):
        stop = min(start + QUERIES, T)
        rows = max(1, WEIGHTS // (H * (stop - start) * stop))
        tiles += [(slice(row, row + rows), slice(start, stop), slice(stop)) for row in range(0, B, rows)]
    return tiles


class _TiledAttention(torch.autograd.Function):
    """With S = scores, P = softmax(S) and M = the scaled mask of dropout: Y = (P M) V, and its gradients.

    dV = (P M)' dY, dP = (dY V') M, dS = P (dP - sum(dP P)), dQ = dS K, dK = dS' Q, and a tile adds its part of them.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
        B, H, T, D = q.shape
        kind, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
        q, k, v = (q.to(wide) / math.sqrt(D)).contiguous(), k.contiguous(), v.contiguous()  # (B, H, T, D)
        stays, scale = draw((B, H, T, T), dropout)
        hidden = torch.zeros_like(mask, dtype=wide).masked_fill_(~mask, -math.inf)  # (T, T), or (B, 1, T, T)
        y, patterns = torch.empty_like(v), q.new_empty(B, H, T, T)
        for rows, queries, keys in _tiles(B, H, T):
            scores = q[rows, :, queries] @ k[rows, :, keys].to(wide).mT
            scores += (hidden if hidden.dim() == 2 else hidden[rows])[..., queries, keys]
            pattern = torch.softmax(scores, dim=-1, out=patterns[rows, :, queries, keys])
            y[rows, :, queries] = (pattern * stays[rows, :, queries, keys]).to(kind) @ v[rows, :, keys]
        q = q.to(kind)
        ctx.save_for_backward(q, k, v, patterns, stays)
        ctx.scale = scale
        return y.mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, patterns, stays = ctx.saved_tensors
        B, H, T, D = q.shape
        kind, wide = q.dtype, patterns.dtype
        dy = (dy * ctx.scale).contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide)
        for rows, queries, keys in _tiles(B, H, T):
            pattern, kept = patterns[rows, :, queries, keys], stays[rows, :, queries, keys]
            dv[rows, :, keys] += (pattern * kept).to(kind).mT @ dy[rows, :, queries]
            dpattern = (dy[rows, :, queries] @ v[rows, :, keys].mT).to(wide).mul_(kept)
            dscores = torch._softmax_backward_data(dpattern, pattern, -1, wide).to(kind)
            dq[rows, :, queries] = dscores @ k[rows, :, keys]
            dk[rows, :, keys] += dscores.mT @ q[rows, :, queries]
        return dq / math.sqrt(D), dk.to(kind), dv.to(kind), None, None
