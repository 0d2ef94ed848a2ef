"""Pairs of regions: one name in two images, never a name of another split, alone and as one part of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from fixtures.scar_files import write_scar
from fixtures.tiny_virtue import tiny_virtue
from virtue_pl.data.conversion.scar import convert_scar
from virtue_pl.data.datamodules.mixture import MixedDataModule
from virtue_pl.data.datamodules.region_pairs import INSTRUCTION, RegionPairDataModule
from virtue_pl.data.datamodules.scar import SCaRDataModule
from virtue_pl.data.scenes import SceneConfig, write_scenes
from virtue_pl.data.streaming.options import ReaderOptions, SamplingOptions
from virtue_pl.preprocessing.contrastive_collator import pair_ids
from virtue_pl.types import Sample, VirtueError

NAMES = ["owl", "fox", "owl", "fox", "eel", "owl", "fox", "", "owl", "cat", "cat"]
"""Of the regions of images with 2, 2, 1, 2, 2 and 2 of them: eel is alone, cat in one image, one has none."""
TRAIN = [2, 2, 1, 2, 2, 2]


class Keep:
    """A collator that gives samples back."""

    def collate_train(self, samples: Sequence[Sample]) -> list[Sample]:
        return list(samples)

    collate_eval = collate_train


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("region_pairs")

    def name(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        for row, its_name in zip(pairs, NAMES, strict=True):
            row["category"] = its_name

    convert_scar(write_scar(folder / "scar", train=TRAIN, edit=name), folder / "out", images_per_shard=2)
    return folder / "out"


def module(shards: Path, batch_size: int = 2, **options: Any) -> RegionPairDataModule:
    sampling = SamplingOptions(sample_buffer=1, **options)
    data = RegionPairDataModule(str(shards / "SCAR_mini"), batch_size=batch_size, sampling=sampling)
    data.connect(Keep())  # type: ignore[arg-type]
    return data


def epochs(data: Any, count: int = 6) -> list[list[Sample]]:
    """Return the batches of several epochs."""
    found = []
    for epoch in range(count):
        data.set_epoch(epoch)
        found += [list(batch) for batch in data.train_dataloader()]
    return found


def name_of(sample: Sample) -> str:
    return NAMES[int(sample.key.partition("/")[2])]


def image_of(sample: Sample) -> str:
    return sample.query.image_keys[0]


def test_a_pair_is_of_one_name_in_two_images(shards: Path) -> None:
    batches = epochs(module(shards))
    samples = [sample for batch in batches for sample in batch]
    assert {name_of(sample) for sample in samples} == {"owl", "fox"} == {sample.label for sample in samples}
    regions = {
        (image_of(sample), tuple(sample.region.box.tolist())): name_of(sample)  # type: ignore[union-attr]
        for sample in samples
    }
    for sample in samples:
        assert sample.query.text == INSTRUCTION and sample.target.text == "" and not sample.negatives
        assert sample.target.image_keys[0] != image_of(sample) and sample.query.prompt.is_empty
        assert regions[sample.target.image_keys[0], tuple(sample.target.prompt.boxes[0].tolist())] == name_of(sample)
    partners = {(sample.key, sample.target.image_keys) for sample in samples}
    assert len(partners) > len({sample.key for sample in samples}) == 7


def test_regions_of_one_name_are_no_negatives_of_each_other(shards: Path) -> None:
    """With two names, a batch of four cannot keep them apart."""
    alike = epochs(module(shards, batch_size=4))
    assert any(len({sample.label for sample in batch}) < 4 for batch in alike)
    ids = pair_ids(alike[0], [])
    same = [[one.label == other.label for other in alike[0]] for one in alike[0]]
    assert (ids.target_ids[None] == ids.target_ids[:, None]).tolist() == same


def test_the_stream_depends_on_the_seed_alone(shards: Path) -> None:
    def keys(seed: int, workers: int = 0) -> list[Any]:
        data = RegionPairDataModule(
            str(shards / "SCAR_mini"), batch_size=2, reader=ReaderOptions(num_workers=workers, seed=seed)
        )
        data.connect(Keep())  # type: ignore[arg-type]
        return [[(one.key, one.target.image_keys) for one in batch] for batch in epochs(data, 2)]

    assert keys(0) == keys(0) == keys(0, workers=2) and keys(0) != keys(1)


def test_rows_without_a_partner_are_counted_and_stated(shards: Path) -> None:
    data = module(shards)
    assert data.num_alone == 4 and data.steps == 11 // 2
    (described,) = data.training_rows().values()
    assert described.endswith("7 with a region of the same name elsewhere")
    assert len(data.first_samples(3)) == 3


def test_it_is_one_entry_of_a_mixture(shards: Path) -> None:
    scar = SCaRDataModule(str(shards / "SCAR_mini"), sampling=SamplingOptions(2, sample_buffer=1))
    data = MixedDataModule({"scar": scar, "same": module(shards)}, batch_size=4, block_size=2, steps_per_epoch=6)
    data.connect(Keep())  # type: ignore[arg-type]
    texts = {sample.query.text for batch in epochs(data, 1) for sample in batch}
    assert texts == {INSTRUCTION, "Find the caption."}


def test_a_model_learns_from_a_mixed_batch(shards: Path) -> None:
    model = tiny_virtue()
    scar = SCaRDataModule(str(shards / "SCAR_mini"), sampling=SamplingOptions(2, sample_buffer=1))
    data = MixedDataModule({"scar": scar, "same": module(shards)}, batch_size=4, block_size=2, steps_per_epoch=8)
    data.connect(model.collator)
    batch = next(batch for batch in data.train_dataloader() if 0 < len(batch.ids.negative_rows) < 8)
    loss = model.loss(model.embed_pairs(batch)).loss  # type: ignore[misc]
    loss.backward()
    gradients = [parameter.grad for parameter in model.connector.parameters() if parameter.requires_grad]
    assert loss.isfinite() and all(each is not None and bool(each.abs().sum()) for each in gradients)


def test_no_object_that_is_held_out_is_ever_shown(tmp_path: Path) -> None:
    """Of composed scenes: all names that are trained on are objects of training, and no test scene is read."""
    torch.manual_seed(0)
    config = SceneConfig(source="shapes", train=30, val=2, test=40, size=128)
    write_scenes(config, tmp_path / "scenes")
    convert_scar(tmp_path / "scenes", tmp_path / "out")
    tests = {
        name: pq.read_table(tmp_path / f"scenes/SCaR-eval/SCaR_eval_mini_{name}.parquet")
        for name in ("test_seen", "test_held_out")
    }
    names = {name: set(table["category"].to_pylist()) for name, table in tests.items()}
    batches = epochs(module(tmp_path / "out", batch_size=8), 2)
    assert all(len({sample.label for sample in batch}) == 8 for batch in batches), "a name is twice in a batch"
    samples = [sample for batch in batches for sample in batch]
    trained = {sample.label for sample in samples}
    assert trained & names["test_seen"] and not trained & names["test_held_out"]
    assert {sample.key.partition("/")[0] for sample in samples} == {"SCAR_mini"}


def test_what_cannot_be_paired_is_told(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(VirtueError, match=r"num_negatives is 2, but pairs of regions have no hard negatives"):
        module(shards, num_negatives=2)
    with pytest.raises(VirtueError, match="holds rankings, expected pairs"):
        RegionPairDataModule(str(shards / "SCaR_eval_mini_val")).partners  # noqa: B018

    def unnamed(pairs: list[dict[str, Any]], rankings: list[dict[str, Any]]) -> None:
        for row in pairs:
            row["category"] = None

    convert_scar(write_scar(tmp_path / "scar", edit=unnamed), tmp_path / "out")
    with pytest.raises(VirtueError, match=r"has no region whose name \(`category`\) is in two images"):
        module(tmp_path / "out").train_dataloader()
