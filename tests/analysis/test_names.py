"""The names of `minigpt.analysis`, which are imported late; and what a check says."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt import analysis
from minigpt.analysis.checks import measured


def test_every_name_is_there_and_known_to_type_checkers():
    for name in analysis.__all__:
        assert getattr(analysis, name).__name__ == name
        assert name in dir(analysis)
    tree = ast.parse(Path(analysis.__file__).read_text(encoding="utf-8"))
    imported = {node.names[0].name: node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    for name in analysis.__all__:
        assert imported[name] == getattr(analysis, name).__module__
    assert {*dir(analysis)} == {*analysis.__all__}  # and nothing of how they are found
    with pytest.raises(AttributeError, match="no attribute 'trase'"):
        analysis.trase  # noqa: B018


def test_counting_does_not_import_torch():
    code = "import sys; from minigpt.analysis import model_size; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_check_is_judged_and_never_by_what_is_no_number():
    assert measured("a = b", 0.5, 0.5) == ("a = b", 0.5, 0.5, True)
    assert not measured("a = b", 0.6, 0.5).ok
    assert not measured("a = b", math.nan, 0.5).ok
