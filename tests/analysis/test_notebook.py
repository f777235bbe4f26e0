"""What a notebook shows of a result: HTML that stands alone, says the result's numbers, and takes no text for HTML."""

import json
import re
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import minigpt
from minigpt import analysis
from minigpt.analysis.checks import Check
from minigpt.analysis.decoders import beam_tree, sampling_cuts, write_steps
from minigpt.analysis.results import Numbers, Result
from minigpt.analysis.sweeps import loss_of
from minigpt.config import RunConfig
from minigpt.formats.run_directory import RunDirectory, losses, read_samples, save_run
from minigpt.formats.source import open_source
from minigpt.system import notebook
from minigpt.system.terminal import Brief
from minigpt.tokenizers import CharTokenizer

TOKENIZER = CharTokenizer.from_text("\n !',-.:;?ABCDEabcdefgh")
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
HOSTILE = "</pre><script>alert('1')</script><img src=x onerror=alert(2)>\"'&amp;"


def parsed(shown: str) -> ElementTree.Element:
    """The elements of an HTML that is well-formed, and neither runs nor loads anything."""
    root = ElementTree.fromstring(shown)
    for element in root.iter():
        tag = element.tag.rpartition("}")[2]
        assert tag in {"div", "p", "b", "pre", "table", "caption", "thead", "tbody", "tr", "th", "td", "svg", "path",
                       "polyline", "line", "text"}  # fmt: skip
        assert not [name for name in element.attrib if name.startswith("on") or name in ("src", "href", "id")]
        assert "url(" not in element.get("style", "")
        for colour in re.findall(r"color:([^;]+)", element.get("style", "")):
            assert colour == "inherit"  # of a text: that of the notebook, light or dark
    return root


def text_of(shown: str) -> str:
    return " ".join("".join(parsed(shown).itertext()).split())


def cells(shown: str) -> list[list[str]]:
    return [["".join(cell.itertext()) for cell in row] for row in parsed(shown).iter("tr")]


@pytest.fixture
def results(tiny_model) -> dict[str, Any]:
    """One of every kind that minigpt.analysis makes."""
    idx = torch.tensor([IDS])
    with analysis.trace(tiny_model) as t:
        tiny_model(idx)
    return {
        "trace": t,
        "plan": analysis.plan(tiny_model.config, 1, 5),
        "lens": analysis.logit_lens(t),
        "attribution": analysis.attribute(t, 7, against=2, by="head"),
        "losses": analysis.token_losses(tiny_model, IDS),
        "heads": analysis.head_scores(tiny_model),
        "sweep": analysis.ablation_sweep(tiny_model, idx, loss_of(idx)),
        "neighbours": analysis.neighbours(tiny_model, 3, 5),
        "pca": analysis.pca(tiny_model.wte.weight),
        "positions": analysis.position_similarity(tiny_model),
        "norms": analysis.residual_norms(t),
        "size": analysis.model_size(tiny_model.config),
        "cuts": sampling_cuts(tiny_model(idx)[0, -1].detach(), temperature=0.7, top_k=5),
        "steps": write_steps(tiny_model, IDS, TOKENIZER, 3, max_new_tokens=4, strategy="greedy"),
        "beams": beam_tree(tiny_model, IDS, TOKENIZER, num_beams=3, max_new_tokens=4),
    }


def test_every_result_shows_itself_and_runs_nothing(results):
    for name, result in results.items():
        assert len(text_of(result._repr_html_())) > 20, name


def test_no_kind_of_result_is_forgotten():
    kinds, todo = set(), [Brief]
    while todo:
        kind = todo.pop()
        kinds.add(kind)
        todo += kind.__subclasses__()
    ours = {kind for kind in kinds if kind.__module__.startswith("minigpt.analysis")}
    without = {kind.__name__ for kind in ours if not hasattr(kind, "_repr_html_")}
    assert without <= {"Edit", "Ablation", "Patch", "Knockout"}  # what is asked for, and no result


