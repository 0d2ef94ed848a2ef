"""COCO's annotation files to rows: an annotation's image, box and mask, and its caption or its category's name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from virtue_pl.data.conversion.text_rows import SourceRow
from virtue_pl.data.formats.own_values import describe_short
from virtue_pl.types import VirtueError

MAX_SIDE = 2**31
"""Pixels of a side beyond which a stated size is none."""


def is_coco(path: Path) -> bool:
    """Return whether a JSON file has COCO's images and annotations. Raises VirtueError for one that is cut off."""
    if b'"annotations"' not in path.read_bytes():
        return False
    content = _content(path)
    return isinstance(content, dict) and isinstance(content.get("annotations"), list) and "images" in content


def read_coco(path: Path) -> Iterator[SourceRow]:
    """Yield a row for each annotation: image, bbox, segmentation, and as target the caption, or the category's name.

    Raises VirtueError where images or categories have no ids.
    """
    content = _content(path)
    images = _names(path, content, "images", "file_name")
    sizes = {entry["id"]: stated_size(entry) for entry in content["images"]}
    categories = _names(path, content, "categories", "name")
    for number, annotation in enumerate(content["annotations"]):
        yield _row(number, path, annotation, images, categories, sizes)


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise VirtueError(f"{path} is no JSON that can be read ({error}): mend it, or take it out") from error


def _names(path: Path, content: Mapping[str, Any], entries: str, field: str) -> dict[Any, Any]:
    """Return a field of each entry by its id. Raises VirtueError where one lacks either, or two share an id."""
    found: dict[Any, Any] = {}
    listed = content.get(entries) or []
    if not isinstance(listed, list):
        raise VirtueError(f"{path}: {entries} is {describe_short(listed)}, expected a list of objects")
    for entry in listed:
        named = isinstance(entry, dict) and {"id", field} <= entry.keys()
        if not named or not isinstance(entry["id"], int | str):
            raise VirtueError(f"{path}: {describe_short(entry)} is among {entries}, expected an id and {field}")
        if found.setdefault(entry["id"], entry[field]) != entry[field]:
            raise VirtueError(
                f"{path}: two entries of {entries} have the id {entry['id']!r}, {found[entry['id']]!r} and"
                f" {entry[field]!r}, expected an id of its own for each"
            )
    return found


def stated_size(entry: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the (height, width) that an entry of images says; () where it says none.

    Example:
        >>> stated_size({"id": 3, "height": 480, "width": 640}), stated_size({"id": 3})
        ((480, 640), ())
    """
    height, width = entry.get("height"), entry.get("width")
    whole = type(height) is int and type(width) is int and 0 < height < MAX_SIDE and 0 < width < MAX_SIDE
    return (height, width) if whole else ()  # type: ignore[return-value]


def _row(
    number: int,
    path: Path,
    annotation: Any,
    images: Mapping[Any, Any],
    categories: Mapping[Any, Any],
    sizes: Mapping[Any, tuple[int, ...]],
) -> SourceRow:
    where = f"{path.name}, annotations[{number}]"
    if not isinstance(annotation, dict):
        return SourceRow(number, where, {}, f"no object: found {type(annotation).__name__}, expected an annotation")
    where += f", id {annotation.get('id')}"
    try:
        image = images[annotation["image_id"]]
        target = annotation.get("caption") or categories.get(annotation.get("category_id"))
    except (KeyError, TypeError) as error:
        return SourceRow(number, where, {}, f"image of no entry: image_id {error} is not among the images' ids")
    if target is None:
        return SourceRow(number, where, {}, "missing target: neither a caption nor the id of a category")
    box = annotation.get("bbox")
    if isinstance(box, list) and all(type(value) in (int, float) and abs(value) < 2**53 for value in box):
        box = [float(value) for value in box]
    region = {"bbox": box or None, "segmentation": annotation.get("segmentation") or None}
    values = {"image": image, "target": target, **region}
    return SourceRow(number, where, values, image_size=sizes[annotation["image_id"]])
