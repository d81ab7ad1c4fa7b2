"""The page in a real browser: make test-app. Pictures of it are left in build/."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import fronts
from explorer import explored

pytestmark = pytest.mark.app
BUILD = Path(__file__).parents[2] / "build"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 60_000
"""Milliseconds: a busy machine is no failure."""


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.fail("no chromium: make test-app installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """``visit(address)`` opens it as a new visitor; to ask for anything elsewhere, or to fail in the page, fails the test."""
    wrong: list[str] = []
    contexts = []

    def open_page(address: str, fragment: str = "", **options):
        context = browser.new_context(**{"viewport": {"width": 1360, "height": 1000}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)

        def asked(route):
            if not route.request.url.startswith((address, "data:", "blob:")):
                wrong.append(route.request.url)
                route.abort()
            else:
                route.continue_()

        context.route("**/*", asked)
        page = context.new_page()
        page.on("websocket", lambda socket: wrong.append(socket.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
        page.goto(address + fragment)
        page.wait_for_selector("#metrics table")
        page.wait_for_selector("#figure .main-svg")
        page.wait_for_function("location.hash.length > 1")  # the first answer of the server
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not wrong


def drag(page, k: int, value: float) -> None:
    """Move a slider, as a pointer does: input events in quick succession, then the release."""
    page.evaluate(
        """([k, to]) => {
          const slider = document.querySelector(`#share-${k} input[type=range]`)
          const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value').set
          const from = Number(slider.value)
          for (const part of [0.25, 0.5, 0.75, 1]) {
            set.call(slider, from + part * (to - from))
            slider.dispatchEvent(new Event('input', { bubbles: true }))
          }
          slider.dispatchEvent(new PointerEvent('pointerup', { bubbles: true }))
        }""",
        [k, value],
    )


def until(page, condition: str) -> None:
    page.wait_for_function(condition)


def picture(page, name: str) -> None:
    BUILD.mkdir(exist_ok=True)
    page.wait_for_timeout(400)  # plotly's and the page's transitions
    page.screenshot(path=BUILD / f"app-{name}.png", full_page=True)


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> Path:
    return fronts.front(tmp_path_factory.mktemp("vision"), ("digits", "letters", "clothes", "maps"), kind="vit").folder


@pytest.fixture(scope="module")
def served(vision) -> Iterator[str]:
    with explored(vision) as address:
        yield address


def test_move_try_export_and_load_again(served, vision, visit, tmp_path):
    page = visit(served)
    picture(page, "four-tasks")
    assert "measured" in page.inner_text("#metrics") and "≈" not in page.inner_text("#metrics")
    before = page.evaluate("JSON.stringify(document.querySelector('#figure .js-plotly-plot').data.at(-1).x)")
    drag(page, 0, 70)
    until(page, "document.querySelector('#metrics').innerText.includes('70.0 %')")
    until(page, "document.querySelector('#metrics').innerText.includes('≈ 78.0 %')")  # 0.5 + 0.4 · 0.7
    until(page, f"JSON.stringify(document.querySelector('#figure .js-plotly-plot').data.at(-1).x) !== {before!r}")
    assert page.input_value("#share-1 input[type=number]") == "10"
    picture(page, "moved")
    page.get_by_label("all tasks").check()
    until(page, "document.querySelector('#figure .js-plotly-plot').data.at(-1).x.length === 4")
    picture(page, "all-tasks")

    Image.new("RGB", (24, 24), (200, 30, 40)).save(tmp_path / "red.png")
    page.set_input_files("#image input[type=file]", tmp_path / "red.png")
    until(page, "document.querySelector('#answer').innerText.includes(' ms')")
    assert re.search(r"switched to this preference in [\d.]+ ms", page.inner_text("#answer"))
    picture(page, "answer")

    page.get_by_role("tab", name="Export").click()
    name = page.input_value("#export-name input, #export-name textarea")
    assert name == "digits-70-letters-10-clothes-10-maps-10"
    page.click("#write")
    until(page, "document.querySelector('#exported').innerText.includes('written:')")
    assert (vision / "exports" / name / "model.safetensors").is_file()
    page.click("#write")
    until(page, "document.querySelector('#exported').innerText.includes('exists already')")
    page.fill("#export-name input, #export-name textarea", "../../escaped")
    page.click("#write")
    until(page, "document.querySelector('#exported').innerText.includes('begin with a letter')")
    assert not list(vision.parent.parent.glob("**/escaped"))
    picture(page, "exported")

    page.reload()
    until(page, "document.querySelector('#metrics')?.innerText.includes('70.0 %')")  # the address has kept the preference
    until(page, "document.querySelector('#share-0 input[type=number]').value === '70'")


def test_presets_and_constraints(served, visit):
    page = visit(served)
    page.click("#only input")
    page.get_by_role("option", name="letters").click()
    until(page, "document.querySelector('#share-1 input[type=number]').value === '100'")
    until(page, "document.querySelector('#only input').value === 'task …'")  # ready to choose again
    page.click("#knee")
    until(page, "document.querySelector('#news').innerText.includes('knee')")
    page.fill("#bound-1 input, #bound-1 textarea", "80")
    page.click("#find")
    until(page, "document.querySelector('#news').innerText.includes('best digits')")
    page.fill("#bound-1 input, #bound-1 textarea", "99")
    page.click("#find")
    until(page, "document.querySelector('#news').innerText.includes('none of the')")
    picture(page, "refused")
    page.click("#equal")
    until(page, "document.querySelector('#share-3 input[type=number]').value === '25'")


def beyond(page, *parts: str) -> list[str]:
    """Which of the parts reach out of the window sideways."""
    return [
        part for part in parts
        if page.evaluate("p => { const b = document.querySelector(p).getBoundingClientRect(); "
                         "return b.left < 0 || b.right > innerWidth }", part)
    ]  # fmt: skip


@pytest.mark.parametrize("width", [400, 1100])
def test_narrow_windows_show_everything(width, served, visit):
    page = visit(served, viewport={"width": width, "height": 900}, color_scheme="dark")
    assert beyond(page, "#heading", "#wish", "#bought", "#demand", "#figure .main-svg", "#share-0", "#find") == []
    assert beyond(page, "#metrics .pm-now") == []  # the number that the page is about
    if width == 1100:
        assert beyond(page, "#metrics tr > :last-child") == []
    below = page.evaluate("['#wish', '#bought', '#demand'].map(p => document.querySelector(p).getBoundingClientRect().top)")
    assert (below[0] < below[1] < below[2]) == (width == 400)  # what a slider does is seen right below it
    assert not page.evaluate("document.body.classList.contains('dark')")
    page.fill("#bound-1 input, #bound-1 textarea", "99")
    page.click("#find")
    until(page, "document.querySelector('#news').innerText.includes('none of the')")
    page.locator("#news .pm-message").wait_for()
    assert width > 400 or page.evaluate("document.querySelector('#news p').getBoundingClientRect().bottom <= innerHeight")
    picture(page, f"{width}-wide")


def test_visitors_do_not_meet(served, visit):
    one, other = visit(served), visit(served)
    drag(one, 0, 90)
    until(one, "document.querySelector('#metrics').innerText.includes('90.0 %')")
    drag(other, 1, 60)
    until(other, "document.querySelector('#metrics').innerText.includes('60.0 %')")
    one.click("#knee")
    until(one, "document.querySelector('#news').innerText.includes('knee')")
    assert other.input_value("#share-1 input[type=number]") == "60"
    third = visit(served)
    assert third.input_value("#share-0 input[type=number]") == "25"


def test_three_tasks_have_a_triangle_to_click(tmp_path, visit):
    folder = fronts.front(tmp_path, ("math", "code", "law")).folder
    with explored(folder) as address:
        page = visit(address, "#math=0,code=0,law=1")
        until(page, "document.querySelector('#share-2 input[type=number]').value === '100'")
        box = page.locator("svg.pm-triangle").bounding_box()
        scale = box["width"] / 380
        page.mouse.click(box["x"] + 60 * scale, box["y"] + (26 + 260 * 3**0.5 / 2) * scale)  # the left corner
        until(page, "Number(document.querySelector('#share-0 input[type=number]').value) > 98")
        page.fill("#text textarea", "the cat sat on")
        page.fill("#tokens input[type=number]", "8")
        page.press("#tokens input[type=number]", "Tab")
        page.click("#ask")
        until(page, "document.querySelector('#answer').innerText.includes(' ms')")
        picture(page, "three-tasks")


@pytest.mark.parametrize("tasks", [("math", "code"), tuple(f"task {i}" for i in range(1, 9))], ids=["two", "eight"])
def test_any_number_of_tasks(tasks, tmp_path, visit):
    folder = fronts.front(tmp_path, tasks, method="soup").folder
    with explored(folder) as address:
        page = visit(address)
        drag(page, 1, 80)
        until(page, "document.querySelector('#metrics').innerText.includes('80.0 %')")
        picture(page, f"{len(tasks)}-tasks")
        assert page.get_by_label("LoRA adapter").count() == 0


def test_a_front_without_measured_rows(tmp_path, visit):
    folder = fronts.front(tmp_path, ("math", "code"), measured=False).folder
    with explored(folder) as address:
        page = visit(address)
        assert "Nothing is measured yet" in page.inner_text("#metrics")
        drag(page, 0, 20)
        until(page, "location.hash.includes(encodeURIComponent('math=0.2'))")
        picture(page, "not-measured")
