"""The page: a canvas to point with, and tabs that rank captions, search an index, and compare models or prompts."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from virtue_pl.apps.demo.answers import Answerer
from virtue_pl.apps.demo.images import ImageShelf, PageImage, to_pil
from virtue_pl.apps.demo.overlays import mask_layer, similarity_layer
from virtue_pl.apps.demo.views import CSS, hits_grid, note, order_list, ranking_table, strip
from virtue_pl.preprocessing.requests import decode_region
from virtue_pl.search import Hit, VectorIndex
from virtue_pl.types import VirtueError, VisualPrompt
from virtue_pl.types.requests import EmbeddingRequest, read_request

HITS = 12
"""Hits of a search."""
TABS = ("Rank", "Search", "Compare")
START = "Click on something in the image, or drag a box around it."
LOGGER = logging.getLogger(__name__)


@dataclass
class Sources:
    """Model, images and index of the page.

    answerer: the model. shelf: its images. index: to search, of the same model. other: loads a second model to compare
    with. captions: asked about images that have none of their own. names: of the two models.

    Example:
        >>> Sources(answerer, ImageShelf(Path("photos")))  # doctest: +SKIP
    """

    answerer: Answerer
    shelf: ImageShelf
    index: VectorIndex | None = None
    other: Callable[[], Answerer] | None = None
    captions: Sequence[str] = ()
    names: tuple[str, str] = ("this model", "the other model")


class Page:
    """Callbacks of the page, each of which computes all that an action changes; a visitor's state is in the browser.

    Example:
        >>> Page(sources).build().launch()  # doctest: +SKIP
    """

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self._serials = itertools.count(1)

    def build(self) -> gr.Blocks:
        """Return the page."""
        folder = files("virtue_pl.apps.demo")
        template, style, script = (folder.joinpath(f"canvas.{kind}").read_text() for kind in ("html", "css", "js"))
        first = self.first_image()
        captions = self.captions_of(first) if first else list(self.sources.captions)
        with gr.Blocks(title="virtue_pl", analytics_enabled=False, fill_width=True) as page:
            gr.HTML("<h1 style='font-size:20px;margin:0'>Point at something</h1>")
            tab = gr.State(TABS[0])
            hits: gr.State = gr.State([])
            pinned = gr.State(None)
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    canvas = gr.HTML(
                        value=self.ask(first),
                        html_template=template,
                        css_template=style,
                        js_on_load=script,
                        apply_default_css=False,
                        elem_id="canvas",
                        picture=self.describe_image(first),
                        view={"message": START if first else "Upload an image to begin."},
                    )
                    images = gr.HTML(
                        value=first.key if first else None,
                        html_template="${images}",
                        js_on_load=CHOOSE.replace("KIND", "image"),
                        apply_default_css=False,
                        elem_id="images",
                        images=self.strip(first),
                    )
                    upload = gr.UploadButton("Upload an image", elem_id="upload", size="sm")
                with gr.Column(scale=2, min_width=320):
                    map_view = gr.HTML("", elem_id="map", apply_default_css=False)
                    with gr.Tabs(elem_id="tabs"):
                        with gr.Tab(TABS[0]) as rank_tab:
                            ranking = gr.HTML("", elem_id="ranking", apply_default_css=False)
                            texts = gr.Textbox(
                                "\n".join(captions), label="Captions, one a line", lines=6, elem_id="captions"
                            )
                            again = gr.Button("Rank these", size="sm", elem_id="rank")
                        with gr.Tab(TABS[1]) as search_tab:
                            found = gr.HTML(
                                value=None,
                                html_template="${hits}",
                                js_on_load=CHOOSE.replace("KIND", "hit"),
                                apply_default_css=False,
                                elem_id="hits",
                                hits="",
                            )
                        with gr.Tab(TABS[2]) as compare_tab:
                            pin = gr.Button("Keep this prompt to compare with", size="sm", elem_id="pin")
                            compared = gr.HTML("", elem_id="compared", apply_default_css=False)
            state = [canvas, texts, tab, pinned]
            shown = [canvas, map_view, ranking, found, hits, compared]
            quiet: dict[str, Any] = {"show_progress": "hidden", "queue": True}
            canvas.input(guarded(self.answer, len(shown)), state, shown, **quiet)
            again.click(guarded(self.answer, len(shown)), state, shown, **quiet)
            for name, part in zip(TABS, (rank_tab, search_tab, compare_tab), strict=True):
                part.select(guarded(self.select(name), len(shown) + 1), state, [*shown, tab], **quiet)
            pin.click(guarded(self.pin, len(shown) + 1), state, [*shown, pinned], **quiet)
            images.input(guarded(self.open, len(shown) + 2), [images, *state[1:]], [*shown, texts, images], **quiet)
            found.input(
                guarded(self.follow, len(shown) + 2), [found, hits, *state[1:]], [*shown, texts, images], **quiet
            )
            upload.upload(guarded(self.add, len(shown) + 2), [upload, *state[1:]], [*shown, texts, images], **quiet)
            page.load(guarded(self.answer, len(shown)), state, shown, **quiet)
        return page

    @cached_property
    def other(self) -> Answerer | None:
        """The model to compare with, loaded when it is first asked."""
        return None if self.sources.other is None else self.sources.other()

    def first_image(self) -> PageImage | None:
        """Return the folder's first image that can be read."""
        for name in self.sources.shelf.names:
            try:
                return self.sources.shelf.load(name)
            except VirtueError:
                continue
        return None

    def captions_of(self, image: PageImage) -> list[str]:
        """Return the captions to ask about an image at first."""
        return list(image.captions or self.sources.captions)

    def ask(self, image: PageImage | None, regions: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Return the canvas's value: a request in the server's schema, of which the image is named by its key."""
        return {"image": image.key if image else None, "units": "pixel", "regions": list(regions)}

    def describe_image(self, image: PageImage | None, regions: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """Return what the canvas draws for another image, with regions that are there already."""
        if image is None:
            return {"serial": next(self._serials), "image": None}
        height, width = image.size
        return {
            "serial": next(self._serials),
            "image": image.key,
            "name": image.name,
            "source": image.data_uri(),
            "width": width,
            "height": height,
            "regions": list(regions),
        }

    def strip(self, current: PageImage | None) -> str:
        """Return the folder's images as buttons; those that cannot be read are left out, and counted."""
        images, broken = [], 0
        for name in self.sources.shelf.names:
            try:
                images.append((name, self.sources.shelf.thumbnail(name)))
            except VirtueError:
                broken += 1
        left_out = note(f"{broken} images of the folder cannot be read") if broken else ""
        return strip(images, current.key if current else None) + left_out

    def answer(self, asked: dict[str, Any], texts: str, tab: str, pinned: dict[str, Any] | None) -> list[Any]:
        """Return all that an action on the canvas changes."""
        if not asked or not asked.get("image"):
            return [gr.HTML(view={"message": "Upload an image to begin."}), "", "", gr.HTML(hits=""), [], ""]
        view, others = self.compute(asked, texts, tab, pinned)
        return [gr.HTML(view=view), *others]

    def compute(
        self, asked: dict[str, Any], texts: str, tab: str, pinned: dict[str, Any] | None
    ) -> tuple[dict[str, Any], list[Any]]:
        """Return what the canvas is to show of a request, and the values of all other parts of the page."""
        image = self.sources.shelf.find(asked["image"])
        prompts = read_prompts(image, asked)
        answerer = self.sources.answerer
        rows = answerer.rank(image, prompts, texts.splitlines())
        view: dict[str, Any] = {"message": START, "overlay": mask_layer(answerer.masks(image, prompts))}
        map_view = ""
        if prompts:
            values = answerer.similarity(image, prompts)
            map_view = (
                f"<figure style='margin:0'><img data-part=map style='max-width:100%;border-radius:8px' alt='similarity"
                f" map' src='{similarity_layer(to_pil(image.pixels), values)}'>"
                f"{note('Bright: a click there would be embedded like this prompt.')}</figure>"
            )
            best = rows[0]
            without = (
                "as without the prompt" if best.rank_before == 1 else f"number {best.rank_before} without the prompt"
            )
            view["message"] = f"First: {best.caption} ({without})"
        hits = self.search(image, prompts) if tab == TABS[1] and self.sources.index is not None else []
        return view, [
            map_view,
            ranking_table(rows, bool(prompts)),
            gr.HTML(hits=self.hits_view(hits)) if tab == TABS[1] else gr.HTML(),
            hits,
            self.compare(image, prompts, texts, pinned) if tab == TABS[2] else gr.HTML(),
        ]

    def search(self, image: PageImage, prompts: Sequence[VisualPrompt]) -> list[dict[str, Any]]:
        """Return the index's nearest rows to a region, or to the whole image where there is no prompt."""
        index = self.sources.index
        assert index is not None
        vector = self.sources.answerer.embed(image, prompts, "")[: index.facts.dim]
        (found,) = index.search(vector, HITS)
        return [self.describe_hit(hit) for hit in found]

    def describe_hit(self, hit: Hit) -> dict[str, Any]:
        """Return what the page shows of a hit, and asks with."""
        source = None
        if hit.image is not None:
            try:
                source = self.sources.shelf.thumbnail(hit.image)
            except VirtueError:
                LOGGER.info("%s is not in %s", hit.image, self.sources.shelf.root)
        return {"source": source, "image": hit.image, "box": hit.box, "score": hit.score, "name": hit.name}

    def hits_view(self, hits: Sequence[dict[str, Any]]) -> str:
        """Return hits as HTML, or why there are none."""
        if self.sources.index is None:
            return note("There is no index: start the page with --index, made by virtue-pl encode and virtue-pl index.")
        return hits_grid(hits) if hits else note("The index has no row like that.")

    def compare(
        self, image: PageImage, prompts: Sequence[VisualPrompt], texts: str, pinned: dict[str, Any] | None
    ) -> str:
        """Return rankings side by side: of the kept prompt and this one, and of the two models."""
        captions = texts.splitlines()
        answerer, other = self.sources.answerer, self.other
        columns = []
        if pinned is not None:
            kept_image = self.sources.shelf.find(pinned["image"])
            kept = answerer.rank(kept_image, read_prompts(kept_image, pinned), captions)
            columns.append(order_list(f"kept prompt, {kept_image.name}", [(row.caption, row.after) for row in kept]))
        rows = answerer.rank(image, prompts, captions)
        columns.append(order_list(f"this prompt, {self.sources.names[0]}", [(row.caption, row.after) for row in rows]))
        if other is not None:
            rows = other.rank(image, prompts, captions)
            columns.append(order_list(self.sources.names[1], [(row.caption, row.after) for row in rows]))
        hint = "" if other else note("A second model is compared where the page is started with --other.")
        return f"<div class=vp-two>{''.join(columns)}</div>{hint}"

    def select(self, name: str) -> Callable[..., list[Any]]:
        """Return the callback of a tab: it computes what the tab shows."""

        def answer_tab(asked: dict[str, Any], texts: str, tab: str, pinned: dict[str, Any] | None) -> list[Any]:
            return [*self.answer(asked, texts, name, pinned), name]

        return answer_tab

    def pin(self, asked: dict[str, Any], texts: str, tab: str, pinned: dict[str, Any] | None) -> list[Any]:
        """Keep the prompt, to be compared with the next ones."""
        return [*self.answer(asked, texts, TABS[2], asked), asked]

    def open_image(
        self, image: PageImage, regions: Sequence[dict[str, Any]], texts: str, tab: str, pinned: dict[str, Any] | None
    ) -> list[Any]:
        """Return all that another image changes."""
        texts = "\n".join(self.captions_of(image)) or texts
        asked = self.ask(image, regions)
        view, others = self.compute(asked, texts, tab, pinned)
        canvas = gr.HTML(value=asked, picture=self.describe_image(image, regions), view=view)
        return [canvas, *others, texts, gr.HTML(images=self.strip(image))]

    def open(self, name: str, texts: str, tab: str, pinned: dict[str, Any] | None) -> list[Any]:
        """Show an image of the folder."""
        return self.open_image(self.sources.shelf.load(name), (), texts, tab, pinned)

    def follow(
        self, number: str, hits: Sequence[dict[str, Any]], texts: str, tab: str, pinned: dict[str, Any] | None
    ) -> list[Any]:
        """Ask with a hit: its image, and its region as a box."""
        hit = hits[int(number)]
        if hit["image"] is None:
            raise VirtueError(f"{hit['name']} is no image: it cannot be asked with")
        image = self.sources.shelf.load(hit["image"])
        height, width = image.size
        box = None if hit["box"] is None else [v * s for v, s in zip(hit["box"], (width, height) * 2, strict=True)]
        return self.open_image(image, [] if box is None else [{"box": box}], texts, tab, pinned)

    def add(self, path: str, texts: str, tab: str, pinned: dict[str, Any] | None) -> list[Any]:
        """Show an uploaded image."""
        return self.open_image(self.sources.shelf.add(Path(path), Path(path).name), (), texts, tab, pinned)


CHOOSE = """
element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-KIND]');
  if (!button) return;
  props.value = button.dataset.KIND;
  trigger('input');
});
"""
"""Script of a list of buttons: the value becomes what the button is of."""


def read_prompts(image: PageImage, asked: dict[str, Any]) -> list[VisualPrompt]:
    """Return the regions of a request as prompts. Raises VirtueError for one that is not on the image."""
    if not asked.get("regions"):
        return []
    request = read_request(EmbeddingRequest, {**asked, "image": image.key})
    return [
        decode_region(region, image.size, request.units, f"regions.{number}")
        for number, region in enumerate(request.regions)
    ]


def guarded(function: Callable[..., list[Any]], count: int) -> Callable[..., list[Any]]:
    """Return a callback that shows what went wrong as a message on the canvas, and leaves all else as it is.

    count: of its outputs, of which the canvas is the first.
    """

    @wraps(function)
    def call(*arguments: Any) -> list[Any]:
        try:
            return function(*arguments)
        except VirtueError as error:
            problem = str(error)
        except Exception as error:  # a dead page says nothing
            LOGGER.exception("the page failed")
            problem = (
                f"That failed ({type(error).__name__}: {error}); the log has more. Another action works as before."
            )
        return [gr.HTML(view={"problem": problem}), *(gr.skip() for _ in range(count - 1))]

    return call


def launch_options() -> dict[str, Any]:
    """Return what `gr.Blocks.launch` needs so that no font, script or count comes from another host."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return {"theme": theme, "css": CSS, "share": False, "footer_links": [], "quiet": True}
