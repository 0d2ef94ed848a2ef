"""The values of visual prompts: what they may be made of, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from virtue_pl.types.errors import VirtueError

TOLERANCE = 1e-4
"""Distance beyond [0, 1] that a normalised coordinate may have by rounding."""

_FAILURES = (TypeError, ValueError, RuntimeError, OverflowError)
"""Errors that torch and NumPy raise over values of which they make no tensor."""


def to_floats(value: Any, name: str) -> Float[Tensor, "..."]:
    """Return coordinates as a tensor of floats. Raises VirtueError for what is no numbers."""
    if isinstance(value, Tensor) and not value.is_complex():
        return value if value.is_floating_point() else value.float()
    try:
        return torch.as_tensor(value, dtype=torch.float32)
    except _FAILURES as error:
        raise no_values(name, value, "numbers") from error


def to_labels(value: Any, name: str) -> Int[Tensor, " points"]:
    """Return point labels as integers. Raises VirtueError for other values than 0 and 1 (on the host)."""
    try:
        found = value if isinstance(value, Tensor) else torch.as_tensor(value)
    except _FAILURES as error:
        raise no_values(name, value, "1 (inside) and 0 (outside)") from error
    if found.device.type == "cpu" and not all(label in (0, 1) for label in found.flatten().tolist()):
        raise VirtueError(f"point labels {describe(found.tolist())}, expected 1 (inside) or 0 (outside)")
    return found.long()


def to_masks(value: Any) -> Bool[Tensor, "..."]:
    """Return masks as booleans. Raises VirtueError for other values than booleans, 0 and 1."""
    try:
        masks = value if isinstance(value, Tensor) else torch.as_tensor(np.asarray(value))
    except _FAILURES as error:
        raise no_values("masks", value, "booleans, or 0 and 1") from error
    if masks.dtype == torch.bool:
        return masks
    inside = masks == 1
    if not bool((inside | (masks == 0)).all()):
        values = masks.real.double()
        raise VirtueError(
            f"visual prompt: masks of {str(masks.dtype).removeprefix('torch.')} from {values.min().item():g} to"
            f" {values.max().item():g}, expected booleans, or 0 and 1: threshold them first, as in `masks > 0` for"
            " logits and `masks > 0.5` for probabilities"
        )
    return inside


def no_values(name: str, value: Any, expected: str) -> VirtueError:
    """Return the error of values of which no tensor can be made."""
    return VirtueError(f"visual prompt: {name} are {describe(value)}, expected {expected}")


def check_normalised(name: str, values: Tensor) -> None:
    """Raise VirtueError for coordinates outside [0, 1]; those on a device are not read."""
    if not values.numel() or values.device.type != "cpu":
        return
    for row in values.tolist():
        if not all(-TOLERANCE <= value <= 1 + TOLERANCE for value in row):
            raise VirtueError(
                f"visual prompt: {name} with {numbers(row)}, expected coordinates from 0 to 1: those in pixels enter by"
                " VisualPrompt.from_pixels"
            )


def pixel_rows(value: Any, name: str, length: int) -> Float[Tensor, "rows length"]:
    """Return boxes or points in pixels, one or many, as rows. Raises VirtueError for rows of another length."""
    found = to_floats(value, name)
    if not found.numel():
        return torch.zeros(0, length)
    if not found.ndim or found.shape[-1] != length:
        raise VirtueError(f"visual prompt: {name} of shape {list(found.shape)}, expected [{name}, {length}]")
    return found.reshape(-1, length).float()


def image_size(size: Any, image: Any) -> tuple[int, int]:
    """Return (height, width), as `size` or the image says.

    Raises VirtueError where they contradict, or both are missing.

    Args:
        size: (height, width), or None.
        image: a PIL image, whose EXIF orientation counts, an array [height, width(, channels)], a tensor
            [channels, height, width], or None.
    """
    if size is None and image is None:
        raise VirtueError("from_pixels: neither size nor image is given, expected size=(height, width) or image=IMAGE")
    of_image = None if image is None else size_of(image)
    if size is None:
        assert of_image is not None
        return of_image
    try:
        height, width = (int(length) for length in size)
    except _FAILURES as error:
        raise VirtueError(f"from_pixels: size is {describe(size)}, expected (height, width)") from error
    if height < 1 or width < 1:
        raise VirtueError(f"from_pixels: size is {height, width}, expected (height, width) of 1 pixel or more")
    if of_image is not None and of_image != (height, width):
        raise VirtueError(
            f"from_pixels: size is {height, width}, but the image has {of_image} (height, width); PIL's `image.size` is"
            " (width, height): leave size out"
        )
    return height, width


def size_of(image: Any) -> tuple[int, int]:
    """Return an image's (height, width), upright. Raises VirtueError for what is no image."""
    if isinstance(image, Tensor) and image.ndim == 3:
        return image.shape[1], image.shape[2]
    if isinstance(image, np.ndarray) and image.ndim in (2, 3):
        return image.shape[0], image.shape[1]
    if hasattr(image, "getexif") and hasattr(image, "size"):
        width, height = image.size
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8) and getattr(image, "format", None) != "TIFF"
        return (width, height) if turned else (height, width)
    raise VirtueError(
        f"from_pixels: image is {describe(image)}, expected a PIL image, an array [height, width, channels] or a tensor"
        " [channels, height, width]; of a path, give size=(height, width)"
    )


