"""What a decoder may choose from: pure functions on scores, and the one order in which they are applied.

A filter takes the scores of the next token, float32 (R, V): a row for each sequence, a column for each token of the
vocabulary. It returns new ones and never changes its input. A removed token gets -inf, which no softmax and no later
filter brings back. Filters that look at what was written before also take `history`: the ids of each row, prompt
included.

Scores are logits, or in beam search log-probabilities. The repetition penalty and `favour_end` look at the sign or the
size of a score, so there the two give different answers; all other filters give the same for both. `keep` is the least
number of tokens that a filter leaves in a row.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from minigpt.decoding.options import LARGEST, DecodingOptions
from minigpt.errors import InputError, named

History = Sequence[Sequence[int]]

TINY = torch.finfo(torch.float32).tiny
MANY = 2048  # tokens; of so many, numpy finds the best one, or their order, several times faster on a CPU


def apply_filters(scores: Tensor, history: History, options: DecodingOptions, num_new: Sequence[int]) -> Tensor:
    """Every filter that is on, in the one order that this project knows; it is also transformers' order.

    Args:
        scores: of the next token, float32 (R, V).
        history: ids of each of the R rows, prompt included.
        options: which filters are on.
        num_new: how many of each row's ids were written after the prompt.

    Returns:
        New scores (R, V). Where bans have left nothing, a row is all -inf: see `check_not_empty`.
    """
    if options.sequence_bias:
        scores = bias_sequences(scores, history, options.sequence_bias)
    if options.repetition_penalty != 1:
        scores = repetition_penalty(scores, history, options.repetition_penalty)
    if options.no_repeat_ngram_size:
        scores = no_repeat_ngram(scores, history, options.no_repeat_ngram_size)
    if options.banned_sequences:
        # A ban of one end-of-sequence token alone is ignored: min_new_tokens is what delays the end.
        banned = (tuple(ids) for ids in options.banned_sequences if len(ids) > 1 or ids[0] not in options.eos)
        scores = bias_sequences(scores, history, dict.fromkeys(banned, -math.inf))
    if min(num_new) < options.min_new_tokens:
        early = [n < options.min_new_tokens for n in num_new]
        scores = _in_rows(early, ban_tokens(scores, options.eos), scores)
    if options.force_eos and max(num_new) == options.max_new_tokens - 1:
        last = [n == options.max_new_tokens - 1 for n in num_new]
        scores = _in_rows(last, force_tokens(scores, options.eos), scores)
    if options.exponential_decay_length_penalty is not None:
        scores = favour_end(scores, num_new, options.eos, *options.exponential_decay_length_penalty)
    if options.suppress_tokens:
        scores = ban_tokens(scores, options.suppress_tokens)
    if options.begin_suppress_tokens and min(num_new) == 0:
        first = [n == 0 for n in num_new]
        scores = _in_rows(first, ban_tokens(scores, options.begin_suppress_tokens), scores)
    if not options.samples:
        return scores  # the filters below only shape a draw: the best token stays the best
    # Beam sampling draws several tokens at once. At least two stay, and one of them is no end-of-sequence token, or
    # every beam could end here.
    keep = max(2, 1 + len(options.eos)) if options.uses_beams else 1
    # Each of these sees what the one before has left: top-p counts the probability that temperature and top-k made.
    if options.temperature is not None and options.temperature != 1:
        scores = temperature(scores, options.temperature)
    if options.top_k:
        scores = top_k(scores, options.top_k, keep)
    if options.top_p is not None and options.top_p < 1:
        scores = top_p(scores, options.top_p, keep)
    if options.min_p:
        scores = min_p(scores, options.min_p, keep)
    if options.typical_p is not None and options.typical_p < 1:
        scores = typical_p(scores, options.typical_p, keep)
    if options.epsilon_cutoff:
        scores = epsilon_cutoff(scores, options.epsilon_cutoff, keep)
    if options.eta_cutoff:
        scores = eta_cutoff(scores, options.eta_cutoff, keep)
    return scores


def check_not_empty(scores: Tensor, options: DecodingOptions) -> None:
    """Refuse to go on where bans have left a row of (R, V) without any token.

    Raises:
        InputError: naming the options that ban.
    """
    if options.bans and (scores.amax(-1) == -math.inf).any():  # nothing else removes a last token
        raise all_banned(options)


def all_banned(options: DecodingOptions) -> InputError:
    """The error for a step that has no token left to choose."""
    names = ", ".join(map(named, options.bans))
    return InputError(f"every token is banned; the options that ban are {names}", "relax one of them")


# The functions below follow the order in which `apply_filters` calls them.


def bias_sequences(scores: Tensor, history: History, biases: Mapping[tuple[int, ...], float]) -> Tensor:
    """Add a bias to each token that would complete one of these sequences; -inf bans it.

    Args:
        scores: (R, V).
        history: ids of each row.
        biases: sequence of ids -> bias. A sequence of one id is always about to be completed. Biases of several
            sequences that end in the same token add up.
    """
    bias = torch.zeros_like(scores)
    for row, ids in enumerate(history):
        for sequence, value in biases.items():
            *start, last = sequence
            if not start or list(ids[-len(start) :]) == start:
                bias[row, last] += float(value)
    return scores + bias


def repetition_penalty(scores: Tensor, history: History, penalty: float) -> Tensor:
    """CTRL's penalty (Keskar et al., 2019, section 4.1): what was written before loses score, once, however often.

    Args:
        scores: (R, V).
        history: ids of each row. The prompt's tokens count too.
        penalty: positive scores are divided by it, negative ones multiplied; below 1 it rewards repetition.
    """
    penalized = torch.where(scores < 0, scores * penalty, scores / penalty)
    return torch.where(_tokens_mask(scores, history), penalized, scores)


def no_repeat_ngram(scores: Tensor, history: History, size: int) -> Tensor:
    """Ban every token that would repeat `size` tokens of the row's history (Paulus et al., 2017, section 2.5).

    Args:
        scores: (R, V).
        history: ids of each row. The prompt's n-grams count too.
        size: n. With 1, no token comes twice.
    """
    banned = []
    for ids in map(list, history):
        written = ids[len(ids) - size + 1 :]  # the last n - 1 tokens: the beginning of the n-gram in the making
        starts = range(len(ids) - size + 1)
        banned.append({ids[i + size - 1] for i in starts if ids[i : i + size - 1] == written})
    return scores.masked_fill(_tokens_mask(scores, banned), -math.inf)


def ban_tokens(scores: Tensor, tokens: Iterable[int]) -> Tensor:
    """Remove these tokens from every row of (..., V)."""
    scores = scores.clone()
    scores[..., list(tokens)] = -math.inf
    return scores


def force_tokens(scores: Tensor, tokens: Iterable[int]) -> Tensor:
    """Remove all but these tokens from every row of (..., V), even if they were banned; their scores become 0."""
    forced = torch.full_like(scores, -math.inf)
    forced[..., list(tokens)] = 0.0
    return forced


def favour_end(scores: Tensor, num_new: Sequence[int], ends: Sequence[int], start: int, factor: float) -> Tensor:
    """Raise the scores of the tokens that end a sequence the more, the longer it is; below 1, `factor` lowers them.

    Args:
        scores: (R, V).
        num_new: how many new tokens each row has.
        ends: the tokens. One that is banned stays so.
        start: up to this many new tokens, nothing happens.
        factor: n tokens later, the score s has become s + |s| * (factor ** n - 1), which ends at `LARGEST`.
    """
    late = torch.tensor([[max(0, n - start)] for n in num_new], dtype=torch.float64)  # (R, 1)
    gain = (float(factor) ** late - 1).clamp(max=LARGEST).to(scores)  # a power of floats would be an OverflowError
    before = scores[:, list(ends)]
    after = torch.where(before.isfinite(), (before + before.abs() * gain).clamp(max=LARGEST), before)
    return scores.index_copy(1, torch.tensor(list(ends), device=scores.device), after)


def temperature(scores: Tensor, value: float) -> Tensor:
    """Divide (..., V) by a temperature above 0 (Ackley, Hinton and Sejnowski, 1985). The order of tokens stays.

    If the quotient overflows, the row's best score is first subtracted from all its scores: the softmax is the same,
    and a score that overflows even so has probability 0. Other rows keep their quotient, to agree with transformers to
    the last bit.
    """
    value = max(float(value), TINY)  # or it would be rounded to 0
    divided = scores / _number(value, scores.dtype)
    if value >= 1 or divided.max().item() < math.inf:
        return divided
    overflows = (divided.isinf() & scores.isfinite()).any(-1, keepdim=True)
    return torch.where(overflows, (scores - scores.amax(-1, keepdim=True)) / value, divided)


def top_k(scores: Tensor, k: int, keep: int = 1) -> Tensor:
    """Keep the k best of (..., V) (Fan et al., 2018), and all that tie with the k-th: none is better."""
    return scores.masked_fill(scores < _kth_best(scores, max(k, keep)), -math.inf)


def top_p(scores: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep the nucleus: the fewest best tokens of (..., V) whose probability reaches p (Holtzman et al., 2020).

    A token stays if the tokens better than it have less than p together: the one that crosses p stays. The sum runs
    from the worst token up, as in transformers, so that the two agree where rounding decides.
    """
    if scores.size(-1) >= MANY and scores.device.type == "cpu":
        # The numbers are sorted without their places, which tell only which of those that tie are removed.
        ascending = torch.from_numpy(np.sort(scores.detach().numpy(), axis=-1))
        below = ascending.softmax(-1).cumsum_(-1) <= _number(1 - p, scores.dtype)
        num_removed = below[..., :-keep].sum(-1, keepdim=True)
        remove = scores < ascending.gather(-1, num_removed)
        if torch.equal(remove.sum(-1, keepdim=True), num_removed):  # else some of those that tie go, and some stay
            return scores.masked_fill(remove, -math.inf)
    ascending, order = scores.sort(dim=-1)
    remove = ascending.softmax(-1).cumsum_(-1) <= _number(1 - p, scores.dtype)
    if keep > 1 or p < 0.5:  # else the best token, where the sum has come to 1, is safe
        remove[..., -keep:] = False
    return scores.scatter(-1, order, ascending.masked_fill_(remove, _number(-math.inf, scores.dtype)))


