"""Checks of shards or official folders before a training.

Every record is checked, and images that leak from training into evaluation are found.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from virtue_pl.data.conversion import mmeb, pairs, scar
from virtue_pl.data.conversion.grouped_parquet import Group
from virtue_pl.data.conversion.own_sources import FORMS
from virtue_pl.data.conversion.source_file import Progress, SourceFile, no_progress
from virtue_pl.data.doctor.checks import Box, Checkup, Finding, ReadImage
from virtue_pl.data.doctor.image_hashes import find_lookalikes
from virtue_pl.data.doctor.images import open_image_checker
from virtue_pl.data.formats.own_rows import RowOptions
from virtue_pl.data.io.archives import is_apple_double
from virtue_pl.data.io.atomic import sha256
from virtue_pl.data.shards.manifest import MANIFEST, ShardFolder
from virtue_pl.data.shards.records import read_record
from virtue_pl.data.streaming.options import BadSampleLimits
from virtue_pl.data.streaming.shard_reader import read_tar
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.preprocessing.images import decode
from virtue_pl.types import DataError, VirtueError, suggest_path

_NO_LIMITS = BadSampleLimits(2**62, 2**62)
IMAGE_COLUMNS = ("qry_image_path", "qry_img_path", "query_image")


def examine(
    paths: Sequence[Path],
    train_split: str = "original",
    progress: Progress = no_progress,
    workers: int = 1,
    row_options: RowOptions = RowOptions(),
    **options: Any,
) -> list[Checkup]:
    """Return a check-up of every folder of shards and every official file below `paths`.

    An image that both training and evaluation have is a finding of the evaluation.

    Args:
        paths: folders to check, see `find_sources`.
        train_split: of MMEB-train, "original" or "diverse_instruction".
        progress: see `Progress`.
        workers: processes that decode images; the findings are the same for any number.
        row_options: what holds for rows of one's own data that do not say it themselves.
        options: fields of every `Checkup`: max_pixels, count_tokens, on_finding.
    """
    found: list[Checkup] = []
    with TemporaryDirectory(prefix="virtue-pl-") as tables, open_image_checker(workers) as check_images:
        options = {**options, "check_images": check_images, "max_pending": 0 if workers == 1 else 4 * workers}
        for number, path in enumerate(paths):
            for source in find_sources(path, train_split, Path(tables) / str(number), row_options):
                found.append(
                    check_shards(source, progress, options)
                    if isinstance(source, ShardFolder)
                    else check_file(source, progress, options)
                )
            found += check_leftovers(path, options)
    find_leaks(found)
    return found


def find_sources(
    path: Path, train_split: str, tables: Path, row_options: RowOptions = RowOptions()
) -> Iterator[ShardFolder | SourceFile]:
    """Yield the folders of shards below a path, or else the files of an official layout, or of one's own data.

    Raises VirtueError where there is neither.
    """
    if not path.is_dir():
        expected = f"expected one of shards, or with MMEB-train/, SCaR-train/ or {FORMS}"
        raise VirtueError(f"{path} is no folder, {expected}{suggest_path(path)}")
    folders = (
        [path]
        if (path / MANIFEST).is_file()
        else sorted(folder.parent for folder in path.glob(f"*/{MANIFEST}") if not folder.parent.name.startswith("."))
    )
    if folders:
        yield from (ShardFolder.open(folder, "PATH", check=False) for folder in folders)
        return
    names = {child.name.lower() for child in path.iterdir()}
    benchmarks = (
        (mmeb.LAYOUT, lambda: mmeb.find_files(path, train_split)),
        (scar.LAYOUT, lambda: scar.find_files(path)),
    )
    official = [find for layout, find in benchmarks if names & {folder.lower() for folder, _, _ in layout}]
    for find in official:
        yield from find()
    if not official:
        tables.mkdir(parents=True, exist_ok=True)
        yield from pairs.find_files(path, tables, row_options=row_options)


def check_shards(folder: ShardFolder, progress: Progress, options: dict[str, Any]) -> Checkup:
    """Check every record of every shard, and that the shards are those that were written."""
    manifest = folder.manifest
    checkup = Checkup(manifest.name, manifest.kind, **options)
    checkup.reread_image = partial(read_shard_image, folder, max_pixels=checkup.max_pixels)
    log = SkipLog(_NO_LIMITS)
    for name in folder.unnamed_tars():
        detail = f"{folder.path / name} is not named in {MANIFEST}"
        checkup.report(Finding("shard of no manifest", f"{manifest.name}/{name}", detail))
    with progress(manifest.name, manifest.rows) as advance:
        for shard, path in zip(manifest.shards, folder.paths, strict=True):
            key = f"{manifest.name}/{shard.name}"
            if not path.is_file():
                checkup.report(Finding("missing shard", key, f"{path} is not there"))
                continue
            if sha256(path) != shard.sha256:
                checkup.report(Finding("shard changed", key, f"{path} has another checksum than its manifest says"))
            for members in read_tar(str(path), partial(skip_tar, log, key)):
                try:
                    record = read_record(members, manifest.name, manifest.task)
                except DataError as error:
                    log.skip(error)
                    continue
                checkup.add(
                    [(data, "") for data in record.data], path_of(record.key), [row.fields for row in record.rows]
                )
                advance(len(record.rows))
    for key, problem in log.drain():
        kind = problem.partition(":")[0]
        checkup.report(
            Finding(kind if kind in ("damaged tar", "the tar holds no record") else "damaged record", key, problem)
        )
    checkup.drain()
    return checkup


def skip_tar(log: SkipLog, key: str, problem: str) -> None:
    """Log the problem of a tar."""
    log.skip(DataError(key, problem))


def check_file(file: SourceFile, progress: Progress, options: dict[str, Any]) -> Checkup:
    """Check every row of an official file, as the converter would read it, and every image."""
    file.columns()
    checkup = Checkup(file.name, file.kind, **options)
    checkup.reread_image = partial(read_file_image, file, max_pixels=checkup.max_pixels)
    with progress(file.name, file.num_rows()) as advance:
        for group in file.groups(0):
            checkup.complete_finding = partial(locate_image, file, group, checkup.max_pixels)
            file.write_record(group, checkup, checkup.max_pixels)
            advance(len(group))
        checkup.drain()
    return checkup


def locate_image(
    file: SourceFile, group: Group, max_pixels: int, finding: Finding, image: ReadImage, box: Box
) -> tuple[Finding, ReadImage, Box]:
    """Complete a finding without an image: its row's image path, a reader of that image, and the row's box.

    The box is xyxy in pixels. A finding with an image, or of no row of the group, is returned as it is.
    """
    row = next((row for number, row in group if finding.key == f"{file.name}/{number}"), None)
    if image is not None or row is None:
        return finding, image, box
    path = next((row[name] for name in IMAGE_COLUMNS if row.get(name)), "")
    if row.get("bbox") is not None and len(row["bbox"]) == 4 and None not in row["bbox"]:
        x, y, width, height = row["bbox"]
        box = [x, y, x + width, y + height]
    return replace(finding, image=path), partial(read_file_image, file, path, max_pixels), box


def read_file_image(file: SourceFile, path: str, max_pixels: int) -> UInt8[Tensor, "3 height width"] | None:
    """Return the image, or None where it is missing or cannot be decoded."""
    try:
        return decode(file.images.read(path, ""), "", max_pixels)
    except DataError:
        return None


def read_shard_image(folder: ShardFolder, path: str, max_pixels: int) -> UInt8[Tensor, "3 height width"] | None:
    """Return the image of a path, or None where it is missing or cannot be decoded.

    "PATH, image 1" is the second image of the record of PATH.
    """
    name = folder.manifest.name
    for shard in filter(Path.is_file, folder.paths):
        for members in read_tar(str(shard), lambda problem: None):
            try:
                record = read_record(members, name, folder.manifest.task)
                if path_of(record.key) == path.partition(", image ")[0]:
                    return decode(record.data[int(path.partition(", image ")[2] or 0)], record.key, max_pixels)
            except DataError:
                continue
    return None


def path_of(key: str) -> str:
    """Return the path in a record's key, "RECORD (PATH)"."""
    return key.partition(" (")[2].removesuffix(")")


