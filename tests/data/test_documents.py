"""Documents: what is taken for one, what is left out, who is chosen, and what is said about files that are no good."""

import csv
import io
import json
import math
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies

from minigpt.config import DocumentsConfig
from minigpt.data.documents import Document, keyword_line, read_documents, split, with_keywords, with_validation
from minigpt.errors import ConfigError, DataError, MiniGPTError, MissingFileError


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def texts(path, **settings):
    return [document.text for document in read_documents(path, DocumentsConfig(**settings)).items]


# --- What is one document ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected", "unit"),
    [
        ("one\ntwo \n three\n", ["one", "two", "three"], "a line"),
        ("\n\n one\r\ntwo\r\n\n\n", ["one", "two"], "a line"),  # blank lines at the ends separate nothing
        ("one\ntwo\n\nthree\n", ["one\ntwo", "three"], "a part between blank lines"),
        ("one\r\n \t\r\n\r\n  two\r\nthree", ["one", "two\nthree"], "a part between blank lines"),
        ("\ufeffone\u2028two\nthree", ["one\u2028two", "three"], "a line"),
    ],
)
def test_a_text_file_is_lines_or_parts_between_blank_lines(tmp_path, content, expected, unit):
    path = write(tmp_path / "texts.TXT", content)
    documents = read_documents(path)
    assert [document.text for document in documents.items] == expected
    assert all(document.whole and not document.prompt for document in documents.items)
    assert documents.described == f"{path}: {len(expected)} documents, each {unit}"


def test_a_folder_is_one_document_a_file_and_one_a_record(tmp_path):
    write(tmp_path / "b.txt", "b one\n\nb two\n")
    write(tmp_path / "a" / "z.md", "z")
    write(tmp_path / "a-c.jsonl", '{"text": "first"}\n{"text": "second"}\n')
    write(tmp_path / "c.csv", "text\nthird\n")
    write(tmp_path / "blank.txt", " \n")
    write(tmp_path / ".hidden" / "x.txt", "hidden")
    write(tmp_path / ".x.txt", "hidden")
    write(tmp_path / "image.png", b"\x89PNG")
    documents = read_documents(tmp_path)
    # Byte order of whole paths: "-" is before "/".
    assert [document.text for document in documents.items] == ["first", "second", "z", "b one\n\nb two", "third"]
    assert documents.blank == 1
    assert documents.described == (
        f"{tmp_path}: 5 documents, each the field 'text' of a record or a file; 1 blank and left out"
        "; 1 other file not read: .png"
    )
    assert texts(tmp_path, text_field="text") == ["first", "second", "third"], "only records have fields"


def test_pairs_keep_their_blanks(tmp_path):
    path = write(
        tmp_path / "chat.jsonl",
        '{"q": "Who?\\r\\n", "a": " Me."}\n\n{"q": "", "a": "Again."}\n{"q": "Why?", "a": " \\n"}\n',
    )
    documents = read_documents(path, DocumentsConfig(prompt_field="q", completion_field="a"))
    assert documents.items == [Document(" Me.", "Who?\n"), Document("Again.", "")]
    assert documents.described == f"{path}: 2 documents, each the fields 'q' and 'a'; 1 blank and left out"


@pytest.mark.parametrize(
    ("name", "content", "expected", "others"),
    [
        ("r.jsonl", '{"title": "t", "text": "x"}', "x", "title"),  # "text", whatever else there is
        (
            "r.jsonl", '{"id": 7, "stars": "4.5", "empty": " ", "none": null, "review": "x"}', "x",
            "id, stars, empty, none",
        ),
        ("r.ndjson", '{"text": "x"}\n{"text": "y", "label": 1}\n', "x y", "label"),
        ("r.jsonl", '{"text": "a\u2028b\x85c"}\r\n', "a\u2028b\x85c", ""),  # these end no line of a file
        ("r.csv", "id,review\n7,x\n", "x", "id"),
        ("r.TSV", 'label\treview\n1\tx, and; "y"\n', 'x, and; "y"', "label"),
        ("r.csv", "sentence\n42\n", None, ""),  # the only column, but numbers are no text
    ],
)  # fmt: skip
def test_the_only_field_with_text_is_taken_and_said(tmp_path, name, content, expected, others):
    """And so is what is not read of a record, such as its label."""
    path = write(tmp_path / name, content)
    if expected is None:
        with pytest.raises(DataError, match="0 others that hold text"):
            read_documents(path)
        assert texts(path, text_field="sentence") == ["42"]
    else:
        documents = read_documents(path)
        assert " ".join(document.text for document in documents.items) == expected
        field = "text" if "text" in content else "review"
        described = f", each the field {field!r} of a record" + (f"; fields not read: {others}" if others else "")
        assert documents.described.endswith(described)


