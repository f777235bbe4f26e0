"""Writing files completely or not at all, and reading files that may not be what they seem.

A folder may come from somebody else and contain links to our files. So nothing that is written in a folder follows a
link there: a file or a folder gets its name by a rename, which replaces a link, and a file that is appended to is
checked after it was opened, when nobody can exchange it any more.
"""

import codecs
import errno
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from minigpt.errors import CheckpointError, DataError, InputError, MissingFileError, brief, first_line, named

try:
    import fcntl
except ModuleNotFoundError:  # on Windows nothing tells whether a process still writes, so nothing is cleared
    fcntl = None  # type: ignore[assignment]

FETCH_AGAIN = "copy or download it again from its source"

_UNFINISHED = ".minigpt-"  # how the temporary name of an unfinished file or folder begins
_PART = "part"  # the only thing in a folder with such a name
_LEFT_FOLDER = re.compile(re.escape(_UNFINISHED) + "[a-z0-9_]{8}")  # with the random part that `tempfile` makes
_LEFT_FILE = re.compile(re.escape(_UNFINISHED) + r".+\.[a-z0-9_]{8}\.tmp")
_BLANKS = " \t\n\r"  # JSON's white space
_LARGEST_TEXT = 2**26  # bytes; GPT-2's tokenizer has 1.4 million, a vocabulary of all Unicode characters 21 million


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes a file or a folder.

    An `OSError` in it that names no file, or a temporary one, is made to name `path`.
    """
    try:
        yield
    except OSError as error:
        parts = Path(error.filename).parts if isinstance(error.filename, str) else ()
        unfinished = [number for number, part in enumerate(parts) if part.startswith(_UNFINISHED)]
        if error.filename is None or unfinished:
            below = parts[unfinished[-1] + 2 :] if unfinished else ()  # the temporary folder and its _PART
            error.filename = str(path.joinpath(*below))
        raise


@contextmanager
def atomic_write(path: Path, root: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes its name only when the `with` ends without an error.

    The bytes go to a temporary file in the same folder, reach the disk, and then replace `path` in one step: reading
    `path` at any moment, or after a crash, gives the old content or the new, never a part.

    Args:
        path: of the file.
        root: a folder above it, such as a cache: no link is followed from there down to the file.

    Raises:
        OSError: if the folder cannot be written, or a link leads out of `root`; `path` is as it was, and nothing is
            left behind.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear(path.parent)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_UNFINISHED}{path.name[:20]}.", suffix=".tmp")
        temporary = path.parent / Path(name).name  # as relative as `path` is
        try:
            with _held(temporary):
                with os.fdopen(descriptor, "wb") as file:
                    _check_place(file.fileno(), temporary, root or path.parent)
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                with suppress(OSError):  # some mounts have permissions of their own
                    temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; give it the usual permissions
                temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def open_to_append(path: Path) -> IO[bytes]:
    """A file open for appending and truncating; it is made if it does not exist.

    Raises:
        OSError: if it cannot be written, is not a regular file, or is a link or a second name (hard link) of a file
            elsewhere. This is checked after opening, so nothing can take its place in between.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
    for careful in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # those that the system has
        flags |= getattr(os, careful, 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        _check_place(descriptor, path, path.parent)
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise OSError(errno.EPERM, "it is no file, or is a second name (hard link) of another file", str(path))
        return open(descriptor, "a+b")
    except BaseException:
        os.close(descriptor)
        raise


def _check_place(descriptor: int, path: Path, root: Path) -> None:
    """Raise if an open file is not the one at `path`, reached from `root` without following a link."""
    place = root.resolve() / path.relative_to(root)
    if place.parent.resolve() != place.parent or not os.path.samestat(os.fstat(descriptor), os.lstat(place)):
        raise OSError(errno.ELOOP, f"a link leads out of {root}, and is not followed", str(path))


def check_no_links(folder: Path) -> None:
    """Raise if a folder to work in contains a link: files written there would land elsewhere.

    Raises:
        CheckpointError: if it does; it names the link and its target.
    """
    for path in folder.iterdir():
        if path.is_symlink():
            raise CheckpointError(
                f"{path} is a link to {os.readlink(path)}: what is written there would land outside {folder}",
                "put what it leads to in its place, or remove it",
            )


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, whose files appear in `folder` only when the `with` ends without an error.

    Args:
        folder: must be empty, or not exist; in the latter case it appears in one step. It may be a link, or a mount.

    Raises:
        OSError: if the folder cannot be written; then no new folder is left behind.
    """
    folder = Path(os.path.realpath(folder))  # the target of a link need not exist yet
    if folder.exists():  # it may be a mount, or the only writable folder: so work inside it, and do not replace it
        with _temporary_folder(folder, folder) as part:
            yield part
            for file in sorted(part.iterdir()):
                file.replace(folder / file.name)
            sync_folder(folder)
        return
    new_parents = [parent for parent in folder.parents if not parent.exists()]  # the innermost first
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as part:
            yield part
    except BaseException:
        with suppress(OSError):  # another process may have written there meanwhile
            for parent in new_parents:
                parent.rmdir()
        raise


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which becomes `folder` in one step when the `with` ends without an error.

    Raises:
        OSError: if it cannot be written, or anything, even a link, has the name already; that is not changed.
    """
    with _temporary_folder(folder.parent, folder) as part:
        yield part
        part.replace(folder)
        sync_folder(folder.parent)


@contextmanager
def _temporary_folder(parent: Path, folder: Path) -> Iterator[Path]:
    """A folder in `parent` in which `folder` is written."""
    _clear(parent)
    with writing(folder), tempfile.TemporaryDirectory(dir=parent, prefix=_UNFINISHED) as name, _held(Path(name)):
        part = Path(name) / _PART  # with the usual permissions, which the temporary folder lacks
        part.mkdir()
        yield part


def leftovers(folder: Path) -> list[Path]:
    """The unfinished files and folders in `folder` that processes are writing, or wrote until they were killed."""
    return [path for path in folder.glob(f"{_UNFINISHED}*") if _is_ours(path)]


def _is_ours(path: Path) -> bool:
    try:
        if stat.S_ISREG(path.lstat().st_mode):
            return bool(_LEFT_FILE.fullmatch(path.name))
        return bool(_LEFT_FOLDER.fullmatch(path.name)) and {inside.name for inside in path.iterdir()} <= {_PART}
    except OSError:  # it is gone by now, or nobody's to read
        return False


def abandoned(folder: Path) -> list[Path]:
    """Those of the `leftovers` whose process does not live any more, as far as that can be known."""
    return [path for path in leftovers(folder) if _is_abandoned(path)]


def _is_abandoned(path: Path) -> bool:
    try:
        begun = (path / _PART).exists() if path.is_dir() else path.stat().st_size  # which comes after the lock
    except OSError:
        return False
    with _held(path) as free:
        return bool(begun) and free


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """A block that locks a file or folder, until the process ends in whatever way; false if that cannot be done.

    Then another process has locked it, or the system knows no such locks.
    """
    with ExitStack() as stack:
        free = False
        if fcntl:
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
        yield free


def _clear(folder: Path) -> None:
    """Remove what killed processes have left in a folder."""
    for path in abandoned(folder):
        with suppress(OSError):
            remove(path)


def make_way(path: Path, own: Collection[str]) -> str:
    """Remove what is at a path, or move it aside if it is a folder with other files than these: people keep theirs.

    Returns:
        Its new place, as a phrase for a line; "" if it was removed, or there was nothing.
    """
    if _has_others(path, own):
        stem = f"{path.name.lstrip('.')}-moved-aside"
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        aside = next(place for name in names if not os.path.lexists(place := path.parent / name))
        _move(path, aside)
        return f"{path} holds files that are not minigpt's, and is {aside} now"
    remove(path)
    return ""


def _has_others(path: Path, own: Collection[str]) -> bool:
    """Whether a path is a folder with other files than these."""
    return path.is_dir() and not path.is_symlink() and not {file.name for file in path.iterdir()} <= {*own}


def take_name(folder: Path, name: Path, own: Collection[str]) -> str:
    """Rename a folder to `name`, and remove the folder that had this name, or move it aside: see `make_way`."""
    kept = make_way(name, own) if _has_others(name, own) else ""
    with tempfile.TemporaryDirectory(dir=name.parent, prefix=_UNFINISHED) as rubbish:
        if name.exists() and not _renamed(name, Path(rubbish) / _PART):  # else it has its name while half removed
            remove(name)
        _move(folder, name)
    return kept


def _move(folder: Path, name: Path) -> None:
    """Give a folder a name that is free; where it cannot be renamed, copy it, and then remove it.

    Whatever interrupts this, one of the two is whole: the copy gets its name when all of it is on the disk.
    """
    if _renamed(folder, name):
        return sync_folder(name.parent)
    with new_folder(name) as part:
        for path in sorted(folder.rglob("*")):  # a folder comes before what is in it
            copy = part / path.relative_to(folder)
            if path.is_dir() and not path.is_symlink():
                copy.mkdir()
                continue
            shutil.copy2(path, copy, follow_symlinks=False)
            if not copy.is_symlink():
                with copy.open("rb") as file:
                    os.fsync(file.fileno())
            sync_folder(copy.parent)
    remove(folder)


def _renamed(folder: Path, name: Path) -> bool:
    """Rename a folder; false if the file system cannot, as an overlay one that came with a container's image."""
    try:
        folder.replace(name)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def remove(path: Path) -> None:
    """Remove a file, a link (but not its target), or a folder with everything in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk: without this, a power cut can undo the renaming of a file."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the file system does this itself
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives cannot do this
                raise
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, its line ends unchanged, completely or not at all.

    Half a character, as in a path that is not UTF-8, becomes an escape that JSON reads as the same.
    """
    with atomic_write(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


def named_path(name: object, what: str) -> Path:
    """The path that a user has given, with "~" replaced by the home folder; it need not exist.

    Args:
        name: a text or a path.
        what: the name of the argument or flag, for an error.

    Returns:
        The path; `named_path` of it gives the same path again.

    Raises:
        InputError: if `name` is neither, or empty, or no file can have this name.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"{named(what, name)} is no path", "give a text or a pathlib.Path")
    if name == "":  # as an unset variable of a shell; to pathlib it would be the working folder
        raise InputError(f"{named(what)} is empty, and no path", "give a path; . is the working folder")
    try:
        path = Path(os.path.expanduser(name))
        os.lstat(path)
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or half a character
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            why = getattr(error, "strerror", None) or error
            raise InputError(f"{named(what, str(name))} cannot name a file: {why}", "check the path") from None
    return path.absolute() if path.parts[:1] and path.parts[0].startswith("~") else path  # "./~" is a folder here


def check_unused(path: Path) -> None:
    """Raise if a folder is not empty, because nothing is overwritten, or if nothing can be written there.

    Raises:
        CheckpointError: if the folder is not empty, or the path or a part of it is a file or a pipe.
        InputError: if it cannot be written.
    """
    whole = Path(os.path.realpath(path))  # what a link leads to need not exist yet; of links in a circle, one is left
    for part in (whole, *whole.parents):
        if os.path.lexists(part) and not os.path.isdir(part):
            shown = path if part == whole else part
            kind = "a file, and " if shown.is_file() else ""
            raise CheckpointError(f"{shown} is {kind}no folder", "name a folder that does not exist yet")
    if path.is_dir() and {*path.iterdir()} - {*abandoned(path)}:
        raise CheckpointError(f"{path} is not empty", "name another folder, or remove this one")
    check_writable(path)


def check_writable(path: Path, how: str = "choose another, or mend its permissions") -> None:
    """Check, before long work, that a file or folder can be made at `path`; missing folders are made later.

    Raises:
        InputError: with the advice `how`, if nothing can be made there.
    """
    whole = Path(os.path.realpath(path))
    folder = next(place for place in (whole, *whole.parents) if place.is_dir())
    if not os.access(folder, os.W_OK | os.X_OK):
        frozen = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
        why = os.strerror(errno.EROFS if frozen else errno.EACCES)
        raise InputError(f"nothing can be written to the folder {folder}: {why}", how)


def check_output(path: Path, endings: Sequence[str]) -> None:
    """Check, before long work, that its result can be written to `path`; missing folders are made later.

    Args:
        path: of the result.
        endings: the possible endings, each of which stands for a format, such as ".png".

    Raises:
        InputError: if the path has another ending, is a folder, or no file can be made there.
    """
    if path.suffix.lower() not in endings:
        raise InputError(
            f"{path} ends in {path.suffix or 'nothing'}, which is no known format",
            f"choose a name that ends in {', '.join(endings)}",
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder", "name a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, and {path} cannot be in it", "name a file in a folder")
    check_writable(path)


def stand_in(beginning: bytes) -> Literal["nothing", "pointer", "page"] | None:
    """What stands in the place of the file that was wanted, if its first 64 bytes show it; None if they do not.

    "nothing": the file is empty. "pointer": a git-lfs pointer. "page": HTML or XML, by which a server says that it does
    not give the file.
    """
    text = beginning.removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if not beginning:
        return "nothing"
    if text.startswith(b"version https://git-lfs"):
        return "pointer"
    return "page" if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<error")) else None


def first_bytes(path: Path) -> bytes:
    """The first bytes of a file, after checking that it is not one of the things often saved in the place of another.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is empty, a git-lfs pointer, or an HTML or XML page.
    """
    if not path.is_file():
        there = "is no regular file" if path.exists() else "is a link that leads to no file"
        what = f"{path} {there}" if os.path.lexists(path) else f"there is no file {path}"
        raise MissingFileError(what, "check the path, and that all files were copied")
    with path.open("rb") as file:
        beginning = file.read(64)
    kind = stand_in(beginning)
    if kind == "nothing":
        raise CheckpointError(f"{described(path)} is empty", FETCH_AGAIN)
    if kind == "pointer":
        raise CheckpointError(
            f"{described(path)} is a git-lfs pointer: it names the file that was meant to be here",
            "fetch that file: git lfs pull, or download it from the hub",
        )
    if kind == "page":
        raise CheckpointError(
            f"{described(path)} is an HTML or XML page: a server's answer was saved instead of the file",
            "download it again, and look at the page to see what went wrong",
        )
    return beginning


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """The content of a file, or of a pipe until its writers close it; a pipe that nobody writes to is empty.

    Raises:
        OSError: if it cannot be read, has more than `most` bytes, or is neither (a device, which may have no end).
    """
    with open(path, "rb", opener=_open_at_once) as file:
        kind = os.fstat(file.fileno()).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        content = file.read(-1 if most is None else most + 1)
    if most is not None and len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def _open_at_once(path: str, flags: int) -> int:
    """As `os.open`, except that it does not wait for a pipe that nobody writes to."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if os.name == "posix":
        os.set_blocking(descriptor, True)  # opening must not wait for a writer; reading must
    return descriptor


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file, without the byte order mark that some editors put in front.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is not text, or larger than 64 MiB.
    """
    first_bytes(path)
    if path.stat().st_size > _LARGEST_TEXT:
        raise CheckpointError(f"{described(path)} is larger than {_LARGEST_TEXT:,} bytes", FETCH_AGAIN)
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{described(path)} is not UTF-8 text: {error}", FETCH_AGAIN) from None


def plain_text(content: bytes, name: str, how: str) -> str:
    """The text that people mean by these bytes: all line ends as line feeds, and no byte order mark.

    Raises:
        DataError: if they are not UTF-8 text. It calls them `name`, names the first wrong byte, and says `how` to mend
            it.
    """
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(f"{name} is not UTF-8 text: it starts with the byte order mark of UTF-16", how) from None
        byte = content[error.start]
        raise DataError(f"{name} is not UTF-8 text: byte 0x{byte:02x} at offset {error.start}", how) from error
    if "\0" in text:
        raise DataError(f"{name} is not UTF-8 text: byte 0x00 at offset {content.index(0)}", how)
    return with_line_feeds(text.removeprefix("\ufeff"))


def with_line_feeds(text: str) -> str:
    """The text with all line ends as line feeds."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parsed_json(text: str | bytes) -> Any:
    """The value of a JSON text, for every JSON file that is read. A key that occurs twice is an error here.

    Raises:
        ValueError: if it is no JSON, or has a key twice.
        RecursionError: if it is nested too deeply.
    """
    return json.loads(text, object_pairs_hook=_object, parse_int=_whole)


def json_items(text: str) -> Iterator[Any]:
    """The items of a JSON array, parsed one by one as by `parsed_json`, so that an error can say which one is wrong.

    Raises:
        ValueError: if it is no JSON array, or a key occurs twice.
        RecursionError: if an item is nested too deeply.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_int=_whole)
    at, mark = _past_mark(text, 0, "[")
    while mark != "]" and not (mark == "[" and text.startswith("]", at)):
        item, at = decoder.raw_decode(text, at)
        yield item
        at, mark = _past_mark(text, at, ",]")
    if text[at + (mark == "[") :].strip(_BLANKS):
        raise json.JSONDecodeError("Extra data", text, at)


def _past_mark(text: str, at: int, marks: str) -> tuple[int, str]:
    """Skip one of these marks, and white space around it; returns the index after them, and the mark."""
    found = re.compile(f"[{_BLANKS}]*([{re.escape(marks)}])[{_BLANKS}]*").match(text, at)
    if not found:
        raise json.JSONDecodeError(f"Expecting {marks[0]!r} delimiter", text, at)
    return found.end(), found[1]


def _whole(digits: str) -> int | float:
    """A whole number; one with more digits than Python reads is infinite, as 1e999 is."""
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"the key {brief(twice(name for name, _ in pairs)[0])} is there twice")
    return made


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises as `read_text`, and CheckpointError if the file holds something else."""
    text = read_text(path)
    try:
        content = parsed_json(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{described(path)} is not JSON: {first_line(error, 200)}", FETCH_AGAIN) from None
    if not isinstance(content, dict):
        what = f"{described(path)} holds a JSON {type(content).__name__}, and no object"
        raise CheckpointError(what, f"name the file that was meant, or {FETCH_AGAIN}")
    return content


def twice(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, in their order. One pass, because a file may have any number of names."""
    return [name for name, times in Counter(names).items() if times > 1]


def described(path: Path) -> str:
    """A file and its size, for an error's line."""
    return f"{path} ({path.stat().st_size:,} bytes)"


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first ten items, and how many more there are, for an error's line."""
    more = f" and {len(items) - 10:,} more" if len(items) > 10 else ""
    return separator.join(items[:10]) + more


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask
