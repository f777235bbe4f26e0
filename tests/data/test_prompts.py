"""Prompts of examples, against a page written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt.data.prompts import PAIRS, few_shot_prompt, read_examples
from minigpt.decoding.generate import before_stop
from minigpt.errors import DataError, InputError, MissingFileError, TextNote

PAGE = """Translate English to French.

English: sea
French: mer

English: good day
French: bonjour

English: bread
French:"""


def test_it_is_the_page_in_the_documents() -> None:
    labels = {"input_label": "English:", "output_label": "French:"}
    examples = [("sea", "mer"), ("good day", "bonjour")]
    assert few_shot_prompt(examples, "bread", instruction="Translate English to French.", **labels) == PAGE


def test_no_instruction_leaves_no_gap() -> None:
    assert few_shot_prompt([("1", "one")], "2") == "Input: 1\nOutput: one\n\nInput: 2\nOutput:"
    assert few_shot_prompt([], "2", separator="\n--\n") == "Input: 2\nOutput:"


def test_the_separator_is_where_to_stop() -> None:
    prompt = few_shot_prompt([("1", "one"), ("2", "two")], "3", separator="\n#\n")
    written = " three\n#\nInput: 4\nOutput: four"
    assert "".join(before_stop([written], ["\n#\n"])) == " three"
    whole = few_shot_prompt([("1", "one"), ("2", "two"), ("3", "three")], "4", separator="\n#\n")
    assert (prompt + written).startswith(whole), "the model's own continuation has the shape of one more example"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"separator": ""}, "separator is empty"),
        ({"input_label": ""}, "input_label is empty"),
        ({"output_label": ""}, "output_label is empty"),
        ({"examples": [("a", "b"), ("c",)]}, r"example 1 is \('c',\)"),
        ({"examples": ["ab"]}, "example 0 is 'ab', not a pair"),
        ({"examples": [("a", "one\n\ntwo")]}, "holds the separator"),
        ({"query": "a\n\n"}, "holds the separator"),
        ({"instruction": "Do this.\n\nNow."}, "holds the separator"),
        ({"separator": "\n"}, "holds the separator"),
        ({"query": 7}, "query is 7, not a text"),
        ({"query": None}, "query is None, not a text"),
        ({"instruction": ["Do this."]}, r"instruction is \['Do this.'\], not a text"),
        ({"separator": None}, "separator is None, not a text"),
        ({"input_label": 0}, "input_label is 0, not a text"),
        ({"examples": [("a", "b"), ("c", 3)]}, r"example 1 is \('c', 3\), not a pair of texts"),
        ({"examples": [b"ab"]}, "example 0 is b'ab', not a pair"),
        ({"examples": [{"c": 1, "d": 2}]}, "example 0 is .*, not a pair"),
        ({"examples": [None]}, "example 0 is None, not a pair"),
        ({"examples": [7]}, "example 0 is 7, not a pair"),
        ({"examples": None}, "examples = None cannot be used"),
    ],
)
def test_what_would_break_the_pattern_is_refused(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"examples": [("a", "b")], "query": "c"} | changes
    with pytest.raises(InputError, match=message) as caught:
        few_shot_prompt(**arguments)
    assert caught.value.how


PAIRED = [("sea", "mer"), ("good day", 'le "bonjour"'), ("two\nlines", "deux\nlignes")]


@pytest.mark.parametrize("names", PAIRS)
def test_examples_from_lines_of_json(tmp_path: Path, names: tuple[str, str]) -> None:
    lines = [json.dumps(dict(zip(names, pair, strict=True)) | {"id": 7}) for pair in PAIRED]
    (tmp_path / "pairs.jsonl").write_text("\ufeff" + "\r\n\n".join(lines), encoding="utf-8")
    with pytest.warns(TextNote, match=r"pairs\.jsonl: fields not read: id$"):
        assert read_examples(tmp_path / "pairs.jsonl") == PAIRED


@pytest.mark.parametrize("heading", ["", "Prompt\tCompletion\n", "\ninput\toutput\n"])
def test_examples_from_a_table(tmp_path: Path, heading: str) -> None:
    (tmp_path / "pairs.tsv").write_text(heading + 'sea\tmer\n\n good day\tle "bonjour" \n', encoding="utf-8")
    assert read_examples(tmp_path / "pairs.tsv") == PAIRED[:2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "sea\tmer\nbread\n", "line 2 has no tab"),
        ("a.tsv", "a\tb\tc\n", "line 1 has 2 tabs"),
        ("a.tsv", "\nsea\t \n", "line 2: its output is ' '"),
        ("a.tsv", "input\toutput\n", "has no example"),
        ("a.jsonl", "\n \n", "has no example"),
        ("a.jsonl", '{"input": "a", "output": "b"}\n{"input": 7', "line 2 is not JSON"),
        ("a.jsonl", '{"input": "a", "output": "b"}\n["a", "b"]', "line 2 holds a JSON list"),
        ("a.jsonl", '{"input": "a", "label": "b"}', "line 1 has the fields input, label, and no pair"),
        ("a.jsonl", '\n{"input": "a", "output": 7}', "line 2: its output is 7"),
        ("a.jsonl", '{"input": "a\\n\\nb", "output": "c"}', "line 1: its input has an empty line"),
        ("a.jsonl", '{"input": "a", "output": "\\ud83d"}', "line 1: its output holds half a character"),
        ("a.csv", "a,b\n", "a.csv is no .jsonl and no .tsv"),
        (".", None, "is a folder"),
    ],
)
def test_a_file_that_has_no_pairs_is_refused_with_the_line(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_examples(tmp_path / name)
    assert caught.value.how


def test_examples_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no file"):
        read_examples(tmp_path / "pairs.tsv")
