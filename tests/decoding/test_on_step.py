"""Whoever watches a decoder sees what was considered and chosen, and changes nothing."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from minigpt.decoding import batch
from minigpt.decoding.generate import Step, generate, stream
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError
from minigpt.model import GPT

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]
CASES: list[dict[str, Any]] = [
    {"strategy": "greedy", "eos_token_id": [3, 5]},
    {"temperature": 1.3, "num_return_sequences": 2, "eos_token_id": 3},
    {"temperature": 1.0, "draft": PromptLookup(3, 1)},
    {"strategy": "beam", "num_beams": 3, "eos_token_id": [3, 5], "num_return_sequences": 2},
    {"temperature": 1.0, "num_beams": 3, "seed": 2},
    {"strategy": "beam", "num_beams": 2, "required_sequences": [[4, 7]]},
]


def watch(model: GPT, **options: Any) -> tuple[Any, list[Step]]:
    steps: list[Step] = []
    result = generate(model, PROMPTS, max_new_tokens=8, on_step=steps.append, **options)
    return result, steps


@pytest.mark.parametrize("options", CASES, ids=str)
def test_watching_changes_nothing(tiny_model: GPT, options: dict[str, Any]) -> None:
    assert watch(tiny_model, **options)[0] == generate(tiny_model, PROMPTS, max_new_tokens=8, **options)


@pytest.mark.parametrize("options", CASES[:3], ids=str)
def test_the_choices_make_the_result(tiny_model: GPT, options: dict[str, Any]) -> None:
    result, steps = watch(tiny_model, **options)
    copies = options.get("num_return_sequences", 1)
    sequences = [list(prompt) for prompt in PROMPTS for _ in range(copies)]
    ends = {}
    for step in steps:
        assert not step.beams
        for choice in step.choices:
            assert choice.row not in ends, "a row went on after its end"
            sequences[choice.row].append(choice.id)
            if choice.finish_reason is not None:
                ends[choice.row] = choice.finish_reason
    assert sequences == result.sequences
    assert [ends[row] for row in range(len(sequences))] == result.finish_reasons
    choices = [choice for step in steps for choice in step.choices]
    assert sum(choice.drafted for choice in choices) == result.num_accepted
    assert sum(step.num_drafted for step in steps) == result.num_drafted
    assert (result.num_drafted > 0) == ("draft" in options)


@pytest.mark.parametrize("numbers", [1, 101, 10**6])
@pytest.mark.parametrize("options", CASES[:3], ids=str)
def test_scores_are_the_sums_of_the_choices(
    tiny_model: GPT, options: dict[str, Any], numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many steps they are computed for at once."""
    monkeypatch.setattr(batch, "_SCORED_AT_ONCE", numbers)
    result, steps = watch(tiny_model, batch_size=2, **options)
    sums = [0.0] * len(result.scores)
    for choice in itertools.chain.from_iterable(step.choices for step in steps):
        sums[choice.row] += choice.log_prob
    assert result.scores == pytest.approx(sums, abs=1e-5)


@torch.no_grad()
def test_candidates_are_those_of_a_plain_forward(tiny_model: GPT) -> None:
    """Before filters what the model says, after them what the draw is made from."""
    steps: list[Step] = []
    options: dict[str, Any] = {"temperature": 0.5, "top_k": 2, "banned_sequences": [[21]], "seed": 3}
    for draft in (None, DraftModel(tiny_model, 3)):
        steps.clear()
        generate(
            tiny_model, [[1, 2, 3]], max_new_tokens=6, draft=draft, on_step=steps.append, num_candidates=4, **options
        )
        ids = [1, 2, 3]
        for choice in (choice for step in steps for choice in step.choices):
            log_probs = tiny_model(torch.tensor([ids]))[0, -1].log_softmax(-1)
            best = log_probs.topk(4)
            assert [candidate.id for candidate in choice.candidates] == best.indices.tolist()
            assert [candidate.log_prob for candidate in choice.candidates] == pytest.approx(best.values, abs=1e-4)
            allowed = [token for token in log_probs.argsort(descending=True).tolist() if token != 21][:2]
            shares = (log_probs[allowed] / 0.5).softmax(-1).tolist()
            expected = dict(zip(allowed, shares, strict=True))
            for candidate in choice.candidates:
                assert candidate.probability == pytest.approx(expected.get(candidate.id, 0.0), abs=1e-4)
            assert choice.id in allowed
            assert choice.log_prob == pytest.approx(float(log_probs[choice.id]), abs=1e-4)
            ids.append(choice.id)
        assert len(ids) == 9


