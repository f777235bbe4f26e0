"""One more token for every row, in as few operations as its mathematics has.

A decoder calls the model for one token at a time. The arithmetic of T = 1 is so small that in a small model most of the
time goes into starting operations: with 3 layers without biases, `GPT.forward` starts 142 of them, and this file 42.
The numbers are those of `GPT.forward` within rounding. What saves operations:

    (B, T, C)    a token of each row is (B, C), and no shape is taken apart and put together for T
    the mask     a single query looks at all that its row has in the cache; only rows of different lengths need one,
                 and one for all layers
    the cache    the views of all layers are made at once, and keys and values of a token are written together
    the views    products of queries, keys, values and of the MLP are written to the same places at every step, so that
                 their parts are taken once
    x += y W     what a sublayer adds to the residual stream is added by its last product, in place
    modules      dropout does nothing here, and a linear layer is its weight

Of a packed model whose products are all in C, the whole pass is one operation: see `one_call.py`. Where a model is not
as `model.py` makes it, or somebody watches or edits it by hooks, it is called as always.

B rows, H heads, D head size, C width, V vocabulary, S columns of the cache with the new one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)
from torch.nn.modules import module as modules

from minigpt.decoding.one_call import OneCall
from minigpt.dropout import Dropout
from minigpt.kv_cache import KVCache
from minigpt.model import GPT, MLP, Block, CausalSelfAttention, fused_attention
from minigpt.packed import PackedGELU, PackedGPT, PackedHead, PackedLinear

_LINEAR = (nn.Linear, PackedLinear, PackedHead)

# (B, in) -> (B, out)
Product = Callable[[Tensor], Tensor]
# x (B, in), y (B, out) -> the product of x, which is y if it could be written there
Written = Callable[[Tensor, Tensor], Tensor]
# x (B, out), y (B, in): x grows by the product of y
Added = Callable[[Tensor, Tensor], object]


class _Layer(NamedTuple):
    """What a block computes with."""

    ln_1: Product
    qkv: Written
    project: Added
    ln_2: Product
    widen: Written
    narrow: Added


class _Places(NamedTuple):
    """Where products of a pass are written, by one block after the other.

    Attributes:
        qkv: (B, 3C).
        parts: of it, as `_split` gives them.
        wide: (B, 4C).
    """

    qkv: Tensor
    parts: tuple[Tensor, Tensor]
    wide: Tensor


class OneToken:
    """A model's forward pass for one token of each row, with a cache.

    Args:
        model: in evaluation mode. Its weights may change in place, but not be exchanged for others.
    """

    def __init__(self, model: GPT) -> None:
        self._config = model.config
        blocks = [block for block in model.h if isinstance(block, Block)]
        parts = _parts(model, blocks)
        self._usual = len(blocks) == len(model.h) and _are_usual(model, parts)
        self._one_call: OneCall | None = None
        if not self._usual:
            return
        if isinstance(model, PackedGPT) and (in_c := model.compiled()) is not None:
            self._one_call = OneCall(model, blocks, in_c)
        self._hooks = [hooks for part, _ in parts for hooks in (part._forward_hooks, part._forward_pre_hooks)]
        self._hooks += [modules._global_forward_hooks, modules._global_forward_pre_hooks]  # of all modules
        self._attention = [block.attn for block in blocks]
        self._cores = [fused_attention] * len(blocks)
        self._device_type = model.wte.weight.device.type
        self._layers = [
            _Layer(
                _norm(block.ln_1), _written(block.attn.c_attn), _added(block.attn.c_proj),
                _norm(block.ln_2), _written(block.mlp.c_fc), _added(block.mlp.c_proj),
            )
            for block in blocks
        ]  # fmt: skip
        self._wte, self._wpe = model.wte.weight, model.wpe.weight
        self._final = _norm(model.ln_f)
        self._head = _product(model.lm_head)
        self._places = self._places_for(1)

    def fits(self) -> bool:
        """Whether it computes what the model does now: no part is exchanged, and nobody looks into it or changes it."""
        return (
            self._usual
            and not any(self._hooks)
            and [attention.core for attention in self._attention] == self._cores
            and not torch.is_autocast_enabled(self._device_type)
        )

    def __call__(self, idx: Tensor, cache: KVCache) -> Tensor:
        """Logits of the token after one more of each row: idx int64 (B,) -> (B, V).

        Args:
            idx: ids of the vocabulary.
            cache: as `packed.new_cache` makes it for this model. It then holds the tokens too.

        Raises:
            InputError: if the tokens do not fit the context, or the cache.
        """
        if self._one_call is not None and cache.kv.dtype in (torch.float32, torch.float16):
            return self._one_call(idx, cache)
        B, C = idx.size(0), self._config.n_embd
        if B != self._places.qkv.size(0):
            self._places = self._places_for(B)
        places = self._places
        column = cache.column(self._config.block_size)
        x = torch.embedding(self._wte, idx).add_(self._wpe[column.positions])  # (B, C) + (C,) or (B, C)
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(layer.ln_1(x), places.qkv)
            q, new_kv = places.parts if qkv is places.qkv else self._split(qkv)
            k, v = cache.put(number, column, new_kv)  # (B, H, S, D)
            y = F.scaled_dot_product_attention(q, k, v, column.mask)  # (B, H, 1, D)
            layer.project(x, y.reshape(B, C))  # x + c_proj(y)
            wide = layer.widen(layer.ln_2(x), places.wide)
            layer.narrow(x, F.gelu(wide, approximate="tanh"))  # x + mlp(ln_2(x))
        cache.advance(1)
        return self._head(self._final(x))

    def _places_for(self, rows: int) -> _Places:
        C = self._config.n_embd
        qkv = self._wte.new_empty(rows, 3 * C)
        return _Places(qkv, self._split(qkv), self._wte.new_empty(rows, 4 * C))

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3C) -> queries (B, H, 1, D), and keys and values (B, 2, H, 1, D)."""
        parts = qkv.view(len(qkv), 3, self._config.n_head, 1, -1)
        return parts[:, 0], parts[:, 1:]


