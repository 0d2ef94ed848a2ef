"""Several datasets as one: blocks, weights, what is random, exactly-once evaluation, and a run of the command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fixtures.data_options import grouped
from fixtures.mmeb_files import write_mmeb
from fixtures.scar_files import write_scar
from fixtures.shard_files import seal
from virtue_pl.data.conversion.mmeb import convert_mmeb
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.mixture import JoinedStream, MixedDataModule, MixedStream
from virtue_pl.data.datamodules.mmeb import MMEBDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.streaming.options import BadSampleLimits, ReaderOptions, SamplingOptions
from virtue_pl.data.streaming.pipeline import ReaderInfo, SkipLog
from virtue_pl.types import RankingSample, Sample, VirtueError

LIMITS = BadSampleLimits(9, 9)
NAMES = ("scar", "vqa", "t2i")
FOLDERS = {"scar": "SCAR_mini", "vqa": "MMEB_OK_VQA", "t2i": "MMEB_MSCOCO_t2i"}


class Keys:
    """A collator whose batches are keys with their number of negatives, and a random number for training."""

    def collate_train(self, samples: Sequence[Sample]) -> Any:
        return [(sample.key, len(sample.negatives)) for sample in samples], torch.rand(()).item()

    def collate_eval(self, samples: Sequence[RankingSample]) -> Any:
        return [(sample.task, sample.key) for sample in samples]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 rows of SCaR, 8 of each dataset of MMEB; evaluation of 7, 8 and 8 rows."""
    folder = tmp_path_factory.mktemp("mixture")
    convert_scar(
        write_scar(folder / "scar", train=[1, 2, 3, 1, 2, 1, 2, 1, 1, 2], val=[1, 2, 3, 1]),
        folder / "out",
        images_per_shard=2,
    )
    convert_mmeb(write_mmeb(folder / "mmeb"), folder / "out", images_per_shard=2)
    return folder / "out"


def parts(shards: Path) -> dict[str, Any]:

    def common(num_negatives: int = 0) -> dict[str, Any]:
        return {"eval_batch_size": 3, "sampling": SamplingOptions(num_negatives, shuffle_buffer=4, sample_buffer=1)}

    scar = str(shards / "SCaR_eval_mini_val")
    vqa, t2i = str(shards / "MMEB_eval_OK_VQA"), str(shards / "MMEB_eval_MSCOCO_t2i")
    return {
        "scar": SCaRDataModule(str(shards / "SCAR_mini"), scar, {"test": scar}, **common(2)),
        "vqa": MMEBDataModule(str(shards / "MMEB_OK_VQA"), test={"test": vqa}, **common()),
        "t2i": MMEBDataModule(str(shards / "MMEB_MSCOCO_t2i"), test={"test": t2i}, **common(1)),
    }


def mixed(shards: Path, **options: Any) -> MixedDataModule:
    settings = {"parts": parts(shards), "batch_size": 6, "block_size": 2, **options}
    data = MixedDataModule(**grouped(settings, {"reader": ReaderOptions}))
    data.connect(Keys())
    return data


def part_of(key: str) -> str:
    return {folder: name for name, folder in FOLDERS.items()}[key.partition("/")[0]]


def test_batches_are_made_of_blocks_of_one_dataset(shards: Path) -> None:
    loader = mixed(shards, steps_per_epoch=40).train_dataloader()
    batches = [batch for batch, _ in loader]
    assert len(loader) == len(batches) == 40
    for batch in batches:
        assert len({key for key, _ in batch}) == 6
        assert all(part_of(batch[row][0]) == part_of(batch[row + 1][0]) for row in (0, 2, 4))
        assert all(count == {"scar": 2, "vqa": 0, "t2i": 1}[part_of(key)] for key, count in batch)
    assert len({frozenset(part_of(key) for key, _ in batch) for batch in batches}) > 3


def test_blocks_are_drawn_by_weight(shards: Path) -> None:
    data = mixed(shards, weights={"scar": 6.0, "vqa": 3.0, "t2i": 0.0}, steps_per_epoch=300)
    stream = data.train_dataloader().stream
    assert isinstance(stream, MixedStream)
    drawn = sum((Counter(stream.sizes(step)) for step in range(300)), Counter())
    assert set(drawn) == {"scar", "vqa"} and sum(drawn.values()) == 1800 and 1120 < drawn["scar"] < 1280


