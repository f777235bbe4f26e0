"""Likelihoods against a loop by hand; coherence of a model that provably uses the history, and of one that does not."""

import math
from types import SimpleNamespace

import pytest
from torch import Tensor, nn

from minigpt.completion import complete
from minigpt.config import GPTConfig
from minigpt.data.dialogues import Dialogue, Message
from minigpt.errors import InputError
from minigpt.evaluation.conversations import (
    Exchange,
    chosen,
    coherence,
    dialogue_means,
    exchanges,
    gains,
    likelihoods,
    num_readings,
    write_replies,
)
from minigpt.evaluation.loss import token_log_probs
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer
from tests.cli.conftest import MERGES
from tests.conftest import random_model

CHARACTERS = "\n :ABCDabcdefghijklmno"
TOKENIZER = CharTokenizer.from_text(CHARACTERS)


def play(*turns: str, system: str = "") -> Dialogue:
    """Turns written as "A: text"."""
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    named = [turn.split(": ") for turn in turns]
    return Dialogue((*opening, *({"role": "assistant", "name": name, "content": text} for name, text in named)))


DIALOGUES = [
    play("A: abc", "B: de", "A: abca", "C: ebd", "A: ab", "B: eed", "A: cab", system="a dance"),
    play("C: hij", "D: jjh", "C: iih"),
    play("D: klm", "A: mmk", "D: lk", "A: mlk"),
]


def model_of(tokenizer: CharTokenizer | GPT2Tokenizer, block_size: int = 97) -> nn.Module:
    return random_model(GPTConfig(tokenizer.vocab_size, block_size, n_layer=2, n_head=3, n_embd=15), 5)


def test_the_exchanges_are_all_replies_that_have_a_turn_before_them():
    found = exchanges([*DIALOGUES, Dialogue(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))])
    assert [(one.dialogue, one.turn) for one in found] == [
        *((1, turn) for turn in range(2, 8)), (2, 2), (2, 3), (3, 2), (3, 3), (3, 4), (4, 2),
    ]  # fmt: skip
    assert found[2].messages == DIALOGUES[0].messages[:4]
    assert found[2].reply == DIALOGUES[0].messages[4]


def test_exchanges_are_chosen_from_as_many_dialogues_as_possible():
    found = exchanges(DIALOGUES)
    three = chosen(found, 3, seed=1)
    assert [one.dialogue for one in three] == [1, 2, 3]
    assert [one.dialogue for one in chosen(found, 6, seed=1)] == [1, 1, 2, 2, 3, 3]
    assert chosen(found, 99) == found
    assert chosen(found, 3, seed=1) == three
    assert len({tuple(one.turn for one in chosen(found, 3, seed)) for seed in range(9)}) > 1


def by_hand(exchange: Exchange, turns: int) -> tuple[str, str]:
    """Prompt and reply as the play has them, written down anew."""
    lines = [f"{message['content']}\n\n" for message in exchange.system]
    lines += [f"{turn['name']}:\n{turn['content']}\n\n" for turn in exchange.before[len(exchange.before) - turns :]]
    return "".join(lines) + f"{exchange.reply['name']}:\n", f"{exchange.reply['content']}\n"


@pytest.mark.parametrize("turns", [0, 1, 2, 5])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, GPT2Tokenizer(MERGES)], ids=["characters", "byte pairs"])
def test_likelihoods_are_a_loop_by_hand(tokenizer, turns):
    model, found, told = model_of(tokenizer), exchanges(DIALOGUES), []
    documents = [one.document(turns) for one in found]
    measured = likelihoods(model, tokenizer, [*documents, documents[0]], 3, told.append)
    assert sum(told) == len(found) + 1
    assert measured[-1] == measured[0]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.encode("\n")[0]
    for one, got in zip(found, measured, strict=False):
        prompt, reply = (tokenizer.encode(text) for text in by_hand(one, min(turns, len(one.before))))
        expected = token_log_probs(model, [*prompt, *reply, end], tokenizer.vocab_size)[len(prompt) - 1 :]
        assert got.tokens == len(reply) + 1 == len(expected)
        assert got.log_prob == pytest.approx(math.fsum(expected), abs=1e-4)
        assert got.mean == pytest.approx(got.log_prob / got.tokens)


