"""What `evaluate-chat` found, as lines for a terminal and as Markdown: the same tables, with more examples."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from minigpt.cli.streams import escaped
from minigpt.errors import counted
from minigpt.evaluation.arms import MEASURES
from minigpt.evaluation.failures import MODES
from minigpt.system import terminal

_EXAMPLES = 3  # of each failure, in a report
_BEFORE, _REPLY = 160, 300  # characters of a turn that are quoted
ALPHA = 0.05


@dataclass(frozen=True)
class _Table:
    """A table with what must be known to read it.

    Attributes:
        title: its heading; "" goes on under the one above.
        says: what stands above it.
        headings: of the columns.
        rows: the cells.
        left: how many columns are text; the others are numbers.
    """

    title: str
    says: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1


def printed(result: Mapping[str, Any], show: int) -> list[str]:
    """The lines for a terminal.

    Args:
        result: as --json prints it.
        show: how many examples of each failure.
    """
    lines = [part for line in _opening(result) for part in textwrap.wrap(line, terminal.WIDTH, subsequent_indent="  ")]
    for table in _tables(result):
        if table.title:
            lines += ["", f"--- {table.title} ---"]
        lines += textwrap.wrap(table.says, terminal.WIDTH)
        lines += terminal.table(table.headings, table.rows, range(table.left))
    for mode, arm, found in _examples(result, show):
        lines += ["", f"{mode}, {arm['setting']}"]
        for reply in found:
            where = f"  dialogue {reply['dialogue']}, turn {reply['turn']}: {reply['failures'][mode]}"
            lines += textwrap.wrap(where, terminal.WIDTH, subsequent_indent="  ")
            lines += _quoted(reply, "  ")
    return lines


def markdown(result: Mapping[str, Any], pictures: Sequence[str] = ()) -> list[str]:
    """The lines of a report.

    Args:
        result: as --json prints it.
        pictures: files beside the report, to be shown in it.
    """
    first, *others = _opening(result)
    lines = [f"# {_escaped(first)}", "", *(f"{_escaped(line)}  " for line in others)]
    for picture in pictures:
        lines += ["", f"![what the history tells the model, and how often replies fail]({quote(picture)})"]
    for table in _tables(result):
        lines += [
            "",
            *([f"## {table.title}", ""] if table.title else []),
            *([_escaped(table.says), ""] if table.says else []),
        ]
        lines.append(f"| {' | '.join(map(_escaped, table.headings))} |")
        lines.append("|" + "---|" * table.left + "---:|" * (len(table.headings) - table.left))
        lines += [f"| {' | '.join(map(_escaped, row))} |" for row in table.rows]
    lines += ["", "## Examples of failures"]
    for mode, arm, found in _examples(result, _EXAMPLES):
        lines += ["", f"### {mode}, {_escaped(arm['setting'])}: {arm['failures'][mode]:,} of {len(arm['replies']):,}"]
        for reply in found:
            said = [escaped(line) for line in _quoted(reply, "")]
            # Longer than any in it, which would end the block.
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", "\n".join(said))), default=0))
            lines += [
                "",
                f"Dialogue {reply['dialogue']}, turn {reply['turn']}: {_escaped(reply['failures'][mode])}",
                "",
            ]
            lines += [f"{fence}text", *said, fence]
    return [*lines, "", "Counted by:", "", *(f"- `{signature}`" for signature in result["signatures"])]


def _opening(result: Mapping[str, Any]) -> list[str]:
    left = f", {result['without_room']:,} without room in the context left out" if result["without_room"] else ""
    adapter = f" with {result['adapter']}" if result["adapter"] else ""
    few = ": too few to say much; intervals are too narrow, or missing" if result["measured_dialogues"] < 10 else ""
    draws = f"{result['seeds']:,} at each place, " if result["seeds"] > 1 else ""
    return [
        f"How {result['model']}{adapter} replies",
        f"data: {result['data']}",
        f"there: {counted(result['dialogues'], 'dialogue')} with "
        f"{counted(result['true_replies'], 'reply', 'replies')}{left}",
        f"measured: {result['measured']:,} of the replies, in {counted(result['measured_dialogues'], 'dialogue')}{few}",
        f"true replies after {counted(result['turns'], 'turn')} at most: perplexity "
        f"{terminal.number(result['perplexity'], '.3f')}, loss {result['loss']:.4f} nats a token, "
        f"{counted(result['tokens'], 'token')}",
        f"written replies: {draws}after {counted(result['turns'], 'turn')} at most, of "
        f"{counted(result['max_new_tokens'], 'token')} at most",
    ]


def _tables(result: Mapping[str, Any]) -> Iterator[_Table]:
    if result["coherence"]:
        yield from _coherence(result["coherence"])
    true, *written = result["arms"]
    names = {"true": "true replies", **{str(number): arm["setting"] for number, arm in enumerate(written, start=1)}}
    yield _Table("The settings", "", ("", "setting"), list(names.items()), left=2)
    yield _whole(true, written)
    for name in written[0]["measures"]:
        yield _measure(name, true, written, result["measured_dialogues"])
    yield _failures(true, written)


def _coherence(found: Sequence[Mapping[str, Any]]) -> Iterator[_Table]:
    n = found[0]["candidates"]
    says = (
        "gain: by how many nats a token the history makes the true reply likelier than no history does. whole: "
        "histories that fit whole into the context; of the others, the oldest turns are left out."
    )
    rows = [
        (str(one["turns"]), terminal.number(one["perplexity"], ".3f"), _interval(one["gain"], 3), f"{one['whole']:.0%}")
        for one in found
    ]
    yield _Table("Coherence across turns", says, ("turns", "perplexity", "gain", "whole"), rows)
    says = (
        "drop: by how many nats a token the true reply is less likely after the history of another dialogue; 0 means "
        f"that what was said before means nothing to the model. first of {n}: how often, among "
        f"{counted(n, 'reply', 'replies')} of {counted(n, 'dialogue')}, the history raises the true one most; "
        f"a guess is right in {1 / n:.0%}."
    )
    ranked = [(str(one["turns"]), _interval(one["drop"], 3), _interval(one["first"], 2)) for one in found]
    yield _Table("", says, ("turns", "drop", f"first of {n}"), ranked)


def _whole(true: Mapping[str, Any], written: Sequence[Mapping[str, Any]]) -> _Table:
    names = list(written[0]["whole"])
    says = (
        "All replies of a setting together. Scores against the true replies, 0 to 100, are low in any dialogue, "
        "because much can be replied. distinct-n: different n-grams of words as a share of all."
    )
    labelled = [("true", true), *((str(number), arm) for number, arm in enumerate(written, start=1))]
    rows = [
        (label, *(terminal.decimals(arm["whole"].get(name), 3 if "distinct" in name else 2) for name in names))
        for label, arm in labelled
    ]
    return _Table("Closeness and variety", says, ("", *names), rows)


def _measure(name: str, true: Mapping[str, Any], written: Sequence[Mapping[str, Any]], dialogues: int) -> _Table:
    """One measure of all arms; the settings are tested against the first."""
    rows = []
    if name in true["measures"]:
        rows.append(("  true", _interval(true["measures"][name], 3), "", ""))
    for number, arm in enumerate(written, start=1):
        own = arm["measures"][name]
        differs = own["p"] is not None and own["p"] < ALPHA
        tested = (
            (_interval(own["difference_to_first"], 3, sign="+"), terminal.decimals(own["p"], 4))
            if number > 1
            else ("", "")
        )
        rows.append((f"{'*' if differs else ' '} {number}", _interval(own, 3), *tested))
    title = "Settings compared" if name == next(iter(written[0]["measures"])) else ""
    pairs = [arm["measures"][name]["difference_to_first"]["dialogues"] for arm in written[1:]]
    says = f"{name}: {MEASURES[name]}"
    if min(pairs, default=dialogues) < dialogues:
        among = counted(dialogues, "dialogue")
        says += f". Minus that of 1: over {' and '.join(map(str, pairs))} of {among}, which have both"
    return _Table(title, says, ("", "mean", "minus that of 1", "p"), rows)


def _failures(true: Mapping[str, Any], written: Sequence[Mapping[str, Any]]) -> _Table:
    arms = [true, *written]
    rows = [(mode, *(_share(arm, arm["failures"][mode]) for arm in arms)) for mode in MODES]
    any_of = (sum(bool(reply["failures"]) for reply in arm["replies"]) for arm in arms)
    rows.append(("any", *(_share(arm, count) for arm, count in zip(arms, any_of, strict=True))))
    says = (
        "Replies that a rule finds fault with, and their share. The rules read the true replies too: a mode that "
        "these have as often is no failure. "
    )
    says += "; ".join(f"{mode}: {what}" for mode, what in MODES.items()) + "."
    return _Table("Failures", says, ("", "true", *(str(number) for number in range(1, len(arms)))), rows)


def _share(arm: Mapping[str, Any], count: int) -> str:
    return f"{count:,} ({count / len(arm['replies']):.0%})"


def _interval(interval: Mapping[str, Any], digits: int, sign: str = "") -> str:
    """A mean with its interval; a dash where there is none."""
    if interval["mean"] is None:
        return "-"
    mean = f"{interval['mean']:{sign}.{digits}f}"
    if interval["low"] is None:
        return mean
    return f"{mean} ({interval['low']:.{digits}f} to {interval['high']:.{digits}f})"


def _examples(result: Mapping[str, Any], most: int) -> Iterator[tuple[str, Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Of each mode and setting that has it, the first replies."""
    for mode in MODES:
        for arm in result["arms"][1:]:
            found = [reply for reply in arm["replies"] if mode in reply["failures"]][:most]
            if found:
                yield mode, arm, found


def _quoted(reply: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for start, text, most in (("> ", reply["before"], _BEFORE), ("", reply["reply"], _REPLY)):
        shown = text if len(text) <= most else text[: most - 1] + "…"
        for line in shown.split("\n"):
            lines += textwrap.wrap(
                line, terminal.WIDTH, initial_indent=indent + start, subsequent_indent=indent + start
            ) or [indent + start]
    return lines


def _escaped(cell: str) -> str:
    """A text that Markdown shows as it is, in a table too."""
    return "".join(f"\\{c}" if c in "\\|*_`<>[]~&$" else c for c in escaped(cell)).replace("\n", " ").strip()
