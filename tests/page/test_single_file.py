"""One file with page, tokenizer and weights: what is in it, what is not, and what it says when it is damaged."""

import base64
import dataclasses
import hashlib
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from minigpt.config import GPTConfig
from minigpt.errors import InputError
from minigpt.page.contents import Shown
from minigpt.page.server import STATIC
from minigpt.page.single_file import LIMITS, chosen_precision, file_size, page, parts, write_page
from minigpt.page.weights import page_weights, rounded
from minigpt.parameters import own_tensors
from minigpt.tokenizers import CharTokenizer
from tests.conftest import random_model
from tests.page.conftest import TOKENIZER, PageError

HOSTILE = "</script><script>alert(1)</script><!-- <script> --> &lt;b&gt; \u2028 \ud83d"
INDEX = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>minigpt</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="style.css">
</head>
<body>
<a href="#top">up</a>
<script type="module" src="main.js"></script>
</body>
</html>
"""


class Elements(HTMLParser):
    """The elements of a page, each with its attributes and the text that stands directly in it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("end", {}, []))

    def handle_data(self, data: str) -> None:
        if self.found:
            self.found[-1][2].append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [{**attributes, "text": "".join(text)} for name, attributes, text in self.found if name == tag]


@pytest.fixture
def static(tmp_path: Path) -> Path:
    """A page of few lines, with the real module that opens models."""
    folder = tmp_path / "static"
    folder.mkdir()
    for name in ("source.js", "weights.js", "errors.js"):
        shutil.copy(STATIC / name, folder)
    (folder / "index.html").write_text(INDEX)
    (folder / "style.css").write_text("body { margin: 0 }\n")
    (folder / "main.js").write_text('import { openModel } from "./source.js";\nopenModel();\n')
    (folder / "worker.js").write_text('import { InputError } from "./errors.js";\npostMessage(InputError.name);\n')
    return folder


@pytest.fixture(params=["float32", "float16", "int8"])
def model(request, tiny_model, run) -> Shown:
    return Shown("tiny", tiny_model.config, TOKENIZER, page_weights(tiny_model, request.param), run, {"prompt": "a"})


def text_of(models: list[Shown], static: Path) -> str:
    return b"".join(parts(models, static)).decode("utf-8")


def scripts(text: str) -> list[dict[str, str | None]]:
    return Elements(text).of("script")


def opened(node, text: str, index: int = 0):
    """What the page's own module makes of a file."""
    return node([("file", {"elements": scripts(text), "index": index})])[0]


def test_the_page_opens_the_model_that_was_written(node, model, static, tiny_model, run):
    found = opened(node, text_of([model], static))
    expected = own_tensors(rounded(tiny_model, model.weights.precision))
    assert list(found["weights"]) == list(expected)
    assert all(torch.equal(found["weights"][name], values.reshape(-1)) for name, values in expected.items())
    assert found["config"] == dataclasses.asdict(tiny_model.config)
    assert found["tokenizer"] == json.loads(run.tokenizer.read_text())
    assert found["about"]["prompt"] == "a"
    assert found["about"]["precision"] == model.weights.precision
    assert found["run"] == json.loads(json.dumps(model.run_json()))
    assert found["seen"][-1] == [model.weights.size, model.weights.size]
    assert (found["names"], found["grows"]) == (["tiny"], False)
    assert "class CausalSelfAttention" in found["code"]


