"""The server of the page: what it answers, to whom, and how it ends. Over real sockets of this machine."""

import dataclasses
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import minigpt
import minigpt.model
from minigpt.cli.main import answer as run_command
from minigpt.errors import InputError
from minigpt.page.server import HOST, STATIC, PageServer, page_files, resources
from minigpt.parameters import own_tensors
from minigpt.tokenizers import load_tokenizer

Headers = dict[str, str]


def ask(
    server: PageServer, path: str, method: str = "GET", headers: Headers | None = None
) -> tuple[int, Headers, bytes]:
    """The status, the headers and the content of an answer; the request is sent as it is written here."""
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in {"Host": f"{HOST}:{server.server_port}", **(headers or {})}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, content


def raw(server: PageServer, request: bytes) -> bytes:
    """All that comes back for these bytes."""
    with socket.create_connection((HOST, server.server_port), timeout=20) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**16), b""))


def test_it_listens_on_the_loopback_address_alone(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_the_model_comes_in_its_own_layout(server, tiny_model):
    """Every tensor is where model.json says, and is the model's, to the bit."""
    model = json.loads(ask(server, "/model.json")[2])
    status, headers, content = ask(server, "/weights.bin")
    assert (status, headers["content-length"]) == (200, str(model["bytes"]))
    own = own_tensors(tiny_model)
    assert [entry["name"] for entry in model["tensors"]] == list(own)
    for entry in model["tensors"]:
        values = np.frombuffer(content, "<f4", entry["length"] // 4, entry["offset"]).reshape(entry["shape"])
        assert torch.equal(torch.from_numpy(values.copy()), own[entry["name"]])
    assert sum(entry["length"] for entry in model["tensors"]) == len(content)
    assert model["config"] == dataclasses.asdict(tiny_model.config)
    assert model["about"]["parameters"] == tiny_model.num_parameters()


def test_the_tokenizer_is_what_a_run_keeps(server, run):
    assert json.loads(ask(server, "/model.json")[2])["tokenizer"] == json.loads(run.tokenizer.read_text())
    assert load_tokenizer(run.tokenizer).vocab_size == 23


def test_the_curve_and_the_samples_grow_with_the_run(server, run):
    first = json.loads(ask(server, "/run.json")[2])
    assert first["train"] == [[5, 2.5]]
    assert first["validation"] == [[0, 3.25], [7, 2.25]]
    assert first["samples"] == [{"step": 0, "text": "\nhgf"}, {"step": 7, "text": "<b>bad</b>"}]
    assert (first["step"], first["name"]) == (7, "tiny")
    with run.metrics.open("a") as file:
        file.write('{"step": 11, "tokens": 143, "seconds": 0.9, "train_loss": 1.75}\n{"step": 12, "tok')  # half a line
    with run.samples.open("a") as file:
        file.write("--- step 11 ---\nabc\n\n")
    then = json.loads(ask(server, "/run.json")[2])
    assert then["train"] == [[5, 2.5], [11, 1.75]]
    assert then["samples"][-1] == {"step": 11, "text": "abc"}


def test_a_long_run_has_a_curve_of_bounded_length(server, run):
    """Its first and last points stay."""
    lines = [json.dumps({"step": n, "tokens": n, "seconds": n, "train_loss": float(n)}) for n in range(1, 7920)]
    run.metrics.write_text("\n".join(lines))
    points = json.loads(ask(server, "/run.json")[2])["train"]
    assert len(points) <= 2001
    assert (points[0], points[-1]) == ([1, 1.0], [7919, 7919.0])


def test_a_sample_that_is_damaged_is_no_sample(server, run):
    """Its step has more digits than a number may."""
    with run.samples.open("a") as file:
        file.write(f"--- step {5000 * '9'} ---\nabc\n\n--- step 11 ---\nabc\n\n")
    status, _, content = ask(server, "/run.json")
    assert status == 200
    assert [sample["step"] for sample in json.loads(content)["samples"]] == [0, 7, 11]


def test_a_model_of_no_training_has_no_run(shown):
    shown.run.metrics.unlink()
    assert resources([shown])["/run.json"].read() == (4, [b"null"])


def test_a_run_that_is_moved_while_it_is_shown_is_an_answer_too(server, run):
    run.path.rename(run.path.with_name("elsewhere"))
    assert json.loads(ask(server, "/run.json")[2]) is None
    assert ask(server, "/weights.bin")[0] == 200  # what is mapped stays


def test_training_on_does_not_change_what_is_mapped(server, run, tiny_model):
    before = ask(server, "/weights.bin")[2]
    with torch.no_grad():
        tiny_model.wte.weight.zero_()
    minigpt.save_run(tiny_model, load_tokenizer(run.tokenizer), run.path.with_name("other"))
    run.path.with_name("other").joinpath("model.safetensors").replace(run.best_weights)
    assert ask(server, "/weights.bin")[2] == before


def test_two_models_have_numbers(shown):
    table = resources([shown, shown])
    assert {f"/model/{n}/{file}" for n in (0, 1) for file in ("model.json", "weights.bin", "run.json")} <= set(table)
    assert json.loads(b"".join(table["/models.json"].read()[1])) == ["tiny", "tiny"]


def test_the_files_of_the_page_are_served_with_their_types(server):
    kinds = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    assert "source.js" in {path.name for path in page_files()}
    for path in page_files():
        status, headers, content = ask(server, f"/{path.relative_to(STATIC).as_posix()}")
        assert (status, content) == (200, path.read_bytes())
        assert headers["content-type"] == f"{kinds[path.suffix]}; charset=utf-8"


@pytest.mark.parametrize("path", ["/model.json", "/weights.bin", "/run.json", "/source.js", "/nothing"])
def test_head_is_get_without_the_content(server, path):
    status, headers, content = ask(server, path)
    assert headers["content-length"] == str(len(content))
    answer = raw(server, f"HEAD {path} HTTP/1.1\r\nHost: {HOST}:{server.server_port}\r\n\r\n".encode())
    above, end, below = answer.partition(b"\r\n\r\n")
    assert above.startswith(f"HTTP/1.0 {status} ".encode())
    assert f"Content-Length: {len(content)}".encode() in above.split(b"\r\n")
    assert (end, below) == (b"\r\n\r\n", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/../server.py", "/static/../../pyproject.toml", "/..%2fserver.py", "/%2e%2e/server.py", "//etc/passwd",
        "/etc/passwd", "/./source.js", "/source.js/", "/views", "/source.js%00.html", "/..\\server.py", "*",
        "http://127.0.0.1/model.json", "/model/1/model.json", "/model/-1/model.json", "/model/0/config.yaml",
        "file:///etc/passwd", "/" + 9999 * "a",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_table(server, path):
    status, _, content = ask(server, path)
    assert status == 404
    assert content == b"there is nothing of this name\n"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "127.0.0.1", "127.0.0.1:1", "localhost", "localhost.evil.example:{port}",
        "127.0.0.1.nip.io:{port}", "[::1]:{port}", "0.0.0.0:{port}", "", "127.0.0.1:{port}@evil.example",
        "127.0.0.1:{port}, evil.example",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/model.json", "/weights.bin", "/source.js", "/nothing"])
def test_another_host_is_refused(server, host, path):
    """A name that somebody else owns, and that means this machine, is no name of this page."""
    status, _, content = ask(server, path, headers={"Host": host.format(port=server.server_port)})
    assert status == 403
    assert content.endswith(b"and no other host\n")


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "LOCALHOST:{port}"])
def test_its_own_names_are_answered(server, host):
    assert ask(server, "/model.json", headers={"Host": host.format(port=server.server_port)})[0] == 200


def test_a_request_with_two_hosts_or_none_is_refused(server):
    mine = f"Host: 127.0.0.1:{server.server_port}\r\n"
    for headers in ("", mine + "Host: evil.example\r\n", mine * 2):
        answer = raw(server, f"GET /model.json HTTP/1.1\r\n{headers}\r\n".encode())
        assert answer.startswith(b"HTTP/1.0 403 ")


STRANGERS: list[Headers] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "https://127.0.0.1:{port}"},
    {"Origin": "http://localhost:{port}"},  # the page of this request's host is another one
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"},
    {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
    {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
]


@pytest.mark.parametrize("headers", STRANGERS)
def test_another_page_is_refused(server, headers):
    written = {name: value.format(port=server.server_port) for name, value in headers.items()}
    status, _, content = ask(server, "/model.json", headers=written)
    assert (status, content) == (403, b"another page may not ask\n")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://127.0.0.1:{port}"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},  # a link
    ],
)
def test_the_page_itself_and_a_person_are_answered(server, headers):
    written = {name: value.format(port=server.server_port) for name, value in headers.items()}
    assert ask(server, "/model.json", headers=written)[0] == 200


