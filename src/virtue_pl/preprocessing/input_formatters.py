"""How text, pixels and coordinates are prepared for the model: one object, given to whatever prepares batches."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from virtue_pl.preprocessing.images import resize_bicubic, smart_size
from virtue_pl.preprocessing.prompts import enclosing_box, pixel_box
from virtue_pl.types import IMAGE_TOKEN, NO_FEATURES, EmbeddingInput, VirtueError, VisualPrompt

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""By which Qwen2-VL normalises."""


class InputFormatter(ABC):
    """One consistent way to prepare inputs; a checkpoint is used with the input formatter that it was trained with."""

    def prepare(self, item: EmbeddingInput) -> EmbeddingInput:
        """What is prepared in the item's place. Where pixels change, it is made afresh: nothing known of the old ones
        may stay.
        """
        return item

    def marked(self, text: str, marks: tuple[str, str]) -> str:
        """The text with the model's own marks around each image (`VLMProcessor.marks`)."""
        before, after = marks
        return text.replace(IMAGE_TOKEN, f"{before}{IMAGE_TOKEN}{after}")

    def position_ids(
        self, found: Int[Tensor, "*axes rows tokens"] | None, segmented: Sequence[int]
    ) -> Int[Tensor, "*axes rows tokens"] | None:
        """The positions of every row's tokens behind its segment tokens, which stand at 0; here what the model was
        trained with.

        found: `VLMProcessor.position_ids`. segmented: how many sets of segment tokens every row has.
        """
        return found

    def visual_prompt(self, item: EmbeddingInput, size: int | None) -> VisualPrompt:
        """The prompt as the segmentation model is given it on its canvas of `size` pixels; None where there is no such
        model.
        """
        return item.prompt

    def segmentation_fingerprint(self, network: str) -> str:
        """Of what the segmentation model's stored features depend on: the network's own
        (`SegmentationBackbone.fingerprint`) and `segmentation_pixels`.
        """
        return network

    @abstractmethod
    def text(self, item: EmbeddingInput) -> str:
        """The text that is tokenized, with `IMAGE_TOKEN` for each image."""

    @abstractmethod
    def segmentation_pixels(self, image: UInt8[Tensor, "3 height width"], size: int) -> Shaped[Tensor, "3 size size"]:
        """The image on the segmentation model's square canvas."""


class VirtueFormatter(InputFormatter):
    """The default: original pixels, resized once; the prompt is also told in words, as the paper does.

    Args:
        prompt_text: append "Referring object bbox: [x1, y1, x2, y2]" (or "point: (x, y)") in pixels of the image, as
            SCaR's queries do. A mask, a point outside and no prompt have no words.
    """

    def __init__(self, prompt_text: bool = True) -> None:
        self.prompt_text = prompt_text

    def text(self, item: EmbeddingInput) -> str:
        missing = len(item.images) - item.text.count(IMAGE_TOKEN)
        lines = [IMAGE_TOKEN] * missing + [item.text]
        if self.prompt_text and item.images:
            lines += self.prompt_lines(item)
        return "\n".join(line for line in lines if line)

    def prompt_lines(self, item: EmbeddingInput) -> list[str]:
        height, width = item.images[0].shape[1:]
        lines = []
        for prompt in item.prompts:
            boxes = [
                [round(x1 * width), round(y1 * height), round(x2 * width), round(y2 * height)]
                for x1, y1, x2, y2 in prompt.boxes.tolist()
            ]
            points = [
                (round(x * width), round(y * height)) for x, y in prompt.points[prompt.point_labels == 1].tolist()
            ]
            lines += [f"Referring object bbox: {box}" for box in boxes] + [
                f"Referring object point: {point}" for point in points
            ]
        return lines

    def segmentation_pixels(self, image: UInt8[Tensor, "3 height width"], size: int) -> UInt8[Tensor, "3 size size"]:
        from torchvision.transforms.v2 import functional as transforms

        return image if image.shape[1:] == (size, size) else transforms.resize(image, [size, size], antialias=True)


