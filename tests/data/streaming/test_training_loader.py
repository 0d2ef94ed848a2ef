"""A training stream's place: every row once before any comes again, and a run that goes on where it stopped."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest

from fixtures.scar_files import write_scar
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.shards.manifest import ShardFolder
from virtue_pl.data.streaming import record_reader
from virtue_pl.data.streaming.options import SamplingOptions
from virtue_pl.data.streaming.pipeline import ReaderInfo, TrainingSource
from virtue_pl.data.streaming.training_loader import TrainingLoader
from virtue_pl.data.streaming.training_stream import TrainingStream
from virtue_pl.types import VirtueError

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")
COUNTS = [1, 2, 3, 1, 2, 1, 2, 1, 1, 2, 2, 2]
ROWS = sum(COUNTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ShardFolder]:
    """Training shards of 12 images and 20 rows, with 1, 5 and 12 images a shard."""
    folder = tmp_path_factory.mktemp("loader")
    write_scar(folder / "scar", train=COUNTS, val=[1])
    for images in (1, 5, 12):
        convert_scar(folder / "scar", folder / str(images), images_per_shard=images)
    return {images: ShardFolder.open(folder / str(images) / "SCAR_mini", "train") for images in (1, 5, 12)}


def collate(samples: Any) -> list[Any]:
    return [(sample.key, [negative.text for negative in sample.negatives]) for sample in samples]


def loader_of(
    folder: ShardFolder, rank: int = 0, world_size: int = 1, workers: int = 0, batch_size: int = 2, epoch: Any = None
) -> TrainingLoader:
    sampling = SamplingOptions(num_negatives=2, shuffle_buffer=5, sample_buffer=4)
    source = TrainingSource(folder, SCaRDataModule.to_sample, sampling, seed=0, max_pixels=10_000)
    steps, reader = ROWS // (batch_size * world_size), ReaderInfo(rank, world_size)
    stream = TrainingStream(source, collate, batch_size=batch_size, steps=steps, reader=reader)
    return TrainingLoader(stream, workers, epoch or (lambda: 0), {})


def keys(batches: Any) -> list[str]:
    return [key for batch in batches for key, _ in batch]


@pytest.mark.parametrize(("images", "workers"), [*product((1, 5, 12), (0, 3)), (5, 1), (12, 2)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_ten_epochs_have_every_row_ten_times(
    folders: dict[int, ShardFolder], images: int, workers: int, world_size: int
) -> None:
    seen: Counter[str] = Counter()
    for rank in range(world_size):
        epoch = iter(range(10))
        loader = loader_of(folders[images], rank, world_size, workers, epoch=lambda epoch=epoch: next(epoch))
        for _ in range(10):
            seen.update(keys(loader))
    assert seen == {f"SCAR_mini/{row}": 10 for row in range(ROWS)}


@pytest.mark.parametrize("batch_size", [3, 7])
def test_rows_that_fill_no_batch_come_first_in_the_next_epoch(folders: dict[int, ShardFolder], batch_size: int) -> None:
    epoch = iter(range(10))
    loader = loader_of(folders[5], batch_size=batch_size, epoch=lambda: next(epoch))
    seen = Counter(key for _ in range(10) for key in keys(loader))
    assert sum(seen.values()) == 10 * (ROWS // batch_size) * batch_size
    assert len(seen) == ROWS and max(seen.values()) - min(seen.values()) <= 1


def test_the_sequence_does_not_depend_on_workers(folders: dict[int, ShardFolder]) -> None:
    alone = list(loader_of(folders[5]))
    assert [list(loader_of(folders[5], workers=workers)) for workers in (1, 2, 3)] == [alone] * 3


@pytest.mark.parametrize("batches_read", [0, 1, 4, 9])
@pytest.mark.parametrize("workers", [(0, 0), (2, 2), (0, 3), (3, 1)])
def test_a_stopped_run_goes_on_with_any_number_of_workers(
    folders: dict[int, ShardFolder], batches_read: int, workers: tuple[int, int]
) -> None:
    def epochs() -> Any:
        numbers = iter((0, 1, 2))
        return lambda: next(numbers)

    whole = loader_of(folders[5], workers=workers[0], epoch=epochs())
    expected = [list(whole) for _ in range(3)]
    stopped = loader_of(folders[5], workers=workers[0], epoch=epochs())
    passed = iter(stopped)
    before = [next(passed) for _ in range(batches_read)]
    state = json.loads(json.dumps(stopped.state_dict()))
    again = loader_of(folders[5], workers=workers[1], epoch=epochs())
    again.load_state_dict(state)
    assert before + list(again) == expected[0]
    assert [list(again), list(again)] == expected[1:]


def test_a_pass_that_was_cut_short_is_gone_on_with(folders: dict[int, ShardFolder]) -> None:
    numbers = iter((0, 1))
    for workers in (0, 2):
        numbers = iter((0, 1))
        loader = loader_of(folders[5], workers=workers, epoch=lambda numbers=numbers: next(numbers))
        first = list(islice(loader, 4))
        assert len(set(keys(first)) | set(keys(list(loader)[:6]))) == ROWS


def test_a_finished_run_goes_on_behind_its_last_step(folders: dict[int, ShardFolder]) -> None:
    """Whatever the trainer takes the epoch for: the place is the stream's own."""
    numbers = iter((0, 1))
    whole = loader_of(folders[5], epoch=lambda: next(numbers))
    expected = [*whole, *whole]
    finished = loader_of(folders[5])
    list(finished)
    again = loader_of(folders[5], epoch=lambda: 7)
    again.load_state_dict(finished.state_dict())
    assert list(again) == expected[10:]