def test_a_row_that_is_done_is_not_reported(tiny_model: GPT) -> None:
    result, steps = watch(tiny_model, strategy="greedy", eos_token_id=[*range(0, 23, 2)])
    new = [len(ids) - len(prompt) for ids, prompt in zip(result.sequences, PROMPTS, strict=True)]
    assert [[c.row for c in step.choices] for step in steps] == [
        [row for row in range(3) if new[row] > at] for at in range(max(new))
    ]


@pytest.mark.parametrize("options", CASES[3:], ids=str)
def test_a_tree_of_beams_leads_to_the_result(tiny_model: GPT, log_prob: Callable[..., float], options: Any) -> None:
    result, steps = watch(tiny_model, **options)
    B = options["num_beams"]
    beams = {(number, 0): list(prompt) for number, prompt in enumerate(PROMPTS)}
    finished = []
    for step in steps:
        assert not step.choices
        assert [seen.prompt for seen in step.beams] == sorted(seen.prompt for seen in step.beams)
        following = {}
        for seen in step.beams:
            ids = [*beams[seen.prompt, seen.parent], seen.id]
            assert 0 <= seen.parent < B
            assert seen.kept or seen.place is None
            if options.get("strategy") == "beam":
                new = len(ids) - len(PROMPTS[seen.prompt])
                assert seen.total == pytest.approx(log_prob(tiny_model, ids, new), abs=1e-4)
            if seen.place is not None:
                assert seen.finish_reason is None
                following[seen.prompt, seen.place] = ids
            elif seen.kept:
                finished.append((ids, seen.finish_reason))
        beams = following
    assert all(pair in finished for pair in zip(result.sequences, result.finish_reasons, strict=True))


def test_a_watcher_may_stop_everything(tiny_model: GPT) -> None:
    def enough(step: Step) -> None:
        raise KeyboardInterrupt

    for options in CASES:
        with pytest.raises(KeyboardInterrupt) as caught:
            generate(tiny_model.train(), PROMPTS, max_new_tokens=8, on_step=enough, **options)
        assert tiny_model.training, "the mode is back at once, not when the traceback is forgotten"
        assert caught.value is not None


def test_what_is_shown_cannot_be_changed(tiny_model: GPT) -> None:
    _, steps = watch(tiny_model, strategy="greedy")
    with pytest.raises(AttributeError):
        steps[0].choices[0].id = 5  # type: ignore[misc]


@pytest.mark.parametrize("number", [-1, 1.5, None, 10**400])
def test_a_number_of_candidates_that_counts_nothing(tiny_model: GPT, number: Any) -> None:
    for call in (lambda: generate(tiny_model, PROMPTS, on_step=print, num_candidates=number),
                 lambda: stream(tiny_model, PROMPTS[0], on_step=print, num_candidates=number)):  # fmt: skip
        with pytest.raises(InputError, match=f"num_candidates = {str(number)[:9]}"):
            call()


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, *CASES[2:3]], ids=str)
def test_a_stream_shows_the_steps_of_generate(tiny_model: GPT, options: dict[str, Any]) -> None:
    expected: list[Step] = []
    generate(tiny_model, PROMPTS[:1], max_new_tokens=8, on_step=expected.append, num_candidates=3, **options)
    steps: list[Step] = []
    ids = []
    told: dict[str, Any] = {"max_new_tokens": 8, "num_candidates": 3, **options}
    for token in stream(tiny_model, PROMPTS[0], on_step=steps.append, **told):
        ids.append(token)
        assert [choice.id for step in steps for choice in step.choices][: len(ids)] == ids, "first told, then given"
    assert steps == expected


def test_without_a_watcher_nothing_is_prepared(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.decoding.batch._candidates", lambda *_: pytest.fail("computed for nobody"))
    monkeypatch.setattr("minigpt.decoding.beam_search._Search.report", lambda *_: pytest.fail("computed for nobody"))
    for options in CASES:
        generate(tiny_model, PROMPTS, max_new_tokens=3, **options)


def test_who_wants_no_candidates_gets_the_choices_alone(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.decoding.batch._candidates", lambda *_: pytest.fail("computed for nobody"))
    steps: list[Step] = []
    out = generate(tiny_model, PROMPTS[:1], max_new_tokens=3, on_step=steps.append, num_candidates=0)
    choices = [choice for step in steps for choice in step.choices]
    assert [choice.id for choice in choices] == out.sequences[0][-3:]
    assert not any(choice.candidates for choice in choices)
