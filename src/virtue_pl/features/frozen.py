"""Frozen features of images, which depend on no prompt: encoded where they are missing, and cached."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from virtue_pl.types import NO_FEATURES, ImageFeatures, merge_features

Levels = tuple[Tensor, ...]
"""One image's features, a tensor for each scale that the network outputs."""


def encode_missing(
    stored: Sequence[Levels],
    pixels: Sequence[Tensor | None],
    encode: Callable[[Sequence[Tensor]], Iterable[Levels]],
    network: nn.Module,
) -> list[Levels]:
    """Return each image's frozen features in input order, encoding all images without stored features in one batch.

    Stored features are moved to the device and dtype of `network`.

    Args:
        stored: one entry an image, empty where nothing is stored.
        pixels: one entry an image; only those of images without stored features are read.
        encode: from the pixels of several images to the features of each.
        network: the network that `encode` runs.
    """
    first = next(network.parameters())
    features = [tuple(level.to(first.device, first.dtype) for level in levels) for levels in stored]
    missing = [index for index, levels in enumerate(stored) if not levels]
    if missing:
        images = [image for index in missing if (image := pixels[index]) is not None]
        for index, levels in zip(missing, encode(images), strict=True):
            features[index] = levels
    return features


class FeatureCache:
    """A cache of images' frozen features by content key, which evicts the images used longest ago.

    Args:
        capacity: the number of images that are cached; 0 caches none.

    Example:
        >>> import torch
        >>> cache = FeatureCache(capacity=32)
        >>> cache.put("key", ImageFeatures(vision=(torch.zeros(4, 8),)))
        >>> cache.get("key").vision[0].shape
        torch.Size([4, 8])
        >>> cache.get("another key") is NO_FEATURES
        True
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._features: OrderedDict[str, ImageFeatures] = OrderedDict()
        self._state: object = None

    def __len__(self) -> int:
        return len(self._features)

    def get(self, key: str) -> ImageFeatures:
        """Return the image's cached features, `NO_FEATURES` where there are none, and mark it as used."""
        if key not in self._features:
            return NO_FEATURES
        self._features.move_to_end(key)
        return self._features[key]

    def put(self, key: str, features: ImageFeatures) -> None:
        """Cache the features, beside those of another stream, and evict the images used longest ago."""
        self._features[key] = merge_features(features, self._features.get(key, NO_FEATURES))
        self._features.move_to_end(key)
        while len(self._features) > self.capacity:
            self._features.popitem(last=False)

    def keep_for(self, state: object) -> None:
        """Empty the cache where `state`, what features depend on beside the image, is not that of the last call."""
        if state != self._state:
            self.clear()
        self._state = state

    def clear(self) -> None:
        """Empty the cache."""
        self._features.clear()
