"""The errors a user can cause, each in two lines: what is wrong, and how to mend it.

The command line prints those two lines and exits 2; a library user catches `MiniGPTError`, or the built-in class that
each child also is. `assert` is kept for our own invariants: a failed one is our bug, never the user's.

A name in an error reads as what its reader typed. Where the library writes `named("top_k", 3)`, a caller in Python sees
top_k = 3. The command line has a table of its flags, and passes it to `renamed`: its user sees --top-k 3.
"""

import difflib
import os
import re
import reprlib
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

LONGEST = 1000  # characters of a line that is said

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = 80
_BRIEF.maxlong = 40

# A name of the library's, between two signs that no text has. The value behind it may be written in several lines.
_NAME = re.compile("\x0e(.*?)\x0f", re.DOTALL)
_OR = "\x1e"  # between ways to mend a mistake, likewise


class MiniGPTError(Exception):
    """A mistake that the user can mend.

    Args:
        what: one line, what is wrong, with the values that show it. An endless one loses its middle, so no caller need
            shorten a value; line ends become spaces. Names in it may be `named`.
        how: one line, what to do about it; shortened in the same way.
    """

    def __init__(self, what: str, how: str) -> None:
        self._lines = what, how
        what, how = (cut(" ".join(_NAME.sub(r"\1", text).splitlines())) for text in (what, _listed(how)))
        super().__init__(what, how)
        self.what = what
        self.how = how

    def __str__(self) -> str:
        return f"{self.what}\n{self.how}"

    def renamed(self, names: Mapping[str, str], all_of_them: bool = False) -> tuple[str, str]:
        """Both lines with other names for what is `named` in them; whatever has no other name stays `named`.

        Args:
            names: field -> flag, with which `top_k = 3` becomes `--top-k 3`; or the whole of what `named`
                returns for a value: named("early_stopping", True) -> "--early-stopping yes".
            all_of_them: whether nothing else can be set here: of `either` way, those are left that can be gone.
        """

        def other(found: re.Match[str]) -> str:
            name, value = _parted(found[1])
            if name in names:
                return names.get(found[0], f"{names[name]} {value}" if value else names[name])
            return names.get(found[0], found[0])

        what, how = self._lines
        if all_of_them:
            how = _listed(how, names)
        return _NAME.sub(other, what), _NAME.sub(other, how)


class ConfigError(MiniGPTError, ValueError):
    """A setting is unknown, of the wrong type, out of range, or contradicts another."""


class ShapeError(ConfigError):
    """Sizes of a model that contradict each other."""


class InputError(MiniGPTError, ValueError):
    """An argument, such as a prompt, a token id or a decoding option, cannot be used."""


class UnknownOptionError(InputError, TypeError):
    """There is no option of that name."""

    def __init__(self, name: str, known: Iterable[str], whose: str) -> None:
        """`whose` is what has the options, by a name that Python's `help` knows."""
        super().__init__(f"there is no option {brief(name)}", f"{near(name, known)}help({whose}) tells which there are")


class DataError(MiniGPTError, ValueError):
    """A corpus or a token file is unreadable, too small, or of another vocabulary."""


class CheckpointError(MiniGPTError, ValueError):
    """A run directory or a weights file is incomplete, damaged, or of another shape."""


class MissingFileError(MiniGPTError, FileNotFoundError):
    """A file or folder that was named does not exist."""


class DownloadError(MiniGPTError, OSError):
    """A file could not be fetched, or what came is not the file that was asked for."""


class DivergenceError(MiniGPTError, ArithmeticError):
    """Training has lost its numbers: a loss or a gradient is infinite or not a number."""


class PeerError(MiniGPTError, RuntimeError):
    """Another process of the same training has died, or does not answer."""


def refuse_if(error: type[MiniGPTError], condition: bool, what: str, how: str) -> None:
    """Raise an error of two lines if a condition holds."""
    if condition:
        raise error(what, how)


class Interrupted(KeyboardInterrupt):
    """Training was asked to stop by a signal, and has saved its state. No mistake, so no `MiniGPTError`.

    `signal` is its number; `what` says in one line what was saved, `how` in another how to go on.
    """

    def __init__(self, signal: int, what: str, how: str) -> None:
        super().__init__(signal, what, how)
        self.signal = signal
        self.what = what
        self.how = how


class ModelNote(UserWarning):
    """What one should know of a model that was loaded, though nothing is wrong with it."""


class TextNote(UserWarning):
    """What one should know of how a text was read, though nothing is wrong with it."""


