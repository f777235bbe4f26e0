"""The page in Chromium: pictures of its views, and how fast it is and how much memory it takes.

    python scripts/page_in_browser.py pictures --model checkpoints/shakespeare-quick --out out/pages
    python scripts/page_in_browser.py pictures --model checkpoints/shakespeare-quick --out docs/images \
        --view attention --width 1240 --scheme light --state "head=1&off=0.1"
    python scripts/page_in_browser.py measure --model checkpoints/shakespeare-quick --prompt "ROMEO:" --tokens 100

`pictures` writes every view as PNG, by default at 390 and at 1,600 pixels, light and dark; the second command makes
README's. `measure` reads a prompt, lets the page write, and prints what the page says of its speed and what the process
of the page holds in memory beside the weights.
It needs minigpt's extra [browser], and Debian's packages chromium and chromium-driver.
"""

import argparse
import base64
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from PIL import Image  # matplotlib brings it
from selenium import webdriver

VIEWS = ("write", "attention", "lens", "beams", "loss", "size", "training", "side")
SWITCHES = (
    "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update "
    "disable-sync"
)
SEEN = "return document.querySelector('[role=tabpanel]:not([hidden])') !== null"
BUSY = "return document.querySelector('.busy.on') !== null"


@contextlib.contextmanager
def served(model: str) -> Iterator[str]:
    """The address at which `minigpt explore` serves a model."""
    command = [sys.executable, "-m", "minigpt", "explore", "--model", model, "--no-browser", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["address"]
        finally:
            process.terminate()


@contextlib.contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Chromium without a window, with a profile of its own."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for switch in (*SWITCHES.split(), f"user-data-dir={profile}"):
            options.add_argument(f"--{switch}")
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def wait(condition: Callable[[], Any], seconds: float = 600) -> None:
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"the page took longer than {seconds} s")
        time.sleep(0.02)


def opened(driver: webdriver.Chrome, address: str, **state: Any) -> float:
    """Open the page at a state, and wait until all is computed: the seconds that took."""
    driver.get("about:blank")
    began = time.perf_counter()
    driver.get(f"{address}#{urlencode(state, quote_via=quote)}")
    wait(lambda: driver.execute_script(SEEN) and not driver.execute_script(BUSY))
    return time.perf_counter() - began


def pictures(driver: webdriver.Chrome, address: str, arguments: argparse.Namespace) -> None:
    """Write every view, as it looks at two widths, light and dark."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    for width in arguments.width:
        for scheme in arguments.scheme:
            metrics = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
            wish = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", wish)
            for view in arguments.view:
                opened(driver, address, **{**arguments.state, "view": view, "prompt": arguments.prompt})
                time.sleep(0.5)  # transitions, and the run of the training view, which is fetched
                height = driver.execute_script("return document.documentElement.scrollHeight")
                clip = {"x": 0, "y": 0, "width": width, "height": min(3000, height), "scale": 1}
                wanted = {"captureBeyondViewport": True, "clip": clip}
                png = driver.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"]
                path = arguments.out / f"page-{view}-{width}-{scheme}.png"
                few = Image.open(io.BytesIO(base64.b64decode(png))).quantize(96)  # colours: a third of the bytes
                few.save(path, optimize=True)
                print(path)


def measure(driver: webdriver.Chrome, address: str, arguments: argparse.Namespace) -> None:
    """Print the times of opening, of reading the prompt and of writing, and the memory."""
    print(f"opened and read in {opened(driver, address, prompt=arguments.prompt, length=arguments.tokens):.2f} s")
    print(driver.find_element("id", "count").text)
    for name in ("Step", "Run"):
        print(f"{name}: {pressed(driver, name)}")
    print(f"memory of the page's process: {resident(driver.service.process.pid) / 1e6:.0f} MB")
    heap = "performance.measureUserAgentSpecificMemory().then((m) => arguments[0](m.bytes), () => arguments[0](null))"
    driver.set_script_timeout(120)
    if (found := driver.execute_async_script(heap)) is not None:
        print(f"of which the page and its worker: {found / 1e6:.0f} MB")


def pressed(driver: webdriver.Chrome, name: str) -> str:
    """Press a button that writes, and give back what the page then says of its speed."""
    said = (
        "return [...document.querySelectorAll('[role=status]')].map((e) => e.textContent)"
        ".find((text) => text.endsWith('a second')) ?? ''"
    )
    before = driver.execute_script(said)
    press = "[...document.querySelectorAll('button')].find((e) => e.textContent === arguments[0]).click()"
    driver.execute_script(press, name)
    wait(lambda: driver.execute_script(said) not in ("", before) and not driver.execute_script(BUSY))
    return driver.execute_script(said)


def resident(pid: int) -> int:
    """The bytes that the largest renderer below a process holds in memory."""
    children: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            children.setdefault(parent, []).append(int(path.name))
            if b"--type=renderer" in (path / "cmdline").read_bytes():
                sizes[int(path.name)] = int((path / "statm").read_text().split()[1]) * 4096
    found, todo = [0], [pid]
    while todo:
        at = todo.pop()
        found.append(sizes.get(at, 0))
        todo += children.get(at, [])
    return max(found)


def main() -> None:
    """Read the arguments, and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pictures", "measure"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompt", default="ROMEO:\nBut, soft! what light through yonder window breaks?")
    parser.add_argument("--out", type=Path, default=Path("out/pages"))
    parser.add_argument("--view", nargs="+", choices=VIEWS, default=VIEWS)
    parser.add_argument("--width", nargs="+", type=int, default=[390, 1600])
    parser.add_argument("--scheme", nargs="+", choices=["light", "dark"], default=["light", "dark"])
    parser.add_argument("--state", type=lambda text: dict(parse_qsl(text)), default={"off": "0.1"}, help="of the page")
    parser.add_argument("--tokens", type=int, default=100, help="that are written to measure the speed")
    arguments = parser.parse_args()
    with served(arguments.model) as address, browser() as driver:
        (pictures if arguments.what == "pictures" else measure)(driver, address, arguments)


if __name__ == "__main__":
    main()
