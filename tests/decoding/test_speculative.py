"""A draft changes the speed and nothing else: token for token what comes without it, also when drawing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.decoding.generate import generate, stream
from minigpt.decoding.options import DecodingOptions
from minigpt.decoding.sampling import NoiseTape, Rows, greedy, sample
from minigpt.decoding.speculative import DraftModel, ModelDrafter, PromptLookup
from minigpt.errors import InputError
from minigpt.kv_cache import KVCache
from minigpt.model import GPT
from minigpt.tokenizers import CharTokenizer
from tests.conftest import random_model

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


def small_model(seed: int, block_size: int = 13) -> GPT:
    return random_model(GPTConfig(vocab_size=23, block_size=block_size, n_layer=1, n_head=1, n_embd=7), seed)


OPTIONS: list[dict[str, Any]] = [
    {"strategy": "greedy"},
    {"strategy": "greedy", "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "eos_token_id": 3},
    {"temperature": 1.0, "seed": 5},
    {"temperature": 1.3, "top_p": 0.9, "num_return_sequences": 3, "eos_token_id": [2, 3]},
    {"temperature": 1.0, "seed": [7, 8, 9], "num_return_sequences": 2, "eos_token_id": [3]},
    {"min_new_tokens": 4, "eos_token_id": [*range(11)], "temperature": 1.0, "begin_suppress_tokens": [4, 5]},
    {"force_eos": True, "eos_token_id": 3, "suppress_tokens": [1]},
    {"exponential_decay_length_penalty": (1, 3.0), "eos_token_id": 3, "temperature": 1.0},
    {"use_cache": False},
    {"on_overflow": "stop", "max_new_tokens": 20},
    {"on_overflow": "crop", "max_new_tokens": 20},
    {"on_overflow": "crop", "max_new_tokens": 20, "use_cache": False, "strategy": "greedy"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["lookup", "right", "wrong", "short", "mixed"])
def test_a_draft_changes_nothing(tiny_model: GPT, kind: str, options: dict[str, Any]) -> None:
    asked = {"max_new_tokens": 9} | options
    plain = generate(tiny_model, PROMPTS, **asked)
    for num_tokens in (1, 3, 8):
        draft = {
            "lookup": PromptLookup(num_tokens, max_ngram=1),
            "right": DraftModel(tiny_model, num_tokens),
            "wrong": DraftModel(small_model(3), num_tokens),
            "short": DraftModel(small_model(3, block_size=5), num_tokens),  # its window slides long before ours
            "mixed": DraftModel(nudged(tiny_model), num_tokens),
        }[kind]
        found = generate(tiny_model, PROMPTS, draft=draft, **asked)
        assert found.sequences == plain.sequences
        assert found.finish_reasons == plain.finish_reasons
        assert found.scores == pytest.approx(plain.scores, abs=1e-4)


@pytest.mark.parametrize("size", [23, 24, 29, 37])
@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"seed": 5, "temperature": 1.3}], ids=str)
def test_a_draft_need_not_have_as_many_ids_without_text(tiny_model: GPT, size: int, options: dict[str, Any]) -> None:
    """A model with [PAD], and a draft without it, or padded to another size."""
    model, draft = widened(tiny_model, 29), widened(tiny_model, size)
    asked = {"max_new_tokens": 9, "tokenizer": CharTokenizer("".join(map(chr, range(65, 88))))} | options
    plain = generate(model, PROMPTS, **asked)
    assert all(max(row) < 23 for row in plain.sequences)
    assert generate(model, PROMPTS, draft=DraftModel(draft, 3), **asked).sequences == plain.sequences


def widened(model: GPT, size: int) -> GPT:
    """The same model with ids without text, each of which would be the best."""
    wide = GPT(replace(model.config, vocab_size=size)).eval()
    weights = model.state_dict()
    rows = 9 * weights["ln_f.bias"].repeat(size - model.config.vocab_size, 1)
    weights["wte.weight"] = weights["lm_head.weight"] = torch.cat([weights["wte.weight"], rows])
    wide.load_state_dict(weights)
    return wide


def nudged(model: GPT) -> GPT:
    """Nearly the same model: some of its drafts are right."""
    torch.manual_seed(1)
    twin = GPT(model.config).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.03)
    return twin


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"temperature": 1.0, "top_k": 7, "seed": 2}])
def test_a_perfect_draft_is_accepted_whole(
    tiny_model: GPT, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Its cache must hold the last drafted token too, and its draws must be those of the model's chance."""
    result = generate(tiny_model, PROMPTS[:1], draft=DraftModel(tiny_model, 3), max_new_tokens=9, **options)
    assert result.num_drafted == result.num_accepted == 6
    twin = nudged(tiny_model)
    with torch.no_grad():
        for mine, theirs in zip(twin.parameters(), tiny_model.parameters(), strict=True):
            mine.copy_(theirs)
    fed: list[int] = []
    trunk = tiny_model.trunk
    monkeypatch.setattr(tiny_model, "trunk", lambda idx, cache: fed.append(idx.size(1)) or trunk(idx, cache))
    generate(tiny_model, PROMPTS[:1], draft=DraftModel(twin, 3), max_new_tokens=9, **options)
    # One token, then two rounds of three drafted and one of the model's own. The prompt comes first.
    assert fed == [3, 4, 4]


