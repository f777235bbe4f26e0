"""What `train` suggests to type next."""

import os
import shutil
import sys

import pytest

from minigpt.cli.trainings import opening, program, prompt_to_try, summary
from minigpt.config import DocumentsConfig, RunConfig
from minigpt.data.documents import Document, Documents
from minigpt.formats.run_directory import RunDirectory
from minigpt.training.loop import TrainResult


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
        (Document("很" * 50), 0, "很" * 40),  # a script without blanks
        (Document("低眠层上入，\n不目晓眠光。"), 0, "低眠层上入，"),  # whose vocabulary has line ends alone
        (Document("\n床\u3000前 明 月"), 0, "床\u3000前 明"),
        (Document(" 4", prompt="2 + 2 ="), 0, "2 + 2 ="),
        (Document("a film that is long"), 2, "keywords: that, is\n"),  # the other document has the other words
        (Document(" 4", prompt="2 + 2 ="), 2, "keywords: \n2 + 2 ="),
    ],
)
def test_a_document_is_opened_as_in_training(document, keywords, expected):
    documents = Documents([document, Document("a long film")], "2 texts", 0, 0)
    config = RunConfig(documents=DocumentsConfig(keywords=keywords))
    assert prompt_to_try(documents, config) == expected


@pytest.mark.parametrize("missing", ["loss.png", "samples.txt", "metrics.jsonl", "model.safetensors"])
def test_the_summary_lists_what_was_written_and_nothing_else(tmp_path, missing):
    """A picture may not have been drawn: said when it was not, it is not promised at the end."""
    names = sorted({"loss.png", "samples.txt", "metrics.jsonl", "model.safetensors"} - {missing})
    for time, name in enumerate(reversed(names)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time, time))
    result = TrainResult(str(tmp_path), 7, 1.5, 1.5, 1.5, 100.0, 3.0, 23)
    lines = summary(result, RunConfig(), RunDirectory(tmp_path))
    listed = lines[[line.startswith("written") for line in lines].index(True) + 1]
    assert sorted(part.split()[0] for part in listed.split(",")) == names


def test_a_plot_that_could_not_be_drawn_again_is_not_listed(tmp_path):
    for time, name in enumerate(("loss.png", "metrics.jsonl")):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time, time))
    result = TrainResult(str(tmp_path), 7, 1.5, 1.5, 1.5, 100.0, 3.0, 23)
    assert "loss.png" not in "\n".join(summary(result, RunConfig(), RunDirectory(tmp_path)))


@pytest.mark.parametrize("found", [True, False])
def test_the_program_is_named_as_it_can_be_called_where_its_file_has_another_name(tmp_path, monkeypatch, found):
    """Pip's launcher on Windows, minigpt.exe, calls itself minigpt; and a program may be removed while it trains."""
    launcher = tmp_path / "Scripts" / "minigpt"
    launcher.parent.mkdir()
    (exe := launcher.with_suffix(".exe")).write_text("")
    monkeypatch.setattr(shutil, "which", lambda name: str(exe) if found or name == "minigpt" else None)
    monkeypatch.setattr(sys, "argv", [str(launcher)])
    monkeypatch.chdir(tmp_path)
    assert program() == ("minigpt" if found else os.path.join("Scripts", "minigpt"))
