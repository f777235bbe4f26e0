"""The page in a real browser: every view used by mouse and by keyboard, and its numbers compared with Python's.

Chromium is driven by Selenium through Debian's chromedriver. A random model of prime sizes is served, with a vocabulary
in which HTML can be written, and a second model beside it.
"""

import importlib.util
import json
import math
import string
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import torch

import minigpt
from minigpt.analysis import ablate, attribute, edit, head_scores, logit_lens, model_size, token_losses, trace
from minigpt.analysis.decoders import beam_tree
from minigpt.analysis.heads import scores_of_pattern
from minigpt.config import GPTConfig, RunConfig
from minigpt.decoding.filters import apply_filters
from minigpt.decoding.options import DecodingOptions
from minigpt.formats.run_directory import RunDirectory, save_run
from minigpt.formats.source import open_source
from minigpt.model import GPT
from minigpt.page.contents import Shown
from minigpt.page.server import PageServer
from minigpt.page.single_file import write_page
from minigpt.page.weights import page_weights
from minigpt.tokenizers import CharTokenizer, GPT2Tokenizer
from tests.conftest import random_model
from tests.page.conftest import CHROMIUM, DRIVER, browser

if CHROMIUM is None or DRIVER is None:
    pytest.skip("needs Debian's packages chromium and chromium-driver", allow_module_level=True)
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra browser")
Keys, ActionChains = webdriver.Keys, webdriver.ActionChains

pytestmark = pytest.mark.browser

VIEWS = ["Write", "Attention", "Lens", "Beams", "Loss", "Size", "Training", "Side by side"]
IDS = ["write", "attention", "lens", "beams", "loss", "size", "training", "side"]
TOKENIZER = CharTokenizer.from_text(string.ascii_letters + string.digits + string.punctuation + " \né")  # 97 characters
CONFIG = GPTConfig(vocab_size=97, block_size=43, n_layer=2, n_head=3, n_embd=3 * 5)
OTHER = GPTConfig(vocab_size=97, block_size=41, n_layer=1, n_head=2, n_embd=2 * 7, bias=False, tie_weights=False)
CODE = Path(minigpt.model.__file__).read_text(encoding="utf-8").splitlines()
PAIRS = GPT2Tokenizer(["h e", "l l", "he ll", "Ġ w"])  # 261 tokens; the model has two ids more, which no text gives
PADDED = GPTConfig(vocab_size=263, block_size=37, n_layer=1, n_head=2, n_embd=2 * 3)
SMALLEST = GPTConfig(vocab_size=1, block_size=1, n_layer=1, n_head=1, n_embd=1)
PROMPT = "ROMEO:\nWhat light?"
CAUGHT = "<b>x</b><script>document.title='caught'</script>"
NEAR = 1e-4  # the page sums in float64, torch in float32


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(CONFIG, 7)


@pytest.fixture(scope="module")
def other() -> GPT:
    return random_model(OTHER, 11)


@pytest.fixture(scope="module")
def padded() -> GPT:
    return random_model(PADDED, 13)


