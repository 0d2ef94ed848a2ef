"""COCO's annotation files to rows: an annotation's image, box and mask, and its caption or its category's name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from virtue_pl.data.conversion.text_rows import SourceRow
from virtue_pl.types import VirtueError


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
    categories = _names(path, content, "categories", "name")
    for number, annotation in enumerate(content["annotations"]):
        yield _row(number, path, annotation, images, categories)


def _content(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise VirtueError(f"{path} is no JSON that can be read ({error}): mend it, or take it out") from error


def _names(path: Path, content: Mapping[str, Any], entries: str, field: str) -> dict[Any, Any]:
    try:
        return {entry["id"]: entry[field] for entry in content.get(entries) or ()}
    except (KeyError, TypeError) as error:
        raise VirtueError(f"{path}: an entry of {entries} lacks {error}, expected id and {field}") from error


def _row(
    number: int, path: Path, annotation: Any, images: Mapping[Any, Any], categories: Mapping[Any, Any]
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
    return SourceRow(number, where, {"image": image, "target": target, **region})
