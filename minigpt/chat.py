"""A conversation with a model: the turns that it reads, its replies, and what is done when one fails.

    chat = minigpt.Chat(model, tokenizer, reply_as="JULIET", user="ROMEO", filters=replies.USUAL)
    print(chat.say("What light is this?"))
    print(chat.again())
    json.dumps(chat.messages)

What the model reads before a reply follows from the messages alone (`data.dialogues.render` of the last turns that
fit), and the reply from that, the options and the seed. Keys and values of earlier turns are kept only to be faster.
"""

import contextlib
import inspect
import itertools
import json
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Unpack, cast

from minigpt.data.dialogues import (
    CHAT_TEMPLATE,
    END_OF_TURN,
    Message,
    check_messages,
    check_template,
    own_name,
    render,
    rendered,
)
from minigpt.data.documents import most_turns
from minigpt.decoding.generate import before_stop, stream
from minigpt.decoding.options import DecodingOptions, Options
from minigpt.errors import CheckpointError, InputError, ModelNote, brief, counted, named
from minigpt.fields import Bounds, check_value, checked
from minigpt.kv_cache import KVCache
from minigpt.model import GPT
from minigpt.packed import cache_dtype, new_cache
from minigpt.parameters import hooked
from minigpt.replies import faults, is_empty
from minigpt.system.files import listed, named_path, read_json, write_text
from minigpt.tokenizers import TextStream, Tokenizer, note_special

VERSION = 1  # of the files that `Chat.save` writes
LONGEST = 200  # tokens of a reply, unless its caller says otherwise
SHARE = 3  # the n-th part of the context is kept free for a reply, if this may be so long
_SAVED = ("user", "reply_as", "seed", "messages")  # what `Chat.save` writes, beside the version
OURS = ("eos_token_id", "on_overflow", "num_return_sequences", "batch_size")  # options that a chat decides itself

_Count = Annotated[int, Bounds(1, 1_000_000)]
_Tries = Annotated[int, Bounds(1, 1000, below="draws no reply")]
_Seed = Annotated[int | None, Bounds(0, 2**63 - 1, "a whole number from 0 to 2**63 - 1, or None")]


@dataclass(frozen=True)
class Draw:
    """One try at a reply.

    Attributes:
        text: without the blanks around it.
        faults: what is wrong with it, as the filters say it; of an interrupted one, nothing is said.
        seed: with which it was drawn.
        num_tokens: how many tokens the model wrote.
        ended: by the model ("end"), by `max_new_tokens` or the context ("length"), or by whoever read it
            ("interrupted").
    """

    text: str
    faults: tuple[str, ...]
    seed: int | None
    num_tokens: int
    ended: Literal["end", "length", "interrupted"]


