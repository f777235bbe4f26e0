"""How well a model replies in dialogues that it has not seen: what it makes of the history, and what it writes.

A history means something to a model if it makes the true reply likelier. So the reply is also read after the history of
another dialogue, and after none, under the same name:

    the history          JULIET: Is it day?             ROMEO:  It was the nightingale.   log p  -1.2 a token
    another dialogue's   COOK:   Where's Potpan?        ROMEO:  It was the nightingale.   log p  -1.5
    none                                                ROMEO:  It was the nightingale.   log p  -1.6

The drop is 0.3 nats a token here, the gain 0.4. A model that ignores what was said before has 0 for both.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from minigpt.data.batches import batched, encode
from minigpt.data.dialogues import END_OF_TURN, Dialogue, Message, examples, speech
from minigpt.data.documents import Document, most_turns
from minigpt.data.loaders import end_of_document
from minigpt.data.tokens import IGNORED
from minigpt.errors import DataError, InputError, named
from minigpt.evaluation.comparison import Completion, Interval, Values, continue_prompts, known, mean_interval
from minigpt.evaluation.loss import perplexity
from minigpt.model import GPT
from minigpt.parameters import evaluating, with_text
from minigpt.tokenizers import Tokenizer, encode_prompt

HISTORIES = (0, 1, 3, 5)  # turns
SAME = 1e-5  # nats a token; a smaller difference is rounding
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Exchange:
    """A true reply, and what was said before it.

    Attributes:
        dialogue: the number of its dialogue, from 1.
        turn: the reply's number in the dialogue, from 1; the system message has none.
        system: the system message, or nothing.
        before: all turns before the reply; at least one.
        reply: the reply.
    """

    dialogue: int
    turn: int
    system: tuple[Message, ...] = field(repr=False)
    before: tuple[Message, ...] = field(repr=False)
    reply: Message = field(repr=False)

    @property
    def messages(self) -> tuple[Message, ...]:
        """All that was said before the reply."""
        return self.system + self.before

    def document(self, turns: int, text: str = "", history: "Exchange | None" = None) -> Document:
        """The reply after the last turns before it, as training has it: see `data.dialogues.examples`.

        Args:
            turns: the most turns of the prompt; the system message and the name of who replies stay with none.
            text: another reply in the place of the true one.
            history: another exchange, whose turns stand in the place of these.
        """
        before = (history or self).before[-max(turns, 1) :]
        reply: Message = {**self.reply, "content": text or self.reply["content"]}
        return examples(Dialogue((*self.system, *before, reply)), turns)[-1]


def exchanges(dialogues: Sequence[Dialogue]) -> list[Exchange]:
    """Each reply of each dialogue that has a turn before it, in their order."""
    found = []
    for number, dialogue in enumerate(dialogues, start=1):
        system = tuple(message for message in dialogue.messages[:1] if message["role"] == "system")
        turns = dialogue.messages[len(system) :]
        for place, message in enumerate(turns):
            if place and message["role"] == "assistant":
                found.append(Exchange(number, place + 1, system, turns[:place], message))
    return found


def chosen(found: Sequence[Exchange], most: int, seed: int = 0) -> list[Exchange]:
    """At most so many exchanges, drawn from as many dialogues as possible, in their order.

    Every dialogue gives one in turn, at random, because those of one dialogue are alike.
    """
    chance = np.random.default_rng(seed)
    left = {dialogue: chance.permutation(places).tolist() for dialogue, places in _by_dialogue(found).items()}
    order = chance.permutation(list(left)).tolist()
    taken: list[int] = []
    while len(taken) < min(most, len(found)):
        taken += [left[dialogue].pop() for dialogue in order if left[dialogue]]
    return [found[place] for place in sorted(taken[:most])]


# --- the probability of true replies


@dataclass(frozen=True)
class Likelihood:
    """How probable a reply is.

    Attributes:
        log_prob: the sum over its tokens in nats, with the one that ends it.
        tokens: how many they are.
        whole: whether no turn of its prompt was left out so that it fits.
    """

    log_prob: float
    tokens: int
    whole: bool

    @property
    def mean(self) -> float:
        """In nats a token."""
        return self.log_prob / self.tokens


@torch.no_grad()
def likelihoods(
    model: GPT, tokenizer: Tokenizer, documents: Sequence[Document], batch_size: int, advance: Advance
) -> list[Likelihood | None]:
    """How probable the text of each document is after its prompt; None where the last turn alone leaves no room.

    A prompt loses its oldest turns, and a text its end, as in training: see `data.batches.encode`.

    Args:
        model: used in evaluation mode.
        tokenizer: the model's.
        documents: of dialogues. Equal ones are computed once.
        batch_size: rows that are computed together; it does not change the numbers, up to rounding.
        advance: called with the number of documents that are done.

    Raises:
        InputError: if one cannot be encoded.
    """
    places: dict[Document, list[int]] = defaultdict(list)
    for place, document in enumerate(documents):
        places[document].append(place)
    end, block_size = end_of_document(tokenizer), model.config.block_size
    rows, found = [], dict[Document, Likelihood]()
    for document in places:
        try:
            encoded = encode([document], tokenizer, end, block_size, block_size)
        except DataError:  # the one reason that there is
            advance(len(places[document]))
            continue
        rows.append((document, not encoded.shortened, *encoded.example(0)))
    rows.sort(key=lambda row: len(row[2]))
    device = model.wte.weight.device
    with evaluating(model):
        for some in batched(rows, batch_size):
            shape = len(some), len(some[-1][2])
            inputs, targets = torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
            for row, (_, _, x, y) in enumerate(some):
                inputs[row, : len(x)], targets[row, : len(y)] = torch.tensor(x.tolist()), torch.tensor(y.tolist())
            counted = targets != IGNORED
            logits = with_text(model(inputs.to(device)), tokenizer.vocab_size)[counted.to(device)]  # (N, V)
            losses = F.cross_entropy(logits.float(), targets[counted].to(device), reduction="none").cpu().double()
            sizes = counted.sum(1).tolist()
            for (document, whole, _, _), own in zip(some, losses.split(sizes), strict=True):
                found[document] = Likelihood(-float(own.sum()), len(own), whole)
                advance(len(places[document]))
    return [found.get(document) for document in documents]


@dataclass(frozen=True)
class Coherence:
    """What the last turns tell a model about the reply that follows them. Intervals are over dialogues.

    Attributes:
        turns: the most turns of the history.
        replies: how many true replies were measured.
        perplexity: of the true replies, after their histories.
        whole: the share of the replies whose history fits whole into the context.
        gain: how much likelier the history makes the true reply than none does, in nats a token.
        drop: how much less likely it is after another dialogue's history, in nats a token.
        first: how often the history raises the true reply more than all other replies, of as many other dialogues.
            Each of several that are raised alike counts as its share.
        candidates: how many replies there are to choose from, with the true one; a guess is right once in so many.
    """

    turns: int
    replies: int
    perplexity: float
    whole: float
    gain: Interval
    drop: Interval
    first: Interval
    candidates: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: null for what is not known."""
        return {
            name: value.to_dict() if isinstance(value, Interval) else known(value) for name, value in vars(self).items()
        }


