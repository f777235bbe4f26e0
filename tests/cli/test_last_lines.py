"""What `train` suggests to type next."""

import pytest

from minigpt.cli.trainings import opening, prompt_to_try
from minigpt.config import DocumentsConfig, RunConfig
from minigpt.data.documents import Document, Documents


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


@pytest.mark.parametrize(
    ("document", "keywords", "expected"),
    [
        (Document("a film that is long"), 0, "a film that"),
        (Document(" 4", prompt="2 + 2 ="), 0, "2 + 2 ="),
        (Document("a film that is long"), 2, "keywords: that, is\n"),  # the other document has the other words
        (Document(" 4", prompt="2 + 2 ="), 2, "keywords: \n2 + 2 ="),
    ],
)
def test_a_document_is_opened_as_in_training(document, keywords, expected):
    documents = Documents([document, Document("a long film")], "2 texts", 0, 0)
    config = RunConfig(documents=DocumentsConfig(keywords=keywords))
    assert prompt_to_try(documents, config) == expected
