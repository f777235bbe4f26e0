"""Packing with a document mask: several documents in one row that do not see each other.

`data.batches.packed(..., document_mask=True)` puts whole documents one after another. Within this mask, attention is:

    attention of a row with documents of 3 and 2 tokens

        a . . . .
        a a . . .        "." is not looked at
        a a a . .
        . . . b .
        . . . b b

The model needs no change for this: its attention is exchanged at `CausalSelfAttention.core`, and it asks a cache for
the positions of its tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from minigpt.dropout import draws_words, tiled_attention
from minigpt.kv_cache import Cache
from minigpt.model import GPT, CausalSelfAttention


class _NoPast:
    """Takes the place of a cache: it stores nothing, and only gives the positions (B, T)."""

    def __init__(self, positions: Tensor) -> None:
        self._positions = positions

    def positions(self, num_new: int, rows: int | None = None, block_size: int | None = None) -> Tensor:
        return self._positions

    def write(self, layer: int, positions: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v

    def advance(self, num_new: int) -> None:
        pass


@contextmanager
def document_mask(model: GPT, positions: Tensor | None) -> Iterator[Cache | None]:
    """Within the `with`, attention stays within documents and their positions start at 0.

        with document_mask(model, batch.positions) as cache:
            next_token_loss(model(batch.inputs, cache), batch.targets).backward()

    The backward pass belongs inside the `with` too: with gradient checkpointing it computes attention anew. Every layer
    gets its own core back afterwards.

    Args:
        model: the model itself, not a compiled twin.
        positions: int64 (B, T) on any device, each token's place in its document; None for rows of one text each.

    Yields:
        The cache to give to the model; None for rows of one text each, for which nothing changes.
    """
    if positions is None:
        yield None
        return
    positions = positions.to(model.wte.weight.device)
    document = (positions == 0).cumsum(1)  # (B, T): which of its row's documents a token belongs to
    same = document[:, :, None] == document[:, None, :]  # (B, T, 1) == (B, 1, T) -> (B, T, T)
    visible = same.tril().unsqueeze(1)  # (B, 1, T, T): one for all heads

    def core(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
        if dropout and draws_words(q):
            return tiled_attention(q, k, v, visible, dropout)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)  # (B, H, T, D)

    layers = [module for module in model.modules() if isinstance(module, CausalSelfAttention)]
    cores = [layer.core for layer in layers]
    for layer in layers:
        layer.core = core
    try:
        yield _NoPast(positions)
    finally:
        for layer, former in zip(layers, cores, strict=True):
            layer.core = former
