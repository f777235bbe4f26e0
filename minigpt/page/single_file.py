"""The page, a tokenizer and weights as one HTML file, which needs no server, no network and no other file.

Everything that the server would answer is an element of the file instead (static/source.js reads both). Data come
behind the page's script, so that a file that was cut off can still say so. The file's own policy lets it load nothing
from anywhere, and run no script except those that were written into it.
"""

import base64
import hashlib
import html
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minigpt.errors import InputError, named, passed
from minigpt.page.bundle import bundle, check_inline
from minigpt.page.contents import Shown
from minigpt.page.server import CODE, STATIC
from minigpt.page.weights import Precision
from minigpt.system.files import atomic_write

# The largest file for which a precision is chosen, in bytes; above the last of them a page had better be served.
LIMITS: dict[Precision, int] = {"float32": 10**6, "float16": 5 * 10**7, "int8": 2 * 10**8}
_BYTES: dict[Precision, int] = {"float32": 4, "float16": 2, "int8": 1}  # of a weight
_PIECE = 3 * 2**20  # bytes of weights in one element: no browser keeps a text of any length

_STYLE = re.compile(r'<link rel="stylesheet" href="([\w.-]+)">')
_SCRIPT = re.compile(r'<script type="module" src="([\w.-]+)"></script>')
_TITLE = re.compile(r"<title>[^<]*</title>")
# What else would ask for a file, and scripts and styles that the file's policy would not know.
_LOADING = re.compile(
    r'\b(?:src|href|srcset|action|poster)\s*=\s*(?!"(?:#|data:))[^\s>]*|<(?:script|style)\b', re.IGNORECASE
)
_LOADING_STYLE = re.compile(r"@import|url\(", re.IGNORECASE)

_WHOLE = "minigpt-whole"  # the id of the last element
# The first script. It stands before everything that may be cut off, and reads nothing but the end.
_GUARD = f"""
addEventListener("DOMContentLoaded", () => {{
  if (document.getElementById("{_WHOLE}")) return;
  document.body.textContent =
    "This file is not whole: its end is missing, because it was cut off while it was copied or downloaded. " +
    "Get it again from where it came from, or make it anew with minigpt explore -o.";
}});
"""


def file_size(parameters: int, precision: Precision) -> int:
    """About how many bytes a file has: its weights in base64, and the page."""
    return parameters * _BYTES[precision] * 4 // 3 + sum(path.stat().st_size for path in STATIC.rglob("*.js"))


def chosen_precision(names: Sequence[str], parameters: int, wanted: Precision | None = None) -> Precision:
    """How to keep the weights of models in one file: as is wanted, else the most exact kind that is not too large.

    Raises:
        InputError: if the file would be larger than browsers open.
    """
    most = max(LIMITS.values())
    for precision in (wanted,) if wanted else LIMITS:
        size = file_size(parameters, precision)
        if size <= (most if wanted else LIMITS[precision]):
            return precision
    smaller = f"write it with {passed('weights', 'int8')}, or " if file_size(parameters, "int8") <= most else ""
    raise InputError(
        f"a file with the {parameters:,} weights of {' and '.join(names)} in {precision} would have {size / 1e6:,.0f} "
        f"MB, and the largest that is written has {most / 1e6:.0f}: browsers take too long, or too much memory",
        f"{smaller}serve it, without {named('out')}",
    )


def write_page(path: Path, models: Sequence[Shown], static: Path = STATIC) -> int:
    """Write a page with models in it, completely or not at all.

    Args:
        path: of the file; missing folders are made, and a file of this name is replaced.
        models: what the page shows, at least one.
        static: the folder of the page's own files.

    Returns:
        The size of the file in bytes.

    Raises:
        OSError: if it cannot be written.
    """
    with atomic_write(path) as file:
        for part in parts(models, static):
            file.write(part)
        return file.tell()


def parts(models: Sequence[Shown], static: Path = STATIC) -> Iterator[bytes]:
    """The file, piece by piece: the page, then the models, then the mark of its end."""
    before, after = page(models[0].name, static)
    yield before.encode("utf-8", errors="replace")  # the name may have half a character
    yield _data("minigpt-code", CODE.read_text(encoding="utf-8"))
    for number, model in enumerate(models):
        crc = 0
        for piece in model.weights.pieces():
            crc = zlib.crc32(piece, crc)
        yield _data(f"minigpt-model-{number}", {**model.model_json(), "crc32": crc})
        if (run := model.run_json()) is not None:
            yield _data(f"minigpt-run-{number}", run)
        for content in _gathered(model.weights.pieces()):
            yield f'<script type="text/plain" class="minigpt-weights-{number}">'.encode()
            yield base64.b64encode(content)
            yield b"</script>\n"
    yield f'<script type="text/plain" id="{_WHOLE}"></script>\n{after}'.encode()


def page(name: str, static: Path = STATIC) -> tuple[str, str]:
    """The page with its styles and scripts in it: what stands before its data, and what behind.

    Raises:
        ValueError: if the page loads something in a way that is not understood here.
    """
    text = (static / "index.html").read_text(encoding="utf-8")
    if found := _LOADING.search(_SCRIPT.sub("", _STYLE.sub("", text))):
        raise ValueError(f"index.html has {found[0]!r}: it would load something")
    allowed = {"script-src": [_GUARD], "style-src": []}

    def inline(kind: str, start: str, content: str, end: str) -> str:
        allowed[kind].append(content)
        return f"{start}{content}{end}"

    def style(found: re.Match[str]) -> str:
        content = (static / found[1]).read_text(encoding="utf-8")
        check_inline(content, found[1])
        if loading := _LOADING_STYLE.search(content):
            raise ValueError(f"{found[1]} has {loading[0]!r}: it would load something")
        return inline("style-src", "<style>", content, "</style>")

    def script(found: re.Match[str]) -> str:
        return inline("script-src", '<script type="module">', bundle(found[1], static), "</script>")

    text = _SCRIPT.sub(script, _STYLE.sub(style, text))
    text = _TITLE.sub(lambda _: f"<title>{html.escape(name)} · minigpt</title>", text)
    sources = "; ".join(" ".join([kind, *map(_hash, contents)]) for kind, contents in allowed.items())
    nothing = "default-src 'none'; base-uri 'none'; form-action 'none'"
    policy = f"{nothing}; {sources}; worker-src blob:; img-src data: blob:"
    first = f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
    first += f'<script id="minigpt-file">{_GUARD}</script>'
    head, charset, rest = text.partition('<meta charset="utf-8">')
    before, body, after = rest.partition("</body>")
    if not charset or not body or len(allowed["script-src"]) != 2:
        raise ValueError("index.html lacks its charset, its one module, or the end of its body")
    worker = f'<script type="text/plain" id="minigpt-worker">"use strict";\n{bundle("worker.js", static)}</script>\n'
    return f"{head}{charset}\n{first}{before}{worker}", f"{body}{after}"


def _gathered(pieces: Iterator[memoryview]) -> Iterator[bytes]:
    """The same bytes in pieces of `_PIECE`, which base64 spells without padding in between."""
    waiting = bytearray()
    for piece in pieces:
        waiting += piece
        while len(waiting) >= _PIECE:
            yield bytes(waiting[:_PIECE])
            del waiting[:_PIECE]
    if waiting:
        yield bytes(waiting)


def _data(name: str, content: Any) -> bytes:
    """An element that holds JSON. Every < in it is spelled as an escape, so that nothing in it can end the element."""
    text = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>\n'.encode("ascii")


def _hash(script: str) -> str:
    """How a policy names a script or a style that stands in the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode('utf-8')).digest()).decode('ascii')}'"
