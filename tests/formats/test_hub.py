"""A model from the hub: a small hub on this machine, the cache that all programs share, and no network at all.

huggingface_hub reads its variables when it is imported, so every call of `fetch_model` gets a process of its own.
"""

import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from minigpt.errors import DownloadError, MissingFileError
from minigpt.formats import hub

pytest.importorskip("huggingface_hub")

CALL = """
import json, os, sys
from minigpt.formats import hub
from minigpt.errors import MiniGPTError
hub._TIMEOUT = 2.0
hub._PATIENCE = float(os.environ.get("PATIENCE", hub._PATIENCE))
results = []
for name in sys.argv[1:]:
    try:
        results.append({"folder": str(hub.fetch_model(name))})
    except MiniGPTError as error:
        results.append({"type": type(error).__name__, "what": error.what, "how": error.how})
print(json.dumps(results))
"""
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"weights", "tokenizer.json": b"{}"}
INDEX = json.dumps({"weight_map": {"a": "x-1.safetensors", "b": "x-2.safetensors", "c": "x-1.safetensors"}}).encode()


@dataclass
class Hub:
    """What the little hub has, and what it was asked."""

    files: dict[str, dict[str, bytes]]
    status: dict[str, tuple[int, str]] = field(default_factory=dict)  # of a model: code and X-Error-Code
    requests: list[tuple[str, str]] = field(default_factory=list)  # (path, User-Agent)
    url: str = ""
    dripping: str = ""  # the file that comes a byte at a time
    closing: threading.Event = field(default_factory=threading.Event)

    def fetched(self) -> set[str]:
        return {path.split("/resolve/main/")[1] for path, _ in self.requests if "/resolve/" in path}


def handler_of(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append((self.path, self.headers["User-Agent"]))
            api = self.path.startswith("/api/models/")
            name, _, file = self.path.removeprefix("/api/models/").strip("/").partition("/resolve/main/")
            if name in hub.status and (not api or hub.status[name][1] != "GatedRepo"):
                self.answer(hub.status[name][0], error=hub.status[name][1])
            elif name not in hub.files:
                self.answer(401, error="RepoNotFound")  # as the real one does, lest private names be guessed
            elif api:
                siblings = [{"rfilename": file} for file in hub.files[name]]
                self.answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())
            elif file in hub.files[name]:
                self.answer(200, hub.files[name][file])
            else:
                self.answer(404, error="EntryNotFound")

        do_HEAD = do_GET  # noqa: N815

        def answer(self, status: int, body: bytes = b"", error: str = "") -> None:
            self.send_response(status)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET" and hub.dripping and self.path.endswith(hub.dripping):
                with suppress(OSError):
                    while not hub.closing.wait(0.01):
                        self.wfile.write(b"x")
            elif self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def little_hub() -> Iterator[Hub]:
    here = Hub({"org/whole": MODEL | {"pytorch_model.bin": b"code?", "flax_model.msgpack": b"", "README.md": b""}})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler_of(here)) as server:
        here.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield here
        here.closing.set()
        server.shutdown()
        thread.join()


def fetch(name: str, url: str, **variables: str) -> dict[str, str]:
    """What `fetch_model` returns or raises in a process of its own, whose cache is ./cache."""
    (result,) = fetch_each((name,), url, **variables)
    return result


