"""What goes wrong in replies: a catalogue of failure modes, found by rules that need no judge and no language.

Rules are wrong now and then. So they also read the true replies: a mode that these have as often is no failure.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from minigpt.data.dialogues import NAMES, Dialogue, Message, speaker
from minigpt.errors import counted
from minigpt.evaluation.diversity import words
from minigpt.replies import echoes, is_empty, loops, repeats_itself

WIDESPREAD = 3  # dialogues, from which on one and the same reply is generic
COMMON = 100  # so many of the most frequent words say nothing of a topic
LOW_OVERLAP, LOW_GAIN = 0.1, 0.0  # a share of words; nats a token
STOCK = frozenset(
    re.split(r";\s+", """i don't know; i do not know; i'm not sure; i am not sure; i don't think so; i think so; ok;
    okay; yes; no; yeah; sure; i see; me too; thank you; thanks; you're welcome; that's nice; that is nice;
    that's great; that is great; that's good; that is good; that's cool; sounds good; i like it; what do you mean;
    i understand""")
)  # fmt: skip

MODES = {
    "empty": "nothing, or nothing but blanks",
    "loop": "the same words three times in a row or more",
    "echo": "what the message before says, or a part of it",
    "repetition": "what the reply before says, or a part of it",
    "generic": f"a stock phrase, or the words of a reply in {WIDESPREAD} dialogues or more",
    "wrong speaker": "a line that begins with a speaker's name and a colon, as if a turn began",
    "off topic": f"fewer than {LOW_OVERLAP:.0%} of its rarer words occur in the history, which makes it no likelier",
    "unfinished": "no end within the tokens that were allowed",
}


@dataclass(frozen=True)
class Spoken:
    """A reply, true or written, with all that the rules look at.

    Attributes:
        dialogue: the number of its dialogue, from 1.
        turn: its number in the dialogue, from 1.
        messages: all that was said before it.
        text: the reply.
        gain: by how much the history makes it likelier, in nats a token; None if that is not known.
        finished: whether its author ended it.
    """

    dialogue: int
    turn: int
    messages: Sequence[Message] = field(repr=False)
    text: str
    gain: float | None = None
    finished: bool = True


def catalogue(
    replies: Sequence[Spoken], names: Collection[str] = (), common: Collection[str] = frozenset()
) -> list[dict[str, str]]:
    """The failures of each reply: mode -> what the reply does, in a few words that follow "it".

    Args:
        replies: all of one model and setting: a reply is generic if others are the same.
        names: of the speakers, as they stand above their turns.
        common: the words that say nothing of a topic; see `common_words`.
    """
    dialogues = defaultdict(set)  # a reply's words -> where they are said
    for reply in replies:
        dialogues[plain(reply.text)].add(reply.dialogue)
    widespread = {said: len(where) for said, where in dialogues.items() if said and len(where) >= WIDESPREAD}
    found = []
    for reply in replies:
        reasons = {
            "empty": is_empty(reply.text, reply.messages),
            "loop": loops(reply.text, reply.messages),
            "echo": echoes(reply.text, reply.messages),
            "repetition": repeats_itself(reply.text, reply.messages),
            "generic": is_generic(reply.text, widespread),
            "wrong speaker": speaks_for_others(reply.text, names),
            "off topic": is_off_topic(reply, common),
            "unfinished": "" if reply.finished else "does not end",
        }
        found.append({mode: reason for mode, reason in reasons.items() if reason})
    return found


def is_generic(reply: str, widespread: Mapping[tuple[str, ...], int] = {}) -> str:
    """Whether a reply fits anywhere: a stock phrase, or one that was given in many dialogues."""
    said = plain(reply)
    if " ".join(said).replace("’", "'") in STOCK:
        return "is a stock phrase"
    return f"says what replies in {widespread[said]} dialogues say" if said in widespread else ""


def speaks_for_others(reply: str, names: Collection[str]) -> str:
    """Whether a line of a reply begins with a speaker's name and a colon."""
    for name in sorted({*names, *NAMES.values()}, key=len, reverse=True):
        if re.search(rf"^\s*{re.escape(name)}:(?:\s|$)", reply, re.MULTILINE):
            return f"writes a turn of {name}"
    return ""


def is_off_topic(reply: Spoken, common: Collection[str]) -> str:
    """Whether a reply shares hardly a word with its history, and the history makes it no likelier either."""
    rarer = {word for word in plain(reply.text) if word not in common}
    share = overlap(reply.text, reply.messages, common)
    if reply.gain is None or math.isnan(share) or share >= LOW_OVERLAP or reply.gain > LOW_GAIN:
        return ""
    both = f"shares {round(share * len(rarer))} of {counted(len(rarer), 'rarer word')} with the history"
    return f"{both}, which makes it {-reply.gain:.2f} nats a token less likely"


def overlap(reply: str, messages: Iterable[Message], common: Collection[str]) -> float:
    """The share of a reply's rarer words that the messages before it have; NaN if it has no rarer word."""
    rarer = {word for word in plain(reply) if word not in common}
    said = {word for message in messages for word in plain(message["content"])}
    return len(rarer & said) / len(rarer) if rarer else math.nan


def common_words(dialogues: Iterable[Dialogue], most: int = COMMON) -> frozenset[str]:
    """The most frequent words of dialogues, which do not show what a turn is about, whatever the language."""
    counts = Counter(
        word for dialogue in dialogues for message in dialogue.messages for word in plain(message["content"])
    )
    return frozenset(word for word, _ in counts.most_common(most))


def speakers(dialogues: Iterable[Dialogue]) -> frozenset[str]:
    """The names that stand above turns."""
    return frozenset(
        speaker(message) for dialogue in dialogues for message in dialogue.messages if message["role"] != "system"
    )


def plain(text: str) -> tuple[str, ...]:
    """The words of a text in lower case, without the signs between them."""
    return tuple(word for word in words(text.casefold()) if word[0].isalnum())
