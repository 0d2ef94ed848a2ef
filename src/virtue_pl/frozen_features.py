"""What is frozen and knows no prompt: its features of each picture, stored or encoded now, and what they depend on."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from virtue_pl.types import UNKNOWN, PictureFeatures

Levels = tuple[Tensor, ...]
"""A picture's features, at as many scales as its network gives."""


def known_or_encoded(
    known: Sequence[Levels], pixels: Sequence[Tensor | None], encode: Callable[[Sequence[Tensor]], Iterable[Levels]], network: nn.Module
) -> list[Levels]:
    """Each picture's features, in order: as they are known, or else encoded, all that are not known at once.

    known: one a picture, empty where nothing is known; in the dtype and place of `network` from here on. pixels: at least of those that are not.
    """
    first = next(network.parameters())
    features = [tuple(level.to(first.device, first.dtype) for level in levels) for levels in known]
    missing = [index for index, levels in enumerate(known) if not levels]
    if missing:
        shown = [image for index in missing if (image := pixels[index]) is not None]
        for index, levels in zip(missing, encode(shown), strict=True):
            features[index] = levels
    return features


class RecentFeatures:
    """The frozen features of the pictures that were asked for last, by content key.

    Args:
        capacity: of how many pictures; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._features: OrderedDict[str, PictureFeatures] = OrderedDict()

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: str) -> PictureFeatures:
        """What is known of the picture, which then counts as the latest."""
        if key not in self._features:
            return UNKNOWN
        self._features.move_to_end(key)
        return self._features[key]

    def put(self, key: str, features: PictureFeatures) -> None:
        """Keeps the features, beside those of another stream that are known already; the oldest picture goes."""
        self._features[key] = either(features, self._features.get(key, UNKNOWN))
        self._features.move_to_end(key)
        while len(self._features) > self.capacity:
            self._features.popitem(last=False)

    def clear(self) -> None:
        self._features.clear()


def either(features: PictureFeatures, other: PictureFeatures) -> PictureFeatures:
    """Each stream's features, those of `other` where the first has none."""
    return PictureFeatures(features.segmentation or other.segmentation, features.vision or other.vision)


def network_fingerprint(network: nn.Module, *sizes: object) -> str:
    """sha256 over a network's parameters and buffers, and over `sizes`: whatever else its features depend on."""
    digest = hashlib.sha256(repr(sizes).encode())
    for name, tensor in sorted([*network.named_parameters(), *network.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
