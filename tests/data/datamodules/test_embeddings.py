from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.data import DataLoader

from virtue_pl.callbacks.embedding_writer import EmbeddingWriter, write_embeddings
from virtue_pl.data.datamodules.embeddings import EmbeddingDataModule, EmbeddingLoader
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.types import EmbeddingBatch, PairIds, VirtueError


def stored(pairs: int = 6, per_query: int = 2, dim: int = 4) -> EmbeddingBatch:
    generator = torch.Generator().manual_seed(0)
    queries = normalize(torch.randn(pairs, dim, generator=generator), dim=-1)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0]
    negatives = normalize(torch.randn(pairs * per_query, dim, generator=generator), dim=-1)
    rows = torch.arange(pairs).repeat_interleave(per_query)
    ids = PairIds(
        torch.arange(pairs), torch.arange(pairs) + 100, 1000 + torch.arange(len(rows)), rows, torch.arange(pairs) // 2
    )
    return EmbeddingBatch(queries, queries @ rotation, negatives, ids)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    whole = stored(24)
    write_embeddings([whole], tmp_path / "embeddings.safetensors")
    return tmp_path / "embeddings.safetensors"


def test_batches_that_are_joined_keep_each_negative_with_its_query(tmp_path: Path) -> None:
    """The file is to the bit what safetensors writes of all of them together."""
    batches = [stored(3), stored(2)]
    write_embeddings(batches, tmp_path / "found")
    joined = EmbeddingBatch.from_tensors(load_file(tmp_path / "found"))
    assert joined.ids.negative_rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] and len(joined) == 5
    columns = [batch.to_tensors() for batch in batches]
    together = {name: torch.cat([batch[name] for batch in columns]) for name in columns[0]}
    save_file({**together, "negative_rows": joined.ids.negative_rows}, tmp_path / "expected")
    assert (tmp_path / "found").read_bytes() == (tmp_path / "expected").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


class Pairs(LightningModule):
    """Predicts `stored(2)` for each of its batches."""

    def __init__(self, fails_at: int = -1) -> None:
        super().__init__()
        self.fails_at, self.alive, self.most = fails_at, weakref.WeakSet[Tensor](), 0

    def predict_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.arange(20))  # type: ignore[arg-type]

    def predict_step(self, batch: Tensor) -> EmbeddingBatch:
        if batch == self.fails_at:
            raise RuntimeError("it fails")
        found = stored(2)
        self.alive.add(found.queries)
        self.most = max(self.most, len(self.alive))
        return found


def test_predicted_embeddings_go_to_disk_batch_by_batch(tmp_path: Path) -> None:
    """Memory holds two batches at most: the one that is added, and the one that is computed meanwhile."""
    path, model = tmp_path / "run/embeddings.safetensors", Pairs()
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(callbacks=[EmbeddingWriter(str(path))], **options).predict(model, return_predictions=True)
    assert load_file(path)["queries"].shape == (40, 4) and model.most <= 2
    path.unlink()
    with pytest.raises(RuntimeError, match="it fails"):
        Trainer(callbacks=[EmbeddingWriter(str(path))], **options).predict(Pairs(fails_at=3))
    assert list(path.parent.iterdir()) == []


def test_a_file_keeps_its_names(file: Path) -> None:
    names = {
        "queries",
        "targets",
        "negatives",
        "query_ids",
        "target_ids",
        "negative_ids",
        "negative_rows",
        "picture_ids",
    }
    assert load_file(file).keys() == names
    again = EmbeddingBatch.from_tensors(load_file(file))
    assert all(torch.equal(again.to_tensors()[name], tensor) for name, tensor in stored(24).to_tensors().items())


def test_pairs_are_split_and_their_negatives_come_along(file: Path) -> None:
    data = EmbeddingDataModule(str(file), batch_size=5, validation_share=0.25)
    data.setup("fit")
    whole, seen = stored(24), []
    for batch in [*data.train_dataloader(), *data.val_dataloader()]:
        for row, query in enumerate(batch.ids.query_ids.tolist()):
            seen.append(query)
            assert batch.ids.image_ids[row] == query // 2
            own = batch.negatives[batch.ids.negative_rows == row]
            assert torch.equal(own, whole.negatives[whole.ids.negative_rows == query])
    assert sorted(seen) == list(range(24))
    assert [part["samples"] for part in data.describe()] == [18, 6]


