"""A user's files -> dialogues: records of messages, PersonaChat, plays and chat logs.

    .jsonl, .ndjson     each line a record in one of the forms of `data.dialogue_records`; .json: these, or an array
    .json               PersonaChat: {"train": [...], "valid": [...]}; "valid" is what validates
    text: ParlAI's      the lines of PersonaChat and ConvAI2, each with a number
    text: a play        a name and a colon on a line, the speech below it; each scene is a dialogue
    text: a chat log    "Ann: hello" on a line; what lies between blank lines is a dialogue, if any of it has two turns
    a folder            the texts and .jsonl files below it

In a play and in a log, anybody may be who replies: each turn that has another before it is a reply to learn. In the
others, it is the assistant; so it is in a text where user and assistant have most of the turns, and nobody else any.
"""

import os
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from minigpt.data.corpora import (
    DIALOGUE_SOURCES,
    NAMED_SOURCES,
    OTHER_RECORDS,
    files_below,
    left_out,
    load_corpus,
    read_plain_text,
)
from minigpt.data.dialogue_records import Talk, is_parlai, parlai_talks, talk_of
from minigpt.data.dialogues import Dialogue, Message, Role, fault, has_reply, own_name, speaker, speech
from minigpt.data.documents import HALF_CHARACTER, SEPARATORS, holds_records, json_records, line_records
from minigpt.errors import DataError, MissingFileError, counted, first_line
from minigpt.system.files import json_items, listed, named_path, parsed_json

PARTS = ("train", "valid")  # of PersonaChat's file
Raw = tuple[str, Sequence[object]]  # a place in a file, and the messages there, not yet checked
Spoken = tuple[str, list[Message]]  # the same of a play or a log

_ROLES = frozenset(get_args(Role))

_BLANK_LINES = re.compile(r"\n\s*\n")
_ALONE = re.compile(r"^[^\S\n]*([^\s:][^\n:]{0,39}):[^\S\n]*(?:\n|$)", re.MULTILINE)  # a name above a speech
_IN_LINE = re.compile(r"([^\s:][^:\n]{0,39}):[^\S\n]+(?=\S)")  # a name before what was said, in a log
_TIME = re.compile(  # before a name in a log: "[10:02] ", "2026-01-02 10:02 ", "12/01/26, 10:02 - "
    r"^[^\S\n]*\u200e?[\[(]?\d+(?:[.:/-]\d+)+(?:(?:T|,?[^\S\n]+)\d+(?:[.:]\d+)+)?(?:[^\S\n]?[AaPp]\.?[^\S\n]?[Mm]\.?)?[\])]?"
    r"(?:[^\S\n]+-)?[^\S\n]+(?=(?!\d+:\d)([^\s:][^:\n]{0,39}):)",
    re.MULTILINE,
)
_UNSPOKEN = re.compile(  # a line of such a log with a time and no name: "12/01/26, 10:02 - Ann added Ben"
    r"^[^\S\n]*\u200e?(?:\[[\d.:/-]+[^\]\n]*\]|\d+(?:[./-]\d+)+(?:T|,?[^\S\n]+)\d+(?:[.:]\d+)+)[^\S\n]+[^\n]*\n?",
    re.MULTILINE,
)
_INSIDE = re.compile(rf"\n(?:[^\S\n]*\n)++(?!{_TIME.pattern[1:]})")  # blank lines with no such turn behind them
_CAPITALS = re.compile(r"([^a-z\n:]*[A-Z]{2}[^a-z\n:]*?)\.?[^\S\n]*\n")  # the same in editions without colons
_HEADING = re.compile(r"(?:ACT|SCENE|Act|Scene)[. ]+[IVXL\d]+\b|(?:PROLOGUE|EPILOGUE|INDUCTION|SCENE|THE END)\b")
_TITLE = re.compile(r"[^a-z\n]*[A-Z]{2}[^a-z\n]*")  # of a play or a poem, a line of its own
_ENTRANCE = re.compile(r"(?:Enter|Re-enter|Exit|Exeunt)\b[^\n]*")  # a direction without brackets, a line of its own
_DIRECTION = re.compile(r"\[[^\]]*\]?")  # of the stage; some are never closed

