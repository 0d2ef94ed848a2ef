from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from fixtures.tiny_models import VISION_MODEL
from virtue_pl.backbones.segmentation.timm_sam import TimmSamBackbone, TimmSamPromptEncoder
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.preprocessing.prompts import box_of_mask
from virtue_pl.preprocessing.region_collator import RegionCollator, jitter_boxes, mirror_region
from virtue_pl.types import DataError, EmbeddingInput, RankingSample, Region, Sample, VirtueError, VisualPrompt

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
SIZE = 64
MODES = {"box": 0.5, "point": 0.3, "mask": 0.2}


def backbone() -> TimmSamBackbone:
    return TimmSamBackbone(VISION_MODEL, None, embed_dim=32, image_size=SIZE, num_heads=2, mlp_dim=64, dense_hints=True)


def encoder() -> TimmSamPromptEncoder:
    return TimmSamPromptEncoder(embed_dim=32, image_size=SIZE, dense_hints=True)


def trainable() -> SegmentationExtractor:
    torch.manual_seed(0)
    optimization = Optimization(lr=3e-3, weight_decay=0.0, warmup_steps=5, schedule="cosine")
    return SegmentationExtractor(
        backbone(), VisualPromptEncoder(encoder()), MODES, focal_weight=2.0, focal_gamma=0.0, optimization=optimization
    )


def image_with_squares(number: int, squares: int = 2, task: str = "squares/train") -> list[Sample]:
    """Dark squares in a bright image, at most one in each half; a sample for each."""
    image = torch.full((3, SIZE, SIZE), 220, dtype=torch.uint8)
    masks = []
    for position in range(squares):
        size = int(torch.randint(14, 26, ()))
        x, y = int(torch.randint(0, 32 - size, ())) + 32 * position, int(torch.randint(0, SIZE - size, ()))
        mask = torch.zeros(SIZE, SIZE, dtype=torch.bool)
        mask[y : y + size, x : x + size] = True
        image[:, mask] = 20
        masks.append(mask)
    item = EmbeddingInput(images=(image,), image_keys=(f"{task}, image {number}",))
    return [
        Sample(f"{number}/{position}", task, item, item, region=Region(box_of_mask(mask), mask))
        for position, mask in enumerate(masks)
    ]


def samples(images: int, squares: int = 2, task: str = "squares/train") -> list[Sample]:
    return [sample for number in range(images) for sample in image_with_squares(number, squares, task)]


def rankings(images: int, task: str = "squares/val", squares: int = 2) -> list[RankingSample]:
    return [
        RankingSample(s.key, task, s.query, (s.target,), {"hit@1": (0,)}, s.region)
        for s in samples(images, squares, task)
    ]