def test_the_numbers_are_the_results(results):
    attribution = results["attribution"]
    shown = {row[0]: row[1] for row in cells(attribution._repr_html_())[1:]}
    assert shown == {name: f"{value:.4g}" for name, value in attribution.top()}
    assert f"logit {attribution.logit:.4f}" in text_of(attribution._repr_html_())
    scores = results["heads"]
    rows = cells(scores._repr_html_())
    kind = next(iter(scores.scores))
    assert rows[1][1:] == [f"{value:.4g}" for value in scores.scores[kind][0].tolist()]
    lens = results["lens"]
    ids, probs = lens.top(1)
    assert cells(lens._repr_html_())[1][:2] == [
        lens.points[0], f"{int(ids[0, 0, 0, 0])} ({float(probs[0, 0, 0, 0]):.2f})"
    ]  # fmt: skip
    losses_of_tokens = cells(results["losses"]._repr_html_())
    assert [row[1] for row in losses_of_tokens[1:]] == [f"{loss:.4g}" for loss in results["losses"].losses.tolist()]


def test_a_trace_shows_its_points_and_no_masked_score_hides_the_rest(results):
    rows = {row[0]: row[1:] for row in cells(results["trace"]._repr_html_())[1:]}
    scores = results["trace"]["blocks.0.attn.scores"]
    seen = scores[scores.isfinite()]
    expected = [f"{float(value):.4g}" for value in (seen.min(), seen.mean(), seen.max())]
    assert rows["blocks.0.attn.scores"] == ["1 x 3 x 8 x 8", *expected]


def test_a_trace_of_nothing_shows_that(tiny_model):
    with analysis.trace(tiny_model) as t:
        pass
    assert "no pass was run" in text_of(t._repr_html_())


def test_a_view_of_inspect_shows_tokens_numbers_and_checks():
    result = Result(
        view="attn",
        model="tiny",
        config=None,
        numbers={
            "pattern": Numbers(("layer", "query", "key"), np.array([[[1.0, 0.0], [0.25, 0.75]]] * 5)),
            "loss": Numbers(("query",), [0.5, -1.5]),
            "mean": Numbers((), 0.125),
            "none": Numbers(("query",), []),
        },
        prompt="ab",
        tokens=[(7, "a"), (11, "b")],
        labels={"query": ["a", "b"]},
        checks=[Check("rows sum to 1", 0.0, 1e-5, True)],
    )
    text = text_of(result._repr_html_())
    assert "pattern, layer 0 of 5" in text
    assert "mean: 0.125" in text
    rows = cells(result._repr_html_())
    assert ["1: b", "0.25", "0.75"] in rows
    assert ["1: b", "-1.5", ""] in rows
    assert ["rows sum to 1", "yes", "0"] in rows
    assert ["7", "a"] in rows


def test_no_text_becomes_html():
    """Prompts, tokens, names of files and samples come from anybody."""
    result = Result(
        view="attn", model=HOSTILE, config=None, prompt=HOSTILE, tokens=[(1, HOSTILE)], labels={"a": [HOSTILE]},
        numbers={HOSTILE: Numbers(("a",), [1.0]), "two": Numbers(("a", "a"), [[1.0]])},
        checks=[Check(HOSTILE, 1.0, 0.0, False)],
    )  # fmt: skip
    text = "".join(parsed(result._repr_html_()).itertext())
    assert text.count(HOSTILE) == 7
    made = [
        notebook.shown(HOSTILE, notebook.note(HOSTILE), notebook.text_block(HOSTILE)),
        notebook.shown("a", notebook.table([HOSTILE], [[HOSTILE]], HOSTILE)),
        notebook.shown("a", notebook.curves({HOSTILE: [(0, 1), (1, 2)]}, HOSTILE, HOSTILE)),
        notebook.shown("a", notebook.marked([HOSTILE], [HOSTILE], [[(HOSTILE, 0.5)]], HOSTILE)),
    ]
    for shown in made:
        assert HOSTILE in "".join(parsed(shown).itertext())


