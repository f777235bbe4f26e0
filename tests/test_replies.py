"""Each filter has a planted reply that it catches, with its reason, and a good one that it lets pass."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt import replies
from minigpt.data.dialogues import Message
from minigpt.errors import DataError, InputError, MissingFileError

ASKED: list[Message] = [
    {"role": "system", "content": "Verona. A street."},
    {"role": "user", "content": "Good-morrow, cousin."},
    {"role": "assistant", "content": "Is the day so young, my lord?"},
    {"role": "user", "content": "But new struck nine; the sun is up, and all of Verona with it."},
]
GOOD = "Ay me! sad hours seem long. Was that my father that went hence so fast?"


@pytest.mark.parametrize(
    ("one", "planted", "reason"),
    [
        (replies.is_empty, " \n\u2003", "is empty"),
        (replies.is_empty, "\u200b \u2060\ufeff", "is empty"),  # which nobody sees either
        (replies.blocklist(["it's"]), "It\u2019s dark.", 'blocklist: "it\'s"'),
        (replies.blocklist(["it\u2019s"]), "it's dark.", 'blocklist: "it\'s"'),
        (replies.length(least=len(GOOD)), GOOD[:-1] + " ", f"has {len(GOOD) - 1} characters, fewer than {len(GOOD)}"),
        (replies.length(most=len(GOOD)), GOOD + "!", f"has {len(GOOD) + 1} characters, more than {len(GOOD)}"),
        (replies.echoes, "but NEW struck -- nine!", "echoes what it replies to"),
        (replies.echoes, "The sun is up, and all of Verona with you.", "echoes what it replies to"),
        (replies.repeats_itself, "Is the day so young", "repeats the reply before it"),
        (replies.loops, "No: never, never, never, never, never, never, never, Never.", "in circles: 'never'"),
        (replies.loops, "I saw the king. I saw the king.\nI saw the king!", "in circles: 'i saw the king'"),
        (replies.loops, "well " + "a" * 16, "in circles: 'a'"),
        (replies.loops, "\u4f60\u597d\u5417\uff1f" * 4, "in circles"),
        (replies.blocklist(["much", "so  much", ""]), "He loved her SO\nmuch!", r"blocklist: 'so\nmuch'"),
        (replies.blocklist(["b!tch", "c++"]), "b!tch", "blocklist: 'b!tch'"),
        (replies.blocklist(["stra\u00dfe"]), "DIE STRASSE.", "blocklist: 'strasse'"),
    ],
)
def test_a_planted_reply_is_caught_and_a_good_one_is_not(one, planted: str, reason: str):
    (found,) = replies.faults(planted, ASKED, [one])
    assert reason in found
    assert one(GOOD, ASKED) == ""


@pytest.mark.parametrize(
    ("one", "good"),
    [
        (replies.echoes, "Good-morrow, cousin."),  # not what it replies to
        (replies.echoes, "Nine."),
        (replies.echoes, "You say that the sun is up, and that is well; yet I have no heart to look at it."),
        (replies.repeats_itself, "My lord."),
        (replies.loops, "Then kill, kill, kill, kill, kill, kill!"),
        (replies.loops, "Never, never, never, never, never."),
        (replies.loops, "Ha ha ha! Out, out, brief candle! Tomorrow, and tomorrow, and tomorrow."),
        (replies.blocklist(["ass", "fast"]), "Pass the classics, fasting."),
    ],
)
def test_what_people_say_passes(one, good: str):
    assert one(good, ASKED) == ""


def test_a_reply_without_words_is_an_echo_of_the_same_signs():
    asked: list[Message] = [{"role": "user", "content": "?! \U0001f600"}]
    assert replies.echoes(" ?!  \U0001f600", asked) == "echoes what it replies to"
    assert replies.echoes("?!", asked) == replies.echoes("\U0001f600\U0001f600", asked) == ""
    assert replies.repeats_itself("...", [{"role": "assistant", "content": "..."}, *asked]) != ""


def test_nothing_is_echoed_at_the_beginning():
    assert replies.faults(GOOD, [], replies.USUAL) == []
    assert replies.repeats_itself(GOOD, [{"role": "assistant", "content": GOOD}]) == ""  # that is what it replies to
    assert replies.echoes(GOOD, [{"role": "assistant", "content": GOOD}])


def test_all_reasons_are_given_in_the_order_of_the_filters():
    def shouts(reply: str, messages: Sequence[Message]) -> str:
        return "shouts" if reply.isupper() else ""

    planted = "BUT NEW STRUCK NINE"
    filters = [shouts, *replies.USUAL, replies.length(most=5)]
    expected = ["shouts", "echoes what it replies to", "has 19 characters, more than 5"]
    assert replies.faults(planted, ASKED, filters) == expected


@pytest.mark.parametrize("given", [None, True, 3])
def test_a_filter_of_somebody_else_gives_a_text(given):
    def mine(reply, messages):
        return given

    with pytest.raises(InputError, match=r"the filter mine gave .*, which is no text\nlet it give"):
        replies.faults(GOOD, ASKED, [mine])


@given(st.lists(st.sampled_from("abc"), max_size=30), st.integers(1, 12))
def test_a_loop_is_what_a_search_of_all_places_finds(items: list[str], least: int):
    def is_loop(part: list[str]) -> bool:
        periods = range(1, len(part) // 3 + 1)
        return any(all(part[at] == part[at - period] for at in range(period, len(part))) for period in periods)

    parts = (items[a:b] for a in range(len(items)) for b in range(a + max(3, least), len(items) + 1))
    assert bool(replies._loop(items, least, " ")) == any(map(is_loop, parts))


def test_a_file_of_words(tmp_path: Path):
    file = tmp_path / "words.txt"
    file.write_text("# mine\n\n darn \r\nso what\n", encoding="utf-8")
    assert replies.read_blocklist(file) == ("darn", "so what")
    assert replies.blocklist(replies.read_blocklist(str(file)))("Darn it", [])
    file.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(DataError, match="there is no word in"):
        replies.read_blocklist(file)
    file.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="UTF-8"):
        replies.read_blocklist(file)
    with pytest.raises(MissingFileError, match=r"there is no file .*missing for a blocklist\nname a file"):
        replies.read_blocklist(tmp_path / "missing")
    with pytest.raises(DataError):
        replies.read_blocklist(tmp_path)


@pytest.mark.skipif(not Path("/dev/fd").exists(), reason="there are no pipes with a name here")
def test_words_come_from_a_pipe_too():
    """As a shell's <(...) gives it."""
    reading, writing = os.pipe()
    os.write(writing, b"darn\n")
    os.close(writing)
    try:
        assert replies.read_blocklist(f"/dev/fd/{reading}") == ("darn",)
    finally:
        os.close(reading)


def test_the_list_of_a_package_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "better_profanity", None)
        with pytest.raises(MissingFileError, match="is not installed"):
            replies.read_blocklist(replies.PACKAGE)
    pytest.importorskip("better_profanity")
    words = replies.read_blocklist(replies.PACKAGE)
    assert len(words) > 500
    refused = replies.blocklist(words)
    assert refused(f"He said {words[100].upper()}!", [])
    assert refused(GOOD, ASKED) == ""
    Path(replies.PACKAGE).write_text("mine\n", encoding="utf-8")  # a file of that name is the file that is meant
    assert replies.read_blocklist(replies.PACKAGE) == ("mine",)


def test_nothing_of_torch_is_needed():
    code = "import minigpt.replies, sys; assert 'torch' not in sys.modules and 'better_profanity' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