@dataclass(frozen=True)
class Reply:
    """What a model replied.

    Attributes:
        best: the try that counts: the one with the fewest faults, the first of several; an empty one last.
        draws: all tries, in their order.
        messages: what the model read: the system message if there is one, and the last turns that fit.
    """

    best: Draw
    draws: tuple[Draw, ...] = field(repr=False)
    messages: tuple[Message, ...] = field(repr=False)

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The reply; "" if every try was empty."""
        return self.best.text

    @property
    def faults(self) -> tuple[str, ...]:
        """What is wrong with it; () if it has passed."""
        return self.best.faults

    @property
    def failed(self) -> tuple[Draw, ...]:
        """The tries that have not passed."""
        return tuple(draw for draw in self.draws if draw.faults)


class Chat:
    """A conversation with a model. Two are equal if they go on alike: the same model, messages, settings and next seed.

    Args:
        model: must stay as it is, because what it has read is kept.
        tokenizer: the model's.
        turns: the most turns that the model reads, with the one that it replies to; the system message comes before
            these. Where they leave less room than `max_new_tokens` or, if that is less, a third of the context, whole
            turns fall out, the oldest first.
        system: the system message; None or "" for none, or for that of `messages`.
        reply_as: the name of who replies; "" for the last name that a reply has, else "ASSISTANT".
        user: the name of who speaks to the model; "" for "USER".
        messages: a conversation to go on with.
        filters: what no reply should do; see `replies`. An empty reply fails in any case.
        tries: how often a reply is drawn until one passes, each time with the next seed.
        **options: fields of `DecodingOptions`, without beams. `max_new_tokens` is 200 by default. `seed` is that of the
            first draw, 0 by default; each draw takes the next one.

    Attributes:
        messages: all that was said, as JSON has it: {"role": ..., "content": ..., "name": ...}. Anybody may change it.
        seed: of the next draw.
        last: the last reply, or None.
        settings: the arguments from `turns` to `tries`, and the options except `seed`, as they were given.
        decoding: how a reply is drawn, complete.

    Warns:
        ModelNote: if the model was not trained on dialogues.

    Raises:
        InputError: if an argument cannot be used or encoded, or the tokenizer has another chat template than minigpt's.
    """

    @checked
    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        *,
        turns: _Count = 4,
        system: str | None = None,
        reply_as: str = "",
        user: str = "",
        messages: Sequence[Mapping[str, Any]] = (),
        filters: Sequence[Callable[[str, Sequence[Message]], str]] = (),
        tries: _Tries = 3,
        **options: Unpack[Options],
    ) -> None:
        check_template(tokenizer, "the model")
        if not is_trained_to_reply(tokenizer):
            note = "this model was not trained on dialogues: it goes on with the text of one as best it can"
            warnings.warn(ModelNote(note), stacklevel=3)
        self.model = model
        self.tokenizer = tokenizer
        seed = options.get("seed", 0)
        check_value("seed", seed, _Seed, InputError)
        self.seed = cast(int | None, seed)
        self.last: Reply | None = None
        self.messages = cast(list[Message], [dict(message) for message in messages])
        check_messages(self.messages)
        if system:
            said = _turns(self.messages)
            self.messages = [{"role": "system", "content": system}, *said]
            check_messages(self.messages)
        self.settings: dict[str, Any] = {
            "turns": turns, "reply_as": reply_as, "user": user, "filters": tuple(filters), "tries": tries, **options,
        }  # fmt: skip
        self.settings.pop("seed", None)  # it goes on, and what was given says nothing of the next draw
        self.decoding = self._decoding(**options)
        self._check_characters()
        self._stream: weakref.ref[Generator[str, None, None]] | None = None  # the last one, while somebody holds it
        self._cache: KVCache | None = None
        self._read: list[int] = []  # the ids whose keys and values are in the cache

    def _decoding(self, **options: Any) -> DecodingOptions:
        for name in OURS:
            if name in options:
                raise InputError(f"a chat decides {name} itself", f"leave {name} out")
        if options.get("min_new_tokens") and not self.tokenizer.end_ids:
            raise InputError(
                f"{named('min_new_tokens', options['min_new_tokens'])} keeps back the token that ends a document, but "
                "this model's tokenizer has none: a blank line ends its replies",
                f"leave {named('min_new_tokens')} out; a least number of characters is what draws short replies again",
            )
        ours = {"eos_token_id": self.tokenizer.end_ids, "on_overflow": "stop"}
        given = DecodingOptions(**{"max_new_tokens": LONGEST, **options, **ours})
        if given.uses_beams:
            raise InputError(
                f"a chat shows a reply while it is written, and {named('strategy', given.strategy)} with "
                f"{named('num_beams', given.num_beams)} may replace it until the end",
                f"choose {named('strategy')} sample or greedy, with one beam",
            )
        return replace(given, stop=(END_OF_TURN, *given.stop_strings))

    def _check_characters(self) -> None:
        """Raise InputError if what is there before anybody speaks cannot be encoded: then no line could be answered."""
        texts = {named(name): self.settings[name] for name in ("user", "reply_as")}
        for number, message in enumerate(self.messages, start=1):
            texts[f"message {number} of the role {message['role']}"] = rendered(message)
        for what, text in texts.items():
            try:
                self.tokenizer.encode(text)
            except InputError as error:
                wrong, how = error.renamed({})
                raise InputError(f"{what}: {wrong}", how) from None

    @property
    def history(self) -> list[Message]:
        """The same as `messages`."""
        return self.messages

    @property
    def reply_name(self) -> str:
        """The name of who replies; "" if it has none."""
        return self._name(self.messages)

    @property
    def said_last(self) -> str:
        """What the user said last. Raises InputError if nothing was said."""
        return self.messages[self._last_said()]["content"]

    def __repr__(self) -> str:
        said = counted(len(self.messages), "message")
        return f"Chat({said}, {brief(self.messages[-1:])}, the next seed is {self.seed})"

    def __copy__(self) -> Self:
        """A conversation that goes on by itself: the same model, and messages of its own."""
        other = type(self).__new__(type(self))
        vars(other).update(self.__getstate__(), messages=_copies(self.messages))
        return other

    def __getstate__(self) -> dict[str, Any]:
        """All but the reply that is just written, and what is kept only to be faster."""
        return {**vars(self), "_stream": None, "_cache": None, "_read": []}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Chat):
            return NotImplemented
        same = self.model is other.model and self.tokenizer == other.tokenizer
        return same and all(getattr(self, name) == getattr(other, name) for name in ("messages", "settings", "seed"))

    __hash__ = None  # type: ignore[assignment] # it changes

    def change(self, **settings: Any) -> None:
        """Change arguments of `Chat`; what is not named stays, and so does the conversation.

        Raises:
            InputError: if one cannot be used; then nothing is changed.
        """
        self._end_stream()
        said = _turns(self.messages) if "system" in settings else self.messages
        given = {"messages": said, **self.settings, "seed": self.seed, **settings}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ModelNote)  # it was said at the beginning
            other = Chat(self.model, self.tokenizer, **given)
        self.messages, self.seed = other.messages, other.seed
        self.settings, self.decoding = other.settings, other.decoding

    # --- what is said

    @checked
    def say(self, text: str) -> Reply:
        """Say something; both this and the reply are added to `messages`. An empty reply is not.

        Raises:
            InputError: if the text is empty, cannot be encoded, or is too long for the context; or as `generate` and
                `replies.faults`. Then nothing is changed.
        """
        return self._whole(self.stream(text))

    def again(self) -> Reply:
        """Another reply, with the next seed, in the place of the last one. Raises as `say`, and if nothing was said."""
        return self._whole(self.stream())

    @checked
    def edit(self, text: str) -> Reply:
        """Say something else in the place of what was said last, whose reply falls out. Raises as `again`."""
        return self._whole(self.stream(text, edit=True))

    def undo(self) -> str:
        """Take back what was said last, with its reply; returns it. Raises InputError if nothing was said."""
        self._end_stream()
        at = self._last_said()
        text = self.messages[at]["content"]
        self.messages = self.messages[:at]
        return text

    @checked
    def stream(
        self, text: str | None = None, *, edit: bool = False, on_failed: Callable[[Draw], object] | None = None
    ) -> Generator[str, None, None]:
        """A reply in pieces, as it is written; they are its text together.

        If the stream is closed early, or KeyboardInterrupt comes in between, the text up to there is the reply. What is
        said or changed next closes it.

        Args:
            text: what is said, as in `say`; None replies `again`.
            edit: whether it takes the place of what was said last, as in `edit`.
            on_failed: is told of a try that has failed before the pieces of the next one come. Without it, nobody sees
                a try that fails, so with filters the pieces come when all of a reply has passed. The reply that counts
                is `last`, and not the one that came last, if none has passed.

        Raises:
            InputError: as `say`, at once where this can be known; or if a reply is being written by another thread.
        """
        self._end_stream()
        if text is None:
            messages = self.messages[: self._last_said() + 1]
        else:
            note_special(self.tokenizer, [text])
            message: Message = {"role": "user", "content": text}
            if name := self.settings["user"]:
                message["name"] = name
            messages = [*self.messages[: self._last_said() if edit else None], message]
        pieces = self._reply(messages, *self._prompt(messages), on_failed)
        self._stream = weakref.ref(pieces)
        return pieces

    def _end_stream(self) -> None:
        """Close a stream that is still open: two at a time would share one cache, and lose what the other said."""
        pieces = self._stream() if self._stream is not None else None
        if pieces is None:
            return
        if inspect.getgeneratorstate(pieces) == inspect.GEN_RUNNING:
            raise InputError("a reply is just being written", "wait for it, or go on with copy.copy of the chat")
        pieces.close()

    def _whole(self, pieces: Iterable[str]) -> Reply:
        for _ in pieces:
            pass
        assert self.last is not None
        return self.last

    def _last_said(self) -> int:
        """The place of the user's last message."""
        check_messages(self.messages)  # anybody may have added to them
        places = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        if not places:
            raise InputError("nothing was said yet", "say something first")
        return places[-1]

    def _name(self, messages: Sequence[Message]) -> str:
        """Who replies."""
        names = [name for message in messages if message["role"] == "assistant" and (name := own_name(message))]
        return self.settings["reply_as"] or (names or [""])[-1]

    def _prompt(self, messages: Sequence[Message]) -> tuple[list[Message], list[int]]:
        """What the model reads before its reply to these messages: those that fit, and their ids."""
        check_messages(messages)
        said = _turns(messages)
        system, block_size = messages[: len(messages) - len(said)], self.model.config.block_size
        room = min(self.decoding.max_new_tokens, block_size // SHARE)

        def read(turns: int) -> tuple[list[Message], list[int]]:
            kept = [*system, *said[-turns:]]
            return kept, self.tokenizer.encode(render(kept, reply_as=self._name(messages)))

        # The last token of a reply is never read; so the model has one place more than `block_size`.
        most = min(len(said), self.settings["turns"])
        kept, ids = read(most_turns(most, lambda turns: len(read(turns)[1]) + room <= block_size + 1))
        if len(ids) > block_size:
            raise InputError(
                f"the message has {counted(len(ids), 'token')}{' with the system message' if system else ''} and the "
                f"names, and the model reads at most {block_size}",
                f"shorten {'one of the two' if system else 'it'}",
            )
        return kept, ids

    def _reply(
        self,
        messages: list[Message],
        kept: list[Message],
        ids: list[int],
        on_failed: Callable[[Draw], object] | None,
    ) -> Generator[str, None, None]:
        """All tries at a reply to `messages`, of which the model reads `kept`, as `ids`."""
        before, seed, draws = self.messages, self.seed, cast(list[Draw], [])
        pieces: Generator[str, None, None] | None = None
        most = self.settings["tries"] if self.decoding.samples else 1  # what is not drawn would come again
        hidden = on_failed is None and most > 1 and bool(self.settings["filters"])
        try:
            while len(draws) < most and (not draws or draws[-1].faults):
                if draws and on_failed is not None:
                    on_failed(draws[-1])
                pieces = self._draw(messages, ids, draws)
                yield from [] if hidden else pieces
                for _ in pieces:
                    pass
            if hidden:
                yield _best(draws).text
        except Exception:
            self.messages, self.seed = before, seed
            raise
        except BaseException:  # whoever reads has seen enough
            if pieces is not None:
                pieces.close()
            self._keep(messages, kept, draws)
            raise
        self._keep(messages, kept, draws)

    def _keep(self, messages: list[Message], kept: list[Message], draws: Sequence[Draw]) -> None:
        """Add the best of the tries to the conversation."""
        self.messages = messages
        if not draws:  # it was stopped before the first began
            return
        self.last = Reply(_best(draws), tuple(draws), tuple(_copies(kept)))
        if self.last.text:
            message: Message = {"role": "assistant", "content": self.last.text}
            if name := self._name(messages):
                message["name"] = name
            self.messages = [*messages, message]

    def _draw(self, messages: Sequence[Message], ids: list[int], draws: list[Draw]) -> Generator[str, None, None]:
        """One try, in pieces; in the end it is added to `draws`."""
        seed = self.seed
        if seed is not None:
            self.seed = (seed + 1) % 2**63
        new: list[int] = []
        raw: list[str] = []
        shown: list[str] = []
        cache = self._cache_of(ids)
        options = {**vars(self.decoding), "seed": seed}
        tokens = stream(self.model, ids, tokenizer=self.tokenizer, cache=cache, **options)

        def pieces() -> Iterator[str]:
            text = TextStream(self.tokenizer, ids)
            for token_id in tokens:
                new.append(token_id)
                raw.append(text.feed(token_id))
                yield raw[-1]
            raw.append(text.flush())
            yield raw[-1]

        def add(ended: Literal["end", "length", "interrupted"]) -> None:
            text = "".join(shown)
            filters = self.settings["filters"] if text else [is_empty]
            wrong = [] if ended == "interrupted" else faults(text, _copies(messages), filters)
            draws.append(Draw(text, tuple(wrong), seed, len(new), ended))

        try:
            with contextlib.closing(tokens):
                for piece in _stripped(before_stop(pieces(), self.decoding.stop_strings)):
                    shown.append(piece)
                    yield piece
        except GeneratorExit:
            add("interrupted")
            raise
        except BaseException as error:  # perhaps amid a pass of the model: what the cache holds is not known
            self._cache = None
            if isinstance(error, KeyboardInterrupt):
                add("interrupted")
            raise
        finally:
            if cache is not None:
                self._read = [*ids, *new][: cache.longest]
        by_itself = new[-1:] and new[-1] in self.decoding.eos
        stopped = any(stop in "".join(raw) for stop in self.decoding.stop_strings)
        add("end" if by_itself or stopped else "length")

    def _cache_of(self, ids: Sequence[int]) -> KVCache | None:
        """A cache that holds as much of the beginning of a prompt as the model has read; its last token is left."""
        # Keys and values of an edited pass are those of no other.
        if not self.decoding.use_cache or next(hooked(self.model), None):
            return None
        wanted = cache_dtype(self.model), self.model.wte.weight.device
        if self._cache is None or (self._cache.kv.dtype, self._cache.kv.device) != wanted:
            self._cache, self._read = new_cache(self.model, 1), []
        pairs = zip(self._read, ids[:-1], strict=False)
        same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._cache.rollback(self._cache.longest - same)
        return self._cache

    # --- files

    @checked
    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the conversation as JSON: its messages, the names, and the next seed. Missing folders are made.

        Raises:
            InputError: if the file is there already, and not to be overwritten; or if it is a folder.
        """
        file = named_path(path, "path")
        if file.is_dir():
            raise InputError(f"{file} is a folder", "name a file in it")
        if file.exists() and not overwrite:
            raise InputError(f"{file} is there already", "choose another name, or remove that file first")
        content = {"version": VERSION, **self.settings, "seed": self.seed, "messages": self.messages}
        content = {name: content[name] for name in ("version", *_SAVED)}
        write_text(file, json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    @checked
    def load(self, path: Path | str) -> None:
        """Go on with a conversation that `save` wrote, in the place of this one. On an error, nothing is changed.

        Raises:
            InputError: if the file is of another version, or something in it cannot be used.
            CheckpointError: if it is no JSON object.
            MissingFileError: if there is no such file.
        """
        file, how = named_path(path, "path"), f"name a file that was saved by a minigpt of version {VERSION}"
        try:
            content = read_json(file)
        except CheckpointError as error:  # whose advice is for a file of a model
            raise CheckpointError(f"{error.what}: it is no conversation that minigpt saved", how) from None
        if (version := content.get("version")) != VERSION:
            what = "is no conversation that minigpt saved" if version is None else f"is of version {brief(version)}"
            raise InputError(f"{file} {what}", how)
        if missing := [name for name in _SAVED if name not in content]:
            raise InputError(f"{file} has no {listed(missing)}", "name the file as it was saved")
        try:
            check_messages(content["messages"])
            self.change(**{name: content[name] for name in _SAVED})
        except InputError as error:
            raise InputError(f"{file}: {error.what}", error.how) from None
        self.last = None


def is_trained_to_reply(tokenizer: Tokenizer) -> bool:
    """Whether a model with this tokenizer was trained on dialogues: training writes the template into it."""
    return tokenizer.settings.get("chat_template") == CHAT_TEMPLATE


def _copies(messages: Sequence[Message]) -> list[Message]:
    """The same messages, which nobody else can change."""
    return [message.copy() for message in messages]


def _turns(messages: Sequence[Message]) -> list[Message]:
    """The messages without the system message."""
    return [message for message in messages if message["role"] != "system"]


def _best(draws: Sequence[Draw]) -> Draw:
    """The try that counts; one that was interrupted is what somebody wanted to keep."""
    if draws[-1].ended == "interrupted" and draws[-1].text:
        return draws[-1]
    return min(draws, key=lambda draw: (not draw.text, len(draw.faults)))


def _stripped(pieces: Iterable[str]) -> Iterator[str]:
    """Text that comes in pieces, without the blanks at its beginning and its end; no piece is empty."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        begun = begun or bool(text)
        shown = text.rstrip()
        held = text[len(shown) :]
        if shown:
            yield shown
