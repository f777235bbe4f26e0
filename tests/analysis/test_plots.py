"""The pictures hold the numbers that they were given, name the tokens, and say what they leave out."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.colors import to_hex

from minigpt.analysis import plots
from minigpt.system.figures import save_figure
from minigpt.training.curves import runs_compared

WORDS = ["The", " cat", "\n", " $x$", " $5", "中", "\x1b", " sat"]  # formulas, signs that the font lacks, an escape
LONG = [chr(97 + n % 26) for n in range(211)]
random = np.random.default_rng(5)


def causal(*shape: int) -> np.ndarray:
    """Attention patterns (..., T, T)."""
    weights = np.tril(random.random((*shape, shape[-1])))
    return weights / weights.sum(-1, keepdims=True)


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def names(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def overlapping(figure, axis) -> list[tuple[str, str]]:
    """Pairs of neighbouring names of an axis that cover each other in the picture."""
    figure.draw_without_rendering()
    boxes = [(label.get_text(), label.get_window_extent()) for label in axis.get_ticklabels()]
    pairs = itertools.pairwise(boxes)
    return [(one, other) for (one, box), (other, next_box) in pairs if box.overlaps(next_box)]


def test_one_head_shows_its_numbers_and_not_the_future():
    pattern = causal(len(WORDS))
    figure = plots.attention_head(pattern, WORDS, "head 4.11")
    axes = figure.axes[0]
    image = axes.images[0].get_array()
    np.testing.assert_array_equal(image.data, pattern)
    np.testing.assert_array_equal(image.mask, np.triu(np.ones_like(pattern), k=1).astype(bool))
    shown = ["The", "␣cat", "↵", "␣\\$x\\$", "␣\\$5", "\\u4e2d", "\\x1b", "␣sat"]
    assert names(axes.xaxis) == names(axes.yaxis) == shown
    assert len(axes.texts) == len(WORDS) * (len(WORDS) + 1) // 2
    assert texts(axes)[0] == "1.00"
    assert "head 4.11" in figure.get_suptitle()


@pytest.mark.parametrize("tokens", [WORDS, ["a", "中", "b"] * 8, WORDS * 9, LONG], ids=len)
def test_names_do_not_cover_each_other(tokens):
    figure = plots.attention_head(causal(len(tokens)), tokens)
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert overlapping(figure, axis) == []
        shown = names(axis)
        n = -(-len(tokens) // len(shown))
        assert len(shown) > 30 or n == 1
        assert n in (1, 2, 5)
        assert (f"one in {n}" in figure.get_suptitle()) == (n > 1)
    assert bool(figure.axes[0].texts) == (len(tokens) < 20)


def test_as_few_names_are_left_out_as_must_be_and_at_round_numbers():
    figure = plots.heat_map(causal(256), [str(n) for n in range(256)], [str(n) for n in range(256)], "cosine")
    for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
        assert names(axis)[:3] == ["0", "5", "10"]
        assert overlapping(figure, axis) == []
    assert figure.get_suptitle() == "one in 5 columns and rows has its name"


def test_the_grid_has_a_thumbnail_a_head():
    L, H, T = 2, 3, 7
    patterns = causal(L, H, T)
    figure = plots.attention_grid(patterns, [5, 8], list("abcdefg"), "all")
    panels = figure.axes[: L * H]
    assert [axes.get_title() for axes in panels] == ["5.0", "5.1", "5.2", "8.0", "8.1", "8.2"]
    for axes, pattern in zip(panels, patterns.reshape(-1, T, T), strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array().filled(0), pattern)
    assert "7 tokens: a b c d e f g" in figure.get_suptitle()
    signs = plots.attention_grid(causal(1, 1, 3), [0], [" $", "\n", "$5"]).get_suptitle()
    assert signs.endswith("3 tokens: ␣\\$ ↵ \\$5")  # a dollar is escaped once


def test_thumbnails_of_many_tokens_are_smaller_and_keep_their_lines():
    T = len(LONG)
    previous = np.eye(T, k=-1)
    previous[0, 0] = 1
    figure = plots.attention_grid(previous[None, None], [0], LONG)
    cells = figure.axes[0].images[0].get_array().filled(0)
    assert cells.shape == (71, 71)
    assert (cells.diagonal()[:-1] == 1).all()  # the mean of each cell would be at most a third
    assert "3 x 3 values" in figure.get_suptitle()
    assert "211 tokens" in figure.get_suptitle()


def test_the_scoreboard_has_a_map_a_kind():
    scores = {kind: random.random((3, 5)) for kind in ("previous", "induction", "first", "self")}
    figure = plots.head_scoreboard(scores)
    for axes, (kind, values) in zip(figure.axes, scores.items(), strict=False):
        assert axes.get_title() == kind
        np.testing.assert_array_equal(axes.images[0].get_array(), values)
        assert texts(axes) == [f"{value:.2f}".lstrip("0") for value in values.flat]


def test_a_map_of_texts_and_one_too_wide_for_them():
    values = random.random((3, 5))
    cells = [[f"{row}{column}" for column in range(5)] for row in range(3)]
    figure = plots.heat_map(values, list("abc"), list("vwxyz"), "p", "lens", texts=cells)
    assert texts(figure.axes[0]) == [text for row in cells for text in row]
    assert names(figure.axes[0].yaxis) == ["a", "b", "c"]
    assert figure.axes[1].get_ylabel() == "p"
    for cells in (None, [LONG] * 3):
        wide = plots.heat_map(random.random((3, 211)), list("abc"), LONG, "p", texts=cells)
        assert texts(wide.axes[0]) == []
        assert ("too many columns to write" in wide.get_suptitle()) == (cells is not None)
        assert overlapping(wide, wide.axes[0].xaxis) == []


@pytest.mark.parametrize("N", [3, 29])
def test_what_is_written_into_a_cell_stays_in_it(N):
    cells = [["␣internationalisation"] * N, ["WWWWWWWWWWWWWWWW"] * N]
    figure = plots.heat_map(random.random((2, N)), ["embed", "1.5 ± 2"], ["中中"] * N, "p", texts=cells)
    figure.draw_without_rendering()
    edges = figure.axes[0].transData.transform([(n - 0.5, 0) for n in range(N + 1)])[:, 0]
    shown = figure.axes[0].texts
    assert len(shown) == 2 * N
    for place, text in enumerate(shown[:N]):
        box = text.get_window_extent()
        assert edges[place] <= box.x0 < box.x1 <= edges[place + 1], text.get_text()
        assert text.get_text().startswith("␣int")
    assert names(figure.axes[0].yaxis) == ["embed", "1.5 ± 2"]  # a row's name is no token


def test_nothing_is_not_less_than_nothing():
    figure = plots.heat_map([[-0.001, -0.01, 0.0]], ["r"], list("abc"), "change", signed=True)
    assert texts(figure.axes[0]) == ["0.00", "-0.01", "0.00"]


@pytest.mark.parametrize("rows", [1, 2, 13])
def test_nothing_is_cut_off(rows):
    what, title = "change of the loss on the second copy", "16 rows of 45 random tokens that come twice " * 3
    figure = plots.heat_map(random.random((rows, 2)), [f"layer {n}" for n in range(rows)], ["0", "1"], what, title)
    figure.draw_without_rendering()
    for text in (*figure.texts, figure.axes[1].yaxis.label, *figure.axes[0].get_yticklabels()):
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width, text.get_text()
        assert 0 <= box.y0 < box.y1 <= figure.bbox.height, text.get_text()
    assert figure.get_suptitle().replace("\n", " ") == title.strip()


def test_a_scale_with_a_sign_is_white_at_0():
    figure = plots.heat_map([[-2.0, 0.0, 1.0, np.nan]], ["r"], list("abcd"), "change", signed=True)
    image = figure.axes[0].images[0]
    assert image.get_clim() == (-2.0, 2.0)
    colours = [to_hex(colour) for colour in image.to_rgba(np.array([-2.0, 0.0, 2.0]))]
    assert colours[1] == "#f7f6f6"
    assert int(colours[0][5:], 16) > int(colours[0][1:3], 16)  # more blue than red
    assert int(colours[2][5:], 16) < int(colours[2][1:3], 16)
    assert texts(figure.axes[0]) == ["-2.00", "0.00", "1.00"]


def test_the_waterfall_adds_up():
    parts = [("embed", 1.5), ("0.attn", -2.25), ("0.mlp", 3.0)]
    figure = plots.waterfall(parts, 2.25, "logit", "why")
    axes = figure.axes[0]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes.patches]
    assert bars == [(0, 1.5), (1.5, -0.75), (-0.75, 2.25), (0, 2.25)]
    assert names(axes.yaxis) == ["embed", "0.attn", "0.mlp", "together"]
    assert texts(axes) == ["+1.500", "-2.250", "+3.000", "+2.250"]
    assert names(plots.waterfall([("7 other parts", 1.0)], 1.0, "logit").axes[0].yaxis)[0] == "7 other parts"


def test_the_strip_names_every_token_once():
    losses = random.random(len(LONG) - 1) * 7
    figure = plots.loss_strip(LONG, losses)
    cells = figure.axes[0].images[0].get_array()
    assert cells.mask.ravel().nonzero()[0].tolist() == [0, *range(len(LONG), cells.size)]
    np.testing.assert_array_equal(cells.compressed(), losses)
    shown = texts(figure.axes[0])
    assert [text for text in shown if text.isalpha()] == LONG
    assert [text for text in shown if not text.isalpha()] == [f"{loss:.1f}" for loss in losses]


def test_the_size_chart_is_in_shares():
    figure = plots.size_chart(["wte", "mlp"], {"parameters": [1, 3], "kept": [0, 0], "c": [1, 0], "d": [0, 1]})
    assert [axes.get_title() for axes in figure.axes] == ["parameters", "kept", "c", "d"]
    assert [bar.get_width() for bar in figure.axes[0].patches] == [25, 75]
    assert [bar.get_width() for bar in figure.axes[1].patches] == [0, 0]
    assert [texts(axes) for axes in figure.axes] == [["25.0", "75.0"], ["", ""], ["100.0", ""], ["", "100.0"]]


def test_a_cut_token_says_so():
    figure = plots.cuts_chart(["a", " b"], [("the model", [0.7, 0.3], 50257), ("top-k 1", [1.0, 0.0], 1)])
    first, second = figure.axes
    assert texts(first) == ["0.700", "0.300"]
    assert texts(second) == ["1.000", "× cut"]
    assert [axes.get_title() for axes in figure.axes] == ["the model\n50,257 left", "top-k 1\n1 left"]


def test_bars_side_by_side_cut_nothing():
    figure = plots.bars_side_by_side(["3", "-1"], [("T = 0.1", [1.0, 0.0]), ("T = 2", [0.875, 0.125])])
    assert [texts(axes) for axes in figure.axes] == [["1.000", "0.000"], ["0.875", "0.125"]]
    assert [axes.get_title() for axes in figure.axes] == ["T = 0.1", "T = 2"]
    assert {axes.get_xlim() for axes in figure.axes} == {(0, 1.35)}


TREE = [
    plots.Branch(None, "a", -1.0, True, False),
    plots.Branch(None, " b", -1.5, True, True),
    plots.Branch(None, "c", -9.0, False, False),
    plots.Branch(1, "d", -1.75, True, True),
    plots.Branch(1, "e", -2.0, True, False),
    plots.Branch(0, "f", -8.0, False, False),
]


def test_the_tree_has_a_line_a_leaf_and_marks_the_result():
    figure = plots.beam_tree(TREE, "Once", "4 beams")
    places = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert places == {
        "a -1.00": (1, 0), "f -8.00": (2, 0),
        "␣b -1.50": (1, 1), "d -1.75": (2, 1), "e -2.00": (2, 2),
        "c -9.00": (1, 3), "Once": (0.66, 0),
    }  # fmt: skip
    bold = [text.get_text() for text in figure.axes[0].texts if text.get_weight() == "bold"]
    assert bold == ["␣b -1.50", "d -1.75"]
    styles = [line.get_linestyle() for line in figure.axes[0].get_lines()]
    assert styles == ["-", "-", ":", "-", "-", ":"]
    begins = [(line.get_xdata()[0], line.get_ydata()[0]) for line in figure.axes[0].get_lines()]
    assert begins[3:] == [(1, 1), (1, 1), (1, 0)]  # where the parents' texts stand


def test_a_tree_too_large_leaves_out_what_was_dropped():
    chain = [plots.Branch(n - 1 if n else None, "x", -float(n), True, True) for n in range(163)]
    figure = plots.beam_tree([*chain, plots.Branch(3, "dropped", -9.0, False, False)], "Once")
    assert "left out" in figure.get_suptitle()
    assert not any("dropped" in text for text in texts(figure.axes[0]))
    assert figure.axes[0].texts[-2].get_position() == (163, 0)


def test_runs_are_drawn_as_they_were_recorded():
    runs = [("one", [(1, 4.0), (2, 3.0)], [(2, 3.5)]), ("two", [(1, 5.0)], [])]
    axes = runs_compared(runs).axes[0]
    lines = [list(zip(*line.get_data(), strict=True)) for line in axes.get_lines()]
    assert lines == [[(1, 4.0), (2, 3.0)], [(2, 3.5)], [(1, 5.0)], []]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one, best 3.500", "two"]
    marks = [line.get_marker() for line in axes.get_lines()[1::2]]
    assert len(set(marks)) == 2  # not by colour alone


def test_points_have_their_names_where_these_do_not_cover_each_other():
    plane = np.array([[n, (3 * n) % 7] for n in range(7)])
    figure = plots.scatter(plane, list("abcdefg"), [0.3, 0.2])
    assert texts(figure.axes[0]) == list("abcdefg")
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_offsets(), plane)
    assert "30% of the variance" in figure.axes[0].get_xlabel()
    many = plots.scatter(random.random((307, 2)), [f"␣word{n}" for n in range(307)], [0.3, 0.2], "wte")
    many.draw_without_rendering()
    kept = many.axes[0].texts
    assert 30 < len(kept) < 150
    boxes = [text.get_window_extent() for text in kept]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert many.get_suptitle() == f"wte\n{len(kept)} of 307 points have their names"


def test_boxes_beside_the_stream_are_set_in():
    axes = plots.block_diagram([("wte", "(B, T, C)", False), ("ln_1", "(B, T, C)", True)]).axes[0]
    places = {text.get_text(): text.get_position() for text in axes.texts if text.get_text() in ("wte", "ln_1")}
    assert places == {"wte": (0.0, 0), "ln_1": (0.5, -1)}


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_every_sign_can_be_drawn(tmp_path, suffix, monkeypatch):
    """Any warning is an error here: no glyph is missing, no dollar begins a formula, and no display is asked for."""
    monkeypatch.delenv("DISPLAY", raising=False)
    path = tmp_path / f"picture.{suffix}"
    save_figure(plots.heat_map(random.random((8, 8)), WORDS, WORDS, "p", "中 $ $", texts=[WORDS] * 8), path)
    assert path.read_bytes().startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_dialogue_panels_show_the_history_and_the_failures_of_each_arm():
    def interval(mean: float | None, low: float | None = None, high: float | None = None) -> dict[str, float | None]:
        return {"mean": mean, "low": low, "high": high}

    coherence = [
        {"turns": 0, "perplexity": 9.0, "gain": interval(0), "drop": interval(0), "first": interval(0.2)},
        {
            "turns": 3,
            "perplexity": None,
            "gain": interval(None),
            "drop": interval(0.5, 0.25, 0.75),
            "first": interval(0.5),
        },
    ]
    failures = {"true replies": {"loop": 0.0, "echo": 0.25}, "greedy": {"loop": 0.5, "echo": 0.0}}
    figure = plots.dialogue_panels([{**one, "candidates": 5} for one in coherence], failures)
    upper, lower = figure.subfigs
    assert [axes.get_title() for axes in upper.axes] == [
        "perplexity of the true replies", "likelier by, nats a token", "first of 5 replies",
    ]  # fmt: skip
    assert [line.get_ydata()[1] for line in upper.axes[1].lines[:2]] == [pytest.approx(math.nan, nan_ok=True), 0.5]
    (axes,) = lower.axes
    assert [bar.get_width() for bar in axes.patches] == [0, 25, 50, 0]
    assert texts(axes) == ["", "25", "50", ""]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["true replies", "greedy"]
    assert len(plots.dialogue_panels([], failures).axes) == 1


@pytest.mark.parametrize("scale", [0.01, 1, 40])
def test_no_legend_of_dialogue_panels_hides_an_interval(scale: float):
    def interval(low: float, high: float) -> dict[str, float]:
        return {"mean": (low + high) / 2, "low": low, "high": high}

    history = {"perplexity": 4.2, "candidates": 10, "first": interval(0.7, 1)}
    for high in ((1, 1, 1, 1), (0, 1, 2, 3), (3, 2, 1, 0)):
        spans = [interval(-scale, scale * end) for end in high]
        coherence = [{**history, "turns": turns, "gain": span, "drop": span} for turns, span in enumerate(spans)]
        figure = plots.dialogue_panels(coherence, {"true replies": {"loop": 0.5}, "greedy": {"loop": 0.5}})
        figure.draw_without_rendering()
        for axes in figure.subfigs[0].axes[1:]:
            legend = axes.get_legend().get_window_extent()
            ends = [axes.transData.transform(part) for upright in axes.collections for part in upright.get_segments()]
            assert len(ends) == (4 if "first" in axes.get_title() else 8)
            for (x, _), (_, top) in ends:
                assert not (legend.x0 <= x <= legend.x1 and top >= legend.y0)
