"""What is shown on a terminal: 80 columns, every value where it belongs, nothing that does not print."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigpt.analysis.terminal import SHADES, bar, columns, fitted, grid, heat_map, pooled, shade, table, visible


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
    *rows, legend = heat_map(np.eye(T), names)
    assert max(map(columns, [*rows, legend])) <= 80
    assert [row.split("|")[1].count("█") for row in rows] == [wide] * len(rows)  # the diagonal, however small the map
    assert rows[0].strip().startswith("t0 |")
    assert ("largest of" in legend) == (T > 70)


def test_bars_end_where_they_must():
    assert [len(bar(share, 10)) for share in (-1, 0, 0.5, 1, 7)] == [0, 0, 5, 10, 10]
