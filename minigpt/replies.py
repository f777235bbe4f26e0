r"""What is wrong with a reply: small functions of text, each of which says its reason.

A filter takes a reply and the messages before it. It gives "" if the reply passes, else what the reply does, in a few
words that follow "it":

    def shouts(reply, messages):
        return "shouts" if reply.isupper() else ""

    minigpt.Chat(model, tokenizer, filters=[*replies.USUAL, replies.length(most=200), shouts])

Words are compared without their case and without the signs between them.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from minigpt.data.corpora import read_plain_text
from minigpt.data.dialogues import Message
from minigpt.errors import DataError, InputError, MissingFileError, brief, counted, named
from minigpt.fields import Bounds, Form, checked
from minigpt.system.files import named_path

# (a reply, the messages before it) -> what is wrong with it, "" for nothing
Filter = Callable[[str, Sequence[Message]], str]
Messages = Sequence[Mapping[str, Any]]  # what a `Message` is for `checked`

PACKAGE = "better-profanity"  # its list of English words is used where it is named: `read_blocklist`
SHORTEST = 3  # words; people say the same two words often, and mean them
SHARE = 0.8  # of a reply's words, in one piece: a repetition that is not quite word for word is one too
TIMES = 3  # in a row, from which on something is a loop
LONGEST_TURN = 40  # words, or characters, of what is said again and again
LOOP_WORDS, LOOP_CHARACTERS = 8, 16  # the least that a loop has in all: Lear says "kill" six times

# Letters, digits and apostrophes inside; each sign of its own in scripts that put no blanks between words.
_WORD = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff]+(?:'\w+)*")
_Most = Annotated[int | None, Bounds(1, 10**9, below="leaves no room for a reply")]
_Words = Annotated[Sequence[str], Form("a list of words, at least one", bool)]


@checked
def is_empty(reply: str, messages: Messages) -> str:
    """The reply has nothing but blanks, and signs that nobody sees, such as blanks without a width."""
    seen = (sign for sign in reply if not sign.isspace() and unicodedata.category(sign) not in ("Cc", "Cf"))
    return "" if any(seen) else "is empty"


@checked
def length(least: Annotated[int, Bounds(1, 10**9)] = 1, most: _Most = None) -> Filter:
    """A filter for replies that are too short or too long, in characters, without the blanks around the reply.

    Raises:
        InputError: if `most` is below `least`.
    """
    if most is not None and most < least:
        raise InputError(f"{named('least', least)} is more than {named('most', most)}", "exchange the two")

    def has_another_length(reply: str, messages: Messages) -> str:
        characters = len(reply.strip())
        what = f"has {counted(characters, 'character')}"
        if characters < least:
            return f"{what}, fewer than {least}"
        return f"{what}, more than {most}" if most is not None and characters > most else ""

    return has_another_length


@checked
def echoes(reply: str, messages: Messages) -> str:
    """The reply says what the message before it says, or a part of that."""
    return "echoes what it replies to" if messages and _repeats(reply, messages[-1]["content"]) else ""


@checked
def repeats_itself(reply: str, messages: Messages) -> str:
    """The reply says what the model's last reply said, or a part of that."""
    own = [message["content"] for message in messages[:-1] if message["role"] == "assistant"]
    return "repeats the reply before it" if own and _repeats(reply, own[-1]) else ""


@checked
def loops(reply: str, messages: Messages) -> str:
    """The reply says the same at least three times in a row, in eight words or more, or in 16 signs of one word."""
    found = _loop(_words(reply), LOOP_WORDS, " ")
    pieces = (_loop(piece, LOOP_CHARACTERS, "") for piece in reply.casefold().split())
    return next((f"goes round in circles: {brief(loop)}" for loop in (found, *pieces) if loop), "")


USUAL: tuple[Filter, ...] = (is_empty, echoes, repeats_itself, loops)
"""What no reply should do. None of them knows a word: for these, `blocklist` takes a list."""


@checked
def blocklist(words: _Words) -> Filter:
    """A filter for replies with one of these words, each as a whole word; a word may be several.

    Args:
        words: compared without their case; `read_blocklist` reads a file of them.
    """
    # The longest first, so that the reason names all of what was found.
    entries = sorted({" ".join(_folded(word).split()) for word in words} - {""}, key=len, reverse=True)
    either = "|".join(re.escape(entry).replace(r"\ ", r"\s+") for entry in entries)
    pattern = re.compile(rf"(?<!\w)(?:{either})(?!\w)")

    def has_a_word(reply: str, messages: Messages) -> str:
        found = pattern.search(_folded(reply)) if entries else None
        return f"has a word of the blocklist: {brief(found[0])}" if found else ""

    return has_a_word


@checked
def read_blocklist(path: Path | str) -> tuple[str, ...]:
    """The words of a file: one a line, or several that stand together; lines that begin with "#" are left out.

    Args:
        path: the file, UTF-8; or `PACKAGE`, whose list of English words is taken, if the package is installed.

    Raises:
        MissingFileError: if there is no such file or package.
        DataError: if the file has no word, or is not UTF-8.
    """
    name = str(path)
    if name == PACKAGE and not Path(PACKAGE).exists():
        try:
            text = (resources.files("better_profanity") / "profanity_wordlist.txt").read_text(encoding="utf-8")
        except ModuleNotFoundError:
            raise MissingFileError(
                f"{PACKAGE} is not installed, and there is no file of that name",
                "pip install 'minigpt-torch[blocklist]' brings it; or name a file with one word a line",
            ) from None
    else:
        file = named_path(path, "blocklist")
        if not file.exists():  # a pipe, as <(...) of a shell, is no regular file, and can be read
            raise MissingFileError(
                f"there is no file {file} for a blocklist", f"name a file with one word a line, or {PACKAGE}"
            )
        text = read_plain_text(file)
    words = tuple(line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#"))
    if not words:
        raise DataError(f"there is no word in {name}", "write one word a line")
    return words


@checked
def faults(reply: str, messages: Messages, filters: Sequence[Callable[..., str]]) -> list[str]:
    """What is wrong with a reply, in the order of the filters; [] if it passes.

    Args:
        reply: its text.
        messages: all that was said before it.
        filters: those of this file, or anybody's.

    Raises:
        InputError: if a filter gives something else than a text.
    """
    reasons = [(one, one(reply, messages)) for one in filters]
    for one, reason in reasons:
        if not isinstance(reason, str):
            raise InputError(
                f"the filter {getattr(one, '__name__', brief(one))} gave {brief(reason)}, which is no text",
                'let it give "" if nothing is wrong, else what is wrong',
            )
    return [reason for _, reason in reasons if reason]


def _repeats(reply: str, other: str) -> bool:
    """Whether a reply is another text, or a part of it, nearly word for word; without words, the same signs."""
    ours, theirs = _words(reply), _words(other)
    if not ours:
        return _folded(reply).split() == _folded(other).split()
    run = SequenceMatcher(None, ours, theirs, autojunk=False).find_longest_match().size
    return run >= max(SHORTEST, SHARE * len(ours))


def _loop(items: Sequence[str], least: int, between: str) -> str:
    """What comes at least `TIMES` times in a row, in at least so many items; "" if nothing does."""
    for period in range(1, min(LONGEST_TURN, len(items) // TIMES) + 1):
        run = 0  # how many items in a row are the same as those one period before
        for at in range(period, len(items)):
            run = run + 1 if items[at] == items[at - period] else 0
            if run + period >= max(least, TIMES * period):
                return between.join(items[at - period + 1 : at + 1])
    return ""


def _words(text: str) -> list[str]:
    return _WORD.findall(_folded(text))


def _folded(text: str) -> str:
    """A text without its case, and without different ways to write the same character, or an apostrophe."""
    return unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
