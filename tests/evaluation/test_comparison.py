"""Measures counted by hand, completions against `generate`, and the bootstrap against what it promises."""

import itertools
import math

import numpy as np
import pytest
import torch

from minigpt.decoding.generate import generate
from minigpt.evaluation.comparison import (
    Completion,
    Interval,
    by_measure,
    continue_prompts,
    difference_interval,
    mean_interval,
    permutation_p,
)
from minigpt.evaluation.loss import token_log_probs
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer.from_text("abcdefghijklmnopqrst \n.")  # 23 characters, as many as the tiny model has tokens
PROMPTS = [[1, 2, 3], [4], [5, 6]]


def written(model: GPT, batch_size: int = 4, **options) -> list[list[Completion]]:
    told: list[int] = []
    out = continue_prompts(
        model, TOKENIZER, PROMPTS, {"max_new_tokens": 7, **options},
        draws=5, seed=11, batch_size=batch_size, advance=told.append,
    )  # fmt: skip
    assert sum(told) == 15
    assert [len(own) for own in out] == [5, 5, 5]
    return out


def test_every_draw_is_what_its_seed_gives_alone(tiny_model):
    out = written(tiny_model, temperature=1.3)
    assert written(tiny_model, batch_size=7, temperature=1.3) == out
    assert [one.seed for own in out for one in own] == list(range(11, 26))
    for prompt, own in zip(PROMPTS, out, strict=True):
        for one in own:
            alone = generate(tiny_model, [prompt], max_new_tokens=7, temperature=1.3, seed=one.seed)
            (ids,) = alone.sequences
            assert one.text == TOKENIZER.decode(ids[len(prompt) :])
            assert one.num_tokens == 7
            assert one.log_prob == pytest.approx(alone.scores[0], abs=1e-4)  # the model's own, temperature or not


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"strategy": "beam", "num_beams": 3}])
def test_what_draws_nothing_is_written_once_and_counts_for_each_seed(tiny_model, options, monkeypatch):
    rows = []

    def counted(model, prompts, **more):
        rows.extend(prompts)
        return generate(model, prompts, **more)

    monkeypatch.setattr("minigpt.evaluation.comparison.generate", counted)
    out = written(tiny_model, **options)
    assert rows == PROMPTS
    for prompt, own in zip(PROMPTS, out, strict=True):
        assert own == [own[0]] * 5
        ids = prompt + TOKENIZER.encode(own[0].text)
        assert own[0].log_prob == pytest.approx(math.fsum(token_log_probs(tiny_model, ids)[len(prompt) - 1 :]))


def test_a_text_that_ends_is_shown_without_its_end(tiny_model):
    tokenizer = CharTokenizer(TOKENIZER.characters)
    ids = generate(tiny_model, [[4]], max_new_tokens=7, strategy="greedy").sequences[0]
    tokenizer.eos_token_id = ids[3]
    ((one,),) = continue_prompts(
        tiny_model, tokenizer, [[4]], {"max_new_tokens": 7, "strategy": "greedy"},
        draws=1, seed=0, batch_size=1, advance=lambda n: None,
    )  # fmt: skip
    end = ids.index(ids[3], 1)
    assert one.num_tokens == end  # the end counts: the model chose it
    assert one.text == TOKENIZER.decode(ids[1:end])
    assert one.log_prob == pytest.approx(math.fsum(token_log_probs(tiny_model, ids[: end + 1])))


def test_measures_by_hand():
    completions = [
        [Completion(0, "a b a b", 4, -2.0), Completion(1, "a b c", 3, -1.5)],
        [Completion(2, "x y x y x y", 6, -3.0), Completion(3, "", 1, -4.0)],
    ]
    found = by_measure(completions, ["q a b c q", "y x"])
    assert found["distinct-1"].tolist() == [3 / 7, 2 / 6]
    assert found["distinct-2"].tolist() == [3 / 5, 2 / 5]  # ab ba ab + ab bc
    assert found["distinct-3"].tolist() == [3 / 3, 2 / 4]  # aba bab + abc
    assert found["repeated-4"].tolist() == [0, pytest.approx(1 / 3)]  # xyxy yxyx xyxy
    assert found["log p"].tolist() == [-3.5 / 7, -7 / 7]
    assert found["tokens"].tolist() == [3.5, 3.5]
    assert found["copied"].tolist() == [(2 + 3) / 2, (2 + 0) / 2]  # ab, abc; yx, nothing
    assert "copied" not in by_measure(completions)


def test_too_few_words_are_not_a_number():
    found = by_measure([[Completion(0, "a b c", 3, -1.0)]])
    assert found["distinct-3"].tolist() == [1]
    assert np.isnan(found["repeated-4"]).all()


