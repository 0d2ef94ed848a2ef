"""Regions of one's own rows, checked at the size of their image, as shards store them.

Coordinates are in pixels there, boxes xyxy, masks run lengths. A DataError's words before ":" are the reason for which
a row is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from virtue_pl.data.formats.own_rows import OwnItem
from virtue_pl.data.formats.own_values import describe_short, is_number
from virtue_pl.data.formats.scar import BOX_SLACK, run_lengths, xyxy
from virtue_pl.preprocessing.segmentations import is_bitmap
from virtue_pl.types import DataError

Size = tuple[int, int]
"""An image's height and width."""
ReadLevels = Callable[[str], UInt8[np.ndarray, "3 height width"]]
"""Reads the pixels of a mask's file; raises DataError."""

OUTSIDE = 1.0
"""Distance that a polygon's corner may lie outside its image, as a share of the image's extent."""


@dataclass(frozen=True)
class OwnRegion:
    """The region of an item at the size of its image.

    boxes: xyxy in pixels. points: (x, y) in pixels. labels: 1 inside, 0 outside. mask: run lengths, None without one.

    Example:
        >>> item = OwnItem(images=("a.jpg",), boxes=((10, 8, 20, 20),), box_format="xywh")
        >>> read_region(item, "train/0", (40, 50), read_levels).boxes  # doctest: +SKIP
        ([10, 8, 30, 28],)
    """

    boxes: tuple[list[float], ...] = ()
    points: tuple[list[float], ...] = ()
    labels: tuple[int, ...] = ()
    mask: dict[str, Any] | None = None

    @property
    def box(self) -> list[float] | None:
        """Return the box around all boxes, or else around the mask; None where there are only points."""
        boxes = self.boxes or (() if self.mask is None else (box_of_runs(self.mask),))
        if len(boxes) < 2:
            return boxes[0] if boxes else None
        low = [min(box[axis] for box in boxes) for axis in (0, 1)]
        return [*low, *(max(box[axis] for box in boxes) for axis in (2, 3))]

    @property
    def prompt(self) -> dict[str, Any]:
        """Return the boxes and points as shards store them; empty where there is one box, or a mask alone."""
        if len(self.boxes) < 2 and not self.points:
            return {}
        boxes = self.boxes or ([] if self.box is None else [self.box])
        found = {"boxes": list(boxes), "points": list(self.points), "labels": list(self.labels)}
        return {name: values for name, values in found.items() if values}

    @property
    def item_prompt(self) -> dict[str, Any]:
        """Return all that is given, as shards store it of a target, a negative or a candidate."""
        found: dict[str, Any] = {"boxes": list(self.boxes), "points": list(self.points), "labels": list(self.labels)}
        return {name: values for name, values in {**found, "mask": self.mask}.items() if values}


def read_region(item: OwnItem, key: str, size: Size, read_levels: ReadLevels) -> OwnRegion:
    """Return the region of an item whose first image has `size` = (height, width).

    Raises DataError for an image of another size than the row says, for coordinates without units that lie within
    [0, 1], outside the image or of no area, for points of which none is inside where nothing else is given, and for a
    mask that is damaged, empty or of another size.
    """
    if item.image_size not in ((), size):
        turned = " (turned upright, as its EXIF data says)" if item.image_size == size[::-1] else ""
        raise DataError(
            key,
            f"image of another size: the row says {list(item.image_size)}, it has {list(size)}{turned} (height, width)",
        )
    check_units(item, key, size)
    boxes = tuple(_box(box, item, key, size) for box in item.boxes)
    points = tuple(_point(point, item, key, size) for point in item.points)
    if points and not any(item.labels) and not boxes and not item.masks:
        raise DataError(
            key, f"no point inside: all {len(points)} labels are 0, expected a point, a box or a mask inside"
        )
    return OwnRegion(boxes, points, item.labels, _union(item, key, size, read_levels))


