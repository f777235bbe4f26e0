"""What the views of `minigpt inspect` share: a prompt with its model, the flags, and printing or writing an answer."""

import dataclasses
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from minigpt.analysis.checks import Check
from minigpt.analysis.recording import Trace
from minigpt.analysis.results import Numbers, Result
from minigpt.analysis.tracing import trace
from minigpt.cli.models import load_any, model_source, trained_source
from minigpt.cli.settings import Model
from minigpt.cli.streams import print_json, with_stdin
from minigpt.cli.texts import check_fits, framed, token_text
from minigpt.cli.views.settings import After, Inside, ViewSettings
from minigpt.errors import InputError, counted
from minigpt.model import GPT
from minigpt.parameters import evaluating
from minigpt.system import figures
from minigpt.system.files import check_output
from minigpt.system.terminal import WIDTH, cut, visible
from minigpt.tokenizers import Tokenizer, check_has_tokenizer, read

PICTURES, DATA = (".png", ".svg"), (".json", ".npz")


@dataclass(frozen=True)
class Answer:
    """The answer of a view, in all its forms.

    Attributes:
        result: the numbers.
        lines: the numbers as lines for a terminal.
        check: computes the identities that the numbers must satisfy.
        draw: makes the picture; None if the view has none.
    """

    result: Result
    lines: Sequence[str]
    checks: Callable[[], Sequence[Check]]
    draw: "Callable[[], figures.Figure] | None"


def show(view: Callable[[Any], Answer], settings: ViewSettings) -> None:
    """Compute the answer of a view, and print or write it as the flags say."""
    output: Path | None = settings.output
    if output is not None:
        check_output(output, (*PICTURES, *DATA))
    try:
        answer = view(settings)
    except InputError as error:  # a view has one prompt
        raise InputError(*error.renamed({"prompt 0": "the prompt", "num_beams": "--beams"})) from error
    if output is not None and answer.draw is None and output.suffix.lower() not in DATA:
        raise InputError(f"this view has no picture, and {output} would be one", f"choose {' or '.join(DATA)}")
    checks = answer.checks() if settings.check else []
    result = dataclasses.replace(answer.result, checks=checks if settings.check else None)
    if settings.json:
        print_json(result.to_dict())
    else:
        print("\n".join([*answer.lines, *_check_lines(checks)]))
    if output is not None:
        _save(answer, result, output)
        if not settings.json:
            print(f"written    {output}")
    if not all(check.ok for check in checks):
        sys.stdout.flush()
        sys.exit(1)


def _save(answer: Answer, result: Result, path: Path) -> None:
    if answer.draw is None or path.suffix.lower() in DATA:
        result.save(path)
    else:
        figures.save_figure(answer.draw(), path)


def _check_lines(checks: Sequence[Check]) -> list[str]:
    lines = []
    for check in checks:
        start = f"{'holds' if check.ok else 'FAILS'}  error {check.error:.1e} of {check.tolerance:.0e}  "
        lines += textwrap.wrap(start + check.name, WIDTH, subsequent_indent=" " * len(start))
    return lines


# --- prompts


