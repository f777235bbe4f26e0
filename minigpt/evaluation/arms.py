"""The arms of a comparison: what each of several settings replied at the same places, and what was truly replied.

A measure has one value for each dialogue, the mean over its replies. Dialogues are the units of chance, because the
replies of one are alike: a hundred of them in one dialogue are no hundred observations.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minigpt.errors import ConfigError
from minigpt.evaluation.comparison import Interval, Values, difference_interval, known, mean_interval, permutation_p
from minigpt.evaluation.conversations import (
    Advance,
    Exchange,
    Written,
    dialogue_means,
    gains,
    likelihoods,
)
from minigpt.evaluation.diversity import distinct_n, repeated_n, words
from minigpt.evaluation.failures import Spoken, overlap
from minigpt.evaluation.references import WITHOUT_SYNONYMS, meteor, nearness
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer

MEASURES = {
    "chrF": "closeness to the true reply by characters, 0 to 100, of each reply alone",
    "METEOR": "the same by words, their stems and synonyms",
    WITHOUT_SYNONYMS: "the same by words and their stems; WordNet is not at hand",
    "gain": "by how much the history makes the reply likelier, in nats a token",
    "overlap": "share of the reply's rarer words that the history has",
    "failures": "share of the replies with a failure",
    "repeated-4": "share of four words in a row that occurred earlier in the same reply",
    "log p": "log-probability of a token of the reply by the model itself, in nats",
    "tokens": "tokens a reply",
}


@dataclass(frozen=True)
class Arm:
    """Replies at some places, `draws` at each.

    Attributes:
        name: of the setting.
        spoken: what the rules of `failures` look at, one for each reply, those of a place one after the other.
        truth: for each reply, what was truly said at its place.
        log_probs: of each reply by the model itself, in nats, with what ends it.
        tokens: of each reply, with what ends it.
        draws: replies at each place.
    """

    name: str
    spoken: list[Spoken] = field(repr=False)
    truth: list[str] = field(repr=False)
    log_probs: list[float] = field(repr=False)
    tokens: list[int] = field(repr=False)
    draws: int = 1

    @property
    def texts(self) -> list[str]:
        """The replies."""
        return [one.text for one in self.spoken]

    @property
    def loss(self) -> float:
        """In nats a token, over all tokens."""
        return -math.fsum(self.log_probs) / sum(self.tokens)

    def distinct(self, n: int) -> float | None:
        """`distinct_n` of all replies together, one for each place: arms with more draws are no less varied."""
        found = [distinct_n([words(text) for text in self.texts[draw :: self.draws]], n) for draw in range(self.draws)]
        known = [one for one in found if one is not None]
        return sum(known) / len(known) if known else None

    def by_dialogue(self, column: Sequence[float | None]) -> Values:
        """One value for each dialogue, of one for each reply."""
        return dialogue_means([one.dialogue for one in self.spoken], column)

    def measured(self, common: frozenset[str], failures: Sequence[Mapping[str, str]]) -> dict[str, Values]:
        """The measures that need no true reply: name -> one value for each dialogue.

        Args:
            common: the words that say nothing of a topic.
            failures: of each reply, as `failures.catalogue` gives them.
        """
        columns: dict[str, Sequence[float | None]] = {
            "gain": [one.gain for one in self.spoken],
            "overlap": [overlap(one.text, one.messages, common) for one in self.spoken],
            "failures": [float(bool(found)) for found in failures],
            "repeated-4": [repeated_n([words(text)], 4) for text in self.texts],
            "log p": [total / count for total, count in zip(self.log_probs, self.tokens, strict=True)],
            "tokens": self.tokens,
        }
        return {name: self.by_dialogue(column) for name, column in columns.items()}


def true_arm(
    model: GPT, tokenizer: Tokenizer, found: Sequence[Exchange], turns: int, batch_size: int, advance: Advance
) -> Arm:
    """The true replies, as if they were a setting's.

    Args:
        model: the model.
        tokenizer: the model's.
        found: exchanges; each fits into the context.
        turns: the most turns of a history.
        batch_size: rows that are computed together.
        advance: called with the number of readings that are done; there are two a reply.
    """
    documents = [one.document(count) for one in found for count in (turns, 0)]
    told = likelihoods(model, tokenizer, documents, batch_size, advance)
    spoken, log_probs, tokens = [], [], []
    for one, own, bare in zip(found, told[::2], told[1::2], strict=True):
        assert own is not None, "a turn that leaves room for a reply of the model's leaves some for this one"
        assert bare is not None
        text = one.reply["content"]
        spoken.append(Spoken(one.dialogue, one.turn, one.messages, text, own.mean - bare.mean))
        log_probs.append(own.log_prob)
        tokens.append(own.tokens)
    return Arm("true replies", spoken, [one.text for one in spoken], log_probs, tokens)


def written_arm(
    name: str,
    model: GPT,
    tokenizer: Tokenizer,
    written: Sequence[Sequence[Written]],
    turns: int,
    batch_size: int,
    advance: Advance,
) -> Arm:
    """What a model wrote with one setting.

    Args:
        name: of the setting.
        model: the model, which reads the replies again with their histories and without.
        tokenizer: the model's.
        written: [exchange][draw], as `write_replies` gives them.
        turns: the most turns of a history.
        batch_size: rows that are computed together.
        advance: called with the number of readings that are done; there are two a reply.
    """
    replies = [one for own in written for one in own]
    added = gains(model, tokenizer, [(one.exchange, one.text) for one in replies], turns, batch_size, advance)
    spoken = [
        Spoken(one.exchange.dialogue, one.exchange.turn, one.exchange.messages, one.text, gain, one.finished)
        for one, gain in zip(replies, added, strict=True)
    ]
    return Arm(
        name,
        spoken,
        [one.exchange.reply["content"] for one in replies],
        [one.completion.log_prob for one in replies],
        [one.completion.num_tokens for one in replies],
        draws=len(written[0]),
    )


@dataclass(frozen=True)
class Closeness:
    """How near an arm is to the true replies.

    Attributes:
        whole: score -> over all replies together; BLEU has no other form.
        measured: measure -> one value for each dialogue.
        signatures: how it was counted.
        missing: what could not be counted, and how to mend it; "" if nothing.
    """

    whole: Mapping[str, float | None]
    measured: dict[str, Values] = field(repr=False)
    signatures: tuple[str, ...]
    missing: str


def closeness(arm: Arm) -> Closeness:
    """BLEU, chrF and METEOR of an arm; without those whose package is not installed."""
    whole: dict[str, float] = {}
    columns: dict[str, Values] = {}
    signatures: list[str] = []
    missing: list[ConfigError] = []
    try:
        near = nearness(arm.texts, arm.truth)
        whole |= {"BLEU": near.bleu, "chrF": near.chrf}
        columns["chrF"] = arm.by_dialogue(near.chrf_each)
        signatures += near.signatures
    except ConfigError as error:
        missing.append(error)
    try:
        far = meteor(arm.texts, arm.truth)
        whole[far.name] = sum(far.each) / len(far.each)
        columns[far.name] = arm.by_dialogue(far.each)
        signatures.append(far.signature)
    except ConfigError as error:
        missing.append(error)
    said = "; ".join(error.what for error in missing)
    return Closeness(whole, columns, tuple(signatures), f"{said} ({missing[0].how})" if missing else "")


@dataclass(frozen=True)
class Measured:
    """One measure of one arm, and how it differs from the first arm's.

    Attributes:
        own: its mean over dialogues, with the 95 % interval.
        difference: own minus the first arm's, dialogue by dialogue.
        p: of the paired permutation test; NaN with fewer than two dialogues.
        pairs: how many dialogues have a value in both, and so a difference.
    """

    own: Interval
    difference: Interval
    p: float
    pairs: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it: null for what is not known."""
        difference = {**self.difference.to_dict(), "dialogues": self.pairs}
        return {**self.own.to_dict(), "difference_to_first": difference, "p": known(self.p)}


def compared(arms: Sequence[Mapping[str, Values]], seed: int = 0) -> list[dict[str, Measured]]:
    """Each arm beside the first, by every measure.

    Args:
        arms: of each, measure -> one value for each dialogue, in the same order of dialogues.
        seed: of the bootstrap and the test.
    """
    return [
        {
            name: Measured(
                mean_interval(values, seed),
                difference_interval(values, arms[0][name], seed),
                permutation_p(values, arms[0][name], seed),
                int((~np.isnan(values - arms[0][name])).sum()),
            )
            for name, values in arm.items()
        }
        for arm in arms
    ]