def fetch_each(names: Sequence[str], url: str, **variables: str) -> list[dict[str, str]]:
    """The same of several, one after another in one process."""
    usual = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
    usual = {key: value for key, value in usual.items() if not key.lower().endswith("_proxy")}
    own = {"HF_ENDPOINT": url, "HF_HUB_CACHE": "cache", "HF_HOME": "home", "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CALL, *names], env=usual | own | variables, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def cache_model(name: str, files: dict[str, bytes]) -> Path:
    """The cache as huggingface_hub keeps it, by hand."""
    home = Path("cache", f"models--{name.replace('/', '--')}")
    folder = home / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.fixture
def nowhere() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_only_what_is_needed_is_fetched_and_only_once(little_hub):
    folder = Path(fetch("org/whole", little_hub.url)["folder"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == MODEL
    assert little_hub.fetched() == MODEL.keys()
    assert not any("torch" in agent or "telemetry" in path for path, agent in little_hub.requests)
    asked = len(little_hub.requests)
    assert fetch("org/whole", little_hub.url)["folder"] == str(folder.relative_to(Path.cwd()))
    assert len(little_hub.requests) == asked  # a whole model in the cache is used without a question


def test_shards_and_all_small_files(little_hub):
    files = {"config.json": b"{}", "model.safetensors.index.json": INDEX, "x-1.safetensors": b"1", "vocab.json": b"{}",
             "x-2.safetensors": b"2", "merges.txt": b"", "tokenizer_config.json": b"{}",
             "generation_config.json": b"{}"}  # fmt: skip
    little_hub.files["org/large"] = files | {"pytorch_model.bin": b""}
    folder = Path(fetch("org/large", little_hub.url)["folder"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == files


def test_a_bin_where_there_is_nothing_better(little_hub):
    little_hub.files["gpt2"] = {"config.json": b"{}", "pytorch_model.bin": b"x", "tokenizer.json": b"{}"}
    folder = Path(fetch("gpt2", little_hub.url)["folder"])
    assert (folder / "pytorch_model.bin").read_bytes() == b"x"


def test_what_the_cache_lacks_is_fetched(little_hub):
    cache_model("org/whole", {"config.json": MODEL["config.json"]})
    folder = Path(fetch("org/whole", little_hub.url)["folder"])
    assert {file.name for file in folder.iterdir()} == MODEL.keys()


def test_a_model_that_does_not_exist(little_hub):
    error = fetch("org/unknown", little_hub.url)
    assert error["type"] == "MissingFileError"
    assert "the hub has no model 'org/unknown'" in error["what"]


def test_a_model_that_is_gated(little_hub):
    little_hub.files["org/gated"] = MODEL
    little_hub.status["org/gated"] = (403, "GatedRepo")
    error = fetch("org/gated", little_hub.url)
    assert error["type"] == "DownloadError"
    assert "only to people who have agreed to its terms" in error["what"]
    assert "HF_TOKEN" in error["how"]


@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"config.json": b"{}", "tf_model.h5": b""}, "org/part on the hub has no weights that minigpt reads"),
        ({"model.safetensors": b""}, "org/part on the hub has no config.json"),
    ],
)
def test_a_model_that_lacks_a_file(little_hub, files, what):
    little_hub.files["org/part"] = files
    error = fetch("org/part", little_hub.url)
    assert (error["type"], error["what"]) == ("MissingFileError", what)
    assert not Path("cache").exists()


def assert_says_what_to_do(error: dict[str, str], lacking: str) -> None:
    assert error["type"] == "DownloadError"
    assert "\n" not in error["what"] + error["how"]
    assert f"the cache cache lacks {lacking}" in error["what"]
    assert f"copy the files {lacking} from a machine" in error["how"]


def test_no_network_and_nothing_in_the_cache(nowhere):
    lacking = "config.json, model.safetensors, tokenizer.json"
    assert_says_what_to_do(fetch("gpt2", nowhere), lacking)
    assert_says_what_to_do(fetch("gpt2", nowhere, HF_HUB_OFFLINE="1"), lacking)


def test_no_network_and_a_part_in_the_cache(nowhere):
    cache_model("gpt2", {"config.json": b"{}", "model.safetensors.index.json": INDEX, "x-1.safetensors": b""})
    assert_says_what_to_do(fetch("gpt2", nowhere), "x-2.safetensors, vocab.json, merges.txt")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_no_network_and_all_in_the_cache(nowhere, offline):
    folder = cache_model("gpt2", MODEL)
    assert Path(fetch("gpt2", nowhere, HF_HUB_OFFLINE=offline)["folder"]) == folder


@pytest.mark.parametrize("name", hub.OTHER_NAME)
def test_one_model_under_two_names(nowhere, name):
    other = hub.OTHER_NAME[name]
    assert hub.OTHER_NAME[other] == name
    assert "/" in name + other
    cache_model(other, {"config.json": b"{}"})
    assert_says_what_to_do(fetch(name, nowhere), "model.safetensors, vocab.json, merges.txt")
    folder = cache_model(name, MODEL)
    assert [Path(found["folder"]) for found in fetch_each((name, other), nowhere)] == [folder, folder]


def test_what_is_fetched_under_one_name_is_found_under_the_other(little_hub, nowhere):
    little_hub.files["openai-community/gpt2"] = MODEL
    folder = fetch("openai-community/gpt2", little_hub.url)["folder"]
    assert fetch("gpt2", nowhere)["folder"] == str(Path(folder).absolute().relative_to(Path.cwd()))


def test_a_model_without_a_tokenizer(little_hub, nowhere):
    weights = {"config.json": b"{}", "model.safetensors": b"weights"}
    little_hub.files["org/bare"] = weights
    folder = Path(fetch("org/bare", little_hub.url)["folder"])
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == weights
    assert Path(fetch("org/bare", nowhere)["folder"]).samefile(folder)
    cache_model("gpt2", weights)
    little_hub.files["gpt2"] = MODEL
    assert (Path(fetch("gpt2", little_hub.url)["folder"]) / "tokenizer.json").is_file()  # if the hub has one, after all


@pytest.mark.parametrize("offline", ["0", "1"])
def test_no_network_is_said_in_a_few_lines(nowhere, offline):
    variables = {"HF_ENDPOINT": nowhere, "HF_HUB_CACHE": "cache", "HF_HOME": "home", "HF_HUB_OFFLINE": offline}
    done = subprocess.run(
        [sys.executable, "-c", "from minigpt.formats import hub; hub.fetch_model('gpt2')"],
        env=os.environ | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.strip(" ~^")]  # marks of Python 3.13
    assert len(lines) < 10
    assert lines[0] == "Traceback (most recent call last):"  # and nothing before it
    assert lines[-2].startswith("minigpt.errors.DownloadError: the hub did not give gpt2")


def test_a_hub_that_never_answers():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        error = fetch("gpt2", f"http://127.0.0.1:{silent.getsockname()[1]}")  # or the test's own limit strikes
    assert_says_what_to_do(error, "config.json, model.safetensors, tokenizer.json")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_cache_that_cannot_be_written(monkeypatch, number):
    def fail(_name):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(hub, "_cached_folder", lambda _name: None)
    monkeypatch.setattr(hub, "_download", fail)
    with pytest.raises(DownloadError, match=f"cannot write gpt2 into the cache .*: {os.strerror(number)}"):
        hub.fetch_model("gpt2")


@pytest.mark.parametrize("name", ["a--b/c", "org/..", "a/b/c"])
def test_names_that_no_hub_could_have(name):
    with pytest.raises(MissingFileError, match=f"the hub has no model '{name}'"):
        hub.fetch_model(name)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "/api/models/org/whole"])
def test_a_hub_that_drips_is_given_up(little_hub, file):
    """A byte before each silence is too long."""
    little_hub.dripping = file
    little_hub.files["org/whole"] = {name: body * 10**6 for name, body in MODEL.items()}
    said = fetch("org/whole", little_hub.url, PATIENCE="1")
    assert said["type"] == "DownloadError"
    assert "nothing more came in 1 seconds" in said["what"]
