"""Visual prompts and regions, in normalised coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from virtue_pl.types.errors import VirtueError
from virtue_pl.types.prompt_values import (
    check_boxes,
    check_masks,
    check_normalised,
    check_points,
    image_size,
    pixel_rows,
    to_floats,
    to_labels,
    to_masks,
)
from virtue_pl.types.tensors import TensorDataclass, empty_tensor, index_tensors


@dataclass(frozen=True, eq=False)
class VisualPrompt(TensorDataclass):
    """Boxes, points and masks by which a person points at something in one image; all empty means "no prompt".

    Coordinates are normalised to [0, 1], x before y, with the origin at the top left; those in pixels enter by
    `from_pixels`.

    boxes: xyxy. points: (x, y). point_labels: 1 = inside, 0 = outside.
    masks: over the whole image, at any resolution: booleans, or 0 and 1; logits and probabilities are refused.
    size: (height, width) of the image in whose pixels the prompt was given; None where it was given otherwise.
    may_leave_image: coordinates beyond [0, 1] are meant, as in the frame that the published code reads them in.

    Raises VirtueError for anything else.

    Example:
        >>> prompt = VisualPrompt.from_pixels(boxes=[[16, 8, 32, 24]], size=(32, 64))
        >>> prompt.boxes
        tensor([[0.2500, 0.2500, 0.5000, 0.7500]])
        >>> VisualPrompt().is_empty
        True
    """

    boxes: Float[Tensor, "boxes 4"] = empty_tensor(0, 4)
    points: Float[Tensor, "points 2"] = empty_tensor(0, 2)
    point_labels: Int[Tensor, " points"] = empty_tensor(0, dtype=torch.long)
    masks: Bool[Tensor, "masks height width"] = empty_tensor(0, 1, 1, dtype=torch.bool)
    size: tuple[int, int] | None = None
    may_leave_image: bool = False

    def __post_init__(self) -> None:
        for name, convert in (("boxes", to_floats), ("points", to_floats), ("point_labels", to_labels)):
            object.__setattr__(self, name, convert(getattr(self, name), name))
        object.__setattr__(self, "masks", to_masks(self.masks))
        for name, is_valid, expected in (
            ("boxes", self.boxes.ndim == 2 and self.boxes.shape[1] == 4, "[boxes, 4]"),
            ("points", self.points.ndim == 2 and self.points.shape[1] == 2, "[points, 2]"),
            ("point_labels", self.point_labels.shape == self.points.shape[:1], "one label a point"),
            ("masks", self.masks.ndim == 3, "[masks, height, width]"),
        ):
            if not is_valid:
                found = list(getattr(self, name).shape)
                raise VirtueError(f"visual prompt: {name} of shape {found}, expected {expected}")
        if not self.may_leave_image:
            check_normalised("boxes", self.boxes)
            check_normalised("points", self.points)

    @classmethod
    def from_pixels(
        cls,
        boxes: Sequence[Sequence[float]] | Tensor = (),
        points: Sequence[Sequence[float]] | Tensor = (),
        labels: Sequence[int] | Tensor | None = None,
        masks: Bool[Tensor, "masks height width"] | None = None,
        *,
        size: tuple[int, int] | None = None,
        image: Any = None,
    ) -> VisualPrompt:
        """Return a prompt whose coordinates are given in pixels of an image.

        Args:
            boxes: xyxy.
            points: (x, y).
            labels: 1 = inside, 0 = outside, one a point; by default all points are inside.
            masks: over the whole image, at any resolution: booleans, or 0 and 1.
            size: the image's (height, width); PIL's `image.size` is (width, height).
            image: the image itself, which has its size: a PIL image, an array [height, width(, channels)] or a tensor
                [channels, height, width]. One of `size` and `image` is needed.

        Raises:
            VirtueError: a box or a point outside the image, a box of no area, an empty mask, a label other than 0 or 1,
                masks of other values than 0 and 1, a size that contradicts the image or the masks.
        """
        height, width = size = image_size(size, image)
        scale = torch.tensor([width, height], dtype=torch.float32)
        pixel_boxes, pixel_points = pixel_rows(boxes, "boxes", 4), pixel_rows(points, "points", 2)
        check_boxes(pixel_boxes, size)
        check_points(pixel_points, size)
        point_labels = torch.ones(len(pixel_points), dtype=torch.long) if labels is None else labels
        found = torch.zeros(0, 1, 1, dtype=torch.bool) if masks is None else to_masks(masks)
        prompt = cls(pixel_boxes / scale.repeat(2), pixel_points / scale, point_labels, found, size)  # type: ignore[arg-type]
        check_masks(prompt.masks, size)
        return prompt

    def scale(self, x: float, y: float) -> VisualPrompt:
        """Return the prompt with boxes and points multiplied, in a frame that they may leave; masks stay."""
        factors = torch.tensor([x, y])
        boxes, points = self.boxes * factors.repeat(2), self.points * factors
        return replace(self, boxes=boxes, points=points, may_leave_image=True)

    @property
    def is_empty(self) -> bool:
        """True where the prompt has no box, point or mask."""
        return not (len(self.boxes) or len(self.points) or len(self.masks))


TENSORS = ("boxes", "points", "point_labels", "masks")


def convert_together(prompts: Sequence[VisualPrompt], function: Callable[[Tensor], Tensor]) -> tuple[VisualPrompt, ...]:
    """Return the prompts with `function` of their tensors, called once a field: for all boxes, all points and so on.

    function: keeps each element, such as a move to a device. A field whose types differ is converted one by one.
    """
    converted = [convert_field([getattr(prompt, name) for prompt in prompts], function) for name in TENSORS]
    return tuple(
        VisualPrompt(boxes, points, labels, masks, prompt.size, prompt.may_leave_image)
        for prompt, boxes, points, labels, masks in zip(prompts, *converted, strict=True)
    )


def convert_field(tensors: Sequence[Tensor], function: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Return `function` of each tensor, as views of what it makes of all of them together."""
    if len({tensor.dtype for tensor in tensors}) != 1:
        return [function(tensor) for tensor in tensors]
    together = function(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = together.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@dataclass(frozen=True, eq=False)
class PromptBatch(TensorDataclass):
    """Visual prompts on the images of a batch.

    image_index: for each prompt, the index of its image in the batch.

    Example:
        >>> prompts = PromptBatch((VisualPrompt(), VisualPrompt()), torch.tensor([3, 5]))
        >>> prompts.reindex([5, 3]).image_index.tolist()
        [1, 0]
    """

    prompts: tuple[VisualPrompt, ...]
    image_index: Int[Tensor, " prompts"]

    host_properties = ("owners",)

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def owners(self) -> tuple[int, ...]:
        """`image_index` on the host, which is read once and goes along with the prompts."""
        return tuple(self.image_index.tolist())

    @classmethod
    def on_host(
        cls, prompts: Sequence[VisualPrompt], owners: Sequence[int], image_index: Int[Tensor, " prompts"]
    ) -> PromptBatch:
        """Return the batch of prompts whose images the host knows. owners: the values of `image_index`."""
        batch = cls(tuple(prompts), image_index)
        vars(batch)["owners"] = tuple(owners)
        return batch

    def convert(self, function: Callable[[Any], Any]) -> PromptBatch:
        """Return the same prompts with `function` of their tensors, called once a field and not once a prompt."""
        changed = PromptBatch(convert_together(self.prompts, function), function(self.image_index))
        return self.share_host_properties(changed)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PromptBatch:
        """Return the prompts on `device`, to which all boxes go together, as do points, labels, masks and indices.

        Those that are there already are returned as they are. The host reads the owners first, where they are on it.
        """
        if {self.image_index.device, *(prompt.boxes.device for prompt in self.prompts)} == {torch.device(device)}:
            return self
        if self.image_index.device.type == "cpu":
            _ = self.owners
        return super().to(device, non_blocking)

    def select(self, indices: Sequence[int]) -> PromptBatch:
        """Return the prompts of the given indices, in that order, on the same images."""
        return self.with_owners([self.prompts[i] for i in indices], [self.owners[i] for i in indices])

    def reindex(self, images: Sequence[int]) -> PromptBatch:
        """Return the prompts for a batch of just the given images, as `ImageBatch.select(images)` returns it."""
        new_index = {image: index for index, image in enumerate(images)}
        return self.with_owners(self.prompts, [new_index[image] for image in self.owners])

    def with_owners(self, prompts: Sequence[VisualPrompt], owners: Sequence[int]) -> PromptBatch:
        """Return prompts on the images `owners`, on this batch's device."""
        (image_index,) = index_tensors([owners], self.image_index.device)
        return PromptBatch.on_host(prompts, owners, image_index)


@dataclass(frozen=True, eq=False)
class Region(TensorDataclass):
    """One annotated object: its box (xyxy, normalised) and its exact mask over the whole image, None without one.

    given: the boxes and points that its annotation gives beside them; empty where the box, or the mask, is all.

    Example:
        >>> Region(torch.tensor([0.1, 0.2, 0.5, 0.6])).mask is None
        True
    """

    box: Float[Tensor, "4"]
    mask: Bool[Tensor, "height width"] | None = None
    given: VisualPrompt = field(default_factory=VisualPrompt)