@pytest.mark.parametrize("values", [[[float("nan"), float("inf")], [-float("inf"), 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
def test_numbers_without_a_size_are_written_and_not_coloured(values):
    shown = notebook.shown("a", notebook.heat_map(["r", "s"], ["c", "d"], values), notebook.bars(["c", "d"], values[0]))
    assert [row[1:] for row in cells(shown)[1:3]] == [[f"{value:.4g}" for value in row] for row in values]


def test_a_colour_never_hides_the_text_on_it():
    """It is at most half of what is below, on a white page and on a black one."""
    shown = notebook.heat_map(["r"], ["a", "b", "c"], [[-9.0, 3.0, 9.0]])
    alphas = [float(alpha) for alpha in re.findall(r"rgba\(\d+,\d+,\d+,([\d.]+)\)", shown)]
    assert alphas == [0.45, 0.15, 0.45]

    def luminance(colour):
        parts = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))

    for found in re.findall(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", shown):
        *colour, alpha = map(float, found)
        for page, ink in ((1.0, 0.0), (0.07, 0.9)):  # white with black ink, and a dark notebook
            below = luminance([alpha * c / 255 + (1 - alpha) * page for c in colour])
            low, high = sorted((below, luminance([ink] * 3)))
            assert (high + 0.05) / (low + 0.05) >= 4.5


def test_of_a_long_result_the_beginning_is_shown_and_the_rest_counted():
    shown = notebook.heat_map([str(n) for n in range(1009)], [str(n) for n in range(53)], np.ones((1009, 53)))
    assert len(shown) < 200_000
    assert "969 more rows; 29 more columns" in text_of(notebook.shown("a", shown))
    assert "1 more rows" in text_of(notebook.shown("a", notebook.table(["a"], [["b"]] * 41)))


# --- runs


@pytest.fixture
def run(tiny_model, tmp_path) -> RunDirectory:
    save_run(tiny_model, TOKENIZER, tmp_path / "mine", trained=RunConfig())
    run = RunDirectory(tmp_path / "mine")
    records = [{"step": n, "tokens": n, "seconds": n, "train_loss": 4.0 - n / 10} for n in range(1, 12)]
    records += [{"step": 11, "tokens": 11, "seconds": 11, "val_loss": 2.875}]
    run.metrics.write_text("".join(json.dumps(record) + "\n" for record in records))
    run.samples.write_text(f"--- step 0 ---\nold\n\n--- step 11 ---\n{HOSTILE}\n\n")
    return run


def test_a_run_shows_its_losses_and_its_newest_sample(run):
    for shown in (
        run._repr_html_(),
        open_source(run.path)._repr_html_(),
        minigpt.open_source(str(run.path))._repr_html_(),
    ):
        root = parsed(shown)
        lines = root.findall(".//{http://www.w3.org/2000/svg}polyline")
        assert [len(line.get("points").split()) for line in lines] == [11, 1]
        heights = [float(point.split(",")[1]) for point in lines[0].get("points").split()]
        assert heights == sorted(heights)  # the loss falls, and SVG counts downwards
        text = "".join(root.itertext())
        assert HOSTILE in text
        assert "old" not in text
        assert "step 11" in text


def test_a_run_that_has_recorded_nothing_says_so(run):
    run.metrics.unlink()
    run.samples.unlink()
    assert "no training is recorded here" in text_of(run._repr_html_())


def test_a_model_that_is_no_run_shows_its_usual_line(tiny_model, tmp_path):
    minigpt.save_hf(tiny_model, TOKENIZER, tmp_path / "theirs")
    assert open_source(tmp_path / "theirs")._repr_html_() is None


def test_of_many_losses_some_are_drawn_and_the_last_is(run):
    records = [{"step": n, "train_loss": float(n)} for n in range(7919)]
    found = losses(records, "train_loss")
    assert len(found) <= 2001
    assert (found[0], found[-1]) == ((0, 0.0), (7918, 7918.0))


def test_of_many_samples_the_newest_are_read(run):
    run.samples.write_text("".join(f"--- step {n} ---\n{'x' * 1000}\n\n" for n in range(2000)))
    found = read_samples(run)
    assert found[-1] == (1999, "x" * 1000)
    assert 900 < len(found) < 1100
    assert all(text == "x" * 1000 for _, text in found)


def test_the_size_of_a_model_needs_no_torch():
    code = "import sys; import minigpt; s = minigpt.analysis.model_size(minigpt.GPTConfig())._repr_html_();"
    done = subprocess.run([sys.executable, "-c", code + "print('torch' in sys.modules, len(s) > 500)"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout == "False True\n"
