"""What can be said of the page's views without a browser."""

import re
from pathlib import Path

import pytest

import minigpt.model
import minigpt.page

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