def num_readings(count: int, histories: Sequence[int], candidates: int) -> int:
    """How many documents `coherence` reads for so many exchanges; for a progress bar."""
    return count * sum(candidates + bool(turns) for turns in {0, *histories})


def coherence(
    model: GPT,
    tokenizer: Tokenizer,
    found: Sequence[Exchange],
    *,
    histories: Sequence[int] = HISTORIES,
    candidates: int = 10,
    seed: int = 0,
    batch_size: int = 8,
    advance: Advance = lambda _: None,
) -> list[Coherence]:
    """What a model makes of histories of several lengths.

    Args:
        model: used in evaluation mode.
        tokenizer: the model's.
        found: true replies with what was said before them.
        histories: turns of each history; 0 is none.
        candidates: how many replies are ranked, the true one and others, each of another dialogue.
        seed: of the choice of other histories and replies.
        batch_size: as for `likelihoods`.
        advance: called with the number of documents that are done; in all they are `num_readings`.

    Raises:
        InputError: if there are fewer dialogues than candidates, or fewer than two.
    """
    by_dialogue = _by_dialogue(found)
    if not 2 <= candidates <= len(by_dialogue):
        raise InputError(
            f"{named('candidates', candidates)} replies of different dialogues are to be ranked, and there are "
            f"{len(by_dialogue):,} dialogues",
            f"choose {named('candidates')} from 2 to {len(by_dialogue)}"
            if len(by_dialogue) > 1
            else "give at least two dialogues: each is compared with another's history",
        )
    rivals, others = _rivals(found, by_dialogue, candidates - 1, max(histories), seed)
    lengths = sorted({0, *histories})
    documents: list[Document] = []
    for turns in lengths:
        for own, theirs, other in zip(found, rivals, others, strict=True):
            documents.append(own.document(turns))
            documents += [own.document(turns, text=rival.reply["content"]) for rival in theirs]
            documents += [own.document(turns, history=other)] if turns else []
    told = iter(likelihoods(model, tokenizer, documents, batch_size, advance))
    ranked = {
        turns: [([next(told) for _ in range(candidates)], next(told) if turns else None) for _ in found]
        for turns in lengths
    }
    none = [own for own, _ in ranked[0]]
    return [_coherence(turns, found, ranked[turns], none, candidates, seed) for turns in histories]


