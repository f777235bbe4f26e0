"""`minigpt chat`."""

import contextlib
import io
import os
import re
import sys
import textwrap
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from minigpt import replies
from minigpt.chat import LONGEST, Chat, Draw
from minigpt.cli.models import load
from minigpt.cli.parser import SettingsParser, metavar
from minigpt.cli.settings import Chat as Settings
from minigpt.cli.streams import CHECK_PATH, escaped, one_line, print_error, print_json, screen_width, write_product
from minigpt.data.dialogues import Message, check_template, speaker
from minigpt.data.documents import HALF_CHARACTER
from minigpt.decoding.options import DecodingOptions
from minigpt.errors import ConfigError, InputError, MiniGPTError, counted, did_you_mean
from minigpt.system.terminal import columns

COMMANDS = {  # what can be typed behind a "/" -> its argument, and what it does
    "again": ("", "another reply in the place of the last one"),
    "undo": ("", "take back what you said last, and its reply"),
    "edit": ("[TEXT]", "say something else instead"),
    "save": ("FILE", "write the conversation to a file"),
    "load": ("FILE", "go on with a conversation from a file"),
    "set": ("[NAME VALUE]", "change a setting: /set temperature 0.7"),
    "help": ("", "show this"),
    "quit": ("", "end, as Ctrl-D does"),
}
NAMES = {"as": "reply_as"}  # what a setting is called here -> there
_TOLD = {"unknown": "--unknown", **{there: here for here, there in NAMES.items()}}  # other names are those of /set
OF_THE_CHAT = ("turns", "system", "as", "user", "max_new_tokens", "tries", "seed")
ALWAYS = ("temperature", "strategy")  # shown by /set although nobody has set them
USUAL = "default"  # the value that takes a setting back
USUAL_OPTIONS = vars(DecodingOptions())  # as nobody has set them
_HELP = f"""\
A line that begins with // is said with one /. Ctrl-C stops a reply, and what it had said counts. Where the terminal can
edit lines, Tab completes a command, and the arrow keys bring back what you typed; that is forgotten in the end: nothing
is kept on disk but what /save writes. /set alone shows the settings, and the value "{USUAL}" takes one back."""


def answer(settings: Settings) -> None:
    """Hold a conversation: with a person, or with whoever writes lines into a pipe."""
    filters = [*replies.USUAL, _length(settings)]
    filters += [replies.blocklist(replies.read_blocklist(file)) for file in settings.blocklist]
    model, tokenizer = load(settings, settings.model, settings.adapter)
    check_template(tokenizer, settings.model or "the newest run")  # here its name is known
    options = {name: value for name, value in vars(settings.options).items() if value != USUAL_OPTIONS[name]}
    for name in ("max_new_tokens", "eos_token_id"):  # which stood for those of a model that was not there yet
        options.pop(name)
    if settings.max_new_tokens is not None:
        options["max_new_tokens"] = settings.max_new_tokens
    chat = Chat(
        model, tokenizer, turns=settings.turns, system=settings.system, reply_as=settings.reply_as,
        user=settings.user, filters=filters, tries=settings.tries, seed=settings.seed, stop=settings.stop,
        use_cache=not settings.no_cache, **options,
    )  # fmt: skip
    if sys.stdin.isatty() and sys.stdout.isatty() and not settings.json:
        _Terminal(chat).run()
    else:
        _Pipe(chat, settings.json).run()


def _length(settings: Settings) -> replies.Filter:
    try:
        return replies.length(settings.min_characters or 1, settings.max_characters)
    except InputError as error:
        raise InputError(*error.renamed({"least": "--min-characters", "most": "--max-characters"})) from None