def test_rows_accept_different_numbers(tiny_model: GPT) -> None:
    """D13: every row goes at its own pace, and none waits."""
    accepted: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def count(step: Any) -> None:
        for row in {choice.row for choice in step.choices}:
            accepted[row].append(sum(choice.row == row for choice in step.choices))

    generate(tiny_model, PROMPTS, draft=DraftModel(nudged(tiny_model), 4), max_new_tokens=9, seed=3, on_step=count)
    assert any(len(set(counts)) > 1 for counts in zip(*accepted.values(), strict=False))
    assert all(sum(counts) == 9 for counts in accepted.values())


def test_a_row_does_not_feel_its_batch(tiny_model: GPT) -> None:
    options: dict[str, Any] = {"draft": DraftModel(nudged(tiny_model), 3), "max_new_tokens": 8, "temperature": 1.4}
    together = generate(tiny_model, PROMPTS, seed=[7, 8, 9], num_return_sequences=2, **options)
    alone = [
        generate(tiny_model, [ids], seed=seed, num_return_sequences=2, **options)
        for ids, seed in zip(PROMPTS, [7, 8, 9], strict=True)
    ]
    assert together.sequences == [ids for one in alone for ids in one.sequences]


@pytest.mark.parametrize("options", [{"strategy": "greedy"}, {"temperature": 1.2, "seed": 4}])
def test_a_stream_is_what_generate_gives(tiny_model: GPT, options: dict[str, Any]) -> None:
    plain = generate(tiny_model, [[1, 2, 3]], max_new_tokens=9, **options).sequences[0]
    for draft in (PromptLookup(), DraftModel(nudged(tiny_model), 4)):
        assert [1, 2, 3, *stream(tiny_model, [1, 2, 3], draft=draft, max_new_tokens=9, **options)] == plain


class Counting(GPT):
    """It counts: the token after n is n + 1, for certain, and after the last comes the first."""

    def __init__(self, block_size: int = 64) -> None:
        super().__init__(GPTConfig(vocab_size=26, block_size=block_size, n_layer=1, n_head=1, n_embd=26))
        self.lm_head = torch.nn.Identity()

    def trunk(self, idx: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
        if cache is not None:
            cache.positions(idx.size(1))
            cache.advance(idx.size(1))
        return torch.nn.functional.one_hot((idx + 1) % 26, 26) * 100.0


class Alphabet:
    vocab_size = 26

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([97 + token_id])


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ({"stop": "fgh"}, "stop"),
        ({"stop": ["zz", "h"]}, "stop"),
        ({"eos_token_id": 7}, "eos"),
        ({"max_new_tokens": 7}, "length"),
    ],
)
@pytest.mark.parametrize("num_tokens", range(1, 9))
def test_nothing_is_written_after_an_end_inside_a_draft(end: dict[str, Any], reason: str, num_tokens: int) -> None:
    draft = DraftModel(Counting(), num_tokens)
    result = generate(Counting(), [[0]], draft=draft, strategy="greedy", tokenizer=Alphabet(), **end)
    assert result.sequences == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert result.finish_reasons == [reason]
    streamed = stream(Counting(), [0], draft=draft, strategy="greedy", tokenizer=Alphabet(), **end)
    assert list(streamed) == [1, 2, 3, 4, 5, 6, 7]