def test_a_loss_learns_alone_on_stored_embeddings(file: Path, tmp_path: Path) -> None:
    loss = InfoNCELoss(0.1, learn_temperature=True, adapter_dim=4, optimization=Optimization(0.05, 0.0, 0, "constant"))
    data = EmbeddingDataModule(str(file), batch_size=18, validation_share=0.25)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(loss, data)
    first = trainer.callback_metrics["train/loss"].item()
    again = Trainer(
        max_epochs=30,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=tmp_path,
    )
    again.fit(loss, data)
    assert again.callback_metrics["train/loss"].item() < first
    assert "val/in_batch_accuracy" in again.callback_metrics


def shown_order(file: Path, folder: Path, epochs: int, resume: Path | None = None) -> list[list[int]]:
    """The pairs that a training sees, epoch by epoch; its checkpoint is last.ckpt."""
    seen: list[list[int]] = []

    class Recorder(InfoNCELoss):
        def on_train_epoch_start(self) -> None:
            seen.append([])

        def training_step(self, batch: EmbeddingBatch, batch_idx: int) -> torch.Tensor:
            seen[-1] += batch.ids.query_ids.tolist()
            return super().training_step(batch, batch_idx)

    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loss = Recorder(0.1, learn_temperature=True, optimization=Optimization(0.05, 0.0, 0, "constant"))
    trainer.fit(loss, EmbeddingDataModule(str(file), 5, seed=3), ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    return seen


def test_each_epoch_has_an_order_of_its_own_which_the_seed_gives_again(file: Path, tmp_path: Path) -> None:
    first = shown_order(file, tmp_path, epochs=3)
    assert len({tuple(order) for order in first}) == 3 and len({tuple(sorted(order)) for order in first}) == 1
    assert shown_order(file, tmp_path, epochs=2) == first[:2]
    assert shown_order(file, tmp_path, epochs=3, resume=tmp_path / "last.ckpt") == first[2:]


def loaders(file: Path, world_size: int, epoch: int) -> list[EmbeddingLoader]:
    tensors = EmbeddingBatch.from_tensors(load_file(file))
    return [
        EmbeddingLoader(tensors, torch.arange(23), 5, 0, lambda: epoch, rank, world_size) for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_epochs_order(file: Path, world_size: int) -> None:
    whole = loaders(file, 1, epoch=4)[0].order(4).tolist()
    shares = loaders(file, world_size, epoch=4)
    batches = [[batch.ids.query_ids.tolist() for batch in share] for share in shares]
    sizes = [[len(batch) for batch in share] for share in batches]
    assert all(each == sizes[0] and len(each) == len(share) for each, share in zip(sizes, shares, strict=True))
    found = [[pair for batch in share for pair in batch] for share in batches]
    dealt = [pair for step in zip(*found, strict=True) for pair in step]
    assert dealt == whole[: len(dealt)] and len(whole) - len(dealt) < world_size


@pytest.mark.parametrize(("share", "held_out"), [(0.0, 0), (0.01, 1), (0.5, 12)])
def test_as_many_pairs_are_held_out_as_is_said(file: Path, share: float, held_out: int) -> None:
    data = EmbeddingDataModule(str(file), batch_size=5, validation_share=share)
    data.setup("fit")
    assert sum(len(batch) for batch in data.val_dataloader()) == held_out
    assert sum(len(batch) for batch in data.train_dataloader()) == 24 - held_out


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_a_share_that_leaves_nothing_to_train_on_is_refused(share: float) -> None:
    with pytest.raises(VirtueError, match=rf"validation_share is {share}, expected 0 or more, and less than 1"):
        EmbeddingDataModule("embeddings.safetensors", 4, validation_share=share)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match=r"none\.safetensors is not there; write it with"):
        EmbeddingDataModule(str(tmp_path / "none.safetensors"), 4).setup("fit")


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.safetensors"
    for content in (b"", b"nothing", bytes(100)):
        path.write_bytes(content)
        with pytest.raises(VirtueError, match=r"embeddings: .* holds none .*; write it again") as caught:
            EmbeddingDataModule(str(path), batch_size=2).setup("fit")
        assert "\n" not in str(caught.value)
