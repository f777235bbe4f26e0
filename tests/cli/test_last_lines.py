"""What `train` suggests to type next."""

import pytest

from minigpt.cli.train import opening


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cut off\nI am a line of a speech\n\nROMEO:\nWhat\nNURSE:\n", "ROMEO:"),  # a play: somebody's name
        (
            "cut off\n42, 43\nof\nthe first line that can be continued\nand another\n",
            "the first line that can be continued",
        ),
        ("cut off\n" + "long " * 20 + "\nmore\n", ("long " * 20)[:40]),
        ("all on one line", "all on one line"),
    ],
)
def test_the_opening_is_a_line_that_can_be_continued(text, expected):
    assert opening(text, 0) == expected