class PublishedFormatter(VirtueFormatter):
    """What the published weights (VIRTUE, arXiv 2510.00523) were trained with: for them, and for comparison with them,
    alone.

    It departs from `VirtueFormatter` in five points. The segmentation model is given the image as the vision tower
    reads it, resized and
    normalised, stretched to the canvas; the model normalises it again. No marks stand around an image. All axes of a
    position are
    equal: a row goes on behind its segment tokens, a text counts from 0. In SCaR a box may lie in another frame, and
    its
    evaluation has a space more. Where the published code lets a row depend on its neighbours, a row here is what it is
    alone; a row of
    several images, which stops that code, is refused.

    Args:
        prompt_text: see `VirtueFormatter`.
        prompt_frame: "image": the prompt lies where it points. "canvas": its pixels are read as the canvas's, as in the
            published
            training and evaluation on SCaR, so that a prompt on a smaller image shrinks towards the top-left corner.
            Masks stay.
        space_after_image: as in the published evaluation on SCaR.
        num_segment_tokens: how many a prompt becomes, in front of its row.
        min_pixels, max_pixels: the vision-language model's, of an image after it is resized.
    """

    def __init__(
        self,
        prompt_text: bool = True,
        prompt_frame: Literal["image", "canvas"] = "image",
        space_after_image: bool = False,
        num_segment_tokens: int = 256,
        min_pixels: int = 4 * 28 * 28,
        max_pixels: int = 1280 * 28 * 28,
    ) -> None:
        super().__init__(prompt_text)
        self.prompt_frame = prompt_frame
        self.space_after_image = space_after_image
        self.num_segment_tokens = num_segment_tokens
        self.min_pixels = min_pixels
        self.max_pixels = max_pixels

    def prepare(self, item: EmbeddingInput) -> EmbeddingInput:
        if len(item.images) > 1:
            raise VirtueError(
                f"formatter: a row shows {len(item.images)} images, but the published weights know one a row: use"
                " VirtueFormatter, or show one"
            )
        return item

    def marked(self, text: str, marks: tuple[str, str]) -> str:
        return text.replace(IMAGE_TOKEN, f"{IMAGE_TOKEN} ") if self.space_after_image else text

    def position_ids(
        self, found: Int[Tensor, "axes rows tokens"] | None, segmented: Sequence[int]
    ) -> Int[Tensor, "axes rows tokens"]:
        if found is None:
            raise VirtueError(
                "formatter: PublishedFormatter gives positions, but the language model takes none: give it a Qwen2-VL,"
                " or use VirtueFormatter"
            )
        starts = torch.tensor([self.num_segment_tokens * sets for sets in segmented])
        return (starts[:, None] + torch.arange(found.shape[-1])).expand_as(found)

    def visual_prompt(self, item: EmbeddingInput, size: int | None) -> VisualPrompt:
        if self.prompt_frame == "image" or size is None or not item.images:
            return item.prompt
        height, width = item.images[0].shape[1:]
        scale = torch.tensor([width, height]) / size
        return replace(item.prompt, boxes=item.prompt.boxes * scale.repeat(2), points=item.prompt.points * scale)

    def segmentation_pixels(self, image: UInt8[Tensor, "3 height width"], size: int) -> Float[Tensor, "3 size size"]:
        from torchvision.transforms.v2 import functional as transforms

        resized = resize_bicubic(image, smart_size((image.shape[1], image.shape[2]), self.min_pixels, self.max_pixels))
        return transforms.resize(
            transforms.normalize(resized / 255, list(CLIP_MEAN), list(CLIP_STD)), [size, size], antialias=True
        )

    def segmentation_fingerprint(self, network: str) -> str:
        return hashlib.sha256(f"{network} reference {self.min_pixels} {self.max_pixels}".encode()).hexdigest()


