"""One step of decoding: the scores of the next token of each row, and the choice of one.

`Rows` holds the sequences being written and the model's logits after each; `greedy` and `sample` choose. The loops
that repeat this step are in `generate` and `beam_search`. R rows, V tokens in the vocabulary.
"""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.model import GPT

FinishReason = Literal["eos", "stop", "length", "context"]


class Rows:
    """Sequences that grow side by side, and the logits of the token after each.

    With a cache only new tokens are fed. Without, every row is fed whole, or as much of its end as fits the block: the
    plain reference, and the only way past the end of the context, where every token changes its position.

    Args:
        model: in evaluation mode.
        prompts: ids, each prompt at least one; of any lengths.
        copies: rows per prompt, side by side. A prompt is fed once, however many.
        max_length: the most tokens a row will have.
        use_cache: whether to keep keys and values.

    Attributes:
        ids: the R rows, prompts included.
        logits: float32 (R, V), of the token after each row.

    Raises:
        InputError: if the model gives NaN.
    """

    def __init__(
        self, model: GPT, prompts: Sequence[Sequence[int]], copies: int, max_length: int, use_cache: bool
    ) -> None:
        self._model = model
        self._block_size = model.config.block_size
        self._shortest_prompt = min(map(len, prompts))
        weight = model.wte.weight
        self._device = weight.device
        self._cache: KVCache | None = None
        if use_cache and max(map(len, prompts)) <= self._block_size:
            columns = min(self._block_size, max_length)
            self._cache = KVCache(model.config, len(prompts), columns, weight.dtype, weight.device)
        self.ids = [list(prompt) for prompt in prompts for _ in range(copies)]
        self.logits = self._feed(prompts).repeat_interleave(copies, dim=0)  # (N, V) -> (R, V)
        if self._cache is not None and copies > 1:
            self._cache.expand(copies)
        if self.logits.isnan().any():
            raise InputError(
                "the model's logits are not numbers (NaN)",
                "its weights are damaged, or its training diverged: use an earlier checkpoint",
            )

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> None:
        """Row i becomes a copy of row `parents[i]` with `tokens[i]` at its end.

        A parent may come several times (a beam that forks) or not at all (a row that is done, and costs nothing from
        then on). Only rows of the same prompt may replace each other.
        """
        if self._cache is not None and list(parents) != list(range(len(self.ids))):
            # The rows of a prompt share its columns already: only what is new is copied.
            self._cache.gather(torch.tensor(parents, device=self._device), first_column=self._shortest_prompt)
        self.ids = [[*self.ids[parent], token] for parent, token in zip(parents, tokens, strict=True)]
        if self._cache is not None and self._cache.longest == self._block_size:
            self._cache = None  # the window starts to slide, and a cache cannot: its columns are absolute positions
        self.logits = self._feed([ids[-1:] for ids in self.ids] if self._cache is not None else self.ids)

    def _feed(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Feed each row's ids, give the logits (R, V) after its last one."""
        rows = [ids[-self._block_size :] for ids in rows]
        lengths = [len(ids) for ids in rows]
        T = max(lengths)
        # Short rows are filled up on the right, where no earlier token looks, and the cache takes the filling back.
        idx = torch.tensor([[*ids, *[0] * (T - len(ids))] for ids in rows], device=self._device)
        hidden = self._model.trunk(idx, self._cache)  # (R, T) -> (R, T, C)
        if min(lengths) == T:
            last = hidden[:, -1]  # (R, C)
        else:
            length = torch.tensor(lengths, device=self._device)
            last = hidden[torch.arange(len(rows), device=self._device), length - 1]
            if self._cache is not None:
                self._cache.rollback(T - length)
        logits: Tensor = self._model.lm_head(last)  # of the last position only: the head is a third of GPT-2 small
        return logits.float()  # (R, V)


class Noise:
    """The chance in sampling: exponential noise from generators of our own. The global random state is untouched.

    Args:
        seed: one seed draws for the whole batch in turn, as transformers does after `torch.manual_seed(seed)`, so a
            row's draws depend on how many rows there are. A list has one seed per prompt: what is drawn for a prompt
            is then what it would get alone. None takes a fresh seed from the operating system.
        device: where to draw. The stream of a seed is the same on every CPU, but not on a GPU.
    """

    def __init__(self, seed: int | Sequence[int] | None, device: torch.device) -> None:
        seeds = [seed] if seed is None or isinstance(seed, int) else seed
        self._generators = [torch.Generator(device) for _ in seeds]
        for generator, value in zip(self._generators, seeds, strict=True):
            if value is None:
                generator.seed()
            else:
                generator.manual_seed(value)

    def draw(self, rows: int, columns: int) -> Tensor:
        """Positive noise (rows, columns), an equal share of the rows from each generator."""
        shape = (rows // len(self._generators), columns)
        noise = [torch.empty(shape, device=g.device).exponential_(generator=g) for g in self._generators]
        # A kernel may round to 0, and 0 / 0 would be NaN, which wins an argmax: a removed token would be drawn.
        return torch.cat(noise).clamp_(min=torch.finfo(torch.float32).tiny)


def greedy(scores: Tensor) -> Tensor:
    """The best token of each row (R, V) -> int64 (R,)."""
    return scores.argmax(-1)


def sample(scores: Tensor, noise: Tensor) -> Tensor:
    """Draw a token of each row from softmax(scores): (R, V), (R, V) -> int64 (R,).

    If the q_i are exponential with mean 1, the largest p_i / q_i belongs to token i with probability p_i: a race that
    runner i, of speed p_i, ends after the time q_i / p_i. It is `torch.multinomial` to the bit, its noise in the open.
    """
    return (scores.softmax(-1) / noise).argmax(-1)


@torch.inference_mode()
def next_token_table(model: GPT, ids: Sequence[int], k: int = 10) -> list[tuple[int, float, float]]:
    """What the model expects after `ids`: (token id, logit, probability) of the k likeliest tokens, best first.

    Raises:
        InputError: if `ids` is empty, not of this vocabulary or longer than the block, or k is below 1.
    """
    if k < 1:
        raise InputError(f"a table of k = {k} tokens is empty", "choose k of at least 1")
    (ids,) = check_prompts([ids], model.config.vocab_size)
    with evaluating(model):
        hidden = model.trunk(torch.tensor([ids], device=model.wte.weight.device))  # (1, T, C)
        logits: Tensor = model.lm_head(hidden[0, -1])  # (V,)
    probabilities = logits.float().softmax(-1)
    best = logits.float().topk(min(k, logits.numel()))
    return list(zip(best.indices.tolist(), best.values.tolist(), probabilities[best.indices].tolist(), strict=True))


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> list[list[int]]:
    """The prompts as lists of ids, each of which the model's embedding has.

    Raises:
        InputError: naming the prompt, the position and the id.
    """
    checked = []
    for number, prompt in enumerate(prompts):
        try:
            ids = [operator.index(token) for token in prompt]  # also numpy's and torch's integers
        except TypeError:
            raise InputError(
                f"prompt {number} is {prompt!r}, not a list of token ids",
                "encode text with the model's tokenizer, and put a single prompt in a list: [ids]",
            ) from None
        if not ids:
            raise InputError(
                f"prompt {number} is empty: there is no token to continue from",
                "start from the tokenizer's start_token_id, as the command line does",
            )
        for position, token in enumerate(ids):
            if not 0 <= token < vocab_size:
                raise InputError(
                    f"prompt {number} has id {token} at position {position}, outside the vocabulary of {vocab_size}",
                    f"use ids from 0 to {vocab_size - 1}, made by the tokenizer that belongs to this model",
                )
        checked.append(ids)
    return checked


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """Dropout off inside, and every module back in its own mode outside, whatever happens."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