# Where the scenes of tinyshakespeare begin: the numbers of their first speeches, from 0. It has none of the headings;
# these places were found by comparing its words with those of the complete works, which have them.
_SCENES = (
    90, 101, 142, 169, 178, 203, 206, 212, 232, 240, 332, 374, 460, 615, 657, 717, 728, 759, 778, 785, 867, 941, 948,
    970, 1005, 1034, 1056, 1058, 1107, 1139, 1227, 1334, 1431, 1465, 1508, 1530, 1565, 1649, 1695, 1705, 1740, 1766,
    1767, 1814, 1843, 1903, 1915, 2092, 2097, 2102, 2107, 2185, 2189, 2196, 2225, 2233, 2293, 2307, 2364, 2401, 2416,
    2441, 2445, 2451, 2480, 2513, 2537, 2609, 2627, 2669, 2717, 2722, 2739, 2750, 2845, 2874, 2903, 2931, 2986, 2996,
    3051, 3070, 3162, 3181, 3190, 3250, 3273, 3311, 3319, 3387, 3420, 3438, 3443, 3454, 3502, 3517, 3525, 3590, 3711,
    3737, 3755, 3780, 3812, 3860, 3871, 3874, 3892, 3917, 3945, 4026, 4097, 4146, 4149, 4172, 4182, 4195, 4220, 4252,
    4269, 4314, 4321, 4325, 4338, 4379, 4394, 4403, 4416, 4526, 4582, 4602, 4658, 4664, 4705, 4726, 4729, 4730, 4739,
    4774, 5014, 5073, 5111, 5149, 5166, 5224, 5247, 5254, 5287, 5402, 5474, 5495, 5543, 5617, 5704, 5727, 5796, 5859,
    5867, 5870, 5876, 6046, 6075, 6120, 6184, 6270, 6407, 6438, 6521, 6588, 6636, 6711, 6745, 6771, 6846, 6939, 6967,
    7101,
)  # fmt: skip
_RUNNING_TITLE = "\n3 KING HENRY VI\n"  # which tinyshakespeare has at the end of scenes


@dataclass(frozen=True)
class Dialogues:
    """The dialogues of a source.

    Attributes:
        items: the dialogues, in their order; each has a reply to learn.
        described: one line: how many there are, what was joined and left out.
        validation: the dialogues that validate, if the source itself or another one names them.
    """

    items: list[Dialogue] = field(repr=False)
    described: str
    validation: list[Dialogue] | None = field(default=None, repr=False)

    def with_validation(self, other: "Dialogues") -> "Dialogues":
        """These dialogues to train on, and those of another source to validate; a line says what that leaves out."""
        unread = f"; {len(self.validation):,} that it would itself validate left out" if self.validation else ""
        described = f"{self.described}{unread}; to validate, {other.described}"
        return replace(self, described=described, validation=other.items + (other.validation or []))


@dataclass
class _Notes:
    """What is to be said of a reading."""

    joined: int = 0
    blank: int = 0
    outside: int = 0
    times: int = 0
    directions: int = 0
    without_reply: int = 0
    like_names: list[str] = field(default_factory=list)
    beside_roles: list[str] = field(default_factory=list)
    unused: dict[str, None] = field(default_factory=dict)

    def __str__(self) -> str:
        said = ""
        for count, noun, nouns, what in (
            (self.joined, "turn", "", "joined to one of the same speaker"),
            (self.blank, "speech", "speeches", "without words left out"),
            (self.outside, "passage", "", "that nobody speaks left out"),
            (self.times, "time", "", "before names left out"),
            (self.directions, "stage direction", "", "left out"),
            (self.without_reply, "dialogue", "", "without a reply left out"),
            (
                len(self.like_names), "line", "",
                f"such as '{self.like_names and self.like_names[0]}:' left in a speech (a blank line above makes it a "
                "name)",
            ),
            (
                len(self.beside_roles), "line", "",
                f"such as '{self.beside_roles and self.beside_roles[0]}:' left in a turn, because most are user's and "
                "assistant's",
            ),
        ):  # fmt: skip
            said += f"; {counted(count, noun, nouns)} {what}" if count else ""
        return said + (f"; fields not read: {listed(list(self.unused))}" if self.unused else "")