def min_p(scores: Tensor, share: float, keep: int = 1) -> Tensor:
    """Keep tokens of (..., V) with at least `share` of the best one's probability (Nguyen et al., 2024)."""
    probabilities = scores.softmax(-1)
    remove = probabilities < share * probabilities.amax(-1, keepdim=True)
    return scores.masked_fill(remove & (scores < _kth_best(scores, keep)), -math.inf)


def typical_p(scores: Tensor, p: float, keep: int = 1) -> Tensor:
    """Keep the tokens of (..., V) that are about as surprising as expected (Meister et al., 2023).

    The surprise of a token is -log p, the expected one is the entropy. The nearest to it stay until their probability
    reaches p. It is the one filter that may remove the most likely token, where that is too predictable.
    """
    log_probs = scores.log_softmax(-1)
    distance, order = (-log_probs - _entropy(log_probs)).abs().sort(dim=-1)
    reached = scores.gather(-1, order).softmax(-1).cumsum(-1)
    last = (reached < p).sum(-1, keepdim=True).clamp(max=scores.size(-1) - 1)
    remove = distance > distance.gather(-1, last)
    remove[..., :keep] = False
    return scores.masked_fill(remove.scatter(-1, order, remove), -math.inf)


def epsilon_cutoff(scores: Tensor, epsilon: float, keep: int = 1) -> Tensor:
    """Keep the tokens of (..., V) whose probability is at least epsilon (Hewitt, Manning and Liang, 2022)."""
    remove = scores.softmax(-1) < epsilon
    return scores.masked_fill(remove & (scores < _kth_best(scores, keep)), -math.inf)


