from __future__ import annotations

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from virtue_pl.backbones.segmentation.timm_sam import TimmSamPromptEncoder
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.types import EmbeddingInput, PromptBatch, RankingSample, Region, Sample, VirtueError, VisualPrompt

pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")


def part(**settings: object) -> VisualPromptEncoder:
    torch.manual_seed(0)
    return VisualPromptEncoder(TimmSamPromptEncoder(embed_dim=64, image_size=64), **settings)  # type: ignore[arg-type]


def trainable() -> VisualPromptEncoder:
    return part(optimization=Optimization(lr=2e-3, weight_decay=0.0, warmup_steps=10, schedule="cosine"))


def regions(number: int) -> list[Region]:
    sides = 0.15 + 0.3 * torch.rand(number, 2)
    corners = torch.rand(number, 2) * (1 - sides)
    return [Region(box) for box in torch.cat([corners, corners + sides], dim=1)]


def samples(number: int) -> list[Sample]:
    item = EmbeddingInput(images=(torch.zeros(3, 8, 8, dtype=torch.uint8),), image_keys=("image",))
    return [Sample(str(i), "shapes", item, item, region=region) for i, region in enumerate(regions(number))]


def rankings(number: int) -> list[RankingSample]:
    return [RankingSample(s.key, s.task, s.query, (s.target,), {"hit@1": (0,)}, s.region) for s in samples(number)]


def test_alone_it_learns_to_recover_boxes():
    """Five seconds of it; a minute reaches more than 0.9 (an untrained head: 0.1)."""
    model = trainable()
    train = DataLoader(samples(4800), batch_size=32, collate_fn=model.collator.collate_train)
    test = DataLoader(rankings(200), batch_size=100, collate_fn=model.collator.collate_eval)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=150,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, train)
    (result,) = trainer.test(model, test, verbose=False)
    assert result["test/box_iou"] > 0.5


def test_composed_it_has_no_head():
    assert all(name.startswith("encoder.") for name in part().state_dict())
    with pytest.raises(VirtueError, match="give it `optimization`"):
        part().recover_boxes(trainable().collator.collate_train(samples(2)))


def test_boxes_are_valid_whatever_the_tokens():
    model = trainable()
    boxes = model.recover_boxes(model.collator.collate_train(samples(50)))
    assert (boxes[:, :2] <= boxes[:, 2:]).all() and (0 <= boxes).all() and (boxes <= 1).all()


def test_the_head_does_not_see_padding():
    model = trainable()
    prompts = [VisualPrompt(boxes=region.box[None]) for region in regions(2)]
    points = VisualPrompt(points=torch.rand(5, 2), point_labels=torch.ones(5, dtype=torch.long))
    alone = model.box_decoder(model(PromptBatch((prompts[0],), torch.zeros(1, dtype=torch.long))))
    together = model.box_decoder(model(PromptBatch((*prompts, points), torch.zeros(3, dtype=torch.long))))
    torch.testing.assert_close(together[0], alone[0])


def test_weights_of_a_run_alone_start_a_composed_one(tmp_path):
    model = trainable()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "last.ckpt")
    model = part(weights=tmp_path / "last.ckpt", frozen=True)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.train()
    assert not model.encoder.training
