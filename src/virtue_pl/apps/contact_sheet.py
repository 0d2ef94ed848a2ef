"""A contact sheet of a search: each query with its prompt drawn, and its hits with their regions, best first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from virtue_pl.callbacks.panel import (
    BAR,
    GREY,
    INK,
    OUTLINE,
    SMOOTH,
    WHITE,
    draw_prompt,
    edge,
    fit,
    font,
    paint,
    resize_map,
)
from virtue_pl.preprocessing.images import to_image
from virtue_pl.preprocessing.segmentations import decode_segmentation, read_json
from virtue_pl.search import Hit
from virtue_pl.search.queries import Query
from virtue_pl.types import VirtueError, VisualPrompt, replace_whole

QUERY, TILE, CAPTION, MARGIN, COLUMNS = 320, 200, 44, 16, 5
"""Sizes in pixels of the query, a hit's square, the lines below it and margins; hits in a row."""
WIDTH = 3 * MARGIN + QUERY + COLUMNS * (TILE + MARGIN)
MOST_QUERIES = 50
GROUND, EMPTY, DARK, BLUE = (246, 247, 249), (232, 235, 240), (17, 24, 39), (37, 99, 235)
SHADE = 0.45
"""Strength of the shade over what is outside of a hit's region."""


@dataclass
class ImageFolder:
    """Images of hits, found by the paths that the index names. missing: those that were not found.

    Example:
        >>> images = ImageFolder(Path("photos"))
        >>> images.load("no/such.jpg") is None, images.missing
        (True, {'no/such.jpg': None})
    """

    root: Path | None = None

    def __post_init__(self) -> None:
        self.missing: dict[str, None] = {}
        self._read = lru_cache(maxsize=32)(self._read_image)

    def load(self, image: str) -> UInt8[Tensor, "3 height width"] | None:
        """Return an image, below the folder or as the path says; None where there is none that can be read."""
        found = self._read(image)
        if found is None:
            self.missing[image] = None
        return found

    def _read_image(self, image: str) -> UInt8[Tensor, "3 height width"] | None:
        for path in ([self.root / image] if self.root else []) + [Path(image)]:
            if path.is_file():
                try:
                    return to_image(path, image)
                except VirtueError:
                    return None
        return None


