"""One step of decoding: the scores of the next token of each row, and the choice of one.

`Rows` holds the sequences being written and the model's logits after each; `greedy` and `sample` choose. The loops
that repeat this step are in `generate` and `beam_search`.
R rows, T tokens fed at once, V tokens in the vocabulary.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from minigpt.config import Count, VocabSize
from minigpt.decoding.filters import MANY, TINY
from minigpt.decoding.one_token import OneToken
from minigpt.errors import InputError, brief, either, named
from minigpt.fields import check_ids, checked, ordered, whole_ids
from minigpt.kv_cache import KVCache
from minigpt.model import GPT
from minigpt.packed import cache_dtype, new_cache
from minigpt.parameters import evaluating, num_with_text, with_text
from minigpt.system.device import free_bytes

FinishReason = Literal["eos", "stop", "length", "context"]

_DRAWN_AT_ONCE = 2048  # numbers
_FILLING = 16  # tokens of filling that cost about as much as one pass more


class Rows:
    """Sequences that grow side by side, and the logits of the token after each.

    With a cache only new tokens are fed. Without, every row is fed whole, or as much of its end as fits the context: it
    is the simplest way, and the only one once a row is longer than that, where every token changes its position.

    Args:
        model: in evaluation mode.
        prompts: ids, each prompt at least one; of any lengths.
        copies: rows of each prompt, side by side. A prompt is fed once, however many.
        max_length: the most tokens a row will have, those too that `replace` brings.
        use_cache: whether to keep keys and values.
        vocab_size: how many of the model's tokens there are to choose from: V; see `with_text`.
        cache: one that holds the beginning of the only prompt already; None for one of its own.

    Attributes:
        ids: the R rows, prompts included.
        logits: float32 (R, T, V). `logits[r, t]` are for the token after the t-th of row r's newest ids, from 0; after
            the prompt T = 1. A row with n < T new ids has its logits in places 0 to n - 1, and the others mean nothing.
            T is at most the context.

    Raises:
        InputError: if the model gives a logit that is infinite or not a number, now or in `advance`; or if the rows
            need more memory than is free on a CPU.
    """

    def __init__(
        self,
        model: GPT,
        prompts: Sequence[Sequence[int]],
        copies: Sequence[int],
        max_length: int,
        use_cache: bool,
        vocab_size: int,
        cache: KVCache | None = None,
    ) -> None:
        self._model = model
        self._one_token = OneToken(model)
        self._vocab_size = vocab_size
        self._block_size = model.config.block_size
        self._columns = min(self._block_size, max_length, max_length if cache is None else cache.max_length)
        self._shortest_prompt = min(map(len, prompts))
        self._device = model.wte.weight.device
        self._check_memory(sum(copies), use_cache)
        self._cache = cache
        read = 0 if cache is None else cache.longest  # of the prompt
        if use_cache and cache is None and max(map(len, prompts)) <= self._block_size:
            self._cache = new_cache(model, len(prompts), self._columns)
        self._ahead: dict[tuple[int, ...], tuple[KVCache, int]] = {}  # beginnings of prompts that were read, and where
        self.ids = [list(prompt) for prompt, count in zip(prompts, copies, strict=True) for _ in range(count)]
        self._num_last = [1] * len(self.ids)  # how many of each row's newest ids have logits
        self._logits = self._feed([prompt[read:] for prompt in prompts], [1] * len(prompts))  # (N, V)
        if max(copies) > 1:
            each = torch.arange(len(prompts)).repeat_interleave(torch.tensor(copies)).to(self._device)  # (R,)
            self._logits = self._logits[each]  # (N, V) -> (R, V)
            if self._cache is not None:
                self._cache.gather(each)

    def _check_memory(self, rows: int, use_cache: bool) -> None:
        """Refuse more rows than there is memory for their keys and values and a step's scores, which is the least.

        Otherwise the system may end the process without a word. A GPU's own error says it at once.
        """
        config, size = self._model.config, cache_dtype(self._model).itemsize
        kept = 2 * config.n_layer * config.n_embd * self._columns * size * use_cache
        needed = rows * (kept + 2 * 4 * self._vocab_size)  # scores in float32, as the model and a filter give them
        if needed > 2**30 and self._device.type == "cpu":  # less is not worth the question
            free = free_bytes(self._device)
            if free is not None and needed > free:
                less = [f"lower {named(name)}" for name in ("num_beams", "num_return_sequences", "batch_size")]
                what = f"{rows:,} sequences side by side need {needed / 1e9:,.1f} GB of memory or more"
                raise InputError(f"{what}, and {free / 1e9:,.1f} GB are free", either(*less))

    @property
    def logits(self) -> Tensor:
        """Of the token after each of the newest ids."""
        return self._logits.view(len(self.ids), -1, self._logits.size(-1))

    @property
    def last_logits(self) -> Tensor:
        """Of the token after the last one of each row: (R, V)."""
        if self._logits.size(0) == len(self.ids):
            return self._logits
        return self.logits[range(len(self.ids)), [n - 1 for n in self._num_last]]

    def room(self, lengths: Iterable[int]) -> int:
        """How many tokens may be tried after rows of these lengths, so that all fit the context, and the cache."""
        return max(0, self._columns - max(lengths))

    def advance(
        self,
        parents: Sequence[int],
        tokens: Sequence[Sequence[int]],
        keep: Sequence[int] | None = None,
        idx: Tensor | None = None,
    ) -> None:
        """Row i becomes the first `keep[i]` ids of row `parents[i]`, or all of them, with `tokens[i]` at their end.

        Where every row gets one token, and they are a tensor already, `idx` is that: int64 (R,).

        A parent may come several times (a beam that forks) or not at all (a row that is done, and costs nothing from
        then on). Only rows of the same prompt may replace each other, and a prompt stays whole. A row that is its own
        parent need not be copied.
        """
        if list(parents) != list(range(len(self.ids))):
            self.ids = [self.ids[n] if n == row else [*self.ids[n]] for row, n in enumerate(parents)]
            if self._cache is not None and len(parents) == self._cache.batch_size:
                self._cache.copy_rows(parents, first_column=self._shortest_prompt)
            elif self._cache is not None:
                self._cache.gather(torch.tensor(parents, device=self._device))
        if keep is not None:
            surplus = [len(ids) - n for ids, n in zip(self.ids, keep, strict=True)]
            if self._cache is not None and any(surplus):
                self._cache.rollback(torch.tensor(surplus, device=self._device))
            for ids, n in zip(self.ids, keep, strict=True):
                del ids[n:]
        for ids, new in zip(self.ids, tokens, strict=True):
            ids += new
        self._num_last = [min(len(new), self._block_size) for new in tokens]
        if self._cache is not None and self._cache.longest + max(map(len, tokens)) > self._columns:
            self._cache = None  # the window starts to slide, and a cache cannot: its columns are absolute positions
        if self._cache is None:
            self._logits = self._feed(self.ids, self._num_last)
            return
        if max(self._num_last) == 1 and self._one_token.fits():
            if idx is None:
                idx = tensor([new[0] for new in tokens], np.int64, self._device)  # (R,)
            self._logits = self._checked(self._one_token(idx, self._cache), self._num_last)  # (R, V)
        else:
            self._logits = self._feed(tokens, self._num_last)

    def replace(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], upcoming: Sequence[Sequence[int]] = ()
    ) -> None:
        """Rows that are done become other prompts, each without its last id, which `advance` adds.

        Args:
            rows: which.
            prompts: what they become.
            upcoming: prompts that will be wanted soon, which are read together with these, if these were not read yet.
        """
        self._shortest_prompt = min(self._shortest_prompt, *map(len, prompts))
        for row, prompt in zip(rows, prompts, strict=True):
            start = tuple(prompt[:-1])
            self.ids[row] = list(start)
            if self._cache is not None:
                if start not in self._ahead:
                    self._read_ahead([*prompts, *upcoming])
                self._cache.replace(row, *self._ahead[start])

    def _read_ahead(self, prompts: Sequence[Sequence[int]]) -> None:
        """Read these prompts, each without its last id, into caches of their own, and forget those read before."""
        starts = {tuple(prompt[:-1]) for prompt in prompts}
        self._ahead = {}
        for group in _of_like_length(starts):
            longest = len(group[-1])
            cache = new_cache(self._model, len(group), max(1, longest))
            if longest:
                self._read(group, cache)
            self._ahead |= {start: (cache, row) for row, start in enumerate(group)}

    def _read(self, rows: Sequence[Sequence[int]], cache: KVCache | None) -> Tensor:
        """Final hidden states of these ids, which a cache then holds: (R, T, C) where the longest row has T."""
        filling = [max(map(len, rows)) - len(ids) for ids in rows]
        # Short rows are filled up on the right, where no earlier token looks, and the cache takes the filling back.
        filled = [[*ids, *[0] * n] for ids, n in zip(rows, filling, strict=True)] if any(filling) else rows
        hidden = self._model.trunk(torch.tensor(filled, device=self._device), cache)
        if cache is not None and any(filling):
            cache.rollback(torch.tensor(filling, device=self._device))
        return hidden

    def _feed(self, rows: Sequence[Sequence[int]], num_last: Sequence[int]) -> Tensor:
        """Feed each row's ids, give the logits (R * T, V) after its last `num_last[row]` ones; T is the largest."""
        rows = [ids[-self._block_size :] for ids in rows]
        lengths = [len(ids) for ids in rows]
        longest, T = max(lengths), max(num_last)
        hidden = self._read(rows, self._cache)  # (R, longest, C)
        # The head is a third of GPT-2 small: it is spared the positions that nobody asks for.
        if min(lengths) == longest and min(num_last) == T < longest:
            hidden = hidden[:, -T:]  # (R, longest, C) -> (R, T, C)
        elif T < longest:
            first = torch.tensor([length - last for length, last in zip(lengths, num_last, strict=True)])
            wanted = (first[:, None] + torch.arange(T)).clamp(max=longest - 1).to(self._device)  # (R, T)
            hidden = hidden[torch.arange(len(rows), device=self._device)[:, None], wanted]  # (R, T, C)
        return self._checked(self._model.lm_head(hidden).flatten(0, 1), num_last)  # (R, T, V) -> (R * T, V)

    def _checked(self, logits: Tensor, num_last: Sequence[int]) -> Tensor:
        """Logits of the ids that have text, float32 (R * T, V); those that somebody asks for are numbers."""
        logits = with_text(logits, self._vocab_size).float()
        # A finite sum shows that all are finite. Else look at those that somebody asks for: the sum may have
        # overflowed, or the NaN may lie in the filling.
        if not math.isfinite(logits.sum().item()):
            asked = torch.arange(max(num_last)) < torch.tensor(num_last)[:, None]  # (R, T)
            if not logits[asked.flatten().to(self._device)].isfinite().all():
                raise InputError(
                    "the model's logits are not numbers: one is infinite or NaN",
                    "its weights are damaged, or its training diverged: use an earlier checkpoint",
                )
        return logits