def test_the_stream_depends_on_seed_and_epoch_alone(shards: Path) -> None:
    def stream(epoch: int = 0, **options: Any) -> Any:
        data = mixed(shards, **options)
        data.set_epoch(epoch)
        return list(data.train_dataloader())

    assert stream() == stream() and len({str(found) for found in (stream(), stream(seed=1), stream(epoch=1))}) == 3
    assert len(stream()) == (16 + 8 + 8) // 6 == len(stream(num_workers=2))
    assert stream(num_workers=2) == stream(num_workers=2)


def test_ranks_draw_the_same_datasets_and_other_samples(shards: Path) -> None:
    stream = mixed(shards, steps_per_epoch=12).train_dataloader().stream
    assert isinstance(stream, MixedStream)
    readers = [ReaderInfo(rank, 2, worker, 2) for rank in range(2) for worker in range(2)]
    ranks = [
        [[sample.key for sample in batch] for batch in stream.copy().samples(reader, SkipLog(LIMITS))]
        for reader in readers
    ]
    assert [len(batches) for batches in ranks] == [6] * 4
    for worker in range(2):
        first, second = ranks[worker], ranks[2 + worker]
        assert [[part_of(key) for key in batch] for batch in first] == [
            [part_of(key) for key in batch] for batch in second
        ] and first != second


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_evaluation_sample_comes_once(shards: Path, num_workers: int) -> None:
    data = mixed(shards, num_workers=num_workers)
    loader = data.test_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == 3 + 3 + 3 and all(len({task for task, _ in batch}) == 1 for batch in batches)
    assert Counter(chain(*batches)) == Counter(
        [("scar_mini/test", f"SCaR_eval_mini_val/{row}") for row in range(7)]
        + [(f"mmeb_{name}/test", f"MMEB_eval_{name}/{row}") for name in ("OK_VQA", "MSCOCO_t2i") for row in range(8)]
    )
    assert [task for ((task, _), *_) in batches] == sorted(
        (batch[0][0] for batch in batches), key=[f"{n}/test" for n in TASKS].index
    )
    assert len(list(chain(*data.val_dataloader()))) == 7


TASKS = ("scar_mini", "mmeb_OK_VQA", "mmeb_MSCOCO_t2i")


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_deal_joined_batches_in_one_turn(shards: Path, workers: int) -> None:
    """Worker w has the batches w, w + W, ... of all streams together: so a loader that takes them in turn keeps their
    order.
    """
    stream = mixed(shards).test_dataloader().stream
    assert isinstance(stream, JoinedStream)
    alone = list(stream.batches(ReaderInfo(), 0, SkipLog(LIMITS)))
    for worker in range(workers):
        assert list(stream.batches(ReaderInfo(0, 1, worker, workers), 0, SkipLog(LIMITS))) == alone[worker::workers]


def test_description_and_fingerprint(shards: Path) -> None:
    data = mixed(shards, weights={"scar": 2.0, "vqa": 1.0, "t2i": 1.0})
    described = {row["split"]: row for row in data.describe()}
    assert list(described) == [
        "scar/train",
        "scar/val/val",
        "scar/test/test",
        "vqa/train",
        "vqa/test/test",
        "t2i/train",
        "t2i/test/test",
    ]
    assert (
        described["scar/train"]["samples_per_epoch"],
        described["scar/train"]["steps"],
        described["scar/train"]["weight"],
    ) == (15, 5, 0.5)
    assert described["vqa/test/test"]["samples_per_epoch"] == 8
    fewer = MixedDataModule(
        {name: part for name, part in parts(shards).items() if name != "vqa"}, batch_size=2, block_size=2
    )
    assert data.fingerprint() == mixed(shards).fingerprint() != fewer.fingerprint()