@pytest.mark.parametrize("value", [0.0, 3.0, -0.125])
def test_the_interval_of_a_constant_is_the_constant(value):
    assert mean_interval(np.full(13, value)) == Interval(value, value, value)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    """300 samples of 53 numbers from a normal distribution: 95 % less what the percentile method loses.

    The half-width is z * s * sqrt((n - 1) / n / n) and not t's, so P(|t_52| < 1.96 * sqrt(52 / 53)) = 94 % are
    expected, and 300 samples stray from that by 1.4 (one standard deviation).
    """
    samples = np.random.default_rng(5).normal(3, 2, size=(300, 53))
    intervals = [mean_interval(sample, seed) for seed, sample in enumerate(samples)]
    covered = np.mean([interval.low <= 3 <= interval.high for interval in intervals])
    assert 0.905 < covered < 0.975
    width = np.mean([interval.high - interval.low for interval in intervals])
    assert width == pytest.approx(2 * 1.96 * 2 / math.sqrt(53), rel=0.05)


def test_the_interval_is_that_of_all_resamples():
    """Six values have 6 ** 6 resamples, so the quantiles of their means are known, to one step of 1/6."""
    values = np.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0])
    every = np.mean(list(itertools.product(values, repeat=6)), axis=1)
    low, high = np.quantile(every, [0.025, 0.975])
    interval = mean_interval(values)
    assert interval.mean == pytest.approx(41 / 6)
    assert interval.low == pytest.approx(low, abs=0.2)
    assert interval.high == pytest.approx(high, abs=0.2)
    assert np.quantile(every, 0.05) - low > 0.3  # so that an interval of 90 % would be found out


def test_what_is_missing_is_left_out():
    nan = math.nan
    assert mean_interval(np.array([2.0, nan, 2.0])) == Interval(2.0, 2.0, 2.0)
    for few in ([], [nan], [7.0], [7.0, nan]):
        interval = mean_interval(np.array(few))
        assert math.isnan(interval.low)
        assert math.isnan(interval.high)
        assert not interval.excludes_zero
        assert math.isnan(interval.mean) if 7.0 not in few else interval.mean == 7


def test_a_difference_is_taken_prompt_by_prompt():
    base = np.array([0.0, 100.0, -50.0, 7.0, 31.0])  # the prompts differ far more than the settings
    better = difference_interval(base + np.array([1.0, 2.0, 1.0, 2.0, 1.0]), base)
    assert better.mean == pytest.approx(1.4)
    assert 1 <= better.low < better.high <= 2
    assert better.excludes_zero
    assert difference_interval(base, base + 1).excludes_zero  # below 0 too
    assert difference_interval(base, base) == Interval(0, 0, 0)
    assert not difference_interval(base, base).excludes_zero
    assert not difference_interval(base + np.array([3.0, -3.0, 2.0, -2.0, 0.5]), base).excludes_zero


def test_the_global_random_state_stays(tiny_model):
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    mean_interval(np.arange(5.0))
    written(tiny_model)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


# --- the paired permutation test


def test_p_by_hand():
    """Of the eight ways to sign 1, 2 and 3, two have a sum as far from 0 as 6: all plus, all minus."""
    assert permutation_p(np.array([2.0, 5.0, 7.0, np.nan]), np.array([1.0, 3.0, 4.0, 1.0])) == 2 / 8


def test_p_is_that_of_all_signs_and_is_drawn_where_there_are_too_many():
    values = np.random.default_rng(3).normal(0.4, 1, 11)
    sums = [abs(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=11)]
    exact = np.mean([one >= abs(values.sum()) * (1 - 1e-9) for one in sums])
    assert permutation_p(values, np.zeros(11)) == exact
    many = np.tile(values, 3)  # 33 values: 2 ** 33 ways
    drawn = [permutation_p(many, np.zeros(33), seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    normal = math.erfc(abs(many.sum()) / math.sqrt(2 * (many**2).sum()))  # what it tends to, of many values
    assert drawn[0] == pytest.approx(normal, abs=0.01)


def test_p_where_nothing_can_be_said():
    assert permutation_p(np.ones(5), np.ones(5)) == 1
    assert math.isnan(permutation_p(np.ones(1), np.zeros(1)))


@pytest.mark.parametrize("count", [8, 23])
def test_equal_arms_do_not_differ_and_a_planted_difference_is_found(count):
    """200 times two arms on the same dialogues, which are hard for both alike: at 5 %, about ten are a false alarm."""
    chance = np.random.default_rng(count)

    def arms(planted: float) -> float:
        hardness = chance.normal(0, 3, count)
        first, second = (hardness + chance.normal(0, 1, count) for _ in range(2))
        return permutation_p(first + planted, second, seed=5)

    false_alarms = sum(arms(0) <= 0.05 for _ in range(200))
    assert 2 <= false_alarms <= 21  # of a binomial of 200 and 0.05, all but one draw in a thousand
    assert sum(arms(2.5) <= 0.05 for _ in range(200)) >= 190
