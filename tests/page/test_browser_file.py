"""One file in a real browser: opened from the disk with the network off, whole, cut off and changed."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from minigpt.formats.run_directory import RunDirectory
from minigpt.model import GPT
from minigpt.page.contents import Shown
from minigpt.page.single_file import write_page
from minigpt.page.weights import page_weights
from tests.page.conftest import CHROMIUM, DRIVER, TOKENIZER, browser

webdriver = pytest.importorskip("selenium.webdriver", reason="needs Selenium, which drives the browser")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs Chromium and its driver"),
]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator["webdriver.Chrome"]:
    made = browser(tmp_path_factory.mktemp("browser"))
    made.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    made.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield made
    made.quit()


@pytest.fixture(params=["float32", "float16", "int8"])
def file(request, tiny_model: GPT, run: RunDirectory, tmp_path: Path) -> Path:
    about = {"loss_cost": 0.0125, "loss_said": "it costs 0.0125 nats", "prompt": "abc"}
    weights = page_weights(tiny_model, request.param)
    write_page(tmp_path / "page.html", [Shown("<b>mine</b>", tiny_model.config, TOKENIZER, weights, run, about)])
    return tmp_path / "page.html"


def opened(driver: "webdriver.Chrome", file: Path, ready: str) -> str:
    """The text of the page, when an expression is true in it."""
    driver.get("about:blank")
    for kind in ("browser", "performance"):
        driver.get_log(kind)  # what was there before is not the page's
    driver.get(file.as_uri())
    shown = "return document.body.innerText"
    wait(lambda: driver.execute_script(f"return {ready}"), lambda: driver.execute_script(shown))
    return driver.execute_script(shown)


def wait(condition: Callable[[], object], seen: Callable[[], str]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, seen()
        time.sleep(0.05)


def asked_for(driver: "webdriver.Chrome") -> list[str]:
    """The addresses of all requests since the page was opened."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


VIEW = "document.querySelector('[role=tabpanel]:not([hidden])') !== null && !document.querySelector('.busy.on')"


def test_a_double_click_opens_the_model_without_a_request(driver, file):
    text = opened(driver, file, VIEW)
    assert "<b>mine</b>" in text  # its name, as text
    assert "it costs 0.0125 nats" in text
    assert driver.execute_script("return document.getElementById('prompt').value") == "abc"
    assert [entry["message"] for entry in driver.get_log("browser")] == []
    others = [address for address in asked_for(driver) if not address.startswith(("blob:", "data:"))]
    assert others == [file.as_uri()]


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_was_cut_off_says_so(driver, file, share):
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    text = opened(driver, file, "document.readyState === 'complete' && document.body.innerText.length > 50")
    assert text.startswith("This file is not whole: its end is missing")


def test_a_file_that_was_changed_says_so(driver, file):
    before, mark, after = file.read_text().partition('class="minigpt-weights-0">')
    file.write_text(before + mark + ("B" if after[0] != "B" else "C") + after[1:])
    opened(driver, file, "document.querySelector('[role=alert]:not([hidden])') !== null")
    said = driver.execute_script("return document.querySelector('[role=alert]').textContent")
    assert "this file is damaged: its weights have another checksum" in said
