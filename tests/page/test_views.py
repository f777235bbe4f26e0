"""What can be said of the page's views without a browser."""

import re
from pathlib import Path

import pytest

import minigpt.model
import minigpt.page
from tests.page.conftest import Node

VIEWS = sorted((Path(minigpt.page.__file__).parent / "static" / "views").glob("*.js"))
LINES = {path.name: line for path in VIEWS for line in re.findall(r'^  line: "(.*)",$', path.read_text("utf-8"), re.M)}


def test_every_view_names_a_line():
    exporting = [path.name for path in VIEWS if re.search(r"^export const \w+View = ", path.read_text("utf-8"), re.M)]
    assert sorted(LINES) == exporting
    assert len(exporting) == 8


@pytest.mark.parametrize("name", sorted(LINES))
def test_the_line_of_a_view_is_in_the_model_once(name):
    """The page looks for the text of the line, so that no number of a line is written down."""
    assert Path(minigpt.model.__file__).read_text("utf-8").count(LINES[name]) == 1


def test_each_part_of_a_run_is_text_as_soon_as_it_is_there(node: Node):
    """Whatever the page turns to before the run is done, the address has what was written so far."""
    (grown,) = node([("run", {"ids": [3, 5, 7, 11, 13], "typed": 3, "parts": [[17], [19, 23]]})])
    assert grown == [[[3, 5, 7, 11, 13, 17], 3], [[3, 5, 7, 11, 13, 17, 19, 23], 3]]


@pytest.mark.parametrize(("block_size", "cut"), [(3, 4), (7, 0), (11, 0)])
def test_of_a_text_a_model_reads_the_end(node: Node, block_size: int, cut: int):
    ids = [2, 3, 5, 7, 11, 13, 17]
    (text,) = node([("text", {"ids": ids, "typed": 5, "block_size": block_size})])
    pieces = [{"id": token} for token in ids]
    assert text == {"ids": ids, "cut": cut, "read": ids[cut:], "pieces": pieces, "typed": 5}


def test_of_what_was_dropped_nothing_more_is_heard(node: Node):
    """A part that was on its way does not become a part of another text."""
    (found,) = node([("dropped", {"parts": [2, 3, 5], "answer": 7})])
    assert found["heard"] == [2]
    assert found["answer"] is None
    assert found["sent"][-1] == {"stop": 1}
