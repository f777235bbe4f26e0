"""Several decoders, or models, on the same prompts: what each writes, and which differences are more than chance.

A measure has one value for each prompt, the average over its texts. The prompts are a random sample: another sample
would give another mean. The bootstrap estimates how much these means would differ (Efron, 1979).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minigpt.decoding.generate import Step, generate
from minigpt.decoding.options import DecodingOptions
from minigpt.evaluation.diversity import distinct_n, repeated_n, words
from minigpt.evaluation.loss import token_log_probs
from minigpt.evaluation.overlap import overlaps
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer

Values = NDArray[np.float64]

MEASURES = {
    "distinct-1": "different words, as a share of all words in a prompt's texts",
    "distinct-2": "different pairs of words, in the same way; 1 is the most varied",
    "distinct-3": "different triples of words, in the same way",
    "repeated-4": "share of four words in a row that occurred earlier in the same text",
    "log p": "log-probability of a new token by the model itself, in nats",
    "tokens": "new tokens a text",
    "copied": "longest span copied from the training data, in words",
}
RESAMPLES, PERMUTATIONS = 2000, 10_000


@dataclass(frozen=True)
class Completion:
    """One continuation of one prompt.

    Attributes:
        seed: of its draws.
        text: the new text alone.
        num_tokens: number of new tokens, with the one that ends the text.
        log_prob: sum of log p of the new tokens in nats, by the model's own distribution, before any filter.
        finish_reason: what ended it, as in `Generation.finish_reasons`.
    """

    seed: int
    text: str
    num_tokens: int
    log_prob: float
    finish_reason: str = ""


@dataclass(frozen=True)
class Interval:
    """A mean over prompts, and its 95 % interval; NaN if there are too few prompts."""

    mean: float
    low: float
    high: float

    def to_dict(self) -> dict[str, float | None]:
        """As JSON can hold it: null for what is not known."""
        return {name: known(value) for name, value in vars(self).items()}

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference of this size is more than chance."""
        return self.low > 0 or self.high < 0


def known(value: float) -> float | None:
    """A number for JSON, which cannot hold one that is not known: None for NaN."""
    return value if math.isfinite(value) else None


def continue_prompts(
    model: GPT,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    options: Mapping[str, Any],
    *,
    draws: int,
    seed: int,
    batch_size: int,
    advance: Callable[[int], object],
) -> list[list[Completion]]:
    """Let a model continue each prompt several times, each time with a seed of its own.

    Two calls with the same `draws` and `seed` use the same seeds, whatever the model and the options. A decoder that
    does not sample writes one text for each prompt, and this text counts `draws` times.

    Args:
        model: the model.
        tokenizer: the model's. Its end-of-sequence token ends a text.
        prompts: ids. Each must fit into block_size together with its new tokens.
        options: fields of `DecodingOptions`, without seeds.
        draws: number of texts for each prompt.
        seed: of the first draw of the first prompt.
        batch_size: how many texts are written at once; it does not change them.
        advance: called as texts end with the number that are new; in all these are draws * prompts.

    Returns:
        For each prompt its completions, `draws` of them.

    Raises:
        InputError: where `generate` raises one.
    """
    options = {"eos_token_id": tokenizer.end_ids, **options}
    copies = 1 if DecodingOptions(**options).samples else draws
    jobs = [(prompt, seed + place * draws + draw) for place, prompt in enumerate(prompts) for draw in range(draws)]
    jobs = jobs[::copies]
    chosen, seeds = [prompt for prompt, _ in jobs], [own for _, own in jobs]
    under_way: set[int] = set()  # prompts that are searched for
    num_done = 0

    def on_step(step: Step) -> None:
        nonlocal under_way, num_done
        now = {beam.prompt for beam in step.beams}
        done = len(under_way - now) + sum(choice.finish_reason is not None for choice in step.choices)
        under_way, num_done = now, num_done + done
        advance(done * copies)

    out = generate(
        model, chosen, tokenizer=tokenizer, seed=seeds, on_step=on_step, num_candidates=0,
        **{**options, "batch_size": batch_size * options.get("num_beams", 1)},
    )  # fmt: skip
    advance((len(jobs) - num_done) * copies)
    rows = zip(out.sequences, chosen, seeds, out.finish_reasons, strict=True)
    written = [_completion(model, tokenizer, ids, len(prompt), own, why) for ids, prompt, own, why in rows]
    repeated = [completion for completion in written for _ in range(copies)]
    return [repeated[start : start + draws] for start in range(0, len(repeated), draws)]


