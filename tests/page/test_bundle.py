"""Several modules as one: the same values, and every form that is not understood is refused."""

import shutil
import subprocess
from pathlib import Path

import pytest

from minigpt.page.bundle import bundle
from minigpt.page.server import STATIC

MODULES = {
    "main.js": """\
import { area, Circle as Round } from "./shapes/circle.js";
import {
  PI,
  later,
} from "./numbers.js";
const name = "main"; // a name that the others have too
console.log(name, area(new Round(2)).toFixed(3), PI, [...await later()].join());
""",
    "shapes/circle.js": """\
/** A comment with the words
 * import { nothing } from "./nowhere.js";
 */
import { PI, twice } from "../numbers.js";
const name = "circle";
export class Circle {
  constructor(radius) { this.radius = radius; this.name = name; }
}
export function area({ radius }) { return (PI * radius * twice(radius)) / 2; }
""",
    "numbers.js": """\
const name = "numbers";
export const PI = 3.14159;
export function twice(x) { return 2 * x; }
export function* three() { yield* [1, 2, 3]; }
export async function later() { return three(); }
console.log(name);
""",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def printed(path: Path) -> str:
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node, which runs the page's JavaScript")
    return subprocess.run([program, path], check=True, capture_output=True, text=True).stdout


def test_one_script_does_what_the_modules_did(folder, tmp_path):
    (folder / "package.json").write_text('{"type": "module"}')
    (tmp_path / "one.mjs").write_text(bundle("main.js", folder))
    assert printed(tmp_path / "one.mjs") == printed(folder / "main.js") == "numbers\nmain 12.566 3.14159 1,2,3\n"


def test_a_module_is_there_once_and_before_its_users(folder):
    text = bundle("main.js", folder)
    places = [text.index(f"// {name}\n") for name in ("numbers.js", "shapes/circle.js", "main.js")]
    assert places == sorted(places)
    assert text.count("export const PI") == 0
    assert text.count("const PI = 3.14159") == 1
    assert "\nimport" not in text.replace("\n * import", "")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('import PI from "./numbers.js";', "not understood"),
        ('import * as numbers from "./numbers.js";', "not understood"),
        ('import "./numbers.js";', "not understood"),
        ("import { PI } from './numbers.js';", "not understood"),
        ('import { PI } from "./numbers.js"', "not understood"),
        ('import { PI } from "https://example.com/numbers.js";', "not understood"),
        ('import { PI } from "numbers";', "not understood"),
        ('const { PI } = await import("./numbers.js");', "not understood"),
        ("export default 3;", "not understood"),
        ("export let a = 3;", "not understood"),
        ("export { a };", "not understood"),
        ('export * from "./numbers.js";', "not understood"),
        ("export const { a } = b;", "not understood"),
        ('import { name } from "./numbers.js";', "numbers.js exports no 'name'"),
        ('import { default as a } from "./numbers.js";', "numbers.js exports no 'default as a'"),
        ('import { a } from "./main.js";', "main.js imports main.js: a circle"),
        ('const text = "</script>";', "'</script'"),
        ('const text = "<!--";', "'<!--'"),
        ('const text = "<SCRIPT";', "'<SCRIPT'"),
    ],
)
def test_a_form_that_is_not_understood_is_refused(folder, line, said):
    (folder / "main.js").write_text(line + "\n")
    with pytest.raises(ValueError, match=r"^main.js") as caught:
        bundle("main.js", folder)
    assert said in str(caught.value)


def test_a_circle_of_modules_is_refused(folder):
    (folder / "numbers.js").write_text('import { area } from "./shapes/circle.js";\nexport const PI = 3;\n')
    with pytest.raises(ValueError, match=r"shapes/circle.js imports numbers.js imports shapes/circle.js: a circle"):
        bundle("main.js", folder)


def test_the_worker_can_be_a_plain_script(tmp_path):
    """Which, unlike a module, awaits nothing at its top, and does not ask for its own address."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node, which runs the page's JavaScript")
    (tmp_path / "worker.cjs").write_text(bundle("worker.js", STATIC))
    subprocess.run([program, "--check", tmp_path / "worker.cjs"], check=True)


@pytest.mark.parametrize("name", sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*.js")))
def test_every_module_of_the_page_can_be_a_part(name):
    assert f"// {name}\n" in bundle(name, STATIC)
