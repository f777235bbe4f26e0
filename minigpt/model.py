"""A decoder-only transformer, from the attention upwards: attention, MLP, block, GPT.

The architecture is GPT-2's (Radford et al., 2019): learned positions, layer norm before each sublayer, tanh-GELU, an
output head tied to the token embedding. Parameters bear GPT-2's names. The file knows nothing of text, loss,
optimizer, checkpoint or decoding: ids go in, logits come out. Whoever changes a `forward` here also changes what
computes the same in a faster way: `decoding.one_token`, `training.kernels` and `packed`.

One letter per dimension, here and in the whole project:

    B  batch        rows, each computed for itself
    T  tokens       positions fed in this call: the queries
    S  keys         positions that a query may look back on; S = T without a cache
    C  width        n_embd, the residual stream
    H  heads        n_head
    D  head size    C / H
    V  vocabulary   vocab_size
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from minigpt.config import GPTConfig
from minigpt.dropout import Dropout, draws_words, drop, tiled_attention
from minigpt.errors import InputError
from minigpt.fields import check_value, checked
from minigpt.kv_cache import Cache

# An attention core: (q, k, v, mask, dropout) -> values mixed by attention. Shapes as in `explicit_attention`.
AttentionCore = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def attention_scores(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    """How well each key answers each query: (B, H, T, D), (B, H, S, D) -> (B, H, T, S); -inf where it may not look."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
    # Not a large finite number: scores can be larger still, and then the model sees the future.
    return scores.masked_fill(~mask, -math.inf)


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Scaled dot-product attention in the open (Vaswani et al., 2017, section 3.2.1).

    Args:
        q: queries (B, H, T, D).
        k: keys (B, H, S, D).
        v: values (B, H, S, D).
        mask: bool, true where a query may look: (T, S), or (B, 1, T, S) if rows stand at different positions.
        dropout: share of the attention weights zeroed; 0 outside training.

    Returns:
        The mixed values (B, H, T, D).
    """
    pattern = F.softmax(attention_scores(q, k, mask), dim=-1)  # (B, H, T, S): each query's weights sum to 1
    return drop(pattern, dropout) @ v  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """The same numbers as `explicit_attention` from one fused kernel, which never stores the (T, S) weights."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        # The backward pass of the CPU kernel is several times slower in bfloat16 than in float32.
        with torch.autocast("cpu", enabled=False):
            return fused_attention(q.float(), k.float(), v.float(), mask, dropout).to(q.dtype)
    if dropout and draws_words(q):  # the CPU kernel cannot drop
        return (tiled_attention if q.size(2) == k.size(2) else explicit_attention)(q, k, v, mask, dropout)
    if q.size(2) == k.size(2):
        # T = S, nothing is cached: `mask` is the plain causal triangle, which `is_causal` makes itself, faster.
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
    # With fewer queries than keys `is_causal` would align the triangle to the wrong corner: the mask says who sees
    # whom, and may be left out only where a single query sees every key.
    sees_all = q.size(2) == 1 and mask.dim() == 2
    return F.scaled_dot_product_attention(q, k, v, attn_mask=None if sees_all else mask, dropout_p=dropout)


class CausalSelfAttention(nn.Module):
    """Every position gathers values from itself and the positions before it, in H independent heads.

    Attributes:
        core: the function that computes attention from q, k and v; exchange it to see inside, or to compute faster.
            `fused_attention` by default; `explicit_attention` makes scores and pattern. All cores must give the same
            numbers.
        tril: the causal mask, bool (block_size, block_size): row = query position, column = key position.
    """

    tril: Tensor

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.layer = layer  # which part of the KV-cache is ours
        self.core: AttentionCore = fused_attention
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # queries, keys and values at once
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = Dropout(config.dropout)
        mask = torch.ones(config.block_size, config.block_size, dtype=torch.bool).tril()
        self.register_buffer("tril", mask, persistent=False)  # moves with the model to its device, but is not saved

    def forward(self, x: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C). `positions`: int64 (T,), or (B, T) if the rows' pasts differ in length."""
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)  # (B, T, 3C) -> 3 x (B, T, C)
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        k = k.view(B, T, self.n_head, -1).transpose(1, 2)
        v = v.view(B, T, self.n_head, -1).transpose(1, 2)
        if cache is not None:
            k, v = cache.write(self.layer, positions, k, v)  # (B, H, T, D) -> (B, H, S, D): the past and the present

        S = k.size(2)
        mask = self.tril[S - T : S, :S]  # (T, S): the rows of the last T positions, where the queries stand
        if positions.dim() == 2:  # the queries of each row of the batch stand elsewhere
            mask = self.tril[positions, :S].unsqueeze(1)  # (B, 1, T, S)
        y = self.core(q, k, v, mask, self.dropout if self.training else 0.0)  # (B, H, T, D)
        y = y.transpose(1, 2).reshape(B, T, C)  # heads side by side again: (B, H, T, D) -> (B, T, C)
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each position on its own: widen to 4C, tanh-GELU, narrow to C."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        # GPT-2 was trained with the tanh form; the erf form differs by up to 5e-4 per activation.
        self.gelu = nn.GELU(approximate="tanh")
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = self.gelu(self.c_fc(x))  # (B, T, C) -> (B, T, 4C)
        return self.dropout(self.c_proj(x))