class CropFormatter(VirtueFormatter):
    """The model sees only what lies in the box around its prompts: a baseline for a model without a segmentation
    stream.

    The crop is the whole image from then on, and no prompt is left to tell in words. A mask is cropped to its box, and
    a
    image without a prompt is left alone.

    Args:
        point_side: a point is cropped to the square around it whose side is this share of the image's shorter side.
    """

    def __init__(self, point_side: float = 0.4) -> None:
        super().__init__(prompt_text=False)
        self.point_side = point_side

    def prepare(self, item: EmbeddingInput) -> EmbeddingInput:
        boxes = prompted_pixels(item, self.point_side)
        if not boxes:
            return item
        starts, ends = zip(*((box[:2], box[2:]) for box in boxes), strict=True)
        (left, top), (right, bottom) = map(min, zip(*starts, strict=True)), map(max, zip(*ends, strict=True))
        return replace_first_image(
            item, item.images[0][:, top:bottom, left:right], f"crop {left} {top} {right} {bottom}", (VisualPrompt(),)
        )


class MarkerFormatter(VirtueFormatter):
    """A red ellipse is drawn around each prompt's box: a baseline for a model without a segmentation stream.

    Source: Shtedritski et al., What does CLIP know about a red circle? (arXiv 2304.06712). The ellipse goes through the
    box's corners,
    but stays in the image. The prompt is told in words, too. A mask is marked around its box; an image without a prompt
    is left alone.

    Args:
        prompt_text: see `VirtueFormatter`.
        line_width: of the ellipse, as a share of the image's shorter side; at least one pixel.
        point_side: a point is marked as the square around it whose side is this share of the image's shorter side.
    """

    def __init__(self, prompt_text: bool = True, line_width: float = 0.02, point_side: float = 0.2) -> None:
        super().__init__(prompt_text)
        self.line_width = line_width
        self.point_side = point_side

    def prepare(self, item: EmbeddingInput) -> EmbeddingInput:
        boxes = prompted_pixels(item, self.point_side)
        if not boxes:
            return item
        marked, red = item.images[0], torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
        size = (marked.shape[1], marked.shape[2])
        for box in boxes:
            marked = torch.where(
                ellipse(around(box, size), size, max(1, round(self.line_width * min(size)))), red, marked
            )
        return replace_first_image(
            item, marked, f"marker {' '.join(str(edge) for box in boxes for edge in box)}", item.prompts
        )


def prompted_pixels(item: EmbeddingInput, point_side: float) -> list[tuple[int, int, int, int]]:
    """The box around each of the item's prompts (`enclosing_box`), xyxy in pixels of its first image; none without
    image or prompt.
    """
    if not item.images:
        return []
    size = (item.images[0].shape[1], item.images[0].shape[2])
    boxes = [enclosing_box(prompt, size, point_side) for prompt in item.prompts]
    return [pixel_box(box, size) for box in boxes if box is not None]


def replace_first_image(
    item: EmbeddingInput, image: UInt8[Tensor, "3 height width"], change: str, prompts: tuple[VisualPrompt, ...]
) -> EmbeddingInput:
    """The item with another first image, whose key says what became of the old one, and of which nothing is stored."""
    keys = (f"{item.image_keys[0]}, {change}", *item.image_keys[1:]) if item.image_keys else ()
    features = (NO_FEATURES, *item.features[1:]) if item.features else ()
    return EmbeddingInput(item.text, (image, *item.images[1:]), prompts[0], keys, features, prompts[1:])


def around(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The bounds of the ellipse through the box's corners, clipped to the image of `size` = (height, width)."""
    (left, top, right, bottom), (height, width) = box, size
    across, down = (2**0.5 - 1) * (right - left) / 2, (2**0.5 - 1) * (bottom - top) / 2
    return max(left - across, 0), max(top - down, 0), min(right + across, width), min(bottom + down, height)


def ellipse(
    bounds: tuple[float, float, float, float], size: tuple[int, int], line_width: float
) -> Bool[Tensor, "height width"]:
    """The pixels of an ellipse's line, which lies within the bounds (xyxy, in pixels)."""
    left, top, right, bottom = bounds
    y, x = (torch.arange(length) + 0.5 for length in size)
    dx, dy = (x - (left + right) / 2)[None], (y - (top + bottom) / 2)[:, None]
    across, down = (right - left) / 2, (bottom - top) / 2
    outer = (dx / across) ** 2 + (dy / down) ** 2 <= 1
    if min(across, down) <= line_width:
        return outer
    return outer & ((dx / (across - line_width)) ** 2 + (dy / (down - line_width)) ** 2 > 1)