@pytest.mark.parametrize(
    "row", ["A fine film, in its way.", "7", "-3.5", "1,200", "what a long and pointless film", "x" * 61]
)
@pytest.mark.parametrize("label", [True, False])
def test_a_csv_without_names_loses_no_document(tmp_path, row, label):
    """Its first row would be taken for them."""
    file = io.StringIO(newline="")
    csv.writer(file).writerows([[row, *["pos"] * label], ["another text", *["neg"] * label]])
    with pytest.raises(
        DataError, match=r"begins with a row, .*, where the names of its columns should stand"
    ) as caught:
        read_documents(write(tmp_path / "r.csv", file.getvalue()))
    assert_two_lines(caught.value)
    named = write(tmp_path / "named.csv", "text" + ",label" * label + "\n" + file.getvalue())
    assert texts(named) == [row.strip(), "another text"]


@pytest.mark.parametrize("name", ["text", "Review Text", "user id (hashed)", "überschrift", "a/b", "q1"])
def test_names_of_columns_are_taken_for_names(tmp_path, name):
    assert texts(write(tmp_path / "r.csv", f"{name},n\nsome text,1\n"), text_field=name) == ["some text"]


def test_longer_documents_are_dropped_if_that_is_wanted(tmp_path):
    path = write(tmp_path / "r.jsonl", '{"text": "12345"}\n{"text": "1234"}\n{"text": " "}')
    documents = read_documents(path, DocumentsConfig(max_characters=4, longer="drop"))
    assert (documents.items, documents.cut) == ([Document("1234")], 0)
    assert documents.described.endswith("; 1 blank and left out; 1 longer than 4 characters left out")
    with pytest.raises(DataError, match=r"all 2 documents in .* are longer than max_characters = 3"):
        read_documents(path, DocumentsConfig(max_characters=3, longer="drop"))
    with pytest.raises(ConfigError, match="longer = 'drop' drops nothing"):
        DocumentsConfig(longer="drop")


def test_what_is_not_read_of_a_folder_is_said(tmp_path):
    for name in ("a.txt", "b.pdf", "sub/c.PDF", "sub/d.jsonl", "LICENSE", ".hidden.txt", ".git/x"):
        write(tmp_path / name, '{"text": "x"}')
    assert read_documents(tmp_path).described.endswith("; 3 other files not read: LICENSE, .pdf")
    assert read_documents(tmp_path, DocumentsConfig(text_field="text")).described.endswith(
        "; 4 other files not read: LICENSE, .txt, .pdf"
    )


def test_documents_that_validate_may_have_a_file_of_their_own(tmp_path):
    """All of them validate, and what they share with the others is not learned."""
    train = write(tmp_path / "train.jsonl", "\n".join(json.dumps({"text": str(n)}) for n in range(37)))
    val = write(tmp_path / "val.jsonl", "\n".join(json.dumps({"text": str(n)}) for n in range(31, 48)))
    documents = with_validation(read_documents(train), read_documents(val))
    assert str(val) in documents.described
    learned, validating = split(documents.items, None, None, 3, documents.validation)
    assert sorted(int(d.text) for d in learned) == [*range(31)]
    assert sorted(int(d.text) for d in validating) == [*range(31, 48)]
    fewer, some = split(documents.items, 7, 5, 3, documents.validation)
    assert (fewer, some) == (learned[:7], validating[:5])
    with pytest.raises(DataError, match="train_size = 32, and there are 31 documents that differ"):
        split(documents.items, 32, None, 3, documents.validation)


