"""A tiny model of the paper's form, random but for its recorded language model, and pairs for it."""

from __future__ import annotations

from typing import Any

import torch

from recorded import GOLDEN
from virtue_pl.adapters.lora import LoRA
from virtue_pl.backbones.segmentation.sam2 import Sam2Backbone, Sam2PromptEncoder
from virtue_pl.backbones.vlm.pooling import LastTokenPooling
from virtue_pl.backbones.vlm.qwen2_vl import Qwen2VLBackbone
from virtue_pl.losses.contrastive import InfoNCELoss
from virtue_pl.models.connector import ConvolutionConnector
from virtue_pl.models.fusion_head import VLMFusionHead
from virtue_pl.models.segmentation_extractor import SegmentationExtractor
from virtue_pl.models.virtue import Virtue
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.types import EmbeddingInput, PairBatch, Region, Sample

DIM, CANVAS, SIDE = 64, 128, 56


def tiny_virtue(connector: Any = ConvolutionConnector, adapter: LoRA | None = None, frozen: bool = True) -> Virtue:
    torch.manual_seed(0)
    backbone = Sam2Backbone(
        None,
        16,
        2,
        (1, 1, 1, 1),
        (2,),
        embed_dim=DIM,
        image_size=CANVAS,
        predict_masks=connector is not ConvolutionConnector,
    )
    head = VLMFusionHead(Qwen2VLBackbone(str(GOLDEN / "qwen2_vl")), LastTokenPooling(), adapter=adapter)
    prompts = VisualPromptEncoder(Sam2PromptEncoder(None, DIM, CANVAS), frozen=frozen)
    model = Virtue(
        prompts,
        SegmentationExtractor(backbone, frozen=frozen),
        connector,
        head,
        InfoNCELoss(0.1),
        train_modes={"box": 1.0},
    )
    if adapter is not None:
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
    return model.train()


def make_image(number: int) -> torch.Tensor:
    return torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def pairs(model: Virtue, count: int) -> PairBatch:
    return model.collator.collate_train(samples(count))


def samples(count: int) -> list[Sample]:
    """Every other query is a text alone; the first two images are one; the last target is an image."""
    shown = [(make_image(max(1, i)),) if i % 2 == 0 or i == 1 else () for i in range(count)]
    queries = [
        EmbeddingInput("which " * (i + 1), images, image_keys=(str(max(1, i)),) if images else ())
        for i, images in enumerate(shown)
    ]
    targets = [
        *(EmbeddingInput("thing " * (i % 3 + 1)) for i in range(count - 1)),
        EmbeddingInput("as here", (make_image(99),), image_keys=("99",)),
    ]
    regions = [
        Region(torch.tensor([0.1, 0.2, 0.4 + 0.05 * i, 0.9])) if images else None for i, images in enumerate(shown)
    ]
    others = [(EmbeddingInput(f"wrong {i}"),) for i in range(count)]
    rows = zip(queries, targets, others, regions, strict=True)
    return [Sample(f"s{i}", "t", *row) for i, row in enumerate(rows)]
