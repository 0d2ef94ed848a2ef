"""Callbacks of the page: what they return for prompts, tabs, hits and mistakes."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from virtue_pl.apps.demo.images import ImageShelf
from virtue_pl.apps.demo.page import TABS, Page, Sources, guarded
from virtue_pl.types import VirtueError

TEXTS = "a cat\na <b>dog</b>\ntwo birds"
BOX = {"box": [5, 5, 40, 50]}
MASK = {"mask": {"size": [60, 90], "counts": [0, 1200, 4200]}}
POINTS = {"points": [[20, 30], [70, 50]], "labels": [1, 0]}


def ask(*regions, image="0.png", **keys):
    return {"image": image, "units": "pixel", "regions": list(regions), **keys}


def problem(results) -> str:
    return results[0].props["view"]["problem"]


@pytest.mark.parametrize("regions", [[BOX], [POINTS], [MASK], [BOX, POINTS], [BOX, MASK, POINTS]])
def test_a_prompt_gives_masks_a_map_and_a_ranking(page, regions):
    canvas, map_view, ranking, *_ = page.answer(ask(*regions), TEXTS, TABS[0], None)
    assert canvas.props["view"]["overlay"].startswith("data:image/png")
    assert canvas.props["view"]["message"].startswith("First: ")
    assert "data:image/jpeg" in map_view
    assert ranking.count("<tr") == 4 and "&lt;b&gt;dog" in ranking


def test_no_prompt_ranks_and_has_no_mask(page):
    canvas, map_view, ranking, *_ = page.answer(ask(), TEXTS, TABS[0], None)
    assert canvas.props["view"]["overlay"] is None and map_view == ""
    assert "after" not in ranking


MISTAKES = [
    (ask({"box": [5, 5, 400, 50]}), "regions.0"),
    (ask({"points": [[-5, 5]], "labels": [1]}), "regions.0"),
    (ask({"mask": {"size": [60, 91], "counts": [5460]}}), "regions.0.mask"),
    (ask({"bx": [1, 2, 3, 4]}), "did you mean 'box'"),
    (ask({}), "a region is empty"),
    (ask(BOX, image="gone.png"), "gone.png is not in"),
    (ask(BOX, image="../model/config.yaml"), "is not in"),
    (ask(BOX, image="upload:1234"), "upload it again"),
    (ask(BOX, colour=3), "'colour' is no key"),
]


@pytest.mark.parametrize(("asked", "text"), MISTAKES)
def test_a_mistake_is_a_message_and_leaves_the_rest(page, asked, text):
    results = guarded(page.answer, 6)(asked, TEXTS, TABS[0], None)
    assert text in problem(results)
    assert len(results) == 6


def test_no_captions_are_a_message(page):
    assert "no captions" in problem(guarded(page.answer, 6)(ask(BOX), "\n \n", TABS[0], None))


def test_one_caption_is_a_ranking_of_one(page):
    ranking = page.answer(ask(BOX), "a cat", TABS[0], None)[2]
    assert ranking.count("<tr") == 2


def test_what_nobody_foresaw_is_a_message_too():
    def fail():
        raise ZeroDivisionError("by zero")

    assert "ZeroDivisionError: by zero" in problem(guarded(fail, 3)())


def test_a_search_finds_the_region_itself_and_a_hit_is_asked_with_next(page):
    *_, hits, _ = page.answer(ask(BOX), TEXTS, TABS[1], None)
    assert hits[0]["name"] == "0.png#0" and hits[0]["score"] == pytest.approx(1, abs=1e-4)
    canvas, *others = page.follow("1", hits, TEXTS, TABS[1], None)
    asked = canvas.props["picture"]
    assert asked["image"] == hits[1]["image"]
    height, width = 60, 90
    if hits[1]["box"] is not None:
        expected = np.array(hits[1]["box"]) * (width, height, width, height)
        assert asked["regions"][0]["box"] == pytest.approx(expected)
    assert others[3][0]["name"] == hits[1]["name"]


def test_without_an_index_the_tab_says_how_to_get_one(answerer, searched):
    page = Page(Sources(answerer, ImageShelf(searched.images), captions=["a cat"]))
    assert "virtue-pl index" in page.answer(ask(BOX), TEXTS, TABS[1], None)[3].props["hits"]


def test_two_models_and_two_prompts_stand_side_by_side(answerer, searched):
    loads = []

    def load():
        loads.append(1)
        return answerer

    page = Page(Sources(answerer, ImageShelf(searched.images), None, load, ["a cat"], ("one", "other")))
    page.answer(ask(BOX), TEXTS, TABS[0], None)
    assert not loads
    compared = page.answer(ask(BOX), TEXTS, TABS[2], ask(POINTS, image="1.png"))[5]
    assert compared.count("<h4>") == 3 and "kept prompt, 1.png" in compared and ">other<" in compared
    page.answer(ask(BOX), TEXTS, TABS[2], None)
    assert loads == [1]


def test_another_image_brings_its_captions_or_leaves_those_that_were_written(answerer, shelf):
    page = Page(Sources(answerer, shelf))
    assert page.open("1.png", TEXTS, TABS[0], None)[6] == "a kite\na tree"
    assert page.open("0.png", TEXTS, TABS[0], None)[6] == TEXTS


def test_an_upload_is_asked_about(page, tmp_path, searched):
    upload = tmp_path / "mine.png"
    upload.write_bytes((searched.images / "0.png").read_bytes())
    canvas = page.add(str(upload), TEXTS, TABS[0], None)[0]
    key = canvas.props["picture"]["image"]
    assert key.startswith("upload:")
    assert page.answer(ask(BOX, image=key), TEXTS, TABS[0], None)[0].props["view"]["message"].startswith("First: ")


def test_the_page_is_built_with_images_and_without(page, answerer):
    async def build():  # in a loop: Gradio makes its own outside of one, and never closes it
        page.build()
        Page(Sources(answerer, ImageShelf(None))).build()

    asyncio.run(build())


def test_a_broken_image_is_left_out_of_the_strip_and_counted(answerer, tmp_path, searched):
    (tmp_path / "0.png").write_bytes(b"no image")
    (tmp_path / "1.png").write_bytes((searched.images / "1.png").read_bytes())
    page = Page(Sources(answerer, ImageShelf(tmp_path)))
    assert page.first_image().name == "1.png"
    assert "1 images of the folder cannot be read" in page.strip(None)
    with pytest.raises(VirtueError):
        page.open("0.png", TEXTS, TABS[0], None)
