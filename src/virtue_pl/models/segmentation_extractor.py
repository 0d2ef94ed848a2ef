"""The segmentation stream: images and prompt tokens to prompt-conditioned features. Alone it learns to segment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.functional import interpolate

from virtue_pl.backbones.segmentation.base import SegmentationBackbone
from virtue_pl.engine.module import VirtueModule
from virtue_pl.engine.optimizer import Optimization
from virtue_pl.engine.ranks.collectives import world_size
from virtue_pl.features.fingerprints import fingerprint_of
from virtue_pl.features.frozen import Levels, encode_missing
from virtue_pl.losses.segmentation import dice_loss, focal_loss
from virtue_pl.metrics.mask_iou import MaskIoU
from virtue_pl.models.visual_prompt_encoder import VisualPromptEncoder
from virtue_pl.preprocessing.input_formatters import InputFormatter, VirtueFormatter
from virtue_pl.preprocessing.region_collator import RegionCollator
from virtue_pl.types import (
    ImageBatch,
    ImageFeatures,
    PromptTokens,
    RegionBatch,
    SegmentFeatures,
    ShardImageBatch,
    VirtueError,
)

DEFAULT_PROMPT_MODES = {"box": 0.5, "point": 0.35, "mask": 0.15}


class SegmentationExtractor(VirtueModule):
    """Prompt-conditioned features of images (the paper's segmentation stream).

    Alone it learns each region's exact mask with focal and dice loss, its prompt encoder along with it: its checkpoint
    then holds "prompt_encoder.*" and "backbone.*", and a composed model starts both parts from that one file.

    Args:
        backbone: the segmentation model.
        prompt_encoder: makes the prompt tokens where the module runs alone; None as a part.
        prompt_modes: alone, the probability of each prompt mode in training; evaluation scores each mode on its own.
        focal_weight, dice_weight: weights of the two losses, each a mean over masks.
        focal_gamma: discount of pixels that are already right; 0 is plain cross-entropy.
        flip, box_jitter: augmentation in training, see `RegionCollator`.
        optimization, weights, weights_prefix, frozen: see `VirtueModule`.

    Example:
        >>> from virtue_pl.backbones import TimmSamBackbone, TimmSamPromptEncoder
        >>> encoder = VisualPromptEncoder(TimmSamPromptEncoder(embed_dim=32, image_size=64))
        >>> part = SegmentationExtractor(TimmSamBackbone(embed_dim=32, image_size=64), encoder)
        >>> part.backbone.widths
        FeatureWidths(embedding=32, image=432)
    """

    not_in_fingerprint = frozenset(
        {"prompt_modes", "focal_weight", "focal_gamma", "dice_weight", "flip", "box_jitter", "scores"}
    )
    scores: dict[tuple[str, str], MaskIoU]
    """IoUs by task and prompt mode, of this rank until they are logged."""

    def __init__(
        self,
        backbone: SegmentationBackbone,
        prompt_encoder: VisualPromptEncoder | None = None,
        prompt_modes: Mapping[str, float] | None = None,
        focal_weight: float = 20.0,
        focal_gamma: float = 2.0,
        dice_weight: float = 1.0,
        flip: bool = True,
        box_jitter: float = 0.05,
        optimization: Optimization | None = None,
        weights: str | Path | None = None,
        weights_prefix: str = "",
        frozen: bool = False,
    ) -> None:
        super().__init__(optimization, weights, weights_prefix, frozen)
        self.backbone = backbone
        self.prompt_encoder = prompt_encoder
        self.prompt_modes = dict(DEFAULT_PROMPT_MODES if prompt_modes is None else prompt_modes)
        self.focal_weight = focal_weight
        self.focal_gamma = focal_gamma
        self.dice_weight = dice_weight
        self.flip = flip
        self.box_jitter = box_jitter
        self.load_and_freeze()

    def forward(self, images: ImageBatch, tokens: PromptTokens) -> SegmentFeatures:
        """Return the features of each prompt, from the images' stored features or their pixels."""
        levels = zip(*self.frozen_features(images), strict=True)
        return self.backbone(tuple(torch.stack(level) for level in levels), tokens)

    def frozen_features(self, images: ImageBatch) -> list[Levels]:
        """Return the prompt-free features of each image, in order: stored ones, or else encoded now in one batch."""
        stored = [features.segmentation for features in images.stored_features]
        return encode_missing(stored, images.segmentation, self.encode_images, self.backbone)

    def encode_images(self, pixels: Sequence[Shaped[Tensor, "3 size size"]]) -> Iterable[Levels]:
        """Return each image's levels, from canvases of one size encoded in one batch."""
        return zip(*(level.unbind() for level in self.backbone.image_features(torch.stack(list(pixels)))), strict=True)

    def predict_step(
        self, batch: ShardImageBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> tuple[ImageFeatures, ...]:
        """Return the prompt-free features of images, to be stored."""
        return tuple(ImageFeatures(segmentation=levels) for levels in self.frozen_features(batch.images))

    @property
    def collator(self) -> RegionCollator:
        """Return the collator of the extractor alone."""
        size, fingerprints = self.backbone.image_size, {"segmentation": self.fingerprint(VirtueFormatter())}
        return RegionCollator(size, size, self.prompt_modes, self.flip, self.box_jitter, fingerprints)

    def fingerprint(self, formatter: InputFormatter) -> str:
        """Return a hash of all that an image's stored features depend on. formatter: prepares its pixels."""
        return fingerprint_of(self.backbone.fingerprint(), formatter.segmentation_settings())

    def predict_masks(self, batch: RegionBatch) -> Float[Tensor, "prompts mask_height mask_width"]:
        """Return the mask logits of the batch's prompts, encoded by the extractor's own prompt encoder.

        Raises VirtueError without a prompt encoder, and for a backbone that predicts no mask.
        """
        if self.prompt_encoder is None:
            raise VirtueError(
                "SegmentationExtractor is to run alone, but nothing encodes its prompts: give it `prompt_encoder`"
            )
        logits = self(batch.images, self.prompt_encoder(batch.prompts)).mask_logits
        if logits is None:
            raise VirtueError(
                "SegmentationExtractor is to run alone, but its backbone predicts no mask: set the backbone's"
                " predict_masks to true"
            )
        return logits

    def training_step(self, batch: RegionBatch, batch_idx: int) -> Tensor:
        """Return the weighted sum of focal and dice loss, and log all three."""
        losses = self.mask_losses(self.predict_masks(batch), batch)
        self.log("train/loss", losses["loss"], prog_bar=True, batch_size=len(batch))
        self.log_dict({"train/focal": losses["focal"], "train/dice": losses["dice"]}, batch_size=len(batch))
        return losses["loss"]

    def mask_losses(
        self, logits: Float[Tensor, "prompts mask_height mask_width"], batch: RegionBatch
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the batch's loss, and the focal and dice loss that it is the weighted sum of, by name."""
        coverage = interpolate(batch.masks[:, None], size=logits.shape[-2:], mode="area")[:, 0]
        focal, dice = focal_loss(logits, coverage, self.focal_gamma).mean(), dice_loss(logits, coverage).mean()
        return {"loss": self.focal_weight * focal + self.dice_weight * dice, "focal": focal, "dice": dice}

    def on_validation_epoch_start(self) -> None:
        self.scores = {}

    def on_test_epoch_start(self) -> None:
        self.scores = {}

    def validation_step(self, batch: RegionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add the batch's IoUs to `scores`, and its loss to the average."""
        logits = self.score(batch)
        loss = self.mask_losses(logits, batch)["loss"]
        self.average("val/loss", loss, len(batch))

    def test_step(self, batch: RegionBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.score(batch)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.log_scores("val")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self.log_scores("test")

    def score(self, batch: RegionBatch) -> Float[Tensor, "prompts mask_height mask_width"]:
        """Add the batch's IoUs to `scores`, and return its mask logits."""
        logits = self.predict_masks(batch)
        groups: dict[tuple[str, str], list[int]] = {}
        for row, name in enumerate(zip(batch.tasks, batch.modes, strict=True)):
            groups.setdefault(name, []).append(row)
        for name, rows in groups.items():
            self.scores.setdefault(name, MaskIoU().to(self.device)).update(logits[rows], batch.masks[rows])
        return logits

    def log_scores(self, stage: str) -> None:
        """Log `val/iou_box` and so on; with several tasks each has its own, as `test/test_seen/iou_box`."""
        names = gather_names(self.scores)
        has_several_tasks = len({task for task, _ in names}) > 1
        for task, mode in names:
            iou = self.scores.get((task, mode), self.empty_iou())
            self.log(
                f"{stage}/{task.rpartition('/')[2]}/iou_{mode}" if has_several_tasks else f"{stage}/iou_{mode}",
                iou.compute(),
                sync_dist=True,
            )

    def empty_iou(self) -> MaskIoU:
        """Return the IoU of no masks, for a rank without samples of a task."""
        iou = MaskIoU().to(self.device)
        iou.update(torch.zeros(0, 1, 1, device=self.device), torch.zeros(0, 1, 1, device=self.device))
        return iou


def gather_names(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the names of all ranks, sorted: each collective must be called by every rank, in one order."""
    gathered = [list(names)] * world_size()
    if world_size() > 1:
        torch.distributed.all_gather_object(gathered, list(names))
    return sorted({name for rank in gathered for name in rank})
