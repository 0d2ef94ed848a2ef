"""Formatters of texts, pixels and coordinates: one object, given to the collators that prepare batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from virtue_pl.preprocessing.images import resize_bicubic, smart_size
from virtue_pl.preprocessing.prompts import enclosing_box, pixel_box
from virtue_pl.types import IMAGE_TOKEN, NO_FEATURES, EmbeddingInput, VirtueError, VisualPrompt

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Means and standard deviations of RGB, by which Qwen2-VL normalises pixels."""


class InputFormatter(ABC):
    """One consistent way to prepare inputs; a model is used with the formatter that it was trained with.

    Example:
        >>> class Lowercase(VirtueFormatter):
        ...     def text(self, item: EmbeddingInput) -> str:
        ...         return super().text(item).lower()
        >>> Lowercase().text(EmbeddingInput("A cat"))
        'a cat'
    """

    def prepare(self, item: EmbeddingInput) -> EmbeddingInput:
        """Return the input to encode instead of `item`, such as a crop of its image.

        Changed pixels need a new image key and no stored features (`replace_first_image`).
        """
        return item

    def check(self, item: EmbeddingInput) -> None:  # noqa: B027  # by default nothing is refused
        """Raise VirtueError for an input that `prepare` would refuse; of its images only the shapes are read."""

    def delimit_images(self, text: str, delimiters: tuple[str, str]) -> str:
        """Return the text with the model's own delimiters around each image (`VLMProcessor.image_delimiters`)."""
        before, after = delimiters
        return text.replace(IMAGE_TOKEN, f"{before}{IMAGE_TOKEN}{after}")

    def position_ids(
        self, positions: Int[Tensor, "*axes rows tokens"] | None, prompt_counts: Sequence[int]
    ) -> Int[Tensor, "*axes rows tokens"] | None:
        """Return the positions of every row's tokens behind its segment tokens, which have position 0.

        positions: those that the model was trained with (`VLMProcessor.position_ids`), which are the default.
        prompt_counts: for every row, how many of its prompts become segment tokens.
        """
        return positions

    def visual_prompt(self, item: EmbeddingInput, size: int | None) -> VisualPrompt:
        """Return the item's prompt for the segmentation model's canvas.

        size: the canvas's height and width in pixels; None without a segmentation model.
        """
        return item.prompt

    vision_attributes: tuple[str, ...] = ()
    """Attributes that `first_size` depends on, which the class that defines it names; see `vision_settings`."""

    def first_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) to which an image of `size` is resized before either stream reads it.

        Texts and prompts are about the image at its own size.
        """
        return size

    def resize_first(self, image: UInt8[Tensor, "3 height width"]) -> UInt8[Tensor, "3 new_height new_width"]:
        """Return the image at its `first_size`."""
        return resize_bicubic(image, self.first_size((image.shape[1], image.shape[2])))

    def segmentation_settings(self) -> dict[str, Any]:
        """Return all that `segmentation_pixels` depends on beside the image and the size, which keys stored features.

        It is the class that defines it and, unless that class names fewer as `segmentation_attributes`, all attributes.
        """
        return self.settings_of("segmentation_pixels", "segmentation_attributes")

    def vision_settings(self) -> dict[str, Any]:
        """Return all that `first_size` depends on beside the size, which keys the vision tower's stored features.

        It is found as `segmentation_settings` is, by `vision_attributes`.
        """
        return self.settings_of("first_size", "vision_attributes")

    def settings_of(self, method: str, attributes: str) -> dict[str, Any]:
        """Return the class that defines a method, and the values of the attributes that it names, or else of all."""
        owner = next(cls for cls in type(self).__mro__ if method in vars(cls))
        names = vars(owner).get(attributes, tuple(vars(self)))
        return {"class": owner, **{name: getattr(self, name) for name in names}}

    @abstractmethod
    def text(self, item: EmbeddingInput) -> str:
        """Return the text to tokenize, with one `IMAGE_TOKEN` for each image."""

    @abstractmethod
    def segmentation_pixels(self, image: UInt8[Tensor, "3 height width"], size: int) -> Shaped[Tensor, "3 size size"]:
        """Return the image on the segmentation model's square canvas of `size` pixels."""


