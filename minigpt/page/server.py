"""The page at an address of this machine, for whoever sits at it and nobody else.

Any page that a browser has open can send requests to 127.0.0.1, and a name that somebody else owns can be made to mean
127.0.0.1 (DNS rebinding). So a request is answered only if it names this machine as its host, and was made by this page
or typed by a person. What is served is a table that is made at the start: no path of a request is looked up on the
disk. Nothing is written.
"""

import errno
import json
import os
import socketserver
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from minigpt.errors import InputError, named
from minigpt.page.contents import Shown

HOST = "127.0.0.1"
STATIC = Path(__file__).parent / "static"
CODE = Path(__file__).parent.parent / "model.py"  # which the page shows, at the line that computes what is seen
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
POLICY = (  # of the page: what it may load, and who may show it in a frame
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_MORE_PORTS = 20  # that are tried after the one that was asked for
_PATIENCE = 60  # seconds that a connection may be silent

Chunks = Iterable[bytes | memoryview]


@dataclass(frozen=True)
class Resource:
    """What is at one path.

    Attributes:
        kind: its media type.
        read: () -> its size in bytes, and its bytes.
    """

    kind: str
    read: Callable[[], tuple[int, Chunks]]


def resources(models: Sequence[Shown]) -> dict[str, Resource]:
    """Everything that is served, by its path: the page's own files, and the models, the first also without a number."""
    table = {f"/{path.relative_to(STATIC).as_posix()}": _file(path) for path in page_files()}
    table["/"] = _file(STATIC / "index.html")
    table["/model.py"] = _file(CODE)
    table["/models.json"] = _json(lambda: [model.name for model in models])
    for number, model in enumerate(models):
        for start in (f"/model/{number}/", *(["/"] if number == 0 else [])):
            table[f"{start}model.json"] = _json(model.model_json)
            table[f"{start}run.json"] = _json(model.run_json)
            table[f"{start}weights.bin"] = _weights(model)
    return table


def page_files() -> list[Path]:
    """The page's own files, which lie in the package."""
    return sorted(path for path in STATIC.rglob("*") if path.suffix in TYPES and path.is_file())


def _file(path: Path) -> Resource:
    return _in_one_piece(f"{TYPES.get(path.suffix, 'text/plain')}; charset=utf-8", path.read_bytes)


def _json(value: Callable[[], Any]) -> Resource:
    return _in_one_piece("application/json", lambda: json.dumps(value(), allow_nan=False).encode("ascii"))


def _weights(model: Shown) -> Resource:
    return Resource("application/octet-stream", lambda: (model.weights.size, model.weights.pieces()))


def _in_one_piece(kind: str, content: Callable[[], bytes]) -> Resource:
    def read() -> tuple[int, Chunks]:
        whole = content()
        return len(whole), [whole]

    return Resource(kind, read)


class PageServer(ThreadingHTTPServer):
    """A server of the page on the loopback address. It listens when it is made; `serve_forever` answers.

    Args:
        models: what the page shows, at least one.
        port: the first that is tried, or 0 for any.

    Raises:
        InputError: if neither this port nor one of those after it can be had.
    """

    allow_reuse_address = os.name == "posix"  # elsewhere it would let two servers have one port
    daemon_threads = True

    def __init__(self, models: Sequence[Shown], port: int) -> None:
        self.models = models
        self.resources = resources(models)
        super().__init__((HOST, port), PageHandler, bind_and_activate=False)
        last = min(port + _MORE_PORTS, 2**16 - 1)
        for candidate in range(port, last + 1):
            self.server_address = (HOST, candidate)
            try:
                self.server_bind()
                self.server_activate()
            except OSError as error:
                if error.errno == errno.EADDRINUSE and candidate < last:
                    continue
                self.server_close()
                raise _no_port(port, candidate, error) from None
            break
        names = (HOST, "localhost")
        self.hosts = {f"{name}:{self.server_port}" for name in names} | set(names if self.server_port == 80 else ())

    def server_bind(self) -> None:
        """Take the port. The base class would also ask the network for this machine's name."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    @property
    def address(self) -> str:
        """What a browser is to open."""
        return f"http://{HOST}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that broke off: the browser went elsewhere, or was closed."""


def _no_port(first: int, last: int, error: OSError) -> InputError:
    how = f"choose another {named('port')}, from 1024 to 65535"
    if error.errno == errno.EADDRINUSE:
        return InputError(f"every port from {first} to {last} is taken", how)
    return InputError(f"{named('port', first)} cannot be used: {error.strerror}", how)


class PageHandler(BaseHTTPRequestHandler):
    """Answers one request: a GET or a HEAD of a path that is in the server's table."""

    server: PageServer
    server_version, sys_version = "minigpt", ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        """Answer with the content."""
        self._answer(with_content=True)

    def do_HEAD(self) -> None:
        """Answer with the headers of a GET."""
        self._answer(with_content=False)

    def _answer(self, with_content: bool) -> None:
        if why := self._stranger():
            self.send_error(HTTPStatus.FORBIDDEN, why)
            return
        found = self.server.resources.get(self.path.partition("?")[0])
        if found is None:
            self.send_error(HTTPStatus.NOT_FOUND, "there is nothing of this name")
            return
        try:
            size, chunks = found.read()
        except OSError:  # of a run whose folder was moved
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            return
        self._begin(HTTPStatus.OK, found.kind, size)
        for chunk in chunks if with_content else ():
            self.wfile.write(chunk)

    def _stranger(self) -> str:
        """Why a request is not answered; "" if this page made it, or a person who opened the address."""
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or hosts[0].lower() not in self.server.hosts:
            return f"this is {self.server.address}, and no other host"
        if origin is not None and origin != f"http://{hosts[0].lower()}":
            return "another page may not ask"
        site, mode = (self.headers.get(f"Sec-Fetch-{name}") for name in ("Site", "Mode"))
        visit = mode == "navigate" and self.headers.get("Sec-Fetch-Dest") == "document"  # a link that was clicked
        return "" if site in (None, "none", "same-origin") or visit else "another page may not ask"

    def _begin(self, status: HTTPStatus, kind: str, size: int) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer with one line of plain text, which repeats nothing of the request."""
        status = HTTPStatus(code)
        if status == HTTPStatus.NOT_IMPLEMENTED:  # how the base class calls a method that there is no `do_` of
            status, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered"
        content = f"{message if status in (403, 404, 405) else status.phrase}\n".encode()
        self.close_connection = True
        self._begin(status, "text/plain; charset=utf-8", len(content))
        if getattr(self, "command", "") != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: the browser shows what went wrong."""