def read_dialogues(source: str | Path) -> Dialogues:
    """Read dialogues from a named source, a file or a folder, in one of the forms at the top of this file.

    Turns of one speaker in a row are joined. A play's stage directions in brackets, speeches without words and
    dialogues without a reply are left out. `Dialogues.described` says what was.

    Args:
        source: a name from `corpora.NAMED_SOURCES`, or a path; what is there is never changed.

    Raises:
        MissingFileError: if there is no such path.
        DataError: if a file is of another form, or a line, record or message in it cannot be used, with its number; or
            if no dialogue has a reply.
        DownloadError: as `corpora.load_corpus`.
    """
    notes, others = _Notes(), ""
    if source in NAMED_SOURCES:
        parts: list[tuple[list[Raw], list[Raw]]] = [(_from_corpus(str(source), notes), [])]
    else:
        path = named_path(source, "source")
        if not path.exists():
            raise MissingFileError(f"there is no file or folder {path}", "check the path of the dialogues")
        files = files_below(path, (".txt", ".md", ".jsonl", ".ndjson")) if path.is_dir() else [path]
        parts, others = [_from_file(file, notes) for file in files], left_out(path, files)
    items = [dialogue for part, _ in parts for dialogue in _usable(part, notes)]
    validation = [dialogue for _, part in parts for dialogue in _usable(part, notes)]
    if not items:
        raise DataError(
            f"no dialogue in {source} has a reply{notes}",
            "a reply is a turn of the assistant, or in a play and a log of anybody, with another turn before it",
        )
    described = f"{source}: {counted(len(items) + len(validation), 'dialogue')}{notes}{others}"
    return Dialogues(items, described, validation or None)


def _usable(found: Iterable[Raw], notes: _Notes) -> Iterator[Dialogue]:
    """The dialogues that have a reply; DataError on a message that `render` cannot use."""
    for place, messages in found:
        kept: list[Message] = []
        for number, message in enumerate(messages, start=1):
            if wrong := fault(message, first=number == 1):
                raise DataError(f"{place}: message {number} {wrong[0]}", wrong[1])
            assert isinstance(message, Mapping)
            notes.unused |= dict.fromkeys(key for key in message if key not in Message.__annotations__)
            turn: Message = {"role": message["role"], "content": speech(message["content"])}
            if name := own_name(message):
                turn["name"] = name
            if half := HALF_CHARACTER.search(turn["content"] + turn.get("name", "")):
                raise DataError(
                    f"{place}: message {number} holds half a character, {half[0]!r}",
                    "the text was cut inside an emoji or the like: remove that half",
                )
            if kept and kept[-1]["role"] == turn["role"] and speaker(kept[-1]) == speaker(turn):
                kept[-1]["content"] += "\n" + turn["content"]
                notes.joined += 1
            else:
                kept.append(turn)
        dialogue = Dialogue(tuple(kept))
        if has_reply(dialogue):
            yield dialogue
        else:
            notes.without_reply += 1


def _from_file(file: Path, notes: _Notes) -> tuple[list[Raw], list[Raw]]:
    """What a file has to train on, and what it has to validate."""
    ending = file.suffix.lower()
    if ending in SEPARATORS or (ending in OTHER_RECORDS and ending != ".json"):
        raise DataError(
            f"{file} ends in {ending}, a form that is not read as dialogues",
            'save them as .jsonl, each line {"messages": [{"role": "user", "content": "..."}, ...]}',
        )
    if ending in (".jsonl", ".ndjson"):
        return _from_records(line_records(file), notes), []
    text = read_plain_text(file)
    if ending != ".json":
        told = list(parlai_talks(text, str(file))) if is_parlai(text) else None
        return (_from_text(text, str(file), notes) if told is None else _from_talks(told, notes)), []
    if holds_records(text):
        return _from_records(json_records(file), notes), []
    return _from_parts(text, file, notes)


def _from_records(records: Mapping[str, object], notes: _Notes) -> list[Raw]:
    talks: list[tuple[str, Talk]] = []
    for place, record in records.items():
        fields = dict(record) if isinstance(record, Mapping) else {}
        talk = talk_of(fields, place)
        if talk is None:
            raise DataError(
                f"{place} has no list of messages; its fields: {listed(list(fields))}",
                'write each dialogue as {"messages": [{"role": "user", "content": "..."}, ...]}',
            )
        if "history" in fields and talks and talk.goes_on_from(talks[-1][1]):
            talks.pop()
        talks.append((place, talk))
    return _from_talks(talks, notes)


def _from_talks(talks: Iterable[tuple[str, Talk]], notes: _Notes) -> list[Raw]:
    found: list[Raw] = []
    for place, talk in talks:
        notes.unused |= dict.fromkeys(talk.unread)
        notes.blank += talk.blank
        found.append((place, talk.messages))
    return found


def _from_parts(text: str, file: Path, notes: _Notes) -> tuple[list[Raw], list[Raw]]:
    """What a JSON object has to train on in "train", and what to validate in "valid", as PersonaChat's."""
    try:
        content = parsed_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {first_line(error, 200)}", "mend it there") from None
    parts = [content.get(name) or [] for name in PARTS] if isinstance(content, dict) else []
    if not all(isinstance(part, list) for part in parts) or not any(parts):
        raise DataError(
            f'{file} holds neither an array of dialogues nor PersonaChat, {{"train": [...], "valid": [...]}}',
            'write [{"messages": [{"role": "user", "content": "..."}, ...]}, ...], or save them as .jsonl',
        )
    notes.unused |= dict.fromkeys(name for name in content if name not in PARTS)
    train, valid = (
        _from_records({f"{file}, {name} {number}": entry for number, entry in enumerate(part, start=1)}, notes)
        for name, part in zip(PARTS, parts, strict=True)
    )
    return (train, valid) if train else (valid, [])