def check_units(item: OwnItem, key: str, size: Size) -> None:
    """Raise DataError where no units are stated and a box, a polygon or all points lie within [0, 1].

    So it does where they lie beyond and are stated as normalised.
    """
    polygons = [] if _are_rows(item.masks, size) else [mask for mask in item.masks if is_polygon(mask)]
    given = {"boxes": item.boxes, "points": item.points, "masks": polygons}
    for name, vectors in given.items():
        numbers = [[value for value in vector if is_number(value)] for vector in vectors]
        joint = (
            numbers if name != "points" else [[value for vector in numbers for value in vector]]
        )  # one may be (1, 1)
        within = [all(0 <= value <= 1 for value in values) for values in joint]
        small = [vectors[number] for number, values in enumerate(joint) if values and within[number]]
        if small and not item.units:
            raise DataError(
                key,
                f"units not stated: all coordinates of {name} ({describe_short(list(small[0]))}) lie within [0, 1];"
                " say units: normalised, or units: pixels",
            )
        if not all(within) and item.units == "normalised":
            raise DataError(
                key, f"not normalised: {name} {describe_short(vectors)} is beyond [0, 1], and units says so"
            )


def _box(box: Sequence[float], item: OwnItem, key: str, size: Size) -> list[float]:
    height, width = size
    if item.units == "normalised":
        box = [value * extent for value, extent in zip(box, (width, height) * 2, strict=True)]
    if item.box_format == "xywh":
        return xyxy(box, key, size)
    clipped = [float(min(max(value, 0), limit)) for value, limit in zip(box, (width, height) * 2, strict=True)]
    if not all(abs(value - inside) <= BOX_SLACK for value, inside in zip(box, clipped, strict=True)):
        raise DataError(key, f"box outside the image: {list(box)} (xyxy) in {width}x{height} pixels")
    if not (clipped[0] < clipped[2] and clipped[1] < clipped[3]):
        raise DataError(key, f"box without area: {list(box)} (xyxy; is it xywh?)")
    return clipped


def _point(point: Sequence[float], item: OwnItem, key: str, size: Size) -> list[float]:
    height, width = size
    x, y = point if item.units != "normalised" else (point[0] * width, point[1] * height)
    clipped = [float(min(max(x, 0), width)), float(min(max(y, 0), height))]
    if max(abs(clipped[0] - x), abs(clipped[1] - y)) > BOX_SLACK:
        raise DataError(key, f"point outside the image: {[x, y]} in {width}x{height} pixels")
    return clipped


def _union(item: OwnItem, key: str, size: Size, read_levels: ReadLevels) -> dict[str, Any] | None:
    """Return the run lengths of all masks together; None without any."""
    masks = list(item.masks)
    if not masks:
        return None
    if _are_rows(masks, size):
        return run_lengths(masks, key, size)
    polygons = [_polygon(mask, item, key, size) for mask in masks if isinstance(mask, list)]
    found = [run_lengths(polygons, key, size)] if polygons else []
    for mask in masks:
        if isinstance(mask, str):
            found.append(run_lengths(_two_levels(read_levels(mask), mask, key, size), key, size))
        elif isinstance(mask, Mapping):
            found.append(run_lengths(_checked_runs(mask, key, size), key, size))
    if len(found) == 1:
        return found[0]
    inside = np.any([decode_runs(runs) for runs in found if runs is not None], axis=0)
    return run_lengths(inside.astype(int).tolist(), key, size)


def _are_rows(masks: Sequence[Any], size: Size) -> bool:
    """Return whether masks are together the rows of a bitmap of the image's size."""
    return bool(masks) and all(map(is_polygon, masks)) and is_bitmap(masks, size)


def is_polygon(mask: Any) -> bool:
    """Return whether a mask is a flat list of values, as a polygon is."""
    return isinstance(mask, list) and not any(isinstance(value, list | tuple | Mapping) for value in mask)