def test_what_does_not_fit_loses_its_oldest_turns_and_then_is_left_out():
    model, found = model_of(TOKENIZER, block_size=17), exchanges(DIALOGUES[2:])
    last = found[-1].document(3)
    two, one = found[-1].document(2), found[-1].document(1)
    assert len(one.prompt + one.text) + 1 <= 17 < len(two.prompt + two.text) + 1
    (got, short) = likelihoods(model, TOKENIZER, [last, one], 2, lambda _: None)
    assert got.log_prob == pytest.approx(short.log_prob, abs=1e-5)
    assert (got.whole, short.whole) == (False, True)
    long = exchanges([play("A: " + "abc" * 9, "B: a")])[0]
    assert likelihoods(model, TOKENIZER, [long.document(1)], 2, lambda _: None) == [None]


class Rule(nn.Module):
    """A model whose logits are a rule: `weight` for each token that occurs earlier in its row, 0 for all others."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(block_size=400, vocab_size=TOKENIZER.vocab_size)
        self.wte = nn.Embedding(TOKENIZER.vocab_size, 1)
        self.weight = weight

    def forward(self, idx: Tensor) -> Tensor:
        seen = nn.functional.one_hot(idx, TOKENIZER.vocab_size).cumsum(1) > 0
        return self.weight * seen.float()


def rule_log_prob(prompt: str, reply: str, weight: float) -> float:
    """The mean of log p a token under `Rule`, in plain Python; the reply is closed by a line end."""
    text, total = prompt, 0.0
    for character in reply + "\n":
        seen = set(text)
        normaliser = sum(math.exp(weight if one in seen else 0) for one in set(CHARACTERS))
        total += (weight if character in seen else 0) - math.log(normaliser)
        text += character
    return total / (len(reply) + 1)


def measured(weight: float, **options):
    told: list[int] = []
    options = {"candidates": 3, "histories": (0, 1, 3), **options}
    found = coherence(Rule(weight), TOKENIZER, exchanges(DIALOGUES), advance=told.append, **options)
    assert sum(told) == num_readings(len(exchanges(DIALOGUES)), options["histories"], 3)
    return found


def test_a_model_that_copies_from_the_history_is_coherent():
    none, one, three = measured(2.0)
    assert (none.turns, one.turns, three.turns) == (0, 1, 3)
    assert (none.drop.mean, none.gain.mean, none.first.mean) == (0, 0, pytest.approx(1 / 3))
    assert one.drop.mean > 0.1
    assert three.drop.mean > one.drop.mean
    assert three.first.low > 1 / 3  # better than a guess
    assert three.perplexity < one.perplexity < none.perplexity
    own, bare = means_by_hand(3), means_by_hand(0)
    gains_by_hand = [own[dialogue] - bare[dialogue] for dialogue in own]
    assert three.gain.mean == pytest.approx(sum(gains_by_hand) / 3, abs=1e-5)


def means_by_hand(turns: int) -> dict[int, float]:
    """By hand: the mean over the replies of each dialogue of log p a token."""
    found: dict[int, list[float]] = {}
    for one in exchanges(DIALOGUES):
        prompt, reply = by_hand(one, min(turns, len(one.before)))
        found.setdefault(one.dialogue, []).append(rule_log_prob(prompt, reply, 2.0))
    return {dialogue: sum(values) / len(values) for dialogue, values in found.items()}


def test_a_model_that_ignores_the_history_is_not():
    for one in measured(0.0):
        assert one.drop.mean == pytest.approx(0, abs=1e-6)
        assert one.gain.mean == pytest.approx(0, abs=1e-6)
        assert one.first.mean == pytest.approx(1 / 3)
        assert one.perplexity == pytest.approx(TOKENIZER.vocab_size, rel=1e-5)
        assert one.whole == 1


def test_the_drop_is_against_the_history_of_another_dialogue():
    """Two dialogues of one exchange each: which history is put in the place of which is known."""
    pair = [play("A: abc", "B: cab"), play("A: hij", "B: jjh")]
    (one,) = coherence(Rule(2.0), TOKENIZER, exchanges(pair), histories=[1], candidates=2)
    own = [rule_log_prob("A:\nabc\n\nB:\n", "cab\n", 2.0), rule_log_prob("A:\nhij\n\nB:\n", "jjh\n", 2.0)]
    other = [rule_log_prob("A:\nhij\n\nB:\n", "cab\n", 2.0), rule_log_prob("A:\nabc\n\nB:\n", "jjh\n", 2.0)]
    assert one.drop.mean == pytest.approx((sum(own) - sum(other)) / 2, abs=1e-5)
    assert one.first.mean == 1
    assert (one.replies, one.candidates) == (2, 2)


@pytest.mark.parametrize(("count", "candidates"), [(3, 4), (3, 1), (1, 2)])
def test_more_candidates_than_dialogues_are_refused(count, candidates):
    with pytest.raises(InputError, match=f"there are {count} dialogues") as caught:
        coherence(Rule(0.0), TOKENIZER, exchanges(DIALOGUES[:count]), candidates=candidates)
    assert caught.value.how


@pytest.mark.parametrize("tokenizer", [TOKENIZER, GPT2Tokenizer(MERGES)], ids=["characters", "byte pairs"])
def test_replies_are_those_of_complete(tokenizer):
    model, found, told = model_of(tokenizer), exchanges(DIALOGUES), []
    options = {"max_new_tokens": 23, "temperature": 0.7}
    written = write_replies(model, tokenizer, found, 2, options, draws=2, seed=7, advance=told.append)
    assert sum(told) == 2 * len(found)
    for place, (one, own) in enumerate(zip(found, written, strict=True)):
        prompt = by_hand(one, min(2, len(one.before)))[0]
        for draw, reply in enumerate(own):
            text = complete(model, tokenizer, prompt, seed=7 + 2 * place + draw, stop="\n\n", **options)
            said = text.removeprefix(prompt)
            assert reply.text == "\n".join(line for line in said.split("\n") if line.strip()).strip()
            assert reply.exchange == one
            assert reply.finished == (reply.completion.finish_reason != "length")


def test_a_turn_that_leaves_no_room_for_a_reply_is_named():
    model = model_of(TOKENIZER, block_size=19)
    with pytest.raises(InputError, match="before turn 2 of dialogue 1 leaves no room for max_new_tokens = 11"):
        write_replies(model, TOKENIZER, exchanges(DIALOGUES), 2, {"max_new_tokens": 11})


def test_gains_are_what_the_history_adds():
    found = exchanges(DIALOGUES[2:])
    spoken = [(found[0], "kkl"), (found[1], " "), (found[2], "ab\n\nc")]
    told: list[int] = []
    first, empty, last = gains(Rule(2.0), TOKENIZER, spoken, turns=1, advance=told.append)
    assert sum(told) == 6
    assert empty is None
    prompt = by_hand(found[0], 1)[0]
    assert first == pytest.approx(rule_log_prob(prompt, "kkl\n", 2.0) - rule_log_prob("A:\n", "kkl\n", 2.0), abs=1e-5)
    prompt = by_hand(found[2], 1)[0]
    assert last == pytest.approx(
        rule_log_prob(prompt, "ab\nc\n", 2.0) - rule_log_prob("A:\n", "ab\nc\n", 2.0), abs=1e-5
    )


def test_the_mean_of_a_dialogue_is_that_of_its_values():
    found = dialogue_means([2, 1, 2, 3, 1], [1.0, 5.0, 4.0, None, math.nan])
    assert found[:2].tolist() == [5.0, 2.5]
    assert math.isnan(found[2])
