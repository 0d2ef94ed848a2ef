"""Rows of one's own data as they are given to rows of one spelling: a query, a target, negatives and candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from virtue_pl.data.formats.own_columns import (
    BOX_FORMATS,
    COLUMNS,
    FIELDS,
    LISTS,
    UNITS,
    WHOLE,
    describe_unknown,
)
from virtue_pl.data.formats.own_values import Cell, EmbedImage, refuse_bytes
from virtue_pl.types import DataError

BOX = "four numbers, [left, top, right, bottom] (xyxy) or [left, top, width, height] (xywh)"
COCO_BOX = "four numbers, [left, top, width, height] in pixels"
REGION = ("bbox", "boxes", "points", "masks", "segmentation")
POINTS = "a list of points [x, y]"


@dataclass(frozen=True)
class RowOptions:
    """Values that hold for all rows which do not say them.

    Example:
        >>> RowOptions(units="normalised").fingerprint_text
        "units='normalised'"
    """

    box_format: str | None = None
    units: str | None = None
    instruction: str = ""
    ignored_columns: tuple[str, ...] = ()

    @property
    def fingerprint_text(self) -> str:
        """Return the options that are set, in words."""
        return ", ".join(f"{name}={value!r}" for name, value in asdict(self).items() if value)


@dataclass(frozen=True)
class OwnItem:
    """A query, a target, a negative or a candidate: text, images, and the region of the first of them.

    Coordinates are as they were given, see `own_regions`.

    Example:
        >>> OwnItem("a kettle").has_region
        False
    """

    text: str = ""
    images: tuple[str, ...] = ()
    boxes: tuple[tuple[float, ...], ...] = ()
    box_format: str = ""
    units: str = ""
    points: tuple[tuple[float, ...], ...] = ()
    labels: tuple[int, ...] = ()
    masks: tuple[Any, ...] = ()
    image_size: tuple[int, ...] = ()
    """(height, width) that the first image must have where there is a region; () for any."""

    @property
    def has_region(self) -> bool:
        """Return whether the item points at something."""
        return bool(self.boxes or self.points or self.masks)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the paths of images and of masks in files."""
        return (*self.images, *(mask for mask in self.masks if isinstance(mask, str)))


