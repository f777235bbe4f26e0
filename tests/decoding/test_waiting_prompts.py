"""More prompts than are written side by side: each gets what it would get alone, and no row stands idle."""

import random
from typing import Any

import pytest

from minigpt.config import GPTConfig
from minigpt.decoding.generate import Generation, Step, generate
from minigpt.decoding.speculative import DraftModel, PromptLookup
from minigpt.errors import InputError
from minigpt.model import GPT
from tests.conftest import random_model

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [2, 2], [11, 3, 7, 1], [9, 9, 4], [17]]


class Letters:
    """Each id is a letter."""

    vocab_size = 23

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([97 + token_id])


def small_model(seed: int) -> GPT:
    model = random_model(GPTConfig(vocab_size=23, block_size=17, n_layer=2, n_head=3, n_embd=3 * 5), seed)
    return model.double()  # no two best tokens are so near that rows side by side would round them apart


@pytest.fixture(scope="module")
def model() -> GPT:
    return small_model(7)


def random_options(draw: random.Random) -> dict[str, Any]:
    """Strategies, ends, bans and bounds, a few at a time."""
    options: dict[str, Any] = {"max_new_tokens": draw.randint(1, 7), "eos_token_id": draw.sample(range(21), 4)}
    kind = draw.choice(["greedy", "sample", "beam", "beam-sample", "lookup", "draft"])
    if kind == "greedy":
        options |= {"strategy": "greedy"}
    elif kind == "beam":
        options |= {"strategy": "beam", "num_beams": draw.randint(2, 3), "early_stopping": draw.choice([True, "never"])}
        options |= draw.choice([{}, {"required_sequences": [[22, 21]], "max_new_tokens": 7}])
    elif kind == "beam-sample":
        options |= {"temperature": 1.3, "num_beams": 2}
    else:
        options |= {"temperature": 1.5, "num_return_sequences": draw.choice([1, 1, 3])}
        options |= draw.choice([{}, {"top_p": 0.9}, {"top_k": 7}])
    if kind == "lookup":
        options["draft"] = PromptLookup(2, 1)
    elif kind == "draft":
        options["draft"] = DraftModel(small_model(draw.choice([7, 8])), 2)
    options |= draw.choice([{}, {}, {"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}, {"min_new_tokens": 1}])
    options |= draw.choice([{}, {"stop": ["b", "ce"], "tokenizer": Letters()}])
    options |= draw.choice([{}, {}, {"use_cache": False}])
    options["on_overflow"] = draw.choice(["stop", "crop"])
    return options


def alone(model: GPT, prompts: list[list[int]], seeds: list[int], options: dict[str, Any]) -> Generation:
    """Each prompt in a call of its own."""
    outs = [generate(model, [prompt], seed=[seed], **options) for prompt, seed in zip(prompts, seeds, strict=True)]
    return Generation(
        [ids for out in outs for ids in out.sequences],
        [score for out in outs for score in out.scores],
        [reason for out in outs for reason in out.finish_reasons],
    )


@pytest.mark.parametrize("mix", range(200))
def test_a_mix_is_its_prompts_alone(model: GPT, mix: int) -> None:
    draw = random.Random(mix)
    prompts = [[draw.randrange(23) for _ in range(draw.randint(1, 12))] for _ in range(draw.randint(2, 6))]
    seeds = [draw.randrange(100) for _ in prompts]
    options = random_options(draw)
    batch_size = draw.randint(options.get("num_beams", 1), 5)
    try:
        expected = alone(model, prompts, seeds, options)
    except InputError:  # what is required does not fit the context after one of the prompts
        with pytest.raises(InputError):
            generate(model, prompts, seed=seeds, batch_size=batch_size, **options)
        return
    found = generate(model, prompts, seed=seeds, batch_size=batch_size, **options)
    assert found.sequences == expected.sequences
    assert found.finish_reasons == expected.finish_reasons
    assert found.scores == pytest.approx(expected.scores, abs=1e-9)


@pytest.mark.parametrize(
    "options", [{"temperature": 2.0, "num_return_sequences": 2}, {"temperature": 2.0, "num_beams": 2}], ids=str
)
@pytest.mark.parametrize("batch_size", [2, 3, 100])
def test_the_draws_of_one_seed_do_not_depend_on_the_bound(model: GPT, options: dict[str, Any], batch_size: int) -> None:
    told: dict[str, Any] = {"max_new_tokens": 7, "eos_token_id": [*range(8)], "seed": 3, **options}
    expected = generate(model, PROMPTS, **told)
    found = generate(model, PROMPTS, batch_size=batch_size, **told)
    assert (found.sequences, found.finish_reasons) == (expected.sequences, expected.finish_reasons)


@pytest.mark.parametrize("copies", [1, 3])
def test_no_row_is_idle_while_a_prompt_waits(model: GPT, monkeypatch: pytest.MonkeyPatch, copies: int) -> None:
    fed: list[int] = []
    trunk = model.trunk
    monkeypatch.setattr(model, "trunk", lambda idx, cache: fed.append(len(idx)) or trunk(idx, cache))
    steps: list[Step] = []
    out = generate(
        model, PROMPTS, batch_size=3, max_new_tokens=9, eos_token_id=[*range(0, 23, 3)], seed=[*range(7)],
        num_return_sequences=copies, temperature=2.0, on_step=steps.append,
    )  # fmt: skip
    rows = [{choice.row for choice in step.choices} for step in steps]
    seen: set[int] = set()
    for now in rows:
        seen |= now
        waiting = len(out.sequences) - len(seen)
        assert len(now) == 3 or not waiting
    assert not waiting
    assert max(fed) == 3


def test_a_prompt_without_room_takes_no_place(model: GPT) -> None:
    prompts = [[1] * 18, [2], [3] * 18, [4], [5]]
    options: dict[str, Any] = {"strategy": "greedy", "max_new_tokens": 3, "on_overflow": "stop"}
    assert generate(model, prompts, batch_size=2, **options) == generate(model, prompts, **options)


def test_a_search_that_does_not_fit_is_refused(model: GPT) -> None:
    with pytest.raises(InputError, match=r"num_beams = 3 do not fit batch_size = 2\nraise batch_size to 3"):
        generate(model, PROMPTS, strategy="beam", num_beams=3, batch_size=2)
    for wrong in (0, -1, 1.5, True, 2**63):
        with pytest.raises(InputError, match="batch_size"):
            generate(model, PROMPTS, batch_size=wrong)  # type: ignore[arg-type]