def holds_dialogues(source: str) -> bool:
    """Whether a file of records holds dialogues, by its first record; one with a field "text" is a document.

    What cannot be read holds none: who reads it whole will say why.
    """
    path = Path(os.path.expanduser(source))
    ending = path.suffix.lower()
    if ending not in (".jsonl", ".ndjson", ".json") or not os.path.isfile(path):
        return False
    with suppress(DataError, OSError, ValueError, RecursionError):
        if ending == ".json":
            text = read_plain_text(path).lstrip()
            if not holds_records(text):
                return re.match(rf'{{\s*"(?:{"|".join(PARTS)})"\s*:\s*\[', text) is not None
            first = next(json_items(text), None) if text.startswith("[") else parsed_json(text.partition("\n")[0])
        else:  # one line of it, because the file may be large, and is read whole later
            with path.open(encoding="utf-8-sig") as file:
                first = parsed_json(next(filter(str.strip, file), ""))
        return isinstance(first, dict) and "text" not in first and talk_of(first, str(path)) is not None
    return False


def _from_corpus(name: str, notes: _Notes) -> list[Raw]:
    """The dialogues of a named corpus."""
    text = load_corpus(name).text
    if DIALOGUE_SOURCES.get(name, name) == "shakespeare":
        return [*_from_play(text.replace(_RUNNING_TITLE, "\n"), name, notes, _SCENES)]
    return _from_text(text, name, notes)


def _from_text(text: str, place: str, notes: _Notes) -> list[Raw]:
    """A play or a log, whichever has more turns; a log, where every other turn has its name beside it."""
    timed = [found[1].strip() for found in _TIME.finditer(text)]
    # If most turns have a time, who speaks stands behind one; other lines, and blank ones, are inside of messages.
    all_timed = len(timed) > sum(map(bool, map(_IN_LINE.match, text.split("\n"))))
    text = _TIME.sub("", _INSIDE.sub("\n", text) if all_timed else text)
    notes.times += len(timed)
    if timed:
        text, unspoken = _UNSPOKEN.subn("", text)
        notes.outside += unspoken
    blocks = _BLANK_LINES.split(text.strip())
    above = Counter(named[1].strip() for block in blocks if (named := _ALONE.match(block)))
    lines = Counter(named[1].strip() for block in blocks for named in _ALONE.finditer(block)) - above
    beside = Counter(named[1].strip() for line in text.strip().split("\n") if (named := _IN_LINE.match(line)))
    if all_timed:
        beside &= Counter(timed)
    everybody = above + lines + beside
    roles = {name for name in everybody if name.casefold() in _ROLES}
    others = [name for name in everybody.elements() if name not in roles and _looks_like_a_name(name)]
    both = {"user", "assistant"} <= {name.casefold() for name in roles}
    again = [name for name in others if everybody[name] > 1]  # not "Flour:" in a list, as a rule
    only = roles if both and sum(everybody[name] for name in roles) > len(again) else None
    if only:  # then "Note:" in an answer is no third one who speaks
        notes.beside_roles += others
        above, lines, beside = (
            Counter({name: one[name] for name in only & one.keys()}) for one in (above, lines, beside)
        )
    if not above and not beside:
        raise DataError(
            f"{place} has no dialogue: no line begins with a name and a colon",
            'write a play, with "ROMEO:" above each speech, a log such as "Ann: hello", or messages as .jsonl',
        )
    more = _more_names(above, lines)
    below = sum(lines[name] for name in more)  # turns without a blank line above them
    in_play = above.total() + below
    recurring = sum(count for name, count in beside.items() if count > 1 and _looks_like_a_name(name))
    in_log = beside.total() + sum((above + lines)[name] for name in beside)
    is_log = in_play < in_log or 0 < in_play <= 2 * recurring
    if is_log:
        lines += above
        more = _more_names(beside, lines)
    doubtful = [name for name in lines if name not in more and _looks_like_a_name(name)]
    notes.like_names += doubtful if 100 * len(doubtful) >= (above + beside).total() else []
    if is_log:
        return _as_roles(_from_log(blocks, beside.keys(), more, place, notes))
    parts = blocks if below >= above.total() else [text]  # blank lines are between scenes, or also in them
    parted = (_ALONE.sub(lambda line: "\n\n" * (line[1].strip() in more) + line[0], part) for part in parts)
    return _as_roles([scene for part in parted for scene in _from_play(part, place, notes, only=only)])


