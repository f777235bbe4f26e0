"""One more token for every row, in as few operations as its mathematics has.

A decoder calls the model for one token at a time. The arithmetic of T = 1 is so small that in a small model most of the
time goes into starting operations: with 3 layers without biases, `GPT.forward` starts 140 of them, and this file 64.
The numbers are those of `GPT.forward` within rounding. What saves operations:

    (B, T, C)    a token of each row is (B, C), and no shape is taken apart and put together for T
    the mask     a single query looks at all that its row has in the cache; only rows of different lengths need one,
                 and one for all layers
    the cache    the views of all layers are made at once, and keys and values of a token are written together
    x + y W      what a sublayer adds to the residual stream is added by its last product
    modules      dropout does nothing here, and a linear layer is its weight

Where a model is not as `model.py` makes it, or somebody watches or edits it by hooks, it is called as always.

B rows, H heads, D head size, C width, V vocabulary, S columns of the cache with the new one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from minigpt.dropout import Dropout
from minigpt.kv_cache import KVCache
from minigpt.model import GPT, MLP, Block, CausalSelfAttention, fused_attention

# (B, in) -> (B, out)
Product = Callable[[Tensor], Tensor]
# x (B, out), y (B, in) -> x + the product of y
Added = Callable[[Tensor, Tensor], Tensor]


class _Layer(NamedTuple):
    """What a block computes with."""

    ln_1: nn.LayerNorm
    qkv: Product
    project: Added
    ln_2: nn.LayerNorm
    widen: Product
    narrow: Added


class OneToken:
    """A model's forward pass for one token of each row, with a cache.

    Args:
        model: in evaluation mode. Its weights may change; which they are may not.
    """

    def __init__(self, model: GPT) -> None:
        self._model = model
        blocks = [block for block in model.h if isinstance(block, Block)]
        self._usual = len(blocks) == len(model.h) and _is_usual(model, blocks)
        if not self._usual:
            return
        self._hooks = [hooks for part in model.modules() for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._attention = [block.attn for block in blocks]
        self._layers = [
            _Layer(
                block.ln_1, _product(block.attn.c_attn), _added(block.attn.c_proj),
                block.ln_2, _product(block.mlp.c_fc), _added(block.mlp.c_proj),
            )
            for block in blocks
        ]  # fmt: skip
        self._head = _product(model.lm_head)

    def fits(self) -> bool:
        """Whether it computes what the model does now: no part is exchanged, and nobody looks into it or changes it."""
        return (
            self._usual
            and not any(self._hooks)
            and all(attention.core is fused_attention for attention in self._attention)
            and not torch.is_autocast_enabled(self._model.wte.weight.device.type)
        )

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits of the token after one more of each row: idx int64 (B,) -> (B, V).

        Args:
            idx: ids of the vocabulary.
            cache: of the model's own dtype. It then holds the tokens too.

        Raises:
            InputError: if the tokens do not fit the block, or the cache.
        """
        model = self._model
        B, H, C = len(idx), model.config.n_head, model.config.n_embd
        column = cache.column(model.config.block_size)
        x = F.embedding(idx, model.wte.weight) + F.embedding(column.positions, model.wpe.weight)  # (B, C)
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(_norm(x, layer.ln_1)).view(B, 3, H, 1, -1)  # (B, 3C) -> (B, 3, H, 1, D)
            k, v = cache.put(number, column, qkv[:, 1:])  # (B, H, S, D)
            y = F.scaled_dot_product_attention(qkv[:, 0], k, v, column.mask)  # (B, H, 1, D)
            x = layer.project(x, y.reshape(B, C))
            x = layer.narrow(x, F.gelu(layer.widen(_norm(x, layer.ln_2)), approximate="tanh"))
        cache.advance(1)
        return self._head(_norm(x, model.ln_f))


def _norm(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    return torch.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _is_usual(model: GPT, blocks: Sequence[Block]) -> bool:
    """Whether all parts compute as model.py has it. Linear layers are called, so they may be anything."""
    parts: list[tuple[nn.Module, type[nn.Module]]] = [
        (model, GPT), (model.wte, nn.Embedding), (model.wpe, nn.Embedding), (model.drop, Dropout),
        (model.ln_f, nn.LayerNorm),
    ]  # fmt: skip
    for block in blocks:
        attn, mlp = block.attn, block.mlp
        parts += [(block, Block), (block.ln_1, nn.LayerNorm), (block.ln_2, nn.LayerNorm), (attn, CausalSelfAttention)]
        parts += [(attn.resid_dropout, Dropout), (mlp, MLP), (mlp.gelu, nn.GELU), (mlp.dropout, Dropout)]
    own = {"trunk", "forward"} & {name for part, _ in parts for name in vars(part)}
    same = all(isinstance(part, kind) and type(part).forward is kind.forward for part, kind in parts)
    return same and not own and type(model).trunk is GPT.trunk


def _product(layer: nn.Module) -> Product:
    if type(layer) is not nn.Linear:
        return layer
    return lambda x: F.linear(x, layer.weight, layer.bias)


def _added(layer: nn.Module) -> Added:
    if type(layer) is nn.Linear and layer.bias is None:
        return lambda x, y: torch.addmm(x, y, layer.weight.t())
    product = _product(layer)
    return lambda x, y: x + product(y)