@dataclass(frozen=True)
class OwnRow:
    """A row of one's own data, whichever way it was written.

    Example:
        >>> row = read_row({"image": "a.jpg", "target": "a kettle"}, "train/0")
        >>> row.query.images, row.target.text, OwnRow.from_json(row.to_json()) == row
        (('a.jpg',), 'a kettle', True)
    """

    query: OwnItem = OwnItem()
    target: OwnItem | None = None
    negatives: tuple[OwnItem, ...] = ()
    candidates: tuple[OwnItem, ...] | None = None

    @property
    def items(self) -> tuple[OwnItem, ...]:
        """Return all items: the query, the target, the negatives, the candidates."""
        target = () if self.target is None else (self.target,)
        return (self.query, *target, *self.negatives, *(self.candidates or ()))

    def to_json(self) -> str:
        """Return the row as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> OwnRow:
        """Return the row that `to_json` wrote."""
        content = json.loads(text)
        target, candidates = content["target"], content["candidates"]
        return cls(
            _from_fields(content["query"]),
            None if target is None else _from_fields(target),
            tuple(map(_from_fields, content["negatives"])),
            None if candidates is None else tuple(map(_from_fields, candidates)),
        )


def _from_fields(fields: Mapping[str, Any]) -> OwnItem:
    nested = {name: tuple(tuple(vector) for vector in fields[name]) for name in ("boxes", "points")}
    flat = {name: tuple(fields[name]) for name in ("images", "labels", "masks", "image_size")}
    return OwnItem(**{**fields, **nested, **flat})


def read_row(
    row: Mapping[str, Any], key: str, options: RowOptions = RowOptions(), embed: EmbedImage = refuse_bytes
) -> OwnRow:
    """Return a row in one spelling, whichever names and types it has.

    Args:
        row: values by column; None is no value.
        key: of the row, for errors.
        options: what holds where the row does not say it.
        embed: stores an image that is inside the row.

    Raises:
        DataError: an unknown column, a value of another type, two names for one value, lists of unequal length.
    """
    cells: dict[str, dict[str, Cell]] = {"query": {}, "target": {}}
    lists: dict[str, Cell] = {}
    for column, value in row.items():
        if column in options.ignored_columns:
            continue
        if column not in COLUMNS and column not in LISTS:
            raise DataError(key, f"{describe_unknown(str(column))} (--ignore-column leaves one out)")
        if value is None:
            continue
        if column in LISTS:
            lists[column] = Cell(key, column, value)
        else:
            item, field = COLUMNS[column]
            _add(cells[item], field, Cell(key, column, value))
    shared = replace(options, **_stated(cells["query"]))
    query = _item(cells["query"], shared, embed)
    if not query.text and options.instruction:
        query = replace(query, text=options.instruction)
    target = _item(cells["target"], replace(shared, **_stated(cells["target"])), embed) if cells["target"] else None
    negatives = _items(lists.get("negatives"), lists.get("negative_images"), key, shared, embed)
    candidates = _items(lists.get("candidates"), lists.get("candidate_images"), key, shared, embed)
    return OwnRow(query, target, tuple(found for found in negatives if found != OwnItem()), tuple(candidates) or None)


def _add(cells: dict[str, Cell], field: str, cell: Cell) -> None:
    """Add the cell of a field; an object gives several. Raises DataError for a field that is there already."""
    if field == WHOLE and isinstance(cell.value, Mapping):
        for name, value in cell.value.items():
            if name not in FIELDS:
                raise DataError(cell.key, f"{describe_unknown(str(name), FIELDS)} in {cell.column}")
            if value is not None:
                _add(cells, name, Cell(cell.key, f"{cell.column}.{name}", value))
        return
    field = "text" if field == WHOLE else field
    if field in cells:
        raise DataError(cell.key, f"given twice: {cells[field].column} and {cell.column} are the same, expected one")
    cells[field] = cell


def _stated(cells: Mapping[str, Cell]) -> dict[str, Any]:
    """Return the box format and the units that an item states."""
    allowed = {"box_format": BOX_FORMATS, "units": UNITS}
    return {name: cells[name].name(names) for name, names in allowed.items() if name in cells and cells[name].value}


def _item(cells: Mapping[str, Cell], shared: RowOptions, embed: EmbedImage) -> OwnItem:
    parts = [cells[name].text() for name in ("instruction", "text") if name in cells]
    points = cells["points"].vectors(2, POINTS) if "points" in cells else ()
    if "labels" in cells and not points and cells["labels"].value:
        raise DataError(cells["labels"].key, f"{cells['labels'].column} without points: expected points beside them")
    labels = cells["labels"].labels(len(points)) if points and "labels" in cells else (1,) * len(points)
    boxes, box_format = _boxes(cells, shared)
    text = " ".join(filter(None, parts))
    text, images, masks = text if text.strip() else "", _images(cells, embed), _masks(cells, embed)
    found = OwnItem(text, images, boxes, box_format, "", points, labels, masks)
    if found.has_region and not images:
        given = next(cells[name] for name in REGION if name in cells)
        raise DataError(given.key, f"region without an image: {given.column} is given, and no image")
    return replace(found, units=shared.units or "") if found.has_region else found


def _boxes(cells: Mapping[str, Cell], shared: RowOptions) -> tuple[tuple[tuple[float, ...], ...], str]:
    """Return the boxes and their format; "" without any."""
    if "bbox" in cells and "boxes" in cells:
        raise DataError(cells["boxes"].key, "given twice: boxes and bbox are the same, expected one")
    if "bbox" in cells:
        boxes = cells["bbox"].vectors(4, COCO_BOX, exact=True)
        if len(boxes) != 1:
            raise cells["bbox"].refuse(COCO_BOX)
        return boxes, "xywh"
    boxes = cells["boxes"].vectors(4, BOX) if "boxes" in cells else ()
    if boxes and not shared.box_format:
        column = cells["boxes"].column
        raise DataError(cells["boxes"].key, f"box_format not stated: {column} needs box_format, xyxy or xywh")
    return boxes, shared.box_format or "" if boxes else ""


def _images(cells: Mapping[str, Cell], embed: EmbedImage) -> tuple[str, ...]:
    if "image" in cells and "images" in cells:
        raise DataError(cells["image"].key, "given twice: image and images are the same, expected one")
    if "images" in cells:
        several = cells["images"]
        entries = [Cell(several.key, several.column, value) for value in several.entries() if value not in (None, "")]
        return tuple(filter(None, (entry.image(embed) for entry in entries)))
    return tuple(filter(None, [cells["image"].image(embed)])) if "image" in cells else ()


def _masks(cells: Mapping[str, Cell], embed: EmbedImage) -> tuple[Any, ...]:
    """Return the masks as they are given: paths, run lengths, polygons, rows of a bitmap."""
    if "masks" in cells and "segmentation" in cells:
        raise DataError(cells["masks"].key, "given twice: masks and segmentation are the same, expected one")
    cell = cells.get("masks") or cells.get("segmentation")
    if cell is None or cell.value == "":
        return ()
    found = cell.structured()
    if cell.column.endswith("segmentation") and not found:
        raise DataError(cell.key, f"empty mask: {cell.column} is {cell.value!r}, expected polygons or run lengths")
    entries = list(found) if isinstance(found, list | tuple) else [found]
    if entries and all(not isinstance(entry, list | tuple | Mapping | str | bytes) for entry in entries):
        entries = [entries]  # one polygon
    return tuple(_mask(Cell(cell.key, cell.column, entry), embed) for entry in entries)


def _mask(cell: Cell, embed: EmbedImage) -> Any:
    value = cell.value
    if isinstance(value, str | bytes) or (isinstance(value, Mapping) and value and set(value) <= {"bytes", "path"}):
        path = cell.image(embed)
        if not path:
            raise cell.refuse("the path of a mask")
        return path
    if isinstance(value, Mapping):
        counts = value.get("counts")
        return {**value, "counts": counts.decode("latin-1")} if isinstance(counts, bytes) else dict(value)
    if not isinstance(value, list | tuple):
        raise cell.refuse("a polygon [x, y, ...], run lengths, or the path of a mask")
    return list(value)


def _items(
    items: Cell | None, images: Cell | None, key: str, shared: RowOptions, embed: EmbedImage
) -> Sequence[OwnItem]:
    """Return negatives or candidates, whose texts or objects and images stand side by side."""
    columns = [[] if cell is None else cell.entries() for cell in (items, images)]
    longest = max(map(len, columns))
    if any(column and len(column) != longest for column in columns):
        name = items.column if items else ""
        raise DataError(key, f"{name} do not match: {len(columns[0])} texts and {len(columns[1])} images")
    filled = [column or [None] * longest for column in columns]
    names = [cell.column if cell else "" for cell in (items, images)]
    found = []
    for number, (value, image) in enumerate(zip(*filled, strict=True)):
        cells: dict[str, Cell] = {}
        if value is not None:
            _add(cells, WHOLE, Cell(key, f"{names[0]}[{number}]", value))
        if image not in (None, ""):
            _add(cells, "image", Cell(key, f"{names[1]}[{number}]", image))
        found.append(_item(cells, replace(shared, **_stated(cells)), embed) if cells else OwnItem())
    return found
