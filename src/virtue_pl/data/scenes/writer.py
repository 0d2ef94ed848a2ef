"""The writer of a set of scenes: in blocks, by several processes, resumable, each file complete or absent."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from virtue_pl.data.io.atomic import read_json, write_json
from virtue_pl.data.scenes.config import SPLITS, SceneConfig
from virtue_pl.data.scenes.library import SceneLibrary
from virtue_pl.data.scenes.mmeb.tasks import NOTES, TASKS
from virtue_pl.data.scenes.shapes import draw_shapes
from virtue_pl.data.scenes.stamps import load_stamps, stamp_contents
from virtue_pl.data.scenes.tables.sheets import Sheet, sheets_of
from virtue_pl.types import VirtueError, replace_whole
from virtue_pl.types.fingerprints import hash_values, library_versions

FORMAT = 1
"""Raised whenever equal settings begin to give other files."""
LIBRARIES = ("pillow", "numpy")
"""Libraries that draw: of other versions, equal settings may give other files."""
BLOCK = 100
"""Scenes, or groups with about as many rows, that are written at a time."""
PARTS = ".parts"


@dataclass(frozen=True)
class Block:
    """Drawings `start` to `stop` of a sheet, with `rows` rows in all, which one process writes at a time.

    Example:
        >>> from virtue_pl.data.scenes.tables.sheets import SCaRSheet
        >>> Block(SCaRSheet(300, 2, "val"), start=0, stop=100, rows=200).path
        '.parts/val/000000000.parquet'
    """

    sheet: Sheet
    start: int
    stop: int
    rows: int

    @property
    def path(self) -> str:
        """Return the path of the block's file, relative to the root."""
        return f"{PARTS}/{self.sheet.name}/{self.start:09d}.parquet"


def load_library(config: SceneConfig) -> SceneLibrary:
    """Return the shapes or photographs that a set of scenes is composed of."""
    return draw_shapes() if config.source == "shapes" else load_stamps(config.images, config.size)


def write_scenes(config: SceneConfig, out: str | Path, workers: int = 1) -> dict[str, Any]:
    """Write a set of scenes into `out`, and return the content of its `scenes.json`.

    A call resumes where an earlier one was stopped. Raises VirtueError for a folder that holds something else, or
    scenes of other settings.
    """
    out = Path(out)
    identity = fingerprint(config)
    found = _begin(out, config, identity)
    sheets = sheets_of(config)
    if found["finished"] and all((out / sheet.parquet).exists() for sheet in sheets):
        return found
    library = load_library(config)
    pending = [block for sheet in sheets if not (out / sheet.parquet).exists() for block in _blocks(sheet)]
    _write_blocks([block for block in pending if not (out / block.path).exists()], config, library, out, workers)
    for sheet in sheets:
        _merge(out, sheet)
    manifest = {**found, **_describe(config, library), "finished": True}
    write_json(out / "scenes.json", manifest)
    shutil.rmtree(out / PARTS, ignore_errors=True)
    return manifest


def settings_of(config: SceneConfig) -> dict[str, Any]:
    """Return the settings that scenes depend on; those of MMEB-mini only where it is written."""
    unused = {"cache"} if config.mmeb_train or config.mmeb_test else {"cache", "mmeb_train", "mmeb_test"}
    return {name: value for name, value in asdict(config).items() if name not in unused}


def fingerprint(config: SceneConfig) -> str:
    """Return a fingerprint of the settings, the images' content and the libraries: equal for equal scenes."""
    contents = [] if config.source == "shapes" else stamp_contents(config.images)
    return hash_values(FORMAT, library_versions(LIBRARIES), settings_of(config), contents)[:16]


