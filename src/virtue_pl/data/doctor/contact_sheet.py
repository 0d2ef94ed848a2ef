"""A contact sheet of the worst: a small image of each problem, with its box and its name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from virtue_pl.data.doctor.checks import Box, Finding, Shown
from virtue_pl.data.io.atomic import replacing

TILE, CAPTION, COLUMNS = 200, 44, 6
"""Side of a small image, height of the lines below it, and images in a row."""


class Exhibit(NamedTuple):
    """A finding and its small image."""

    finding: Finding
    tile: Image.Image


class ContactSheet:
    """Keeps the first few problems of each kind.

    Args:
        of_a_kind: how many.
        most: of all kinds together; errors come first.
    """

    def __init__(self, of_a_kind: int = 6, most: int = 60) -> None:
        self.of_a_kind = of_a_kind
        self.most = most
        self.exhibits: list[Exhibit] = []
        self.kinds: Counter[str] = Counter()

    def show(self, finding: Finding, image: Shown, box: Box) -> None:
        """Takes a finding in, with what gives its image, and its box (xyxy in pixels of the image)."""
        self.kinds[finding.kind] += 1
        if self.kinds[finding.kind] <= self.of_a_kind:
            self.exhibits.append(Exhibit(finding, tile(None if image is None else image(), box)))

    def save(self, path: Path) -> None:
        """Writes the sheet as a PNG; raises nothing where nothing was wrong: the sheet says so."""
        chosen = sorted(self.exhibits, key=lambda exhibit: (exhibit.finding.is_warning, exhibit.finding.kind))[
            : self.most
        ]
        rows = max(1, -(-len(chosen) // COLUMNS))
        sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), "white")
        draw = ImageDraw.Draw(sheet)
        if not chosen:
            draw.text((8, 8), "nothing was found", "black", small_font(14))
        for place, exhibit in enumerate(chosen):
            left, top = place % COLUMNS * TILE, place // COLUMNS * (TILE + CAPTION)
            sheet.paste(exhibit.tile, (left, top))
            colour = (160, 110, 0) if exhibit.finding.is_warning else (180, 0, 0)
            draw.text((left + 4, top + TILE + 2), fitted(draw, exhibit.finding.kind, 12), colour, small_font(12))
            draw.text((left + 4, top + TILE + 18), fitted(draw, exhibit.finding.key, 11), "black", small_font(11))
        with replacing(path) as temporary:
            sheet.save(temporary, "PNG")


def tile(image: UInt8[Tensor, "3 height width"] | None, box: Box) -> Image.Image:
    """The image in a square, with its box in red, even where it leaves the image; grey with a cross where there is no
    image.
    """
    square = Image.new("RGB", (TILE, TILE), (225, 225, 225))
    draw = ImageDraw.Draw(square)
    if image is None:
        draw.line([60, 60, TILE - 60, TILE - 60], "grey", 3)
        draw.line([60, TILE - 60, TILE - 60, 60], "grey", 3)
        return square
    drawn_image = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    scale = (TILE - 40) / max(drawn_image.size)
    small = drawn_image.resize((max(1, round(drawn_image.width * scale)), max(1, round(drawn_image.height * scale))))
    square.paste(small, (20, 20))
    if box is not None:
        corners = [min(max(20 + value * scale, 1), TILE - 2) for value in box]
        x1, x2, y1, y2 = *sorted(corners[::2]), *sorted(corners[1::2])
        draw.rectangle([x1, y1, x2, y2], outline=(230, 0, 0), width=2)
    return square


def small_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def fitted(draw: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """The text, or its beginning and end, in the width of a tile."""
    while draw.textlength(text, small_font(size)) > TILE - 8:
        half = len(text) // 2
        text = f"{text[: half - 2]}…{text[half + 1 :]}"
    return text
