r"""Conversations: messages to the text that a model reads, and dialogues to examples "the last turns -> the reply".

A conversation is a list of messages in the form that other programs use, and the text is that of a play:

    {"role": "system", "content": "Verona. A street."}             Verona. A street.

    {"role": "user", "name": "ROMEO", "content": "Is it day?"}     ROMEO:
                                                                   Is it day?

    the reply, which the model writes                              JULIET:

A blank line ends every turn. So a content keeps its line ends and loses its blank lines, and no content can look like
the turn after it. Behind a reply, a model writes `END_OF_TURN`, or the token that ends a text if its tokenizer has one.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, TypeVar, get_args

from minigpt.data.documents import Document
from minigpt.errors import InputError, brief
from minigpt.fields import checked
from minigpt.system.files import with_line_feeds
from minigpt.tokenizers import Tokenizer

TokenizerT = TypeVar("TokenizerT", bound=Tokenizer)
Role = Literal["system", "user", "assistant"]
NAMES = {"user": "USER", "assistant": "ASSISTANT"}  # of turns whose messages have no name
END_OF_TURN = "\n\n"

# What `render` does, as transformers' `apply_chat_template` runs it. Without add_generation_prompt, the last reply is
# closed as training closes it. A content that spells the end token is refused: there it would be read as that token.
CHAT_TEMPLATE = "".join(
    (
        "{%- macro speech(text) -%}",
        r"{%- for line in text.replace('\r\n', '\n').replace('\r', '\n').split('\n') if line.strip() -%}",
        r"{{- line + '\n' -}}",
        "{%- endfor -%}",
        "{%- endmacro -%}",
        "{%- set reply = namespace(name='ASSISTANT') -%}",
        "{%- for message in messages -%}",
        "{%- if message['role'] not in ['system', 'user', 'assistant'] -%}",
        "{{- raise_exception('message ' ~ loop.index ~ ' has an unknown role') -}}",
        "{%- endif -%}",
        "{%- if message['role'] == 'system' and not loop.first -%}",
        "{{- raise_exception('message ' ~ loop.index ~ ' is a system message, and not the first') -}}",
        "{%- endif -%}",
        "{%- if message['content'] is not string or not message['content'].strip() -%}",
        "{{- raise_exception('message ' ~ loop.index ~ ' has no text') -}}",
        "{%- endif -%}",
        "{%- set name = (message['name'] or '').split() | join(' ') -%}",
        "{%- if eos_token and (eos_token in message['content'] or eos_token in name) -%}",
        "{{- raise_exception('message ' ~ loop.index ~ ' spells ' ~ eos_token) -}}",
        "{%- endif -%}",
        "{%- if message['role'] == 'assistant' and name -%}",
        "{%- set reply.name = name -%}",
        "{%- endif -%}",
        "{%- if message['role'] != 'system' -%}",
        r"{{- (name or ('USER' if message['role'] == 'user' else 'ASSISTANT')) + ':\n' -}}",
        "{%- endif -%}",
        r"{{- speech(message['content']).strip() + '\n' -}}",
        "{%- if loop.last and message['role'] == 'assistant' and not add_generation_prompt -%}",
        r"{{- eos_token or '\n' -}}",
        "{%- else -%}",
        r"{{- '\n' -}}",
        "{%- endif -%}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}",
        r"{{- ((reply_as or '').split() | join(' ') or reply.name) + ':\n' -}}",
        "{%- endif -%}",
    )
)


class Message(TypedDict):
    """One turn, or the system message before all turns; plain data, as JSON has it."""

    role: Role
    content: str
    name: NotRequired[str]


@dataclass(frozen=True)
class Dialogue:
    """A conversation from its beginning to its end, as it was read.

    Attributes:
        messages: a system message if there is one, then the turns. None is blank, and no two in a row have the same
            role and name. Every message of the role "assistant" is a reply to learn; in a play, which has no other
            role, that is every speech.
    """

    messages: tuple[Message, ...] = field(repr=False)

    def checksum(self) -> str:
        """The sha256 (hex) of the messages: equal for equal dialogues."""
        return hashlib.sha256(json.dumps(self.messages, sort_keys=True).encode("ascii")).hexdigest()


@checked
def render(messages: Sequence[Message], *, reply_as: str = "") -> str:
    """The text that a model reads before its reply; it ends where the reply begins.

    Args:
        messages: a system message if there is one, then the turns. A turn without a name is `NAMES[role]`'s.
        reply_as: the name of who replies; if empty, the last name that an assistant has, else "ASSISTANT".

    Raises:
        InputError: if a message has another role, no text, or a name that is no text, or if a system message is not
            the first; the error gives its number, from 1. If `reply_as` is no text.
    """
    check_messages(messages)
    names = [name for message in messages if message["role"] == "assistant" and (name := own_name(message))]
    own = " ".join(reply_as.split()) or (names or [NAMES["assistant"]])[-1]
    return "".join(map(rendered, messages)) + heading(own)


def rendered(message: Message) -> str:
    """One message as `render` has it, up to the beginning of the next."""
    above = "" if message["role"] == "system" else heading(speaker(message))
    return above + speech(message["content"]) + END_OF_TURN


def heading(name: str) -> str:
    """The line above a turn, which the turn follows."""
    return f"{name}:\n"


def speech(content: str) -> str:
    """A content without blank lines and without blanks around it."""
    return "\n".join(line for line in with_line_feeds(content).split("\n") if line.strip()).strip()


def speaker(message: Message) -> str:
    """The name that stands above a turn."""
    return own_name(message) or NAMES[message["role"]]


def own_name(message: Mapping[str, Any]) -> str:
    """The name of a message, on one line; "" if it has none."""
    return " ".join((message.get("name") or "").split())


def check_messages(messages: Sequence[Message]) -> None:
    """Raise InputError if `render` cannot use one of them; it gives its number, from 1."""
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InputError(f"{brief(messages)} is no list of messages", 'give [{"role": "user", "content": "..."}, ...]')
    for number, message in enumerate(messages, start=1):
        if wrong := fault(message, first=number == 1):
            raise InputError(f"message {number} {wrong[0]}", wrong[1])


def fault(message: object, first: bool) -> tuple[str, str] | None:
    """What is wrong with a message, without its subject, and how to mend it; None if it can be used."""
    if not isinstance(message, Mapping):
        return f"is {brief(message)}, and no object", 'write it as {"role": "user", "content": "..."}'
    role, content, name = (message.get(key) for key in ("role", "content", "name"))
    roles = get_args(Role)
    if role not in roles:
        return f"has the role {brief(role)}", f"give it one of: {', '.join(roles)}"
    if role == "system" and not first:
        return "is a system message, and not the first", "put it before all turns; there is one at most"
    if not isinstance(content, str):
        return f"has {brief(content)} as its content, and no text", "write it as a string"
    if not content.strip():
        return f"of the role {role} is empty", "write what was said, or remove it"
    if not isinstance(name, str | None):
        return f"has {brief(name)} as its name, and no text", "write it as a string, or leave it out"
    return None


def examples(dialogue: Dialogue, turns: int) -> list[Document]:
    """Each reply of a dialogue, with the turns before it as its prompt; none reaches beyond the dialogue.

    Args:
        dialogue: as it was read.
        turns: the most turns of a prompt; the system message comes before these. With 0 it has none.

    Returns:
        A document for each reply that has a turn before it, in their order. Its prompt is `render` of these turns.
    """
    system = [message for message in dialogue.messages[:1] if message["role"] == "system"]
    opening, said = "".join(map(rendered, system)), dialogue.messages[len(system) :]
    found, checksum = [], dialogue.checksum()
    for place, message in enumerate(said):
        if place and message["role"] == "assistant":
            first = max(0, place - turns)
            before = [rendered(turn) for turn in said[first:place]]
            starts = list(itertools.accumulate(map(len, before), initial=len(opening)))
            replies = tuple(
                (start + len(heading(speaker(said[number]))), stop)
                for number, (start, stop) in enumerate(itertools.pairwise(starts), first)
                if number and said[number]["role"] == "assistant"
            )
            prompt = opening + "".join(before) + heading(speaker(message))
            text = speech(message["content"]) + "\n"  # the first half of `END_OF_TURN`; what ends a document follows
            found.append(Document(text, prompt, dialogue=checksum, turns=tuple(starts[:-1]), replies=replies))
    return found


def has_reply(dialogue: Dialogue) -> bool:
    """Whether there is a reply to learn: one that has a turn before it."""
    turns = [message for message in dialogue.messages if message["role"] != "system"]
    return any(message["role"] == "assistant" for message in turns[1:])


def same_beginnings(dialogues: Iterable[Dialogue]) -> dict[str, str]:
    """What dialogues belong together because one of them is there again, whole or more than half of it.

    A file may hold a dialogue once for each of the two who speak, or under another system message. If these were
    parted, what validates would have been trained on. A greeting that many share joins nothing. Blanks and capitals
    make no difference.

    Returns:
        For the checksum of each dialogue, that of the shortest with the same first turns, whoever speaks.
    """
    contents = {
        one.checksum(): tuple(
            message["content"].casefold().split() for message in one.messages if message["role"] != "system"
        )
        for one in dialogues
    }
    found: dict[str, str] = {}
    beginnings: list[str] = []  # of the dialogue at hand, each one of the next
    for checksum in sorted(contents, key=lambda one: contents[one]):  # which puts a beginning before what goes on
        turns = contents[checksum]
        while beginnings and turns[: len(contents[beginnings[-1]])] != contents[beginnings[-1]]:
            beginnings.pop()
        most = 2 * len(contents[beginnings[-1]]) > len(turns) if beginnings else False
        found[checksum] = found[beginnings[-1]] if most else checksum
        beginnings.append(checksum)
    return found


def check_template(tokenizer: Tokenizer, source: Path | str) -> None:
    """Check that a tokenizer has no other chat template than `CHAT_TEMPLATE`; one of another kind is never run.

    Args:
        tokenizer: the model's.
        source: the model's name, for the error.

    Raises:
        InputError: if it has another one, for which the model may have been trained.
    """
    theirs = tokenizer.settings.get("chat_template")
    if theirs not in (None, "", CHAT_TEMPLATE):
        raise InputError(
            f"{source} has a chat template of its own, {brief(theirs)}, and minigpt runs none but the one it writes",
            "talk with it in the transformers library; or take chat_template out of its tokenizer files, if the form "
            "of a play is right for it",
        )


def with_template(tokenizer: TokenizerT) -> TokenizerT:
    """The same tokenizer with `CHAT_TEMPLATE` among its settings, which exports write."""
    return tokenizer.with_added(tokenizer.added, {**tokenizer.settings, "chat_template": CHAT_TEMPLATE})
