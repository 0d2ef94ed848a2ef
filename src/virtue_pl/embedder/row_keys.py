"""Keys of rows and images, and what tells whether cached features are still those of a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from virtue_pl.preprocessing.images import pixel_key
from virtue_pl.types import EmbeddingInput


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor has been changed in place; 0 for one made for inference, which does not count."""
    return 0 if tensor.is_inference() else tensor._version


def is_plain(value: Any) -> bool:
    """Return whether a setting is a number, a string, a class, or a list of such, which are compared as they are."""
    if isinstance(value, list | tuple):
        return all(is_plain(each) for each in value)
    return isinstance(value, int | float | str | type)


def add_image_keys(item: EmbeddingInput) -> EmbeddingInput:
    """Return the input with a key for each of its images: its own keys, or else hashes of the pixels."""
    if len(item.image_keys) == len(item.images):
        return item
    return replace(item, image_keys=tuple(pixel_key(image) for image in item.images))


def row_key(item: EmbeddingInput) -> tuple[Any, ...]:
    """Return a key that is equal for inputs of the same text, images and prompts."""
    parts = [
        (part.shape, part.numpy().tobytes())
        for p in item.prompts
        for part in (p.boxes, p.points, p.point_labels, p.masks)
    ]
    return (item.text, item.image_keys, *parts)