def _blocks(sheet: Sheet) -> list[Block]:
    each = sheet.rows_per_drawing
    size = max(1, 2 * BLOCK // each)
    return [
        Block(sheet, start, min(start + size, sheet.drawings), min(size * each, sheet.rows - start * each))
        for start in range(0, sheet.drawings, size)
    ]


def _describe(config: SceneConfig, library: SceneLibrary) -> dict[str, Any]:
    found = {
        "samples": {split: config.samples(split) for split in SPLITS},
        "objects": {split: len(library.of_split(split)) for split in ("train", "held_out")},
        "missing_pictures": list(library.missing),
        "backgrounds": [
            {"phrase": background.phrase, "photograph": photograph.name, "split": photograph.split}
            for background in library.backgrounds
            for photograph in background.photographs
        ],
        "licences": library.licences,
        "notes": [
            (
                "Composed scenes with templated captions: numbers on them cannot be compared with numbers on the"
                " published SCaR."
            ),
            (
                "A phrase with a test photograph is tested on that photograph alone; a phrase without one is tested on"
                " other random crops of its training photographs. The column background_in_train tells the rows apart."
            ),
            (
                "val and test_seen show objects of training: the same cut-outs at other sizes, mirrored, elsewhere. In"
                " test_held_out the targets and the swaps for them are held out; references and bystanders are objects"
                " of training."
            ),
        ],
    }
    return {**found, "mmeb": _describe_mmeb(config)} if config.mmeb_train or config.mmeb_test else found


def _describe_mmeb(config: SceneConfig) -> dict[str, Any]:
    rows = {"train": config.mmeb_train, "test": config.mmeb_test}
    return {
        "tasks": {task.name: {"meta_task": task.meta_task, "about": task.about, "rows": rows} for task in TASKS},
        "notes": list(NOTES),
    }


def _begin(out: Path, config: SceneConfig, identity: str) -> dict[str, Any]:
    """Return the content of `scenes.json` in `out`; a new folder gets one."""
    path, wanted = out / "scenes.json", settings_of(config)
    if path.exists():
        found = read_json(path)
        if found["fingerprint"] == identity:
            return found
        if found["config"] != wanted or _versions(found) == (FORMAT, library_versions(LIBRARIES)):
            raise VirtueError(
                f"{out} holds other scenes ({_difference(found['config'], wanted)}): choose another --out, or delete it"
            )
        print(f"{out} holds these scenes of another version: they are composed again")
        _remove(out, config)
    elif out.exists() and any(out.iterdir()):
        raise VirtueError(f"{out} is not empty and holds no scenes.json: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    manifest = {"format": FORMAT, "finished": False, "fingerprint": identity, "config": wanted}
    manifest |= {"libraries": library_versions(LIBRARIES)}
    write_json(path, manifest)
    return manifest


def _versions(manifest: dict[str, Any]) -> tuple[Any, Any]:
    return manifest.get("format"), manifest.get("libraries")


def _remove(out: Path, config: SceneConfig) -> None:
    """Remove the files that `write_scenes` leaves, all but scenes.json."""
    for sheet in sheets_of(config):
        (out / sheet.parquet).unlink(missing_ok=True)
        shutil.rmtree(out / sheet.images, ignore_errors=True)
    shutil.rmtree(out / PARTS, ignore_errors=True)


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    # counts of MMEB-mini are left out where they are 0
    pairs = {name: (found.get(name, 0), wanted.get(name, 0)) for name in {**wanted, **found}}
    changed = [f"{name} {before}, wanted {value}" for name, (before, value) in pairs.items() if before != value]
    return "; ".join(changed) or "made from other images or by another version"


def _write_blocks(blocks: list[Block], config: SceneConfig, library: SceneLibrary, out: Path, workers: int) -> None:
    if not blocks:
        return
    for sheet in {block.sheet.name: block.sheet for block in blocks}.values():
        (out / PARTS / sheet.name).mkdir(parents=True, exist_ok=True)
        (out / sheet.images).mkdir(parents=True, exist_ok=True)
    columns = (TextColumn("scenes"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("scenes", total=sum(block.stop - block.start for block in blocks))
        for block in _run(blocks, config, library, out, workers):
            progress.advance(task, block.stop - block.start)


def _run(blocks: list[Block], config: SceneConfig, library: SceneLibrary, out: Path, workers: int) -> Iterator[Block]:
    """Write the blocks, and yield each when it is done. Workers inherit the library's images by forking."""
    if workers <= 1 or len(blocks) <= 1:
        for block in blocks:
            write_block(block, config, library, out)
            yield block
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _inherit, (config, library, out)) as pool:
        waiting: set[Future[Block]] = set()
        for block in blocks:
            waiting.add(pool.submit(_write_inherited, block))
            if len(waiting) >= 4 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


_inherited: tuple[SceneConfig, SceneLibrary, Path]


def _inherit(config: SceneConfig, library: SceneLibrary, out: Path) -> None:
    global _inherited
    _inherited = (config, library, out)


def _write_inherited(block: Block) -> Block:
    write_block(block, *_inherited)
    return block


def write_block(block: Block, config: SceneConfig, library: SceneLibrary, out: Path) -> None:
    """Write the block's images, then its rows; drawing i is the same in any block and process."""
    sheet = block.sheet
    rows = [row for index in range(block.start, block.stop) for row in sheet.write(index, config, library, out)]
    table = pa.Table.from_pylist(rows[: block.rows], schema=sheet.schema)
    with replace_whole(out / block.path) as path:
        pq.write_table(table, path)


def _merge(out: Path, sheet: Sheet) -> None:
    """Write all the sheet's blocks to one file, reading one at a time."""
    target = out / sheet.parquet
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with replace_whole(target) as path, pq.ParquetWriter(path, sheet.schema) as writer:
        for block in _blocks(sheet):
            writer.write_table(pq.read_table(out / block.path))
