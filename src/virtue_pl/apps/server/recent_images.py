"""Images of the last requests by their uuids, and the room for the images of all that are being answered."""

from __future__ import annotations

import threading
from collections import OrderedDict

from virtue_pl.apps.server.batching import QueueFull
from virtue_pl.apps.server.errors import UnknownImage
from virtue_pl.preprocessing.image_sources import KeyedPixels
from virtue_pl.types import VirtueError
from virtue_pl.types.prompt_values import describe


class RecentImages:
    """The images that were sent last under a uuid, those of each key by themselves.

    Args:
        images: the number that is kept.
        pixels: those of all of them together, at most.

    Example:
        >>> import torch
        >>> recent = RecentImages(images=2, pixels=1000)
        >>> recent.put(0, "street", KeyedPixels("0a1b", torch.zeros(3, 8, 8, dtype=torch.uint8)))
        >>> recent.get(0, "street").key
        '0a1b'
    """

    def __init__(self, images: int, pixels: int) -> None:
        self.images = images
        self.pixels = pixels
        self._found: OrderedDict[tuple[int, str], KeyedPixels] = OrderedDict()
        self._pixels = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._found)

    def put(self, owner: int, uuid: str, image: KeyedPixels) -> None:
        """Keep an image under its uuid, in place of an earlier one, and forget those that were used longest ago.

        owner: the number of the key of the client, whose uuids others do not see.
        """
        with self._lock:
            before = self._found.pop((owner, uuid), None)
            self._found[owner, uuid] = image
            self._pixels += count_pixels(image) - (0 if before is None else count_pixels(before))
            while self._found and (len(self._found) > self.images or self._pixels > self.pixels):
                _, forgotten = self._found.popitem(last=False)
                self._pixels -= count_pixels(forgotten)

    def get(self, owner: int, uuid: str) -> KeyedPixels:
        """Return the image that was last sent under a uuid. Raises UnknownImage where it is not kept (any more)."""
        with self._lock:
            if (owner, uuid) not in self._found:
                raise UnknownImage(
                    f"uuid: found {describe(uuid)}, under which no image was sent lately: send the image with it"
                )
            self._found.move_to_end((owner, uuid))
            return self._found[owner, uuid]


class PixelBudget:
    """Room for the decoded images of all requests that are being answered.

    Args:
        pixels: of all images together.

    Example:
        >>> budget = PixelBudget(1000)
        >>> budget.take(900)
        >>> budget.take(200)
        Traceback (most recent call last):
        virtue_pl.apps.server.batching.QueueFull: images of 900 pixels are being answered, of at most 1,000
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self._used = 0
        self._lock = threading.Lock()

    def take(self, pixels: int, before: int = 0) -> None:
        """Take room for so many pixels. Raises QueueFull where there is none now, VirtueError where there never is.

        before: pixels that the same request has taken.
        """
        if (whole := before + pixels) > self.pixels:
            raise VirtueError(f"images and masks have {whole:,} pixels together, expected at most {self.pixels:,}")
        with self._lock:
            if self._used + pixels > self.pixels:
                raise QueueFull(f"images of {self._used:,} pixels are being answered, of at most {self.pixels:,}")
            self._used += pixels

    def release(self, pixels: int) -> None:
        """Give the room of so many pixels back."""
        with self._lock:
            self._used -= pixels


def count_pixels(image: KeyedPixels) -> int:
    """Return the pixels of an image."""
    return image.pixels.shape[1] * image.pixels.shape[2]
