"""SCaR's parquet files and pictures to folders of shards."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtue_pl.data.grouped_parquet import Group, column_names, grouped_rows, num_rows
from virtue_pl.data.scar_rows import form_columns, pair_row, ranking_row
from virtue_pl.data.shards import FORMAT, MANIFEST, Manifest, ShardWriter, file_sha256
from virtue_pl.images import MAX_PIXELS, read_header
from virtue_pl.types import DataError, VirtueError

PAIR_COLUMNS = ("qry", "qry_image_path", "pos_text", "bbox")
RANKING_COLUMNS = ("qry_text", "qry_image_path", "tgt_text", "bbox")
OPTIONAL_COLUMNS = ("neg_text", "segmentation", "category")
PUBLISHED_LICENCE = "CC-BY-NC-4.0"

Advance = Callable[[int], None]
Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Called with a file's name and its number of rows; what it gives is called with the number of rows done."""


@contextmanager
def silent(name: str, rows: int) -> Iterator[Advance]:
    """No progress is shown."""
    yield lambda rows: None


@dataclass(frozen=True)
class Settings:
    """What, beside its source, makes a folder of shards what it is."""

    pictures_per_shard: int
    seed: int
    licence: str
    max_pixels: int


@dataclass(frozen=True)
class SCaRFile:
    """One of SCaR's parquet files. `task` names the dataset, whichever split the file is."""

    path: Path
    kind: str
    task: str

    @property
    def name(self) -> str:
        return self.path.stem


def find_files(root: Path) -> list[SCaRFile]:
    """The training and evaluation files under `root`. Raises VirtueError if there are none."""
    pairs = [SCaRFile(path, "pairs", _task(path, "SCAR_")) for path in sorted((root / "SCaR-train").glob("SCAR_*.parquet"))]
    rankings = [SCaRFile(path, "rankings", _task(path, "SCaR_eval_")) for path in sorted((root / "SCaR-eval").glob("SCaR_eval_*.parquet"))]
    if not pairs + rankings:
        raise VirtueError(f"--root {root}: found neither SCaR-train/SCAR_*.parquet nor SCaR-eval/SCaR_eval_*.parquet")
    return pairs + rankings


def _task(path: Path, prefix: str) -> str:
    return "scar_" + re.sub(r"_(train|val|test(_.*)?)$", "", path.stem.removeprefix(prefix))


def convert_scar(
    root: str | Path,
    out: str | Path,
    *,
    pictures_per_shard: int = 100,
    seed: int = 0,
    licence: str | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = silent,
) -> dict[str, Manifest]:
    """Writes OUT/NAME for every parquet file NAME under `root`: shards of pictures in seeded random order, and a manifest.

    What is finished from the same source is kept; a stopped file is begun anew. Rows that cannot be used are left out, counted
    and named in the manifest. Raises VirtueError for missing columns, and for shards in OUT that were made from something else.

    Args:
        licence: of the data; by default what composed scenes say of themselves, or else the published SCaR's.
    """
    root, out = Path(root), Path(out)
    settings = Settings(pictures_per_shard, seed, licence or _licence(root), max_pixels)
    files = find_files(root)
    columns = {file: _columns(file) for file in files}
    finished = {file: _finished(file, out / file.name, settings) for file in files}
    return {file.name: finished[file] or _convert(file, root, out, columns[file], settings, progress) for file in files}


def _licence(root: Path) -> str:
    scenes = root / "scenes.json"
    if not scenes.is_file():
        return PUBLISHED_LICENCE
    licences: dict[str, str] = json.loads(scenes.read_text(encoding="utf-8"))["licences"]
    return "; ".join(f"{name}: {licence}" for name, licence in licences.items())


def _columns(file: SCaRFile) -> list[str]:
    found = column_names(file.path)
    needed = PAIR_COLUMNS if file.kind == "pairs" else RANKING_COLUMNS
    missing = [name for name in needed if name not in found]
    if missing:
        raise VirtueError(f"{file.path} lacks the columns {', '.join(missing)}; it has {', '.join(found)}")
    forms = [name for name in found if name in form_columns(found) or name.startswith("tgt_kinds_")] if file.kind == "rankings" else []
    return list(dict.fromkeys([*needed, *(name for name in OPTIONAL_COLUMNS if name in found), *forms]))


def _source(file: SCaRFile, settings: Settings) -> str:
    return hashlib.sha256(f"{FORMAT} {file_sha256(file.path)} {settings}".encode()).hexdigest()


def _finished(file: SCaRFile, folder: Path, settings: Settings) -> Manifest | None:
    if not folder.exists():
        return None
    manifest = Manifest.read(folder / MANIFEST) if (folder / MANIFEST).is_file() else None
    if manifest is None or manifest.source != _source(file, settings):
        raise VirtueError(f"{folder} holds something else than shards of {file.path} with these settings: remove it, or change --out")
    return manifest


def _convert(file: SCaRFile, root: Path, out: Path, columns: list[str], settings: Settings, progress: Progress) -> Manifest:
    writer = ShardWriter(out / file.name, settings.pictures_per_shard)
    negatives: set[int] = set()
    rankings: dict[str, None] = {}
    with progress(file.name, num_rows(file.path)) as advance:
        for group in grouped_rows(file.path, columns, "qry_image_path", settings.seed):
            rows = _write_picture(file, root / "images", group, writer, settings.max_pixels)
            negatives |= {len(row["negatives"]) for row in rows if "negatives" in row}
            rankings |= {name: None for row in rows for name in row.get("rankings", ())}
            advance(len(group))
    return writer.finish(
        name=file.name,
        kind=file.kind,
        task=file.task,
        meta_task="region captions",
        licence=settings.licence,
        source=_source(file, settings),
        negatives=(min(negatives, default=0), max(negatives, default=0)),
        rankings=tuple(rankings),
    )


def _write_picture(file: SCaRFile, images: Path, group: Group, writer: ShardWriter, max_pixels: int) -> list[dict[str, Any]]:
    """Writes one picture with its usable rows, which are returned; the others are noted."""
    image = group[0][1]["qry_image_path"]
    try:
        data = read_picture(images, image, f"{file.name} ({image})")
        header = read_header(data, f"{file.name} ({image})", max_pixels)
    except DataError as error:
        for number, _ in group:
            writer.skip(DataError(f"{file.name}/{number}", error.problem))
        return []
    rows = []
    to_row = pair_row if file.kind == "pairs" else ranking_row
    for number, row in group:
        try:
            rows.append(to_row(row, f"{file.name}/{number}", number, (header.height, header.width)))
        except DataError as error:
            writer.skip(error)
    if rows:
        writer.add([(data, header.extension)], image, rows)
    return rows


def read_picture(images: Path, image: str | None, key: str) -> bytes:
    """The bytes of a picture named in a table, which may not lead out of the folder `images`."""
    path = (images / (image or "")).resolve()
    if not image or not path.is_relative_to(images.resolve()):
        raise DataError(key, f"no picture: {image!r} names no file in {images}")
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(key, f"missing picture: {images / image} ({error.strerror})") from error