@pytest.mark.parametrize("path", ["/model.json", "/weights.bin", "/source.js", "/nothing"])
@pytest.mark.parametrize("host", [None, "evil.example"])
def test_no_answer_can_be_used_by_another_page(server, path, host):
    _, headers, _ = ask(server, path, headers={"Host": host} if host else {})
    assert not [name for name in headers if name.startswith("access-control-")]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["x-content-type-options"] == "nosniff"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW"])
def test_only_get_and_head_are_answered(server, method):
    status, headers, _ = ask(server, "/model.json", method)
    assert (status, headers["allow"]) == (405, "GET, HEAD")


NO_REQUESTS = [
    b"",
    b"\r\n\r\n",
    b"\x16\x03\x01\x02",
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET /model.json\r\n\r\n",
]


@pytest.mark.parametrize("sent", NO_REQUESTS)
def test_what_is_no_request_leaves_the_server_as_it_is(server, sent):
    answer = raw(server, sent)
    assert b"200 OK" not in answer
    assert b"tensors" not in answer
    assert ask(server, "/model.json")[0] == 200


def test_a_refusal_repeats_nothing_of_the_request(server):
    for headers in ({}, {"Host": "<script>alert(1)</script>"}):
        assert b"script" not in ask(server, "/<script>alert(1)</script>", headers=headers)[2]