def _coherence(
    turns: int,
    found: Sequence[Exchange],
    ranked: Sequence[tuple[list[Likelihood | None], Likelihood | None]],
    none: Sequence[list[Likelihood | None]],
    candidates: int,
    seed: int,
) -> Coherence:
    """One history's numbers, from the likelihoods of (candidates after it, the true reply after another)."""
    dialogues, gains, drops, firsts, totals = [], [], [], [], []
    for exchange, (own, other), bare in zip(found, ranked, none, strict=True):
        pairs = [(one, base) for one, base in zip(own, bare, strict=True) if one and base]
        if len(pairs) < candidates or (turns and other is None):
            continue  # something does not fit
        true = pairs[0][0]
        raised = [one.mean - base.mean for one, base in pairs]
        best = [place for place, gain in enumerate(raised) if gain >= max(raised) - SAME]
        dialogues.append(exchange.dialogue)
        totals.append(true)
        gains.append(raised[0])
        drops.append(true.mean - other.mean if other else 0.0)
        firsts.append((0 in best) / len(best))
    tokens = sum(one.tokens for one in totals)
    gain, drop, first = (mean_interval(dialogue_means(dialogues, values), seed) for values in (gains, drops, firsts))
    return Coherence(
        turns=turns,
        replies=len(totals),
        perplexity=perplexity(-math.fsum(one.log_prob for one in totals) / tokens) if tokens else math.nan,
        whole=sum(one.whole for one in totals) / len(totals) if totals else math.nan,
        gain=gain,
        drop=drop,
        first=first,
        candidates=candidates,
    )


def _rivals(
    found: Sequence[Exchange], by_dialogue: Mapping[int, list[int]], count: int, longest: int, seed: int
) -> tuple[list[list[Exchange]], list[Exchange]]:
    """For each exchange, replies of other dialogues, and the history of another that is as long if one is."""
    rivals, others = [], []
    longest_of = {dialogue: max(len(found[place].before) for place in own) for dialogue, own in by_dialogue.items()}
    for number, own in enumerate(found):
        chance = np.random.default_rng([seed, number])
        elsewhere = [dialogue for dialogue in by_dialogue if dialogue != own.dialogue]
        picked = chance.permutation(elsewhere)[:count].tolist()
        rivals.append([found[int(chance.choice(by_dialogue[dialogue]))] for dialogue in picked])
        enough = min(len(own.before), longest)
        most = max(min(longest_of[dialogue], enough) for dialogue in elsewhere)
        dialogue = int(chance.choice([dialogue for dialogue in elsewhere if longest_of[dialogue] >= most]))
        others.append(found[int(chance.choice([at for at in by_dialogue[dialogue] if len(found[at].before) >= most]))])
    return rivals, others


# --- replies that a model writes


@dataclass(frozen=True)
class Written:
    """A reply that a model wrote.

    Attributes:
        exchange: what it replies to, and what was truly replied.
        text: what it says, without what ends it.
        completion: as it was written.
    """

    exchange: Exchange
    text: str
    completion: Completion

    @property
    def finished(self) -> bool:
        """Whether the model ended it."""
        return self.completion.finish_reason in ("eos", "stop")