def _parts(model: GPT, blocks: Sequence[Block]) -> list[tuple[nn.Module, type[nn.Module]]]:
    """The modules that are not called here, each with the type that computes as model.py has it.

    Linear layers may be of any other type, because those are called: see `_product`.
    """
    parts: list[tuple[nn.Module, type[nn.Module]]] = [
        (model, GPT), (model.wte, nn.Embedding), (model.wpe, nn.Embedding), (model.drop, Dropout),
        (model.ln_f, nn.LayerNorm),
    ]  # fmt: skip
    linear: list[nn.Module] = [model.lm_head]
    for block in blocks:
        attn, mlp = block.attn, block.mlp
        parts += [(block, Block), (block.ln_1, nn.LayerNorm), (block.ln_2, nn.LayerNorm), (attn, CausalSelfAttention)]
        parts += [(attn.resid_dropout, Dropout), (mlp, MLP), (mlp.dropout, Dropout)]
        parts += [(mlp.gelu, PackedGELU if isinstance(mlp.gelu, PackedGELU) else nn.GELU)]
        linear += [attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj]
    linear += [piece for head in linear if isinstance(head, PackedHead) for piece in head.pieces]
    return parts + [(layer, kind) for layer in linear for kind in _LINEAR if type(layer) is kind]


def _are_usual(model: GPT, parts: Sequence[tuple[nn.Module, type[nn.Module]]]) -> bool:
    """Whether all parts compute as model.py has it."""
    # A `forward` may have been set on one object, as gradient checkpointing does.
    own = any("forward" in vars(part) for part, _ in parts) or "trunk" in vars(model)
    same = all(isinstance(part, kind) and type(part).forward is kind.forward for part, kind in parts)
    same = same and all(part.approximate == "tanh" for part, _ in parts if isinstance(part, nn.GELU))
    return same and not own and type(model).trunk is GPT.trunk


def _norm(norm: nn.LayerNorm) -> Product:
    shape, weight, bias, eps = list(norm.normalized_shape), norm.weight, norm.bias, norm.eps
    return lambda x: torch.layer_norm(x, shape, weight, bias, eps)


def _product(layer: nn.Module) -> Product:
    """Of a plain linear layer the weight is taken; any other, such as an adapted or a packed one, is called."""
    if type(layer) is not nn.Linear:
        return layer
    weight, bias = layer.weight.t(), layer.bias
    return (lambda x: torch.mm(x, weight)) if bias is None else (lambda x: torch.addmm(bias, x, weight))


def _written(layer: nn.Module) -> Written:
    if type(layer) is not nn.Linear:
        return lambda x, y: layer(x)
    weight, bias = layer.weight.t(), layer.bias
    if bias is None:
        return lambda x, y: torch.mm(x, weight, out=y)
    return lambda x, y: torch.addmm(bias, x, weight, out=y)


def _added(layer: nn.Module) -> Added:
    if type(layer) is not nn.Linear:
        return lambda x, y: x.add_(layer(y))
    weight, bias = layer.weight.t(), layer.bias
    if bias is None:
        return lambda x, y: x.addmm_(y, weight)
    return lambda x, y: x.add_(torch.addmm(bias, y, weight))