def test_prompt_lookup_copies_what_followed(tiny_model: GPT) -> None:
    lookup = PromptLookup(num_tokens=3, max_ngram=2)
    rows = [[1, 2, 3, 4, 5, 9, 2, 3], [1, 2, 3, 4, 1], [1, 2, 3], [7], [6, 6]]
    assert lookup.draft(range(5), rows, [3, 3, 3, 3, 3]) == [[4, 5, 9], [2, 3, 4], [], [], [6]]
    assert lookup.draft(range(2), rows[:2], [2, 0]) == [[4, 5], []]
    # One token back there is a 3 that 4 followed, but two tokens back 9, 3 was followed by 5.
    assert PromptLookup(max_ngram=2).draft([0], [[3, 4, 9, 3, 5, 9, 3]], [1]) == [[5]]
    assert PromptLookup(max_ngram=1).draft([0], [[3, 4, 9, 3, 5, 9, 3]], [1]) == [[4]]


def test_prompt_lookup_looks_for_no_more_than_there_is() -> None:
    """A count without an end to it is no loop without an end."""
    lookup = PromptLookup(num_tokens=2**62, max_ngram=2**62)
    assert lookup.draft([0, 1], [[1, 2, 3, 1, 2], [7]], [9, 9]) == [[3, 1, 2], []]


def test_prompt_lookup_saves_passes_where_text_repeats() -> None:
    steps: list[Any] = []
    model = Counting()
    result = generate(
        model, [[*range(26), 0, 1]], draft=PromptLookup(8), strategy="greedy", max_new_tokens=25, on_step=steps.append
    )
    assert result.sequences[0][28:] == [*range(2, 26), 0]
    assert len(steps) == 4  # 1, then 9 + 9, and the last 6 with their own
    assert (result.num_drafted, result.num_accepted) == (21, 21)