def test_mistakes_are_one_line_that_names_the_option(shards: Path) -> None:
    for options, message in (
        ({"block_size": 4}, "batch_size is 6, expected a multiple of block_size = 4"),
        ({"block_size": 0}, "block_size is 0, expected 1 or more"),
        ({"eval_batch_size": 0}, "eval_batch_size is 0, expected 1 or more"),
        (
            {"weights": {"other": 1.0}},
            "weights: 'other' is no part with training shards, expected some of scar, vqa, t2i",
        ),
        ({"weights": {"scar": 1.0}}, "weights: vqa, t2i have none"),
        ({"weights": {"scar": -1.0, "vqa": 1.0, "t2i": 1.0}}, "weights: scar has -1.0, expected 0 or more"),
        ({"weights": dict.fromkeys(NAMES, 0.0)}, "no part has training shards and a weight above 0"),
        ({"batch_size": 34, "block_size": 17}, "the 32 rows of scar, vqa, t2i are fewer than one batch of 34"),
    ):
        with pytest.raises(VirtueError, match=message) as caught:
            mixed(shards, **options).train_dataloader()
        assert "\n" not in str(caught.value)
    with pytest.raises(VirtueError, match="the 8 training rows of vqa fill no block of 16: lower block_size"):
        list(
            mixed(
                shards, weights={"scar": 0.0, "vqa": 1.0, "t2i": 0.0}, batch_size=16, block_size=16, steps_per_epoch=1
            ).train_dataloader()
        )
    with pytest.raises(VirtueError, match="no part has `test`"):
        MixedDataModule({"scar": SCaRDataModule(str(shards / "SCAR_mini"))}).test_dataloader()
    with pytest.raises(VirtueError, match="MixedDataModule is not connected"):
        MixedDataModule(parts(shards)).train_dataloader()


def test_skipped_samples_are_told_to_the_module(tmp_path: Path) -> None:
    convert_scar(write_scar(tmp_path / "scar", train=[1] * 8, val=[1] * 6), tmp_path / "out", images_per_shard=2)
    path = sorted((tmp_path / "out/SCAR_mini").glob("*.tar"))[1]
    path.write_bytes(path.read_bytes().replace(b'"box"', b'"bos"'))
    seal(path.parent)
    data = MixedDataModule(
        {"scar": SCaRDataModule(str(tmp_path / "out/SCAR_mini"))}, batch_size=2, block_size=2, steps_per_epoch=8
    )
    data.connect(Keys())
    assert len(list(data.train_dataloader())) == 8 and len(data.skipped) == 2
    assert data.skip_summary().startswith(f"{len(data.skipped)} bad samples")


class Recorder(LightningModule):
    """Notes the keys of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.seen.append((self.current_epoch, tuple(batch[0])))
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_run_that_is_stopped_goes_on_with_the_next_batch(shards: Path, tmp_path: Path) -> None:
    def run_and_record(name: str, checkpoint: str | None = None) -> list[Any]:
        recorder = Recorder()
        saving = ModelCheckpoint(dirpath=tmp_path, filename=name + "-{step}", every_n_train_steps=1, save_top_k=-1)
        quiet: dict[str, Any] = {
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
        }
        run = Trainer(accelerator="cpu", max_steps=12, max_epochs=-1, callbacks=[saving], **quiet)
        run.fit(recorder, datamodule=mixed(shards), ckpt_path=checkpoint and tmp_path / checkpoint, weights_only=True)
        return recorder.seen

    whole = run_and_record("whole")
    assert len(whole) == 12 and [epoch for epoch, _ in whole] == [0] * 5 + [1] * 5 + [2] * 2
    for stop in (3, 5, 7):
        assert run_and_record(f"from_{stop}", f"whole-step={stop}.ckpt") == whole[stop:]


def test_a_part_is_drawn_for_no_more_than_it_has(shards: Path) -> None:
    """Blocks that a small part cannot fill go to the others, by their weights: no step comes that cannot be read."""
    data = mixed(
        shards, weights={"scar": 1.0, "vqa": 50.0, "t2i": 1.0}, batch_size=24, block_size=4, steps_per_epoch=20
    )
    stream = data.train_dataloader().stream
    assert isinstance(stream, MixedStream)
    sizes = [stream.sizes(step) for step in range(20)]
    assert all(size["vqa"] == 8 and sum(size.values()) == 24 for size in sizes) and sizes == [
        stream.sizes(step) for step in range(20)
    ]
    batches = [[key for key, _ in batch] for batch, _ in data.train_dataloader()]
    assert [len(set(batch)) for batch in batches] == [24] * 20
    with pytest.raises(VirtueError, match="the rows of scar, t2i fill 6 blocks of 4, a batch has 7: lower batch_size"):
        mixed(
            shards, weights={"scar": 1.0, "vqa": 0.0, "t2i": 1.0}, batch_size=28, block_size=4, steps_per_epoch=2
        ).train_dataloader()