class _Talk:
    """What a line does, wherever it comes from; the two below differ in how a reply is shown."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        fields = SettingsParser("chat", Settings).fields
        self._fields = {one.name: one for path, one in fields.items() if path.startswith("options.")}
        self._fields |= {name: fields[NAMES.get(name, name)] for name in OF_THE_CHAT}

    def reply(self, text: str | None, edit: bool = False) -> None:
        """Let the model reply, and show it."""
        raise NotImplementedError

    def tell(self, text: str) -> None:
        """One line, or a paragraph, beside the conversation."""
        print(f"[{text}]", file=sys.stderr)

    def tell_error(self, what: str, how: str) -> None:
        """What is wrong with a line, and how to mend it."""
        print_error(what, how)

    def attempt(self, line: str) -> bool:
        """Do what a line asks for, or tell why not; whether the conversation goes on."""
        try:
            return self.take(line)
        except BrokenPipeError:  # whoever reads has left
            raise
        except MiniGPTError as error:
            told = MiniGPTError(*error.renamed(_TOLD))
            how = re.sub(r"leave (\w+) out", rf"type: /set \1 {USUAL}", told.how)  # it was typed before
            self.tell_error(told.what, re.sub(r'choose (\w+)="(\w+)"', r"/set \1 \2", how))
        except OSError as error:
            self.tell_error(f"{error.strerror or error}: {error.filename or 'the file'}", CHECK_PATH)
        return True

    def take(self, line: str) -> bool:
        """Do what a line asks for; whether the conversation goes on."""
        if HALF_CHARACTER.search(line):
            raise InputError("the line is not UTF-8 text", "convert it first")
        if not line.startswith("/") or line.startswith("//"):
            self.reply(line.removeprefix("/") if line.startswith("//") else line)
            return True
        name, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        if name not in COMMANDS:
            known = {f"/{one}" for one in COMMANDS}
            raise InputError(f"there is no command /{one_line(name)}", did_you_mean(f"/{name}", sorted(known)))
        argument = COMMANDS[name][0]
        if (rest and not argument) or (not rest and argument[:1].isalpha()):
            what = "takes nothing behind it" if rest else f"lacks a {argument}"
            raise InputError(f"/{name} {what}", f"type: /{name} {argument}".rstrip())
        if name != "quit":
            getattr(self, f"_{name}")(*[rest] * bool(argument))
        return name != "quit"

    def _again(self) -> None:
        self.reply(None)

    def _undo(self) -> None:
        text = self.chat.undo()
        self.tell(f"taken back: {one_line(text)}")

    def _edit(self, text: str) -> None:
        if not text:
            raise InputError("there is nothing to say instead", "write it behind /edit")
        self.reply(text, edit=True)

    def _save(self, file: str, overwrite: bool = False) -> None:
        folder = Path(os.path.expanduser(file)).parent
        made = "" if folder.exists() else f"; the folder {folder} is new"
        self.chat.save(file, overwrite=overwrite)
        self.tell(f"saved: {file}{made}")

    def _load(self, file: str) -> None:
        self.chat.load(file)
        self.tell(f"loaded: {file}, {counted(len(self.chat.messages), 'message')}")

    def _set(self, words: str) -> None:
        name, _, value = words.partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if not name:
            self._show_settings()
            return
        if name not in self._fields:
            raise InputError(f"there is no setting {name}", did_you_mean(name, self._fields))
        if not value:
            raise InputError(f"/set {name} lacks a value", self._how_to_set(name))
        self.chat.change(**{NAMES.get(name, name): self._value(name, value)})
        self._show_settings()

    def _value(self, name: str, text: str) -> Any:
        one = self._fields[name]
        if text == USUAL:
            return {"max_new_tokens": LONGEST, "temperature": None}.get(name, one.default)
        try:
            return one.value([text] if one.several else text)
        except ConfigError as error:
            raise InputError(error.what.replace(one.flag, name), error.how or self._how_to_set(name)) from None

    def _how_to_set(self, name: str) -> str:
        value = metavar(self._fields[name])
        return f"type: /set {name} {value}, or /set {name} {USUAL}. {value}: {self._fields[name].help}"

    def _show_settings(self) -> None:
        settings = {**self.chat.settings, "seed": self.chat.seed}
        decoding = vars(self.chat.decoding)
        shown = {name: settings.get(NAMES.get(name, name)) for name in OF_THE_CHAT}
        shown["max_new_tokens"] = decoding["max_new_tokens"]
        shown["system"] = next((one["content"] for one in self.chat.messages if one["role"] == "system"), "")
        given = {name: decoding[name] for name in self._fields if name in decoding and name not in OF_THE_CHAT}
        shown |= {name: value for name, value in given.items() if name in ALWAYS or value != USUAL_OPTIONS[name]}
        self.tell(
            ", ".join(f"{name} {one_line(str(value))}" for name, value in shown.items() if value not in ("", None))
        )

    def _help(self) -> None:
        left = {name: f"/{name} {argument}".rstrip() for name, (argument, _) in COMMANDS.items()}
        width = max(map(len, left.values())) + 2
        for name, (_, what) in COMMANDS.items():
            print(self.filled(f"{left[name]:<{width}}{what}", " " * width), file=sys.stderr)
        print(self.filled(_HELP, ""), file=sys.stderr)

    def filled(self, text: str, indent: str) -> str:
        """A paragraph, as wide as the screen."""
        return textwrap.fill(text, screen_width(), subsequent_indent=indent, break_on_hyphens=False)


class _Pipe(_Talk):
    """A reply for each line, whoever reads them."""

    def __init__(self, chat: Chat, as_json: bool) -> None:
        super().__init__(chat)
        self._json = as_json
        self._replies = self._failed = 0

    def run(self) -> None:
        """Answer all lines.

        Raises:
            InputError: in the end, if lines could not be answered; each of them was told before.
        """
        lines, first, going_on = 0, True, True
        while going_on and (line := sys.stdin.buffer.readline().decode("utf-8", "surrogateescape")):
            line = line.removeprefix("\ufeff" if first else "").strip()  # some editors put this mark before a text
            first = False
            lines += bool(line)
            going_on = not line or self.attempt(line)
        if self._failed:
            raise InputError(
                f"{self._failed} of {counted(lines, 'line')} could not be answered", "what was wrong is said above"
            )

    def tell_error(self, what: str, how: str) -> None:
        self._failed += 1
        if self._json:
            print_json({"error": what, "how": how})
        else:
            super().tell_error(what, how)

    def reply(self, text: str | None, edit: bool = False) -> None:
        """Print the reply when it has passed, or is the best."""
        start = time.perf_counter()
        for _ in self.chat.stream(text, edit=edit):
            pass
        reply = self.chat.last
        assert reply is not None
        if self._json:
            print_json(
                {
                    "messages": list(reply.messages),
                    "reply": reply.text,
                    "faults": list(reply.faults),
                    "ended": reply.best.ended,
                    "seconds": time.perf_counter() - start,
                    "tokens": sum(draw.num_tokens for draw in reply.draws),
                    "tries": len(reply.draws),
                    "seed": reply.best.seed,
                    "failed": [{"reply": d.text, "faults": list(d.faults), "seed": d.seed} for d in reply.failed],
                }
            )
            return
        write_product("\n" * bool(self._replies) + reply.text + "\n")
        self._replies += 1
        if reply.faults:
            self.tell(f"reply {self._replies} {' and '.join(reply.faults)}; tries: {len(reply.draws)}")


class _Terminal(_Talk):
    """A person at a terminal: replies appear as they are written, and lines can be edited."""

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat)
        self._readline: ModuleType | None = None
        with contextlib.suppress(ImportError):  # only here: it may write to the terminal when it is imported
            import readline

            self._readline = readline
            readline.set_completer(self._completed)
            readline.set_completer_delims("")
            libedit = "libedit" in (readline.__doc__ or "")
            readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        self._told_of_turns = False

    def _completed(self, text: str, number: int) -> str | None:
        """The lines that may be meant by the beginning of one, one after the other, and then None."""
        known = [f"/{name}{' ' * bool(argument)}" for name, (argument, _) in COMMANDS.items()]
        known += [f"/set {name} " for name in self._fields] if text.startswith("/set ") else []
        return [*(line for line in known if line.startswith(text)), None][number] if text.startswith("/") else None

    def run(self) -> None:
        """Talk until Ctrl-D, or /quit."""
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # `take` says what is wrong with such a line
        print(
            self.filled(f"{self._name('assistant')} replies. /help shows what you can type, Ctrl-D ends.", ""),
            end="\n\n",
        )
        going_on = True
        while going_on:
            try:
                line = input(f"{self._name('user')}> ").strip()
                going_on = not line or self.attempt(line)
            except EOFError:
                going_on = False
                print()
            except KeyboardInterrupt:
                print()

    def tell(self, text: str) -> None:
        print(self.filled(f"[{text}]", " "), file=sys.stderr)

    def _asked(self, question: str) -> str:
        """What is typed behind a question; Ctrl-D there gives "", and ends nothing."""
        try:
            return input(question).strip()
        except EOFError:
            print()
            return ""

    def _save(self, file: str, overwrite: bool = False) -> None:
        if os.path.isfile(os.path.expanduser(file)):
            question = self.filled(f"{escaped(file)} is there already; write over it? [y/N]", "")
            above, line_end, last = question.rpartition("\n")
            print(above, end=line_end)
            overwrite = self._asked(f"{last} ").lower() in ("y", "yes")
            if not overwrite:
                self.tell("not saved")
                return
        super()._save(file, overwrite)

    def _name(self, role: str) -> str:
        name = self.chat.reply_name if role == "assistant" else self.chat.settings["user"]
        return escaped(speaker({"role": role, "content": "", "name": name}))  # type: ignore[typeddict-item]

    def _edit(self, text: str) -> None:
        if not text and self._readline is not None:
            said = one_line(self.chat.said_last)
            self._readline.set_startup_hook(lambda: self._readline and self._readline.insert_text(said))
            try:
                text = self._asked(f"{self._name('user')}> ")
            finally:
                self._readline.set_startup_hook()
        super()._edit(text)

    def _load(self, file: str) -> None:
        super()._load(file)
        for message in self.chat.messages[-self.chat.settings["turns"] :]:
            self._show(message)
        print("\n" * bool(self.chat.messages), end="")

    def _show(self, message: Message) -> None:
        out = _Wrapped()
        out.write(f"{escaped(speaker(message))}> " * (message["role"] != "system") + message["content"])
        out.end()

    def reply(self, text: str | None, edit: bool = False) -> None:
        """Write each try as it comes; Ctrl-C ends it, and what was written counts."""
        pieces = self.chat.stream(text, edit=edit, on_failed=self._failed)
        before = self.chat.last
        out = self._out = _Wrapped()
        out.write(f"{self._name('assistant')}> ")
        try:
            with contextlib.closing(pieces):
                for piece in pieces:
                    self._out.write(piece)
        except KeyboardInterrupt:
            pass
        finally:
            self._out.end()
        if self.chat.last is not before:
            self._say_how_it_ended()

    def _failed(self, draw: Draw) -> None:
        self._out.end()
        self.tell(f"it {' and '.join(draw.faults)}; drawn again")
        self._out = _Wrapped()
        self._out.write(f"{self._name('assistant')}> ")

    def _say_how_it_ended(self) -> None:
        reply = self.chat.last
        assert reply is not None
        best, tries = reply.best, f"try {len(reply.draws)} of {self.chat.settings['tries']}"
        if reply.draws[-1].ended == "interrupted":
            self.tell("stopped; what was said counts" if best.text else "stopped before the first word")
        elif best.text and best is not reply.draws[-1]:
            self.tell(f"it {' and '.join(reply.draws[-1].faults)}; none of {len(reply.draws)} passed, the best was")
            self._show(self.chat.messages[-1])
        elif best.faults:
            self.tell(f"it {' and '.join(best.faults)}; {tries}")
        elif len(reply.draws) > 1:
            self.tell(tries)
        if best.ended == "length" and best.text:
            most = self.chat.decoding.max_new_tokens
            self.tell(
                f"cut off after {counted(best.num_tokens, 'token')}: "
                + ("max_new_tokens" if best.num_tokens == most else "the context is full")
            )
        read = sum(message["role"] != "system" for message in reply.messages)
        could = min(self.chat.settings["turns"], sum(message["role"] != "system" for message in self.chat.messages) - 1)
        if read < could and not self._told_of_turns:
            self._told_of_turns = True
            self.tell(f"the model read {read} of the last {could} turns: more do not fit its context")
        print()


class _Wrapped:
    """Text that comes in pieces, broken between words where the terminal ends; a word appears when it is complete."""

    def __init__(self) -> None:
        self._width = screen_width()
        self._at = 0  # the column
        self._blanks = ""
        self._word = ""

    def write(self, piece: str) -> None:
        """Take a piece, and show the words that are complete."""
        for character in escaped(piece):
            if character.isspace():
                self._show_word()
                if character == "\n":
                    self._blanks = ""
                    self._at = 0
                    write_product("\n")
                else:
                    self._blanks += " "
            else:
                self._word += character
                if columns(self._word) >= self._width:
                    self._show_word()

    def end(self) -> None:
        """Show the last word, and end the line."""
        self._show_word()
        write_product("\n" * bool(self._at))
        self._at = 0

    def _show_word(self) -> None:
        if not self._word:
            return
        if self._at and self._at + columns(self._blanks + self._word) > self._width - 1:
            write_product("\n")
            self._at, self._blanks = 0, ""
        write_product(self._blanks + self._word)
        self._at += columns(self._blanks + self._word)
        self._blanks = self._word = ""