def _polygon(mask: list[Any], item: OwnItem, key: str, size: Size) -> list[float]:
    """Return a polygon in pixels. Raises DataError for one that cannot be drawn."""
    expected = "expected [x, y, x, y, ...] of three points or more"
    if not is_polygon(mask) or not all(map(is_number, mask)):
        raise DataError(key, f"damaged mask: polygon {describe_short(mask)}, {expected}")
    if len(mask) < 6 or len(mask) % 2:
        raise DataError(key, f"damaged mask: polygon of {len(mask)} values, {expected}")
    height, width = size
    extents = (width, height) * (len(mask) // 2)
    if item.units == "normalised":
        mask = [value * extent for value, extent in zip(mask, extents, strict=True)]
    if any(
        not -OUTSIDE * extent <= value <= (1 + OUTSIDE) * extent for value, extent in zip(mask, extents, strict=True)
    ):
        raise DataError(key, f"mask outside the image: polygon {describe_short(mask)} in {width}x{height} pixels")
    return mask


def _checked_runs(mask: Mapping[str, Any], key: str, size: Size) -> dict[str, Any]:
    """Return run lengths with plain counts. Raises DataError where they do not add up to the image's pixels."""
    if not {"size", "counts"} <= set(mask):
        raise DataError(key, f"damaged mask: {describe_short(dict(mask))}, expected run lengths: size and counts")
    stated, counts = mask["size"], mask["counts"]
    if not isinstance(stated, list | tuple) or list(stated) != list(size):
        raise DataError(
            key, f"mask of another size: {describe_short(stated)}, the image has {list(size)} (height, width)"
        )
    plain = compressed_counts(counts) if isinstance(counts, str) else counts
    if not isinstance(plain, list) or not all(is_number(count, int) and count >= 0 for count in plain):
        raise DataError(key, f"damaged mask: counts {describe_short(counts)}, expected run lengths of 0 or more pixels")
    if sum(plain) != size[0] * size[1]:
        raise DataError(
            key, f"damaged mask: its run lengths add up to {sum(plain)}, not to {size[0]} x {size[1]} pixels"
        )
    return {"size": list(size), "counts": plain}


def compressed_counts(text: str) -> list[int] | None:
    """Return the run lengths of COCO's compressed string; None where it is none.

    Five bits a character from the lowest on, the sixth says that more follow; from the third run on, a run is stored as
    its difference to the run two before.

    Example:
        >>> compressed_counts("52203")
        [5, 2, 2, 2, 5]
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= 1 << shift if bits & 16 else 0
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return None if shift else counts


def _two_levels(levels: UInt8[np.ndarray, "3 height width"], path: str, key: str, size: Size) -> list[list[int]]:
    """Return an image of two levels, of which 0 is outside, as rows of 0 and 1."""
    if levels.shape[1:] != size:
        raise DataError(key, f"mask of another size: {list(levels.shape[1:])}, the image has {list(size)} ({path})")
    colours = np.unique(levels.reshape(3, -1), axis=1)
    if colours.shape[1] > 2 or (colours.shape[1] == 2 and colours[:, 0].any()):
        raise DataError(
            key, f"mask of several levels: {path} has {colours.shape[1]}, expected 0 (outside) and one other (inside)"
        )
    return levels.any(axis=0).astype(int).tolist()


def decode_runs(runs: Mapping[str, Any]) -> Bool[np.ndarray, "height width"]:
    """Return the mask of plain run lengths, which go down the columns."""
    height, width = runs["size"]
    return np.repeat(np.arange(len(runs["counts"])) % 2 == 1, runs["counts"]).reshape(width, height).T


def box_of_runs(runs: Mapping[str, Any]) -> list[float]:
    """Return the smallest box around a mask that is not empty, xyxy in pixels."""
    inside = decode_runs(runs)
    rows, columns = _bounds(inside.any(axis=1)), _bounds(inside.any(axis=0))
    return [float(columns[0]), float(rows[0]), float(columns[1]), float(rows[1])]


def _bounds(found: Any) -> tuple[int, int]:
    indices = np.flatnonzero(np.asarray(found))
    return int(indices[0]), int(indices[-1]) + 1