def check_leftovers(path: Path, options: dict[str, Any]) -> list[Checkup]:
    """Return a check-up of AppleDouble files and half-written shards below a path; empty without any."""
    checkup = Checkup(path.name, "files", **options)
    for folder, folders, files in os.walk(path):
        for name in folders:
            if name.startswith(".") and name.endswith(".partial"):
                checkup.report(
                    Finding(
                        "half-written shards",
                        f"{folder}/{name}",
                        "`virtue-pl shards` was stopped: run it again to go on, or remove the folder",
                    )
                )
        for name in files:
            if is_apple_double(name):
                checkup.report(
                    Finding(
                        "AppleDouble leftover beside the images", f"{folder}/{name}", "macOS left it there: remove it"
                    )
                )
    checkup.drain()
    return [checkup] if checkup.findings else []


def find_leaks(checkups: Sequence[Checkup]) -> None:
    """Report images of evaluation that training has: the same bytes, or images that look alike."""
    trained = [checkup for checkup in checkups if checkup.kind == "pairs"]
    exact = {key: name for checkup in trained for key, name in checkup.names_by_content.items()}
    near = {value: name for checkup in trained for name, value in checkup.hashes_by_name.items()}
    for checkup in checkups:
        if checkup.kind != "rankings":
            continue
        leaked = {name: exact[key] for key, name in checkup.names_by_content.items() if key in exact}
        for name, other in leaked.items():
            report_leak(checkup, "image of the training data", name, f"its bytes are those of {other}")
        for name, value in find_lookalikes(
            near, {name: value for name, value in checkup.hashes_by_name.items() if name not in leaked}
        ):
            report_leak(checkup, "looks like a training image", name, f"it looks like {near[value]}")
        checkup.drain()


def report_leak(checkup: Checkup, kind: str, name: str, detail: str) -> None:
    """Report one image of an evaluation that training has."""
    path = path_of(name)
    checkup.report(Finding(kind, name, detail, path), partial(checkup.reread_image, path))


def count_errors(checkups: Sequence[Checkup]) -> int:
    """Return the number of findings that are no warnings."""
    return sum(not finding.is_warning for checkup in checkups for finding in checkup.findings)


def to_json(checkups: Sequence[Checkup], named: int = 100) -> dict[str, Any]:
    """Return the findings, counted by kind for each folder; of each kind, the first `named` in detail."""
    return {
        "errors": count_errors(checkups),
        "findings": sum(len(checkup.findings) for checkup in checkups),
        "folders": [_folder(c, named) for c in checkups],
    }


def _folder(checkup: Checkup, named: int) -> dict[str, Any]:
    problems: dict[str, Any] = {}
    for finding in checkup.findings:
        entry = problems.setdefault(finding.kind, {"count": 0, "warning": finding.is_warning, "first": []})
        entry["count"] += 1
        if len(entry["first"]) < named:
            entry["first"].append({"key": finding.key, "image": finding.image, "detail": finding.detail})
    return {
        "name": checkup.name,
        "kind": checkup.kind,
        "rows": checkup.rows,
        "pictures": checkup.images,
        "problems": problems,
        "shorter_sides": {str(size): count for size, count in sorted(checkup.sizes.items())},
        "token_lengths": {str(length): count for length, count in sorted(checkup.lengths.items())},
    }
