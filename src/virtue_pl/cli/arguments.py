"""Types of arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from virtue_pl.types import MAX_PIXELS, PixelLimit

if TYPE_CHECKING:
    from virtue_pl.data.formats.own_rows import RowOptions


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


def share(text: str) -> float:
    """Return a number from 0 to 1. Raises ArgumentTypeError for any other text."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found <= 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, found {text!r}")
    return found


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """Add what holds for the rows of one's own data that do not say it themselves, see `row_options`."""
    from virtue_pl.data.formats.own_columns import BOX_FORMATS, UNITS

    parser.add_argument("--box-format", choices=BOX_FORMATS, help="of the boxes of rows that do not say it")
    parser.add_argument("--units", choices=UNITS, help="of the coordinates of rows that do not say it")
    parser.add_argument("--instruction", default="", help="text of queries that have neither text nor instruction")
    parser.add_argument(
        "--ignore-column",
        action="append",
        default=[],
        metavar="COLUMN",
        help="column of one's own data that is left out; may be given several times",
    )


def row_options(arguments: argparse.Namespace) -> RowOptions:
    """Return what `add_row_options` has read."""
    from virtue_pl.data.formats.own_rows import RowOptions

    return RowOptions(
        arguments.box_format, arguments.units, arguments.instruction, tuple(sorted(set(arguments.ignore_column)))
    )


def pixel_limit(text: str) -> PixelLimit:
    """Return the limit that `--max-pixels` sets, which errors name. Raises ArgumentTypeError for less than 1."""
    return PixelLimit(positive_number(text), "--max-pixels")