def are_exchanged(size: Sequence[int], other: Sequence[int]) -> bool:
    """Return whether two sizes are of one ratio with height and width exchanged, and no square's."""
    return size[0] != size[1] and size[0] * other[0] == size[1] * other[1]


def check_boxes(boxes: Float[Tensor, "boxes 4"], size: tuple[int, int]) -> None:
    """Raise VirtueError for a box, xyxy in pixels, that is outside the image, or without area."""
    for box in boxes.tolist():
        x1, y1, x2, y2 = box
        if not (lies_inside([x1, y1], size) and lies_inside([x2, y2], size)):
            raise VirtueError(f"box {numbers(box)} {outside(size, [[x1, y1], [x2, y2]])}")
        if not (x1 < x2 and y1 < y2):
            raise VirtueError(f"box {numbers(box)} has no area, expected [x1, y1, x2, y2] with x1 < x2 and y1 < y2")


def check_points(points: Float[Tensor, "points 2"], size: tuple[int, int]) -> None:
    """Raise VirtueError for a point in pixels that is outside the image."""
    for point in points.tolist():
        if not lies_inside(point, size):
            raise VirtueError(f"point {numbers(point)} {outside(size, [point])}")


def check_masks(masks: Bool[Tensor, "masks height width"], size: tuple[int, int]) -> None:
    """Raise VirtueError for an empty mask, or one whose sides are the image's exchanged."""
    if len(masks) and not bool(masks.flatten(1).any(dim=1).all()):
        raise VirtueError("a mask is empty, expected at least one pixel inside")
    if len(masks) and are_exchanged(masks.shape[1:], size):
        raise VirtueError(
            f"masks of {list(masks.shape[1:])} on an image of {list(size)} (height, width): their sides are exchanged;"
            " PIL's `image.size` is (width, height)"
        )


def lies_inside(point: Sequence[float], size: tuple[int, int]) -> bool:
    """Return whether a point (x, y) in pixels lies in the image; False for NaN."""
    return 0 <= point[0] <= size[1] and 0 <= point[1] <= size[0]


def outside(size: tuple[int, int], points: Sequence[Sequence[float]]) -> str:
    """Return the words for points outside the image, with a hint where height and width may be exchanged."""
    hint = (
        "; size is (height, width), PIL's `image.size` is (width, height)"
        if size[0] != size[1] and all(lies_inside(point, (size[1], size[0])) for point in points)
        else ""
    )
    return f"lies outside the image of {size[1]}x{size[0]} pixels{hint}"


def numbers(values: Sequence[float]) -> str:
    """Return numbers in words."""
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def describe(value: Any) -> str:
    """Return a value as Python writes it, cut where it is long."""
    text = one_line(repr(value))
    return text if len(text) <= 60 else text[:57] + "..."


def one_line(value: Any) -> str:
    """Return a value's text in one line."""
    return " ".join(str(value).split())
