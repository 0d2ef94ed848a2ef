"""Folders of images with captions: `photo.jpg` beside `photo.txt`, or metadata as Hugging Face's imagefolder has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from virtue_pl.data.conversion.arrow_rows import read_tables, table_columns
from virtue_pl.data.conversion.text_rows import READERS, SourceRow

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".webp"),
    *(".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".heif"),
)
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
ANSWERS = ("target", "target_text", "target_image", "target_images", "candidates", "candidate_images")
CAPTIONS = ("text", "caption")
"""Columns of metadata that hold an image's caption, where there is no answer."""


def metadata_file(folder: Path) -> Path | None:
    """Return a folder's table of metadata, which has a column `file_name`; None where there is none."""
    found = (folder / name for name in METADATA if (folder / name).is_file())
    return next((path for path in found if "file_name" in _first_columns(path)), None)


def _first_columns(path: Path) -> Sequence[str]:
    """Return the columns of a table's first row."""
    if path.suffix == ".parquet":
        return table_columns(path)
    return next((list(row.values) for row in READERS[path.suffix](path)), [])


def is_image_folder(folder: Path) -> bool:
    """Return whether a folder has a table of metadata, or an image beside a text of its name."""
    if metadata_file(folder) is not None:
        return True
    texts = {path.with_suffix("") for path in folder.glob("*.txt")}
    return any(path.with_suffix("") in texts for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)


def read_image_folder(folder: Path) -> Iterator[SourceRow]:
    """Yield a row for each image: the image, and its caption as target."""
    table = metadata_file(folder)
    if table is None:
        yield from _read_captions(folder)
        return
    rows = read_tables([table]) if table.suffix == ".parquet" else READERS[table.suffix](table)
    for row in rows:
        yield SourceRow(row.number, row.where, to_pair(row.values), row.problem or find_problem(row.values))


def to_pair(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of metadata in our columns: `file_name` is the image, and `text` or `caption` the target.

    Where the row has a target or candidates, `text` stays the query's.
    """
    renamed = {"image" if name == "file_name" else name: value for name, value in row.items()}
    if any(renamed.get(name) is not None for name in ANSWERS):
        return renamed
    captions = [name for name in CAPTIONS if row.get(name) is not None]
    answer = {"target": renamed[captions[0]]} if captions else {}
    return {name: value for name, value in renamed.items() if name not in (*CAPTIONS, "target")} | answer


def find_problem(row: Mapping[str, Any]) -> str:
    """Return what is wrong with a row of metadata that says an image's name or caption twice; "" for any other."""
    twice = [names for names in (("file_name", "image"), CAPTIONS) if all(row.get(name) is not None for name in names)]
    if not twice or (twice[0] == CAPTIONS and any(row.get(name) is not None for name in ANSWERS)):
        return ""
    return f"given twice: {' and '.join(twice[0])} are the same, expected one"


def caption_files(folder: Path) -> list[Path]:
    """Return the files that say what a folder's rows are: its table of metadata, or its captions."""
    table = metadata_file(folder)
    return sorted(folder.rglob("*.txt")) if table is None else [table]


def _read_captions(folder: Path) -> Iterator[SourceRow]:
    images: dict[Path, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            images.setdefault(path.relative_to(folder).with_suffix(""), []).append(path)
    texts = {path.relative_to(folder).with_suffix(""): path for path in sorted(folder.rglob("*.txt"))}
    for number, name in enumerate(sorted({*images, *texts})):
        yield _caption_row(number, folder, images.get(name, []), texts.get(name))


def _caption_row(number: int, folder: Path, images: Sequence[Path], text: Path | None) -> SourceRow:
    image = next(iter(images), None)
    where = str((image or text or folder).relative_to(folder))
    if len(images) > 1:
        names = " and ".join(path.name for path in images)
        return SourceRow(number, where, {}, f"images of one name: {names} have one caption, expected one image")
    if image is None:
        return SourceRow(number, where, {}, "caption without an image: expected an image of the same name beside it")
    if text is None:
        return SourceRow(number, where, {}, "image without a caption: expected a .txt of the same name beside it")
    try:
        caption = text.read_text(encoding="utf-8-sig").strip()
    except (OSError, ValueError) as error:
        return SourceRow(number, where, {}, f"unreadable caption: {error}")
    return SourceRow(number, where, {"image": image.relative_to(folder).as_posix(), "target": caption})
