"""What is fuzzed: each function takes any bytes and raises nothing where the reader does what it promises.

A reader refuses with `DataError` or `VirtueError`, and what is sound beside it comes through unchanged.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fixtures.scar_files import HEIGHT, WIDTH, jpeg, pair, runs
from virtue_pl.data.conversion.grouped_parquet import column_names, grouped_rows
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.datamodules.pairs import PairDataModule
from virtue_pl.data.datamodules.scar import PublishedSCaRDataModule, SCaRDataModule
from virtue_pl.data.formats.scar import run_lengths, xyxy
from virtue_pl.data.shards.records import read_record
from virtue_pl.data.streaming.options import BadSampleLimits
from virtue_pl.data.streaming.pipeline import record_samples
from virtue_pl.data.streaming.shard_reader import read_tar
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.preprocessing.images import decode, read_header
from virtue_pl.types import DataError, VirtueError

MAX_PIXELS = 100_000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "MPO")
READERS = (SCaRDataModule, PublishedSCaRDataModule, MMEBDataModule, PairDataModule)

SCAR_ROW = {
    "row": 7,
    "query": "Which?",
    "box": [1, 2, 5, 7],
    "mask": runs([1, 2, 4, 5]),
    "target": "a",
    "negatives": [],
}
SOUND_PAIR = {"query": "what is this", "query_image": "a.jpg", "target": "a red disc"}


def images(data: bytes) -> None:
    """Read an image's header and pixels, which are of one size."""
    try:
        header = read_header(data, "key", MAX_PIXELS)
        pixels = decode(data, "key", MAX_PIXELS)
    except DataError:
        return
    assert tuple(pixels.shape) == (3, header.height, header.width)


def image_seeds() -> list[bytes]:
    """Return an image of each format, and of several modes."""
    coloured = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    grey = Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12) * 600)
    kinds = [(coloured, format, {}) for format in FORMATS]
    kinds += [(grey, "PNG", {}), (grey, "TIFF", {}), (coloured, "TIFF", {"compression": "tiff_lzw"})]
    kinds += [(coloured.convert("P"), "PNG", {"transparency": 3}), (coloured.convert("CMYK"), "JPEG", {})]
    return [encode_image(*kind) for kind in kinds]


def encode_image(image: Image.Image, format: str, options: dict[str, Any]) -> bytes:
    """Return an image's file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def masks(data: bytes) -> None:
    """Read a segmentation and a box written as JSON; a mask has its image's pixels."""
    text = data.decode("utf-8", "replace")
    try:
        found = run_lengths(text, "key", (HEIGHT, WIDTH))
        assert found is None or sum(found["counts"]) == HEIGHT * WIDTH
    except DataError:
        pass
    try:
        x1, y1, x2, y2 = xyxy(json.loads(text), "key", (HEIGHT, WIDTH))
        assert 0 <= x1 < x2 <= WIDTH and 0 <= y1 < y2 <= HEIGHT
    except (DataError, ValueError, RecursionError):  # the latter two of `json.loads` here
        pass


def mask_seeds() -> list[bytes]:
    """Return polygons, run lengths of both kinds, and a box."""
    kinds = [
        [[1, 1, 8, 1, 8, 6, 1, 6]],
        runs([1, 2, 4, 5]),
        pair(0, 0)["segmentation"],
        [1, 2, 4, 5],
        [[0] * WIDTH] * HEIGHT,
    ]
    return [json.dumps(kind).encode() for kind in kinds]


