"""What each attention head looks at, as six numbers, and the identities that attention satisfies.

The scores are means of a pattern over its queries, each between 0 and 1:

    previous     weight on the token before (queries from 2 on, where that is not the first)
    first        weight on position 0 (queries from 2 on)
    self         weight on the token itself (queries from 1 on)
    entropy      of the weights, divided by ln(number of keys) (queries from 1 on): 1 is equal weight on every key
    duplicate    in a text that repeats itself, weight on the same token one period earlier
    induction    in such a text, weight on the token after that one (Olsson et al., 2022)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.analysis.checks import Check, measured
from minigpt.analysis.recording import Trace, allowed
from minigpt.analysis.tracing import trace
from minigpt.config import Count, GPTConfig, Seed, VocabSize
from minigpt.decoding.sampling import check_prompts
from minigpt.errors import InputError, counted
from minigpt.fields import check_place, checked
from minigpt.model import GPT
from minigpt.parameters import evaluating, num_with_text
from minigpt.system import notebook
from minigpt.system.terminal import Brief


class HeadScores(Brief):
    """The scores of all heads on one text.

    Attributes:
        scores: kind -> (n_layer, n_head).
        ids: the text.
        period: after how many tokens it repeats itself, or None if that is unknown.
    """

    scores: dict[str, Tensor]
    ids: list[int]
    period: int | None

    @checked
    def sorted(self, kind: str) -> list[tuple[str, float]]:
        """All heads as "layer.head" with their scores, the highest first.

        Raises:
            InputError: if there is no such score.
        """
        if kind not in self.scores:
            raise InputError(f"there is no score {kind!r} of this text", f"choose {', '.join(self.scores)}")
        scores = self.scores[kind]
        order = scores.flatten().argsort(descending=True, stable=True).tolist()
        heads = [divmod(place, scores.size(1)) for place in order]
        return [(f"{layer}.{head}", float(scores[layer, head])) for layer, head in heads]

    @checked
    def best(self, kind: str, k: Count = 5) -> list[tuple[str, float]]:
        """The k heads with the highest scores, as `sorted` gives them."""
        return self.sorted(kind)[:k]

    def _repr_html_(self) -> str:
        maps = []
        for kind, scores in self.scores.items():
            layers, heads = (
                [f"{name} {n}" for n in range(size)] for name, size in zip(("layer", "head"), scores.shape, strict=True)
            )
            maps.append(notebook.heat_map(layers, heads, scores, kind))
        period = "" if self.period is None else f", which repeat themselves after {self.period}"
        return notebook.shown(f"Scores of the heads on {counted(len(self.ids), 'token')}{period}", *maps)

    @property
    def checks(self) -> list[Check]:
        """Every score lies between 0 and 1."""
        return [
            measured(f"0 <= {kind} <= 1", float((scores - scores.clamp(0, 1)).abs().max()), 1e-5)
            for kind, scores in self.scores.items()
        ]


@checked
@torch.no_grad()
def head_scores(
    model: GPT,
    ids: Sequence[int] | None = None,
    seed: Seed = 0,
    length: Count = 50,
    start_token_id: int | None = None,
    vocab_size: VocabSize | None = None,
) -> HeadScores:
    """Score every head: on random tokens that are repeated once, or on a text.

    Args:
        model: used in evaluation mode.
        ids: a text of at least 3 tokens, without the scores of repetition; by default `repeated_tokens`.
        seed: of the random tokens.
        length: how many random tokens; fewer if block_size has no room for them twice, or the vocabulary has fewer.
        start_token_id: the token before them, for models that begin every text with one; a random one by default.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Raises:
        InputError: if the text or the model is too short, or an id lies outside the vocabulary.
    """
    period = None
    if ids is None:
        ids = repeated_tokens(model.config, length, seed, start_token_id, vocab_size)
        period = len(ids) // 2
    (row,) = check_prompts([ids], num_with_text(model, vocab_size))
    with evaluating(model), trace(model, "*.attn.pattern") as t:
        model(torch.tensor([row], device=model.wte.weight.device))
    pattern = torch.cat(list(t.values())).cpu()  # n_layer x (1, H, T, T) -> (n_layer, H, T, T)
    return HeadScores(scores_of_pattern(pattern, period), row, period)


@checked
def repeated_tokens(
    config: GPTConfig, length: Count, seed: Seed, start_token_id: int | None = None, vocab_size: VocabSize | None = None
) -> list[int]:
    """One token in front, and then `length` others twice. All of them are different, so nothing else repeats.

    The token in front takes position 0, to which heads attend when they find nothing to do.

    Args:
        config: of the model: fewer tokens are taken if block_size or the vocabulary has no room for `length`.
        length: how many tokens are repeated.
        seed: of the random tokens.
        start_token_id: the token in front; a random one by default.
        vocab_size: the tokenizer's; see `parameters.with_text`.

    Raises:
        InputError: if there is room for fewer than 3, the token in front is not in the vocabulary, or the seed is
            invalid.
    """
    V = config.vocab_size if vocab_size is None else min(vocab_size, config.vocab_size)
    length = min(length, (config.block_size - 1) // 2, V - 1)
    if length < 3:
        raise InputError(
            f"{length} tokens that are repeated show no induction",
            "take at least 3, and a model with block_size >= 7 and vocab_size >= 4",
        )
    if start_token_id is not None:
        check_place(start_token_id, V, "token")
    drawn: list[int] = torch.randperm(V, generator=torch.Generator().manual_seed(seed)).tolist()
    if start_token_id is not None:
        drawn.remove(start_token_id)
        drawn.insert(0, start_token_id)
    return [*drawn[: length + 1], *drawn[1 : length + 1]]


def scores_of_pattern(pattern: Tensor, period: int | None = None) -> dict[str, Tensor]:
    """The scores of attention patterns; see the top of this file.

    Args:
        pattern: (..., T, T), row = query, at least 3 tokens; (H, T, T) for the heads of a layer.
        period: from position 1 on, every token occurs again this many tokens later. "duplicate" and "induction" are
            means over the queries after position `period`; None leaves both out.

    Returns:
        kind -> scores of the leading dimensions' shape: (H,) for the heads of a layer.

    Raises:
        InputError: if there are fewer than 3 tokens, or the period is not from 3 to T - 2.
    """
    T = pattern.size(-1)
    if T < 3:
        raise InputError(f"a head shows no habit on so few tokens: {T}", "give a text of at least 3 tokens")
    before, itself = (pattern.diagonal(-n, -2, -1) for n in (1, 0))  # (..., T - n), from query n on
    keys = torch.arange(2, T + 1).to(pattern)  # how many keys the queries 1, 2, ... see
    scores = {
        "previous": before[..., 1:].mean(-1),
        "first": pattern[..., 2:, 0].mean(-1),
        "self": itself[..., 1:].mean(-1),
        "entropy": (torch.special.entr(pattern[..., 1:, :]).sum(-1) / keys.log()).mean(-1),
    }
    return scores if period is None else scores | _scores_of_repetition(pattern, period)


def _scores_of_repetition(pattern: Tensor, period: int) -> dict[str, Tensor]:
    T = pattern.size(-1)
    if not 3 <= period < T - 1:
        raise InputError(
            f"a period of {period} cannot be seen in {T} tokens",
            "choose it from 3 to 2 less than the number of tokens",
        )
    return {
        "duplicate": pattern.diagonal(-period, -2, -1)[..., 1:].mean(-1),  # begins at query = period
        "induction": pattern.diagonal(1 - period, -2, -1)[..., 2:].mean(-1),  # begins one query earlier
    }


def attention_checks(t: Trace, layer: int) -> list[Check]:
    """The identities of attention in one layer of a trace that has recorded all its points from position 0 on.

    Raises:
        PointError: if there is no such layer, or a point of it was not recorded.
    """
    q, k, v, scores, pattern, z = (
        t[f"blocks.{layer}.attn.{name}"] for name in ("q", "k", "v", "scores", "pattern", "z")
    )
    T, S, D = pattern.size(-2), pattern.size(-1), q.size(-1)
    future = torch.ones(T, S, dtype=torch.bool, device=pattern.device).triu(1)
    by_hand = (q @ k.transpose(-2, -1) / math.sqrt(D)).masked_fill(future, -math.inf)
    entropy = torch.special.entr(pattern).sum(-1)
    highest = torch.arange(1, T + 1).to(pattern).log()
    errors = {
        "the weights of a query sum to 1": pattern.sum(-1) - 1,
        "no weight on the future": pattern.masked_fill(~future, 0),
        "softmax of the scores = pattern": scores.softmax(-1) - pattern,
        "softmax(mask(q k^T / sqrt(D))) = pattern": by_hand.softmax(-1) - pattern,
        "pattern @ v = z": (pattern @ v - z) / z.abs().max(),
        "0 <= entropy <= ln(number of keys)": entropy - entropy.clamp(min=0).minimum(highest),
    }
    exact, size = "no weight on the future", max(1.0, float(scores[~future.expand_as(scores)].abs().max()))
    near = allowed(1e-5, size, t.model.wte.weight.dtype, pattern.dtype)
    return [measured(name, float(error.abs().max()), 0.0 if name == exact else near) for name, error in errors.items()]
