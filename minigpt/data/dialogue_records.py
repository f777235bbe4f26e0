"""Records of dialogues -> messages, in the forms in which people have them.

    {"messages": [{"role", "content"}, ...]}                        the usual form; "name" is read too
    {"conversations": [{"from", "value"}, ...]}                     ShareGPT's, from human and gpt
    {"personality", "utterances": [{"history", "candidates"}]}      PersonaChat, as Hugging Face shares it
    {"personality", "history", "candidates"}                        the same with a record for each reply
    {"dialog": [{"sender", "text", "sender_class"}], "bot_profile"} ConvAI2's talks of people with bots
    {"thread": [{"userId", "text"}], "users": [{"id", "userType"}]} those of ConvAI 2017

    1 your persona: i like tea .                                    PersonaChat and ConvAI2 as lines of text, which
    2 what was said <TAB> the reply                                 ParlAI reads: the number 1 begins a dialogue

In PersonaChat's, the last of the candidates is the reply.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from minigpt.errors import DataError, brief

_SILENCE = re.compile("__ ?SILENCE ?__")  # with this PersonaChat says that nobody has spoken before
_FIRST_LINE = re.compile(r"1 (?:(?:your|partner's) persona: |[^\t\n]*\t)")
_LINE = re.compile(r"(\d{1,9}) (?:(your|partner's) persona: (.*)|([^\t]*)\t([^\t]+)(?:\t.*)?)")


class Talk(NamedTuple):
    """What a record says.

    Attributes:
        messages: not yet checked.
        unread: the names of its other fields.
        blank: number of turns without words.
    """

    messages: list[object]
    unread: list[str]
    blank: int = 0

    def goes_on_from(self, before: "Talk") -> bool:
        """Whether it is the same dialogue, up to a later reply."""
        size = len(before.messages)
        return 0 < size < len(self.messages) and self.messages[:size] == before.messages


def talk_of(record: Mapping[str, object], place: str) -> Talk | None:
    """The messages of a record in one of the JSON forms above; None if it has another.

    Raises:
        DataError: if the record has the fields of a form, and something else in them.
    """
    match record:
        case {"messages": [*messages], **rest}:
            return Talk(messages, list(rest))
        case {"conversations": [*turns], **rest}:
            messages = [message for turn in turns for message in _shared(turn)]
            return Talk(messages, list(rest), blank=len(turns) - len(messages))
        case {"utterances": [*_, {"history": [*history], "candidates": [*_, reply]}], **rest}:
            return _persona_chat([*history, reply], rest, place)
        case {"history": [*history], "candidates": [*_, reply], **rest}:
            return _persona_chat([*history, reply], rest, place)
        case {"dialog": [*turns], **rest}:
            profile = _sentences(rest.pop("bot_profile", None), f"{place}: its bot_profile")
            return _talk(turns, "sender", _bots(turns, "sender", "sender_class"), profile, list(rest), place)
        case {"thread": [*turns], "users": [*users], **rest}:
            return _talk(turns, "userId", _bots(users, "id", "userType"), "", list(rest), place)
        case {"utterances": _} | {"dialog": _} | {"thread": _}:
            raise DataError(
                f"{place} is {brief(record)}, and no dialogue of PersonaChat or ConvAI2",
                'write it as {"personality": ["..."], "utterances": [{"history": ["..."], "candidates": ["..."]}]}, '
                'or {"dialog": [{"sender": "...", "text": "..."}]}',
            )
    return None


def _shared(turn: object) -> list[object]:
    """A turn of ShareGPT's as a message, or none if it has no words; any other turn unchanged."""
    match turn:
        case {"from": _, "value": str(text)} if not text.strip():
            return []
        case {"from": name, **rest}:
            role = {"human": "user", "gpt": "assistant"}.get(str(name), name)
            return [{"role": role, "content": rest.pop("value", None), **rest}]
    return [turn]