@dataclass(frozen=True)
class Subject:
    """A model, how it reads, and the prompt that it has read, unless the view is of the model alone.

    Attributes:
        name: the model's name, as --model gives it.
        model: in evaluation mode.
        known: the model's tokenizer, or None: a view of the model alone needs none.
        bos: whether the token that opens a document is put in front.
        prompt: the text.
        ids: its tokens; none without a prompt.
    """

    name: str
    model: GPT
    known: Tokenizer | None
    bos: bool
    prompt: str = ""
    ids: list[int] = field(default_factory=list)

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's, for a view of a text. Raises InputError if there is none."""
        return check_has_tokenizer(self.known, self.name)

    @property
    def vocab_size(self) -> int:
        """How many ids a text can have; without a tokenizer, all of the model's."""
        return self.known.vocab_size if self.known else self.model.config.vocab_size

    @property
    def start_token_id(self) -> int | None:
        """The token that is put in front, or None. Raises InputError if one is wanted and there is none."""
        return framed([], self.tokenizer, bos=True)[0] if self.bos else None

    @property
    def texts(self) -> list[str]:
        """Of each token of the prompt."""
        return self.texts_of(self.ids)

    def texts_of(self, ids: Iterable[int]) -> list[str]:
        """The texts of any tokens."""
        return [token_text(self.known, token_id, "backslashreplace") for token_id in ids]

    def names(self, ids: Iterable[int]) -> list[str]:
        """The same, their spaces visible."""
        return list(map(visible, self.texts_of(ids)))

    def shown(self, token_id: int) -> str:
        """The name of one token."""
        return self.names([token_id])[0]

    def likely(self, ids: Iterable[int], probabilities: Iterable[float], width: int = 9, digits: int = 2) -> list[str]:
        """The names of tokens, in at most so many columns, each with its probability."""
        return [f"{cut(name, width)} {p:.{digits}f}" for name, p in zip(self.names(ids), probabilities, strict=True)]

    def of(self, ids: list[int]) -> "Subject":
        """The same model with these ids as its prompt, the one in front included."""
        return dataclasses.replace(self, prompt="".join(self.texts_of(ids)), ids=ids)

    def read(self, text: str, what: str) -> list[int]:
        """The tokens of a text, behind the one that opens a document if that is wanted.

        Raises:
            InputError: if there are none, or more than the model can read.
        """
        ids = framed(read(self.tokenizer, text), self.tokenizer, self.bos)
        if not ids:
            how = "give some text, or --bos if there is one"
            raise InputError(f"{what} is empty: there is no token to look at", how)
        check_fits(len(ids), self.model.config.block_size, what)
        return ids

    def one_token(self, text: str, flag: str) -> int:
        """The id of a text that is one token.

        Raises:
            InputError: if the text is none, or several tokens; the error names them.
        """
        ids = read(self.tokenizer, text)
        if len(ids) != 1:
            pieces = ", ".join(map(repr, self.texts_of(ids[:8])))
            more = ", ..." if len(ids) > 8 else ""
            raise InputError(
                f"{flag} {text!r} is {counted(len(ids), 'token')}{': ' if ids else ''}{pieces}{more}",
                "give the text of one token; a space belongs to the word behind it",
            )
        return ids[0]

    def header(self, view: str) -> str:
        """The first line of an answer."""
        what = f": {counted(len(self.ids), 'token')}, BOS in front: {'yes' if self.bos else 'no'}"
        return cut(f"{view} of {self.name}", WIDTH - len(what)) + what

    def result(
        self,
        view: str,
        numbers: Mapping[str, Numbers],
        labels: Mapping[str, Sequence[str]] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Result:
        """The numbers of a view."""
        return Result(
            view=view,
            model=self.name,
            config=self.model.config,
            numbers=numbers,
            prompt=self.prompt if self.ids else None,
            bos=self.bos if self.ids else None,
            tokens=list(zip(self.ids, self.texts, strict=True)),
            labels=labels or {},
            settings=settings or {},
        )


def traced(model: GPT, rows: Sequence[Sequence[int]], points: str | Sequence[str]) -> Trace:
    """One pass over rows of ids (B, T), with these points recorded."""
    with torch.no_grad(), evaluating(model), trace(model, points) as t:
        model(torch.tensor(rows, device=model.wte.weight.device))
    return t


def load_subject(settings: Model, bos: bool | None = None, needs_text: bool = False) -> Subject:
    """The model of the flags, without a prompt; `bos` is the flag of that name."""
    source = model_source(settings.model)
    model, tokenizer = load_any(settings, source.name, settings.adapter, needs_text)
    # A model trained here on one long text has seen no document begin.
    begun = tokenizer is not None and tokenizer.bos_token_id is not None
    usual = begun and trained_source(source, settings.adapter).trained is None
    return Subject(source.name, model, tokenizer, usual if bos is None else bos)


def subject(settings: Inside | After, prompt: str) -> Subject:
    """The model that the flags name, with the prompt; "-" is what standard input holds.

    Raises:
        InputError: if the prompt is empty, or longer than the model can read.
        MiniGPTError: the errors of loading a model.
    """
    (text,) = with_stdin(prompt)
    alone = load_subject(settings, settings.bos, needs_text=True)
    return dataclasses.replace(alone, prompt=text, ids=alone.read(text, "the prompt"))
