"""SCaR's DataModule: what its samples hold, and how it runs in a trainer."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from fixtures.data_options import DATASET, grouped
from fixtures.scar_files import HEIGHT, WIDTH, write_scar
from fixtures.shard_files import seal
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.formats.scar_queries import instruction
from virtue_pl.types import RankingSample, Sample, VirtueError


class Keep:
    """A collator whose batches are the samples, and a random number for training."""

    def collate_train(self, samples: Sequence[Sample]) -> Any:
        return list(samples), torch.rand(()).item()

    def collate_eval(self, samples: Sequence[RankingSample]) -> Any:
        return list(samples)


class KeepKeys(Keep):
    """Batches of keys, which pass between processes in no time."""

    def collate_train(self, samples: Sequence[Sample]) -> Any:
        return [sample.key for sample in samples], torch.rand(()).item()

    def collate_eval(self, samples: Sequence[RankingSample]) -> Any:
        return [(sample.task, sample.key) for sample in samples]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training shards of 10 images and 16 rows, evaluation shards of 4 images and 7 rows."""
    folder = tmp_path_factory.mktemp("module")
    convert_scar(
        write_scar(folder / "scar", train=[1, 2, 3, 1, 2, 1, 2, 1, 1, 2], val=[1, 2, 3, 1]),
        folder / "out",
        images_per_shard=2,
    )
    return folder / "out"


def module(shards: Path, collator: Any = None, **options: Any) -> SCaRDataModule:
    folder = str(shards / "SCaR_eval_mini_val")
    settings = {
        "train": str(shards / "SCAR_mini"),
        "val": folder,
        "test": {"seen": folder, "held_out": folder},
        "batch_size": 3,
    }
    data = SCaRDataModule(
        **grouped({**settings, "num_negatives": 2, "shuffle_buffer": 4, "sample_buffer": 3, **options}, DATASET)
    )
    data.connect(collator or Keep())
    return data


def test_a_training_sample(shards: Path) -> None:
    (batch, _), *_ = module(shards).train_dataloader()
    sample = batch[0]
    image, region = sample.target.text.split()[1:]
    assert sample.task == "scar_mini" and sample.key.startswith("SCAR_mini/")
    assert (
        sample.query.text == "Find the caption." and sample.query.prompt.is_empty and len(sample.query.image_keys) == 1
    )
    assert sample.query.images[0].shape == (3, HEIGHT, WIDTH) and sample.query.images[0].dtype == torch.uint8
    assert abs(int(sample.query.images[0][0, 0, 0]) - int(image)) <= 3
    box = torch.tensor([1 + int(region), 2, 5 + int(region), 7]) / torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    assert torch.allclose(sample.region.box, box)
    assert sample.region.mask.shape == (HEIGHT, WIDTH) and sample.region.mask.sum() == 20
    assert sample.region.mask[2:7, 1 + int(region) : 5 + int(region)].all()
    assert len(sample.negatives) == 2 and all(
        negative.text.endswith(f"of {image} {region}") for negative in sample.negatives
    )


def test_an_evaluation_sample(shards: Path) -> None:
    first = next(iter(module(shards).val_dataloader()))[0]
    assert first.task == "scar_mini/val" and first.region is not None
    assert set(first.rankings) == {"hit@1", "hit@1_published", "object", "relation", "scene"}
    gold = {first.candidates[indices[0]].text for indices in first.rankings.values()}
    assert len(gold) == 1 and gold.pop().startswith("caption ")


@pytest.mark.parametrize(
    "query",
    [
        "<|image_1|>\nFind it.",
        "<|image_pad|>\nFind it.\nReferring object bbox: [1, 2, 5.5, 7]",
        "<|image_pad|> Find it. Referring object point: (3, 4)",
        "Find it.",
    ],
)
def test_the_instruction_holds_neither_image_token_nor_region(query: str) -> None:
    assert instruction(query) == "Find it."


def test_rows_without_masks_have_boxes_only(tmp_path: Path) -> None:
    root = write_scar(tmp_path / "scar", edit=lambda pairs, rankings: [row.update(segmentation=None) for row in pairs])  # type: ignore[func-returns-value]
    convert_scar(root, tmp_path / "out")
    batch, _ = next(iter(module(tmp_path / "out").train_dataloader()))
    assert all(sample.region.mask is None for sample in batch)


def test_lengths_are_true_and_epochs_differ(shards: Path) -> None:
    data = module(shards, KeepKeys())
    loader = data.train_dataloader()
    assert len(loader) == 5
    first = list(loader)
    assert len(first) == 5 and list(loader) == first
    data.set_epoch(1)
    assert [keys for keys, _ in loader] != [keys for keys, _ in first]
    assert len(module(shards, steps_per_epoch=11).train_dataloader()) == 11
    assert len(data.val_dataloader()) == len(list(data.val_dataloader())) == 3


