"""The stream: who reads what, what is random, and what happens to bad input."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fixtures.scar_files import jpeg, write_scar
from fixtures.shard_files import seal
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.shards import webdataset
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.shards.records import Row, content_key
from virtue_pl.data.shards.webdataset import wds
from virtue_pl.data.shards.writer import ShardWriter
from virtue_pl.data.streaming.options import BadSampleLimits, SamplingOptions
from virtue_pl.data.streaming.partition import ranking_batches, share_for_rank
from virtue_pl.data.streaming.pipeline import ReaderInfo, TrainingSource, record_samples
from virtue_pl.data.streaming.seeds import derive_seed
from virtue_pl.data.streaming.shard_reader import read_shards
from virtue_pl.data.streaming.skip_log import SkipLog
from virtue_pl.data.streaming.training_stream import TrainingStream
from virtue_pl.preprocessing.images import decode
from virtue_pl.types import DataError, EmbeddingInput, Sample, VirtueError

SAMPLING = SamplingOptions(num_negatives=2, shuffle_buffer=5, sample_buffer=4)


def source_of(
    folder: ShardFolder, sampling: SamplingOptions = SAMPLING, seed: int = 0, to_sample: Any = SCaRDataModule.to_sample
) -> TrainingSource:
    return TrainingSource(folder, to_sample, sampling, seed, max_pixels=10_000)


def log(max_bad_samples: int = 100, max_consecutive_bad: int = 100) -> SkipLog:
    return SkipLog(BadSampleLimits(max_bad_samples, max_consecutive_bad))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training shards of 12 images and 20 rows, evaluation shards of 7 images and 13 rows."""
    folder = tmp_path_factory.mktemp("stream")
    convert_scar(
        write_scar(folder / "scar", train=[1, 2, 3, 1, 2, 1, 2, 1, 1, 2, 2, 2], val=[1, 2, 3, 1, 2, 1, 3]),
        folder / "out",
        images_per_shard=3,
    )
    return folder / "out"


@pytest.fixture(scope="module")
def pairs(shards: Path) -> ShardFolder:
    return ShardFolder.open(shards / "SCAR_mini", "train")


@pytest.fixture(scope="module")
def rankings(shards: Path) -> ShardFolder:
    return ShardFolder.open(shards / "SCaR_eval_mini_val", "val")


def training_batches(
    pairs: ShardFolder, reader: ReaderInfo, *, batch_size: int = 4, steps: int = 10, seed: int = 0, epoch: int = 0
) -> list[list[Sample]]:
    stream = TrainingStream(source_of(pairs, seed=seed), list, batch_size=batch_size, steps=steps, reader=reader)
    stream.cursor = stream.copy().start_of(epoch)
    return list(stream.samples(reader, log()))


def keys(batches: list[list[Sample]]) -> list[list[str]]:
    return [[sample.key for sample in batch] for batch in batches]


@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 5)])
def test_every_rank_has_the_same_number_of_full_batches(pairs: ShardFolder, world_size: int, workers: int) -> None:
    for rank in range(world_size):
        batches = [
            batch
            for worker in range(workers)
            for batch in training_batches(pairs, ReaderInfo(rank, world_size, worker, workers), steps=4)
        ]
        assert [len(batch) for batch in batches] == [4] * 4


@pytest.mark.parametrize("batch_size", [1, 7, 20])
def test_no_sample_is_twice_in_a_batch(pairs: ShardFolder, batch_size: int) -> None:
    for batch in keys(training_batches(pairs, ReaderInfo(), batch_size=batch_size)):
        assert len(set(batch)) == batch_size