def test_a_browser_that_leaves_in_the_middle_disturbs_nobody(server, capfd):
    for _ in range(5):
        with socket.create_connection((HOST, server.server_port)) as connection:
            connection.sendall(f"GET /weights.bin HTTP/1.1\r\nHost: {HOST}:{server.server_port}\r\n\r\n".encode())
    assert ask(server, "/model.json")[0] == 200
    assert capfd.readouterr() == ("", "")


def test_a_port_that_is_taken_is_passed_over(shown):
    with PageServer([shown], 0) as first, PageServer([shown], first.server_port) as second:
        assert first.server_port < second.server_port <= first.server_port + 20


def test_if_no_port_is_free_that_is_said(shown, monkeypatch):
    monkeypatch.setattr("minigpt.page.server._MORE_PORTS", 0)
    with PageServer([shown], 0) as first, pytest.raises(InputError, match=f"every port from {first.server_port} to"):
        PageServer([shown], first.server_port)


@pytest.mark.parametrize("code", ["EACCES", "EADDRNOTAVAIL"])
def test_a_port_that_may_not_be_used_is_said(shown, monkeypatch, code):
    """As one below 1024, for whoever is not the system's administrator."""

    def bind(self):
        raise OSError(getattr(__import__("errno"), code), "not permitted")

    monkeypatch.setattr(PageServer, "server_bind", bind)
    with pytest.raises(InputError, match="port = 80 cannot be used: not permitted\nchoose another"):
        PageServer([shown], 80)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "0"], "--port 0"),
        (["--port", "65536"], "--port 65536"),
        (["--port", "http"], "--port http"),
        (["--model", "nowhere"], "there is no model 'nowhere'"),
        (["--model", "checkpoints/nowhere"], "checkpoints/nowhere does not exist"),
        ([], "there is no trained run"),
    ],
)
def test_what_cannot_be_shown_is_said_in_two_lines(arguments, said, capsys):
    assert run_command(["explore", "--no-browser", *arguments]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 2)
    assert said in err


Start = Callable[[list[str]], "subprocess.Popen[str]"]


@pytest.fixture
def started() -> Iterator[Start]:
    """Starts `minigpt explore`, as a terminal would; what is still at work at the end of a test is killed."""
    if os.name != "posix":
        pytest.skip("sends SIGINT")
    processes = []

    def start(arguments: list[str]) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "minigpt", "explore", "--no-browser", "--json", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def free_port() -> int:
    with socket.create_server((HOST, 0)) as taken:
        return taken.getsockname()[1]


def test_ctrl_c_ends_it_and_nothing_was_written(run, free_port, started):
    before = {path: path.stat().st_mtime_ns for path in sorted(Path().rglob("*"))}
    process = started(["--model", str(run.path), "--port", str(free_port), "--prompt", "a #1 b"])
    told = json.loads(process.stdout.readline())
    assert told == {"address": f"http://127.0.0.1:{free_port}/", "models": ["tiny"]}
    connection = http.client.HTTPConnection(HOST, free_port, timeout=20)
    connection.request("GET", "/model.json")
    assert json.load(connection.getresponse())["about"]["prompt"] == "a #1 b"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err == "\nthe page is not served any more\nan open tab can go on with what it has loaded\n"
    assert {path: path.stat().st_mtime_ns for path in sorted(Path().rglob("*"))} == before


def test_a_second_server_of_the_same_model_has_a_port_of_its_own(run, started):
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        process = started(["--model", str(run.path), "--port", str(port)])
        told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    found = re.match(rf"note: port {port} is taken, perhaps by another minigpt explore: (\d+) is used\n", err)
    assert found
    assert told["address"] == f"http://127.0.0.1:{found[1]}/"
