"""Collation of samples to prompts and regions, from which prompt encoder and segmentation extractor learn alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import interpolate

from virtue_pl.preprocessing.contrastive_collator import check_shares, content_id, drop_empty, index_tensor
from virtue_pl.preprocessing.input_formatters import VirtueFormatter
from virtue_pl.preprocessing.prompts import PROMPT_MODES, flip_horizontally, prompt_region
from virtue_pl.types import (
    NO_FEATURES,
    DataError,
    ImageBatch,
    ImageFeatures,
    PromptBatch,
    RankingSample,
    Region,
    RegionBatch,
    Sample,
    VisualPrompt,
)


class RegionCollator:
    """A collator that points at each sample's region and adds the region's box and exact mask.

    Args:
        image_size: height and width of the segmentation model's canvas; None to leave images out.
        mask_size: height and width of the masks, over the whole canvas; None to leave masks out.
        modes: the share of each prompt mode in training; evaluation uses each of them for every sample.
        flip: mirror half of the training images. A mirrored image has no stored features: it is encoded anew.
        box_jitter: in training, move each edge of a box prompt by up to this share of the box; the mask to find stays.
        fingerprints: for each stream, of all that an image's stored features depend on.

    Example:
        >>> from virtue_pl.types import EmbeddingInput
        >>> image, region = torch.zeros(3, 60, 80, dtype=torch.uint8), Region(torch.tensor([0.1, 0.2, 0.5, 0.6]))
        >>> sample = Sample("scar/0", "scar", EmbeddingInput(images=(image,)), EmbeddingInput("a cat"), region=region)
        >>> collator = RegionCollator(image_size=32, mask_size=None, modes={"box": 0.5, "point": 0.5}, flip=True)
        >>> collator.collate_train([sample]).boxes.shape
        torch.Size([1, 4])
    """

    def __init__(
        self,
        image_size: int | None,
        mask_size: int | None,
        modes: Mapping[str, float],
        flip: bool = False,
        box_jitter: float = 0.0,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        check_shares("prompt_modes", modes, PROMPT_MODES)
        self.image_size = image_size
        self.mask_size = mask_size
        self.modes = dict(modes)
        self.flip = flip
        self.box_jitter = box_jitter
        self.fingerprints = dict(fingerprints or {})

    def collate_train(self, samples: Sequence[Sample]) -> RegionBatch:
        """Return a training batch; prompt modes, flips and jitter are drawn from torch's generator."""
        names = list(self.modes)
        draws = torch.multinomial(torch.tensor(list(self.modes.values())), len(samples), replacement=True).tolist()
        modes = [names[draw] for draw in draws]
        flips = {image_key(sample): self.flip and bool(torch.rand(()) < 0.5) for sample in samples}
        regions = [
            mirror_region(region_of(sample)) if flips[image_key(sample)] else region_of(sample) for sample in samples
        ]
        prompts = [
            jitter_boxes(prompt_region(region, mode), self.box_jitter)
            for region, mode in zip(regions, modes, strict=True)
        ]
        return self.collate(samples, regions, prompts, modes, flips)

    def collate_eval(self, samples: Sequence[RankingSample]) -> RegionBatch:
        """Return an evaluation batch: row `m * len(samples) + i` is sample i in mode m; its key seeds the click."""
        rows = [sample for _ in self.modes for sample in samples]
        regions = [region_of(sample) for sample in rows]
        modes = [mode for mode in self.modes for _ in samples]
        generators = [torch.Generator().manual_seed(content_id(sample.key)) for sample in rows]
        prompts = [prompt_region(*arguments) for arguments in zip(regions, modes, generators, strict=True)]
        return self.collate(rows, regions, prompts, modes, {})

    def collate(
        self,
        samples: Sequence[Sample | RankingSample],
        regions: Sequence[Region],
        prompts: Sequence[VisualPrompt],
        modes: Sequence[str],
        flips: Mapping[str, bool],
    ) -> RegionBatch:
        """Return one row a sample; an image that occurs again (by key) is prepared once."""
        indices: dict[str, int] = {}
        image_index = [indices.setdefault(image_key(sample), len(indices)) for sample in samples]
        queries = {image_key(sample): sample.query for sample in samples}
        images = [queries[key].images[0].flip(-1) if flips.get(key) else queries[key].images[0] for key in indices]
        stored = [
            queries[key].features[0] if queries[key].features and not flips.get(key) else NO_FEATURES for key in indices
        ]
        return RegionBatch(
            tuple(sample.key for sample in samples),
            self.collate_images(images, stored),
            PromptBatch(tuple(prompts), index_tensor(image_index)),
            torch.stack([region.box for region in regions]).float(),
            torch.stack([self.mask(sample.key, region) for sample, region in zip(samples, regions, strict=True)]),
            tuple(modes),
            tuple(sample.task for sample in samples),
        )

    def collate_images(
        self, images: Sequence[UInt8[Tensor, "3 height width"]], stored: Sequence[ImageFeatures] = ()
    ) -> ImageBatch:
        """Prepare images for the segmentation stream. stored: one entry an image, used instead of its pixels."""
        if self.image_size is None:
            return ImageBatch()
        stored, size = stored or [NO_FEATURES] * len(images), self.image_size
        both = zip(images, stored, strict=True)
        canvases = tuple(
            None if features.segmentation else VirtueFormatter().segmentation_pixels(image, size)
            for image, features in both
        )
        return ImageBatch(segmentation=canvases, features=drop_empty(stored))

    def mask(self, key: str, region: Region) -> Float[Tensor, "size size"]:
        """Return the region's mask at `mask_size`. Raises DataError, naming `key`, for a region without one."""
        if self.mask_size is None:
            return torch.zeros(0, 0)
        if region.mask is None:
            raise DataError(
                key, "its region has no mask, expected the exact mask to learn from: write the data with `segmentation`"
            )
        return resize_mask(region.mask, self.mask_size)


def image_key(sample: Sample | RankingSample) -> str:
    """Return the content key of the sample's image; one made from the sample's own key where it has none."""
    return sample.query.image_keys[0] if sample.query.image_keys else f"image of {sample.key}"


def region_of(sample: Sample | RankingSample) -> Region:
    """Return the sample's region. Raises DataError for a sample without one."""
    if sample.region is None:
        raise DataError(sample.key, "it has no region to point at, expected a dataset with boxes or masks")
    return sample.region


def mirror_region(region: Region) -> Region:
    """Return the region in the mirrored image."""
    prompt = flip_horizontally(VisualPrompt(boxes=region.box[None]))
    mask = None if region.mask is None else region.mask.flip(-1)
    return Region(prompt.boxes[0], mask, flip_horizontally(region.given))


def jitter_boxes(prompt: VisualPrompt, share: float) -> VisualPrompt:
    """Return the prompt with each edge of its boxes moved by up to `share` of the box, within the image."""
    if not share or not len(prompt.boxes):
        return prompt
    sizes = (prompt.boxes[:, 2:] - prompt.boxes[:, :2]).repeat(1, 2)
    moves = (2 * torch.rand_like(prompt.boxes) - 1) * share
    return replace(prompt, boxes=(prompt.boxes + moves * sizes).clamp(0, 1))


def resize_mask(mask: Bool[Tensor, "height width"], size: int) -> Float[Tensor, "size size"]:
    """Return the mask stretched to `size` x `size`, 0 or 1."""
    if mask.shape == (size, size):
        return mask.float()
    return (
        interpolate(mask[None, None].float(), size=(size, size), mode="bilinear", antialias=True)[0, 0] >= 0.5
    ).float()