def test_the_stream_depends_on_seed_epoch_and_rank_alone(pairs: ShardFolder) -> None:
    def stream(reader: ReaderInfo = ReaderInfo(0, 2), **options: int) -> list[Any]:  # noqa: B008
        return [
            [(sample.key, [n.text for n in sample.negatives]) for sample in batch]
            for batch in training_batches(pairs, reader, **options)
        ]

    alone = stream()
    assert alone == stream()
    others = [stream(seed=1), stream(epoch=1), stream(ReaderInfo(1, 2)), stream(ReaderInfo(0, 1))]
    assert len({str(other) for other in [alone, *others]}) == 5
    for workers in (2, 3):
        dealt = [stream(ReaderInfo(0, 2, worker, workers)) for worker in range(workers)]
        assert [dealt[step % workers][step // workers] for step in range(10)] == alone


def test_seeds_are_those_of_recorded_results() -> None:
    assert derive_seed(0, "scar") == 12182019156069


def test_negatives_are_drawn_anew_and_never_twice(pairs: ShardFolder) -> None:
    drawn = {}
    for batch in training_batches(pairs, ReaderInfo(), steps=40):
        for sample in batch:
            texts = [negative.text for negative in sample.negatives]
            assert len(set(texts)) == 2
            drawn.setdefault(sample.key, set()).add(tuple(sorted(texts)))
    assert max(len(found) for found in drawn.values()) > 3


def test_rows_of_an_image_share_its_tensor(pairs: ShardFolder) -> None:
    source = source_of(pairs, replace(SAMPLING, sample_buffer=1))
    (batch,) = TrainingStream(source, list, batch_size=20, steps=1, reader=ReaderInfo()).samples(ReaderInfo(), log())
    first, second = next((a, b) for a, b in pairwise(batch) if a.query.image_keys == b.query.image_keys)
    assert first.key != second.key and first.query.images[0] is second.query.images[0]


@pytest.fixture
def several(tmp_path: Path) -> ShardFolder:
    """Records of three images, of none, and of one, with a row each."""
    with ShardWriter(tmp_path / "several", 2) as writer:
        for index, count in enumerate((3, 0, 1)):
            writer.add(
                [(jpeg(10 * index + number), "jpg") for number in range(count)], f"record {index}", [{"row": index}]
            )
            writer.finish_group()
        writer.write_manifest(name="several", kind="pairs", task="t", meta_task="t", licence="none")
    return ShardFolder.open(tmp_path / "several", "train")


def read_all(folder: ShardFolder, skips: SkipLog) -> dict[str, tuple[str, ...]]:
    """Return the content keys of the images beside each row."""

    def to_sample(row: Any, images: Any) -> Sample:
        shown = EmbeddingInput("q", tuple(p.image for p in images), image_keys=tuple(p.content_key for p in images))
        return Sample(row.key, row.task, shown, EmbeddingInput("t"))

    records = read_shards([{"url": str(path)} for path in folder.paths], folder, skips)
    return {
        s.key: s.query.image_keys for record in records for _, s in record_samples(record, to_sample, skips, 10_000)
    }


def test_a_record_may_hold_several_images_or_none(several: ShardFolder) -> None:
    with tarfile.open(several.paths[0]) as tar:
        names = {info.name for info in tar}
    assert names == {"000000000.jpg", "000000000.1.jpg", "000000000.2.jpg", "000000000.json", "000000001.json"}
    expected = [
        [content_key(jpeg(10 * index + number)) for number in range(count)] for index, count in enumerate((3, 0, 1))
    ]
    skips = log()
    assert read_all(several, skips) == {f"several/{index}": tuple(keys) for index, keys in enumerate(expected)}
    assert not skips.problems


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda record: record.update({"2.jpg": record["2.jpg"][:200]}), "damaged image"),
        (lambda record: record.pop("1.jpg"), r"found 2.jpg, jpg, json, expected 3 images \(jpg"),
        (lambda record: record.update({"1.png": record["1.jpg"]}), "expected 3 images"),
    ],
)
def test_a_record_is_bad_if_one_of_its_images_is(
    several: ShardFolder, change: Callable[[dict[str, bytes]], None], problem: str
) -> None:
    spoil(several.path, "000000000", change)
    skips = log()
    assert set(read_all(ShardFolder.open(several.path, "train"), skips)) == {"several/1", "several/2"}
    ((key, found),) = skips.problems.items()
    assert key.startswith("several/000000000") and re.search(problem, found), found