def test_what_is_random_in_a_batch_does_not_hang_on_the_process(shards: Path) -> None:
    torch.manual_seed(1)
    first = list(module(shards, KeepKeys()).train_dataloader())
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(()))
    torch.manual_seed(2)
    assert list(module(shards, KeepKeys()).train_dataloader()) == first
    assert len({number for _, number in first}) == len(first)


def test_real_workers(shards: Path) -> None:
    data = module(shards, KeepKeys(), num_workers=2)
    loader = data.train_dataloader()
    first = list(loader)
    data.set_epoch(1)
    second = list(loader)
    assert len(first) == len(second) == 5 and first != second
    assert [list(module(shards, KeepKeys(), num_workers=2).train_dataloader())] == [first]
    alone = list(module(shards, KeepKeys()).test_dataloader())
    assert list(data.test_dataloader()) == alone
    assert sorted(pair for batch in alone for pair in batch) == sorted(
        (f"scar_mini/{name}", f"SCaR_eval_mini_val/{row}") for name in ("seen", "held_out") for row in range(7)
    )


def spoil(folder: Path, shard: int) -> None:
    """Make the first image of a tar one that cannot be decoded."""
    path = sorted(folder.glob("*.tar"))[shard]
    with tarfile.open(path) as tar:
        image = next(info for info in tar if info.name.endswith("jpg"))
    data = bytearray(path.read_bytes())
    data[image.offset_data : image.offset_data + image.size] = b"x" * image.size
    path.write_bytes(bytes(data))
    seal(folder)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_skipped_samples_are_told_to_the_module(tmp_path: Path, num_workers: int) -> None:
    convert_scar(write_scar(tmp_path / "scar", train=[1] * 8, val=[1] * 6), tmp_path / "out", images_per_shard=2)
    spoil(tmp_path / "out/SCAR_mini", 1)
    spoil(tmp_path / "out/SCaR_eval_mini_val", 2)
    data = module(tmp_path / "out", KeepKeys(), num_workers=num_workers, steps_per_epoch=8)
    assert len(list(data.train_dataloader())) == 8
    assert {key.partition(" ")[0] for key in data.skipped} == {"SCAR_mini/000000002"}
    assert [len(batch) for batch in data.val_dataloader()] == [3, 2]
    assert (
        data.skip_summary().startswith("2 bad samples (SCAR_mini/")
        and module(tmp_path / "out").skip_summary() == "no bad samples"
    )
    assert {key.partition(" ")[0] for key in data.skipped} >= {"SCaR_eval_mini_val/000000004"}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_samples_stop_the_run_with_one_line(tmp_path: Path, num_workers: int) -> None:
    convert_scar(write_scar(tmp_path / "scar", train=[1] * 8), tmp_path / "out", images_per_shard=2)
    for shard in range(4):
        spoil(tmp_path / "out/SCAR_mini", shard)
    loader = module(tmp_path / "out", num_workers=num_workers, max_bad_samples=2).train_dataloader()
    with pytest.raises(VirtueError, match=r"^3 bad samples \(.*damaged image.*\): more than max_bad_samples = 2$"):
        list(loader)