def eta_cutoff(scores: Tensor, eta: float, keep: int = 1) -> Tensor:
    """Keep the tokens of (..., V) of probability min(eta, sqrt(eta) * exp(-entropy)), or more (the same paper).

    The bar comes down where the model is unsure: there many tokens have little probability, and are still good.
    """
    bar = (math.sqrt(eta) * (-_entropy(scores.log_softmax(-1))).exp()).clamp(max=eta)  # (..., 1)
    remove = scores.softmax(-1) < bar
    return scores.masked_fill(remove & (scores < _kth_best(scores, keep)), -math.inf)


@lru_cache(64)
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor of the scores' dtype, which an operation takes up in half the time of a Python number."""
    with torch.inference_mode(False):  # a later caller may want gradients
        return torch.tensor(value, dtype=dtype, device="cpu")


def _entropy(log_probs: Tensor) -> Tensor:
    """In nats: (..., V) -> (..., 1)."""
    return -(log_probs.exp() * log_probs).nansum(-1, keepdim=True)  # a removed token is 0 * -inf: no contribution


def _in_rows(flags: Sequence[bool], changed: Tensor, scores: Tensor) -> Tensor:
    """`changed` in the rows whose flag is set, `scores` in the others: (R, V)."""
    return torch.where(torch.tensor(flags, device=scores.device)[:, None], changed, scores)


def _kth_best(scores: Tensor, k: int) -> Tensor:
    """The k-th largest score of each row: (..., V) -> (..., 1)."""
    return scores.topk(min(k, scores.size(-1))).values[..., -1:]


def _tokens_mask(scores: Tensor, tokens: Sequence[Iterable[int]]) -> Tensor:
    """Bool (R, V), true at the tokens named for each row."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row, ids in enumerate(tokens):
        mask[row, list(set(ids))] = True
    return mask