def tars(data: bytes) -> None:
    """Read a shard, as it is fuzzed; and a fuzzed record between two sound ones, which come through unchanged."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "fuzzed.tar"
        path.write_bytes(data)
        samples(path)
        if len(data) <= 10_000:
            path.write_bytes(tar_of([record_json([SCAR_ROW]), data, record_json([SCAR_ROW])]))
            found = samples(path)
            assert [key for key, _ in found[SCaRDataModule]].count("fuzzed/7") >= 2
            whole = [sample for key, sample in found[SCaRDataModule] if key == "fuzzed/7"]
            assert all(sample.target.text == "a" for sample in (whole[0], whole[-1]))


def samples(path: Path) -> dict[Any, list[tuple[str, Any]]]:
    """Return the samples that each kind of dataset reads of a tar's records."""
    found: dict[Any, list[tuple[str, Any]]] = {reader: [] for reader in READERS}
    for members in read_tar(str(path), lambda problem: None):
        try:
            record = read_record(members, "fuzzed", "fuzzed")
        except DataError:
            continue
        for reader, rows in found.items():
            log = SkipLog(BadSampleLimits(10**9, 10**9))
            rows += [(s.key, s) for _, s in record_samples(record, reader.to_sample, log, MAX_PIXELS)]
    return found


def record_json(rows: list[dict[str, Any]]) -> bytes:
    """Return the JSON of a record with one image."""
    return json.dumps({"image": "a.jpg", "rows": rows}).encode()


def tar_of(contents: list[bytes]) -> bytes:
    """Return a tar of records, each an image and the given JSON."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number, content in enumerate(contents):
            for extension, data in (("jpg", jpeg()), ("json", content)):
                member = tarfile.TarInfo(f"{number:09d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def tar_seeds() -> list[bytes]:
    """Return a whole tar, and JSON of records of each kind."""
    mmeb = {"row": 1, "query": ["q", 0], "target": ["t", None], "negatives": [["n", None]]}
    ranked = {"row": 2, "query": ["q", 0], "candidates": [["t", None], ["n", 0]], "rankings": {"hit@1": [0, 1]}}
    kinds = [SCAR_ROW, mmeb, ranked, {**mmeb, "box": [1, 2, 5, 7], "mask": None}]
    return [tar_of([record_json([kind])]) for kind in kinds] + [record_json([kind]) for kind in kinds]


def parquet(data: bytes) -> None:
    """Read a parquet file whole, or refuse it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        path.write_bytes(data)
        try:
            names = column_names(path)
            list(grouped_rows(path, names, names[:1], seed=0))
        except VirtueError:
            pass


def parquet_seeds() -> list[bytes]:
    """Return small parquet files of pairs and of SCaR's rows."""
    return [parquet_of([SOUND_PAIR] * 3), parquet_of([pair(0, 0), pair(0, 1)])]


def parquet_of(rows: list[dict[str, Any]]) -> bytes:
    """Return a parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="none")
    return buffer.getvalue()


def json_lines(data: bytes) -> None:
    """Convert own pairs of which one line is fuzzed: the file is refused, or its sound row is in the shards."""
    with TemporaryDirectory() as folder:
        root, line = Path(folder), data.replace(b"\n", b" ").replace(b"\r", b" ")
        (root / "images").mkdir()
        (root / "images/a.jpg").write_bytes(jpeg())
        (root / "train.jsonl").write_bytes(json.dumps(SOUND_PAIR).encode() + b"\n" + line + b"\n")
        try:
            (manifest,) = convert_pairs(root, root / "out").values()
        except VirtueError:
            return
        rows = {key for key, _ in samples(root / f"out/{manifest.name}/shard-000000.tar")[MMEBDataModule]}
        assert "fuzzed/0" in rows


def json_line_seeds() -> list[bytes]:
    """Return lines of pairs with and without a region."""
    regions = [{}, {"bbox": [1, 2, 4, 5]}, {"bbox": [1, 2, 4, 5], "segmentation": [[1, 1, 8, 1, 8, 6]]}]
    more = {"negatives": ["a", "b"], "target_image": "a.jpg"}
    return [json.dumps({**SOUND_PAIR, **region, **more}).encode() for region in regions]


TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]]]] = {
    "images": (images, image_seeds),
    "masks": (masks, mask_seeds),
    "tars": (tars, tar_seeds),
    "parquet": (parquet, parquet_seeds),
    "json_lines": (json_lines, json_line_seeds),
}
"""For each name, what is fuzzed and the sound bytes from which the fuzzer starts."""
