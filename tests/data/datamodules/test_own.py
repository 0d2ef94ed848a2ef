"""One's own shards: splits by name, and a share of the images of `train` to validate on where there is no `val`."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from fixtures.own_files import png, write_rows
from virtue_pl.data.conversion.pairs import convert_pairs
from virtue_pl.data.datamodules.own import OwnDataModule
from virtue_pl.data.streaming.options import SamplingOptions
from virtue_pl.types import RankingSample, Sample, VirtueError

IMAGES = 12


class AsTheyCome:
    """A collator whose batches are their samples."""

    fingerprints: ClassVar[dict[str, str]] = {}

    def collate_train(self, samples: Sequence[Sample]) -> Any:
        return list(samples)

    collate_eval = collate_images = collate_train


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of three rows each, in shards of five; a third of the rows has negatives."""
    root = tmp_path_factory.mktemp("own")
    rows = [
        {
            "image": f"{image}.png",
            "text": "what?",
            "target": f"{image} {row}",
            "negatives": [f"no {image}"] * (row == 0),
        }
        for image in range(IMAGES)
        for row in range(3)
    ]
    write_rows(root / "rows", rows)
    for image in range(IMAGES):
        (root / f"rows/images/{image}.png").write_bytes(png(image, (8 + image, 8)))
    convert_pairs(root / "rows", root / "shards", images_per_shard=5)
    return root / "shards"


def connected(root: Path, **options: Any) -> OwnDataModule:
    sampling = SamplingOptions(num_negatives=2, negatives_required=False, shuffle_buffer=4, sample_buffer=1)
    data = OwnDataModule(str(root), **{"batch_size": 6, "eval_batch_size": 4, "sampling": sampling, **options})
    data.connect(AsTheyCome())
    return data


def samples_of(batches: Any) -> list[Any]:
    return [sample for batch in batches for sample in batch]


def image_of(sample: Any) -> str:
    return str(sample.query.image_keys[0])


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.75])
def test_a_share_of_the_images_is_held_out_with_all_their_rows(shards, share):
    data = connected(shards, val_share=share)
    held_out, trained = samples_of(data.val_dataloader()), samples_of(data.train_dataloader())
    assert {image_of(sample) for sample in held_out}.isdisjoint(map(image_of, trained))
    images = max(1, round(share * IMAGES))
    assert len({image_of(sample) for sample in held_out}) == images
    assert len(held_out) == len({sample.key for sample in held_out}) == 3 * images
    assert data.steps == len(data.train_dataloader()) == 3 * (IMAGES - images) // 6
    first = data.first_rankings(2)
    assert [sample.key for sample in first] == [sample.key for sample in held_out[:2]]
    assert all(isinstance(sample, RankingSample) and len(sample.candidates) > 1 for sample in first)
    train, val = data.describe()[:2]
    assert (train["rows"], val["rows"], val["images"]) == (3 * (IMAGES - images), 3 * images, images)
    assert val["split"] == f"val: {share:g} of train"


def test_the_same_shards_hold_out_the_same_rows(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "copy")
    first, second = (
        samples_of(connected(root, val_share=0.3).val_dataloader()) for root in (shards, tmp_path / "copy")
    )
    assert [sample.key for sample in first] == [sample.key for sample in second]


def test_held_out_rows_are_ranked_among_the_targets_of_their_batch(shards):
    for batch in connected(shards, val_share=0.5).val_dataloader():
        for sample in batch:
            assert isinstance(sample, RankingSample) and sample.rankings["hit@1"][0] == 0
            texts = [candidate.text for candidate in sample.candidates]
            assert len(texts) == len(set(texts)) and set(texts) >= {other.candidates[0].text for other in batch}


def test_rows_give_the_negatives_that_they_have(shards):
    counts = {len(sample.negatives) for sample in samples_of(connected(shards).train_dataloader())}
    assert counts == {0, 1}
    strict = connected(shards, sampling=SamplingOptions(num_negatives=1))
    with pytest.raises(VirtueError, match=r"num_negatives is 1, but rows of .* have as few as 0"):
        strict.train_dataloader()


def test_a_val_that_is_there_is_used_and_nothing_is_held_out(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "shards")
    write_rows(tmp_path / "rows", [{"image": "0.png", "text": "what?", "candidates": ["a", "b"]}], "val")
    convert_pairs(tmp_path / "rows", tmp_path / "shards")
    data = connected(tmp_path / "shards", val_share=0.5)
    assert [sample.key for sample in samples_of(data.val_dataloader())] == ["val/0"]
    assert data.train_folder.manifest.rows == 3 * IMAGES


def test_a_folder_of_training_shards_serves_itself(shards):
    assert connected(shards / "train").train_folder.manifest.rows == 3 * IMAGES
    assert connected(shards / "train").val_dataloader() == []


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(shards, share):
    with pytest.raises(VirtueError, match=f"val_share is {share:g}, expected a share of the images"):
        connected(shards, val_share=share)


def test_a_share_of_all_images_is_refused(shards):
    with pytest.raises(VirtueError, match=r"val_share is 0.99, but .*train has 12 images, expected at least one"):
        connected(shards, val_share=0.99).train_dataloader()


def test_what_is_there_is_named_where_there_is_nothing_to_train_on(shards, tmp_path):
    shutil.copytree(shards / "train", tmp_path / "dev")
    with pytest.raises(VirtueError, match=r"holds dev, expected train/"):
        connected(tmp_path).setup("fit")
    with pytest.raises(VirtueError, match=r"nowhere is no folder, expected one with train/ \(--shared.shards\)"):
        connected(tmp_path / "nowhere").setup("fit")
