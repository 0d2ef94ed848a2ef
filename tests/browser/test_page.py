"""The page in Debian's Chromium: what each action asks, and what stands on the page behind it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from fixtures.search_files import SearchFiles, make_search_files
from virtue_pl.apps.demo.answers import Answerer
from virtue_pl.apps.demo.images import ImageShelf
from virtue_pl.apps.demo.page import Page as DemoPage
from virtue_pl.apps.demo.page import Sources, launch_options
from virtue_pl.embedder import Embedder
from virtue_pl.search import VectorIndex

CHROMIUM = Path("/usr/bin/chromium")
WIDTH, HEIGHT = 90, 60
"""Of the images."""

pytestmark = [
    pytest.mark.browser,
    # Gradio's threads end with sockets and event loops that it does not close
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


class Recorded(DemoPage):
    """A page that notes what it is asked."""

    def __init__(self, sources: Sources) -> None:
        super().__init__(sources)
        self.asked: list[dict] = []

    def compute(self, asked, texts, tab, pinned):
        self.asked.append({**asked, "tab": tab})
        return super().compute(asked, texts, tab, pinned)


@pytest.fixture(scope="session")
def searched(tmp_path_factory) -> SearchFiles:
    return make_search_files(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="session")
def demo(searched) -> Recorded:
    embedder = Embedder.from_pretrained(searched.model, device="cpu")
    captions = ["a cat", "a dog", "two birds"]
    shelf = ImageShelf(searched.images, {"0.png": captions, "1.png": ["a kite", "a tree"], "2.png": ["a hill"]})
    answerer = Answerer(embedder, "Find the caption.")
    return Recorded(Sources(answerer, shelf, VectorIndex.open(searched.index), lambda: answerer))


@pytest.fixture(scope="session")
def address(demo) -> Iterator[str]:
    async def build():
        return demo.build()

    blocks = asyncio.run(build())
    _, address, _ = blocks.launch(server_port=None, prevent_thread_lock=True, **launch_options())
    yield address
    blocks.close(verbose=False)


@pytest.fixture(scope="session")
def browser(address) -> Iterator[Browser]:  # the page comes first: beside Playwright's loop no other can run
    assert CHROMIUM.is_file(), "there is no /usr/bin/chromium: sudo apt-get install -y chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    contexts = []

    def open_page(**options) -> Page:
        contexts.append(browser.new_context(viewport={"width": 1200, "height": 900}, **options))
        page = contexts[-1].new_page()
        page.problems = []
        page.requested = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(address)
        page.wait_for_selector("[data-part=image]")
        expect(page.locator("[data-part=ranking]")).to_be_visible()
        return page

    yield open_page
    for context in contexts:
        assert [problem for page in context.pages for problem in page.problems] == []
        context.close()


def at(page: Page, x: float, y: float) -> tuple[float, float]:
    """Return where a pixel of the image is on the screen."""
    page.locator("[data-part=image]").scroll_into_view_if_needed()
    box = page.locator("[data-part=image]").bounding_box()
    return box["x"] + x / WIDTH * box["width"], box["y"] + y / HEIGHT * box["height"]


def done(page: Page) -> None:
    page.wait_for_selector("[data-part=busy]", state="hidden")


def last(demo: Recorded) -> list[dict]:
    return demo.asked[-1]["regions"]


def near(values, expected, tolerance=1.0) -> bool:
    return np.allclose(values, expected, atol=tolerance)


def test_a_click_shows_a_mask_a_map_and_what_moved(visit, demo):
    page = visit()
    page.mouse.click(*at(page, 30, 20))
    done(page)
    (region,) = last(demo)
    assert near(region["points"], [[30, 20]]) and region["labels"] == [1]
    expect(page.locator("[data-part=message]")).to_contain_text("First: ")
    expect(page.locator("[data-part=overlay]")).to_be_visible()
    expect(page.locator("[data-part=map]")).to_be_visible()
    assert page.locator("[data-part=ranking] tbody tr").count() == 3
    assert page.locator("[data-part=marks] circle").count() == 1
    elsewhere = [url for url in page.requested if not re.match(r"(http://127\.0\.0\.1|data:|blob:)", url)]
    assert elsewhere == []


def test_an_action_is_one_call(visit):
    page = visit()
    before = len([url for url in page.requested if "/queue/join" in url])
    page.mouse.click(*at(page, 30, 20))
    done(page)
    assert len([url for url in page.requested if "/queue/join" in url]) == before + 1


def test_right_clicks_and_shift_add_points_and_a_plain_click_begins_anew(visit, demo):
    page = visit()
    page.mouse.click(*at(page, 30, 20))
    done(page)
    page.mouse.click(*at(page, 60, 40), button="right")
    done(page)
    page.keyboard.down("Shift")
    page.mouse.click(*at(page, 40, 20))
    page.keyboard.up("Shift")
    done(page)
    (region,) = last(demo)
    assert region["labels"] == [1, 0, 1] and near(region["points"], [[30, 20], [60, 40], [40, 20]])
    page.mouse.click(*at(page, 70, 10))
    done(page)
    assert last(demo)[0]["labels"] == [1]


def test_a_drag_is_a_box_whichever_way_it_goes(visit, demo):
    page = visit()
    page.mouse.move(*at(page, 70, 50))
    page.mouse.down()
    page.mouse.move(*at(page, 40, 30))
    page.mouse.move(*at(page, 20, 10))
    page.mouse.up()
    done(page)
    (region,) = last(demo)
    assert near(region["box"], [20, 10, 70, 50]) and "points" not in region


def test_a_brush_paints_a_mask_and_erases_it(visit, demo):
    page = visit()
    page.click("[data-tool=brush]")
    page.mouse.move(*at(page, 20, 30))
    page.mouse.down()
    page.mouse.move(*at(page, 60, 30), steps=12)
    page.mouse.up()
    done(page)
    (region,) = last(demo)
    counts = region["mask"]["counts"]
    assert region["mask"]["size"] == [HEIGHT, WIDTH] and sum(counts) == HEIGHT * WIDTH
    mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(WIDTH, HEIGHT).T
    assert mask[30, 20:60].all() and not mask[:10].any() and not mask[:, 70:].any()
    page.click("[data-part=outside]")
    page.mouse.move(*at(page, 10, 30))
    page.mouse.down()
    for y in (24, 27, 30, 33, 36):
        page.mouse.move(*at(page, 10, y))
        page.mouse.move(*at(page, 70, y), steps=30)
    page.mouse.up()
    done(page)
    assert last(demo) == []


def test_several_regions_undo_and_clear(visit, demo):
    page = visit()
    page.mouse.click(*at(page, 20, 20))
    done(page)
    page.click("[data-part=more]")
    page.mouse.click(*at(page, 60, 40))
    done(page)
    assert [region["labels"] for region in last(demo)] == [[1], [1]]
    assert page.locator("[data-region]").count() == 2
    page.click("[data-part=undo]")
    done(page)
    assert len(last(demo)) == 1
    page.click("[data-part=clear]")
    done(page)
    assert last(demo) == []
    expect(page.locator("[data-part=overlay]")).to_be_hidden()


def test_all_of_it_by_keyboard(visit, demo):
    page = visit()
    page.focus("[data-part=stage]")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    done(page)
    step = WIDTH / 25
    assert near(last(demo)[0]["points"], [[WIDTH / 2 + 3 * step, HEIGHT / 2]])
    page.keyboard.press("o")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    done(page)
    assert last(demo)[0]["labels"] == [1, 0]
    page.keyboard.press("u")
    done(page)
    assert last(demo)[0]["labels"] == [1]


def test_a_click_on_a_zoomed_image_is_where_it_is_seen(visit, demo):
    page = visit()
    page.click("[data-part=zoom-in]")
    x, y = at(page, 45, 30)
    page.mouse.click(x + 30, y)
    done(page)
    box = page.locator("[data-part=image]").bounding_box()
    assert near(last(demo)[0]["points"], [[45 + 30 / box["width"] * WIDTH, 30]])


def test_a_hit_is_asked_with_next(visit, demo):
    page = visit()
    page.mouse.move(*at(page, 5, 5))
    page.mouse.down()
    page.mouse.move(*at(page, 40, 50), steps=4)
    page.mouse.up()
    done(page)
    page.get_by_role("tab", name="Search").click()
    expect(page.locator("[data-hit='0']")).to_contain_text("0.png#0")
    name = page.locator("[data-hit='1'] span").last.inner_text().split()[1]
    page.click("[data-hit='1']")
    expect(page.locator("[data-hit='0']")).to_contain_text(name)
    assert demo.asked[-1]["image"] == name.partition("#")[0]


def test_a_cmyk_jpeg_with_a_turn_is_uploaded_upright(visit, demo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (40, 80, 4), dtype=np.uint8)
    Image.fromarray(pixels, "CMYK").save(tmp_path / "mine.jpg", exif=exif)
    page = visit()
    with page.expect_file_chooser() as chooser:
        page.click("#upload")
    chooser.value.set_files(str(tmp_path / "mine.jpg"))
    expect(page.locator("[data-part=image]")).to_have_attribute("alt", "mine.jpg")
    ratio = page.evaluate(
        "() => { const i = document.querySelector('[data-part=image]'); return i.naturalWidth / i.naturalHeight }"
    )
    assert ratio == pytest.approx(0.5)
    page.mouse.click(*at(page, 30, 20))
    done(page)
    assert demo.asked[-1]["image"].startswith("upload:")


def test_a_file_that_is_no_image_is_a_message_and_the_page_lives(visit, demo, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    page = visit()
    with page.expect_file_chooser() as chooser:
        page.click("#upload")
    chooser.value.set_files(str(tmp_path / "notes.png"))
    expect(page.locator("[data-part=message]")).to_contain_text("notes.png")
    page.mouse.click(*at(page, 30, 20))
    done(page)
    expect(page.locator("[data-part=message]")).to_contain_text("First: ")


def test_captions_are_the_visitors_own(visit):
    page = visit()
    page.fill("#captions textarea", "<b>one</b>\nanother")
    page.click("#rank")
    expect(page.locator("[data-part=ranking] tbody tr")).to_have_count(2)
    assert "<b>one</b>" in page.inner_text("[data-part=ranking]")
    page.fill("#captions textarea", "")
    page.click("#rank")
    expect(page.locator("[data-part=message]")).to_contain_text("no captions")


def test_two_prompts_and_two_models_are_compared(visit):
    page = visit()
    page.mouse.click(*at(page, 30, 20))
    done(page)
    page.get_by_role("tab", name="Compare").click()
    page.click("#pin")
    expect(page.locator("#compared h4")).to_have_count(3)


def test_two_visitors_keep_apart(visit, demo):
    first, second = visit(), visit()
    first.mouse.click(*at(first, 30, 20))
    done(first)
    second.click("[data-image='1.png']")
    expect(second.locator("#captions textarea")).to_have_value("a kite\na tree")
    second.mouse.click(*at(second, 60, 40))
    done(second)
    first.mouse.click(*at(first, 20, 20), button="right")
    done(first)
    assert demo.asked[-1]["image"] == "0.png" and last(demo)[0]["labels"] == [1, 0]
    assert first.locator("[data-part=ranking] tbody tr").count() == 3


def test_a_phone_in_the_dark_has_all_of_it_in_its_width(visit, demo):
    page = visit(color_scheme="dark", has_touch=True)
    page.set_viewport_size({"width": 375, "height": 700})
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    page.touchscreen.tap(*at(page, 30, 20))
    done(page)
    assert near(last(demo)[0]["points"], [[30, 20]], 1.5)
    page.click("[data-part=outside]")
    page.touchscreen.tap(*at(page, 60, 40))
    done(page)
    assert last(demo)[0]["labels"] == [1, 0]


def test_many_clicks_at_once_end_with_the_last(visit, demo):
    page = visit()
    for x in (10, 20, 30, 40, 50):
        page.mouse.click(*at(page, x, 30))
    page.wait_for_timeout(500)
    done(page)
    page.wait_for_function("() => document.querySelector('[data-part=message]').textContent.startsWith('First')")
    assert near(last(demo)[0]["points"], [[50, 30]])
    assert threading.active_count() < 200
