"""Images of the page: those of a folder, with their captions where rows name them, and those that a visitor uploads."""

from __future__ import annotations

import base64
import io
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from virtue_pl.preprocessing.images import MAX_PIXELS, pixel_key, to_image
from virtue_pl.types import VirtueError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
LONGEST, THUMBNAIL = 1280, 144
"""Longer sides in pixels of an image on the canvas, and in lists."""
KEPT = 32
"""Images that are held in memory; uploaded ones beyond them are uploaded again."""


@dataclass(frozen=True, eq=False)
class PageImage:
    """An image that the page can ask about. captions: what is asked at first, none where nobody said.

    Example:
        >>> import torch
        >>> image = PageImage("0a1b", "street.jpg", torch.zeros(3, 240, 320, dtype=torch.uint8))
        >>> image.size
        (240, 320)
    """

    key: str
    name: str
    pixels: UInt8[Tensor, "3 height width"]
    captions: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """The image's (height, width), upright."""
        return (self.pixels.shape[1], self.pixels.shape[2])

    def data_uri(self, longest: int = LONGEST) -> str:
        """Return the image as a data URI, its longer side at most `longest`."""
        return encode_image(to_pil(self.pixels), longest)


class ImageShelf:
    """Images of a folder, read when they are asked for, and uploaded ones.

    Args:
        root: the folder, searched with its sub-folders; None for uploads alone.
        captions: of images, by their paths below the folder.
        most: of the folder's images, drawn by `seed` where there are more.
        max_pixels: larger ones are refused from their header.

    Example:
        >>> shelf = ImageShelf(None)
        >>> len(shelf)
        0
    """

    def __init__(
        self,
        root: Path | None,
        captions: Mapping[str, Sequence[str]] | None = None,
        most: int = 60,
        seed: int = 0,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.root, self.max_pixels = root, max_pixels
        self.captions = {name: tuple(texts) for name, texts in (captions or {}).items()}
        self.names = choose_names(list_images(root), self.captions, most, seed) if root is not None else []
        self._held: OrderedDict[str, PageImage] = OrderedDict()
        self._thumbnails: dict[str, str] = {}

    def __len__(self) -> int:
        """Return the number of the folder's images."""
        return len(self.names)

    def thumbnail(self, name: str) -> str:
        """Return a small image as a data URI. Raises VirtueError for one that cannot be read."""
        if name not in self._thumbnails:
            self._thumbnails[name] = encode_image(to_pil(self.load(name).pixels), THUMBNAIL)
        return self._thumbnails[name]

    def load(self, name: str) -> PageImage:
        """Return an image by its path below the folder. Raises VirtueError for one that cannot be read."""
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        if self.root is None:
            raise VirtueError("that image is no longer here: upload it again")
        path = (self.root / name).resolve()
        if not path.is_relative_to(self.root.resolve()) or not path.is_file():
            raise VirtueError(f"{name} is not in {self.root}: was it moved?")
        return self._hold(PageImage(name, path.name, self._read(path, name), self.captions.get(name, ())))

    def add(self, path: Path, name: str) -> PageImage:
        """Return an uploaded file as an image. Raises VirtueError for what is none, or too large."""
        pixels = self._read(path, name)
        key = f"upload:{pixel_key(pixels)}"
        return self._hold(PageImage(key, name, pixels))

    def find(self, key: str) -> PageImage:
        """Return an image by its key. Raises VirtueError for an upload that is no longer held."""
        if key.startswith("upload:") and key not in self._held:
            raise VirtueError("that image was uploaded too long ago: upload it again")
        return self.load(key)

    def _read(self, path: Path, name: str) -> Tensor:
        return to_image(path, name, max_pixels=self.max_pixels)

    def _hold(self, image: PageImage) -> PageImage:
        self._held[image.key] = image
        self._held.move_to_end(image.key)
        while len(self._held) > KEPT:
            self._held.popitem(last=False)
        return image


def list_images(root: Path) -> list[str]:
    """Return the paths of a folder's images below it, sorted. Raises VirtueError where there is no folder."""
    if not root.is_dir():
        raise VirtueError(f"--images: there is no folder {root}")
    found = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(str(path.relative_to(root)) for path in found if not path.name.startswith("."))


def choose_names(names: list[str], captions: Mapping[str, Sequence[str]], most: int, seed: int) -> list[str]:
    """Return at most `most` names, those with captions first, in their order.

    Example:
        >>> choose_names(["a", "b", "c"], {"c": ["a cat"]}, 1, seed=0)
        ['c']
    """
    captioned = [name for name in names if name in captions]
    names = captioned or names
    return sorted(random.Random(seed).sample(names, most)) if len(names) > most else names


def to_pil(pixels: UInt8[Tensor, "3 height width"]) -> Image.Image:
    """Return pixels as Pillow's image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def encode_image(image: Image.Image, longest: int, kind: str = "jpeg") -> str:
    """Return an image as a data URI, shrunk where its longer side is more than `longest`.

    Example:
        >>> encode_image(Image.new("RGB", (8, 8)), 4)[:23]
        'data:image/jpeg;base64,'
    """
    if max(image.size) > longest:
        scale = longest / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.LANCZOS
        )
    written = io.BytesIO()
    image.save(written, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(written.getvalue()).decode()}"
