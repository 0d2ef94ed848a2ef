"""The prompt encoder: visual prompts as tokens. Alone it learns to recover the prompted box."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import l1_loss
from torchvision.ops import box_iou, generalized_box_iou

from virtue_pl.backbones.segmentation.base import PromptEncoder
from virtue_pl.engine.module import VirtueModule
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.preprocessing.region_collator import RegionCollator
from virtue_pl.types import PromptBatch, PromptTokens, RegionBatch, VirtueError


class VisualPromptEncoder(VirtueModule):
    """Visual prompts to prompt tokens.

    Alone it learns to recover each prompt's box from its tokens, a check that the tokens hold what was pointed at. The
    head for that is built where `optimization` is given, that is alone; a composed model has no such parameters, and
    `weights` fill the encoder only.

    Args:
        encoder: the segmentation model's prompt encoder.
        prompt_modes: alone, the probability of each prompt mode; "box" and "mask" determine the box, "point" does not.
        optimization, weights, weights_prefix, frozen: see `VirtueModule`.

    Example:
        >>> from virtue_pl.backbones import TimmSamPromptEncoder
        >>> from virtue_pl.types import VisualPrompt
        >>> part = VisualPromptEncoder(TimmSamPromptEncoder(embed_dim=32, image_size=64))
        >>> prompt = VisualPrompt.from_pixels(boxes=[[0, 0, 50, 50]], size=(100, 100))
        >>> part(PromptBatch((prompt,), torch.tensor([0]))).sparse.shape
        torch.Size([1, 2, 32])
    """

    not_in_fingerprint = frozenset({"prompt_modes", "box_decoder"})

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
        self.prompt_modes = {"box": 1.0} if prompt_modes is None else dict(prompt_modes)
        self.load_and_freeze()
        self.box_decoder = None if optimization is None else BoxDecoder(encoder.embed_dim)

    def forward(self, prompts: PromptBatch) -> PromptTokens:
        """Return the tokens of every prompt."""
        return self.encoder(prompts)

    @property
    def collator(self) -> RegionCollator:
        """Return the collator of the encoder alone, which prepares no pixels."""
        return RegionCollator(None, None, self.prompt_modes, flip=True)

    def recover_boxes(self, batch: RegionBatch) -> Float[Tensor, "prompts 4"]:
        """Return each prompt's box (xyxy, normalised), read off its tokens. Raises VirtueError as a part."""
        if self.box_decoder is None:
            raise VirtueError(
                "VisualPromptEncoder is to run alone, but has no head to recover boxes with: give it `optimization`"
            )
        return self.box_decoder(self(batch.prompts))

    def training_step(self, batch: RegionBatch, batch_idx: int) -> Tensor:
        """Return the sum of L1 and generalised IoU loss of the recovered boxes."""
        loss = box_loss(self.recover_boxes(batch), batch.boxes)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: RegionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Note the mean IoU of the recovered boxes, and their loss."""
        boxes = self.score("val", batch)
        loss = box_loss(boxes, batch.boxes)
        self.average("val/loss", loss, len(batch))

    def test_step(self, batch: RegionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score("test", batch)

    def score(self, stage: str, batch: RegionBatch) -> Float[Tensor, "prompts 4"]:
        """Add to `val/box_iou` or `test/box_iou`, the mean over all samples, and return the recovered boxes."""
        boxes = self.recover_boxes(batch)
        ious = box_iou(boxes, batch.boxes).diagonal()
        self.average(f"{stage}/box_iou", ious.mean(), len(batch), prog_bar=True)
        return boxes


def box_loss(boxes: Float[Tensor, "prompts 4"], expected: Float[Tensor, "prompts 4"]) -> Float[Tensor, ""]:
    """Return the sum of L1 and generalised IoU loss of the boxes (xyxy, normalised).

    Every box is compared with all, of which the diagonal counts: torchvision's loss of pairs asks the device which of
    them overlap, and waits.
    """
    return l1_loss(boxes, expected) + (1 - generalized_box_iou(boxes, expected).diagonal()).mean()


class BoxDecoder(nn.Module):
    """A small head that reads a box (xyxy, normalised) off the sparse prompt tokens, which it transforms and averages.

    Example:
        >>> decoder = BoxDecoder(embed_dim=32)
        >>> decoder.to_corners[-1].out_features
        4
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        width = 4 * embed_dim
        self.read_token = nn.Sequential(nn.Linear(embed_dim, width), nn.GELU(), nn.Linear(width, width), nn.GELU())
        self.to_corners = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 4))

    def forward(self, tokens: PromptTokens) -> Float[Tensor, "prompts 4"]:
        """Return each prompt's box, its corners in order."""
        valid = tokens.valid[..., None].float()
        read = (self.read_token(tokens.sparse) * valid).sum(dim=1) / valid.sum(dim=1).clamp(min=1)
        first, second = self.to_corners(read).sigmoid().split(2, dim=1)
        return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)