def by_measure(completions: Sequence[Sequence[Completion]], training: Sequence[str] | None = None) -> dict[str, Values]:
    """The measures of `MEASURES`, each with one value for each prompt.

    Args:
        completions: as `continue_prompts` returns them.
        training: documents of the training set; without them, "copied" is left out.

    Returns:
        measure -> float64 (number of prompts,); NaN if no text of a prompt has enough words.
    """
    texts = [[words(completion.text) for completion in own] for own in completions]
    values: dict[str, list[Any]] = {f"distinct-{n}": [distinct_n(own, n) for own in texts] for n in (1, 2, 3)}
    values["repeated-4"] = [repeated_n(own, 4) for own in texts]
    values["log p"] = [sum(c.log_prob for c in own) / sum(c.num_tokens for c in own) for own in completions]
    values["tokens"] = [sum(c.num_tokens for c in own) / len(own) for own in completions]
    if training is not None:
        found = iter(overlaps([completion.text for own in completions for completion in own], training))
        values["copied"] = [sum(next(found).longest for _ in own) / len(own) for own in completions]
    return {name: np.array(column, np.float64) for name, column in values.items()}


def mean_interval(values: Values, seed: int = 0) -> Interval:
    """The mean, with its 95 % bootstrap interval by the percentile method (Efron and Tibshirani, 1993, chapter 13).

    2,000 times, as many values as there are are drawn from them with replacement, and their mean is taken. The interval
    leaves out the lowest and the highest 2.5 % of these means. With few values it is too narrow: with 10, about 90 % of
    such intervals contain the true mean.

    Args:
        values: float64 (number of prompts,). NaN is left out; with fewer than two values, the interval is NaN.
        seed: of the draws. Calls with the same seed and number of values draw the same indices.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else np.nan, np.nan, np.nan)
    places = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[places].mean(axis=1), [0.025, 0.975])
    return Interval(float(values.mean()), float(low), float(high))


def difference_interval(values: Values, base: Values, seed: int = 0) -> Interval:
    """`mean_interval` of values - base, of the same prompts in the same order: what makes one hard for both cancels."""
    return mean_interval(values - base, seed)


def permutation_p(values: Values, base: Values, seed: int = 0) -> float:
    """The p-value of a paired permutation test (Fisher, 1935): how often chance alone differs as much, either way.

    If the two are alike, each difference might as well have the other sign. So signs are drawn anew, 10,000 times or,
    of few values, in all ways there are, and each time the mean of the differences is compared with the true one.

    Args:
        values: float64 (number of prompts,).
        base: of the same prompts, in the same order. Where one of the two is NaN, the prompt is left out.
        seed: of the draws.

    Returns:
        From 0 to 1; NaN with fewer than two values. With n values it cannot be below 2 ** (1 - n).
    """
    differences = values - base
    differences = differences[~np.isnan(differences)]
    n = len(differences)
    if n < 2:
        return math.nan
    every = 2**n <= PERMUTATIONS
    if every:
        signs = 1 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = 1 - 2.0 * np.random.default_rng(seed).integers(2, size=(PERMUTATIONS, n))
    as_far = int((abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-9)).sum())
    return as_far / len(signs) if every else (1 + as_far) / (1 + len(signs))


def _completion(
    model: GPT, tokenizer: Tokenizer, ids: list[int], num_given: int, seed: int, finish_reason: str
) -> Completion:
    new = ids[num_given:]
    log_probs = token_log_probs(model, ids, tokenizer.vocab_size)[num_given - 1 :]
    return Completion(seed, tokenizer.decode(new), len(new), math.fsum(log_probs), finish_reason)
