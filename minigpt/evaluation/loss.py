"""How good a model is, in numbers: the loss of the next token, perplexity, bits per character, log-probability."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from minigpt.config import VocabSize
from minigpt.data.batches import Batch
from minigpt.data.tokens import IGNORED, Ids, rows_at_once, windows_in_order
from minigpt.decoding.sampling import check_prompts
from minigpt.errors import DataError, InputError, counted, first_line, named
from minigpt.fields import check_value, checked
from minigpt.model import GPT
from minigpt.parameters import evaluating, num_with_text, with_text
from minigpt.system.device import autocast


@checked
def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not -100.

    Args:
        logits: (..., V), of any floating type; the loss is computed in float32 or better.
        targets: int64 (...), already shifted: `targets[t]` is the token that follows the input at t.

    Returns:
        A scalar; 0, not NaN, if every target is ignored.

    Raises:
        InputError: if a shape or a type is wrong. On the CPU also if a target is outside the vocabulary; on a GPU, this
            check would have to wait for the device.
    """
    tensors = isinstance(logits, Tensor) and isinstance(targets, Tensor) and logits.is_floating_point()
    if not tensors or (targets.dtype, targets.shape) != (torch.int64, logits.shape[:-1]):
        raise InputError(
            f"logits are {_kind(logits)}, and targets {_kind(targets)}",
            "give logits (..., V) of a floating type, and int64 targets (...), one for each V of them",
        )
    rows = _at_least_float32(logits).reshape(-1, logits.size(-1))  # (N, V)
    try:
        total = F.cross_entropy(rows, targets.reshape(-1), ignore_index=IGNORED, reduction="sum")
    except IndexError as error:
        raise InputError(
            f"targets are not all in the vocabulary of {rows.size(-1)}: {first_line(error)}",
            f"use ids from 0 to {rows.size(-1) - 1}, and {IGNORED} for targets that do not count",
        ) from None
    return total / (targets != IGNORED).sum().clamp(min=1)


def perplexity(loss: float) -> float:
    """exp(loss) of a mean loss in nats per token."""
    return math.exp(min(loss, 700.0))  # beyond that a float overflows


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
        """exp(loss): as if the model chose among so many equally likely tokens."""
        return perplexity(self.loss)

    def bits_per_character(self, num_characters: int) -> float | None:
        """The loss of all tokens in bits, spread over the characters they stand for: comparable across tokenizers.

        None for tokens without a character, such as those that end texts.
        """
        return self.loss * self.tokens / math.log(2) / num_characters if num_characters else None


@checked
@torch.no_grad()
def evaluate_batches(
    model: GPT, batches: Iterable[Batch], dtype: torch.dtype, vocab_size: VocabSize | None = None
) -> Evaluation:
    """The mean loss of some batches, over all targets that are not -100.

    The model is put into evaluation mode, and back into its former mode at the end.

    Args:
        model: the model; its device is used.
        batches: rows whose positions are 0 to T - 1. Without a target, the loss is 0.
        dtype: of the matrix products.
        vocab_size: the tokenizer's; see `parameters.with_text`.
    """
    device, total, count = model.wte.weight.device, 0.0, 0
    with evaluating(model):
        for batch in batches:
            check_value("batch", batch, Batch, InputError)
            targets = int((batch.targets != IGNORED).sum())
            with autocast(device, dtype):
                logits = with_text(model(batch.inputs.to(device)), vocab_size)
            total += next_token_loss(logits, batch.targets.to(device)).item() * targets
            count += targets
    return Evaluation(total / max(count, 1), count)


@checked
def evaluate(
    model: GPT,
    ids: Ids,
    dtype: torch.dtype = torch.float32,
    stride: int | None = None,
    vocab_size: VocabSize | None = None,
) -> Evaluation:
    """The mean loss over a whole text, in order: every token except the first is predicted exactly once.

    The model is put into evaluation mode, and back into its former mode at the end.

    Args:
        model: the model; its device is used.
        ids: the text, (number of tokens,); each id lies in the model's vocabulary.
        dtype: of the matrix products.
        stride: from the start of one window of `block_size` to the start of the next; see `windows_in_order`. By
            default the windows do not overlap.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Raises:
        DataError: if there are fewer than two tokens, so that there is nothing to predict.
        InputError: if the stride is not from 1 to `block_size`.
    """
    block_size = model.config.block_size
    if len(ids) < 2:
        raise DataError(
            f"{counted(len(ids), 'token')}: there is nothing to predict", "give a text of at least two tokens"
        )
    if stride is not None and not 1 <= stride <= block_size:
        raise InputError(
            f"{named('stride', stride)} would skip tokens or never move", f"choose it from 1 to {block_size}"
        )
    windows = windows_in_order(ids, rows_at_once(block_size), block_size, stride)
    return evaluate_batches(model, (Batch(*window) for window in windows), dtype, vocab_size)


@checked
@torch.no_grad()
def next_log_probs(model: GPT, ids: Sequence[int], vocab_size: VocabSize | None = None) -> Tensor:
    """The log-probabilities of the next token after each token: (T, V), in float32 or float64.

    Args:
        model: used in evaluation mode.
        ids: one sequence of T token ids.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Raises:
        InputError: if the sequence is empty, longer than `block_size`, or holds an id outside the vocabulary.
    """
    (row,) = check_prompts([ids], num_with_text(model, vocab_size))
    with evaluating(model):
        logits = model(torch.tensor([row], device=model.wte.weight.device))[0]  # (1, T, V) -> (T, V)
    return _at_least_float32(with_text(logits, vocab_size)).log_softmax(-1)


@checked
def token_log_probs(model: GPT, ids: Sequence[int], vocab_size: VocabSize | None = None) -> list[float]:
    """The terms log p(ids[t] | ids[:t]) for t >= 1, in nats.

    Args:
        model: the model; used in evaluation mode.
        ids: one sequence of T token ids.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Returns:
        T - 1 numbers, in order. Their sum is `sequence_log_prob`.

    Raises:
        InputError: if the sequence is empty, longer than `block_size`, or holds an id outside the vocabulary.
    """
    (row,) = check_prompts([ids], num_with_text(model, vocab_size))
    log_probs = next_log_probs(model, row, vocab_size)[:-1]
    following = torch.tensor(row[1:], dtype=torch.int64, device=log_probs.device)
    chosen: list[float] = log_probs.gather(1, following[:, None])[:, 0].tolist()  # (T - 1, V) -> (T - 1,)
    return chosen


@checked
def sequence_log_prob(
    model: GPT, ids: Sequence[int] | Sequence[Sequence[int]] | Tensor, vocab_size: VocabSize | None = None
) -> float | list[float]:
    """Sum of log p(ids[t] | ids[:t]) over t >= 1, in nats.

    Args:
        model: the model; used in evaluation mode.
        ids: one sequence of token ids, or several, which may differ in length.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Returns:
        One number, or one for each sequence. It is 0 for a sequence of one token, where nothing is predicted.

    Raises:
        InputError: if a sequence is empty, longer than `block_size`, or holds an id outside the vocabulary.
    """
    first = ids[:1] if isinstance(ids, Sequence) or getattr(ids, "ndim", None) else ()
    single = len(first) > 0 and (not isinstance(first[0], Iterable) or getattr(first[0], "ndim", None) == 0)
    rows = check_prompts([ids] if single else ids, num_with_text(model, vocab_size))  # type: ignore[list-item, arg-type]
    sums = [math.fsum(token_log_probs(model, row, vocab_size)) for row in rows]
    return sums[0] if single else sums


def _kind(value: object) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