def _as_roles(found: list[Spoken]) -> list[Raw]:
    """The dialogues of a text; where all speakers are called after roles, each turn is of its role."""
    names = {speaker(message).casefold() for _, messages in found for message in messages}
    if not {"user", "assistant"} <= names <= _ROLES:
        return [*found]
    return [
        (place, [{"role": speaker(message).casefold(), "content": message["content"]} for message in messages])
        for place, messages in found
    ]


def _more_names(sure: Counter[str], lines: Counter[str]) -> set[str]:
    """The names among lines that end in a colon, but stand inside what somebody says.

    Args:
        sure: names, and how often each begins a turn.
        lines: such lines without their colon, and how often each is there.
    """
    likely = {name for name, count in lines.items() if name in sure or (count > 1 and _looks_like_a_name(name))}
    turns = sum(lines[name] for name in likely)
    if turns >= sure.total():  # so most lines of this kind are names
        likely |= set(filter(_looks_like_a_name, lines))
    return likely if 10 * turns >= sure.total() else likely & set(sure)


def _looks_like_a_name(line: str) -> bool:
    return line in _ROLES or not any(word[0].islower() for word in line.split())


def _from_play(
    text: str, place: str, notes: _Notes, starts: tuple[int, ...] = (), only: Container[str] | None = None
) -> list[Spoken]:
    """The scenes of a play.

    Args:
        text: all of it.
        place: the file.
        notes: what is to be said of the reading.
        starts: the speeches with which a scene begins where no heading says so.
        only: those who speak, if others with a colon behind them do not.
    """
    scenes: list[list[tuple[str, str]]] = [[]]
    number = -1  # of the speech
    for block in _BLANK_LINES.split(text.strip()):
        named = None if _HEADING.match(block) else _ALONE.match(block) or _CAPITALS.match(block)
        if named and (only is None or named[1].strip() in only):
            number += 1
            if number in starts:
                scenes.append([])
            scenes[-1].append((named[1], block[named.end() :]))
        elif _HEADING.match(block) or _TITLE.fullmatch(block):
            scenes.append([])
        elif _ENTRANCE.fullmatch(block):
            notes.outside += 1
        elif scenes[-1]:  # behind a direction, a speech goes on
            name, said = scenes[-1].pop()
            scenes[-1].append((name, f"{said}\n{block}"))
        else:
            notes.outside += bool(_DIRECTION.sub("", block).strip())
    for turns in scenes:
        for number, (name, said) in enumerate(turns):
            spoken, directions = _DIRECTION.subn("", said)
            notes.directions += directions
            turns[number] = name, spoken
    return [_spoken(turns, place, notes) for turns in scenes if turns]


def _from_log(
    blocks: list[str], speakers: Container[str], names: Container[str], place: str, notes: _Notes
) -> list[Spoken]:
    """The dialogues of a log; a line without a name goes on with the turn above it.

    Args:
        blocks: what lies between blank lines.
        speakers: of those who speak beside their name.
        names: of those who also speak below their name.
        place: the file.
        notes: what is to be said of the reading.
    """

    def named(line: str) -> re.Match[str] | None:
        alone, beside = _ALONE.match(line), _IN_LINE.match(line)
        if alone and alone[1].strip() in names:
            return alone
        return beside if beside and beside[1].strip() in speakers else None

    if not any(sum(map(bool, map(named, block.split("\n")))) > 1 for block in blocks):
        scenes: list[list[str]] = [[]]  # blank lines are between turns
        for block in blocks:
            scenes.append([]) if _HEADING.match(block) else scenes[-1].append(block)
        blocks = ["\n".join(scene) for scene in scenes if scene]
    found = []
    for block in blocks:
        turns: list[tuple[str, str]] = []
        for line in block.split("\n"):
            if begins := named(line):
                turns.append((begins[1], line[begins.end() :]))
            elif turns:
                name, said = turns.pop()
                turns.append((name, f"{said}\n{line}"))
            else:
                notes.outside += 1
        if turns:
            found.append(_spoken(turns, place, notes))
    return found


def _spoken(turns: Iterable[tuple[str, str]], place: str, notes: _Notes) -> Spoken:
    """Turns as messages."""
    said = [(name.strip(), speech(text)) for name, text in turns]
    notes.blank += sum(not text for _, text in said)
    return place, [{"role": "assistant", "name": name, "content": text} for name, text in said if text]