def test_long_texts_are_cut_and_have_no_end(tmp_path):
    path = write(tmp_path / "r.jsonl", '{"p": "a long prompt", "c": "12345"}\n{"p": "", "c": "1234"}')
    documents = read_documents(path, DocumentsConfig(prompt_field="p", completion_field="c", max_characters=4))
    assert documents.items == [Document("1234", "a long prompt", whole=False), Document("1234")]
    assert documents.cut == 1
    assert documents.described.endswith("; 1 cut to 4 characters")


def test_a_cell_may_be_as_long_as_a_novel(tmp_path):
    limit = csv.field_size_limit()
    novel = "word, " * 30_000
    assert len(novel) > limit
    assert texts(write(tmp_path / "r.csv", f'text,n\n"{novel}",1\n')) == [novel.strip()]
    assert csv.field_size_limit() == limit, "other users of the csv module find it as it was"


ANYTHING = strategies.lists(
    strategies.text(
        strategies.one_of(
            strategies.characters(codec="utf-8", exclude_characters="\0"), strategies.sampled_from('\r\n",😀é')
        )
    )
)


def cleaned(written):
    lines = [text.replace("\r\n", "\n").replace("\r", "\n").strip() for text in written]
    return [line for line in lines if line] + ["last"]


def read_back(name, content):
    with tempfile.TemporaryDirectory() as folder:
        return texts(write(Path(folder) / name, content))