class VirtueFormatter(InputFormatter):
    """The default formatter: original pixels, resized once; the prompt is also written into the text, as in the paper.

    Args:
        prompt_text: append "Referring object bbox: [x1, y1, x2, y2]" (or "point: (x, y)") in pixels of the image, as
            SCaR's queries do. A mask, an outside point and an empty prompt are not written.

    Example:
        >>> box = VisualPrompt.from_pixels(boxes=[[10, 10, 50, 40]], size=(60, 80))
        >>> item = EmbeddingInput("What is this?", (torch.zeros(3, 60, 80, dtype=torch.uint8),), box)
        >>> VirtueFormatter().text(item).splitlines()
        ['<|image_pad|>', 'What is this?', 'Referring object bbox: [10, 10, 50, 40]']
    """

    segmentation_attributes: tuple[str, ...] = ()

    def __init__(self, prompt_text: bool = True) -> None:
        self.prompt_text = prompt_text

    def text(self, item: EmbeddingInput) -> str:
        """Return the images' tokens where the text has none, the text, and the prompts, one a line."""
        missing = len(item.images) - item.text.count(IMAGE_TOKEN)
        lines = [IMAGE_TOKEN] * missing + [item.text]
        if self.prompt_text and item.images:
            lines += self.prompt_lines(item)
        return "\n".join(line for line in lines if line)

    def prompt_lines(self, item: EmbeddingInput) -> list[str]:
        """Return a line of text for each box and each inside point, in pixels of the first image."""
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
        """Return the original image, stretched to the canvas."""
        from torchvision.transforms.v2 import functional as transforms

        return image if image.shape[1:] == (size, size) else transforms.resize(image, [size, size], antialias=True)