def test_weights_in_many_pieces_are_one_again(node, model, static, monkeypatch):
    whole = opened(node, text_of([model], static))["weights"]
    monkeypatch.setattr("minigpt.page.single_file._PIECE", 3 * 37)
    text = text_of([model], static)
    pieces = [part for part in scripts(text) if part.get("class") == "minigpt-weights-0"]
    assert len(pieces) == -(-model.weights.size // 111)
    assert not any("=" in part["text"] for part in pieces[:-1])
    found = opened(node, text)["weights"]
    assert all(torch.equal(found[name], values) for name, values in whole.items())


def test_two_models_are_two(node, static, run, tiny_model):
    other = random_model(GPTConfig(vocab_size=23, block_size=11, n_layer=1, n_head=1, n_embd=7), 5)
    models = [
        Shown("first", tiny_model.config, TOKENIZER, page_weights(tiny_model), run),
        Shown("second", other.config, TOKENIZER, page_weights(other, "int8")),
    ]
    text = text_of(models, static)
    first, second = opened(node, text), opened(node, text, 1)
    assert first["names"] == ["first", "second"]
    assert torch.equal(first["weights"]["wte.weight"], tiny_model.wte.weight.detach().reshape(-1))
    assert second["config"]["n_embd"] == 7
    assert second["run"] is None


def test_no_text_ends_an_element(node, static, run, tiny_model):
    """Names, characters and samples come from anybody."""
    run.samples.write_text(f"--- step 7 ---\n{HOSTILE}\n\n", errors="replace")
    tokenizer = CharTokenizer("<!-/script>&;\u2028 abdefghj")
    harmless = Shown("tiny", tiny_model.config, TOKENIZER, page_weights(tiny_model), None)
    hostile = Shown(HOSTILE, tiny_model.config, tokenizer, page_weights(tiny_model), run, {"prompt": HOSTILE})
    text = b"".join(parts([hostile], static)).decode("utf-8")
    usual = [(tag, set(attributes)) for tag, attributes, _ in Elements(text_of([harmless], static)).found]
    seen = [(tag, set(attributes)) for tag, attributes, _ in Elements(text).found]
    assert [one for one in seen if one not in usual] == []
    assert len(seen) == len(usual) + 2  # the beginning and the end of the run
    found = opened(node, text)
    assert found["about"]["name"] == found["about"]["prompt"] == HOSTILE
    assert found["tokenizer"]["characters"] == tokenizer.characters
    assert found["run"]["samples"][0]["text"] == HOSTILE.replace("\ud83d", "?")


def test_nothing_is_loaded_and_no_other_script_runs(static, model):
    """The policy stands before everything, and names each script and style by its hash."""
    text = text_of([model], static)
    elements = Elements(text)
    tags = [tag for tag, _, _ in elements.found]
    assert tags[:4] == ["html", "head", "meta", "meta"]
    policy_text = elements.of("meta")[1]["content"]
    policy = {part.split()[0]: part.split()[1:] for part in policy_text.split(";")}
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert "unsafe" not in policy_text
    assert "self" not in policy_text
    assert policy["worker-src"] == ["blob:"]
    assert not any(source.startswith("http") for sources in policy.values() for source in sources)

    def hashes(texts):
        return [f"'sha256-{base64.b64encode(hashlib.sha256(t.encode()).digest()).decode()}'" for t in texts]

    run = [part["text"] for part in elements.of("script") if part.get("type") in (None, "module")]
    assert len(run) == 2
    assert policy["script-src"] == hashes(run)
    assert policy["style-src"] == hashes(part["text"] for part in elements.of("style"))
    assert not [part for part in elements.of("script") if "src" in part]
    assert not [part for part in elements.of("link") if not part["href"].startswith("data:")]


def test_what_can_be_cut_off_stands_behind_what_says_so(static, model):
    """The page's scripts are whole before the first byte of data, and the mark of the end is the last element."""
    found = scripts(text_of([model], static))
    kinds = [part.get("id") or part.get("class") or part.get("type") for part in found]
    assert kinds[:5] == ["minigpt-file", "module", "minigpt-worker", "minigpt-code", "minigpt-model-0"]
    assert kinds[-1] == "minigpt-whole"


def test_a_file_without_its_end_is_said_to_be_cut_off(node, static, model):
    text = text_of([model], static).replace('id="minigpt-whole"', 'id="hole"')
    found = opened(node, text)
    assert isinstance(found, PageError)
    assert str(found).startswith("this file was cut off while it was copied or downloaded: its end is missing\nget it")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub(r'(class="minigpt-weights-0">.{40}).', r"\1A", text, count=1), "have another checksum"),
        (lambda text: re.sub(r'(class="minigpt-weights-0">.{40}).{4}', r"\1", text, count=1), "are "),
        (
            lambda text: re.sub(r'<script type="text/plain" class="minigpt-weights-0">.*?</script>', "", text, count=1),
            "are 0.00",
        ),
    ],
    ids=["changed", "shorter", "missing"],
)
def test_a_damaged_file_is_said_to_be(node, static, tiny_model, change, said):
    shown = Shown("tiny", tiny_model.config, TOKENIZER, page_weights(tiny_model))
    text = text_of([shown], static)
    assert change(text) != text
    found = opened(node, change(text))
    assert isinstance(found, PageError)
    assert str(found).startswith(f"this file is damaged: its weights {said}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('href="data:,"', 'href="icon.png"'),
        ('<a href="#top">', '<a href="https://example.com/">'),
        ("<body>", '<body><img src="a.png">'),
        ("<body>", "<body><script>alert(1)</script>"),
        ("<body>", "<body><style>a { color: red }</style>"),
        ("<body>", '<body><script type="module" src="main.js"></script>'),
        ('<script type="module" src="main.js"></script>', ""),
        ('<meta charset="utf-8">', ""),
        ("</body>", ""),
    ],
)
def test_a_page_that_would_load_something_is_refused(static, old, new):
    (static / "index.html").write_text(INDEX.replace(old, new))
    with pytest.raises(ValueError, match=r"^index.html"):
        page("tiny", static)