def tensor(
    numbers: Sequence[float] | Sequence[Sequence[float]], dtype: type[np.generic], device: torch.device
) -> Tensor:
    """What `torch.tensor` makes of a list, which takes three times as long where there are few numbers."""
    return torch.from_numpy(np.array(numbers, dtype)).to(device)


def _of_like_length(rows: Iterable[tuple[int, ...]]) -> Iterator[list[tuple[int, ...]]]:
    """The rows in groups, each to be filled up to the length of its last; shorter groups first."""
    group: list[tuple[int, ...]] = []
    for row in sorted(rows, key=len):
        if sum(len(row) - len(shorter) for shorter in group) > _FILLING:
            yield group
            group = []
        group.append(row)
    yield group


class NoiseTape:
    """The randomness of sampling: for the n-th new token of a row it is the same, whoever asks, whenever, how often.

    So a draft and the model that checks it use the same noise, and what is written does not depend on when it was
    decided, or on which rows are written at the same time. A generator draws in order of n, each time for all its rows,
    those too that are done or wait. The global random state is untouched.

    Args:
        seed: one seed draws for the whole batch in turn, as transformers does after `torch.manual_seed(seed)`, so a
            row's draws depend on how many rows there are. A list has one seed per prompt: what is drawn for a prompt
            is then what it would get alone. None takes a fresh seed from the operating system.
        device: where to draw. The stream of a seed is the same on every CPU, but not on a GPU.
        rows: how many rows there are in all, also those that are done or wait.
        columns: V.
    """

    def __init__(self, seed: int | Sequence[int] | None, device: torch.device, rows: int, columns: int) -> None:
        seeds = [seed] if seed is None or isinstance(seed, int) else seed
        self._generators = [torch.Generator(device) for _ in seeds]
        for generator, value in zip(self._generators, seeds, strict=True):
            if value is None:
                generator.seed()
            else:
                generator.manual_seed(value)
        self._share = max(1, rows // len(self._generators))  # rows of each generator
        self._columns = columns
        # Of a small vocabulary, noise for several n is drawn at once: starting to draw takes longer than drawing.
        self._ahead = max(1, _DRAWN_AT_ONCE // (self._share * columns)) if device.type == "cpu" else 1
        self._drawn: dict[tuple[int, int], Sequence[Tensor]] = {}  # (generator, n // ahead) -> `ahead` of (share, V)
        self._next = [0] * len(self._generators)  # which n // ahead each will draw for

    def at(self, rows: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Exponential noise (M, V), above 0, for the token that follows `counts[i]` new ones in row `rows[i]`."""
        places = [(row // self._share, n) for row, n in zip(rows, counts, strict=True)]
        noise = {place: self._noise_after(*place) for place in places}
        in_order = self._share == 1 or [*rows] == [*range(rows[0], rows[0] + len(rows))]
        if in_order and len(noise) * self._share == len(rows):
            # The usual case: all rows of each generator, which need not be picked one by one.
            return torch.cat([*noise.values()]) if len(noise) > 1 else noise[places[0]]
        return torch.stack([noise[place][row % self._share] for place, row in zip(places, rows, strict=True)])

    def keep_only(self, rows: Sequence[int], counts: Sequence[int]) -> None:
        """Forget what was drawn for other places, once it is more than these can need.

        If one is asked for again, it is drawn again, from the beginning.
        """
        if len(self._drawn) * self._share > len(rows):
            pieces = {(row // self._share, n // self._ahead) for row, n in zip(rows, counts, strict=True)}
            self._drawn = {piece: drawn for piece, drawn in self._drawn.items() if piece in pieces}

    def _noise_after(self, number: int, n: int) -> Tensor:
        """What a generator draws for all its rows after n new tokens: (share, V)."""
        piece, place = divmod(n, self._ahead)
        if (number, piece) not in self._drawn:
            generator = self._generators[number]
            if piece < self._next[number]:
                generator.manual_seed(generator.initial_seed())
                self._next[number] = 0
            shape = torch.Size((self._ahead, self._share, self._columns))
            for at in range(self._next[number], piece + 1):
                self._drawn[number, at] = _exponential(shape, generator).unbind()
            self._next[number] = piece + 1
        return self._drawn[number, piece][place]


def _exponential(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Exponential noise of mean 1, above 0. On a CPU, as many calls as one likes draw the same as one."""
    if generator.device.type == "cpu":
        # What `exponential_` draws, which takes one logarithm at a time, and three times as long.
        uniform = torch.rand(shape, dtype=torch.float64, generator=generator)
        noise = uniform.neg_().log1p_().neg_().float()
    else:
        noise = torch.empty(shape, device=generator.device).exponential_(generator=generator)
    # It may be rounded to 0, and 0 / 0 would be NaN, which wins an argmax: a removed token would be drawn.
    return noise.clamp_(min=TINY)


def greedy(scores: Tensor) -> Tensor:
    """The best token of each row (R, V) -> int64 (R,); of equals, the first."""
    if scores.size(-1) >= MANY and scores.device.type == "cpu":
        return torch.from_numpy(scores.detach().numpy().argmax(-1))
    return scores.argmax(-1)


def sample(scores: Tensor, noise: Tensor) -> Tensor:
    """Draw a token of each row from softmax(scores): (R, V), (R, V) -> int64 (R,).

    If the q_i are exponential with mean 1, the largest p_i / q_i belongs to token i with probability p_i: a race that
    runner i, of speed p_i, ends after the time q_i / p_i. It is `torch.multinomial` to the bit, its noise in the open.
    """
    return greedy(scores.softmax(-1).div_(noise))


def choose(scores: Tensor, noise: Tensor | None) -> Tensor:
    """Draw a token of each row if there is noise to draw with, else take the best: (R, V) -> int64 (R,)."""
    return greedy(scores) if noise is None else sample(scores, noise)


@checked
@torch.inference_mode()
def next_logits(model: GPT, ids: Sequence[int], vocab_size: VocabSize | None = None) -> Tensor:
    """The logits of the token after `ids`, at most `block_size` of them: float32 (V,). Raises as `next_token_table`."""
    (ids,) = check_prompts([ids], num_with_text(model, vocab_size))
    with evaluating(model):
        hidden = model.trunk(torch.tensor([ids], device=model.wte.weight.device))  # (1, T, C)
        return with_text(model.lm_head(hidden[0, -1]), vocab_size).float()


@checked
def next_token_table(
    model: GPT, ids: Sequence[int], k: Count = 10, vocab_size: VocabSize | None = None
) -> list[tuple[int, float, float]]:
    """What the model expects after `ids`: (token id, logit, probability) of the k likeliest tokens, best first.

    Args:
        model: used in evaluation mode.
        ids: what came before, at most `block_size` ids.
        k: rows of the table.
        vocab_size: the tokenizer's; see `with_text`.

    Raises:
        InputError: if `ids` is empty, not of this vocabulary or longer than the context, or k is below 1.
    """
    logits = next_logits(model, ids, vocab_size)
    probabilities = logits.softmax(-1)
    best = logits.topk(min(k, logits.numel()))
    return list(zip(best.indices.tolist(), best.values.tolist(), probabilities[best.indices].tolist(), strict=True))


def check_prompts(prompts: Sequence[Sequence[int]], vocab_size: int) -> list[list[int]]:
    """The prompts as lists of ids, each of which the model's embedding has.

    Raises:
        InputError: naming the prompt, the position and the id.
    """
    try:
        prompts = [prompts] if isinstance(prompts, str) else list(ordered(prompts))
    except TypeError:  # also of a tensor without dimensions
        raise InputError(
            f"prompts = {brief(prompts)} cannot be used", "give a list of prompts, each a list of token ids"
        ) from None
    checked = []
    for number, prompt in enumerate(prompts):
        try:
            ids = whole_ids(prompt)
        except TypeError:
            raise InputError(
                f"{named(f'prompt {number}')} is {brief(prompt)}, not a list of token ids",
                "encode text first, tokenizer.encode(text), or call minigpt.complete(model, tokenizer, text); and put "
                "a single prompt in a list: [ids]",
            ) from None
        if not ids:
            raise InputError(
                f"{named(f'prompt {number}')} is empty: there is no token to continue from",
                "start from the tokenizer's start_token_id, as the command line does",
            )
        check_ids(ids, vocab_size, named(f"prompt {number}"))
        checked.append(ids)
    return checked
