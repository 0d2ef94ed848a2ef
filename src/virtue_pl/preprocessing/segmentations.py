"""COCO's segmentations to masks: everything is checked before the C code of pycocotools, which checks nothing, sees it.

A DataError's words before ":" are the reason for which a row is left out.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from math import hypot, isfinite
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Bool

from virtue_pl.types import DataError

MAX_OUTLINE = 4_000_000
"""The longest outline of all polygons together, in pixels: drawing takes 80 bytes for each of them."""

MAX_POLYGONS = 10_000
"""The most polygons of one mask: uniting them takes the square of their number in time."""

_BINARY_TYPES = {bool, int, float, np.bool_, np.uint8, np.int64, np.float32, np.float64}

Mask = Bool[np.ndarray, "height width"]


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number that a float can hold, and no truth value."""
    if not isinstance(value, Real) or isinstance(value, bool | np.bool_):
        return False
    try:
        return isfinite(value)
    except OverflowError:
        return False


def is_real(value: Any) -> bool:
    """Return whether a value is a number that a float can hold, finite or not."""
    return isinstance(value, float) or is_number(value)


def shorten(value: Any) -> str:
    """Return a value as Python writes it, cut where it is long."""
    if isinstance(value, str | bytes | list | tuple):
        value = value[:20]
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def read_json(value: Any, key: str) -> Any:
    """Return what a text of JSON says, and any other value as it is. Raises DataError for damaged JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:  # here, nested too deeply
        raise DataError(key, f"damaged mask: {shorten(value)} is no JSON ({error})") from error


def decode_segmentation(segmentation: Any, key: str, size: tuple[int, int]) -> Mask:
    """Return the mask of COCO's RLE (compressed or not), polygons, or a mask of 0 and 1, at `size` = (height, width).

    An empty list or mapping is an empty mask. Raises DataError, which names `key`, for anything else, for another size,
    for run lengths that do not add up to it, and for polygons of fewer than three points or with impossible numbers.
    """
    if isinstance(segmentation, Mapping):
        return decode_runs(segmentation, key, size) if segmentation else np.zeros(size, dtype=bool)
    if isinstance(segmentation, np.ndarray):
        segmentation = segmentation.tolist()
    if not isinstance(segmentation, list | tuple):
        raise damaged(key, f"found {shorten(segmentation)}, expected run lengths, polygons or a mask of 0 and 1")
    if not segmentation:
        return np.zeros(size, dtype=bool)
    if is_bitmap(segmentation, size):
        return read_bitmap(segmentation, key)
    return draw_polygons(segmentation, key, size)


def is_bitmap(segmentation: Sequence[Any], size: tuple[int, int]) -> bool:
    """Return whether a segmentation is a mask of `height` rows of `width` values each."""
    height, width = size
    return len(segmentation) == height and all(
        isinstance(row, list | tuple | np.ndarray) and len(row) == width for row in segmentation
    )


def read_bitmap(rows: Sequence[Any], key: str) -> Mask:
    """Return a mask of rows of zeros and ones. Raises DataError for any other value."""
    for row in rows:
        wrong = next((value for value in row if type(value) not in _BINARY_TYPES or value not in (0, 1)), None)
        if wrong is not None or any(value is None for value in row):
            raise damaged(key, f"found {shorten(wrong)} in a mask of pixels, expected 0 and 1: threshold it first")
    return np.array([list(row) for row in rows], dtype=bool)


def decode_runs(segmentation: Mapping[Any, Any], key: str, size: tuple[int, int]) -> Mask:
    """Return the mask of COCO's run lengths, which go down the columns: outside, inside, outside, ..."""
    if not {"size", "counts"} <= segmentation.keys():
        raise damaged(key, f"found the keys {shorten(list(segmentation))}, expected size and counts")
    found, counts = segmentation["size"], segmentation["counts"]
    if not (isinstance(found, list | tuple | np.ndarray) and len(found) == 2 and all(map(is_number, found))):
        raise damaged(key, f"its size is {shorten(found)}, expected [height, width]")
    if tuple(found) != size:
        raise DataError(key, f"mask of another size: {list(found)}, the image has {list(size)} (height, width)")
    height, width = size
    runs = list(read_compressed(counts, key) if isinstance(counts, str | bytes) else read_counts(counts, key))
    if sum(runs) != height * width:
        raise damaged(key, f"its run lengths add up to {sum(runs)} pixels, expected {height} x {width}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def read_counts(counts: Any, key: str) -> Iterator[int]:
    """Yield uncompressed run lengths. Raises DataError for what is no list of whole numbers from 0."""
    if not isinstance(counts, list | tuple | np.ndarray):
        raise damaged(key, f"its counts are {shorten(counts)}, expected a list of run lengths, or their text")
    for count in counts:
        if not is_number(count) or count < 0 or count != int(count):
            raise damaged(key, f"found the run length {shorten(count)}, expected whole numbers from 0")
        yield int(count)


def read_compressed(text: str | bytes, key: str) -> Iterator[int]:
    """Yield the run lengths of COCO's text.

    A number is written in groups of five bits, the lowest first, one a character from "0"; a sixth bit says that more
    follow, and the last group's highest bit is the sign. From the fourth number on, each is the difference to the one
    before the last. Raises DataError for characters or numbers that cannot be.
    """
    groups = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    before, last, number, shift, index = 0, 0, 0, 0, 0
    for group in groups:
        bits = group - 48
        if not 0 <= bits < 64 or shift > 30:
            raise damaged(key, f"its counts {shorten(text)} are no run lengths as COCO writes them")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        run = number + before if index > 2 else number
        if run < 0:
            raise damaged(key, f"found the run length {run}, expected whole numbers from 0")
        yield run
        before, last, number, shift, index = last, run, 0, 0, index + 1
    if shift:
        raise damaged(key, f"its counts {shorten(text)} end within a number")


def encode_mask(mask: Mask) -> dict[str, Any]:
    """Return a mask as COCO's compressed run lengths; their size is [height, width].

    Example:
        >>> encode_mask(np.ones((2, 3), dtype=bool))
        {'size': [2, 3], 'counts': '06'}
    """
    from pycocotools import mask as coco

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with numpy 2.4
        found = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(length) for length in found["size"]], "counts": found["counts"].decode("ascii")}