def trainer(steps: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


@pytest.fixture(scope="module")
def trained_extractor() -> tuple[SegmentationExtractor, dict[str, float]]:
    """A few seconds of training on images of one square, and what was logged."""
    model = trainable()
    run = trainer(40)
    run.fit(model, DataLoader(samples(640, squares=1), batch_size=16, collate_fn=model.collator.collate_train))
    logged = {name: value.item() for name, value in run.callback_metrics.items()}
    tests = rankings(10, "squares/test_seen", 1) + rankings(10, "squares/test_held_out", 1)
    (result,) = run.test(model, DataLoader(tests, batch_size=20, collate_fn=model.collator.collate_eval), verbose=False)
    return model, logged | result


def test_alone_it_learns_to_segment(trained_extractor):
    _, metrics = trained_extractor
    assert metrics["test/test_seen/iou_box"] > 0.7
    assert metrics["test/test_held_out/iou_mask"] > 0.7


def test_each_mode_and_task_is_scored(trained_extractor):
    _, metrics = trained_extractor
    assert {name for name in metrics if name.startswith("test/")} == {
        f"test/{task}/iou_{mode}" for task in ("test_seen", "test_held_out") for mode in MODES
    }
    assert {"train/loss", "train/focal", "train/dice"} <= set(metrics)


def test_a_single_task_needs_no_name():
    model = trainable()
    (result,) = trainer(1).validate(
        model, DataLoader(rankings(2), batch_size=3, collate_fn=model.collator.collate_eval), verbose=False
    )
    assert set(result) == {"val/iou_box", "val/iou_point", "val/iou_mask", "val/loss"}


def test_one_checkpoint_starts_both_parts(trained_extractor, tmp_path):
    model, _ = trained_extractor
    path = tmp_path / "last.ckpt"
    torch.save({"state_dict": model.state_dict()}, path)
    prompts = VisualPromptEncoder(encoder(), weights=path, weights_prefix="prompt_encoder.", frozen=True)
    segmentation = SegmentationExtractor(backbone(), weights=path, frozen=True)
    batch = model.collator.collate_eval(rankings(1))
    with torch.no_grad():
        torch.testing.assert_close(
            segmentation(batch.images, prompts(batch.prompts)).mask_logits, model.eval().predict_masks(batch)
        )
    assert not any(module.training for module in segmentation.train().modules())


def test_other_sizes_are_refused(trained_extractor, tmp_path):
    model, _ = trained_extractor
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.ckpt")
    with pytest.raises(VirtueError, match="the sizes in the config differ"):
        SegmentationExtractor(TimmSamBackbone(VISION_MODEL, None, 64, SIZE), weights=Path(tmp_path / "last.ckpt"))


def test_alone_it_needs_a_prompt_encoder():
    model = SegmentationExtractor(backbone())
    with pytest.raises(VirtueError, match="give it `prompt_encoder`"):
        model.predict_masks(model.collator.collate_train(samples(1)))


def test_an_image_is_prepared_once():
    batch = RegionCollator(SIZE, SIZE, MODES).collate_train(samples(3))
    assert len(batch) == 6 and len(batch.images) == 3
    assert batch.prompts.image_index.tolist() == [0, 0, 1, 1, 2, 2]
    assert batch.tasks == ("squares/train",) * 6


def test_augmentation_moves_image_mask_and_prompt_together():
    collator = RegionCollator(SIZE, SIZE, {"box": 1.0}, flip=True)
    drawn = samples(20)
    batch = collator.collate_train(drawn)
    flipped = 0
    for row, sample in enumerate(drawn):
        dark = batch.images.segmentation[batch.prompts.image_index[row]][0] < 100
        mask = batch.masks[row].bool()
        assert dark[mask].all()
        torch.testing.assert_close(batch.prompts.prompts[row].boxes[0], box_of_mask(mask))
        torch.testing.assert_close(batch.boxes[row], box_of_mask(mask))
        flipped += not torch.equal(mask, sample.region.mask)
    assert 0 < flipped < len(drawn)


def test_evaluation_shows_every_sample_in_every_mode_and_repeats_itself():
    collator = RegionCollator(SIZE, SIZE, MODES, flip=True, box_jitter=0.1)
    queries = rankings(2)
    first, again = collator.collate_eval(queries), collator.collate_eval(queries[1:2])
    assert first.modes == ("box",) * 4 + ("point",) * 4 + ("mask",) * 4
    assert first.keys == tuple(sample.key for sample in queries) * 3
    torch.testing.assert_close(first.prompts.prompts[5].points, again.prompts.prompts[1].points)
    torch.testing.assert_close(first.prompts.prompts[0].boxes[0], queries[0].region.box)
    assert torch.equal(first.masks[8].bool(), queries[0].region.mask)


def test_jitter_is_a_share_of_the_box_and_stays_in_the_image():
    box = torch.tensor([[0.0, 0.2, 0.5, 0.4]])
    for _ in range(20):
        moved = jitter_boxes(VisualPrompt(boxes=box), 0.1).boxes
        assert ((moved - box).abs() <= torch.tensor([0.05, 0.02, 0.05, 0.02]) + 1e-6).all() and (moved >= 0).all()


def test_a_mirrored_region_mirrors_back():
    region = samples(1)[0].region
    back = mirror_region(mirror_region(region))
    torch.testing.assert_close(back.box, region.box)
    assert torch.equal(back.mask, region.mask)


def test_masks_and_images_of_another_size_reach_the_canvas():
    batch = RegionCollator(32, 32, {"mask": 1.0}).collate_train(samples(1))
    assert batch.masks.shape == (2, 32, 32) and set(batch.masks.unique().tolist()) == {0.0, 1.0}
    assert batch.images.segmentation[0].shape == (3, 32, 32)
    torch.testing.assert_close(box_of_mask(batch.masks[0].bool()), batch.boxes[0], atol=1 / 32, rtol=0)


@pytest.mark.parametrize(
    ("region", "problem"), [(None, "no region"), (Region(torch.tensor([0.1, 0.1, 0.5, 0.5])), "no mask")]
)
def test_what_cannot_be_learnt_from_is_named(region, problem):
    item = EmbeddingInput(images=(torch.zeros(3, SIZE, SIZE, dtype=torch.uint8),))
    with pytest.raises(DataError, match=f"bad one: .*{problem}"):
        RegionCollator(SIZE, SIZE, {"box": 1.0}).collate_train([Sample("bad one", "task", item, item, region=region)])


@pytest.mark.parametrize("modes", [{}, {"box": 0.0}, {"box": -1.0, "point": 2.0}, {"scribble": 1.0}])
def test_modes_are_checked(modes):
    with pytest.raises(VirtueError, match="prompt_modes"):
        RegionCollator(SIZE, SIZE, modes)