@pytest.fixture(scope="module")
def run(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    save_run(model, TOKENIZER, folder, trained=RunConfig())
    run = RunDirectory(folder)
    records = [{"step": step, "train_loss": 4 - step / 20} for step in (5, 10, 15)] + [{"step": 15, "val_loss": 3.5}]
    run.metrics.write_text("".join(json.dumps({"tokens": 0, "seconds": 0.1, **record}) + "\n" for record in records))
    run.samples.write_text(f"--- step 15 ---\n{CAUGHT}\n\n")
    return run


@pytest.fixture(scope="module")
def ends(model: GPT, ids: list[int]) -> list[int]:
    """Two tokens at which a text ends: one that this model never writes here, and the likeliest sixth of a text."""
    best = minigpt.generate(model, [ids], max_new_tokens=6, strategy="greedy").sequences[0][len(ids) :]
    return [next(token for token in range(97) if token not in best), best[-1]]


@pytest.fixture(scope="module")
def shown(run: RunDirectory, model: GPT, other: GPT, padded: GPT, ends: list[int]) -> list[Shown]:
    return [
        Shown("tiny", model.config, TOKENIZER, page_weights(model), open_source(run.path).run),
        Shown("<i>other</i>", other.config, TOKENIZER, page_weights(other)),
        Shown("pairs", padded.config, PAIRS, page_weights(padded)),
        Shown("smallest", SMALLEST, CharTokenizer("\n"), page_weights(random_model(SMALLEST, 17))),
        Shown("ending", model.config, TOKENIZER.with_ends(ends), page_weights(model)),
    ]


@pytest.fixture(scope="module")
def address(shown: list[Shown]) -> Iterator[str]:
    with PageServer(shown, 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    made = browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.quit()


class Page:
    """A page in the browser, as a person has it: what is on it, and hands."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self.driver = driver
        self.address = address

    def look(self, width: int = 1600, scheme: str = "light") -> None:
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)

    def open(self, **state: Any) -> None:
        """Open the page at a state, anew, and wait until everything is computed."""
        self.driver.get("about:blank")
        self.driver.get(self.address + "#" + urlencode({"prompt": PROMPT, **state}, quote_via=quote))
        self.wait(lambda: self.js("return document.querySelector('[role=tabpanel]:not([hidden])') !== null"))
        self.settle()

    def js(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def wait(self, condition: Callable[[], Any], seconds: float = 30) -> Any:
        """The first true value of a condition."""
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, self.js("return document.body.innerText")
            time.sleep(0.02)
        return value

    def settle(self) -> None:
        """Wait until nothing is being computed."""
        self.wait(lambda: self.js("return document.querySelector('.busy.on') === null"))

    def find(self, selector: str) -> Any:
        """The first element of a view that can be seen."""
        code = "return [...document.querySelectorAll(arguments[0])].find((e) => e.checkVisibility())"
        return self.wait(lambda: self.js(code, f"[role=tabpanel]:not([hidden]) {selector}"))

    def text(self, selector: str) -> str:
        return self.js("return arguments[0].textContent", self.find(selector))

    def button(self, name: str) -> Any:
        code = (
            "return [...document.querySelectorAll('button')].find("
            "(e) => e.checkVisibility() && e.textContent === arguments[0])"
        )
        return self.wait(lambda: self.js(code, name))

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def tab_to(self, code: str) -> None:
        """Press Tab until the element that has the focus, `e`, makes an expression true."""
        self.js("document.activeElement.blur()")
        for _ in range(300):
            self.press(Keys.TAB)
            if self.js(f"const e = document.activeElement; return {code}"):
                outline = self.js("return getComputedStyle(document.activeElement).outlineStyle")
                assert outline != "none", "the focus cannot be seen"
                return
        raise AssertionError(f"Tab does not reach {code}")

    def table(self, name: str) -> list[list[str]]:
        """The rows of the table behind a picture, which is opened."""
        find = (
            "const all = [...document.querySelectorAll('[role=tabpanel]:not([hidden]) details')];"
            "const d = all.find((e) => e.querySelector('summary').textContent === arguments[0]);"
            "d.open = true;"
            "return [...d.querySelectorAll('tbody tr')].map((r) => [...r.cells].map((c) => c.textContent));"
        )
        return self.wait(lambda: self.js(find, name))

    def state(self, part: str) -> str:
        """The address's fragment, once it has this part: it follows a little later."""
        return self.wait(lambda: part in (found := self.js("return location.hash")) and found)


@pytest.fixture
def page(driver: webdriver.Chrome, address: str) -> Iterator[Page]:
    page = Page(driver, address)
    page.look()
    yield page
    nothing_went_wrong(page)


def nothing_went_wrong(page: Page) -> None:
    """No error in the console, and no request to anywhere else since this was last asked."""
    assert [entry for entry in page.driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [one["request"]["url"] for one in asked if not one["documentURL"].startswith("chrome")]
    assert [url for url in asked if not url.startswith((page.address, "data:", "blob:", "about:"))] == []


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return TOKENIZER.encode(PROMPT)


def close(found: list[Any], expected: Any, atol: float = NEAR) -> None:
    numbers = torch.tensor([float(str(value).replace("−", "-")) for value in found], dtype=torch.float64)
    torch.testing.assert_close(numbers, torch.as_tensor(expected).double().flatten(), rtol=0, atol=atol)


def column(rows: list[list[str]], number: int) -> list[str]:
    return [row[number] for row in rows]


# --- every view


def test_arrow_keys_walk_through_the_views(page):
    page.open()
    page.tab_to("e.getAttribute('role') === 'tab'")
    for number, name in enumerate(VIEWS):
        assert page.js("return document.activeElement.textContent") == name
        assert page.js("return document.querySelector('[role=tab][aria-selected=true]').textContent") == name
        page.settle()
        assert page.find("p").is_displayed()
        page.state(f"view={IDS[number]}" if number else "prompt=")
        page.press(Keys.ARROW_RIGHT)


@pytest.mark.parametrize("view", IDS)
def test_a_view_is_explained_and_shows_its_line_of_the_model(page, view):
    page.open(view=view)
    sentence = page.text(".sentence")
    line = int(sentence.rsplit(" ", 1)[-1])
    assert sentence.count(". ") + sentence.count("? ") == 1  # one sentence, and the link
    page.find(".sentence a").click()
    shown = page.wait(lambda: page.js("return document.querySelector('dialog[open] li.now')?.textContent"))
    assert shown == CODE[line - 1]
    page.press(Keys.ESCAPE)
    page.wait(lambda: page.js("return document.querySelector('dialog[open]') === null"))


@pytest.mark.parametrize("width", [390, 1600])
@pytest.mark.parametrize("view", IDS)
def test_nothing_is_wider_than_the_window(page, view, width):
    page.look(width)
    page.open(view=view, off="0.1", more="5.6.7")
    assert page.js("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("width", [390, 1600])
@pytest.mark.parametrize("measure", ["parameters", "flops"])
def test_no_box_cuts_its_label_in_half(page, width, measure):
    """A label that does not fit the height of its box is left out: the table has it."""
    page.look(width)
    page.open(view="size", measure=measure)
    cut = (
        "return [...document.querySelectorAll('.box span')].filter((e) => e.checkVisibility()"
        " && getComputedStyle(e).writingMode === 'horizontal-tb'"
        " && e.getBoundingClientRect().bottom > e.parentElement.getBoundingClientRect().bottom + 1)"
        ".map((e) => e.textContent)"
    )
    assert page.js(cut) == []


@pytest.fixture(scope="module")
def axe() -> str:
    """axe-core's script, from a package that carries it."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-playwright-python, of the extra browser")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", IDS)
def test_axe_finds_no_serious_fault(page, axe, view, scheme):
    page.look(scheme=scheme)
    page.open(view=view, off="0.1", more="5.6.7", at="1", branches="5.9|ab")
    page.js("for (const d of document.querySelectorAll('details')) d.open = true")
    page.js(axe)
    found = page.driver.execute_async_script("axe.run().then(arguments[0], (e) => arguments[0](String(e)))")
    faults = [
        (fault["id"], node["html"], node.get("failureSummary"))
        for fault in found["violations"]
        for node in fault["nodes"]
        if fault["impact"] in ("serious", "critical")
    ]
    assert faults == []


def test_an_address_is_a_state(page):
    """What was clicked is in the address, and whoever opens that sees the same."""
    page.open(view="attention")
    page.find("[data-head='1.2']").click()
    page.settle()
    page.find("input[type=checkbox]").click()
    page.settle()
    state, seen = page.state("off=1.2"), page.js("return document.querySelector('main').innerText")
    page.driver.get("about:blank")
    page.driver.get(page.address + state)
    page.wait(lambda: page.js("return document.querySelector('main').innerText") == seen)


# --- Write


def test_the_next_tokens_are_those_of_the_filters(page, model, ids):
    options = {"temperature": 0.7, "top_k": 31, "top_p": 0.95, "min_p": 0.02, "repetition_penalty": 1.3}
    page.open(**options)
    rows = page.table("These probabilities as a table")
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1]
    shown = [int(row[1]) for row in rows]
    assert shown == logits.topk(len(rows)).indices.tolist()
    assert column(rows, 0) == [TOKENIZER.decode([id]).replace(" ", "␣").replace("\n", "↵") for id in shown]
    close(column(rows, 2), logits[shown])
    close(column(rows, 3), logits.softmax(-1)[shown], 1e-6)
    filtered = apply_filters(logits[None], [ids], DecodingOptions(strategy="sample", **options), [0]).softmax(-1)[0]
    close(column(rows, 4), filtered[shown], 1e-6)
    assert f"{int((filtered > 0).sum())} of 97 tokens are left" in page.js("return document.body.innerText")


def written(page: Page) -> list[int]:
    page.settle()
    return [int(row[2]) for row in page.table("The tokens, their ids and bytes")]


def test_the_best_tokens_are_those_of_generate(page, model, ids):
    """More of them than the context holds."""
    page.open(temperature=0, length=53)
    page.button("Run").click()
    page.wait(lambda: "a second" in page.js("return document.body.innerText"))
    expected = minigpt.generate(model, [ids], max_new_tokens=53, strategy="greedy", on_overflow="crop").sequences[0]
    assert written(page) == expected


def test_a_text_ends_where_generate_ends_it(page, model, ids, ends):
    page.open(model=4, temperature=0, length=23)
    page.button("Run").click()
    page.wait(lambda: "a second" in page.js("return document.body.innerText"))
    expected = minigpt.generate(model, [ids], max_new_tokens=23, strategy="greedy", eos_token_id=ends)
    assert expected.finish_reasons == ["eos"]
    assert written(page) == expected.sequences[0]
    assert "the text has ended" in page.js("return document.body.innerText")


def test_steps_and_a_run_draw_the_same(page, ids):
    page.open(seed=3, length=7)
    for _ in range(7):
        page.button("Step").click()
        page.settle()
    steps = written(page)
    page.open(seed=3, length=7)
    page.button("Run").click()
    page.wait(lambda: "a second" in page.js("return document.body.innerText"))
    assert written(page) == steps
    assert len(steps) == len(ids) + 7


def test_a_run_can_be_stopped(page, ids):
    page.open(length=10000)
    page.button("Run").click()
    page.wait(lambda: page.js("return document.querySelectorAll('.token.written').length > 3"))
    page.button("Stop").click()
    page.wait(lambda: page.button("Run"))
    assert len(ids) < len(written(page)) < 10000


def test_typing_ends_a_run_and_what_was_written_is_kept(page):
    page.open(length=10000)
    page.button("Run").click()
    page.wait(lambda: page.js("return document.querySelectorAll('.token.written').length > 3"))
    page.driver.find_element("id", "prompt").send_keys("!")
    page.wait(lambda: page.js("return document.querySelectorAll('.branches button').length") == 1)
    page.settle()
    assert page.js("return document.querySelectorAll('.token.written').length") == 0
    page.find(".branches button").click()
    page.settle()
    assert page.js("return document.getElementById('prompt').value") == PROMPT
    assert page.js("return document.querySelectorAll('.token.written').length") > 3


def test_a_bar_branches(page, ids):
    page.open(more="5.6.7.8")
    page.js("return arguments[0]", page.driver.find_elements("css selector", ".token.written")[1]).click()
    page.settle()
    bars = page.driver.find_elements("css selector", "button.bar-row")
    other = next(bar for bar in bars if bar.get_attribute("data-key") != "bar-6")
    chosen = int(other.get_attribute("data-key").removeprefix("bar-"))
    other.click()
    assert written(page) == [*ids, 5, chosen]
    page.find(".branches button").click()
    assert written(page) == [*ids, 5, 6, 7, 8]


def test_the_name_of_a_branch_has_whole_characters(page):
    page.open(branches="5|" + "😀" * 6 + "a")
    assert page.text(".branches button").startswith("😀😀")


def test_write_by_keyboard(page, ids):
    page.open()
    page.tab_to("e.textContent === 'Step'")
    page.press(Keys.ENTER)
    assert len(written(page)) == len(ids) + 1
    page.tab_to("e.labels?.[0]?.textContent === 'Temperature'")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.settle()
    assert page.text(".sliders output") == "0.9"
    page.state("temperature=0.9")
    page.tab_to("e.matches('.bar-row')")
    page.press(Keys.SPACE)
    assert len(written(page)) == len(ids) + 2
    assert page.js("return document.activeElement.matches('.bar-row, body')")


def test_typing_shows_the_tokens_at_once(page):
    page.open(prompt="ab")
    box = page.driver.find_element("id", "prompt")
    box.send_keys("cé")
    page.settle()
    rows = page.table("The tokens, their ids and bytes")
    assert [(row[1], row[3]) for row in rows] == [("a", "61"), ("b", "62"), ("c", "63"), ("é", "c3 a9")]


def test_byte_pairs_show_pieces_and_bytes(page, padded):
    """Half a character is shown as its bytes, and ids that no text gives have no probability."""
    prompt = "hello wörld 😀"
    page.open(model=2, prompt=prompt, temperature=1)
    text = PAIRS.encode(prompt)
    rows = page.table("The tokens, their ids and bytes")
    assert [int(row[2]) for row in rows] == text
    assert column(rows, 3) == [PAIRS.token_bytes(id).hex(" ") for id in text]
    pieces = [PAIRS.token_bytes(id).decode("utf-8", "backslashreplace").replace(" ", "␣") for id in text]
    assert column(rows, 1) == pieces
    assert {"hell", "␣w", "\\xf0"} <= set(pieces)
    with torch.no_grad():
        probabilities = padded(torch.tensor([text]))[0, -1, : PAIRS.vocab_size].softmax(-1)
    rows = page.table("These probabilities as a table")
    close(column(rows, 4), probabilities.topk(len(rows)).values, 1e-6)
    assert "of 261 tokens are left" in page.js("return document.body.innerText")


# --- Attention


def test_patterns_and_scores_are_those_of_a_trace(page, model, ids):
    page.open(view="attention", layer=1, head=2, query=9)
    with trace(model, "*.pattern") as t, torch.no_grad():
        model(torch.tensor([ids]))
    close(column(page.table("This token's weights as a table"), 2), t["blocks.1.attn.pattern"][0, 2, 9, :10], 1e-6)
    scores = head_scores(model, ids).scores
    for kind in ("previous", "first", "self", "entropy"):
        page.js("const s = document.querySelector('#view-attention select'); s.value = arguments[0];"
                "s.dispatchEvent(new Event('change'))", kind)  # fmt: skip
        page.settle()
        for name, value in page.table("The scores of all heads as a table"):
            layer, head = map(int, name.split("."))
            close([value], scores[kind][layer, head], 1e-5)


def test_induction_is_scored_on_repeated_tokens(page, model):
    """The page draws other tokens than Python: its text is asked for, and scored again here."""
    page.open(view="attention")
    page.js("const s = document.querySelector('#view-attention select'); s.value = 'induction';"
            "s.dispatchEvent(new Event('change'))")  # fmt: skip
    page.settle()
    note = page.wait(lambda: page.js("return document.querySelector('[data-induction]')?.dataset.induction"))
    text = list(map(int, note.split()))
    period = len(text) // 2
    assert text[1 : period + 1] == text[period + 1 :]
    assert len(set(text)) == period + 1
    with trace(model, "*.pattern") as t, torch.no_grad():
        model(torch.tensor([text]))
    for name, value in page.table("The scores of all heads as a table"):
        layer, head = map(int, name.split("."))
        expected = scores_of_pattern(t[f"blocks.{layer}.attn.pattern"][0], period)["induction"][head]
        close([value], expected, 1e-5)


def test_switching_a_head_off_moves_the_probabilities(page, model, ids):
    page.open(view="attention", layer=0, head=1)
    page.tab_to("e.labels?.[0]?.textContent === 'Head 0.1 off'")
    page.press(Keys.SPACE)
    page.settle()
    rows = page.table("The text's probabilities as a table")
    with torch.no_grad():
        before = token_losses(model, ids).losses.neg().exp()
        with edit(model, ablate("0.1")):
            after = token_losses(model, ids).losses.neg().exp()
    close(column(rows, 2), before, 1e-6)
    close(column(rows, 3), after, 1e-6)
    close(column(rows, 4), after - before, 1e-6)
    mean = f"{-before.log().mean():.3f} to {-after.log().mean():.3f} nats"
    assert mean in page.js("return document.querySelector('#view-attention').textContent")


def test_attention_by_keyboard_and_mouse(page, ids):
    page.open(view="attention")
    page.tab_to("e.dataset.head !== undefined")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_DOWN)
    page.settle()
    assert page.js("return document.activeElement.dataset.head") == "1.1"
    assert page.js("return document.querySelector('[aria-pressed=true]').dataset.head") == "1.1"
    page.tab_to("e.getAttribute('role') === 'option'")
    page.press(Keys.ARROW_LEFT)
    page.settle()
    page.state(f"query={len(ids) - 2}")
    token = page.driver.find_elements("css selector", "#view-attention [role=option]")[4]
    ActionChains(page.driver).move_to_element(token).perform()
    assert page.text(".readout").startswith("“O” at 4 looks most at")


# --- Lens


def test_the_lens_says_what_python_says(page, model, ids):
    page.open(view="lens")
    with trace(model) as t, torch.no_grad():
        model(torch.tensor([ids]))
    points = ["blocks.0.resid_pre", "blocks.0.resid_post", "blocks.1.resid_post"]
    found = logit_lens(t, points)
    ids_there, probabilities = found.top(1)
    cells = page.js(
        "return [...document.querySelectorAll('.lens button')].map((b) => [b.dataset.key, b.textContent, b.title])"
    )
    assert len(cells) == len(points) * len(ids)
    for key, text, title in cells:
        point, place = key.split("/")
        at = points.index(point), 0, int(place), 0
        assert text == TOKENIZER.decode([int(ids_there[at])]).replace(" ", "␣").replace("\n", "↵")
        first = title.split(": ", 1)[1].removeprefix(text + " ").split(" %")[0]
        assert float(first) == pytest.approx(100 * float(probabilities[at]), rel=0.05)


@pytest.mark.parametrize("by", ["component", "layer", "head"])
def test_the_parts_of_a_logit_add_up(page, model, ids, by):
    page.open(view="lens", position=11, token=23, by=by)
    rows = dict(page.table("The parts as a table"))
    with trace(model) as t, torch.no_grad():
        model(torch.tensor([ids]))
    found = attribute(t, 23, by=by, position=11)
    parts = {**dict(zip(found.labels, found.values.tolist(), strict=True)), **found.constants}
    assert rows.keys() == {*parts, "together", "the model's logit", "remainder"}
    for label, value in parts.items():
        close([rows[label]], value)
    close([rows["the model's logit"]], found.logit)
    close([rows["together"]], found.total)
    assert abs(float(rows["remainder"])) < NEAR


def test_the_lens_by_mouse_and_keyboard(page, ids):
    page.open(view="lens")
    page.driver.find_elements("css selector", ".lens button")[3].click()
    page.settle()
    assert "behind “E”" in page.text("h3:nth-of-type(1)") or "behind “E”" in page.js("return document.body.innerText")
    page.tab_to("e.matches('.lens button')")
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ENTER)
    page.settle()
    page.state("position=4")


# --- Beams, Loss, Size


@pytest.mark.parametrize("ending", [False, True])
def test_the_tree_is_that_of_beam_search(page, model, ids, ends, ending):
    page.open(view="beams", model=4 if ending else 0, beams=3, steps=8, length_penalty=0.5)
    rows = page.table("The tree as a table")
    end = {"eos_token_id": ends} if ending else {}
    found = beam_tree(model, ids, TOKENIZER, num_beams=3, max_new_tokens=8, length_penalty=0.5, **end)
    assert page.text(".finished li").endswith(", and ends") == ending == (ending and found.ids[-1] in ends)
    assert len(rows) == len(found.nodes)
    for row, node in zip(rows, found.nodes, strict=True):
        parent = "prompt" if node.parent is None else str(node.parent)
        assert row[1:3] == [str(node.step), parent]
        assert row[3] == TOKENIZER.decode([node.candidate.id]).replace(" ", "␣").replace("\n", "↵")
        assert [row[5] == "yes", row[6] == "yes"] == [node.candidate.kept, node.best]
    close(column(rows, 4), [node.candidate.total for node in found.nodes])
    close([page.text(".finished .score")], found.score)


def test_beams_by_keyboard(page):
    page.open(view="beams", beams=2, steps=3)
    page.tab_to("e.labels?.[0]?.textContent === 'Beams'")
    page.press(Keys.ARROW_UP, Keys.TAB)
    page.settle()
    assert page.js("return document.querySelector('#view-beams input').value") == "3"
    page.tab_to("e.textContent === 'Grow again'")
    page.press(Keys.ENTER)
    page.settle()
    assert len(page.table("The tree as a table")) == 3 * 6


def test_losses_are_those_of_python(page, model, ids):
    page.open(view="loss")
    rows = page.table("The losses as a table")
    found = token_losses(model, ids)
    close(column(rows, 2), found.losses)
    close(column(rows, 4), found.entropy)
    sums = page.js("return [...document.querySelectorAll('#view-loss dd')].map((e) => parseFloat(e.textContent))")
    bits = float(found.losses.sum()) / math.log(2) / (len(PROMPT) - 1)
    close(sums, [found.mean, found.perplexity, bits], 2e-3)
    page.tab_to("e.getAttribute('role') === 'option'")
    page.press(Keys.HOME)
    page.settle()
    page.state("position=1")
    assert f"{found.losses[0]:.3f}"[:-1] in page.text(".readout")
    token = page.driver.find_elements("css selector", "#view-loss [role=option]")[4]
    ActionChains(page.driver).move_to_element(token).perform()
    assert f"{found.losses[4]:.3f}"[:-1] in page.text(".readout")


def test_sizes_are_those_of_the_accounts(page):
    page.open(view="size")
    found = model_size(CONFIG)
    rows = {row[0]: [int(cell.replace(",", "")) for cell in row[1:]] for row in page.table("All modules as a table")}
    expected = {
        row.name: [row.parameters, 4 * row.parameters, row.forward_flops]
        for row in found.rows
        if row.parameters or row.forward_flops
    }
    expected["lm_head"][:2] = [0, 0]
    together = [found.parameters, found.parameter_bytes, found.forward_flops]
    assert rows == {**expected, "together": together}
    page.tab_to("e.type === 'radio'")
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    page.settle()
    page.state("measure=flops")


# --- Training, Side by side


def test_the_curve_and_the_samples_grow(page, run):
    page.open(view="training")
    page.wait(lambda: page.driver.find_elements("css selector", ".chart svg"))
    assert page.table("The losses as a table") == [
        ["15", "3.5000"], ["5", "3.7500"], ["10", "3.5000"], ["15", "3.2500"],
    ]  # fmt: skip
    before = run.metrics.read_text()
    try:
        with run.metrics.open("a") as file:
            file.write(json.dumps({"tokens": 0, "seconds": 0.2, "step": 20, "train_loss": 3.125}) + "\n")
        page.wait(lambda: ["20", "3.1250"] in page.table("The losses as a table"))
        assert "step 20" in page.text(".readout")
    finally:
        run.metrics.write_text(before)
    assert page.js("return document.querySelector('.samples pre').textContent") == CAUGHT


def test_a_model_without_a_run_says_so(page):
    page.open(view="training", model=1)
    page.wait(lambda: "no training run" in page.text(".readout"))


def test_a_head_off_stands_beside_the_model(page, model, ids):
    page.open(view="side", off="1.0")
    rows = page.table("Both as a table")
    with torch.no_grad():
        close(column(rows, 2), token_losses(model, ids).losses)
        with edit(model, ablate("1.0")):
            close(column(rows, 3), token_losses(model, ids).losses)


def test_another_model_stands_beside_the_model(page, model, other, ids):
    page.open(view="side")
    page.tab_to("e.labels?.[0]?.textContent === 'Beside it'")
    page.press(Keys.ARROW_DOWN)
    page.settle()
    page.state("other=1")
    rows = page.table("Both as a table")
    close(column(rows, 2), token_losses(model, ids).losses)
    close(column(rows, 3), token_losses(other, ids).losses)
    page.button("Write 60 tokens with both").click()
    page.wait(
        lambda: all(
            page.js("return [...document.querySelectorAll('.written-text')].map((e) => e.textContent.length >= 60)")
        )
    )


def test_another_model_reads_what_the_model_wrote(page, model, other, ids):
    page.open(view="side", other=1, more="3.7.2")
    rows = page.table("Both as a table")
    close(column(rows, 2), token_losses(model, [*ids, 3, 7, 2]).losses)
    close(column(rows, 3), token_losses(other, [*ids, 3, 7, 2]).losses)


def test_of_a_text_longer_than_a_context_nothing_is_compared(page):
    """One model reads all 42 characters, and the other the last 41."""
    page.open(view="side", other=1, prompt="ROMEO:\n" * 6)
    page.wait(lambda: "different parts" in page.text(".readout"))
    assert "Bits" not in page.text(".readout")


# --- one file


@pytest.fixture(scope="module")
def file(shown: list[Shown], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "my model.html"
    write_page(path, shown)
    return path


@pytest.fixture
def file_page(driver: webdriver.Chrome, file: Path) -> Iterator[Page]:
    """The page of a file on the disk, in a browser without a network."""
    page = Page(driver, file.as_uri())
    page.look()
    nowhere = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", nowhere)
    yield page
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**nowhere, "offline": False})
    nothing_went_wrong(page)


@pytest.mark.parametrize("view", IDS)
def test_a_file_shows_every_view(file_page, model, ids, view):
    file_page.open(view=view)
    assert file_page.js("return document.querySelector('[role=alert]').hidden")
    assert "model.py, line " in file_page.text(".sentence")
    if view == "write":
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        rows = file_page.table("These probabilities as a table")
        close(column(rows, 2), logits[[int(row[1]) for row in rows]])
    if view == "training":
        assert file_page.js("return document.querySelector('.samples pre').textContent") == CAUGHT
    if view == "side":
        file_page.tab_to("e.labels?.[0]?.textContent === 'Beside it'")
        file_page.press(Keys.ARROW_DOWN)
        file_page.settle()
        assert len(file_page.table("Both as a table")) == len(ids) - 1


# --- what goes wrong, and what is not to be trusted


def test_a_text_that_is_html_is_text(page):
    page.open(prompt=CAUGHT, view="write", branches=f"5|{CAUGHT}")
    for view in IDS:
        page.open(prompt=CAUGHT, view=view, branches=f"5|{CAUGHT}")
        assert page.driver.title == "tiny · minigpt"
        made = "return [...document.querySelectorAll('script, b, i')].filter((e) => !e.closest('.box')).length"
        assert page.js(made) == 1  # the page's own script
    assert page.js("return document.getElementById('prompt').value") == CAUGHT


def test_an_unknown_character_is_named_and_nothing_is_lost(page):
    page.open(prompt="abc")
    box = page.driver.find_element("id", "prompt")
    box.send_keys("ß")
    alert = page.wait(lambda: page.js("return document.querySelector('[role=alert]').textContent"))
    assert "ß" in alert
    assert box.get_attribute("value") == "abcß"
    box.send_keys(Keys.BACKSPACE)
    page.settle()
    page.wait(lambda: page.js("return document.querySelector('[role=alert]').hidden"))
    assert len(page.table("The tokens, their ids and bytes")) == 3


@pytest.mark.parametrize("view", IDS)
def test_a_text_longer_than_the_context_keeps_its_end(page, view):
    page.open(view=view, prompt="ab cd" * 11)
    assert "the model reads the last 43" in page.js("return document.getElementById('count').textContent")
    assert page.js("return document.querySelector('[role=alert]').hidden")


@pytest.mark.parametrize("view", IDS)
@pytest.mark.parametrize("prompt", ["", "a"])
def test_a_text_of_one_token_breaks_no_view(page, view, prompt):
    page.open(view=view, prompt=prompt)
    assert page.js("return document.querySelector('[role=alert]').hidden")


def test_of_a_text_that_shrinks_to_one_token_no_more_is_shown(page):
    for view, name in (("loss", "The losses as a table"), ("side", "Both as a table")):
        page.open(view=view, off="0.1")
        assert page.table(name)
        page.js("const p = document.getElementById('prompt'); p.value = 'a'; p.dispatchEvent(new Event('input'))")
        page.wait(lambda: page.text(".strip") == "a")
        page.settle()
        assert page.js("return document.querySelectorAll('details[open] tbody tr').length") == 0


@pytest.mark.parametrize(
    "fragment",
    [
        "view=nowhere&token=9999&line=9999",
        "model=7&layer=99&head=99&query=99&position=99&at=99",
        "more=x.y.9999&off=9.9,1&by=x&score=x&measure=x&other=7",
        "temperature=1x&top_k=99999999999&top_p=0&min_p=7&repetition_penalty=1e999&length_penalty=-99",
        "beams=99999999&steps=999999999999&length=999999999999&seed=999999999999999&other=0",
        "beams=0&steps=0&length=0&top_p=2&temperature=-1&repetition_penalty=0&length_penalty=%e9%&__proto__=1",
        "seed=-1&beams=x&layer=-1&head=-1&query=-1&position=-1&at=-1&line=-1&token=-1",
    ],
)
def test_a_mistyped_address_still_opens(page, fragment):
    for view in ("", "&view=attention", "&view=lens", "&view=loss", "&view=beams", "&view=side"):
        page.driver.get("about:blank")
        page.driver.get(f"{page.address}#prompt=abc&{fragment}{view}")
        page.wait(lambda: page.js("return document.querySelector('[role=tabpanel]:not([hidden])') !== null"))
        page.settle()
        page.js("location.hash = 'prompt=cba'")
        page.settle()
        page.js("location.hash = arguments[0]", f"prompt=abcd&{fragment}{view}")  # typed into an open page
        page.wait(lambda: page.js("return document.getElementById('prompt').value") == "abcd")
        page.settle()
        assert page.js("return document.querySelector('[role=alert]').hidden")
        controls = "return [...document.querySelectorAll('[role=tabpanel]:not([hidden]) :is(input, select)')]"
        assert page.js(f"{controls}.filter((e) => !e.checkValidity() || e.selectedIndex === -1).length") == 0


@pytest.mark.parametrize("view", IDS)
def test_the_smallest_model_has_every_view(page, view):
    """One token, one place in the context: nothing to look back at, and nothing to predict."""
    page.open(view=view, model=3, prompt="", score="induction")
    assert page.js("return document.querySelector('[role=alert]').hidden")
    assert "…" not in page.js("return document.querySelector('[role=tabpanel]:not([hidden])').innerText")


@pytest.mark.parametrize("view", IDS)
def test_a_text_that_cannot_be_read_leaves_the_views_in_use(page, view):
    """They show the text before it; whatever the mouse does there is no error in the console."""
    page.open(view=view, more="5.6.7", off="0.1")
    page.driver.find_element("id", "prompt").send_keys("ß")
    page.wait(lambda: "ß" in page.js("return document.querySelector('[role=alert]').textContent"))
    touch = (
        "for (const e of document.querySelectorAll('[role=tabpanel]:not([hidden]) :is(canvas, button, .token, input)'))"
        "for (const kind of ['pointerenter', 'pointermove', 'pointerleave', 'click'])"
        "e.dispatchEvent(new PointerEvent(kind, { bubbles: true }))"
    )
    page.js(touch)
    page.settle()
    assert page.js("return document.getElementById('prompt').value") == PROMPT + "ß"


def test_what_belongs_to_one_model_is_not_shown_of_another(page):
    """A part that is switched off, a branch's ids, and the model that stands beside it."""
    page.open(view="attention", off="1.2", branches="90.91|ab")
    page.js("const s = document.querySelector('#top select'); s.value = 1; s.dispatchEvent(new Event('change'))")
    page.settle()
    assert "Without" not in page.js("return document.querySelector('#view-attention').textContent")
    page.open(view="side", other=1)
    page.js("const s = document.querySelector('#top select'); s.value = 1; s.dispatchEvent(new Event('change'))")
    page.settle()
    assert page.js("return document.querySelector('#view-side select').value") == "off"


def test_another_models_tokens_are_left_and_back_brings_them_again(page):
    chosen = {"more": "90.91", "token": "5", "position": "1", "query": "2", "branches": "90|ab"}
    page.open(view="lens", **chosen)
    page.js(CHOOSE)
    assert not any(f"{name}=" in page.state("model=1") for name in chosen)
    page.js("history.back()")
    assert all(f"{name}=" in page.state("token=5") for name in chosen)
    page.settle()


CHOOSE = "const s = document.querySelector('#top select'); s.value = 1; s.dispatchEvent(new Event('change'));"


def test_what_was_taken_back_at_once_is_not_shown(page, ids):
    page.open()
    clear = "[...document.querySelectorAll('button')].find((e) => e.textContent.startsWith('Clear')).click()"
    page.js(f"document.querySelector('.bars button').click(); {clear}")
    page.state("branches=")
    page.settle()
    assert len(page.js("return [...document.querySelectorAll('#view-write .token')].map((e) => 1)")) == len(ids)
    assert "written" not in page.js("return document.getElementById('count').textContent")


def test_what_one_model_writes_does_not_become_anothers(page, ids):
    page.open(length=200)
    page.button("Run").click()
    page.js(CHOOSE)
    page.wait(lambda: page.button("Run"))
    page.state("model=1")
    page.settle()
    assert len(page.js("return [...document.querySelectorAll('#view-write .token')].map((e) => 1)")) == len(ids)
    assert "written" not in page.js("return document.getElementById('count').textContent")


def start_writing(page: Page) -> None:
    """Let the page write for long, until there is some text."""
    page.open(length=10000)
    page.button("Run").click()
    page.wait(lambda: page.js(SHOWN) > 3)


SHOWN = "return document.querySelectorAll('#view-write .token.written').length"


def more(page: Page) -> list[str]:
    """What was written, as the address has it."""
    return page.js("return (new URLSearchParams(location.hash.slice(1)).get('more') ?? '').split('.').filter(Boolean)")


def test_back_brings_again_what_was_being_written_when_another_model_was_chosen(page, ids):
    start_writing(page)
    seen = page.js(SHOWN.replace("return", "const seen =") + f";{CHOOSE}; return seen")
    page.wait(lambda: page.button("Run"))
    assert more(page) == []
    page.js("history.back()")
    page.wait(lambda: "model=1" not in page.js("return location.hash"))
    kept = more(page)
    assert seen <= len(kept) < 10000
    assert written(page) == [*ids, *map(int, kept)]
    assert f"{len(kept)} of them written" in page.js("return document.getElementById('count').textContent")


def test_back_ends_a_run_and_forward_brings_again_what_it_wrote(page, ids):
    page.open()
    page.js(CHOOSE)
    page.state("model=1")
    page.js("const n = document.querySelectorAll('input[type=number]')[1]; n.value = 10000;"
            "n.dispatchEvent(new Event('change'))")  # fmt: skip
    page.button("Run").click()
    page.wait(lambda: len(more(page)) > 3)
    page.js("history.back()")
    page.wait(lambda: page.button("Run"))
    assert "model=1" not in page.js("return location.hash")
    assert written(page) == ids
    page.js("history.forward()")
    page.state("model=1")
    kept = more(page)
    assert 3 < len(kept) < 10000
    assert written(page) == [*ids, *map(int, kept)]


def test_the_line_of_the_model_can_be_looked_up_while_a_text_is_written(page):
    start_writing(page)
    seen = page.js(SHOWN)
    page.wait(lambda: "of them written by the model" in page.js("return document.getElementById('count').textContent"))
    page.find(".sentence a").click()
    page.wait(lambda: page.js("return document.querySelector('dialog[open]') !== null"))
    assert len(more(page)) >= seen
    page.press(Keys.ESCAPE)
    page.button("Stop").click()
    page.wait(lambda: page.button("Run"))
    page.settle()
    assert page.js(SHOWN) >= seen


def test_the_scores_of_one_model_are_not_shown_of_another(page, other):
    page.open(view="attention", model=1, score="induction")
    right = page.js("return [...document.querySelectorAll('.score')].map((e) => e.textContent)")
    page.open(view="attention")
    page.js(
        "const post = Worker.prototype.postMessage; Worker.prototype.postMessage = function (message, ...others) {"
        "post.call(this, message, ...others);"
        f"if (message.call === 'induction' && !self.chosen) {{ self.chosen = true; {CHOOSE} }} }};"
        "const k = document.querySelector('#view-attention select');"
        "k.value = 'induction'; k.dispatchEvent(new Event('change'))"
    )
    page.state("model=1")
    page.settle()
    shown = "return [...document.querySelectorAll('.score')].map((e) => e.textContent)"
    page.wait(lambda: page.js(shown) == right)


@pytest.mark.parametrize("loss", [0.0, 31.0, 123456.0, 1e17])
def test_the_curve_of_a_run_that_broke_has_a_scale_too(page, run, loss):
    before = run.metrics.read_text()
    try:
        with run.metrics.open("a") as file:
            file.write(json.dumps({"tokens": 0, "seconds": 0.2, "step": 20, "train_loss": loss}) + "\n")
        page.open(view="training")
        lines = "return document.querySelectorAll('.chart line').length"
        assert 2 <= page.wait(lambda: page.js(lines)) <= 12
    finally:
        run.metrics.write_text(before)


def test_a_server_that_was_stopped_is_said_where_the_run_would_grow(driver, shown):
    with PageServer(shown[:1], 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        page = Page(driver, server.address)
        page.open(view="training")
        page.wait(lambda: page.driver.find_elements("css selector", ".chart svg"))
        server.shutdown()
        thread.join()
    page.wait(lambda: "it was stopped" in page.js("return document.querySelector('[role=alert]').textContent"))
    driver.get("about:blank")
    refused = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    assert all("ERR_CONNECTION_REFUSED" in entry["message"] for entry in refused)  # and no error of the page's own
    driver.get_log("performance")


def test_a_browser_without_workers_gets_a_sentence(page):
    script = {"source": "delete window.Worker"}
    added = page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", script)
    try:
        page.driver.get("about:blank")
        page.driver.get(page.address)
        alert = page.wait(lambda: page.js("return document.querySelector('[role=alert]')?.textContent"))
        assert "web workers" in alert
    finally:
        page.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)


def test_motion_stops_where_the_system_asks(page):
    wish = {"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
    page.open()
    durations = "return [...document.querySelectorAll('*')].map((e) => getComputedStyle(e).transitionDuration)"
    assert set(page.js(durations)) == {"0s"}