def prompt_ids(tokenizer: Tokenizer, document: Document, most: int) -> list[int] | None:
    """The prompt of a document in at most so many tokens, its oldest turns left out; None if the last is too long."""

    def ids(turns: int) -> list[int]:
        return encode_prompt(tokenizer, document.with_last_turns(turns).prompt)

    found = ids(most_turns(len(document.turns), lambda turns: len(ids(turns)) <= most))
    return found if len(found) <= most else None


def write_replies(
    model: GPT,
    tokenizer: Tokenizer,
    found: Sequence[Exchange],
    turns: int,
    options: Mapping[str, Any],
    *,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 8,
    advance: Advance = lambda _: None,
) -> list[list[Written]]:
    """Let a model reply where it was truly replied.

    Args:
        model: the model.
        tokenizer: the model's.
        found: the true replies with what was said before them.
        turns: the most turns of a prompt; fewer where the context has no room for more.
        options: fields of `DecodingOptions`, with `max_new_tokens`.
        draws: replies for each prompt, each with a seed of its own.
        seed: of the first; two calls with the same seed draw with the same seeds.
        batch_size: replies that are written side by side; it does not change them.
        advance: called with the number of replies that are done.

    Returns:
        [exchange][draw].

    Raises:
        InputError: if a prompt of one turn has no room for the new tokens; or as `generate`.
    """
    room = model.config.block_size - options["max_new_tokens"]
    prompts = []
    for one in found:
        if (ids := prompt_ids(tokenizer, one.document(turns), room)) is None:
            length, block_size = options["max_new_tokens"], model.config.block_size
            raise InputError(
                f"the turn before turn {one.turn} of dialogue {one.dialogue} leaves no room for "
                f"{named('max_new_tokens', length)} in {named('block_size', block_size)}",
                f"lower {named('max_new_tokens')}, or leave that dialogue out",
            )
        prompts.append(ids)
    written = continue_prompts(
        model, tokenizer, prompts, {**options, "stop": END_OF_TURN}, draws=draws, seed=seed, batch_size=batch_size,
        advance=advance,
    )  # fmt: skip
    return [
        [Written(one, speech(completion.text.split(END_OF_TURN)[0]), completion) for completion in own]
        for one, own in zip(found, written, strict=True)
    ]


def gains(
    model: GPT,
    tokenizer: Tokenizer,
    spoken: Sequence[tuple[Exchange, str]],
    turns: int,
    batch_size: int = 8,
    advance: Advance = lambda _: None,
) -> list[float | None]:
    """By how much the history makes replies likelier, in nats a token; None for an empty one, or if it does not fit.

    Args:
        model: used in evaluation mode.
        tokenizer: the model's.
        spoken: what is replied to, and a reply.
        turns: the most turns of the history.
        batch_size: as for `likelihoods`.
        advance: called with the number of readings that are done; there are two a reply.
    """
    said = [(one, text) for one, text in spoken if text.strip()]
    documents = [one.document(count, text=text) for one, text in said for count in (turns, 0)]
    told = likelihoods(model, tokenizer, documents, batch_size, advance)
    advance(2 * (len(spoken) - len(said)))
    pairs = iter(zip(told[::2], told[1::2], strict=True))
    found: list[float | None] = []
    for _, text in spoken:
        with_history, without = next(pairs) if text.strip() else (None, None)
        found.append(with_history.mean - without.mean if with_history and without else None)
    return found


def dialogue_means(dialogues: Sequence[int], values: Sequence[float | None]) -> Values:
    """The mean of each dialogue's values, in the order of the dialogues: they are the units of chance, not replies.

    Args:
        dialogues: of each value, the number of its dialogue.
        values: None and NaN are left out; a dialogue without others is NaN.
    """
    own: dict[int, list[float]] = {dialogue: [] for dialogue in sorted(set(dialogues))}
    for dialogue, value in zip(dialogues, values, strict=True):
        if value is not None and not math.isnan(value):
            own[dialogue].append(value)
    return np.array([sum(some) / len(some) if some else math.nan for some in own.values()], np.float64)


def _by_dialogue(found: Sequence[Exchange]) -> dict[int, list[int]]:
    """The number of a dialogue -> the places of its exchanges."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, one in enumerate(found):
        places[one.dialogue].append(place)
    return dict(places)
