"""A contact sheet of problems: a small image of each, with its box and its name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from virtue_pl.data.doctor.checks import Box, Finding, ReadImage
from virtue_pl.types import replace_whole

TILE, CAPTION, COLUMNS = 200, 44, 6
"""Size of a square tile and height of the lines below it, in pixels; tiles in a row."""


class Exhibit(NamedTuple):
    """A finding and its small image.

    Example:
        >>> from virtue_pl.data.doctor.checks import Finding
        >>> Exhibit(Finding("no box", "SCAR_mini/7", "found None"), tile(None, None)).tile.size
        (200, 200)
    """

    finding: Finding
    tile: Image.Image


class ContactSheet:
    """Collects the first few problems of each kind, and writes them as one image.

    Args:
        per_kind: how many problems of each kind are collected.
        max_total: how many problems of all kinds are drawn; errors come first.

    Example:
        >>> from virtue_pl.data.doctor.checks import Finding
        >>> sheet = ContactSheet(per_kind=1)
        >>> for number in range(3):
        ...     sheet.add(Finding("no box", f"SCAR_mini/{number}", "found None"), None, None)
        >>> len(sheet.exhibits), sheet.kinds["no box"]
        (1, 3)
    """

    def __init__(self, per_kind: int = 6, max_total: int = 60) -> None:
        self.per_kind = per_kind
        self.max_total = max_total
        self.exhibits: list[Exhibit] = []
        self.kinds: Counter[str] = Counter()

    def add(self, finding: Finding, image: ReadImage, box: Box) -> None:
        """Add a finding, with a reader of its image, and its box (xyxy in pixels of the image)."""
        self.kinds[finding.kind] += 1
        if self.kinds[finding.kind] <= self.per_kind:
            self.exhibits.append(Exhibit(finding, tile(None if image is None else image(), box)))

    def save(self, path: Path) -> None:
        """Write the sheet as a PNG; where nothing was found, the sheet says so."""
        chosen = sorted(self.exhibits, key=lambda exhibit: (exhibit.finding.is_warning, exhibit.finding.kind))[
            : self.max_total
        ]
        rows = max(1, -(-len(chosen) // COLUMNS))
        sheet = Image.new("RGB", (COLUMNS * TILE, rows * (TILE + CAPTION)), "white")
        draw = ImageDraw.Draw(sheet)
        if not chosen:
            draw.text((8, 8), "nothing was found", "black", small_font(14))
        for index, exhibit in enumerate(chosen):
            left, top = index % COLUMNS * TILE, index // COLUMNS * (TILE + CAPTION)
            sheet.paste(exhibit.tile, (left, top))
            colour = (160, 110, 0) if exhibit.finding.is_warning else (180, 0, 0)
            draw.text((left + 4, top + TILE + 2), shorten_text(draw, exhibit.finding.kind, 12), colour, small_font(12))
            draw.text((left + 4, top + TILE + 18), shorten_text(draw, exhibit.finding.key, 11), "black", small_font(11))
        with replace_whole(path) as temporary:
            sheet.save(temporary, "PNG")


def tile(image: UInt8[Tensor, "3 height width"] | None, box: Box) -> Image.Image:
    """Return the image in a square, with its box in red, even where that leaves the image.

    A missing image is grey with a cross.
    """
    square = Image.new("RGB", (TILE, TILE), (225, 225, 225))
    draw = ImageDraw.Draw(square)
    if image is None:
        draw.line([60, 60, TILE - 60, TILE - 60], "grey", 3)
        draw.line([60, TILE - 60, TILE - 60, 60], "grey", 3)
        return square
    full = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    scale = (TILE - 40) / max(full.size)
    small = full.resize((max(1, round(full.width * scale)), max(1, round(full.height * scale))))
    square.paste(small, (20, 20))
    if box is not None:
        corners = [min(max(20 + value * scale, 1), TILE - 2) for value in box]
        x1, x2, y1, y2 = *sorted(corners[::2]), *sorted(corners[1::2])
        draw.rectangle([x1, y1, x2, y2], outline=(230, 0, 0), width=2)
    return square


def small_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the default font at `size` pixels."""
    return ImageFont.load_default(size)


def shorten_text(draw: ImageDraw.ImageDraw, text: str, size: int) -> str:
    """Return the text, or its beginning and end, in the width of a tile."""
    while draw.textlength(text, small_font(size)) > TILE - 8:
        half = len(text) // 2
        text = f"{text[: half - 2]}…{text[half + 1 :]}"
    return text