@pytest.mark.parametrize("rule", ["@import 'a.css';", "a { background: url(a.png) }", "a { content: '</style>' }"])
def test_a_style_that_would_load_something_is_refused(static, rule):
    (static / "style.css").write_text(rule)
    with pytest.raises(ValueError, match=r"^style.css"):
        page("tiny", static)


SIZES = [(10**5, "float32"), (350_976, "float16"), (10**7, "float16"), (5 * 10**7, "int8"), (124_439_808, "int8")]


@pytest.mark.parametrize(("parameters", "precision"), SIZES)
def test_the_precision_is_chosen_by_size(parameters, precision):
    assert chosen_precision(["m"], parameters) == precision
    assert file_size(parameters, precision) <= LIMITS[precision]


def test_a_model_too_large_for_a_file_is_told_how_large_and_what_to_do():
    with pytest.raises(InputError) as caught:
        chosen_precision(["gpt2-medium"], 354_823_168)
    assert re.search(
        r"a file with the 354,823,168 weights of gpt2-medium in int8 would have 47\d MB", caught.value.what
    )
    assert caught.value.how == "serve it, without out"
    with pytest.raises(InputError) as caught:
        chosen_precision(["gpt2"], 124_439_808, "float32")
    assert "in float32 would have 66" in caught.value.what
    with pytest.raises(InputError, match=r"weights of gpt2 and my runs/a in int8") as two:
        chosen_precision(["gpt2", "my runs/a"], 2 * 124_439_808)
    assert two.value.how == "serve it, without out"
    assert caught.value.renamed({"weights": "--weights"})[1].startswith('write it with --weights "int8", or serve it')


def test_a_tiny_file_has_about_the_size_that_was_said(tmp_path, static, tiny_model):
    """The weights are the part that grows; the rest is the page."""
    shown = Shown("tiny", tiny_model.config, TOKENIZER, page_weights(tiny_model, "float16"))
    size = write_page(tmp_path / "a" / "b.html", [shown], static)
    assert size == (tmp_path / "a" / "b.html").stat().st_size
    assert size < file_size(tiny_model.num_parameters(), "float16")
