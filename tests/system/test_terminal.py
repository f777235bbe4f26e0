"""What is shown on a terminal: 80 columns, every value where it belongs, nothing that does not print."""

import pkgutil
import unicodedata
from dataclasses import fields, is_dataclass
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt import KVCache, analysis, generate
from minigpt.analysis import ablate, head_scores, logit_lens, trace
from minigpt.system import terminal
from minigpt.system.terminal import SHADES, bar, columns, cut, fitted, grid, pooled, shade, shaded, table, visible
from minigpt.tokenizers import CharTokenizer


def test_what_does_not_print_is_visible():
    assert visible(" a\n\tb\r") == "␣a↵⇥b␍"
    assert visible("\x1b[31m\x00\u202e") == "\\x1b[31m\\x00\\u202e"  # a colour, a NUL, right-to-left: none is obeyed
    assert visible("é中😀") == "é中😀"


def test_columns_are_those_of_a_terminal():
    assert [columns(text) for text in ("abc", "中文", "e\u0301", "")] == [3, 4, 1, 0]


@given(st.text(alphabet="aé中\u0301 ", max_size=13), st.integers(1, 11), st.booleans())
def test_fitted_texts_have_exactly_their_width(text, width, right):
    assert columns(fitted(text, width, right)) == width


def test_a_cut_is_shown_and_the_side_is_kept():
    assert fitted("abcdef", 4) == "abc…"
    assert fitted("ab", 4) == "ab  "
    assert fitted("ab", 4, right=True) == "  ab"


@given(st.text(alphabet="aé中\u0301 ", max_size=13), st.integers(0, 11))
def test_a_cut_text_is_the_longest_beginning_that_leaves_room_for_its_sign(text, width):
    fitting = [text[:n] for n in range(len(text) + 1) if columns(text[:n]) <= width - 1]
    assert cut(text, width) == (text if columns(text) <= width else f"{max(fitting, key=len, default='')}…")


def test_a_long_text_is_read_once_to_be_cut(monkeypatch):
    """A copied span may be a whole book."""
    read, real = [], unicodedata.combining
    monkeypatch.setattr(unicodedata, "combining", lambda c: read.append(c) or real(c))
    assert cut("中" * 3001, 479) == "中" * 239 + "…"
    assert len(read) == 3001


def test_a_table_by_hand():
    assert table(("id", "token"), [("7", "␣a"), ("113", "b")], left=(1,)) == [
        " id  token",
        "  7  ␣a",
        "113  b",
    ]


def test_a_last_column_holds_as_many_texts_as_there_is_room_for():
    """Of 80 columns, the first two take 2 + 2 and 11 + 2: 63 are left, and six texts with their gaps take 64."""
    texts = ["中文 0.25"] * 7  # of 9 columns each
    lines = table(("a", "b", "found"), [("7", "x" * 11), ("13", "y")], left=(1, 2), pieces=[texts, texts[:2]])
    assert lines[1] == " 7  xxxxxxxxxxx  " + "  ".join(texts[:5])
    assert lines[2] == "13  y            " + "  ".join(texts[:2])
    assert columns(lines[1]) <= 80
    (_, line) = table(("a", "found"), [("7" * 11,)], pieces=[["w" * 90]])
    assert columns(line) == 80
    assert line.endswith("w…")


def test_a_grid_too_wide_goes_on_below():
    values = np.arange(2 * 37).reshape(2, 37) - 30.0
    values[1, 36] = np.nan
    lines = grid(values, ["layer 0", "layer 1"], [str(n) for n in range(37)], "{:+.1f}")
    assert max(map(len, lines)) <= 80
    assert len(lines) % 3 == 0
    assert len(lines) > 3
    cells = [line.removeprefix("layer 0").split() for line in lines if line.startswith("layer 0")]
    assert [cell for row in cells for cell in row] == [f"{n - 30:+.1f}" for n in range(37)]
    assert lines[-1].split()[-1] == "–"


