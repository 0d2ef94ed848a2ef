from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from safetensors.torch import load_file
from torch.nn.functional import normalize

from virtue_pl.callbacks.embedding_writer import join, save_embeddings
from virtue_pl.data.datamodules.embeddings import EmbeddingDataModule
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
    save_embeddings(join([whole]), tmp_path / "embeddings.safetensors")
    return tmp_path / "embeddings.safetensors"


def test_batches_that_are_joined_keep_each_negative_with_its_query() -> None:
    joined = join([stored(3), stored(2)])
    assert joined.ids.negative_rows.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(joined) == 5


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