def _persona_chat(said: list[object], rest: dict[str, object], place: str) -> Talk:
    """The turns up to a reply; each before it is of the other one than the next."""
    if isinstance(said[0], str) and _SILENCE.fullmatch(said[0].strip()):
        del said[0]
    persona = _sentences(rest.pop("personality", None), f"{place}: its personality")
    roles = [("user", "assistant")[(len(said) - number) % 2] for number in range(len(said))]
    return Talk([*_system(persona), *map(_message, roles, said)], list(rest))


def _bots(entries: list[object], name: str, kind: str) -> set[str]:
    """The names in those entries whose kind says that it is a bot: "Bot", or "org.pavlovai.communication.Bot"."""
    kinds = [(str(entry.get(name)), str(entry.get(kind))) for entry in entries if isinstance(entry, dict)]
    return {name for name, kind in kinds if kind.endswith("Bot")}


def _talk(turns: list[object], sender: str, bots: set[str], profile: str, unread: list[str], place: str) -> Talk:
    """Turns with the name of who sent them; the bot replies, or where there is none or several, the second to speak."""
    told: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        match turn:
            case {"text": str(text), **rest} if isinstance(rest.get(sender), str | int):
                told.append((str(rest[sender]), text))
            case _:
                raise DataError(
                    f"{place}: turn {number} is {brief(turn)}", f'write it as {{"{sender}": "...", "text": "..."}}'
                )
    order = [*dict.fromkeys(name for name, _ in told), "", ""]
    replier = bots.pop() if len(bots) == 1 else order[1]
    spoken = [(("user", "assistant")[name == replier], text) for name, text in told if text.strip()]
    messages = [*_system(profile), *(_message(role, text) for role, text in spoken)]
    return Talk(messages, unread, blank=len(told) - len(spoken))


def _message(role: str, content: object) -> object:
    return {"role": role, "content": content}


def _system(text: str) -> list[object]:
    return [_message("system", text)] if text else []


def _sentences(value: object, what: str) -> str:
    """Sentences, one a line; some files have each as a list of its characters."""
    match value:
        case None:
            return ""
        case list():
            lines = ["".join(line) if _are_strings(line) else line for line in value]
            if all(isinstance(line, str) for line in lines):
                return "\n".join(map(str, lines))
    raise DataError(f"{what} is {brief(value)}", "write it as a list of sentences")


def _are_strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(part, str) for part in value)


def is_parlai(text: str) -> bool:
    """Whether a text is in ParlAI's form, by its first line."""
    return _FIRST_LINE.match(text.lstrip()) is not None


def parlai_talks(text: str, place: str) -> Iterator[tuple[str, Talk]]:
    """The dialogues of a text in ParlAI's form, each with the place where it begins.

    Raises:
        DataError: on a line of another form, with its number.
    """
    persona: list[str] = []
    messages: list[object] = []
    unread: list[str] = []
    begin, last = 1, 0
    for number, line in enumerate([*text.split("\n"), "1 \t."], start=1):  # and one more dialogue, which is not read
        if not line.strip():
            continue
        found = _LINE.fullmatch(line)
        if not found:
            raise DataError(
                f"{place}, line {number} is {brief(line)}, and neither a persona nor a turn and its reply",
                "write a number, a space, what was said, a tab and the reply; or <number> your persona: ...",
            )
        if int(found[1]) <= last:
            yield f"{place}, the dialogue in line {begin}", Talk([*_system("\n".join(persona)), *messages], unread)
            persona, messages, unread, begin = [], [], [], number
        last = int(found[1])
        if found[2]:
            (persona if found[2] == "your" else unread).append(found[3] if found[2] == "your" else "partner's persona")
        else:
            said = [(role, part.replace("\\n", "\n")) for role, part in (("user", found[4]), ("assistant", found[5]))]
            messages += [_message(role, part) for role, part in said if not _SILENCE.fullmatch(part.strip())]