@pytest.mark.parametrize(("before", "after"), [((1, 2), (2, 2)), ((2, 2), (1, 4)), ((2, 1), (1, 3))])
def test_other_ranks_go_on_with_the_rows_that_are_left(
    folders: dict[int, ShardFolder], before: tuple[int, int], after: tuple[int, int]
) -> None:
    """(number of ranks, samples of a batch) before and after: no row comes twice, and none is left out."""
    world_size, batch_size = before
    seen: list[str] = []
    for rank in range(world_size):
        loader = loader_of(folders[5], rank, world_size, batch_size=batch_size)
        seen += keys(islice(loader, 3))
        state = loader.state_dict()
    world_size, batch_size = after
    left = (ROWS - len(seen)) // (world_size * batch_size)
    for rank in range(world_size):
        loader = loader_of(folders[5], rank, world_size, batch_size=batch_size)
        loader.load_state_dict({**state, "taken": 0})
        seen += keys(islice(loader, left))
    counts = Counter(seen)
    assert len(counts) == len(seen) >= ROWS - world_size * batch_size


def test_what_was_passed_over_is_not_read(folders: dict[int, ShardFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    true = record_reader.RecordReader.read

    def count_read(self: Any, shard: int, number: int) -> Any:
        read.append((shard, number))
        return true(self, shard, number)

    monkeypatch.setattr(record_reader.RecordReader, "read", count_read)
    stopped = loader_of(folders[5])
    for _ in islice(stopped, 9):
        pass
    state = stopped.state_dict()
    read.clear()
    again = loader_of(folders[5])
    again.load_state_dict(state)
    assert len(list(again)) == 1 and len(read) <= 2


def test_a_bad_row_is_replaced(tmp_path: Path) -> None:
    convert_scar(write_scar(tmp_path / "scar", train=[1] * 6, val=[1]), tmp_path / "out", images_per_shard=2)
    folder = ShardFolder.open(tmp_path / "out/SCAR_mini", "train")

    def to_sample(row: Any, images: Any) -> Any:
        from virtue_pl.types import DataError

        if row.key == "SCAR_mini/3":
            raise DataError(row.key, "no good")
        return SCaRDataModule.to_sample(row, images)

    source = TrainingSource(folder, to_sample, SamplingOptions(num_negatives=2), seed=0, max_pixels=10_000)
    stream = TrainingStream(source, collate, batch_size=3, steps=2, reader=ReaderInfo())
    skipped: dict[str, str] = {}
    batches = list(TrainingLoader(stream, 0, lambda: 0, skipped))
    assert [len({key for key, _ in batch}) for batch in batches] == [3, 3]
    assert skipped == {"SCAR_mini/3": "no good"}


def test_a_state_of_an_earlier_version_counts_batches_alone(folders: dict[int, ShardFolder]) -> None:
    loader = loader_of(folders[5])
    loader.load_state_dict({"taken": 4})
    assert list(loader) == list(loader_of(folders[5]))[4:]


PLAN = {"pass": 0, "position": 6, "waiting": []}
CURSOR = {"step": 3, "plans": {"": PLAN}}


def with_plan(**changes: Any) -> dict[str, Any]:
    return {"taken": 3, "cursor": {"step": 3, "plans": {"": {**PLAN, **changes}}}}


@pytest.mark.parametrize(
    "state",
    [
        *(None, [], {}, {"taken": None}, {"taken": "3"}, {"taken": -1}, {"taken": True}),
        *({"taken": 3, "cursor": cursor} for cursor in (None, [], {"step": 3}, {**CURSOR, "step": -3})),
        *({"taken": 3, "cursor": {"step": 3, "plans": plans}} for plans in ([], {"": None}, {"": []})),
        *(with_plan(**{name: value}) for name in PLAN for value in (None, -1, "a", 1.5, [-1], ["a"], [[]])),
        *(with_plan(position=10**6), with_plan(waiting=[ROWS])),
    ],
)
def test_a_damaged_state_is_one_line(folders: dict[int, ShardFolder], state: Any) -> None:
    """Among them those of other shards, whose rows are not there."""
    loader = loader_of(folders[5])
    with pytest.raises(VirtueError, match=r"in a checkpoint, expected|it was trained on other shards") as caught:
        loader.load_state_dict(state)
        list(loader)
    assert "\n" not in str(caught.value)


def test_the_sound_state_beside_them_is_taken(folders: dict[int, ShardFolder]) -> None:
    loader = loader_of(folders[5])
    loader.load_state_dict(with_plan())
    assert list(loader) == list(loader_of(folders[5]))[3:]