def test_pooling_keeps_every_peak():
    random = np.random.default_rng(3)
    matrix = random.random((29, 17))
    small, n = pooled(matrix, 7)
    assert n == 5
    assert small.shape == (6, 4)
    for row in range(6):
        for column in range(4):
            assert small[row, column] == matrix[row * 5 : row * 5 + 5, column * 5 : column * 5 + 5].max()
    whole, n = pooled(matrix, 29)
    assert n == 1
    assert (whole == matrix).all()


def test_shades_are_ordered():
    shown = [shade(value, 2.0) for value in (0.0, 0.11, 0.13, 0.51, 1.01, 1.51, 2.0)]
    assert "".join(shown) == "  ░▒▓██"
    assert sorted(shown, key=SHADES.index) == shown


@pytest.mark.parametrize(("T", "wide"), [(3, 2), (53, 1), (211, 1)])
def test_a_heat_map_has_its_rows_and_fits(T, wide):
    names = [f"t{n}" for n in range(T)]
    *rows, legend = shaded(np.eye(T), names)
    assert max(map(columns, [*rows, legend])) <= 80
    assert [row.split("|")[1].count("█") for row in rows] == [wide] * len(rows)  # the diagonal, however small the map
    assert rows[0].strip().startswith("t0 |")
    assert ("largest of" in legend) == (T > 70)


def test_bars_end_where_they_must():
    assert [len(bar(share, 10)) for share in (-1, 0, 0.5, 1, 7)] == [0, 0, 5, 10, 10]


def results() -> list[type]:
    """Every dataclass of the package's analysis that holds arrays."""
    rooms = [import_module(f"minigpt.analysis.{room.name}") for room in pkgutil.iter_modules(analysis.__path__)]
    classes = {one for room in rooms for one in vars(room).values() if isinstance(one, type) and is_dataclass(one)}
    return sorted((one for one in classes if "Tensor" in str([field.type for field in fields(one)])), key=str)


@pytest.mark.parametrize("kind", results(), ids=lambda kind: kind.__name__)
def test_what_holds_arrays_shows_their_shapes_and_not_every_number(kind):
    assert kind.__repr__ is terminal.Brief.__repr__


def test_what_people_print_says_something_in_a_few_lines(tiny_model):
    cache = KVCache(tiny_model.config, batch_size=2)
    with trace(tiny_model) as t:
        kept = len(analysis.points(tiny_model.config)) - 2  # in each layer, head_out is worked out from z
        assert repr(t) == f"Trace(nothing of {kept} points: no pass was run inside the `with` yet)"
        tiny_model(torch.tensor([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 8]]), cache=cache)
    shown = {
        "Trace": (t, ["from embed (2, 7, 15) to logits (2, 7, 23)", "explicit attention", f"{t.nbytes:,} bytes"]),
        "KVCache": (cache, ["2 rows, 7 of 13 columns in use, 2 layers, 3 heads of 5, float32 on cpu, 6,240 bytes"]),
        "CharTokenizer": (CharTokenizer("\n abcdefgh"), [r"10 tokens: b'\n', b' ', b'a'"]),
        "Generation": (
            generate(tiny_model, [[1, 2], [3]] * 4, max_new_tokens=7),
            ["9 ids [1, 2, ", "8 ids [3, ", "..."],
        ),
        "HeadScores": (
            head_scores(tiny_model),
            ["scores={previous: float32 (2, 3), first: float32", "period=6"],
        ),
        "Ablation": (ablate("0.1", "mean", t), ["reference=float32 (1, 3, 7, 5)", "head=1"]),
        "Lens": (logit_lens(t), ["points=['blocks.0.resid_pre', ", "logits=float32 (", "final=float32 (2, 7, 23)"]),
    }
    for name, (value, parts) in shown.items():
        assert repr(value).startswith(f"{name}(")
        assert len(repr(value)) < 600
        assert max(map(len, repr(value).splitlines())) < 200
        for part in parts:
            assert " ".join(part.split()) in " ".join(repr(value).split())
    cache.rollback(torch.tensor([0, 3]))
    assert "2 rows, [7, 4] of 13 columns" in repr(cache)
