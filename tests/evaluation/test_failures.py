"""Each failure mode: a planted reply that is caught, and good ones that are not."""

import pytest

from minigpt.data.dialogues import Dialogue, Message
from minigpt.evaluation.failures import (
    MODES,
    WIDESPREAD,
    Spoken,
    catalogue,
    common_words,
    is_generic,
    overlap,
    speakers,
)


def said(*turns: tuple[str, str]) -> tuple[Message, ...]:
    return tuple({"role": "assistant", "name": name, "content": text} for name, text in turns)


ASKED = said(
    ("JULIET", "What man art thou?"),
    ("ROMEO", "I know not how to tell thee who I am."),
    ("JULIET", "By whose direction found'st thou out this place?"),
)
GOOD = "By love, that first did prompt me to inquire for this hidden place."
COMMON = frozenset("i not to the this that what by me thou am who how did for if you is it".split())


def modes_of(text: str, **about) -> set[str]:
    (found,) = catalogue([Spoken(1, 4, ASKED, text, **about)], {"ROMEO", "JULIET", "First Citizen"}, COMMON)
    assert set(found) <= set(MODES)
    assert all(found.values())
    return set(found)


PLANTED = {
    "empty": (" \n ", {}),
    "loop": ("love me love me love me love me", {}),
    "echo": ("By whose direction found'st thou out this place?", {}),
    "repetition": ("I know not how to tell thee who I am.", {}),
    "generic": ("I don't know.", {}),
    "wrong speaker": ("By love.\nFirst Citizen:\nSpeak, speak.", {}),
    "off topic": ("Seventeen elephants drink coffee", {"gain": -0.25}),
    "unfinished": (GOOD, {"finished": False}),
}


def test_every_mode_is_planted_here():
    assert set(PLANTED) == set(MODES)


@pytest.mark.parametrize("mode", PLANTED)
def test_a_planted_failure_is_caught_and_no_other(mode):
    text, about = PLANTED[mode]
    assert modes_of(text, **about) == {mode}


@pytest.mark.parametrize(
    ("mode", "text", "about"),
    [
        ("empty", "O", {}),
        ("loop", "No, no, no!", {}),
        ("echo", "What place?", {}),
        ("repetition", "I know thee well.", {}),
        ("generic", "I don't know his name.", {}),
        ("wrong speaker", "Romeo: that name I hate; and hear me, ROMEO and JULIET", {}),
        ("off topic", "Seventeen elephants drink coffee", {"gain": 0.25}),  # the history made it likelier
        ("off topic", "The direction of elephants", {"gain": -0.25}),  # it has a word of the history
        ("off topic", "Is it not?", {"gain": -0.25}),  # no word that could show a topic
        ("off topic", "Seventeen elephants drink coffee", {"gain": None}),
        ("unfinished", GOOD, {"finished": True}),
    ],
)
def test_a_good_reply_is_not_caught(mode, text, about):
    assert mode not in modes_of(text, **about)


def test_a_good_reply_has_no_failure():
    assert modes_of(GOOD, gain=0.01) == set()


def test_a_reply_is_generic_where_it_is_said_in_many_dialogues():
    def found(*dialogues: int) -> list[bool]:
        replies = [Spoken(dialogue, 2, ASKED, text) for dialogue, text in zip(dialogues, TEXTS, strict=False)]
        return ["generic" in reasons for reasons in catalogue(replies)]

    TEXTS = ["Ay, my lord.", "ay my lord", "Ay, my lord!", "No, my lord."]
    assert WIDESPREAD == 3
    assert found(1, 2, 5, 7) == [True, True, True, False]
    assert found(1, 2, 2, 7) == [False, False, False, False]  # in two dialogues
    assert is_generic("Ay my lord", {("ay", "my", "lord"): 5}) == "says what replies in 5 dialogues say"


def test_the_reasons_say_what_was_found():
    (found,) = catalogue([Spoken(1, 4, ASKED, "Seventeen elephants drink coffee", gain=-0.25)], (), COMMON)
    assert found == {
        "off topic": "shares 0 of 4 rarer words with the history, which makes it 0.25 nats a token less likely"
    }
    (found,) = catalogue([Spoken(1, 4, ASKED, "Speak.\n USER: hello")])
    assert found == {"wrong speaker": "writes a turn of USER"}


def test_overlap_by_hand():
    """Of direction, elephants, coffee and place, the history has two; a common word counts nowhere."""
    assert overlap("the direction: elephants, coffee, PLACE!", ASKED, COMMON) == 2 / 4
    assert overlap("Is it not?", ASKED, COMMON) != overlap("Is it not?", ASKED, COMMON), "nothing to share is NaN"


def test_common_words_and_speakers_are_those_of_the_dialogues():
    dialogues = [
        Dialogue(({"role": "system", "content": "a a b"}, {"role": "user", "content": "A c"})),
        Dialogue(said(("JULIET", "b! a"), ("Nurse", "d"))),
    ]
    assert common_words(dialogues, 2) == {"a", "b"}
    assert speakers(dialogues) == {"USER", "JULIET", "Nurse"}
