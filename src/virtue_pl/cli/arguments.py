"""Types of arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtue_pl.preprocessing.images import PixelLimit

MAX_PIXELS = 25_000_000
"""The default of `--max-pixels`, that of `preprocessing.images`, which imports torch."""


def positive_number(text: str) -> int:
    """Return a whole number of at least 1. Raises ArgumentTypeError for any other text."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text!r}")
    return int(text)


def add_max_pixels(parser: argparse.ArgumentParser, refused: str = "are refused") -> None:
    """Add `--max-pixels`, the limit of the images that a command opens.

    refused: what becomes of a larger image, for the help.
    """
    parser.add_argument(
        "--max-pixels",
        type=pixel_limit,
        default=str(MAX_PIXELS),
        metavar="PIXELS",
        help=f"images of more pixels {refused}, before they are decoded (default {MAX_PIXELS:,})",
    )


def pixel_limit(text: str) -> PixelLimit:
    """Return the limit that `--max-pixels` sets, which errors name. Raises ArgumentTypeError for less than 1."""
    from virtue_pl.preprocessing.images import PixelLimit

    return PixelLimit(positive_number(text), "--max-pixels")
