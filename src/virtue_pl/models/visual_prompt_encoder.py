"""The prompt encoder: what a person points at, as tokens. Alone it learns to give the pointed-at box back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torchvision.ops import box_iou, generalized_box_iou_loss

from virtue_pl.backbones.segmentation.base import PromptEncoder
from virtue_pl.engine.module import VirtueModule
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.preprocessing.region_collator import RegionCollator
from virtue_pl.types import PromptBatch, PromptTokens, RegionBatch, VirtueError


class VisualPromptEncoder(VirtueModule):
    """Visual prompts to prompt tokens.

    Alone it learns to recover each prompt's box from its tokens, a check that the tokens hold what was pointed at.
    The head for that is built where `optimization` is given, that is alone; a composed model has no such parameters,
    and `weights` fill the encoder only.

    Args:
        encoder: the segmentation model's prompt encoder.
        prompt_modes: alone, how often each prompt mode is shown; "box" and "mask" say where the box is, a click
            doesn't.
        optimization, weights, weights_prefix, frozen: see `VirtueModule`.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        prompt_modes: Mapping[str, float] | None = None,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        frozen: bool = False,
    ) -> None:
        super().__init__(optimization, weights, weights_prefix, frozen)
        self.encoder = encoder
        self.prompt_modes = dict(prompt_modes or {"box": 1.0})
        self.load_and_freeze()
        self.box_decoder = None if optimization is None else BoxDecoder(encoder.embed_dim)

    def forward(self, prompts: PromptBatch) -> PromptTokens:
        return self.encoder(prompts)

    @property
    def collator(self) -> RegionCollator:
        return RegionCollator(None, None, self.prompt_modes, flip=True)

    def recover_boxes(self, batch: RegionBatch) -> Float[Tensor, "prompts 4"]:
        if self.box_decoder is None:
            raise VirtueError(
                "VisualPromptEncoder is to run alone, but has no head to recover boxes with: give it `optimization`"
            )
        return self.box_decoder(self(batch.prompts))

    def training_step(self, batch: RegionBatch, batch_idx: int) -> Tensor:
        boxes = self.recover_boxes(batch)
        loss = l1_loss(boxes, batch.boxes) + generalized_box_iou_loss(boxes, batch.boxes, reduction="mean")
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: RegionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score("val", batch)

    def test_step(self, batch: RegionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score("test", batch)

    def score(self, stage: str, batch: RegionBatch) -> None:
        """`val/box_iou` and so on, the mean over all samples."""
        ious = box_iou(self.recover_boxes(batch), batch.boxes).diagonal()
        self.log(f"{stage}/box_iou", ious.mean(), batch_size=len(batch), prog_bar=True, sync_dist=True)


class BoxDecoder(nn.Module):
    """A small head that reads a box (xyxy, normalised) off the sparse prompt tokens, which it transforms and
    averages.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        width = 4 * embed_dim
        self.read_token = nn.Sequential(nn.Linear(embed_dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.to_corners = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, tokens: PromptTokens) -> Float[Tensor, "prompts 4"]:
        valid = tokens.valid[..., None].float()
        read = (self.read_token(tokens.sparse) * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        first, second = self.to_corners(read).sigmoid().split(2, dim=1)
        return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)