class PublishedFormatter(VirtueFormatter):
    """The published input format (VIRTUE, arXiv 2510.00523), for the published weights and comparisons with them alone.

    It departs from `VirtueFormatter` in six points. An image with a side under `least_side` pixels is first resized to
    a square of twice that side. The segmentation model reads the image as the vision tower does, resized and
    normalised, stretched to the canvas; the model normalises it again. No delimiters stand around an image. All axes of
    a position are equal: a row counts on behind its segment tokens, a text from 0. In SCaR a box may lie in another
    coordinate frame, and the evaluation of SCaR has a space more. Where the published code lets a row depend on
    the other rows of its batch, a row here is the same in every batch; a row of several images, which stops that code,
    is refused.

    Args:
        prompt_text: see `VirtueFormatter`.
        prompt_frame: "image": coordinates are pixels of the image. "canvas": they are read as pixels of the canvas, as
            in the published training and evaluation on SCaR, so that a prompt on a smaller image shrinks towards the
            top-left corner. Masks stay.
        space_after_image: add a space after the image, as in the published evaluation on SCaR.
        num_segment_tokens: how many tokens a prompt becomes, in front of its row.
        min_pixels, max_pixels: bounds of the area of an image for the vision tower.

    Example:
        >>> formatter = PublishedFormatter(space_after_image=True)
        >>> formatter.delimit_images(f"{IMAGE_TOKEN}a cat", ("", ""))
        '<|image_pad|> a cat'
    """

    least_side = 28
    segmentation_attributes = ("min_pixels", "max_pixels", "least_side")
    vision_attributes = ("least_side",)

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
        """Return the item as it is. Raises VirtueError for several images."""
        self.check(item)
        return item

    def check(self, item: EmbeddingInput) -> None:
        if len(item.images) > 1:
            raise VirtueError(
                f"formatter: a row has {len(item.images)} images, but the published weights take one a row: use"
                " VirtueFormatter, or give one"
            )

    def delimit_images(self, text: str, delimiters: tuple[str, str]) -> str:
        """Return the text without delimiters, with a space after each image where `space_after_image` is set."""
        return text.replace(IMAGE_TOKEN, f"{IMAGE_TOKEN} ") if self.space_after_image else text

    def position_ids(
        self, positions: Int[Tensor, "axes rows tokens"] | None, prompt_counts: Sequence[int]
    ) -> Int[Tensor, "axes rows tokens"]:
        """Return positions that count on behind the row's segment tokens, equal on all axes."""
        if positions is None:
            raise VirtueError(
                "formatter: PublishedFormatter gives positions, but the language model takes none: give it a Qwen2-VL,"
                " or use VirtueFormatter"
            )
        starts = torch.tensor([self.num_segment_tokens * count for count in prompt_counts])
        return (starts[:, None] + torch.arange(positions.shape[-1])).expand_as(positions)

    def visual_prompt(self, item: EmbeddingInput, size: int | None) -> VisualPrompt:
        """Return the item's prompt in the coordinate frame of `prompt_frame`."""
        if self.prompt_frame == "image" or size is None or not item.images:
            return item.prompt
        height, width = item.images[0].shape[1:]
        return item.prompt.scale(width / size, height / size)

    def first_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return a square for an image with a side under `least_side` pixels, and else its own size."""
        return size if min(size) >= self.least_side else (2 * self.least_side, 2 * self.least_side)

    def segmentation_pixels(self, image: UInt8[Tensor, "3 height width"], size: int) -> Float[Tensor, "3 size size"]:
        """Return the image as the vision tower reads it, normalised and stretched to the canvas."""
        from torchvision.transforms.v2 import functional as transforms

        image = self.resize_first(image)
        resized = resize_bicubic(image, smart_size((image.shape[1], image.shape[2]), self.min_pixels, self.max_pixels))
        return transforms.resize(
            transforms.normalize(resized / 255, list(CLIP_MEAN), list(CLIP_STD)), [size, size], antialias=True
        )


class CropFormatter(VirtueFormatter):
    """A baseline for a model without a segmentation stream: it sees only the crop around its prompts.

    The crop is the whole image from then on, without a prompt. A mask is cropped to its box; an image without a prompt
    is left as it is.

    Args:
        point_side: a point is cropped to a square around it, whose length is this share of the image's shorter side.

    Example:
        >>> box = VisualPrompt.from_pixels(boxes=[[10, 10, 50, 40]], size=(60, 80))
        >>> item = EmbeddingInput("What is this?", (torch.zeros(3, 60, 80, dtype=torch.uint8),), box)
        >>> CropFormatter().prepare(item).images[0].shape
        torch.Size([3, 30, 40])
    """

    def __init__(self, point_side: float = 0.4) -> None:
        super().__init__(prompt_text=False)
        check_share("point_side", point_side)
        self.point_side = point_side

    def prepare(self, item: EmbeddingInput) -> EmbeddingInput:
        """Return the item with the crop around all its prompts as its first image."""
        boxes = prompt_pixel_boxes(item, self.point_side)
        if not boxes:
            return item
        starts, ends = zip(*((box[:2], box[2:]) for box in boxes), strict=True)
        (left, top), (right, bottom) = map(min, zip(*starts, strict=True)), map(max, zip(*ends, strict=True))
        return replace_first_image(
            item, item.images[0][:, top:bottom, left:right], f"crop {left} {top} {right} {bottom}", (VisualPrompt(),)
        )


class MarkerFormatter(VirtueFormatter):
    """A baseline for a model without a segmentation stream: a red ellipse is drawn around each prompt's box.

    Source: Shtedritski et al., What does CLIP know about a red circle? (arXiv 2304.06712). The ellipse goes through the
    box's corners, but stays in the image. A mask is marked around its box; an image without a prompt is left as it is.

    Args:
        prompt_text: see `VirtueFormatter`.
        line_width: the ellipse's line, as a share of the image's shorter side; at least one pixel.
        point_side: a point is marked as a square around it, whose length is this share of the image's shorter side.

    Example:
        >>> box = VisualPrompt.from_pixels(boxes=[[10, 10, 50, 40]], size=(60, 80))
        >>> item = EmbeddingInput("What is this?", (torch.zeros(3, 60, 80, dtype=torch.uint8),), box)
        >>> bool(MarkerFormatter().prepare(item).images[0].any())
        True
    """

    def __init__(self, prompt_text: bool = True, line_width: float = 0.02, point_side: float = 0.2) -> None:
        super().__init__(prompt_text)
        check_share("line_width", line_width)
        check_share("point_side", point_side)
        self.line_width = line_width
        self.point_side = point_side

    def prepare(self, item: EmbeddingInput) -> EmbeddingInput:
        """Return the item with an ellipse around each of its prompts drawn into its first image."""
        boxes = prompt_pixel_boxes(item, self.point_side)
        if not boxes:
            return item
        marked, red = item.images[0], torch.tensor([255, 0, 0], dtype=torch.uint8)[:, None, None]
        size = (marked.shape[1], marked.shape[2])
        for box in boxes:
            marked = torch.where(
                ellipse_outline(ellipse_bounds(box, size), size, max(1, round(self.line_width * min(size)))),
                red,
                marked,
            )
        return replace_first_image(
            item, marked, f"marker {' '.join(str(edge) for box in boxes for edge in box)}", item.prompts
        )


def check_share(option: str, share: float) -> None:
    """Raise VirtueError, naming the option, for a share of an image's side that is not in [0, 1]."""
    if not 0 <= share <= 1:
        raise VirtueError(f"formatter.{option} is {share}, expected a share of the image's side, 0 to 1")