def test_images_are_decoded_where_a_row_shows_them_and_once_for_all(
    several: ShardFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    monkeypatch.setattr(
        "virtue_pl.data.shards.records.decode", lambda data, *more: decoded.append(data) or decode(data, *more)
    )
    spoil(
        several.path,
        "000000000",
        lambda record: record.update({"2.jpg": record["2.jpg"][:200], "1.jpg": record["jpg"]}),
    )

    def second(row: Any, images: Any) -> Sample:
        shown = images[:2] if row.key == "several/0" else images
        return Sample(row.key, row.task, EmbeddingInput("q", tuple(p.image for p in shown)), EmbeddingInput("t"))

    skips = log()
    found_records = read_shards([{"url": str(path)} for path in several.paths], several, skips)
    found = [sample for record in found_records for _, sample in record_samples(record, second, skips, 10_000)]
    shown = {sample.key: sample.query.images for sample in found}
    assert set(shown) == {"several/0", "several/1", "several/2"} and not skips.problems
    first, again = shown["several/0"]
    assert first is again and len(decoded) == 2


def test_a_row_that_wants_an_image_says_so(several: ShardFolder) -> None:
    with pytest.raises(DataError, match="several/1: it has no image"):
        SCaRDataModule.to_sample(Row("several/1", "t", {}), ())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize(("world_size", "workers"), [(1, 1), (2, 1), (1, 2), (3, 2), (2, 4), (5, 3), (20, 2)])
def test_every_evaluation_row_comes_exactly_once(
    rankings: ShardFolder, world_size: int, workers: int, batch_size: int
) -> None:
    seen: list[str] = []
    counts = []
    for rank in range(world_size):
        share = share_for_rank(rankings, batch_size, ReaderInfo(rank, world_size))
        counts.append(share.num_batches)
        per_worker = []
        for worker in range(workers):
            reader = ReaderInfo(rank, world_size, worker, workers)
            per_worker.append(
                list(
                    ranking_batches(
                        rankings, share, SCaRDataModule.to_sample, log(), reader, offset=0, max_pixels=10_000
                    )
                )
            )
        batches = [per_worker[batch % workers][batch // workers] for batch in range(share.num_batches)]
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        seen += [sample.key for batch in batches for sample in batch]
    assert sorted(seen) == sorted(f"SCaR_eval_mini_val/{row}" for row in range(13))
    assert seen == [
        row.key
        for record in read_shards([{"url": str(path)} for path in rankings.paths], rankings, log())
        for row in record.rows
    ]
    if world_size <= 2 and batch_size > 1:
        assert len(set(counts)) == 1


@pytest.mark.parametrize("world_size", [1, 2])
def test_only_the_first_images_where_fewer_rows_are_asked_for(rankings: ShardFolder, world_size: int) -> None:
    records = [record.rows for record in read_shards([{"url": str(path)} for path in rankings.paths], rankings, log())]
    limit = len(records[0]) + len(records[1]) + len(records[2]) - 1
    seen: list[str] = []
    for rank in range(world_size):
        share = share_for_rank(rankings, 2, ReaderInfo(rank, world_size), limit)
        batches = ranking_batches(
            rankings, share, SCaRDataModule.to_sample, log(), ReaderInfo(rank, world_size), offset=0, max_pixels=10_000
        )
        seen += [sample.key for batch in batches for sample in batch]
    assert seen == [row.key for rows in records[:2] for row in rows]


def test_an_image_stays_on_one_rank(rankings: ShardFolder) -> None:
    owners: dict[str, set[int]] = {}
    for rank in range(3):
        share = share_for_rank(rankings, 2, ReaderInfo(rank, 3))
        for batch in ranking_batches(
            rankings, share, SCaRDataModule.to_sample, log(), ReaderInfo(rank, 3), offset=0, max_pixels=10_000
        ):
            for sample in batch:
                owners.setdefault(sample.query.image_keys[0], set()).add(rank)
    assert len(owners) == 7 and all(len(ranks) == 1 for ranks in owners.values())


def test_a_worker_decodes_only_what_is_its_own(rankings: ShardFolder) -> None:
    decoded: list[str] = []

    def to_sample(row: Any, images: Any) -> Any:
        decoded.append(row.key)
        return SCaRDataModule.to_sample(row, images)

    share = share_for_rank(rankings, 2, ReaderInfo())
    list(ranking_batches(rankings, share, to_sample, log(), ReaderInfo(0, 1, 1, 3), offset=0, max_pixels=10_000))
    assert len(decoded) == sum(
        len(range(share.bounds[batch], share.bounds[batch + 1])) for batch in range(1, share.num_batches, 3)
    )


def spoil(folder: Path, name: str, change: Callable[[dict[str, bytes]], None]) -> None:
    """Rewrites the record `name` of the folder's first shard that has it."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            files = {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]
        if any(file.startswith(f"{name}.") for file in files):
            record = {file.partition(".")[2]: data for file, data in files.items() if file.startswith(f"{name}.")}
            change(record)
            kept = {file: data for file, data in files.items() if not file.startswith(f"{name}.")}
            with tarfile.open(path, "w") as tar:
                for file, data in {
                    **kept,
                    **{f"{name}.{extension}": data for extension, data in record.items()},
                }.items():
                    info = tarfile.TarInfo(file)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            seal(folder)
            return
    raise AssertionError(name)


def spoil_row(**change: Any) -> Callable[[dict[str, bytes]], None]:
    def edit(record: dict[str, bytes]) -> None:
        content = json.loads(record["json"])
        row = content["rows"][0]
        row.update({name: value for name, value in change.items() if value != "DROP"})
        for name in [name for name, value in change.items() if value == "DROP"]:
            del row[name]
        record["json"] = json.dumps(content).encode()

    return edit


FAULTS: dict[str, tuple[Callable[[dict[str, bytes]], None], str, int]] = {
    "no image": (lambda record: record.pop("jpg"), "found json, expected 1 image \\(jpg", 2),  # type: ignore[dict-item, return-value]
    "no json": (lambda record: record.pop("json"), "found jpg, expected one json", 2),  # type: ignore[dict-item, return-value]
    "json damaged": (lambda record: record.update(json=b"{"), "its json is damaged", 2),
    "json without rows": (
        lambda record: record.update(json=b'{"image": "x"}'),
        "lacks a field: KeyError\\('rows'\\)",
        2,
    ),
    "image damaged": (lambda record: record.update(jpg=record["jpg"][:200]), "damaged image", 2),
    "image empty": (lambda record: record.update(jpg=b""), "damaged image: 0 bytes", 2),
    "image too large": (
        lambda record: record.update(jpg=jpeg(1, (200, 100))),
        "200x100 pixels, more than max_pixels = 10000",
        2,
    ),
    "field missing": (spoil_row(box="DROP"), "field 'box' is missing, found row, query", 1),
    "caption missing": (spoil_row(target=""), "field 'target' is '', expected a text", 1),
    "negatives no list": (spoil_row(negatives="a"), "field 'negatives' is 'a', expected a list of texts", 1),
    "box outside": (spoil_row(box=[1, 2, 30, 7]), "lies outside the image of 16x12 pixels", 1),
    "box of no area": (spoil_row(box=[5, 2, 5, 7]), "has no area", 1),
    "box of nan": (spoil_row(box=[float("nan"), 2, 5, 7]), "lies outside", 1),
    "box of three": (spoil_row(box=[1, 2, 3]), "expected four numbers", 1),
    "box of words": (spoil_row(box=["a", 2, 3, 4]), "expected four numbers", 1),
    "mask empty": (spoil_row(mask={"size": [12, 16], "counts": [192]}), "a mask is empty", 1),
    "mask of another size": (
        spoil_row(mask={"size": [3, 3], "counts": [4, 5]}),
        "mask of size \\[3, 3\\], expected",
        1,
    ),
    "mask of other lengths": (spoil_row(mask={"size": [12, 16], "counts": [100, 93]}), "do not add up to 12 x 16", 1),
    "mask of negative lengths": (
        spoil_row(mask={"size": [12, 16], "counts": [-1, 193]}),
        "do not add up to 12 x 16",
        1,
    ),
    "mask no mask": (spoil_row(mask="all"), "mask of size all, expected", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_samples_are_named_skipped_and_counted(tmp_path: Path, fault: str) -> None:
    change, problem, lost = FAULTS[fault]
    convert_scar(write_scar(tmp_path / "scar", train=[2, 2, 2]), tmp_path / "out")
    spoil(tmp_path / "out/SCAR_mini", "000000001", change)
    skips = log()
    batches = training_batches_of(tmp_path / "out/SCAR_mini", skips, 6 - lost)
    assert len({sample.key for sample in batches[0]}) == 6 - lost
    assert len(skips.problems) == 1
    ((key, found),) = skips.problems.items()
    assert key.startswith("SCAR_mini/0") if lost == 2 else key.startswith("SCAR_mini/")
    assert re.search(problem, found), found
    assert skips.drain() == ((key, found),) and skips.drain() == ()


def training_batches_of(path: Path, skips: SkipLog, batch_size: int, steps: int = 3) -> list[list[Sample]]:
    folder = ShardFolder.open(path, "train")
    source = source_of(folder, replace(SAMPLING, num_negatives=0))
    stream = TrainingStream(source, list, batch_size=batch_size, steps=steps, reader=ReaderInfo())
    return list(stream.samples(ReaderInfo(), skips))


@pytest.mark.parametrize("length", [0, 700, 5000])
def test_a_truncated_tar_is_refused(tmp_path: Path, length: int) -> None:
    convert_scar(write_scar(tmp_path / "scar", train=[1] * 6), tmp_path / "out", images_per_shard=3)
    folder = tmp_path / "out/SCAR_mini"
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(VirtueError, match=rf"^train: .* has 1 of 2 shards .* shard-000001.tar with {length:,} bytes"):
        ShardFolder.open(folder, "train")
    seal(folder)
    with pytest.raises(VirtueError, match=r"shard-000001.tar is not the shard of its manifest.json: .* of 3 records"):
        training_batches_of(folder, log(), 3)


def test_the_limit_names_the_first_bad_samples(tmp_path: Path) -> None:
    convert_scar(write_scar(tmp_path / "scar", train=[1] * 12), tmp_path / "out")
    for number in range(8):
        spoil(tmp_path / "out/SCAR_mini", f"{number:09d}", spoil_row(box="DROP"))
    with pytest.raises(
        VirtueError,
        match=r"^7 bad samples \(SCAR_mini/\d+: field 'box' is missing.*; and 2 more\): more than max_bad_samples = 6",
    ) as caught:
        training_batches_of(tmp_path / "out/SCAR_mini", log(6, 100), 4)
    assert "\n" not in str(caught.value)
    skips = log(8, 100)
    assert len(training_batches_of(tmp_path / "out/SCAR_mini", skips, 4)) == 3 and len(skips.problems) == 8


def test_programming_errors_are_not_taken_for_bad_samples(pairs: ShardFolder) -> None:
    def broken(row: Any, images: Any) -> Any:
        raise NameError("to_sample has a bug")

    with pytest.raises(NameError, match="to_sample has a bug"):
        stream = TrainingStream(source_of(pairs, to_sample=broken), list, batch_size=1, steps=1, reader=ReaderInfo())
        next(stream.samples(ReaderInfo(), log()))


def test_webdataset_opens_and_unpickles_nothing(tmp_path: Path) -> None:
    assert os.environ["WDS_SECURE"] == "1"
    with pytest.raises(ValueError):
        list(wds.WebDataset(f"pipe:touch {tmp_path}/ran", shardshuffle=False))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError):
        wds.autodecode.unpickle_loads(pickle.dumps(1))


def test_a_pickle_in_a_shard_is_never_decoded(tmp_path: Path) -> None:
    convert_scar(write_scar(tmp_path / "scar", train=[1] * 3), tmp_path / "out")
    bad = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    spoil(tmp_path / "out/SCAR_mini", "000000000", lambda record: record.update(pyd=bad, pkl=bad))
    training_batches_of(tmp_path / "out/SCAR_mini", log(), 3)
    assert not (tmp_path / "ran").exists()


def test_security_holds_where_webdataset_was_imported_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wds.utils, "enforce_security", False)
    importlib.reload(webdataset)
    assert wds.utils.enforce_security