def test_a_draft_shrinks_where_the_context_ends(tiny_model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    reached: list[int] = []
    trunk = tiny_model.trunk

    def watched(idx: torch.Tensor, cache: KVCache) -> torch.Tensor:
        reached.append(cache.longest + idx.size(1))
        return trunk(idx, cache)

    monkeypatch.setattr(tiny_model, "trunk", watched)
    prompts = [[1] * 7, [2]]
    generate(tiny_model, prompts, draft=DraftModel(small_model(3), 6), strategy="greedy", max_new_tokens=7)
    assert max(reached) == tiny_model.config.block_size


@torch.no_grad()
@pytest.mark.parametrize("block_size", [13, 5])
def test_a_draft_is_what_the_draft_model_would_write(block_size: int) -> None:
    """Rows that have a different number of tokens to read, and then kept a different number of what was drafted."""
    model = small_model(3, block_size)
    drafter = ModelDrafter(
        Rows(model, PROMPTS, [1, 1, 1], 13, True, 23), [0, 1, 2], DecodingOptions(strategy="greedy"), None
    )

    def check(rows: list[int], ids: list[list[int]], counts: list[int]) -> list[list[int]]:
        drafts = drafter.draft(rows, ids, counts)
        for row, draft, count in zip(ids, drafts, counts, strict=True):
            alone = generate(model, [row], strategy="greedy", max_new_tokens=count, on_overflow="crop")
            assert draft == alone.sequences[0][len(row) :]
        return drafts

    ids = [[1, 2, 3, 7], [4, 5, 6, 7, 8, 2, 9, 1], [9, 5, 6]]
    first, _, third = check([0, 1, 2], ids, [3, 2, 3])
    check([0, 2], [[*ids[0], *first, 4], [*ids[2], *third[:1], 8]], [3, 3])


def test_a_draft_with_a_short_window_catches_up(table_model: Callable[..., GPT]) -> None:
    """While the long row slides nobody drafts, and then the draft has more new tokens to read than its block holds.

    What follows depends on the last token alone, so a draft of the same table must be right every time.
    """
    table = [[0.9 if after == (token + 1) % 23 else 0.1 / 22 for after in range(23)] for token in range(23)]
    model, draft = table_model(table, block_size=16), DraftModel(table_model(table, block_size=4), 3)
    prompts = [[*range(13, 23), *range(6)], [11, 12]]
    options: dict[str, Any] = {"strategy": "greedy", "on_overflow": "crop", "max_new_tokens": 20, "eos_token_id": 11}
    plain = generate(model, prompts, **options)
    assert plain.finish_reasons == ["eos", "length"], "the long row must end first"
    found = generate(model, prompts, draft=draft, **options)
    assert found.sequences == plain.sequences == [[*prompts[0], *range(6, 12)], [*range(11, 23), *range(10)]]
    assert found.num_accepted == found.num_drafted > 0


@pytest.mark.parametrize("columns", [5, 113, 170, 401], ids="{} tokens".format)
def test_noise_belongs_to_its_place(columns: int) -> None:
    """Also where a generator draws for several places at once."""
    tape = NoiseTape(3, torch.device("cpu"), rows=3, columns=columns)
    steps = torch.empty(4, 3, columns)
    generator = torch.Generator().manual_seed(3)
    for step in steps:
        step.exponential_(generator=generator)
    assert torch.equal(tape.at([2, 0], [1, 3]), torch.stack([steps[1, 2], steps[3, 0]]))
    tape.keep_only([2], [1])
    assert torch.equal(tape.at([1, 2], [1, 2]), torch.stack([steps[1, 1], steps[2, 2]]))


def test_draft_and_model_agree_as_often_as_promised() -> None:
    """(1 - d) / (1 + d) at least, and never more than 1 - d."""
    generator = torch.Generator().manual_seed(0)
    noise = NoiseTape(0, torch.device("cpu"), 20_000, 11).at(range(20_000), [0] * 20_000)
    for scale in (0.1, 0.5, 1.0, 2.0):
        p = torch.randn(11, generator=generator)
        q = p + scale * torch.randn(11, generator=generator)
        d = float((p.softmax(-1) - q.softmax(-1)).abs().sum() / 2)
        agreed = float((sample(p.expand(20_000, -1), noise) == sample(q.expand(20_000, -1), noise)).float().mean())
        assert (1 - d) / (1 + d) - 0.015 < agreed < 1 - d + 0.015
        assert greedy(p[None]).shape == (1,)


@pytest.mark.parametrize(
    ("draft", "options", "message"),
    [
        (PromptLookup(), {"strategy": "beam", "num_beams": 2}, "with num_beams = 2 a row may go on from another"),
        (PromptLookup(), {"num_beams": 3}, "with num_beams = 3 a row may go on from another"),
        (DraftModel(Counting()), {}, "a vocabulary of 26 tokens, the model one of 23\n.*: tokenizer$"),
        ("lookup", {}, "draft = 'lookup' is of the wrong type .*\ndraft must be PromptLookup or DraftModel"),
    ],
)
def test_impossible_drafts_are_refused(
    tiny_model: GPT, monkeypatch: pytest.MonkeyPatch, draft: Any, options: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr(tiny_model, "trunk", lambda idx, cache: pytest.fail("worked before checking"))
    for decode in (lambda **o: generate(tiny_model, [[1]], **o), lambda **o: stream(tiny_model, [1], **o)):
        with pytest.raises(InputError, match=message) as caught:
            decode(draft=draft, max_new_tokens=3, **options)
        assert caught.value.how


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptLookup(num_tokens=0), "num_tokens = 0"),
        (lambda: PromptLookup(max_ngram=0), "max_ngram = 0"),
        (lambda: DraftModel(Counting(), 0.5), "num_tokens = 0.5"),  # type: ignore[arg-type]
        (lambda: DraftModel(Counting(), True), "num_tokens = True"),
        (lambda: PromptLookup(max_ngram=10**400), "max_ngram = 1000"),
    ],
)
def test_drafts_of_no_tokens_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_both_models_get_their_modes_back(tiny_model: GPT) -> None:
    draft = small_model(3).train()
    state = {name: weight.clone() for name, weight in draft.state_dict().items()}
    generate(tiny_model.train(), PROMPTS, draft=DraftModel(draft, 2), max_new_tokens=5)
    assert draft.training
    assert tiny_model.training
    assert all(torch.equal(weight, state[name]) for name, weight in draft.state_dict().items())


def test_bans_beyond_a_wrong_draft_do_not_count(tiny_model: GPT) -> None:
    """A place after a rejected token is never reached: that nothing is left there is no error."""
    free = generate(tiny_model, [[1]], strategy="greedy", max_new_tokens=4).sequences[0][1:]
    wrong = next(token for token in range(23) if token not in free and token != 1)

    class Wrong(PromptLookup):
        def draft(self, rows: Sequence[int], ids: Sequence[Sequence[int]], counts: Sequence[int]) -> list[list[int]]:
            return [[wrong] * count for count in counts]

    after_wrong = [[wrong, token] for token in range(23)]
    result = generate(
        tiny_model,
        [[1]],
        draft=Wrong(num_tokens=2),
        strategy="greedy",
        max_new_tokens=4,
        banned_sequences=after_wrong,
    )
    assert result.sequences[0][1:] == free
    assert result.num_accepted == 0