def prompt_pixel_boxes(item: EmbeddingInput, point_side: float) -> list[tuple[int, int, int, int]]:
    """Return the box around each of the item's prompts (`enclosing_box`), xyxy in pixels of its first image.

    The list is empty without an image or a prompt.
    """
    if not item.images:
        return []
    size = (item.images[0].shape[1], item.images[0].shape[2])
    boxes = [enclosing_box(prompt, size, point_side) for prompt in item.prompts]
    return [pixel_box(box, size) for box in boxes if box is not None]


def replace_first_image(
    item: EmbeddingInput, image: UInt8[Tensor, "3 height width"], change: str, prompts: tuple[VisualPrompt, ...]
) -> EmbeddingInput:
    """Return the item with another first image, without stored features; `change` is added to the image's key."""
    keys = (f"{item.image_keys[0]}, {change}", *item.image_keys[1:]) if item.image_keys else ()
    features = (NO_FEATURES, *item.features[1:]) if item.features else ()
    return EmbeddingInput(item.text, (image, *item.images[1:]), prompts[0], keys, features, prompts[1:])


def ellipse_bounds(box: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return the bounds of the ellipse through the box's corners, clipped to the image of `size` = (height, width)."""
    (left, top, right, bottom), (height, width) = box, size
    across, down = (2**0.5 - 1) * (right - left) / 2, (2**0.5 - 1) * (bottom - top) / 2
    return max(left - across, 0), max(top - down, 0), min(right + across, width), min(bottom + down, height)


def ellipse_outline(
    bounds: tuple[float, float, float, float], size: tuple[int, int], line_width: float
) -> Bool[Tensor, "height width"]:
    """Return a mask of an ellipse's line, which lies within the bounds (xyxy, in pixels)."""
    left, top, right, bottom = bounds
    y, x = (torch.arange(length) + 0.5 for length in size)
    dx, dy = (x - (left + right) / 2)[None], (y - (top + bottom) / 2)[:, None]
    across, down = (right - left) / 2, (bottom - top) / 2
    outer = (dx / across) ** 2 + (dy / down) ** 2 <= 1
    if min(across, down) <= line_width:
        return outer
    return outer & ((dx / (across - line_width)) ** 2 + (dy / (down - line_width)) ** 2 > 1)