def box_of(mask: Mask) -> tuple[int, int, int, int] | None:
    """Return the box around a mask, xyxy in pixels; None for an empty one.

    Example:
        >>> box_of(np.eye(4, dtype=bool)[:2])
        (0, 0, 2, 2)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def draw_polygons(segmentation: Sequence[Any], key: str, size: tuple[int, int]) -> Mask:
    """Return the mask of all polygons together, each [x1, y1, x2, y2, ...] in pixels, at `size` = (height, width)."""
    from pycocotools import mask as coco

    if len(segmentation) > MAX_POLYGONS:
        raise damaged(key, f"it has {len(segmentation):,} polygons, expected at most {MAX_POLYGONS:,}")
    polygons = [check_polygon(polygon, number, key, size) for number, polygon in enumerate(segmentation)]
    if (outline := sum(map(outline_length, polygons))) > MAX_OUTLINE:
        raise damaged(key, f"its polygons are {outline:,.0f} pixels around, expected at most {MAX_OUTLINE:,}")
    encoded = coco.merge([run for polygon in polygons for run in coco.frPyObjects([polygon], *size)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 with numpy 2.4
        return coco.decode(encoded).astype(bool)


def check_polygon(polygon: Any, number: int, key: str, size: tuple[int, int]) -> list[float]:
    """Return a polygon's numbers. Raises DataError where they are no three points or more, in or near the image.

    A point may lie outside the image by as much as the image is long; what is outside is not drawn.
    """
    if not isinstance(polygon, list | tuple | np.ndarray):
        raise damaged(key, f"polygon {number} is {shorten(polygon)}, expected numbers [x1, y1, x2, y2, x3, y3, ...]")
    wrong = next((value for value in polygon if not is_number(value)), None)
    if wrong is not None or any(value is None for value in polygon):
        raise damaged(key, f"polygon {number} holds {shorten(wrong)}, expected numbers [x1, y1, x2, y2, x3, y3, ...]")
    if len(polygon) < 6 or len(polygon) % 2:
        raise damaged(key, f"polygon {number} has {len(polygon)} numbers, expected two each for three points or more")
    values = [float(value) for value in polygon]
    for axis, length in ((values[::2], size[1]), (values[1::2], size[0])):
        far = next((value for value in axis if not -length <= value <= 2 * length), None)
        if far is not None:
            raise damaged(key, f"polygon {number} reaches to {far:g}, far outside {size[1]}x{size[0]} pixels")
    return values


def outline_length(polygon: Sequence[float]) -> float:
    """Return a bound of the number of pixels around a polygon."""
    points = list(zip(polygon[::2], polygon[1::2], strict=True))
    return sum(hypot(x2 - x1, y2 - y1) + 1 for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True))


def damaged(key: str, problem: str) -> DataError:
    """Return the error of a mask that says nothing."""
    return DataError(key, f"damaged mask: {problem}")