@settings(max_examples=40)
@given(ANYTHING, strategies.booleans(), strategies.sampled_from([("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_MINIMAL)]))
def test_what_the_csv_module_writes_is_read(written, mark, style):
    """Not "\\n" with QUOTE_MINIMAL: Python 3.11 then leaves a CR without quotes, and cannot read that back itself."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator=style[0], quoting=style[1])
    writer.writerows([["id", "text"], *enumerate(written), [7, "last"]])
    assert read_back("r.csv", ("\ufeff" if mark else "") + file.getvalue()) == cleaned(written)


@settings(max_examples=40)
@given(ANYTHING, strategies.booleans(), strategies.booleans(), strategies.sampled_from(["\n", "\r\n"]))
def test_what_the_json_module_writes_is_read(written, mark, ascii_only, end):
    lines = [
        json.dumps({"id": n, "text": text}, ensure_ascii=ascii_only) + end for n, text in enumerate([*written, "last"])
    ]
    assert read_back("r.jsonl", ("\ufeff" if mark else "") + "".join(lines)) == cleaned(written)
    if written:  # one object alone may be anything
        assert read_back("r.json", ("\ufeff" if mark else "") + "".join(lines)) == cleaned(written)


@settings(max_examples=40)
@given(ANYTHING, strategies.booleans(), strategies.booleans(), strategies.sampled_from([None, 3]))
def test_an_array_of_records_is_read_as_the_same_records_in_lines(written, mark, ascii_only, indent):
    records = [{"id": n, "text": text} for n, text in enumerate([*written, "last"])]
    content = json.dumps(records, ensure_ascii=ascii_only, indent=indent)
    assert read_back("r.json", ("\ufeff" if mark else "") + content + "\n") == cleaned(written)


def test_columns_that_pandas_has_numbered_have_names(tmp_path):
    series = write(tmp_path / "series.csv", ",0\n0,one text\n1,another one\n")
    assert texts(series) == ["one text", "another one"]
    frame = write(tmp_path / "frame.csv", ",0,1\n0,7,one text\n1,8,another one\n")
    assert texts(frame) == ["one text", "another one"]
    assert texts(write(tmp_path / "alone.csv", "0\none text\nanother one\n")) == ["one text", "another one"]
    assert texts(write(tmp_path / "pair.csv", "0,1\n7,one text\n8,another one\n")) == ["one text", "another one"]
    for row in (",1\n", "1\n", "1,2\n", "a,0\n"):
        with pytest.raises(DataError, match="begins with a row"):
            texts(write(tmp_path / "row.csv", row + series.read_text(encoding="utf-8")))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_that_says_what_separates_its_cells(tmp_path, separator):
    """As Excel is told it; the numbers of lines stay those of the file."""
    rows = ["sep=", "id,text", "7,one text", "8,another one"]
    content = "\r\n".join(rows).replace(",", separator).replace("=", f"={separator}")
    assert texts(write(tmp_path / "x.csv", content)) == ["one text", "another one"]
    with pytest.raises(DataError, match="line 5 has 1 cells"):
        texts(write(tmp_path / "x.csv", content + "\r\n9"))


def test_an_array_is_read_where_it_is_named_and_not_where_it_is_met(tmp_path):
    """In a folder it is most often somebody's settings."""
    write(tmp_path / "a.jsonl", '{"text": "in lines"}\n')
    array = write(tmp_path / "B.JSON", '[{"text": "in an array", "id": 7}]')
    assert texts(array) == ["in an array"]
    folder = read_documents(tmp_path)
    assert [document.text for document in folder.items] == ["in lines"]
    assert folder.described.endswith("1 other file not read: .json")


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "fields", "what"),
    [
        ("r.csv", "id,review\n1,x\n", {"text_field": "body"}, "line 2 has no field 'body'; its fields: id, review"),
        ("r.jsonl", '{"text": "x"}\n\n{"txt": "y"}\n', {}, "line 3 has no field 'text'; its fields: txt"),
        ("r.jsonl", '{"text": "x"}\n{"text": ["y"]}\n', {}, "line 2: the field 'text' holds [\"y\"], and no text"),
        ("r.jsonl", '{"text": "x"}\n{"text": "ab\\ud83d"}', {},
         "line 2: the field 'text' holds half a character, '\\ud83d' at 2"),
        ("r.jsonl", '{"text": null}\n', {}, "line 1: the field 'text' holds null, and no text"),
        ("r.jsonl", '{"p": "x", "c": "y"}\n{"c": "y"}\n', {"prompt_field": "p", "completion_field": "c"},
         "line 2 has no field 'p'; its fields: c"),
        ("r.jsonl", '{"text": "x"}\n{"text": "y"\n', {}, "line 2 is not JSON: Expecting ',' delimiter"),
        ("r.jsonl", '{"text": "x"}\n' + "[" * 100_000, {}, "line 2 is not JSON: maximum recursion depth exceeded"),
        ("r.jsonl", '{"text": "x"}\n["y"]\n', {}, "line 2 holds a JSON list, and no object"),
        ("r.jsonl", '{"title": "x", "body": "y"}', {},
         "no field 'text', and 2 others that hold text; its fields: title, body"),
        ("r.json", '[{"text": "x"},\n\n{"txt": "y"}]', {}, "r.json, record 2 has no field 'text'; its fields: txt"),
        ("r.json", '[{"text": "x"}, {"text": "ab\\ud83d"}]', {},
         "record 2: the field 'text' holds half a character, '\\ud83d' at 2"),
        ("r.json", '[{"text": "x"}, {"text": "y"}, {"text": "z", "text": "z"}]', {},
         "record 3 is not JSON: the key 'text' is there twice"),
        ("r.json", '[{"text": "x"}, {"text": "y"},\n ' + "[" * 100_000, {},
         "record 3 is not JSON: maximum recursion depth exceeded"),
        ("r.json", '[{"text": "x"}, {"text": "y"\n', {}, "record 2 is not JSON: Expecting ',' delimiter: line 2"),
        ("r.json", '[{"text": "x"} {"text": "y"}]', {}, "record 2 is not JSON: Expecting ',' delimiter: line 1"),
        ("r.json", '[{"text": "x"},]', {}, "record 2 is not JSON: "),
        ("r.json", '[{"text": "x"}', {}, "record 2 is not JSON: Expecting ',' delimiter"),
        ("r.json", '[{"text": "x"}] []', {}, "record 2 is not JSON: Extra data"),
        ("r.json", '[{"text": "x"}, ["y"]]', {}, "record 2 holds a JSON list, and no object"),
        ("r.json", '{"text": "x"}', {}, "r.json holds no array of records"),
        ("r.json", '"text"', {}, "r.json holds no array of records"),
        ("r.json", " [ ] ", {}, "has no records"),
        ("r.csv", 'text\n"x\ny\n', {}, "line 3 is not CSV: unexpected end of data"),
        ("r.csv", "text,n\nx,1\ny,z,2\n", {}, "line 3 has 3 cells where the header has 2"),
        ("r.csv", "text;n\nx;1\n", {}, "r.csv has one column, 'text;n': its cells seem to be separated by ';'"),
        ("r.csv", "id\ttext\n1\tx, y\n", {}, "its cells seem to be separated by '\\t'"),
        ("r.csv", "text,n,text\nx,1,y\n", {}, "r.csv has 2 columns called 'text'"),
        ("r.csv", "text\n", {}, "has no records"),
        ("r.jsonl", '{"text": " "}\n{"text": "\\n\\t"}\n', {}, "there are no documents in .*: all 2 are blank"),
        ("r.txt", " \n\n \t\n", {}, "there are no documents in .*: all 1 are blank"),
        ("r.txt", b"a\xff", {}, "r.txt is not UTF-8 text: byte 0xff at offset 1"),
        ("r.txt", "x", {"text_field": "text"}, "r.txt does not end in .jsonl or .ndjson or .csv or .tsv"),
        ("r.parquet", "x", {}, "r.parquet does not end in .txt or .md"),
        ("folder/image.png", b"\x89PNG", {}, "has no file that ends in .txt or .md"),
        ("r.txt", "x", {"prompt_field": "p"}, "prompt_field = 'p' and completion_field = '' are no pair"),
        ("r.txt", "x", {"text_field": "t", "prompt_field": "p", "completion_field": "c"},
         "text_field = 't' contradicts completion_field = 'c'"),
    ],
)  # fmt: skip
def test_bad_input_is_named_in_two_lines(tmp_path, name, content, fields, what):
    path = write(tmp_path / name, content)
    with pytest.raises((DataError, ConfigError)) as caught:
        read_documents(path.parent if "/" in name else path, DocumentsConfig(**fields))
    pattern = what if ".*" in what else re.escape(what)
    assert re.search(pattern, caught.value.what)
    assert_two_lines(caught.value)


def assert_two_lines(error: MiniGPTError) -> None:
    assert len(str(error).split("\n")) == 2
    assert len(error.how) > 10


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(MissingFileError, match=re.escape(f"there is no file or folder {tmp_path / 'reviews.jsonl'}")):
        read_documents(tmp_path / "reviews.jsonl")


def test_a_corpus_of_minigpts_is_not_made_of_documents():
    with pytest.raises(MissingFileError, match=r"folder verse\n.*: the corpus verse is not made of documents"):
        read_documents("verse")


# --- Split ------------------------------------------------------------------------------------------------------------

MANY = [Document(str(n)) for n in range(101)]


def test_a_split_is_disjoint_complete_and_reproducible():
    train, val = split(MANY, None, None, seed=3)
    assert (len(train), len(val)) == (91, 10)
    assert sorted(train + val, key=lambda document: int(document.text)) == MANY
    assert (train, val) == split(MANY, None, None, seed=3)
    assert val != split(MANY, None, None, seed=4)[1]
    assert [document.text for document in train] != sorted((document.text for document in train), key=int)


def test_sizes_are_kept_and_change_nothing_else():
    train, val = split(MANY, 53, 11, seed=3)
    assert (len(train), len(val)) == (53, 11)
    assert not {document.text for document in train} & {document.text for document in val}
    smaller, same = split(MANY, 7, 11, seed=3)
    assert smaller == train[:7]
    assert same == val


def test_no_copy_of_what_is_learned_validates():
    """Two copies of each and of the first a third; a prompt of its own makes a pair another document."""
    documents = [*MANY, *MANY, MANY[0], replace(MANY[0], prompt="Q: ")]
    for seed in range(5):
        train, val = split(documents, None, None, seed)
        assert (len(train), len(val)) == (92, 10)
        assert set(train) | set(val) == set(documents)
    with pytest.raises(DataError, match="need 103 documents, and there are 102 that differ"):
        split(documents, 93, 10, seed=0)


def test_every_document_is_chosen_equally_often():
    """1,000 splits of 101 documents, 11 to validate: binomial with n = 1000, p = 11/101, sigma 9.85; five of them."""
    counts = dict.fromkeys(MANY, 0)
    for seed in range(1000):
        for document in split(MANY, 1, 11, seed)[1]:
            counts[document] += 1
    assert all(abs(count - 1000 * 11 / 101) < 5 * 9.85 for count in counts.values())


@pytest.mark.parametrize(
    ("number", "sizes", "what"),
    [
        (101, (95, 11), "train_size = 95 and val_size = 11 need 106 documents, and there are 101"),
        (101, (101, None), "train_size = 101 and val_size = 10 need 111 documents, and there are 101"),
        (101, (None, 101), "val_size = 101 leaves none of 101 documents to train on"),
        (1, (None, None), "there are fewer than 2 documents that differ"),
        (101, (0, 5), "train_size = 0 is too small"),
        (101, (5, -1), "val_size = -1 is too small"),
    ],
)
def test_a_split_of_more_than_there_is_says_the_numbers(number, sizes, what):
    with pytest.raises(DataError, match=what) as caught:
        split(MANY[:number], *sizes, seed=0)
    assert_two_lines(caught.value)


@pytest.mark.parametrize("size", [None, 1])
def test_nothing_is_left_to_train_on_if_all_of_it_validates(size):
    with pytest.raises(DataError, match=r"^all 7 documents to train on are in val_data too") as caught:
        split(MANY[:7], size, None, seed=0, validation=MANY[:11])
    assert "leave val_data out" in caught.value.how
    assert_two_lines(caught.value)


# --- Keywords ---------------------------------------------------------------------------------------------------------


def test_keywords_by_hand():
    """N = 3. Of the first: "film" is in 3, "a" in 2, "wasabi" and "isn't" in 1; ln 4/4 = 0, ln 4/3, ln 4/2 = 0.69; and
    "a" is there three times, 3 ln 4/3 = 0.86. Equals, "Wasabi" and "isn't", stay in the order of the text."""
    training = [Document("A film, a Wasabi film: a film isn't 2"), Document("a FILM"), Document("film é")]
    (first, *_), k = training, 3
    assert 3 * math.log(4 / 3) > math.log(2) > math.log(4 / 3)
    (found,) = with_keywords([first], k, training)
    assert found == Document(first.text, "keywords: a, wasabi, isn't\n")
    assert keyword_line(["a", "wasabi", "isn't"]) == found.prompt


def test_keywords_stand_before_the_prompt_and_need_no_word():
    training = [Document("one two"), Document("two")]
    found = with_keywords([Document("new two", "Q: ", whole=False), Document("42!")], 1, training)
    assert found == [Document("new two", "keywords: new\nQ: ", whole=False), Document("42!", "keywords: \n")]
    with pytest.raises(ConfigError, match="k = 0"):
        with_keywords(training, 0, training)


# --- The real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize("name", ["pos", "neg"])
def test_real_reviews(shared_cache, name):
    path = shared_cache / "movie-reviews" / f"{name}.txt"
    if not path.is_file():
        pytest.skip("needs MINIGPT_CACHE to name a folder that holds movie-reviews/{pos,neg}.txt")
    documents = read_documents(path)
    assert len(documents.items) == 5331 == path.read_bytes().count(b"\n")
    assert documents.blank == 0
    assert documents.described.endswith("5,331 documents, each a line")
    train, val = split(documents.items, 3000, 500, seed=0)
    assert not {document.text for document in train} & {document.text for document in val}
    (found,) = with_keywords(val[:1], 3, train)
    assert all(word in found.text for word in found.prompt.removeprefix("keywords: ").strip().split(", "))