def test_queries_of_a_test_and_those_left_out_are_counted(tmp_path: Path) -> None:
    def edit(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        rankings[1]["bbox"] = None

    convert_scar(write_scar(tmp_path / "scar", val=[2, 2, 1], edit=edit), tmp_path / "out")
    data = module(tmp_path / "out", test_rows=3)
    assert data.num_queries() == {"scar_mini/seen": 3, "scar_mini/held_out": 3}
    assert data.left_out()["scar_mini/seen"] == {"no box": 1, "beyond test_rows": 1}
    assert module(tmp_path / "out").left_out()["scar_mini/seen"] == {"no box": 1}


def test_mistakes_are_one_line_that_names_the_option(shards: Path, tmp_path: Path) -> None:
    ranking, pairs = str(shards / "SCaR_eval_mini_val"), str(shards / "SCAR_mini")
    for options, message in (
        ({"batch_size": 17}, r"16 rows in .* are fewer than one batch of 17 \(over 1 ranks\): lower batch_size"),
        ({"num_negatives": 5}, r"num_negatives is 5, but rows of .* have as few as 4"),
        ({"train": ranking}, r"train: .* holds rankings, expected pairs"),
        ({"train": str(tmp_path)}, r"train: .* holds no shards"),
        ({"train": None}, "train is not set"),
        ({"batch_size": 0}, "batch_size is 0, expected 1 or more"),
    ):
        with pytest.raises(VirtueError, match=message) as caught:
            module(shards, **options).train_dataloader()
        assert "\n" not in str(caught.value)
    with pytest.raises(VirtueError, match=r"val.val: .* holds pairs, expected rankings"):
        module(shards, val=pairs).val_dataloader()
    with pytest.raises(VirtueError, match="test is not set"):
        module(shards, test=None).test_dataloader()
    with pytest.raises(VirtueError, match=r"SCaRDataModule is not connected to a model"):
        SCaRDataModule(train=pairs).train_dataloader()


def test_description_and_fingerprint(shards: Path, tmp_path: Path) -> None:
    data = module(shards)
    train, val, *tests = data.describe()
    assert (train["split"], train["shards"], train["images"], train["rows"]) == ("train", 5, 10, 16)
    assert (train["samples_per_epoch"], train["steps"]) == (15, 5)
    assert (val["split"], val["rows"], val["steps"]) == ("val/val", 7, 3) and [row["split"] for row in tests] == [
        "test/seen",
        "test/held_out",
    ]
    convert_scar(write_scar(tmp_path / "scar"), tmp_path / "out")
    assert data.fingerprint() == module(shards).fingerprint() != module(tmp_path / "out").fingerprint()


class Recorder(LightningModule):
    """Notes the keys of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.epochs: dict[int, list[Any]] = {}
        self.validated: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.epochs.setdefault(self.current_epoch, []).append(tuple(batch[0]))
        return self.weight * 1.0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += batch

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.validated += batch

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(accelerator="cpu", **{**quiet, **options})


def test_in_a_trainer(shards: Path, tmp_path: Path) -> None:
    """Each epoch is its own, a resumed run sees the epochs that it would have seen, and validation sees all."""
    whole, begun, resumed = Recorder(), Recorder(), Recorder()
    trainer(max_epochs=3).fit(whole, datamodule=module(shards, KeepKeys()))
    assert [len(steps) for steps in whole.epochs.values()] == [5, 5, 5] and len(
        set(map(str, whole.epochs.values()))
    ) == 3
    assert len(whole.validated) == 3 * 7
    first = trainer(max_epochs=2)
    first.fit(begun, datamodule=module(shards, KeepKeys()))
    first.save_checkpoint(tmp_path / "last.ckpt")
    trainer(max_epochs=3).fit(
        resumed, datamodule=module(shards, KeepKeys()), ckpt_path=tmp_path / "last.ckpt", weights_only=True
    )
    assert begun.epochs | resumed.epochs == whole.epochs
    tested = Recorder()
    trainer().test(tested, datamodule=module(shards, KeepKeys()))
    assert len(tested.validated) == len(set(tested.validated)) == 14


def test_a_run_that_is_stopped_within_an_epoch_goes_on_with_the_next_batch(shards: Path, tmp_path: Path) -> None:
    """From the checkpoint of any step, also of a run that was itself resumed: the same samples in the same order."""

    def run_and_record(name: str, checkpoint: str | None = None) -> list[tuple[int, Any]]:
        recorder = Recorder()
        saving = ModelCheckpoint(dirpath=tmp_path, filename=name + "-{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(max_steps=13, max_epochs=-1, enable_checkpointing=True, callbacks=[saving])
        run.fit(
            recorder,
            datamodule=module(shards, KeepKeys()),
            ckpt_path=checkpoint and tmp_path / checkpoint,
            weights_only=True,
        )
        return [(epoch, step) for epoch, steps in recorder.epochs.items() for step in steps]

    whole = run_and_record("whole")
    for stop in (2, 5, 7):
        assert run_and_record(f"from_{stop}", f"whole-step={stop}.ckpt") == whole[stop:]
    assert run_and_record("again", "from_2-step=8.ckpt") == whole[8:]


def test_an_evaluation_batch_that_bad_samples_empty_is_passed_over(tmp_path: Path) -> None:
    convert_scar(write_scar(tmp_path / "scar", val=[1, 1, 1]), tmp_path / "out", images_per_shard=1)
    path = tmp_path / "out/SCaR_eval_mini_val/shard-000001.tar"
    with tarfile.open(path) as tar:
        name = next(info.name for info in tar if info.name.endswith("json"))
    path.write_bytes(path.read_bytes().replace(json.dumps("box").encode(), b'"bos"'))
    seal(path.parent)
    data = module(tmp_path / "out", KeepKeys(), eval_batch_size=1)
    assert name == "000000001.json" and len(list(data.val_dataloader())) == 2
    tested = Recorder()
    trainer().validate(tested, datamodule=data)
    assert len(tested.validated) == 2