def first_line(error: BaseException, width: int = 60) -> str:
    """The beginning of an error of another library, for a line of ours; its type where it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0][:width]


def cut(line: str) -> str:
    """A line, without the middle of an endless one."""
    if len(line) <= LONGEST:
        return line
    front, back = line[: LONGEST * 2 // 3], line[-LONGEST // 4 :]
    return f"{front} ... {len(line) - len(front) - len(back):,} characters ... {back}"


def brief(value: object) -> str:
    """A value as an error shows it: the whole of a short one, the ends of a long one."""
    try:
        return _BRIEF.repr(value)
    except ValueError:  # Python spells no whole number of more than some thousand digits
        return f"a {type(value).__name__} of thousands of digits"


def counted(number: int, noun: str, plural: str = "") -> str:
    """So many things in words: "1 document", "2,003 documents"; `plural` where this is more than an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def quoted(name: object) -> str:
    """A path or a name as a word of a command line that is told, in quotes where a shell needs them."""
    word = str(name)
    if word.encode("utf-8", "replace").decode("utf-8") == word:
        return shlex.quote(word)
    # A path that is not UTF-8, whose bytes bash reads in $'...'.
    letters = (chr(byte) if byte < 128 and chr(byte).isalnum() else f"\\x{byte:02x}" for byte in os.fsencode(word))
    return f"$'{''.join(letters)}'"


def named(name: str, *value: object) -> str:
    """Mark a name in an error's line, so that the command line can show the flag: `top_k = 3` becomes `--top-k 3`.

    See `MiniGPTError.renamed`.
    """
    return f"\x0e{' = '.join([name, *map(brief, value)])}\x0f"


def passed(name: str, value: str) -> str:
    """`named` for a value that is advised: in Python it reads `name="value"`, on the command line `--name "value"`."""
    return f'\x0e{name}="{value}"\x0f'


def either(*ways: str) -> str:
    """A second line of several ways to mend it.

    A command shows those that can be gone there: without a name that is `named` in them and for which it has no flag.
    """
    return _OR.join(ways)


def _listed(how: str, names: Mapping[str, str] | None = None) -> str:
    """The ways of a second line as a text: those that need only these names, if there are any, else all of them."""
    ways = how.split(_OR)
    if names is not None:
        ways = [way for way in ways if all(_parted(name)[0] in names for name in _NAME.findall(way))] or ways
    return ", or ".join(ways)


def _parted(inside: str) -> tuple[str, str]:
    """The name and the value, or "", that `named` and `passed` have marked; of tokenizer.unknown, the last part."""
    name, _, value = (part.strip() for part in inside.partition("="))
    return name.rpartition(".")[2], value


def named_ids(ids: Iterable[Any]) -> str:
    """Token ids in a line of an error; the command line shows the text that was typed for them."""
    return named(f"[{', '.join(map(brief, ids))}]")


# What other programs and papers call a thing that is called otherwise here.
ALIASES = {
    "lr": "learning_rate", "min_lr": "min_learning_rate", "max_iters": "max_steps", "iters": "max_steps",
    "steps": "max_steps", "num_train_epochs": "epochs", "epoch": "epochs", "batch": "batch_size", "bs": "batch_size",
    "accumulation": "accumulation_steps", "gradient_accumulation_steps": "accumulation_steps", "wd": "weight_decay",
    "warmup": "warmup_steps", "warmup_iters": "warmup_steps", "clip": "grad_clip", "max_grad_norm": "grad_clip",
    "eval_steps": "eval_interval", "save_steps": "save_interval",
    "layers": "n_layer", "num_layers": "n_layer", "depth": "n_layer", "heads": "n_head", "num_heads": "n_head",
    "embd": "n_embd", "dim": "n_embd", "d_model": "n_embd", "hidden_size": "n_embd", "width": "n_embd",
    "ctx": "block_size", "n_ctx": "block_size", "context": "block_size", "context_length": "block_size",
    "n_positions": "block_size", "seq_len": "block_size",
    "temp": "temperature", "beams": "num_beams", "length": "max_new_tokens", "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens", "n_predict": "max_new_tokens", "samples": "num_return_sequences",
    "num_samples": "num_return_sequences", "source": "data", "src": "source", "start": "prompt", "text": "prompt",
    "dataset": "data", "corpus": "data", "file": "data", "input": "data", "output": "out", "out_dir": "out",
    "output_dir": "out", "init": "init_from", "base": "init_from", "checkpoint": "model", "ckpt": "model",
    "model": "init_from", "model_name_or_path": "model", "sample": "generate", "finetune": "train", "evaluate": "eval",
}  # fmt: skip


def nearest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The known names that are this one in other words, or else resemble it, best first; none if none does."""
    known = list(known)
    if (alias := ALIASES.get(name)) in known:
        return [str(alias)]
    return difflib.get_close_matches(name, known, n=most, cutoff=0.7)  # at 0.6, "lr" and "plan" would be neighbours


def near(name: str, known: Iterable[str], most: int = 1) -> str:
    """The beginning of a second line: the known names that resemble this one, as a question; "" if none does."""
    found = nearest(name, known, most)
    return f"did you mean {' or '.join(found)}? " if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A second line: the nearest known name if there is one, and all of them."""
    return f"{near(name, known)}known: {', '.join(known)}"