class Block(nn.Module):
    """One layer: attention moves information between positions, the MLP works on each position.

    ::

        x --+--> ln_1 --> attn --> (+) --+--> ln_2 --> mlp --> (+) --> x
            |                       |    |                      |
            +-----------------------+    +----------------------+

    Nothing changes the residual stream except what the two sublayers add to it; the norms stand inside the
    branches ("pre-norm"), so the gradient has a straight way down.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, positions: Tensor, cache: Cache | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attn(self.ln_1(x), positions, cache)
        return x + self.mlp(self.ln_2(x))


def check_inputs(idx: Tensor, vocab_size: int, cache: Cache | None) -> None:
    """Check that idx is int64 (B, T) with all ids in the vocabulary, and the cache one or None.

    On a GPU, looking up an id outside it is no error that could be caught: it ends the process.

    Raises:
        InputError: if not. While torch.compile traces the model there are no values: then type and shape are checked.
    """
    if not isinstance(idx, Tensor) or idx.dtype != torch.int64 or idx.dim() != 2 or not idx.numel():
        found = f"{idx.dtype} {tuple(idx.shape)}" if isinstance(idx, Tensor) else f"a {type(idx).__name__}"
        raise InputError(f"ids are {found}, not int64 (B, T)", "give one row of ids as torch.tensor([ids])")
    if not torch.compiler.is_compiling():
        check_value("cache", cache, Cache | None, InputError)
        values = torch.func.debug_unwrap(idx)  # inside vmap a tensor shows no values: take the one beneath
        lowest, highest = (int(bound) for bound in values.aminmax())
        if lowest < 0 or highest >= vocab_size:
            raise InputError(
                f"ids from {lowest} to {highest} are not all in the vocabulary of {vocab_size}",
                f"use ids from 0 to {vocab_size - 1}, made by the tokenizer that belongs to this model",
            )


class GPT(nn.Module):
    """The whole model.

    ::

        idx (B, T) ------> wte --+
                                 +--> x (B, T, C) --> h.0 --> h.1 --> ... --> ln_f --> lm_head --> logits (B, T, V)
        positions (T,) --> wpe --+

    Args:
        config: its shape. The weights are initialised from torch's global random state (`torch.manual_seed`).

    Attributes:
        lm_head: the output head. With `config.tie_weights` its weight *is* `wte.weight`: one parameter, whose gradient
            is the sum of both uses.
    """

    @checked
    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.drop = Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=1e-5, bias=config.bias)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.init_weights()
        if config.tie_weights:
            self.lm_head.weight = self.wte.weight

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's initialisation: N(0, 0.02) for weights, zero for biases, one for the scales of the layer norms.

        What writes into the residual stream starts smaller by sqrt(2 n_layer), so that the sum of its 2 n_layer
        contributions has the same variance at any depth (Radford et al., 2019, section 2.3).
        """
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.normal_(std=0.02 / math.sqrt(2 * self.config.n_layer))
            elif name.endswith("bias"):
                parameter.zero_()
            elif ".ln_" in f".{name}":
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02)

    def trunk(self, idx: Tensor, cache: Cache | None = None) -> Tensor:
        """Everything but the output head: idx int64 (B, T) -> final hidden states (B, T, C).

        A decoder that needs only the last position's logits applies `lm_head` to that position alone.

        Raises:
            InputError: if the tokens do not fit the context, or the cache.
        """
        T = idx.size(1)
        if cache is not None:
            positions = cache.positions(T, len(idx), self.config.block_size)  # (T,) or (B, T)
        elif T <= self.config.block_size:
            positions = torch.arange(T, device=idx.device)  # (T,)
        else:
            raise InputError(
                f"{T} tokens are more than block_size = {self.config.block_size}",
                f"feed at most {self.config.block_size} tokens: the model has no position embedding beyond that",
            )
        x = self.drop(self.wte(idx) + self.wpe(positions))  # (B, T, C) + (T, C) or (B, T, C) -> (B, T, C)
        for block in self.h:
            x = block(x, positions, cache)
        if cache is not None:
            cache.advance(T)
        return self.ln_f(x)

    def forward(self, idx: Tensor, cache: Cache | None = None) -> Tensor:
        """Logits of the next token at every position: idx int64 (B, T) -> (B, T, V).

        With a cache, `idx` continues what the cache holds, and the cache then holds `idx` too. Any way of cutting a
        sequence into calls gives the same logits as one call.

        Raises:
            InputError: if the tokens are no ids of the vocabulary, or do not fit the context, or the cache.
        """
        check_inputs(idx, self.config.vocab_size, cache)  # not in the trunk, because decoders have checked their ids
        return self.lm_head(self.trunk(idx, cache))  # (B, T, C) -> (B, T, V)

    def num_parameters(self) -> int:
        """Number of trainable and frozen parameters; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