def write_contact_sheet(
    path: Path, queries: Sequence[Query], found: Sequence[Sequence[Hit]], images: ImageFolder
) -> None:
    """Write the sheet as a PNG, one block for each query, of which the first fifty are drawn."""
    blocks = [draw_block(query, hits, images) for query, hits in list(zip(queries, found, strict=True))[:MOST_QUERIES]]
    sheet = Image.new("RGB", (WIDTH, sum(block.height for block in blocks)), GROUND)
    draw = ImageDraw.Draw(sheet)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        if top:
            draw.line([MARGIN, top, WIDTH - MARGIN, top], fill=EMPTY, width=1)
        top += block.height
    with replace_whole(path) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def draw_block(query: Query, hits: Sequence[Hit], images: ImageFolder) -> Image.Image:
    """Draw a query at the left and its hits at the right."""
    card = draw_query_card(query)
    rows = max(1, -(-len(hits) // COLUMNS))
    height = 2 * MARGIN + max(card.height, rows * (TILE + CAPTION + MARGIN) - MARGIN)
    block = Image.new("RGB", (WIDTH, height), GROUND)
    block.paste(card, (MARGIN, MARGIN))
    left = 2 * MARGIN + QUERY
    draw = ImageDraw.Draw(block)
    draw.line([left - MARGIN / 2, MARGIN, left - MARGIN / 2, height - MARGIN], fill=EMPTY, width=1)
    if not hits:
        draw.text((left + MARGIN, MARGIN + 4), "no row answers the filter", GREY, font(15))
    best = max((hit.score for hit in hits), default=1.0)
    for number, hit in enumerate(hits):
        corner = (
            left + MARGIN + number % COLUMNS * (TILE + MARGIN),
            MARGIN + number // COLUMNS * (TILE + CAPTION + MARGIN),
        )
        draw_hit(block, corner, hit, images, best)
    return block


def draw_query_card(query: Query) -> Image.Image:
    """Draw the query: its image with all its prompts, and its words below."""
    drawn = None
    if query.row is not None and query.row.images:
        pixels = to_image(query.row.images[0], "query")
        drawn = draw_regions(pixels, query.row.prompts, QUERY, shade=0.0)
    lines = list(wrap(query.text, 16, QUERY, 8))
    top = 26
    text_top = top + (drawn.height + 10 if drawn is not None else 0)
    card = Image.new("RGB", (QUERY, text_top + 23 * len(lines) + 24), GROUND)
    draw = ImageDraw.Draw(card)
    draw.text((0, 2), "QUERY", BLUE, font(13))
    if drawn is not None:
        card.paste(drawn, ((QUERY - drawn.width) // 2, top))
    for number, line in enumerate(lines):
        draw.text((0, text_top + 23 * number), line, DARK, font(16))
    if drawn is not None:
        draw.text((0, text_top + 23 * len(lines)), fit_middle(query.pointer, 13, QUERY), GREY, font(13))
    return card


def draw_hit(block: Image.Image, corner: tuple[int, int], hit: Hit, images: ImageFolder, best: float) -> None:
    """Draw one hit: its image with its region, or its words, then rank, score and name."""
    x, y = corner
    draw = ImageDraw.Draw(block)
    draw.rectangle([x, y, x + TILE - 1, y + TILE - 1], fill=WHITE if hit.image is None else EMPTY)
    pixels = None if hit.image is None else images.load(hit.image)
    if pixels is not None:
        drawn = draw_regions(pixels, [region_of(hit, pixels)], TILE, SHADE)
        block.paste(drawn, (x + (TILE - drawn.width) // 2, y + (TILE - drawn.height) // 2))
    else:
        label = hit.text if hit.image is None and hit.text else f"{hit.image or hit.document} is not there"
        for number, line in enumerate(wrap(label, 14, TILE - 20, 9)):
            draw.text((x + 10, y + 10 + 20 * number), line, INK if hit.image is None else GREY, font(14))
    bottom = y + TILE + 5
    share = max(0.0, min(1.0, hit.score / best)) if best > 0 else 0.0
    draw.rounded_rectangle([x, bottom, x + TILE - 1, bottom + 17], radius=4, fill=EMPTY)
    draw.rounded_rectangle([x, bottom, x + max(30, round(share * (TILE - 1))), bottom + 17], radius=4, fill=BAR)
    draw.text((x + 7, bottom + 9), str(hit.rank), BLUE, font(13), anchor="lm")
    draw.text((x + TILE - 7, bottom + 9), f"{hit.score:.3f}", INK, font(13), anchor="rm")
    draw.text((x + 2, bottom + 29), fit_middle(hit.name, 13, TILE - 4), INK, font(13), anchor="lm")


def region_of(hit: Hit, pixels: UInt8[Tensor, "3 height width"]) -> VisualPrompt:
    """Return a hit's region as what is drawn: its mask where it has one, or else its box; empty for a whole image."""
    size = (pixels.shape[1], pixels.shape[2])
    if hit.mask is not None:
        try:
            mask = decode_segmentation(read_json(hit.mask, hit.id), hit.id, size)
            return VisualPrompt(masks=torch.from_numpy(mask.copy())[None])
        except VirtueError:  # of another size, as of an image that was replaced: its box is drawn
            pass
    if hit.box is None:
        return VisualPrompt()
    return VisualPrompt(boxes=torch.tensor([hit.box]).clamp(0, 1))


def draw_regions(
    pixels: UInt8[Tensor, "3 height width"], prompts: Sequence[VisualPrompt], longer_edge: int, shade: float
) -> Image.Image:
    """Draw an image of `longer_edge` pixels with regions on it. shade: of what is outside of them, from 0 to 1."""
    height, width = pixels.shape[1:]
    scale = SMOOTH * longer_edge / max(height, width)
    size = (max(SMOOTH, round(width * scale)), max(SMOOTH, round(height * scale)))
    whole = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    drawn = whole.resize(size, Image.Resampling.LANCZOS)
    for prompt in prompts:
        masks = [resize_map(mask.float(), size) > 0.5 for mask in prompt.masks]
        if shade and (masks or len(prompt.boxes)):
            drawn = paint(drawn, ~inside_of(prompt, masks, size), DARK, shade)
        for mask in masks:
            drawn = paint(paint(drawn, edge(mask, 5), WHITE, 1.0), edge(mask, 3), OUTLINE, 1.0)
        draw_prompt(ImageDraw.Draw(drawn), prompt, size)
    return drawn.resize((size[0] // SMOOTH, size[1] // SMOOTH), Image.Resampling.LANCZOS)


def inside_of(prompt: VisualPrompt, masks: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Return the pixels inside of a region's boxes and masks, on an image of `size` = (width, height)."""
    inside = torch.zeros(size[1], size[0], dtype=torch.bool)
    for mask in masks:
        inside |= mask
    for x1, y1, x2, y2 in (prompt.boxes * torch.tensor(size).repeat(2)).round().int().tolist():
        inside[y1:y2, x1:x2] = True
    return inside


def wrap(text: str, size: int, width: int, most: int) -> Iterator[str]:
    """Yield a text's lines of at most `width` pixels; the last of `most` lines ends in an ellipsis if there is more."""
    remaining, line, count = text.split(), "", 0
    while remaining:
        longer = f"{line} {remaining[0]}".strip()
        if font(size).getlength(longer) <= width or not line:
            line = longer
            remaining.pop(0)
        elif count + 1 == most:
            yield fit(f"{line} {' '.join(remaining)}", size, width)
            return
        else:
            yield fit_middle(line, size, width)
            line, count = "", count + 1
    if line:
        yield fit_middle(line, size, width)


def fit_middle(text: str, size: int, width: int) -> str:
    """Return a name in the given width, its beginning and its end where it is longer."""
    cut = len(text)
    short = text
    while font(size).getlength(short) > width and cut > 4:
        cut -= 1
        short = f"{text[: cut // 3]}...{text[len(text) - (cut - cut // 3) :]}"
    return short
