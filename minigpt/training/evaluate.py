"""How good a model is, in numbers: the loss of the next token, perplexity, bits per character, log-probability."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from minigpt.data.tokens import IGNORED, Ids, windows_in_order
from minigpt.device import autocast
from minigpt.errors import DataError, InputError
from minigpt.model import GPT

TOKENS_PER_BATCH = 8192  # in evaluation: bounds the memory of the logits, and is large enough to be fast


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not -100.

    Args:
        logits: (..., V), of any floating type; the loss is computed in float32 or better.
        targets: int64 (...), already shifted: `targets[t]` is the token that follows the input at t.

    Returns:
        A scalar. 0 where every target is ignored, and never NaN for that reason.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    total = F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return total / (targets != IGNORED).sum().clamp(min=1)


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Attributes:
        loss: mean cross-entropy in nats per token.
        tokens: number of tokens predicted.
    """

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss): among how many equally likely tokens the model seems to choose."""
        return math.exp(min(self.loss, 700.0))  # beyond that a float overflows

    def bits_per_character(self, num_characters: int) -> float:
        """The loss of all tokens in bits, spread over the characters they stand for: comparable across tokenizers."""
        return self.loss * self.tokens / math.log(2) / num_characters


@torch.no_grad()
def evaluate(model: GPT, ids: Ids, dtype: torch.dtype = torch.float32) -> Evaluation:
    """The loss over a whole text, in order: every token but the first is predicted exactly once.

    The text is cut into windows of `block_size` side by side, so a token sees between 0 and `block_size - 1` tokens
    before it in its window. The model is in evaluation mode meanwhile, and in its former mode afterwards.

    Args:
        model: the model; its device is used.
        ids: the text, (number of tokens,); each id lies in the model's vocabulary.
        dtype: of the matrix products.

    Raises:
        DataError: if there is nothing to predict: fewer than two tokens.
    """
    if len(ids) < 2:
        raise DataError(f"{len(ids)} tokens leave nothing to predict", "give a text of at least two tokens")
    device = model.wte.weight.device
    block_size = model.config.block_size
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        for x, y in windows_in_order(ids, max(1, TOKENS_PER_BATCH // block_size), block_size):
            targets = int((y != IGNORED).sum())
            with autocast(device, dtype):
                logits = model(x.to(device))
            total += next_token_loss(logits, y.to(device)).item() * targets
            count += targets
    finally:
        model.train(was_training)
    return Evaluation(total / count, count)


@torch.no_grad()
def sequence_log_prob(model: GPT, ids: list[int] | list[list[int]] | Tensor) -> float | list[float]:
    """Sum of log p(ids[t] | ids[:t]) over t >= 1, in nats.

    Args:
        model: the model; used in evaluation mode.
        ids: one sequence of token ids, or several, which may differ in length.

    Returns:
        One number, or one for each sequence. A sequence of one token predicts nothing: 0.

    Raises:
        InputError: if a sequence is empty, longer than `block_size`, or holds an id outside the vocabulary.
    """
    rows: Any = ids.tolist() if isinstance(ids, Tensor) else ids
    if len(rows) and not isinstance(rows[0], int):
        return [_one_log_prob(model, row) for row in rows]
    return _one_log_prob(model, rows)


def _one_log_prob(model: GPT, ids: list[int]) -> float:
    V = model.config.vocab_size
    if not ids:
        raise InputError("an empty sequence has no probability", "give at least one token id")
    for position, token_id in enumerate(ids):
        if not 0 <= token_id < V:
            raise InputError(
                f"token id {token_id} at position {position} is outside a vocabulary of {V}",
                "encode the text with the tokenizer that this model was trained with",
            )
    was_training = model.training
    model.eval()
    try:
        row = torch.tensor([ids], device=model.wte.weight.device)  # (1, T)
        log_probs = F.log_softmax(model(row)[0, :-1].float(), dim=-1)  # (T - 1, V)
        return float(log_probs.gather(1, row[0, 1:, None]).double().sum())  # (T - 1, 1) -> scalar
    finally:
        model.train(was_training)
