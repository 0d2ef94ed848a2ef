"""Visual prompts and regions, in normalised coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from virtue_pl.types.errors import VirtueError
from virtue_pl.types.tensors import TensorDataclass, _empty


@dataclass(frozen=True, eq=False)
class VisualPrompt(TensorDataclass):
    """What a person points at in one image; every field may be empty, and all empty means "no prompt".

    boxes: xyxy, normalised. points: (x, y), normalised. point_labels: 1 = inside, 0 = outside.
    masks: over the whole image, at any resolution.
    """

    boxes: Float[Tensor, "boxes 4"] = _empty(0, 4)
    points: Float[Tensor, "points 2"] = _empty(0, 2)
    point_labels: Int[Tensor, " points"] = _empty(0, dtype=torch.long)
    masks: Bool[Tensor, "masks height width"] = _empty(0, 1, 1, dtype=torch.bool)

    def __post_init__(self) -> None:
        for name, found, expected in (
            ("boxes", self.boxes.shape, self.boxes.ndim == 2 and self.boxes.shape[1] == 4),
            ("points", self.points.shape, self.points.ndim == 2 and self.points.shape[1] == 2),
            ("point_labels", self.point_labels.shape, self.point_labels.shape == self.points.shape[:1]),
            ("masks", self.masks.shape, self.masks.ndim == 3),
        ):
            if not expected:
                shape = {
                    "boxes": "[boxes, 4]",
                    "points": "[points, 2]",
                    "point_labels": "one label a point",
                    "masks": "[masks, height, width]",
                }
                raise VirtueError(f"visual prompt: {name} of shape {list(found)}, expected {shape[name]}")

    @classmethod
    def from_pixels(
        cls,
        boxes: Sequence[Sequence[float]] | Tensor = (),
        points: Sequence[Sequence[float]] | Tensor = (),
        labels: Sequence[int] | Tensor | None = None,
        masks: Bool[Tensor, "masks height width"] | None = None,
        *,
        size: tuple[int, int],
    ) -> VisualPrompt:
        """A prompt in pixels of an image of `size` = (height, width). Boxes are xyxy; points without labels are inside.

        Raises VirtueError for a box or a point outside the image, a box of no area, an empty mask, a label other than 0
        or 1.
        """
        height, width = size
        scale = torch.tensor([width, height], dtype=torch.float32)
        pixel_boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4) if len(boxes) else torch.zeros(0, 4)
        pixel_points = torch.as_tensor(points, dtype=torch.float32).reshape(-1, 2) if len(points) else torch.zeros(0, 2)
        for box in pixel_boxes.tolist():
            x1, y1, x2, y2 = box
            if not (0 <= x1 <= width and 0 <= x2 <= width and 0 <= y1 <= height and 0 <= y2 <= height):
                raise VirtueError(f"box {_numbers(box)} lies outside the image of {width}x{height} pixels")
            if not (x1 < x2 and y1 < y2):
                raise VirtueError(
                    f"box {_numbers(box)} has no area, expected [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
                )
        for point in pixel_points.tolist():
            if not (0 <= point[0] <= width and 0 <= point[1] <= height):
                raise VirtueError(f"point {_numbers(point)} lies outside the image of {width}x{height} pixels")
        point_labels = (
            torch.ones(len(pixel_points), dtype=torch.long)
            if labels is None
            else torch.as_tensor(labels, dtype=torch.long)
        )
        if not bool(((point_labels == 0) | (point_labels == 1)).all()):
            raise VirtueError(f"point labels {point_labels.tolist()}, expected 1 (inside) or 0 (outside)")
        mask = torch.zeros(0, 1, 1, dtype=torch.bool) if masks is None else torch.as_tensor(masks, dtype=torch.bool)
        if len(mask) and not bool(mask.flatten(1).any(dim=1).all()):
            raise VirtueError("a mask is empty, expected at least one pixel inside")
        return cls(pixel_boxes / scale.repeat(2), pixel_points / scale, point_labels, mask)

    @property
    def is_empty(self) -> bool:
        return not (len(self.boxes) or len(self.points) or len(self.masks))


def _numbers(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


@dataclass(frozen=True, eq=False)
class Region(TensorDataclass):
    """One annotated object: its box (xyxy, normalised) and, where known, its exact mask over the whole image."""

    box: Float[Tensor, "4"]
    mask: Bool[Tensor, "height width"] | None = None
