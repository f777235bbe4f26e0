"""Writing a file so that it is either whole or not there, and reading one that may be something else than it seems."""

import codecs
import errno
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from minigpt.errors import CheckpointError, InputError, MissingFileError, first_line

LOCK = ".lock"  # held by the process that trains in a run directory
FETCH_AGAIN = "copy or download it again from where it came from"

_LARGEST_TEXT = 2**26  # bytes; GPT-2's tokenizer has 1.4 million, and a vocabulary of every character there is, 21


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that takes its name only when the block ends well.

    The bytes go to a temporary file in the same folder, reach the disk, and then replace `path` in one step: whoever
    reads `path` at any moment, or after a crash, finds the old content or the new, never a part.

    Raises:
        OSError: if the folder cannot be written; `path` is as it was, and nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; this one is as open as any other
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, whose files appear in `folder` only when the block ends well.

    Args:
        folder: must not exist, and then it appears in one step, or be empty.

    Raises:
        OSError: if the folder cannot be written; neither it nor its parents are then new.
    """
    new_parents = [parent for parent in folder.parents if not parent.exists()]  # the innermost first
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".minigpt-") as temporary:
            part = Path(temporary) / "part"  # as open as any other folder, which the temporary one is not
            part.mkdir()
            yield part
            if folder.exists():  # it may be a link or a mount, so it stays
                for file in sorted(part.iterdir()):
                    file.replace(folder / file.name)
            else:
                part.replace(folder)
            sync_folder(folder.parent)
    except BaseException:
        with suppress(OSError):  # somebody else may have written there meanwhile
            for parent in new_parents:
                parent.rmdir()
        raise


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk: a renamed file is safe from a power cut only when its folder is."""
    if os.name == "posix":  # elsewhere a folder cannot be opened, and the file system sees to it
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network drives know no such thing
                raise
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with its line ends kept, whole or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode("utf-8"))


def check_unused(path: Path) -> None:
    """Refuse a run directory that holds something already: no run overwrites another.

    Raises:
        CheckpointError: if the folder is not empty, or the path is a file.
    """
    for part in (path, *path.parents):
        if part.is_file():
            raise CheckpointError(f"{part} is a file", "name a folder that does not exist yet")
    if path.is_dir() and any(inside.name != LOCK for inside in path.iterdir()):
        raise CheckpointError(f"{path} is not empty: it may hold a run", "name another folder, or remove this one")


def check_output(path: Path, endings: Sequence[str]) -> None:
    """See before long work that its result can be written here; the folders that it needs are made later.

    Args:
        path: of the result.
        endings: those that say in which format, such as ".png".

    Raises:
        InputError: if the path ends otherwise, is a folder, or lies where no file can be made.
    """
    if path.suffix.lower() not in endings:
        raise InputError(
            f"{path} ends in {path.suffix or 'nothing'}, which says no format",
            f"choose a name that ends in {', '.join(endings)}",
        )
    if path.is_dir():
        raise InputError(f"{path} is a folder", "name a file in it")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise InputError(f"{folder} is a file, and {path} cannot be in it", "name a file in a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"nothing can be written to the folder {folder}", "choose another, or mend its permissions")


def first_bytes(path: Path) -> bytes:
    """The beginning of a file, once it is clear that it is none of the things often saved in the place of another.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is empty, a git-lfs pointer, or an HTML or XML page.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no file {path}", "check the path, and that all files were copied")
    with path.open("rb") as file:
        beginning = file.read(64)
    if not beginning:
        raise CheckpointError(f"{described(path)} is empty", FETCH_AGAIN)
    if beginning.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{described(path)} is a git-lfs pointer: it names the file that was meant to be here",
            "fetch that file: git lfs pull, or download it from the hub",
        )
    if (
        beginning.removeprefix(codecs.BOM_UTF8)
        .lstrip()
        .lower()
        .startswith((b"<!doctype", b"<html", b"<?xml", b"<error"))
    ):
        raise CheckpointError(
            f"{described(path)} is an HTML or XML page: a server's answer was saved in the place of the file",
            "download it again, and look at the page to see what went wrong",
        )
    return beginning


def read_text(path: Path) -> str:
    """The text of a small UTF-8 file.

    Raises:
        MissingFileError: if there is no such file.
        CheckpointError: if it is something else, or larger than 64 MiB.
    """
    first_bytes(path)
    if path.stat().st_size > _LARGEST_TEXT:
        raise CheckpointError(f"{described(path)} is larger than {_LARGEST_TEXT:,} bytes", FETCH_AGAIN)
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{described(path)} is not UTF-8 text: {error}", FETCH_AGAIN) from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises as `read_text`, and CheckpointError if the file holds something else."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{described(path)} is not JSON: {first_line(error, 200)}", FETCH_AGAIN) from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{described(path)} holds a JSON {type(content).__name__}, and no object", FETCH_AGAIN)
    return content


def described(path: Path) -> str:
    """A file and its size, for an error's line."""
    return f"{path} ({path.stat().st_size:,} bytes)"


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first ten of them, and how many more there are, for an error's line."""
    more = f" and {len(items) - 10:,} more" if len(items) > 10 else ""
    return separator.join(items[:10]) + more


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask
